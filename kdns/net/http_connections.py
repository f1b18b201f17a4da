"""Connections to an HTTP listener: how many, for how long, and which is closed for another: a probe always gets in.

A liveness probe that is not answered ends the Pod, so no client may take the listener from the others, nor from itself.

Laws: a new connection is always accepted. Where its address, or all addresses together, hold as many as they may,
another one is closed for it: of the address that holds the most, the one that has been idle longest; if none is idle,
the one that has been sending its request longest; then the one that has been answered longest. A request's head is
complete within `wait` seconds of the accept or of the reply before, whatever trickles in meanwhile, and a TLS handshake
too; its reply has left within `answer` seconds. More octets than `octets` between two replies end the connection. A
turn of the loop accepts for a millisecond at most.

Theory of operation: sockets are accepted here and not by the loop's own server, which accepts as many as wait in one
turn and counts no TLS handshakes. A client that has sent nothing costs a socket and a reader; with the first octet it
gets a transport, and a protocol of the HTTP library behind a `Connection`, which sees all that comes in and tells who
is idle. The server says with `begin` and `end` when a request is being answered. A sweep ten times in `wait` seconds
closes what is over its time.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from kdns import faults, log
from kdns.address import host_port
from kdns.metrics import Counter, Gauge
from kdns.net.certificates import Identity

# Connections that wait to be accepted in the kernel. A turn accepts some five, in under a millisecond: a full queue is
# gone in a fifth of a second, well within the second that a probe waits.
BACKLOG: Final = 1024
SLICE: Final = 0.001  # seconds of accepting in one turn of the loop
# Connections of one turn, at most, that get a transport at once because octets wait already (0.1 ms each). Until a
# request is read, some three turns, fewer of these must come than one address may have: else a flood pushes a probe out
# before it is heard.
OPENED: Final = 4
SWEEPS: Final = 10  # looks at who is over the time, in `wait` seconds
PAUSE: Final = 0.1  # seconds without accepting, after the system had no socket to give

CONNECTIONS = Gauge("kdns_http_connections", "Open connections to HTTP listeners.", ("address",))
CLOSED = Counter(
    "kdns_http_connections_closed_total",
    "Connections to HTTP listeners that were closed because of a limit: connections (of one address or in all), time, "
    "size.",
    ("address", "limit"),
)
_log = log.Logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one listener. Times are seconds, counts are connections."""

    # Until a head is complete, and while idle: CoreDNS's 5 seconds for both.
    wait: float = 5.0
    # From a complete head to the last octet of the reply: Prometheus gives a scrape 10 seconds.
    answer: float = 10.0
    # A kubelet, a few scrapers and people have ten or so. With `octets` each they hold 16 MiB at worst.
    connections: int = 256
    # An address may be a node whose kubelet, scraper and host network Pods all come from it: some ten as well.
    per_address: int = 32
    # Head and body, between two replies: no body is asked for, and a head has a few hundred octets. Proxies add some.
    octets: int = 64 << 10


# What a connection does; a higher one is closed later.
_IDLE, _SENDS, _ANSWERED = range(3)


@final
class Connection(asyncio.Protocol):
    """One connection, between the loop and the protocol of the HTTP library."""

    __slots__ = (
        "_deadline",
        "_host",
        "_inner",
        "_opening",
        "_owner",
        "_received",
        "_sock",
        "_state",
        "_transport",
        "since",
    )

    def __init__(self, owner: "Connections", sock: socket.socket, host: str) -> None:
        self._owner = owner
        self._sock: socket.socket | None = sock  # until there is a transport
        self._host = host
        self._state = _IDLE
        self._received = 0
        self._opening: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._inner: asyncio.Protocol | None = None
        self.since = owner.loop.time()
        self._deadline = self.since + owner.limits.wait

    @property
    def rank(self) -> tuple[int, float]:
        """The least of all is the first to give way."""
        return self._state, self.since

    # Before there is a transport.

    def listen(self) -> bool:
        """Begins, where octets wait already, or waits for some. Says whether it began."""
        sock = self._sock
        assert sock is not None
        try:
            # A client that closes without a word, as a TCP check does, is not worth a transport.
            if sock.recv(1, socket.MSG_PEEK):
                self._open()
                return True
            self.close()
        except BlockingIOError:
            self._owner.loop.add_reader(sock, self._readable)
        except OSError:
            self.close()
        return False

    def _readable(self) -> None:
        assert self._sock is not None
        self._owner.loop.remove_reader(self._sock)
        self.listen()

    def _open(self) -> None:
        self._state = _SENDS
        self._opening = self._owner.loop.create_task(self._connect(), name="http connection")
        self._owner.opening.add(self._opening)

    async def _connect(self) -> None:
        sock, owner = self._sock, self._owner
        assert sock is not None
        tls = owner.tls.current if owner.tls is not None else None
        wait = owner.limits.wait if tls is not None else None
        try:
            await owner.loop.connect_accepted_socket(
                lambda: self, sock, ssl=tls, ssl_handshake_timeout=wait, ssl_shutdown_timeout=wait
            )
        except (OSError, TimeoutError):
            pass  # the client went, or its handshake came to no end
        except Exception as error:
            faults.report("an HTTP connection", error)
        finally:
            if self._opening is not None:
                owner.opening.discard(self._opening)
                self._opening = None
            if self._transport is None:
                self._sock = None
                sock.close()
                owner.remove(self)

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._sock = None
        if self not in self._owner.open:  # it had to give way meanwhile
            self.close()
            return
        self._inner = self._owner.make()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._owner.remove(self)
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            return
        if self._state == _IDLE:
            self._state = _SENDS
        self._received += len(data)
        if self._received > self._owner.limits.octets:
            self._owner.drop(self, "size")
            return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # Called by the server.

    def begin(self) -> None:
        """A request's head is complete."""
        self._become(_ANSWERED, self._owner.limits.answer)

    def end(self) -> None:
        """Its reply has left."""
        self._received = 0
        self._become(_IDLE, self._owner.limits.wait)

    def _become(self, state: int, seconds: float) -> None:
        self._state = state
        self.since = self._owner.loop.time()
        self._deadline = self.since + seconds

    def late(self, now: float) -> bool:
        """True if it is over its time."""
        return now >= self._deadline

    @property
    def host(self) -> str:
        """The client's address."""
        return self._host

    def close(self) -> None:
        """Closes at once, whatever it does."""
        self._owner.remove(self)
        if self._transport is not None:
            self._transport.abort()
        elif self._opening is not None:
            # A task cancelled in its first turn would leave a TLS transport that nobody closes. This ends the
            # handshake.
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
        elif self._sock is not None:
            self._owner.loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None


