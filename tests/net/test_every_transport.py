"""What holds on one transport holds on each: checks of the header, access rules, TSIG, and opcodes."""

import asyncio
import gc
import socket
import ssl
import struct
import time
from pathlib import Path

import dns.message
import dns.opcode
import dns.rcode
import dns.tsigkeyring
import pytest
from aioquic.quic.connection import QuicConnection

from kdns.dns import grpc
from kdns.testing import Server, answer, eventually
from tests.fixtures import Serve, Start
from tests.net.test_doh import MESSAGE, call, client, http1
from tests.net.test_doh3 import Browser, browser
from tests.quicpeers import client as quic_client
from tests.quicpeers import framed, until
from tests.securepeers import NAME, Site

SECRET = "c2VjcmV0IG9mIG9jdGV0cw=="
SCHEMES = {
    "udp": "dns", "tcp": "dns", "tls": "tls", "http1": "https", "http2": "https", "http3": "https3", "grpc": "grpc",
    "quic": "quic",
}  # fmt: skip
QUESTION = b"\1a\7example\3org\0\0\1\0\1"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(params=SCHEMES)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serving(serve: Serve, site: Site, transport: str, *lines: str) -> Server:
    """A server that answers over this transport alone."""
    scheme = SCHEMES[transport]
    return serve(site.block(*lines, scheme=scheme, tls="minimal" if scheme == "dns" else ""))


def ask(transport: str, server: Server, site: Site, wire: bytes) -> bytes:
    """The reply to a message; an empty one where the transport says that it is none."""
    if transport == "udp":
        return server.raw(wire) or b""
    if transport in ("tcp", "tls"):
        with server.connect() as sock:
            if transport == "tls":
                with site.client().wrap_socket(sock, server_hostname=NAME) as tls:
                    return over_stream(tls, wire)
            return over_stream(sock, wire)
    if transport == "http1":
        connection = http1(server, site)
        connection.request("POST", "/dns-query", wire, {"content-type": MESSAGE})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return body if response.status == 200 else b""
    if transport == "http2":
        with client(server, site) as http:
            status, _, body, _ = http.post(wire)
            return body if status == "200" else b""
    if transport == "grpc":
        with client(server, site) as http:
            return call(http, grpc.packed(wire))[1]
    return asyncio.run(over_http3(server, site, wire) if transport == "http3" else over_quic(server, site, wire))


def over_stream(sock: socket.socket | ssl.SSLSocket, wire: bytes) -> bytes:
    sock.sendall(framed(wire))
    with sock.makefile("rb") as stream:
        return stream.read(int.from_bytes(stream.read(2), "big"))


async def over_http3(server: Server, site: Site, wire: bytes) -> bytes:
    async with browser(server, site) as peer:
        assert isinstance(peer, Browser)
        stream = peer.ask(b"POST", b"/dns-query", wire)
        await until(lambda: stream in peer.ended or stream in peer.reset)
        return peer.bodies.get(stream, b"") if peer.fields.get(stream, {}).get(b":status") == b"200" else b""


async def over_quic(server: Server, site: Site, wire: bytes) -> bytes:
    async with quic_client(server.port, site.authority.path) as peer:
        stream = peer.send(framed(wire))
        await until(lambda: stream in peer.ended or stream in peer.reset or peer.closed is not None)
        return peer.got.get(stream, b"")[2:]


def rcode(reply: bytes) -> int | None:
    """The code of a reply; None for none."""
    return reply[3] & 15 if reply else None


def test_counts_of_a_header_were_believed_on_some_transports(serve: Serve, site: Site, transport: str) -> None:
    """Room was made for as many records as a header says, before one was read."""
    server = serving(serve, site, transport)
    for counts in ((2, 0, 0, 0), (65535,) * 4, (1, 65535, 0, 0), (1, 0, 65535, 0), (1, 0, 0, 65535), (0, 0, 0, 0)):
        wire = struct.pack("!6H", 0, 0x0100, *counts) + QUESTION
        assert rcode(ask(transport, server, site, wire)) in (1, None), counts
    assert rcode(ask(transport, server, site, struct.pack("!6H", 0, 0x0100, 1, 0, 0, 0) + QUESTION)) == 0


