"""HTTP/1.1 for a server of small requests (RFC 9112): octets in, requests and octets out. It takes no socket, loop or
clock.

One request at a time: what is pipelined behind it waits. A head has at most MAX_HEAD octets and MAX_FIELDS fields; a
body has a Content-Length or is chunked. Whatever could be understood in two ways (two lengths, a length and a transfer
coding, a space before a colon) is an error that ends the connection.
"""

import re
from collections.abc import Callable
from typing import Final, final

from kdns.net.http2 import Exchange

MAX_HEAD: Final = 16_384  # octets of a request's head: others take 8 to 16 KiB
# Fields of a head, as many as other servers take: a browser sends some 20, and to read 3,000 takes 7 ms.
MAX_FIELDS: Final = 100
MAX_SKIPPED: Final = 256 << 10  # octets of a body that is too long
REASONS: Final = {
    200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 413: b"Content Too Large",
    415: b"Unsupported Media Type", 417: b"Expectation Failed", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 501: b"Not Implemented", 505: b"HTTP Version Not Supported",
}  # fmt: skip
MAX_SIZE_LINE: Final = (
    256  # octets of the line before a chunk: a number of eight digits and extensions that nobody uses
)
# There is one way to read each of these, and what was read is not given back (`++`): a pattern that can be read in many
# ways is tried in all of them.
_LINE: Final = re.compile(rb"([A-Z]{1,20}) ([!-~]++) HTTP/1\.([01])")
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://[^/?#]++(/?[^#]*+)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\r\n\0]*+)")


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
        self.length = 0  # octets of the body, or of the chunk, that are still to come; -1: the line before a chunk is
        self.chunked = False
        self.trailers = 0  # octets there may still be behind the last chunk; 0: that has not come
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
            # Section 2.2: an empty line before it, which some send behind a body, is passed over.
            self._head(buffer[off:end].removeprefix(b"\r\n"))
            return end + 4
        if self.chunked:
            return self._chunk(self.head, buffer, off)
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

    def _chunk(self, exchange: Exchange, buffer: bytes, off: int) -> int:
        """Reads the line before a chunk, a chunk, or a line behind the last one (section 7.1); as `take`."""
        if self.length >= 0 and not self.trailers:
            end = off + self.length
            if len(buffer) < end + 2:
                return -1
            if not buffer.startswith(b"\r\n", end):
                raise Http1Error(400)
            exchange.body += buffer[off:end]
            self.length = -1
            return end + 2
        most = self.trailers or MAX_SIZE_LINE
        end = buffer.find(b"\r\n", off, off + most)
        if end < 0:
            if len(buffer) - off >= most:
                raise Http1Error(431 if self.trailers else 400)
            return -1
        line = buffer[off:end]
        if self.trailers:
            self.trailers = max(self.trailers - len(line) - 2, 1)
            if not line:
                self.head = None
                self._complete(exchange)
            return end + 2
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise Http1Error(400)
        self.length = int(found[1], 16)
        if not self.length:
            self.trailers = MAX_HEAD
        elif len(exchange.body) + self.length > self.max_body:
            self.head = None
            self._too_large(exchange, MAX_SKIPPED)
        return end + 2

    def _too_large(self, exchange: Exchange, left: int) -> None:
        """Answers a request whose body nobody reads; so many octets of it may still come."""
        exchange.large = True
        self.leaving = True
        self.skip = min(left, MAX_SKIPPED)
        self._complete(exchange)

    def _head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        line = _LINE.fullmatch(first)
        if line is None:
            raise Http1Error(505 if b" HTTP/" in first and b" HTTP/1." not in first else 400)
        if len(lines) > MAX_FIELDS:
            raise Http1Error(431)
        fields: dict[bytes, bytes] = {}
        for each in lines:
            found = _FIELD.fullmatch(each)
            if found is None:
                raise Http1Error(400)
            name, value = found[1].lower(), found[2].rstrip(b" \t")
            if name in fields:
                if name in (b"content-length", b"host", b"content-type"):
                    raise Http1Error(400)
                value = fields[name] + b", " + value
            fields[name] = value
        new = line[3] == b"1"
        length = fields.get(b"content-length", b"0")
        coding = fields.get(b"transfer-encoding")
        # Section 3.2: 1.1 names the host. Section 6.1: a length beside a coding is how requests are smuggled past a
        # proxy, and 1.0 has no codings.
        if (new and b"host" not in fields) or (coding is not None and (b"content-length" in fields or not new)):
            raise Http1Error(400)
        if coding is not None and coding.lower() != b"chunked":
            raise Http1Error(501)
        if not length.isdigit() or len(length) > 10:
            raise Http1Error(400)
        # Section 9.3: 1.0 closes behind each answer; 1.1 when it is told.
        if not new or b"close" in [each.strip() for each in fields.get(b"connection", b"").lower().split(b",")]:
            self.leaving = True
        expected = fields.get(b"expect", b"").lower() if new else b""
        if expected and expected != b"100-continue":
            raise Http1Error(417)
        exchange = Exchange(0, line[1], _origin_form(line[2]), fields)
        self.chunked = coding is not None
        self.length = -1 if self.chunked else int(length)
        self.trailers = 0
        if self.length > self.max_body:
            # Who waits for a word before sending the body does not send it after this one.
            self._too_large(exchange, 0 if expected else self.length)
        elif self.length:
            self.head = exchange
            if expected:
                self.out.append(b"HTTP/1.1 100 Continue\r\n\r\n")  # RFC 9110, section 10.1.1
        else:
            self._complete(exchange)

    def _complete(self, exchange: Exchange) -> None:
        exchange.ended = True
        self.current = exchange
        self.ask(exchange)


def _origin_form(target: bytes) -> bytes:
    """A request's target as path and query. RFC 9112, section 3.2.2: a server accepts a whole URL too. Its host is not
    looked at, as the Host field is not.
    """
    if target.startswith(b"/"):
        return target
    whole = _ABSOLUTE.fullmatch(target)
    if whole is None:
        return target
    return whole[1] if whole[1].startswith(b"/") else b"/" + whole[1]