@final
class Connections:
    """The connections to one bound socket."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        tls: Identity[ssl.SSLContext] | None,
        limits: Limits,
    ) -> None:
        """`make` gives a protocol of the HTTP library for each connection."""
        self.sock = sock
        self.make = make
        self.tls = tls
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.open: dict[Connection, None] = {}
        self.by_address: dict[str, dict[Connection, None]] = {}
        self.opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._address = host_port(*sock.getsockname()[:2])
        self._count = CONNECTIONS.slot(self._address)

    def start(self) -> None:
        """Begins to accept."""
        self.sock.listen(BACKLOG)
        self.loop.add_reader(self.sock, self._accept)

    async def stop(self) -> None:
        """Closes the listener and all connections."""
        self.loop.remove_reader(self.sock)
        self.sock.close()
        for timer in (self._timer, self._resume):
            if timer is not None:
                timer.cancel()
        self._timer = self._resume = None
        for connection in list(self.open):
            connection.close()
        if self.opening:
            await asyncio.wait(self.opening, timeout=1)
        CONNECTIONS.remove(self._address)

    def _accept(self) -> None:
        end = time.monotonic() + SLICE
        opened = 0
        while opened < OPENED and time.monotonic() < end:
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # gone before it was accepted
            except OSError as error:
                # No descriptor, no memory: the socket stays readable, and would be asked without end.
                _log.warning(f"HTTP listener {self._address}: cannot accept: {error.strerror or error}")
                self.loop.remove_reader(self.sock)
                self._resume = self.loop.call_later(PAUSE, self.loop.add_reader, self.sock, self._accept)
                return
            sock.setblocking(False)
            opened += self._admit(sock, address[0])

    def _admit(self, sock: socket.socket, host: str) -> bool:
        """Takes a connection in; another one gives way where there are too many. Says whether it got a transport."""
        own = self.by_address.get(host)
        if own is not None and len(own) >= self.limits.per_address:
            self.drop(min(own, key=_rank), "connections")
        elif len(self.open) >= self.limits.connections:
            most = max(self.by_address.values(), key=lambda each: len(each))
            self.drop(min(most, key=_rank), "connections")
        connection = Connection(self, sock, host)
        self.open[connection] = None
        self.by_address.setdefault(host, {})[connection] = None
        self._count[0] += 1
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.wait / SWEEPS, self._sweep)
        return connection.listen()

    def _sweep(self) -> None:
        self._timer = None
        now = self.loop.time()
        for connection in [each for each in self.open if each.late(now)]:
            self.drop(connection, "time")
        if self.open:
            self._timer = self.loop.call_later(self.limits.wait / SWEEPS, self._sweep)

    def drop(self, connection: Connection, limit: str) -> None:
        """Closes a connection because of a limit."""
        CLOSED.slot(self._address, limit)[0] += 1
        connection.close()

    def remove(self, connection: Connection) -> None:
        """A connection is none any more."""
        if connection not in self.open:
            return
        del self.open[connection]
        self._count[0] -= 1
        own = self.by_address[connection.host]
        del own[connection]
        if not own:
            del self.by_address[connection.host]


def _rank(connection: Connection) -> tuple[int, float]:
    return connection.rank
