"""Garbage collection paused while a list is decoded and applied.

The policy is the server's; this layer only asks. Without a server (tests, tools) nothing is paused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_pause: list[Callable[[], Callable[[], None]]] = []


def set_pause(pause: Callable[[], Callable[[], None]]) -> None:
    """Sets what pauses collection; it gives a function that ends the pause."""
    _pause[:] = [pause]


@contextmanager
def pause_gc() -> Iterator[None]:
    """No collection inside."""
    over = _pause[0]() if _pause else None
    try:
        yield
    finally:
        if over is not None:
            over()
