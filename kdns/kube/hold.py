"""Collection held off while a list is decoded and applied.

The policy is the server's; this layer only asks. Without a server (tests, tools) nothing is held.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_holder: list[Callable[[], Callable[[], None]]] = []


def set_holder(holder: Callable[[], Callable[[], None]]) -> None:
    """Sets what holds collection off; it gives a function that ends the hold."""
    _holder[:] = [holder]


@contextmanager
def hold() -> Iterator[None]:
    """No collection inside."""
    over = _holder[0]() if _holder else None
    try:
        yield
    finally:
        if over is not None:
            over()
