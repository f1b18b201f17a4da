"""Sockets: listeners for UDP and TCP, and a small HTTP server. They carry bytes; what the bytes mean is the handler's.

A handler takes `(data, peer, local)` and gives the reply's bytes, None for no reply, a `Later` that will, or (over TCP) `Frames`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

Address = tuple[Any, ...]


class Later(Protocol):
    """A reply that is not there yet."""

    def add(self, callback: Callable[[Any], None]) -> None:
        """Calls back with the reply's bytes, or None for no reply."""


class Frames:
    """A reply of several messages (a zone transfer), made one by one while they are sent. Over TCP only."""

    __slots__ = ("messages",)

    def __init__(self, messages: Iterator[bytes]) -> None:
        self.messages = messages


Handler = Callable[[bytes, Address, Address | None], bytes | Later | Frames | None]
