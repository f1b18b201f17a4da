"""The TCP listener: DNS messages behind two octets of length (RFC 1035, section 4.2.2), pipelined (RFC 7766).

Laws: answers leave as they become ready, not in the order of their questions (RFC 7766, section 6.2.1.1); a
connection's turn is at most 64 frames, 64 KiB or 1 ms, with one write, and all connections together take a millisecond
before others run; while frames or unsent octets wait, nothing more is read, so a client that does not read stops being
read; every connection has a deadline that only whole queries move, so trickling octets buys no time; connections are
capped, in all and for one client, and where there is no room, one of who holds most gives way (net.shares).
"""

import asyncio
import resource
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from kdns.metrics import Counter, Gauge
from kdns.net import Address, Handler, MessageStream
from kdns.net.proxy import ProxyConnection, ProxyGate
from kdns.net.shares import Shares
from kdns.net.tls import TlsConnection, TlsGate

# Octets of a turn. A usual one has some 3,000; the largest message is 64 KiB, and to look at its octets alone takes 0.1
# ms.
BATCH_OCTETS: Final = 64 << 10
BATCH_FRAMES: Final = 64
BATCH_SECONDS: Final = 0.001
# Seconds of turns in one turn of the loop, all connections of a listener: as much as UDP has. With a millisecond for
# each, 300 connections that pipeline made everybody else wait 300 ms.
LOOP_SECONDS: Final = 0.001
# Below that, what was spent is not set back to nothing at once: to come back for it costs a turn of the loop.
LITTLE: Final = LOOP_SECONDS / 2
# The clock is looked at after the first frame, then after every fourth, or so many octets. A look costs 0.05 µs, a
# frame 1 to 5.
LOOK_FRAMES: Final = 4
LOOK_OCTETS: Final = 2048
FIRST_READ: Final = 3.0  # seconds for the first query (CoreDNS's `timeouts read`)
# Seconds between queries. CoreDNS closes after 10, and its clients keep connections for 10: a second more, so that
# a client is never the second to close.
IDLE: Final = 11.0
# Queries of one connection that may wait for an upstream. NodeLocal DNSCache has at most a few hundred.
MAX_PENDING: Final = 1000
# A cluster of 5,000 nodes whose NodeLocal caches hold two connections each to one replica fits; a connection
# costs some 3 KB here.
MAX_CONNECTIONS: Final = 16_384
# Of all files the process may open, what connections to us may take: upstreams, the API server and probes need files
# too, and a wildcard address has two listeners.
FILES_SHARE: Final = 4
# One address may be a whole cluster behind SNAT: half of all.
CLIENT_SHARE: Final = 2
WRITE_HIGH: Final = 256 << 10  # unsent octets at which reading stops

# The two octets before a message, of most messages: to look them up costs a third of making them.
_SMALL: Final = 1024
_LENGTHS: Final = [size.to_bytes(2, "big") for size in range(_SMALL)]

CONNECTIONS = Gauge("kdns_tcp_connections", "Open TCP connections.", ("server",))
REFUSED = Counter("kdns_tcp_connections_refused_total", "TCP connections closed at once because of a cap.", ("server",))
DISPLACED = Counter(
    "kdns_tcp_connections_displaced_total", "TCP connections closed to make room for another.", ("server",)
)


