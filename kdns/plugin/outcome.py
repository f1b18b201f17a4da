"""The outcome of a query, now or later.

`Answer` is a reply's content, `RcodeOnly` a response code and nothing else, `Transfer` a zone transfer, `DROP` no reply
at all. What is not there yet is an awaitable. `Pending` is our own: it calls back without a task or a turn of the loop,
so a forwarded query costs two function calls more than a cached one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Final, final

from kdns import faults
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.rrset import RRset


@final
class RcodeOnly:
    """A response code and nothing else. `error` is for logs, `options` are EDNS options for clients that use EDNS."""

    __slots__ = ("error", "options", "rcode")

    def __init__(self, rcode: int, error: BaseException | str | None = None, options: bytes = b"") -> None:
        self.rcode = rcode
        self.error = error
        self.options = options

    @property
    def written(self) -> bool:
        """True if a plugin made this reply and says why in it; False if something failed and the server replies."""
        return self.error is None and bool(self.options)

    def __repr__(self) -> str:
        return f"RcodeOnly({iana.rcode_text(self.rcode)}, {self.error!r})"


class NoNextPlugin(Exception):
    """The chain ran off its end: no plugin had an answer."""

    def __str__(self) -> str:
        return "no next plugin found"


@final
class Drop:
    """No reply. There is one: DROP."""

    __slots__ = ("rcode",)

    def __init__(self) -> None:
        self.rcode = -1


@final
class Transfer:
    """A zone transfer (RFC 5936): the records of each message, made one by one while they are sent. Over TCP only."""

    __slots__ = ("flags", "messages", "rcode")

    def __init__(self, messages: "Iterator[tuple[RRset, ...]]", flags: int = iana.AA) -> None:
        self.messages = messages
        self.flags = flags
        self.rcode = iana.NOERROR


DROP: Final = Drop()
Outcome = Answer | RcodeOnly | Drop | Transfer
OUTCOMES: Final = frozenset((Answer, RcodeOnly, Drop, Transfer))

_tasks: Final[set["asyncio.Task[None]"]] = set()


@final
class Pending:
    """An outcome that is not there yet. Resolved once; later resolutions are ignored."""

    __slots__ = ("_callback", "_more", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        # Nearly always one waits, so the first needs no list.
        self._callback: Callable[[Any], object] | None = None
        self._more: list[Callable[[Any], object]] | None = None

    def resolve(self, value: Any) -> None:
        """Sets the value and calls who waits, in order; what one of them raises is not the others'.

        An exception counts as a value: the chain makes it SERVFAIL.
        """
        if self.done:
            return
        self.done = True
        self.value = value
        callback, more = self._callback, self._more
        self._callback = self._more = None
        if callback is not None:
            try:
                callback(value)
            except Exception as error:
                faults.report("what waited for a reply", error)
        if more is not None:
            for each in more:
                try:
                    each(value)
                except Exception as error:
                    faults.report("what waited for a reply", error)

    def add(self, callback: Callable[[Any], object]) -> None:
        """Calls back with the value, at once if it is there."""
        if self.done:
            callback(self.value)
        elif self._callback is None:
            self._callback = callback
        elif self._more is None:
            self._more = [callback]
        else:
            self._more.append(callback)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.add(lambda _: None if future.done() else future.set_result(None))
            yield from future.__await__()
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def ensure_pending(awaitable: Awaitable[Any]) -> Pending:
    """A Pending for any awaitable: a coroutine becomes a task, held until it ends; its exception becomes the value."""
    if isinstance(awaitable, Pending):
        return awaitable
    pending = Pending()
    task = asyncio.ensure_future(_drive(awaitable, pending))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return pending


async def _drive(awaitable: Awaitable[Any], pending: Pending) -> None:
    try:
        pending.resolve(await awaitable)
    except asyncio.CancelledError:
        pending.resolve(DROP)
        raise
    except Exception as error:
        pending.resolve(error)


def then(value: Any, fn: Callable[[Any], Any]) -> Any:
    """`fn(value)`, now if the value is an outcome or None, else when it is there.

    What `fn` returns may again be an awaitable. An exception of the awaited becomes `RcodeOnly(SERVFAIL, error)`
    before `fn` sees it.
    """
    if value is None or type(value) in OUTCOMES:
        return fn(value)
    source = ensure_pending(value)
    result = Pending()

    def go_on(found: Any) -> None:
        if isinstance(found, BaseException):
            found = RcodeOnly(iana.SERVFAIL, found)
        try:
            out = fn(found)
        except Exception as error:
            result.resolve(error)
            return
        if out is None or type(out) in OUTCOMES:
            result.resolve(out)
        else:
            ensure_pending(out).add(result.resolve)

    source.add(go_on)
    return result
