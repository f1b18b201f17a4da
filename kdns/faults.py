"""Faults of our own: an exception that nobody expected ends what raised it and nothing else, and is a line and a count.

A callback runs in the midst of others: in a queue of deadlines, among those who wait for one reply, between two frames
of a connection. Whoever calls several hands what one of them raises to `report` and goes on with the next. What reaches
the event loop itself comes to `caught`. What a plugin raises for a query is the dispatcher's (SERVFAIL,
`coredns_panics_total`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from kdns import log
from kdns.metrics import Counter

PAUSE: Final = 1.0  # seconds before a task that failed is begun again

ERRORS: Final = Counter("kdns_internal_errors_total", "Exceptions in callbacks, timers and tasks; the log has each.")

_log = log.Logger()


def report(where: str, error: BaseException) -> None:
    """Counts and logs an exception, in one line with the place it comes from. `where` says what it has ended."""
    ERRORS.slot()[0] += 1
    _log.error(f"Internal error in {where}: {text_of(error)}")


def caught(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`."""
    error = context.get("exception")
    message = str(context.get("message", "")).strip()
    if isinstance(error, BaseException):
        report(f"the event loop: {message}" if message else "the event loop", error)
    else:
        ERRORS.slot()[0] += 1
        _log.error(f"Internal error in the event loop: {message}")


def call_each(where: str, calls: Iterable[Callable[[], object]]) -> None:
    """Calls all of them, whatever one raises."""
    for call in list(calls):
        try:
            call()
        except Exception as error:
            report(where, error)


async def attempt(where: str, work: Callable[[], Awaitable[None]]) -> None:
    """Does work that is not repeated: what it raises is said at once, and not when somebody asks its task."""
    try:
        await work()
    except Exception as error:
        report(where, error)


async def supervise(where: str, work: Callable[[], Awaitable[None]], pause: float = PAUSE) -> None:
    """Does `work` to its end; where it fails it is begun again after `pause` seconds, so that nothing stops in
    silence.
    """
    while True:
        try:
            return await work()
        except Exception as error:
            report(where, error)
        await asyncio.sleep(pause)


def text_of(error: BaseException) -> str:
    """Type, text and place of an exception: `ValueError: text (kdns.net.tcp:123)`; a file where it is not of kdns."""
    what = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = ""  # its text is an exception too
    if text:
        what += f": {text}"
    trace = error.__traceback__
    if trace is None:
        return what
    while trace.tb_next is not None:
        trace = trace.tb_next
    name = str(trace.tb_frame.f_globals.get("__name__", "?"))
    return f"{what} ({name if name.startswith('kdns.') else trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
