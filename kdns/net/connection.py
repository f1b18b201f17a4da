"""What connections of a TCP listener have in common, whatever they speak: the place among others, the turns, the
deadline.

The laws are the listener's (net.tcp). A class adds `_batch`, which goes on with what has come, `working`, and
`_close_if_done`.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from kdns.net import Address, StreamTransport

if TYPE_CHECKING:
    from kdns.net.tcp import TcpListener

BATCH_FRAMES: Final = 64
WRITE_HIGH: Final = 256 << 10  # unsent octets at which reading stops


class BatchConnection:
    """A connection that answers in batches."""

    __slots__ = (
        "buffer", "deadline", "eof", "full", "listener", "local", "loop", "paused", "peer", "pending", "scheduled",
        "timer", "transport",
    )  # fmt: skip

    def __init__(self, listener: "TcpListener") -> None:
        self.listener = listener
        self.buffer = b""
        self.pending = 0  # queries whose answers have not left
        self.full = False  # unsent octets wait
        self.paused = False
        self.scheduled = False
        self.eof = False
        self.peer: Address = ()
        self.local: Address = listener.local  # where the client went to; the listener's may be every address
        self.timer: asyncio.TimerHandle | None = None
        self.transport: StreamTransport | None = None

    def _batch(self) -> None:
        """Answers as much of the buffer as fits into a batch."""
        raise NotImplementedError

    def _close_if_done(self) -> None:
        """Closes a connection that will have no more queries once all are answered."""
        raise NotImplementedError

    def unsent(self) -> bool:
        """True if octets wait because the client does not read."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def working(self) -> bool:
        """True if a whole query waits for its answer, and not for the client to send or to read."""
        raise NotImplementedError

    # Called by the loop.

    def connection_made(self, transport: StreamTransport) -> None:
        listener = self.listener
        self.loop = asyncio.get_running_loop()
        self.transport = transport
        self.peer = transport.get_extra_info("peername") or ("", 0)
        self.local = transport.get_extra_info("sockname") or listener.local
        self.deadline = self.loop.time() + listener.first_read
        if not listener.admit(self, self.peer[0]):
            self.abort()
            return
        transport.set_write_buffer_limits(WRITE_HIGH)
        self.timer = self.loop.call_later(listener.first_read, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.buffer = b""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.leave()

    def leave(self) -> None:
        """Gives its place to others."""
        if self.peer:
            self.listener.discharge(self, self.peer[0])

    def data_received(self, data: bytes) -> None:
        listener = self.listener
        listener.busy = True
        self.buffer = self.buffer + data if self.buffer else data
        if not self.scheduled:
            if listener.turns.over():
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
        self._schedule()

    # Batches.

    def resume(self) -> None:
        """Answers what has come, as much as fits into a batch."""
        began = time.monotonic()
        self._batch()
        self.listener.turns.spend(time.monotonic() - began)

    def _schedule(self) -> None:
        if not self.scheduled and self.transport is not None:
            self.scheduled = True
            self.listener.turns.wait(self)

    def _pause(self) -> None:
        if not self.paused and self.transport is not None and not self.eof:
            self.paused = True
            self.transport.pause_reading()

    def _expire(self) -> None:
        left = self.deadline - self.loop.time()
        if left <= 0 and self.working():
            left = 1.0  # an upstream is being waited for; its own deadline ends that
        if left > 0:
            self.timer = self.loop.call_later(left, self._expire)
        else:
            self.abort()

    def abort(self) -> None:
        """Closes at once."""
        if self.transport is not None:
            self.transport.abort()
