"""Several certificates on one listener: the server name in the ClientHello (SNI, RFC 6066) chooses one, over TLS and
over QUIC alike.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from aioquic.asyncio import connect
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.net import certificates
from kdns.testing import Server, eventually
from tests.cli.test_commands import kdns
from tests.fixtures import Serve
from tests.quicpeers import Client, configuration
from tests.securepeers import Site

ALPN = {"tls": "dot", "https": "h2", "grpc": "h2", "quic": "doq", "https3": "h3"}
OVER_TCP = ["tls", "https", "grpc"]
OVER_QUIC = ["quic", "https3"]
ONE, TWO = "one.example.net", "two.example.net"


class Raw(str):
    """A server name that aioquic sends as these octets."""

    def encode(self, *args: Any) -> bytes:
        return self.octets

    octets: bytes


@pytest.fixture
def one(tmp_path: Path) -> Site:
    return Site(tmp_path / "one", ONE)


@pytest.fixture
def two(tmp_path: Path, one: Site) -> Site:
    return Site(tmp_path / "two", TWO, "*.wild.example.net", "Mixed.Example.NET", authority=one.authority)


def both(one: Site, two: Site, scheme: str) -> str:
    return one.block(scheme=scheme) + two.block(scheme=scheme, zone="b.org")


def shown(server: Server, site: Site, scheme: str, name: str | None) -> str:
    """The first name in the certificate that a client is shown who asks for this name."""
    if scheme in OVER_QUIC:
        der = asyncio.run(_over_quic(server, site, scheme, name))
    else:
        context = site.client(check_hostname=False)
        context.set_alpn_protocols([ALPN[scheme]])
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=name) as sock,
        ):
            assert sock.selected_alpn_protocol() == ALPN[scheme]
            der = sock.getpeercert(binary_form=True) or b""
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.DNSName)[0]


async def _over_quic(server: Server, site: Site, scheme: str, name: str | None) -> bytes:
    made = configuration(site.authority.path, ALPN[scheme], verify_mode=ssl.CERT_NONE)
    made.server_name = name
    async with connect("127.0.0.1", server.port, configuration=made, create_protocol=Client) as peer:
        certificate = peer._quic.tls._peer_certificate
        assert certificate is not None
        return certificate.public_bytes(Encoding.DER)


def failed(server: Server, scheme: str) -> float:
    return REGISTRY["kdns_tls_handshakes_total"].slots[(f"{scheme}://127.0.0.1:{server.port}", "failed")][0]


@pytest.mark.parametrize("scheme", ALPN)
def test_the_server_name_chooses_the_certificate(serve: Serve, one: Site, two: Site, scheme: str) -> None:
    server = serve(both(one, two, scheme))
    expected = {
        ONE: ONE, TWO: TWO, "a.wild.example.net": TWO,
        # Letter case makes no difference, in neither of both.
        "ONE.Example.net": ONE, "Two.EXAMPLE.net": TWO, "A.Wild.Example.Net": TWO, "mixed.example.net": TWO,
        # A wildcard stands for one label, and not for none.
        "a.b.wild.example.net": ONE, "wild.example.net": ONE, "a.example.net": ONE,
        None: ONE, "unknown.example": ONE, "net": ONE, "b.org": ONE, "192.0.2.1": ONE,
    }  # fmt: skip
    assert {name: shown(server, one, scheme, name) for name in expected} == expected
    assert not failed(server, scheme)


def test_an_exact_name_is_chosen_before_a_wildcard_and_the_first_block_before_others(
    serve: Serve, one: Site, two: Site
) -> None:
    one.issue("first.example.net", "*.example.net", "both.example.org")
    two.issue("second.example.net", "both.example.org")
    server = serve(both(one, two, "tls"))
    for name, its in (("second", "second"), ("first", "first"), ("third", "first"), ("second.a", "first")):
        assert shown(server, one, "tls", f"{name}.example.net") == f"{its}.example.net"
    assert shown(server, one, "tls", "both.example.org") == "first.example.net"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_certificates_may_have_keys_of_different_kinds(
    serve: Serve, one: Site, two: Site, version: ssl.TLSVersion
) -> None:
    import trustme

    one.issue(ONE, key_type=trustme.KeyType.RSA)
    server = serve(both(one, two, "tls"))
    for name in (ONE, TWO):
        context = one.client(maximum_version=version)
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=name) as sock,
        ):
            assert sock.version() == version.name.replace("_", ".")


@pytest.mark.parametrize("scheme", ["tls", "quic"])
def test_one_of_several_certificates_is_renewed_and_the_others_stay(
    serve: Serve, one: Site, two: Site, scheme: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.02)
    server = serve(both(one, two, scheme))
    two.issue("three.example.net")
    eventually(lambda: any("two/tls.crt has changed and is in use" in line for line in lines))
    assert [shown(server, one, scheme, name) for name in (ONE, "three.example.net", TWO)] == [
        ONE, "three.example.net", ONE
    ]  # fmt: skip
    one.issue("four.example.net")
    eventually(lambda: any("one/tls.crt has changed and is in use" in line for line in lines))
    assert [shown(server, one, scheme, name) for name in (None, ONE, "three.example.net")] == [
        "four.example.net", "four.example.net", "three.example.net"
    ]  # fmt: skip
    key = two.folder / "tls.key"
    key.write_text("none")
    eventually(lambda: any("two/tls.key holds no private key" in line and "stays in use" in line for line in lines))
    assert shown(server, one, scheme, "three.example.net") == "three.example.net"


@pytest.mark.parametrize("scheme", ["tls", "quic"])
def test_a_reload_adds_and_removes_certificates(serve: Serve, one: Site, two: Site, scheme: str) -> None:
    server = serve(one.block(scheme=scheme))
    assert shown(server, one, scheme, TWO) == ONE
    assert server.reload(both(one, two, scheme))
    assert shown(server, one, scheme, TWO) == TWO
    assert server.reload(two.block(scheme=scheme))
    assert shown(server, one, scheme, ONE) == TWO
    assert server.reload(both(two, one, scheme))
    assert [shown(server, one, scheme, name) for name in (None, ONE)] == [TWO, ONE]


def test_a_session_is_resumed_with_its_own_certificates_name(serve: Serve, one: Site, two: Site) -> None:
    server = serve(both(one, two, "tls"))
    context = one.client(maximum_version=ssl.TLSVersion.TLSv1_2)
    session = None
    for again in (False, True):
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=TWO, session=session) as sock,
        ):
            assert sock.session_reused is again
            session = sock.session


# Server names that are none.


HOSTILE = [
    b"\xff\xfe\x00\x01" * 8,
    b"\xc3\xa4.example.net",
    b"a" * 255,
    b"." * 40,
    b"*.wild.example.net",
    b"192.0.2.1",
    b"[2001:db8::1]",
    b"a\nb\x1b[2J",
]


def hello(context: ssl.SSLContext, name: bytes) -> bytes:
    """The first octets of a client that sends these octets as server name."""
    size = len(name)
    stand_in = ".".join("x" * len(part) for part in _cut(size))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=stand_in)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    octets = outgoing.read()
    assert octets.count(stand_in.encode()) == 1
    return octets.replace(stand_in.encode(), name)


def _cut(size: int) -> list[str]:
    """Labels whose text is so long with the dots between them."""
    out = []
    while size > 63:
        out.append("x" * min(60, size - 2))
        size -= len(out[-1]) + 1
    return [*out, "x" * size]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("scheme", OVER_TCP)
def test_a_server_name_that_is_none_costs_nobody_anything(
    serve: Serve, one: Site, two: Site, scheme: str, name: bytes, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Python printed those that are not ASCII, with a stack trace, as often as a stranger liked."""
    unraisable: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        server = serve(both(one, two, scheme))
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(hello(one.client(check_hostname=False), name))
            sock.settimeout(10)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(65536)[:1] in (b"\x15", b"\x16", b"")  # an alert, or the server's hello
        assert shown(server, one, scheme, TWO) == TWO
    finally:
        sys.unraisablehook = hook
    assert not unraisable and not any("rror" in line for line in lines), lines
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("scheme", OVER_QUIC)
def test_a_server_name_that_is_none_costs_nobody_anything_over_quic(
    serve: Serve, one: Site, two: Site, scheme: str, name: bytes, lines: list[str]
) -> None:
    server = serve(both(one, two, scheme))
    raw = Raw("x")
    raw.octets = name
    with contextlib.suppress(ConnectionError):
        assert shown(server, one, scheme, raw) in (ONE, TWO)
    assert shown(server, one, scheme, TWO) == TWO
    assert not any("rror" in line for line in lines), lines


