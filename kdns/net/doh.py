"""DNS over HTTPS (RFC 8484): what a request asks, and what its answer says."""

import base64
import binascii
import re
from functools import partial
from typing import Final
from urllib.parse import unquote_to_bytes

from kdns.dns.freshness import lifetime
from kdns.metrics import Counter
from kdns.net import MessageStream
from kdns.net.http2 import Exchange
from kdns.net.web import MAX_MESSAGE, WebConnection

PATH: Final = b"/dns-query"
MESSAGE: Final = b"application/dns-message"
_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]+={0,2}")

RESPONSES = Counter(
    "coredns_dns_https_responses_total",
    "Counter of DoH responses per server and http status code.",
    ("server", "status"),
)


def serve(connection: WebConnection, exchange: Exchange) -> None:
    """Answers a request, now or when the answer is there."""
    status, query = understand(exchange)
    if status != 200:
        _refuse(connection, exchange, status)
        return
    listener = connection.listener
    reply = listener.handler(query, connection.client(exchange), listener.local)
    if type(reply) is bytes:
        _answer(connection, exchange, reply)
    elif reply is None or type(reply) is MessageStream:
        _answer(connection, exchange, None)
    else:
        reply.add(partial(_answer, connection, exchange))  # type: ignore[union-attr]


def understand(exchange: Exchange) -> tuple[int, bytes]:
    """The status of a request, and with 200 the query in it (section 4.1)."""
    path, _, parameters = exchange.target.partition(b"?")
    if path != PATH:
        return 404, b""
    if exchange.large:
        return 413, b""
    if exchange.method == b"POST":
        if exchange.fields.get(b"content-type", b"").partition(b";")[0].strip().lower() != MESSAGE:
            return 415, b""
        query = bytes(exchange.body)
    elif exchange.method == b"GET":
        query = _parameter(parameters)
    else:
        return 405, b""
    if len(query) > MAX_MESSAGE:
        return 413, b""
    # A header, and no response: those get no reply over any transport.
    return (200, query) if len(query) >= 12 and not query[2] & 0x80 else (400, b"")


def _parameter(parameters: bytes) -> bytes:
    """The message in the only `dns` parameter, in base64url without padding; empty where there is no such."""
    found = [value for name, _, value in (pair.partition(b"=") for pair in parameters.split(b"&")) if name == b"dns"]
    if len(found) != 1:
        return b""
    text = unquote_to_bytes(found[0]) if b"%" in found[0] else found[0]
    if _BASE64URL.fullmatch(text) is None:
        return b""
    try:
        return base64.urlsafe_b64decode(text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4))
    except binascii.Error:
        return b""


def _answer(connection: WebConnection, exchange: Exchange, reply: bytes | MessageStream | None) -> None:
    if type(reply) is not bytes:
        _refuse(connection, exchange, 500)
        return
    RESPONSES.slot(connection.listener.label, "200")[0] += 1
    # RFC 8484, section 5.1: fresh no longer than the records.
    fields = [(b"content-type", MESSAGE), (b"cache-control", b"max-age=%d" % lifetime(reply))]
    connection.respond(exchange, 200, fields, reply)


def _refuse(connection: WebConnection, exchange: Exchange, status: int) -> None:
    RESPONSES.slot(connection.listener.label, str(status))[0] += 1
    connection.respond(exchange, status, [(b"allow", b"GET, POST")] if status == 405 else [], b"")
