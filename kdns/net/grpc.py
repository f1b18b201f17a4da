"""DNS over gRPC (dns.grpc): a call's query, and its outcome in the trailers."""

from functools import partial
from typing import Final

from kdns.dns.grpc import PATH, TYPE, BadPacket, Compressed, packed, unpacked
from kdns.net import MessageStream
from kdns.net.http2 import Exchange
from kdns.net.http2_frames import field
from kdns.net.web_connection import WebConnection

# Codes of gRPC (its documentation, "Status codes and their use").
INVALID_ARGUMENT: Final = 3
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
UNAVAILABLE: Final = 14
_TRAILERS: Final = field(b"grpc-status", b"0")


def serve(connection: WebConnection, exchange: Exchange) -> None:
    """Answers a call, now or when the answer is there."""
    if exchange.target != PATH:
        _fail(connection, exchange, UNIMPLEMENTED, b"unknown method")
        return
    if exchange.method != b"POST" or not exchange.fields.get(b"content-type", b"").startswith(TYPE):
        connection.respond(exchange, 415, [], b"")
        return
    if exchange.large:
        _fail(connection, exchange, RESOURCE_EXHAUSTED, b"the message is too long")
        return
    try:
        query = unpacked(bytes(exchange.body))
    except BadPacket as error:
        # "Compression" in gRPC's documentation: an encoding that a server does not have is none that it implements.
        status = UNIMPLEMENTED if type(error) is Compressed else INVALID_ARGUMENT
        _fail(connection, exchange, status, str(error).encode())
        return
    # A header, and no response: those get no reply over any transport. Neither is an update taken (CVE-2026-86003).
    if len(query) < 12 or query[2] & 0x80:
        _fail(connection, exchange, INVALID_ARGUMENT, b"no query")
        return
    listener = connection.listener
    reply = listener.handler(query, connection.client(exchange), connection.local)
    if type(reply) is bytes:
        _answer(connection, exchange, reply)
    elif reply is None or type(reply) is MessageStream:
        _answer(connection, exchange, None)
    else:
        reply.add(partial(_answer, connection, exchange))  # type: ignore[union-attr]


def _answer(connection: WebConnection, exchange: Exchange, reply: bytes | MessageStream | None) -> None:
    if type(reply) is bytes:
        connection.respond(exchange, 200, [(b"content-type", TYPE)], packed(reply), _TRAILERS)
    else:
        _fail(connection, exchange, UNAVAILABLE, b"no reply")


def _fail(connection: WebConnection, exchange: Exchange, code: int, text: bytes) -> None:
    """An outcome without a message: the fields are the trailers."""
    fields = [
        (b"content-type", TYPE), (b"grpc-status", b"%d" % code), (b"grpc-message", text.replace(b" ", b"%20")),
        (b"grpc-accept-encoding", b"identity"),
    ]  # fmt: skip
    connection.respond(exchange, 200, fields, b"")
