"""Memory that was freed, and that the system gets back.

glibc keeps what was freed below something that is still in use: after a flood of handshakes 20 MiB stay, though nobody
has them.
"""

import asyncio
import contextlib
import ctypes
import threading
from typing import Final, final

AFTER: Final = 1.0  # seconds from when many have gone: the last of them will have gone too


@final
class Floods:
    """Gives memory back once `many` were there at a time, and half of them have gone."""

    def __init__(self, many: int) -> None:
        self.many = many
        self.count = 0  # that are there
        self.most = 0  # that were there since memory was given back

    def now(self, count: int) -> None:
        """So many are there from now on."""
        if self._gone(count) and not self._gone(self.count):
            asyncio.get_running_loop().call_later(AFTER, self._look)
        self.count = count
        self.most = max(self.most, count)

    def _gone(self, count: int) -> bool:
        return self.most >= self.many and count <= self.most // 2

    def _look(self) -> None:
        if self._gone(self.count):
            self.most = self.count
            give_back()


def give_back() -> None:
    """Gives freed memory back to the system, beside the loop. It takes some milliseconds, in a thread that needs no
    interpreter: ctypes lets it go. A C library other than glibc has nothing to call.
    """
    threading.Thread(target=_trim, name="memory", daemon=True).start()


def _trim() -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
