"""A connection of the TCP listener: DNS messages behind two octets of length, in batches (RFC 1035, section 4.2.2).

The laws are the listener's (net.tcp).
"""

import time
from typing import TYPE_CHECKING, Final

from kdns.net import MessageStream
from kdns.net.connection import BATCH_FRAMES, BatchConnection

if TYPE_CHECKING:
    from kdns.net.tcp import TcpListener

# Octets of a batch. A usual one has some 3,000; the largest message is 64 KiB, and to look at its octets alone takes
# 0.1 ms.
BATCH_OCTETS: Final = 64 << 10
# The clock is looked at after the first frame, then after every fourth, or so many octets. A look costs 0.05 µs, a
# frame 1 to 5.
LOOK_FRAMES: Final = 4
LOOK_OCTETS: Final = 2048
# Queries of one connection that may wait for an upstream. NodeLocal DNSCache has at most a few hundred.
MAX_PENDING: Final = 1000

# The two octets before a message, of most messages: to look them up costs a third of making them.
_SMALL: Final = 1024
_LENGTHS: Final = [size.to_bytes(2, "big") for size in range(_SMALL)]


class TcpConnection(BatchConnection):
    """A connection that speaks DNS messages."""

    __slots__ = ("queries", "streams")

    def __init__(self, listener: "TcpListener") -> None:
        super().__init__(listener)
        self.queries = 0
        self.streams: list[MessageStream] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.clear()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        if self.streams:
            self.loop.call_soon(self._pump)
        super().resume_writing()

    def _batch(self) -> None:  # noqa: C901 - one batch, with each way it may end
        self.scheduled = False
        transport = self.transport
        if transport is None or self.full:
            return
        listener = self.listener
        # Locals: the listener is not compiled, so that even compiled code looks its attributes up by name.
        handler, peer, local = listener.handler, self.peer, self.local
        most, queries, eof = listener.max_queries, self.queries, self.eof
        room = MAX_PENDING - self.pending
        buffer = self.buffer
        total = len(buffer)
        off = frames = look = 0
        end = time.monotonic() + listener.turns.left()
        out: list[bytes] = []
        more = False
        while off + 2 <= total and not (eof and 0 < most <= queries):
            stop = off + 2 + (buffer[off] << 8 | buffer[off + 1])
            if stop > total:
                break
            if frames == BATCH_FRAMES or off >= BATCH_OCTETS or room <= 0:
                more = True
                break
            if frames == 1 or (frames and (frames % LOOK_FRAMES == 0 or off >= look)):
                if time.monotonic() > end:
                    more = True
                    break
                look = off + LOOK_OCTETS
            frames += 1
            queries += 1
            if 0 < most <= queries:
                eof = True  # the last one: it is answered, then we close
            reply = handler(buffer[off + 2 : stop], peer, local)
            off = stop
            if type(reply) is bytes:
                size = len(reply)
                out.append(_LENGTHS[size] if size < _SMALL else size.to_bytes(2, "big"))
                out.append(reply)
            elif type(reply) is MessageStream:
                room -= 1
                self._stream(reply)
            elif reply is not None:
                room -= 1
                self.pending += 1
                reply.add(self._ready)  # type: ignore[union-attr]
        self.queries, self.eof = queries, eof
        if off:
            self.buffer = buffer[off:]
            self.deadline = self.loop.time() + listener.idle
        if out:
            transport.write(b"".join(out))
        if more:
            self._pause()
            if self.pending < MAX_PENDING:
                self._schedule()
        elif self.paused and not self.full:
            self.paused = False
            transport.resume_reading()
        if self.eof:
            self._close_if_done()

    def _stream(self, frames: MessageStream) -> None:
        self.pending += 1
        self.streams.append(frames)
        if len(self.streams) == 1:
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Sends the next message of a stream: one a turn, and none while octets wait."""
        transport = self.transport
        if transport is None or self.full or not self.streams:
            return
        self.deadline = self.loop.time() + self.listener.idle
        frames = self.streams[0]
        try:
            message = next(frames.messages, None)
        except Exception as error:
            # What was sent already cannot be taken back: only the end of the connection says that the rest is missing.
            frames.failed(error)
            self.abort()
            return
        if message is None:
            self.streams.pop(0)
            self._ready(None)
        else:
            transport.write(len(message).to_bytes(2, "big") + message)
        if self.streams:
            self.loop.call_soon(self._pump)

    def _ready(self, reply: bytes | MessageStream | None) -> None:
        """A reply that had to wait."""
        self.pending -= 1
        transport = self.transport
        if transport is None:
            return
        if isinstance(reply, MessageStream):
            self._stream(reply)
        elif reply is not None:
            transport.write(len(reply).to_bytes(2, "big") + reply)
        self.deadline = self.loop.time() + self.listener.idle
        if self.paused and not self.full:
            self._schedule()
        if self.eof:
            self._close_if_done()

    def _close_if_done(self) -> None:
        # What was asked behind the last query of `max_queries` is not answered.
        asked = not 0 < self.listener.max_queries <= self.queries and self._frame_waits()
        if self.transport is not None and not self.pending and not asked:
            self.transport.close()

    def _frame_waits(self) -> bool:
        buffer = self.buffer
        return len(buffer) >= 2 and len(buffer) - 2 >= (buffer[0] << 8 | buffer[1])

    def working(self) -> bool:
        # Streams do not count: one that does not move is one that nobody reads.
        return self.pending > len(self.streams)
