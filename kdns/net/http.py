"""The HTTP/1.1 listener of /health, /ready, /metrics and the like: aiohttp reads the requests, routes answer them.

Laws: a path has a route or is 404; a route answers every method, as CoreDNS's do, and HEAD without the body; no body is
read, and a client that goes on sending one is closed; what a route raises is a 500, a line and a count. Who gets in and
for how long says `http_connections`. aiohttp comes in with the first listener: it takes half a second to import.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kdns import faults, log
from kdns.address import host_port
from kdns.net.certificates import Identity
from kdns.net.http_connections import Connection, Connections, Limits
from kdns.net.sockets import bind

if TYPE_CHECKING:
    from aiohttp import web

LINE: Final = 8 << 10  # octets of a request line or a header field, at most: what web servers commonly take
FIELDS: Final = 100  # header fields, at most: as many as other servers take; a scraper sends six
# Octets of a body that aiohttp holds before it stops reading. Nobody wants them.
BODY: Final = 16 << 10
LINGER: Final = (
    1.0  # seconds in which a body may still end after the reply, so that the client sees the reply and no reset
)
CHUNK: Final = 64 << 10  # octets of a reply in one turn of the loop: to encrypt and send them takes 0.1 ms
# Seconds that replies on their way have when a listener closes.
STOP: Final = 1.0

_log = log.Logger()


class Response(NamedTuple):
    """The result of a route: a status, a body (in one piece or several), its type."""

    status: int = 200
    body: bytes | Sequence[bytes] = b"OK"
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Awaitable[Response]]
Guard = Callable[[str], Awaitable[bool]]
Hosts = Callable[[str], bool]

NOT_FOUND: Final = Response(404, b"404 page not found\n")
UNAUTHORIZED: Final = Response(401, b"Unauthorized\n")
# RFC 9110, section 15.5.20.
MISDIRECTED: Final = Response(421, b"this name is not served here: ask by address, or name it in the Corefile\n")
UNKNOWN_VERSION: Final = Response(505, b"HTTP/1.0 and HTTP/1.1 are spoken here\n")
_VERSIONS: Final = ((1, 0), (1, 1))
FAILED: Final = Response(500, b"internal error: see the log of the server\n")


class HttpServer:
    """Serves routes on one literal address. The last route added for a path answers; when it goes, the one before
    does.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: Identity[ssl.SSLContext] | None = None,
        headers: Mapping[str, str] | None = None,
        guard: Guard | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`headers`: what every reply has. `guard`: says of an Authorization field whether it will do."""
        self.host = host
        self.port = port
        self.tls = tls
        self.headers = dict(headers or {})
        self.guard = guard
        self.limits = limits or Limits()
        self.routes: dict[str, list[Route]] = {}
        self.hosts: dict[Route, Hosts] = {}
        self.connections: Connections | None = None
        self.server: web.Server | None = None

    def add(self, path: str, route: Route, hosts: Hosts | None = None) -> None:
        """Answers a path. `hosts` says of a Host field whether the route answers by it; None: by any."""
        self.routes.setdefault(path, []).append(route)
        if hosts is not None:
            self.hosts[route] = hosts

    def remove(self, path: str, route: Route) -> None:
        """Takes a route back."""
        routes = self.routes.get(path, [])
        if route in routes:
            routes.remove(route)
            self.hosts.pop(route, None)
        if not routes:
            self.routes.pop(path, None)

    async def start(self) -> None:
        """Binds and accepts. Raises BindError."""
        from aiohttp import web

        sock = bind(socket.SOCK_STREAM, self.host, self.port, reuse_port=True)
        self.port = sock.getsockname()[1]
        self.server = web.Server(
            self._answer, handler_cancellation=True, access_log=None, logger=_Faults(), auto_decompress=False,
            max_line_size=LINE, max_field_size=LINE, max_headers=FIELDS, read_bufsize=BODY, lingering_time=LINGER,
        )  # fmt: skip
        self.connections = Connections(sock, self.server, self.tls, self.limits)
        self.connections.start()
        if self.tls is not None:
            self.tls.start()

    async def stop(self) -> None:
        """Closes everything."""
        if self.connections is None or self.server is None:
            return
        if self.tls is not None:
            self.tls.stop()
        self.server.pre_shutdown()
        await self.connections.stop()
        await self.server.shutdown(STOP)
        self.connections = self.server = None

    async def _answer(self, request: "web.BaseRequest") -> "web.StreamResponse":
        from aiohttp import web

        transport = request.transport
        connection = transport.get_protocol() if transport is not None else None
        if not isinstance(connection, Connection):
            raise ConnectionResetError("the client has gone")
        connection.begin()
        status, body, content_type = await self._route(request)
        pieces = (body,) if isinstance(body, bytes) else body
        response = web.StreamResponse(
            status=status, headers={"Server": "kdns", "Content-Type": content_type, **self.headers}
        )
        response.content_length = sum(map(len, pieces))
        if status == 401:
            response.headers["WWW-Authenticate"] = "Basic"
        if status == 505 or "Upgrade" in request.headers or request.method == "CONNECT":
            response.force_close()  # what follows may be no HTTP/1.1
        with contextlib.suppress(ConnectionError):  # the client has gone; aiohttp finds that out by itself
            await response.prepare(request)
            for piece in pieces if request.method not in ("HEAD", "CONNECT") else ():
                for at in range(0, len(piece), CHUNK):
                    await response.write(piece[at : at + CHUNK])
                    await asyncio.sleep(0)  # a client that reads as fast as we write would never make `write` wait
            await response.write_eof()
        connection.end()
        return response

    async def _route(self, request: "web.BaseRequest") -> Response:
        if request.version not in _VERSIONS:
            return UNKNOWN_VERSION
        try:
            if self.guard is not None and not await self.guard(request.headers.get("Authorization", "")):
                return UNAUTHORIZED
            routes = self.routes.get(request.path)
            if not routes:
                return NOT_FOUND
            hosts = self.hosts.get(routes[-1])
            if hosts is not None and not hosts(request.headers.get("Host", "")):
                return MISDIRECTED
            return await routes[-1]()
        except Exception as error:
            faults.report(f"the HTTP listener {host_port(self.host, self.port)}", error)
            return FAILED


class _Faults:
    """Where aiohttp's own records go: what a client did wrong is a line for `debug`; the rest is a fault."""

    def debug(self, text: str, *args: Any, **_: Any) -> None:
        _log.debug(text % args)

    warning = debug

    def exception(self, text: str, *args: Any, exc_info: Any = None) -> None:
        from aiohttp.http_exceptions import HttpProcessingError

        if isinstance(exc_info, HttpProcessingError | ConnectionError):
            _log.debug(f"HTTP: {text % args}: {exc_info}")
        elif isinstance(exc_info, BaseException):
            faults.report("aiohttp", exc_info)
        else:
            _log.error(f"aiohttp: {text % args}")
