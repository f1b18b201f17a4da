"""Sockets: listeners for UDP and TCP, and HTTP. They carry bytes; what the bytes mean is the handler's.

A handler takes `(data, client, local)` and gives the reply's bytes, None for no reply, a `PendingReply` that will, or,
over TCP, a `MessageStream`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

Address = tuple[Any, ...]


class Process(NamedTuple):
    """Which process listens: `run` (two octets) is the same in all workers of a server, and another after a restart;
    `worker` is its number among them. `alone`: nobody but they listens on the ports.
    """

    run: bytes
    worker: int
    alone: bool


class PendingReply(Protocol):
    """A reply that is not there yet."""

    def add(self, callback: Callable[[Any], None]) -> None:
        """Calls back with the reply's bytes, or None for no reply."""


class MessageStream:
    """A reply of several messages (a zone transfer), made one by one while they are sent. Over TCP only.

    `failed` is told of the exception that ends them too early; the connection is then closed.
    """

    __slots__ = ("failed", "messages")

    def __init__(self, messages: Iterator[bytes], failed: Callable[[Exception], None]) -> None:
        self.messages = messages
        self.failed = failed


Handler = Callable[[bytes, Address, Address | None], bytes | PendingReply | MessageStream | None]
