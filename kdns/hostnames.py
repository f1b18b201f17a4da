"""Names of hosts looked up by the system, where waiting holds nobody and keeps no process from ending.

A loop looks names up in threads of its own, and waits for them when it is closed: ten seconds and more where the name
server says nothing (resolv.conf(5): 5 seconds, two attempts, for each server).
"""

import socket
from functools import partial
from typing import Any, Final

from kdns import files

TIMEOUT: Final = 30.0  # seconds: three servers that say nothing, as resolv.conf(5) has them asked


async def look_up(
    host: bytes | str | None,
    port: bytes | str | int | None,
    *,
    family: int = 0,
    type: int = 0,
    proto: int = 0,
    flags: int = 0,
) -> list[Any]:
    """What socket.getaddrinfo gives. Raises OSError."""
    call = partial(socket.getaddrinfo, host, port, family, type, proto, flags)
    return await files.waiting(f"looking up {host!r}", call, TIMEOUT)  # fmt: skip