# What blocks of one listener may differ in.


def options(site: Site, *lines: str, ca: Path | None = None) -> str:
    body = "".join(f"\n  {line}" for line in lines)
    return f"tls {site.folder}/tls.crt {site.folder}/tls.key {ca or ''} {{{body}\n }}"


@pytest.mark.parametrize("scheme", OVER_TCP)
def test_blocks_that_ask_different_things_of_clients_are_an_error_with_its_place(
    serve: Serve, one: Site, two: Site, scheme: str
) -> None:
    """A client would choose the block that asks for no certificate, and then the names of the other."""
    ca = one.authority.path
    asks = "client_auth require_and_verify"
    other = ca.parent / "other.pem"
    other.write_bytes(ca.read_bytes())
    cases = [
        (options(one), options(two, asks, ca=ca), "has client_auth require_and_verify, and nocert at Corefile:3:"),
        (options(one, asks, ca=ca), options(two), "has client_auth nocert, and require_and_verify at Corefile:3:"),
        (
            options(one, asks, ca=ca),
            options(two, "client_auth verify_if_given", ca=ca),
            "has client_auth verify_if_given",
        ),
        (options(one, asks, ca=ca), options(two, asks, ca=other), f"has the CA {other}, and {ca} at Corefile:3:"),
        (options(one, asks, ca=ca), options(two, asks), "has the CA of this machine, and "),
        (options(one, "min_version 1.3"), options(two), r"has min_version 1\.2, and 1\.3 at Corefile:3:"),
    ]
    for first, second, said in cases:
        text = one.block(scheme=scheme, tls=first) + two.block(scheme=scheme, tls=second, zone="b.org")
        with pytest.raises(CorefileError, match=rf"^Corefile:\d\d:2: tls: {scheme}://b.org.:\d+ {said}"):
            serve(text)
    # Where they agree, or are of different listeners, there is no error.
    serve(
        one.block(scheme=scheme, tls=options(one, asks, ca=ca))
        + two.block(scheme=scheme, tls=options(two, asks, ca=ca), zone="b.org")
        + two.block(scheme=scheme, tls=options(two)).replace("127.0.0.1", "127.0.0.2")
    )


