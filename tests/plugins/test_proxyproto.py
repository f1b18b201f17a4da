"""proxyproto: who asks is whom a proxy in front names, if it is to be believed."""

import ipaddress
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.net import proxy
from kdns.net.web_connection import forwarded
from kdns.testing import Server, block, data, eventually
from tests.fixtures import Serve
from tests.net.test_dot import connect, frame
from tests.securepeers import Site


def query() -> bytes:
    return dns.message.make_query("who.example.", "A", id=7).to_wire()


def framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


def v2(source: str, port: int = 4000, *, udp: bool = False, command: int = 1, tlvs: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    target = "2001:db8::53" if ":" in source else "192.0.2.53"
    body = socket.inet_pton(family, source) + socket.inet_pton(family, target) + struct.pack("!HH", port, 53) + tlvs
    kind = (0x20 if ":" in source else 0x10) | (2 if udp else 1)
    return proxy.V2 + bytes((0x20 | command, kind)) + struct.pack("!H", len(body)) + body


def asked_by(reply: bytes) -> str:
    """The address that `whoami` saw."""
    return next(
        str(record) for rrset in dns.message.from_wire(reply).additional for record in rrset if rrset.rdtype in (1, 28)
    )


def over_tcp(server: Server, head: bytes, whole: bool = True) -> str:
    with server.connect(5) as sock:
        if whole:
            sock.sendall(head + framed(query()))
        else:
            for octet in head:
                sock.sendall(bytes((octet,)))
            sock.sendall(framed(query()))
        try:
            return asked_by(frame(sock))
        except (ConnectionError, AssertionError, dns.message.ShortHeader):
            return "closed"


def over_udp(server: Server, head: bytes, sock: socket.socket | None = None) -> str:
    if sock is None:
        reply = server.raw(head + query(), 0.5)
        return asked_by(reply) if reply is not None else "dropped"
    sock.sendto(head + query(), ("127.0.0.1", server.port))
    return asked_by(sock.recv(4096))


def test_the_client_is_whom_the_header_names(serve: Serve) -> None:
    server = serve(block("proxyproto", "whoami"))
    for source in ("198.51.100.7", "2001:db8::7"):
        v1 = (
            f"PROXY TCP{6 if ':' in source else 4} {source} {'2001:db8::53' if ':' in source else '192.0.2.53'} 4000 "
            f"53\r\n"
        ).encode()
        for head in (v1, v2(source), v2(source, tlvs=b"\4\0\3abc")):
            assert over_tcp(server, head) == over_tcp(server, head, whole=False) == source
        assert over_udp(server, v2(source, udp=True)) == source
    # Without a header, with one that names nobody, and with one of a proxy's own health check the peer asks.
    for head in (b"", b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", v2("198.51.100.7", command=0)):
        assert over_tcp(server, head) == "127.0.0.1"
    for head in (b"", v2("198.51.100.7", udp=True, command=0)):
        assert over_udp(server, head) == "127.0.0.1"


@pytest.mark.parametrize("more", [[], ["+tcp"]])
def test_kdigs_header_is_believed(serve: Serve, more: list[str]) -> None:
    if shutil.which("kdig") is None:
        pytest.skip("kdig is not installed")
    server = serve(block("proxyproto", "whoami"))
    words = [
        "kdig",
        "@127.0.0.1",
        "-p",
        str(server.port),
        "+proxy=198.51.100.7#4000-192.0.2.53#53",
        *more,
        "x.example",
        "A",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90)
    assert "198.51.100.7" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("head", [
    b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", b"PROXY TCP4 ::1 ::2 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
    b"PROXY " + b"x" * 200, b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", v2("198.51.100.7", udp=True),
    v2("198.51.100.7", tlvs=bytes(2000)),
    proxy.V2 + b"\x31\x11\0\x0c" + bytes(12), proxy.V2 + b"\x21\x11\0\4" + bytes(4),
    proxy.V2 + b"\x21\x31\0\x0c" + bytes(12),
])  # fmt: skip
def test_what_is_malformed_ends_its_connection_and_is_counted(serve: Serve, head: bytes) -> None:
    server = serve(block("proxyproto", "whoami"))
    assert over_tcp(server, head) == "closed"
    assert REGISTRY["kdns_proxyproto_headers_total"].slots[(f"dns://127.0.0.1:{server.port}", "malformed")][0] == 1
    assert over_tcp(server, b"") == "127.0.0.1"


@pytest.mark.parametrize("head", [v2("198.51.100.7"), v2("198.51.100.7", udp=True)[:20], proxy.V2])
def test_a_datagram_with_a_malformed_header_is_dropped(serve: Serve, head: bytes) -> None:
    server = serve(block("proxyproto", "whoami"))
    reply = server.raw(head if len(head) < 28 else head + query(), 0.3)
    assert reply is None
    assert over_udp(server, b"") == "127.0.0.1"


@pytest.mark.parametrize(("policy", "tcp", "udp"), [
    ("use", "198.51.100.7", "198.51.100.7"), ("", "127.0.0.1", "127.0.0.1"), ("IGNORE", "127.0.0.1", "127.0.0.1"),
    ("reject", "closed", "dropped"),
])  # fmt: skip
def test_others_headers_are_treated_by_the_default(serve: Serve, policy: str, tcp: str, udp: str) -> None:
    lines = (
        ["proxyproto {", "  allow 10.0.0.0/8 fd00::/8"] + ([f"  default {policy}"] if policy else []) + ["}", "whoami"]
    )
    server = serve(block(*lines))
    assert over_tcp(server, v2("198.51.100.7")) == tcp
    assert over_udp(server, v2("198.51.100.7", udp=True)) == udp
    assert over_tcp(server, b"") == over_udp(server, b"") == "127.0.0.1"
    server = serve(block("proxyproto {", "  allow 127.0.0.0/8", "  default reject", "}", "whoami"))
    assert over_tcp(server, v2("198.51.100.7")) == over_udp(server, v2("198.51.100.7", udp=True)) == "198.51.100.7"


def test_skip_leaves_the_octets_in_the_stream(serve: Serve) -> None:
    server = serve(block("proxyproto {", "  default skip", "}", "whoami"))
    assert over_tcp(server, b"") == over_udp(server, b"") == "127.0.0.1"


def test_a_client_whose_ipv4_address_came_in_ipv6_form_passed_acl(serve: Serve) -> None:
    """A proxy that listens on `::` for both families (haproxy's `v4v6`) names it so: what is said of IPv4 holds."""
    server = serve(block("proxyproto", "acl {\n block net 203.0.113.0/24\n }", "whoami"))
    mapped = "::ffff:203.0.113.7"

    def refused(reply: bytes) -> bool:
        return dns.message.from_wire(reply).rcode() == dns.rcode.REFUSED

    for head in (f"PROXY TCP6 {mapped} ::ffff:192.0.2.1 4000 53\r\n".encode(), v2(mapped), v2("203.0.113.7")):
        with server.connect(5) as sock:
            sock.sendall(head + framed(query()))
            assert refused(frame(sock))
    reply = server.raw(v2(mapped, udp=True) + query(), 5)
    assert reply is not None and refused(reply)


@given(st.ip_addresses(), st.booleans())
def test_whoever_names_a_client_it_is_spelled_as_the_kernel_spells_it(
    found: ipaddress.IPv4Address | ipaddress.IPv6Address, mapped: bool
) -> None:
    plain = found.ipv4_mapped or found if found.version == 6 else found
    kernel = socket.inet_ntop(socket.AF_INET if plain.version == 4 else socket.AF_INET6, plain.packed)
    said = f"::ffff:{found}" if mapped and found.version == 4 else str(found)
    trusted = [ipaddress.ip_network("0.0.0.0/0")]
    spellings = [said] if ":" not in said else [said, f"[{said}]", f"[{said}]:4711", said.upper()]
    named = [forwarded(each.encode(), ("192.0.2.1", 5), trusted)[0] for each in [*spellings, f"{found}"]]
    family = 6 if ":" in said else 4
    other = "2001:db8::53" if family == 6 else "192.0.2.53"
    for head, kind in (
        (f"PROXY TCP{family} {said} {other} 4000 53\r\n".encode(), socket.SOCK_STREAM),
        (v2(said), socket.SOCK_STREAM),
        (v2(said, udp=True), socket.SOCK_DGRAM),
    ):
        read = proxy.header(head, kind)
        assert read is not None and read[1] is not None and read[1][1] == 4000
        named.append(read[1][0])
    assert set(named) == {kernel}


def test_a_session_of_datagrams_is_remembered_and_bounded(serve: Serve) -> None:
    server = serve(block("proxyproto {", "  udp_session_tracking 28s 2", "}", "whoami"))
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    try:
        for i, sock in enumerate(socks):
            sock.settimeout(5)
            assert over_udp(server, v2(f"198.51.100.{i}", udp=True), sock) == f"198.51.100.{i}"
        assert [over_udp(server, b"", sock) for sock in socks] == ["127.0.0.1", "198.51.100.1", "198.51.100.2"]
        # A header alone begins a session and gets no reply.
        socks[0].sendto(v2("198.51.100.9", udp=True), ("127.0.0.1", server.port))
        assert over_udp(server, b"", socks[0]) == "198.51.100.9"
    finally:
        for sock in socks:
            sock.close()


def test_behind_a_header_tls_begins(serve: Serve, tmp_path: Path) -> None:
    site = Site(tmp_path)
    server = serve(site.block("proxyproto"))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(v2("198.51.100.7"))
        with site.client().wrap_socket(raw, server_hostname="dns.example.net") as sock:
            sock.sendall(framed(query()))
            assert asked_by(frame(sock)) == "198.51.100.7"
    with connect(server, site.client()) as sock:
        sock.sendall(framed(query()))
        assert asked_by(frame(sock)) == "127.0.0.1"


def test_where_a_client_went_to_was_the_proxys_own_peer_over_tcp(serve: Serve) -> None:
    """The proxy's address is of no use to `view`; over UDP it was what the header says."""
    server = serve(block("proxyproto", "view v {\n expr server_ip() == '192.0.2.53'\n }", "whoami"))
    for head in (v2("198.51.100.7"), b"PROXY TCP4 198.51.100.7 192.0.2.53 4000 53\r\n"):
        assert over_tcp(server, head) == "198.51.100.7"
    assert over_udp(server, v2("198.51.100.7", udp=True)) == "198.51.100.7"


def test_connections_that_send_no_header_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_WAITING", 10)
    server = serve(block("proxyproto", "whoami"))
    (listener,) = next(iter(server.server.listeners.values())).tcp
    socks: list[Any] = [server.connect() for _ in range(30)]
    assert over_tcp(server, v2("198.51.100.7")) == "198.51.100.7"
    assert listener.proxy is not None and len(listener.proxy.waiting) <= 10
    for sock in socks:
        sock.close()
    eventually(lambda: listener.proxy is not None and not listener.proxy.waiting)


def test_a_reload_changes_who_is_believed(serve: Serve) -> None:
    server = serve(block("whoami"))
    assert server.reload(block("proxyproto", "whoami"))
    assert over_tcp(server, v2("198.51.100.7")) == over_udp(server, v2("198.51.100.7", udp=True)) == "198.51.100.7"
    assert server.reload(block("whoami"))
    assert data(server.ask("x.example.")) == [] and over_tcp(server, b"") == "127.0.0.1"


@pytest.mark.parametrize(("lines", "message"), [
    (("allow 10.0.0.1",), "has no mask"), (("allow 10.0.0.300/8",), "10.0.0.300"),
    (("default maybe",), "expected use, ignore"),
    (("allow",), "expected networks"), (("udp_session_tracking 5s 0",), "out of range"), (("x",), "unknown property"),
])  # fmt: skip
def test_what_is_wrong_is_an_error_with_its_place(serve: Serve, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(CorefileError, match=rf"Corefile:4:\d+: .*{message}"):
        serve(block("proxyproto {", *lines, "}", "whoami"))
