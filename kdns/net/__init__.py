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


class StreamTransport(Protocol):
    """What a connection writes to: as asyncio.Transport has it. Compiled classes extend none of Python's."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def get_write_buffer_size(self) -> int: ...


class StreamProtocol(Protocol):
    """What reads from a connection: as asyncio.Protocol has it. Loops ask for these methods, and not for its class."""

    def connection_made(self, transport: StreamTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class MessageStream:
    """A reply of several messages (a zone transfer), made one by one while they are sent. Over TCP only.

    `failed` is told of the exception that ends them too early; the connection is then closed.
    """

    __slots__ = ("failed", "messages")

    def __init__(self, messages: Iterator[bytes], failed: Callable[[Exception], None]) -> None:
        self.messages = messages
        self.failed = failed


Handler = Callable[[bytes, Address, Address | None], bytes | PendingReply | MessageStream | None]
