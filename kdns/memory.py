"""Memory that was freed, and that the system gets back.

glibc keeps what was freed below something that is still in use: after a flood of handshakes 20 MiB stay, though nobody
has them.
"""

import contextlib
import ctypes
import threading


def give_back() -> None:
    """Gives freed memory back to the system, beside the loop. It takes some milliseconds, in a thread that needs no
    interpreter: ctypes lets it go. A C library other than glibc has nothing to call.
    """
    threading.Thread(target=_trim, name="memory", daemon=True).start()


def _trim() -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