def test_a_message_of_64_kib_costs_little_on_each_transport(serve: Serve, site: Site, transport: str) -> None:
    """Pointers to pointers, and thousands of records that end in them."""
    if transport == "udp":
        pytest.skip("no datagram is as long")
    server = serving(serve, site, transport)
    pointers = b"".join(struct.pack("!H", 0xC000 | 12 + len(QUESTION) + 2 * i - 2) for i in range(1, 8000))
    records = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\0" * 3900
    wire = struct.pack("!6H", 0, 0x0100, 1, 1, 1, 2) + QUESTION + pointers + records
    began = time.process_time()
    assert rcode(ask(transport, server, site, wire[:65_535])) in (1, None)
    assert time.process_time() - began < 2.0  # with the client's own work; it takes some 10 ms


def test_where_a_client_went_to_was_every_address_on_all_transports_but_udp(
    serve: Serve, site: Site, transport: str
) -> None:
    scheme = SCHEMES[transport]
    lines = ("view v {\n expr server_ip() == '127.0.0.1' && server_port() == '{port}'\n }",)
    text = site.block(*lines, scheme=scheme, tls="minimal" if scheme == "dns" else "")
    server = serve(text.replace(" bind 127.0.0.1\n", ""))
    wire = struct.pack("!6H", 0, 0x0100, 1, 0, 0, 0) + QUESTION
    assert rcode(ask(transport, server, site, wire)) == dns.rcode.NOERROR


@pytest.mark.parametrize("opcode", [dns.opcode.UPDATE, dns.opcode.NOTIFY])
def test_an_update_was_sent_on_where_it_came_over_some_transports(
    serve: Serve, site: Site, upstream: Start, transport: str, opcode: dns.opcode.Opcode
) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serving(serve, site, transport, f"forward . {up.address}")
    message = dns.message.make_query("b.example.org.", "SOA", id=0)
    message.set_opcode(opcode)
    assert rcode(ask(transport, server, site, message.to_wire())) in (dns.rcode.NOTIMP, dns.rcode.REFUSED, None)
    assert not up.queries


def test_tsig_was_not_asked_for_on_some_transports(serve: Serve, site: Site, transport: str) -> None:
    """A bad signature was let through where the transport itself was encrypted."""
    server = serving(serve, site, transport, f"tsig {{\n secret key.example. {SECRET}\n require all\n }}")
    query = dns.message.make_query("a.example.org.", "A", id=0)
    assert rcode(ask(transport, server, site, query.to_wire())) == dns.rcode.REFUSED
    query.use_tsig(dns.tsigkeyring.from_text({"key.example.": "b3RoZXIgc2VjcmV0IG9mIG1pbmU="}))
    wire = query.to_wire()
    # The header's id is 0 here, as is the original id.
    assert rcode(ask(transport, server, site, wire)) == dns.rcode.NOTAUTH
    query = dns.message.make_query("a.example.org.", "A", id=0)
    query.use_tsig(dns.tsigkeyring.from_text({"key.example.": SECRET}))
    reply = ask(transport, server, site, query.to_wire())
    assert rcode(reply) == 0 and b"\xc0\0\2\1" in reply


def test_acl_judged_the_name_before_it_was_rewritten(serve: Serve, site: Site, transport: str) -> None:
    server = serving(
        serve, site, transport, "rewrite name b.example.org a.example.org",
        "acl a.example.org {\n block type A net 127.0.0.0/8\n }",
    )  # fmt: skip
    for name in ("a.example.org.", "b.example.org."):
        query = dns.message.make_query(name, "A", id=0)
        assert rcode(ask(transport, server, site, query.to_wire())) == dns.rcode.REFUSED


def test_a_connection_that_had_ended_stayed_for_ever(serve: Serve, site: Site, transport: str) -> None:
    """It was in a cycle. What is frozen while it lives is looked at by no collection (server.gc_policy), and all QUIC
    connections of a busy server are.
    """
    server = serving(serve, site, transport)
    query = dns.message.make_query("a.example.org.", "A", id=0).to_wire()
    assert rcode(ask(transport, server, site, query)) == 0
    listener = next(iter(server.server.listeners.values())).tcp[0]
    eventually(lambda: not listener.connections)
    gc.collect()
    gc.disable()
    try:
        assert rcode(ask(transport, server, site, query)) == 0
        eventually(lambda: not listener.connections)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(each).__name__ for each in gc.garbage if is_the_servers(each)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def is_the_servers(each: object) -> bool:
    if type(each) is QuicConnection:
        return not vars(each).get("_is_client")
    if type(each) is ssl.SSLObject:
        return each.server_side
    return type(each).__module__.startswith(("kdns.net", "kdns.server"))
