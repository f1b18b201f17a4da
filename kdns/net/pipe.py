"""Messages between the processes of one server, over a socket pair: msgpack behind a length of four octets.

Laws: both ends are ours, so what comes is believed; a message is handed over whole and in order; whoever sends much
asks for `room` in between, so what waits is bounded by the largest message; the end of either process is told once, to
`gone`.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, final

import msgspec

# Octets that wait to be sent before `room` waits: some ten frames of objects.
HIGH: Final = 256 << 10

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


@final
class Pipe(asyncio.Protocol):
    """One end. `receive` is called with each message: a list whose first item says what it is."""

    def __init__(self, receive: Callable[[list[Any]], None], gone: Callable[[], None]) -> None:
        self.receive = receive
        self.gone = gone
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._roomy = asyncio.Event()
        self._roomy.set()

    @classmethod
    async def open(cls, sock: socket.socket, receive: Callable[[list[Any]], None], gone: Callable[[], None]) -> "Pipe":
        """An end that reads from now on. Takes the socket over."""
        made = cls(receive, gone)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: made, sock=sock)
        return made

    def send(self, *message: Any) -> None:
        """Sends a message; nothing happens where the other end has gone."""
        if self._transport is not None and not self._transport.is_closing():
            data = _encode(message)
            self._transport.write(len(data).to_bytes(4, "big") + data)

    async def room(self) -> None:
        """Waits while too much waits to be sent."""
        await self._roomy.wait()

    def pause(self) -> None:
        """Reads no more, until `resume`."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Sends what waits, and closes; `gone` is called later."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(HIGH)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 4:
            end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
            if len(buffer) < end:
                break
            message = _decode(bytes(buffer[at + 4 : end]))
            at = end
            self.receive(message)
        del buffer[:at]

    def pause_writing(self) -> None:
        self._roomy.clear()

    def resume_writing(self) -> None:
        self._roomy.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._roomy.set()
        self.gone()
