"""The TCP listener: DNS messages behind two octets of length (RFC 1035, section 4.2.2), pipelined (RFC 7766).

Laws: answers leave as they become ready, not in the order of their questions (RFC 7766, section 6.2.1.1); a
connection's batch is at most 64 frames or 64 KiB, with one write, and all connections together take a millisecond
before others run, decrypting included; while frames or unsent octets wait, nothing more is read, so a client that does
not read stops being read; every connection has a deadline that only whole queries move, so trickling octets buys no
time; connections are capped, in all and for one client, and where there is no room, one of who holds most gives way
(net.shares).
"""

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from kdns.metrics import Counter, Gauge
from kdns.net import Address, Handler, StreamProtocol
from kdns.net.certificates import Identities
from kdns.net.http_options import HttpOptions
from kdns.net.proxy import ProxyConnection, ProxyGate
from kdns.net.shares import Shares
from kdns.net.tcp_connection import TcpConnection
from kdns.net.tls import TlsConnection, TlsGate
from kdns.net.turns import Turns

FIRST_READ: Final = 3.0  # seconds for the first query (CoreDNS's `timeouts read`)
# Seconds between queries. CoreDNS closes after 10, and its clients keep connections for 10: a second more, so that
# a client is never the second to close.
IDLE: Final = 11.0
# A cluster of 5,000 nodes whose NodeLocal caches hold two connections each to one replica fits; a connection
# costs some 3 KB here.
MAX_CONNECTIONS: Final = 16_384
# Of all files the process may open, what connections to us may take: upstreams, the API server and probes need files
# too, and a wildcard address has two listeners.
FILES_SHARE: Final = 4
# One address may be a whole cluster behind SNAT: half of all.
CLIENT_SHARE: Final = 2

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

    def unsent(self) -> bool:
        """True if what was written has not left, or, where the client acknowledges it, not come."""

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
    ) -> None:
        """`max_connections` 0: as many as `most_connections` says."""
        self.sock = sock
        self.label = label
        self.identities: Identities[Any] | None = None
        self.tls: TlsGate | None = None
        self.proxy: ProxyGate | None = None
        self.http = HttpOptions()
        self.tasks: set[asyncio.Task[None]] = set()  # where HTTP is spoken: answers that are being made
        self.max_streams = 0  # requests at a time of a connection that has several; 0: what its protocol's listener has
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
        self.turns = Turns()  # of those that have octets to decrypt, or frames
        self.busy = False  # whether anything came since it was last looked at

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            self.accept,  # type: ignore[arg-type]
            sock=self.sock,
            backlog=1024,
        )

    def accept(self) -> StreamProtocol:
        """The protocol of a connection that was accepted."""
        return self.after_proxy() if self.proxy is None else ProxyConnection(self.proxy, self.after_proxy)

    def after_proxy(self) -> StreamProtocol:
        """The protocol of a connection, once its PROXY header has come where there may be one."""
        return self.after_tls() if self.tls is None else TlsConnection(self.tls, self.after_tls)

    def after_tls(self) -> StreamProtocol:
        """The protocol of a connection, once it is encrypted where it is to be."""
        return TcpConnection(self)

    def limit(self, read: float, idle: float, most: int, of_client: int, exempt: Callable[[str], bool] | None) -> None:
        """Sets deadlines (seconds) and caps; what is 0 or None is as it would be without."""
        self.first_read = read or self.defaults[0]
        self.idle = idle or self.defaults[1]
        self.max_connections = most or self.defaults[2]
        self.max_client = min(of_client or max(self.max_connections // CLIENT_SHARE, 1), self.max_connections)
        self.exempt = exempt or nobody

    def identify(self, identities: Identities[Any] | None, label: str) -> None:
        """Shows these certificates from now on; None: connections are not encrypted."""
        before = self.identities
        if before is not None and identities is not None and before.files == identities.files:
            return  # others for the same files would forget the sessions that clients may resume
        if before is not None:
            before.stop()
        if identities is not None:
            identities.start()
        self.identities = identities
        self.show(label)

    def show(self, label: str) -> None:
        """Handshakes that begin from now on show the present certificates."""
        if self.identities is None:
            self.tls = None
        elif self.tls is None:
            self.tls = TlsGate(self.identities, label, self.turns)
        else:
            self.tls.identities = self.identities

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

    def unsent(self) -> bool:
        """True if a connection has sent less than was written."""
        return any(each.unsent() for each in self.connections)

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
        if self.identities is not None:
            self.identities.stop()
        if self.tls is not None:
            self.tls.stop()
        for connection in list(self.connections):
            connection.abort()
        self.sock.close()
