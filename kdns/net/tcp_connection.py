"""A connection of the TCP listener: DNS messages behind two octets of length, in batches (RFC 1035, section 4.2.2).

The laws are the listener's (net.tcp).
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from kdns.net import Address, MessageStream

if TYPE_CHECKING:
    from kdns.net.tcp import TcpListener

# Octets of a batch. A usual one has some 3,000; the largest message is 64 KiB, and to look at its octets alone takes
# 0.1 ms.
BATCH_OCTETS: Final = 64 << 10
BATCH_FRAMES: Final = 64
BATCH_SECONDS: Final = 0.001
# Seconds of batches in one turn of the loop, all connections of a listener: as much as UDP has. With a millisecond for
# each, 300 connections that pipeline made everybody else wait 300 ms.
LOOP_SECONDS: Final = 0.001
# Below that, what was spent is not set back to nothing at once: to come back for it costs a turn of the loop.
LITTLE: Final = LOOP_SECONDS / 2
# The clock is looked at after the first frame, then after every fourth, or so many octets. A look costs 0.05 µs, a
# frame 1 to 5.
LOOK_FRAMES: Final = 4
LOOK_OCTETS: Final = 2048
# Queries of one connection that may wait for an upstream. NodeLocal DNSCache has at most a few hundred.
MAX_PENDING: Final = 1000
WRITE_HIGH: Final = 256 << 10  # unsent octets at which reading stops

# The two octets before a message, of most messages: to look them up costs a third of making them.
_SMALL: Final = 1024
_LENGTHS: Final = [size.to_bytes(2, "big") for size in range(_SMALL)]


class TcpConnection(asyncio.Protocol):
    """A connection that speaks DNS messages."""

    __slots__ = (
        "buffer", "deadline", "eof", "full", "listener", "loop", "paused", "peer", "pending", "queries", "scheduled",
        "streams", "timer", "transport",
    )  # fmt: skip

    def __init__(self, listener: "TcpListener") -> None:
        self.listener = listener
        self.buffer = b""
        self.pending = 0
        self.full = False  # unsent octets wait
        self.paused = False
        self.scheduled = False
        self.eof = False
        self.queries = 0
        self.streams: list[MessageStream] = []
        self.peer: Address = ()
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        listener = self.listener
        self.loop = asyncio.get_running_loop()
        self.transport = transport  # type: ignore[assignment]
        self.peer = transport.get_extra_info("peername") or ("", 0)
        self.deadline = self.loop.time() + listener.first_read
        if not listener.admit(self, self.peer[0]):
            self.transport.abort()  # type: ignore[union-attr]
            return
        self.transport.set_write_buffer_limits(WRITE_HIGH)  # type: ignore[union-attr]
        self.timer = self.loop.call_later(listener.first_read, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.buffer = b""
        self.streams.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.leave()

    def leave(self) -> None:
        """Gives its place to others."""
        if self.peer:
            self.listener.discharge(self, self.peer[0])

    def data_received(self, data: bytes) -> None:
        self.listener.busy = True
        self.buffer = self.buffer + data if self.buffer else data
        if not self.scheduled:
            listener = self.listener
            if listener.queue or listener.spent >= LOOP_SECONDS:
                self._pause()
                self._schedule()
            else:
                self.resume()

    def eof_received(self) -> bool:
        # Half a close: what was asked is still answered, then we close too (RFC 7766, section 6.2.3).
        self.eof = True
        self._close_if_done()
        return self.transport is not None

    def pause_writing(self) -> None:
        self.full = True
        self._pause()

    def resume_writing(self) -> None:
        self.full = False
        if self.streams:
            self.loop.call_soon(self._pump)
        self._schedule()

    # Batches.

    def resume(self) -> None:
        """Answers what has come, as much as fits into a batch."""
        began = time.monotonic()
        self._batch()
        listener = self.listener
        listener.spent += time.monotonic() - began
        if listener.spent >= LITTLE:
            listener.come_back()

    def _batch(self) -> None:  # noqa: C901 - one batch, with each way it may end
        self.scheduled = False
        transport = self.transport
        if transport is None or self.full:
            return
        listener = self.listener
        # Locals: this class extends one of Python's, so that even compiled code looks its attributes up by name.
        handler, peer, local = listener.handler, self.peer, listener.local
        most, queries, eof = listener.max_queries, self.queries, self.eof
        room = MAX_PENDING - self.pending
        buffer = self.buffer
        total = len(buffer)
        off = frames = look = 0
        end = 0.0
        out: list[bytes] = []
        more = False
        while off + 2 <= total and not (eof and 0 < most <= queries):
            stop = off + 2 + (buffer[off] << 8 | buffer[off + 1])
            if stop > total:
                break
            if frames == BATCH_FRAMES or off >= BATCH_OCTETS or room <= 0:
                more = True
                break
            if frames == 1:
                end = time.monotonic() + BATCH_SECONDS
                look = off + LOOK_OCTETS
            elif frames and (frames % LOOK_FRAMES == 0 or off >= look):
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

    def _schedule(self) -> None:
        if not self.scheduled and self.transport is not None:
            self.scheduled = True
            self.listener.queue.append(self)
            self.listener.come_back()

    def _pause(self) -> None:
        if not self.paused and self.transport is not None and not self.eof:
            self.paused = True
            self.transport.pause_reading()

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

    def _expire(self) -> None:
        left = self.deadline - self.loop.time()
        # Streams do not count: one that does not move is one that nobody reads.
        if self.pending > len(self.streams) and left <= 0:
            left = 1.0  # an upstream is being waited for; its own deadline ends that
        if left > 0:
            self.timer = self.loop.call_later(left, self._expire)
        else:
            self.abort()

    def abort(self) -> None:
        """Closes at once."""
        if self.transport is not None:
            self.transport.abort()
