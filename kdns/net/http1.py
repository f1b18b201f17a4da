"""HTTP/1.1 for a server of small requests (RFC 9112): octets in, requests and octets out. It takes no socket, loop or
clock.

One request at a time: what is pipelined behind it waits. A head has at most MAX_HEAD octets; a body needs a
Content-Length. Whatever could be understood in two ways (two lengths, a transfer coding, a space before a colon) is an
error that ends the connection.
"""

import re
from collections.abc import Callable
from typing import Final, final

from kdns.net.http2 import Exchange

MAX_HEAD: Final = 16_384  # octets of a request's head, as with HTTP/2
MAX_SKIPPED: Final = 256 << 10  # octets of a body that is too long
REASONS: Final = {
    200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 411: b"Length Required",
    413: b"Content Too Large", 415: b"Unsupported Media Type", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 505: b"HTTP Version Not Supported",
}  # fmt: skip
_LINE: Final = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.([01])")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


class Http1Error(Exception):
    """A request that cannot be understood. `status` is what is said of it; then the connection ends."""

    def __init__(self, status: int) -> None:
        super().__init__(REASONS[status].decode())
        self.status = status


@final
class Http1:
    """The server's end of one connection. `ask` is called with each complete request; what to send gathers in `out`."""

    def __init__(self, ask: Callable[[Exchange], None], max_body: int) -> None:
        self.ask = ask
        self.max_body = max_body
        self.out: list[bytes] = []
        self.current: Exchange | None = None  # being answered
        self.head: Exchange | None = None  # whose body is not complete
        self.length = 0
        self.skip = 0  # octets of a body that nobody reads: who is still sending it would not see the answer
        self.leaving = False

    @property
    def pending(self) -> int:
        """Requests that have come or begun, and whose answers have not left."""
        return 0 if self.current is None and self.head is None and not self.skip else 1

    def take(self, buffer: bytes, off: int) -> int:
        """Reads one request; gives where it ends, or -1 where it is not complete or must wait. Raises Http1Error."""
        if self.skip and off < len(buffer):
            skipped = min(self.skip, len(buffer) - off)
            self.skip -= skipped
            return off + skipped
        if self.current is not None or (self.leaving and self.head is None):
            return -1
        if self.head is None:
            end = buffer.find(b"\r\n\r\n", off, off + MAX_HEAD)
            if end < 0:
                if len(buffer) - off >= MAX_HEAD:
                    raise Http1Error(431)
                return -1
            self._head(buffer[off:end])
            return end + 4
        exchange = self.head
        if len(buffer) - off < self.length:
            return -1
        self.head = None
        exchange.body += buffer[off : off + self.length]
        self._complete(exchange)
        return off + self.length

    def respond(self, exchange: Exchange, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answers the request."""
        lines = [b"HTTP/1.1 %d %s\r\n" % (status, REASONS[status])]
        lines += [b"%s: %s\r\n" % pair for pair in fields]
        lines.append(b"content-length: %d\r\n%s\r\n" % (len(body), b"connection: close\r\n" if self.leaving else b""))
        lines.append(body)
        self.out.append(b"".join(lines))
        self.current = None

    def leave(self) -> None:
        """The answer that is being made is the last one."""
        self.leaving = True

    def _head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        line = _LINE.fullmatch(first)
        if line is None:
            raise Http1Error(505 if b" HTTP/" in first and b" HTTP/1." not in first else 400)
        fields: dict[bytes, bytes] = {}
        for each in lines:
            found = _FIELD.fullmatch(each)
            if found is None:
                raise Http1Error(400)
            name, value = found[1].lower(), found[2]
            if name in fields:
                if name in (b"content-length", b"host", b"content-type"):
                    raise Http1Error(400)
                value = fields[name] + b", " + value
            fields[name] = value
        length = fields.get(b"content-length", b"0")
        if b"transfer-encoding" in fields:
            raise Http1Error(411)
        if not length.isdigit() or len(length) > 10:
            raise Http1Error(400)
        # RFC 9112, section 9.3: 1.0 closes behind each answer; 1.1 when it is told.
        if line[3] == b"0" or b"close" in fields.get(b"connection", b"").lower():
            self.leaving = True
        exchange = Exchange(0, line[1], line[2], fields)
        self.length = int(length)
        if self.length > self.max_body:
            exchange.large = True
            self.leaving = True
            self.skip = min(self.length, MAX_SKIPPED)
            self._complete(exchange)
        elif self.length:
            self.head = exchange
        else:
            self._complete(exchange)

    def _complete(self, exchange: Exchange) -> None:
        exchange.ended = True
        self.current = exchange
        self.ask(exchange)
