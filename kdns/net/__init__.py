"""Sockets: listeners for UDP and TCP, and a small HTTP server. They carry bytes; what the bytes mean is the handler's.

A handler takes `(data, peer, local)` and gives the reply's bytes, None for no reply, or a `Later` that will.
"""

from collections.abc import Callable
from typing import Any, Protocol

Address = tuple[Any, ...]


class Later(Protocol):
    """A reply that is not there yet."""

    def add(self, callback: Callable[[Any], None]) -> None:
        """Calls back with the reply's bytes, or None for no reply."""


Handler = Callable[[bytes, Address, Address | None], bytes | Later | None]