def most_connections() -> int:
    """TCP connections that a listener takes unless told otherwise: fewer where the process may open few files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files < 0 else max(min(MAX_CONNECTIONS, files // FILES_SHARE), 1)


def nobody(host: str) -> bool:
    """The clients without limits, where none were named."""
    return False


class Connection(Protocol):
    """An open connection of a listener, whatever it speaks. `deadline` and `pending` are as net.shares has them."""

    deadline: float
    pending: int

    def resume(self) -> None:
        """Goes on with what has come."""

    def leave(self) -> None:
        """Gives its place to others."""

    def abort(self) -> None:
        """Closes at once."""


class TcpListener:
    """Accepts connections on one bound socket.

    `tls`: behind TLS (RFC 7858); `proxy`: behind a PROXY header. Both may be set and replaced at any time.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        label: str,
        *,
        first_read: float = FIRST_READ,
        idle: float = IDLE,
        max_connections: int = 0,
        max_queries: int = 0,
        tls: TlsGate | None = None,
    ) -> None:
        """`max_connections` 0: as many as `most_connections` says."""
        self.sock = sock
        self.tls = tls
        self.proxy: ProxyGate | None = None
        self.handler = handler
        self.defaults = (first_read, idle, max_connections or most_connections())
        self.first_read = first_read
        self.idle = idle
        self.max_queries = max_queries  # of one connection; 0 or less: no end
        self.max_connections = self.defaults[2]
        self.max_client = max(self.max_connections // CLIENT_SHARE, 1)  # of one client
        self.exempt: Callable[[str], bool] = (
            nobody  # clients whose connections have no limit of their own and never give way
        )
        self.local: Address = sock.getsockname()
        self.connections: set[Connection] = set()
        self.shares: Shares[Connection] = Shares()
        self.open = CONNECTIONS.slot(label)
        self.refused = REFUSED.slot(label)
        self.displaced = DISPLACED.slot(label)
        self.server: asyncio.Server | None = None
        self.queue: deque[Connection] = deque()  # those that have frames and wait for their turn
        self.spent = 0.0  # seconds of turns since the last turn of the loop
        self.coming_back = False
        self.busy = False  # whether anything came since it was last looked at

    def come_back(self) -> None:
        """Goes on with the queue in the loop's next turn."""
        if not self.coming_back:
            self.coming_back = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self.coming_back = False
        self.spent = 0.0
        queue = self.queue
        try:
            for _ in range(len(queue)):
                queue.popleft().resume()
                if self.spent >= LOOP_SECONDS:
                    return
        finally:
            if queue:
                self.come_back()

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.accept, sock=self.sock, backlog=1024)

    def accept(self) -> asyncio.Protocol:
        """The protocol of a connection that was accepted."""
        return self.after_proxy() if self.proxy is None else ProxyConnection(self.proxy, self.after_proxy)

    def after_proxy(self) -> asyncio.Protocol:
        """The protocol of a connection, once its PROXY header has come where there may be one."""
        return self.after_tls() if self.tls is None else TlsConnection(self.tls, self.after_tls)

    def after_tls(self) -> asyncio.Protocol:
        """The protocol of a connection, once it is encrypted where it is to be."""
        return _Connection(self)

    def limit(self, read: float, idle: float, most: int, of_client: int, exempt: Callable[[str], bool] | None) -> None:
        """Sets deadlines (seconds) and caps; what is 0 or None is as it would be without."""
        self.first_read = read or self.defaults[0]
        self.idle = idle or self.defaults[1]
        self.max_connections = most or self.defaults[2]
        self.max_client = min(of_client or max(self.max_connections // CLIENT_SHARE, 1), self.max_connections)
        self.exempt = exempt or nobody

    def admit(self, connection: Connection, host: str) -> bool:
        """Takes a connection in, at another's cost where there is no room; says whether it has."""
        shares = self.shares
        # Those without limits are in no share: they are only among all.
        exempt = self.exempt(host)
        others = len(self.connections) - shares.total
        client = "" if exempt else host
        if not shares.room(client, self.max_connections - others, self.max_client):
            other = shares.gives_way(client, self.max_client)
            if other is None:
                self.refused[0] += 1
                return False
            self.displaced[0] += 1
            other.leave()
            other.abort()
        self.connections.add(connection)
        if not exempt:
            shares.add(host, connection)
        self.open[0] += 1
        return True

    def discharge(self, connection: Connection, host: str) -> None:
        """A connection gives its place back, if it has one."""
        if connection in self.connections:
            self.connections.discard(connection)
            self.shares.remove(host, connection)
            self.open[0] -= 1

    def stop_accepting(self) -> None:
        """Accepts no more; what is open goes on."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def stop(self) -> None:
        """Closes everything."""
        self.stop_accepting()
        if self.proxy is not None:
            self.proxy.stop()
        if self.tls is not None:
            self.tls.stop()
        for connection in list(self.connections):
            connection.abort()
        self.sock.close()


class _Connection(asyncio.Protocol):
    __slots__ = (
        "buffer", "deadline", "eof", "full", "listener", "loop", "paused", "peer", "pending", "queries", "scheduled",
        "streams", "timer", "transport",
    )  # fmt: skip

    def __init__(self, listener: TcpListener) -> None:
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

    # Turns.

    def resume(self) -> None:
        """Answers what has come, as much as fits into a turn."""
        began = time.monotonic()
        self._batch()
        listener = self.listener
        listener.spent += time.monotonic() - began
        if listener.spent >= LITTLE:
            listener.come_back()

    def _batch(self) -> None:  # noqa: C901 - one turn, with each way it may end
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
