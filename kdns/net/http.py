"""A small HTTP/1.1 server for /health, /ready and /metrics: GET and HEAD, fixed paths, no bodies in.

Laws: a request is at most 8 KiB and 5 s; at most 100 connections; what is wrong gets a status and a close.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from kdns.net.sockets import bind

MAX_REQUEST: Final = 8 << 10
TIMEOUT: Final = 5.0
MAX_CONNECTIONS: Final = 100
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Response(NamedTuple):
    """What a route gives: a status, a body, its type."""

    status: int = 200
    body: bytes = b"OK"
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Awaitable[Response]]
Guard = Callable[[str], Awaitable[bool]]


class HttpServer:
    """Serves routes on one literal address. The last route added for a path answers; when it goes, the one before does."""

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, headers: str = "", guard: Guard | None = None
    ) -> None:
        """`headers`: finished lines that every reply has. `guard`: says of an Authorization field whether it will do."""
        self.host = host
        self.port = port
        self.tls = tls
        self.headers = headers
        self.guard = guard
        self.routes: dict[str, list[Route]] = {}
        self.server: asyncio.Server | None = None
        self.open: set[asyncio.Task[None]] = set()

    def add(self, path: str, route: Route) -> None:
        """Answers a path."""
        self.routes.setdefault(path, []).append(route)

    def remove(self, path: str, route: Route) -> None:
        """Takes a route back."""
        routes = self.routes.get(path, [])
        if route in routes:
            routes.remove(route)
        if not routes:
            self.routes.pop(path, None)

    async def start(self) -> None:
        """Binds and accepts. Raises BindError."""
        sock = bind(socket.SOCK_STREAM, self.host, self.port, reuse_port=True)
        self.port = sock.getsockname()[1]
        # A handshake that does not come to its end is given up like a request that does not.
        patience = TIMEOUT if self.tls is not None else None
        try:
            self.server = await asyncio.start_server(
                self._serve, sock=sock, limit=MAX_REQUEST, ssl=self.tls, ssl_handshake_timeout=patience
            )
        except BaseException:
            sock.close()
            raise

    async def stop(self) -> None:
        """Closes everything."""
        if self.server is not None:
            self.server.close()
        for task in list(self.open):
            task.cancel()
        if self.open:
            await asyncio.wait(self.open, timeout=1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self.open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self.open.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self.open.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT)
        except asyncio.LimitOverrunError:
            await self._respond(writer, Response(431, b"request too large\n"), "GET", False)
            return False
        head = raw.decode("latin-1").split("\r\n")
        words = head[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            await self._respond(writer, Response(400, b"bad request\n"), "GET", False)
            return False
        method, target, version = words
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        keep = fields.get("connection", "").lower() != "close" and version == "HTTP/1.1" and "content-length" not in fields
        if method not in ("GET", "HEAD"):
            response = Response(405, b"only GET and HEAD\n")
            keep = False
        elif self.guard is not None and not await self.guard(fields.get("authorization", "")):
            response = Response(401, b"Unauthorized\n")
        else:
            response = await self._route(_path(target))
        await self._respond(writer, response, method, keep)
        return keep

    async def _route(self, path: str | None) -> Response:
        if path is None:
            return Response(400, b"bad request\n")
        routes = self.routes.get(path)
        if not routes:
            return Response(404, b"404 page not found\n")
        try:
            return await routes[-1]()
        except Exception as error:
            return Response(500, f"{type(error).__name__}: {error}\n".encode())

    async def _respond(self, writer: asyncio.StreamWriter, response: Response, method: str, keep: bool) -> None:
        status, body, content_type = response
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n{self.headers}"
            + ("WWW-Authenticate: Basic\r\n" if status == 401 else "")
            + ("" if keep else "Connection: close\r\n")
            + "\r\n"
        )
        writer.write(head.encode() + (b"" if method == "HEAD" else body))
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(writer.drain(), TIMEOUT)


def _path(target: str) -> str | None:
    """The path of a request's target: in origin-form, or behind the authority in absolute-form (RFC 9112, section 3.2)."""
    if target[:7].lower() != "http://" and target[:8].lower() != "https://":
        return target.partition("?")[0]
    try:
        return urlsplit(target).path or "/"
    except ValueError:
        return None