def test_client_certificates_are_asked_for_whichever_certificate_is_chosen(serve: Serve, one: Site, two: Site) -> None:
    tls = [options(site, "client_auth require_and_verify", ca=one.authority.path) for site in (one, two)]
    server = serve(one.block(tls=tls[0]) + two.block(tls=tls[1], zone="b.org"))
    known = one.client()
    one.authority.ca.issue_cert("client.example.net").configure_cert(known)
    for name in (ONE, TWO):
        for context, accepted in ((known, True), (one.client(), False)):
            with (
                socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
                contextlib.suppress(ConnectionError, ssl.SSLError),
                context.wrap_socket(raw, server_hostname=name) as sock,
            ):
                sock.sendall(b"\0\x0c\0\7" + bytes(10))
                assert bool(sock.recv(1)) is accepted


def test_a_key_log_is_of_all_certificates_of_the_listener(serve: Serve, one: Site, two: Site) -> None:
    path = one.folder / "keys.log"
    server = serve(one.block(tls=options(one, f"keylog {path}")) + two.block(zone="b.org"))
    for name in (ONE, TWO):
        before = len(path.read_text()) if path.exists() else 0
        assert shown(server, one, "tls", name) == name
        assert len(path.read_text()) > before


def test_a_certificate_that_nobody_is_shown_is_warned_of(
    serve: Serve, one: Site, two: Site, lines: list[str], tmp_path: Path
) -> None:
    two.issue(ONE)
    server = serve(both(one, two, "tls"))
    said = "no client is shown the certificate"
    assert [said in line and "two/tls.crt" in line for line in lines if said in line] == [True]
    (tmp_path / "Corefile").write_text(both(one, two, "tls").replace("{port}", str(server.port)))
    assert said in kdns("check", "-load", str(tmp_path / "Corefile")).stderr


def test_explain_says_for_whom_each_certificate_is(one: Site, two: Site, tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(both(one, two, "tls").replace("{port}", "1853"))
    done = kdns("explain", "-conf", str(tmp_path / "Corefile"), "--limits", "a.example.org")
    assert f"certificate: {one.folder}/tls.crt, TLS 1.2+, for {ONE}, other names, and none\n" in done.stdout
    assert f"two/tls.crt, TLS 1.2+, for {TWO}, *.wild.example.net, mixed.example.net\n" in done.stdout


def test_plan_says_which_listeners_have_several_certificates(one: Site, two: Site, tmp_path: Path) -> None:
    for text, said in ((both(one, two, "quic"), True), (one.block() + one.block(zone="b.org"), False)):
        (tmp_path / "Corefile").write_text(text.replace("{port}", "1853"))
        done = kdns("plan", str(tmp_path / "Corefile"))
        assert ("quic://127.0.0.1:1853 has 2 certificates" in done.stdout) is said and not done.returncode, done


def test_a_listener_of_quic_without_a_certificate_was_not_noticed_beside_one_at_another_address(
    serve: Serve, one: Site
) -> None:
    other = one.block(scheme="quic", tls="errors").replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(CorefileError, match="QUIC is always encrypted"):
        serve(one.block(scheme="quic") + other)
