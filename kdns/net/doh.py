"""DNS over HTTPS (RFC 8484): what a request asks, and what its answer says, over each version of HTTP. In JSON too,
where that is wanted.
"""

import asyncio
import base64
import binascii
import re
import time
from functools import partial
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from kdns import faults
from kdns.dns.freshness import lifetime
from kdns.metrics import Counter
from kdns.net import Address, Handler, MessageStream
from kdns.net.http2 import Exchange
from kdns.net.http_date import date
from kdns.net.http_options import HttpOptions, JsonForm
from kdns.net.web_connection import MAX_MESSAGE, Fields
from kdns.timeslice import TimeSlice

PATH: Final = b"/dns-query"
MESSAGE: Final = b"application/dns-message"
JSON_PATH: Final = b"/resolve"
JSON: Final = b"application/json"
DNS_JSON: Final = b"application/dns-json"
AT_ONCE: Final = 4096  # octets of a reply that is made JSON in one go: some 250 records, 2.5 ms
_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]+={0,2}")

RESPONSES = Counter(
    "coredns_dns_https_responses_total",
    "Counter of DoH responses per server and http status code.",
    ("server", "status"),
)
OVER_HTTP3 = Counter(
    "coredns_dns_https3_responses_total",
    "Counter of DoH3 responses per server and http status code.",
    ("server", "status"),
)


class Listener(Protocol):
    """What is asked of a connection's listener."""

    handler: Handler
    label: str
    http: HttpOptions
    tasks: set[asyncio.Task[None]]


class Connection(Protocol):
    """A connection of HTTP, of whatever version."""

    @property
    def listener(self) -> Listener:
        """Its listener."""

    @property
    def local(self) -> Address:
        """Where the client went to."""

    def client(self, exchange: Exchange) -> Address:
        """Who asks."""

    def respond(self, exchange: Exchange, status: int, fields: Fields, body: bytes) -> None:
        """Answers a request."""


def serve(connection: Connection, exchange: Exchange) -> None:
    """Answers a request, now or when the answer is there."""
    listener = connection.listener
    if listener.http.json is not None and (kind := _json_kind(exchange)):
        _serve_json(connection, exchange, listener.http.json, kind)
        return
    status, query = understand(exchange)
    if status != 200:
        _refuse(connection, exchange, status)
        return
    _ask(connection, exchange, query, None, MESSAGE)


def _ask(connection: Connection, exchange: Exchange, query: bytes, form: JsonForm | None, kind: bytes) -> None:
    listener = connection.listener
    reply = listener.handler(query, connection.client(exchange), connection.local)
    if type(reply) is bytes:
        _answer(connection, exchange, form, kind, reply)
    elif reply is None or type(reply) is MessageStream:
        _answer(connection, exchange, form, kind, None)
    else:
        reply.add(partial(_answer, connection, exchange, form, kind))  # type: ignore[union-attr]


def _json_kind(exchange: Exchange) -> bytes:
    """The type of the answer where a request is one for JSON; empty where it is not."""
    path, _, parameters = exchange.target.partition(b"?")
    if path == JSON_PATH:
        return JSON
    if path != PATH or exchange.method != b"GET":
        return b""
    # As Cloudflare has it; a message in the parameters is what RFC 8484 speaks of.
    each = parameters.split(b"&")
    wanted = DNS_JSON in exchange.fields.get(b"accept", b"").lower() or b"ct=application/dns-json" in each
    return DNS_JSON if wanted and not any(word.startswith(b"dns=") for word in each) else b""


def _serve_json(connection: Connection, exchange: Exchange, form: JsonForm, kind: bytes) -> None:
    if exchange.method != b"GET":
        _refuse(connection, exchange, 405, allow=b"GET")
        return
    try:
        query = form.query(exchange.target.partition(b"?")[2])
    except ValueError as error:
        _respond(connection, exchange, 400, [(b"content-type", JSON)], form.refusal(str(error)))
        return
    _ask(connection, exchange, query, form, kind)


def understand(exchange: Exchange) -> tuple[int, bytes]:
    """The status of a request, and with 200 the query in it (section 4.1)."""
    path, _, parameters = exchange.target.partition(b"?")
    if path == b"*":
        return 405, b""  # OPTIONS: of the server as a whole (RFC 9110, section 9.3.7)
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


def _answer(
    connection: Connection,
    exchange: Exchange,
    form: JsonForm | None,
    kind: bytes,
    reply: bytes | MessageStream | None,
) -> None:
    if type(reply) is not bytes:
        _refuse(connection, exchange, 500)
        return
    # RFC 8484, section 5.1: fresh no longer than the records.
    fields = [(b"content-type", kind), (b"cache-control", b"max-age=%d" % lifetime(reply))]
    if form is None:
        _respond(connection, exchange, 200, fields, reply)
    elif len(reply) <= AT_ONCE:
        _respond(connection, exchange, 200, fields, "".join(form.pieces(reply)).encode())
    else:
        tasks = connection.listener.tasks
        task = asyncio.get_running_loop().create_task(_render(connection, exchange, form, fields, reply))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _render(connection: Connection, exchange: Exchange, form: JsonForm, fields: Fields, reply: bytes) -> None:
    """Answers with a large reply in JSON, made while others are served."""
    turn = TimeSlice()
    made = []
    try:
        for piece in form.pieces(reply):
            made.append(piece)
            await turn.pause()
        _respond(connection, exchange, 200, fields, "".join(made).encode())
    except asyncio.CancelledError:
        raise
    except Exception as error:
        faults.report("a reply in JSON", error)
        _refuse(connection, exchange, 500)


def _refuse(connection: Connection, exchange: Exchange, status: int, allow: bytes = b"GET, POST") -> None:
    _respond(connection, exchange, status, [(b"allow", allow)] if status == 405 else [], b"")


def _respond(connection: Connection, exchange: Exchange, status: int, fields: Fields, body: bytes) -> None:
    listener = connection.listener
    (OVER_HTTP3 if listener.label.startswith("https3:") else RESPONSES).slot(listener.label, str(status))[0] += 1
    fields.append((b"date", date(time.time())))
    if listener.http.alt_svc:
        fields.append((b"alt-svc", listener.http.alt_svc))  # RFC 7838, section 3
    connection.respond(exchange, status, fields, body)
