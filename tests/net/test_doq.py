"""DNS over QUIC (RFC 9250): the listener, its error codes, and clients that mean it badly."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.edns
import dns.message
import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import Epoch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dns.quic._common import UnexpectedEOF

from kdns import extras, memory
from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.net import certificates
from kdns.net import quic as quic_module
from kdns.testing import Server, Upstream, code, data, eventually
from tests.cli.test_commands import kdns
from tests.fixtures import Serve, Start
from tests.quicpeers import Client, client, configuration, framed, until
from tests.securepeers import HOSTS, NAME, Site

DAY = timedelta(days=1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ask(server: Server, site: Site, name: str = "a.example.org.", cert: str = NAME) -> dns.message.Message:
    query = dns.message.make_query(name, "A")
    return asyncio.run(
        dns.asyncquery.quic(
            query, "127.0.0.1", 10, server.port, verify=str(site.authority.path), server_hostname=cert, hostname=cert
        )
    )


def play(server: Server, site: Site, script: Callable[[Client], Coroutine[Any, Any, None]], **options: Any) -> None:
    """What a client does on one connection."""

    async def inside() -> None:
        async with client(server.port, site.authority.path, **options) as peer:
            await script(peer)

    asyncio.run(inside())


def counted(family: str, server: Server) -> dict[str, float]:
    label = f"quic://127.0.0.1:{server.port}"
    return {".".join(key[1:]): slot[0] for key, slot in REGISTRY[family].slots.items() if key[0] == label}


def listener(server: Server) -> Any:
    return next(iter(server.server.listeners.values())).tcp[0]


# Answers.


def test_kdig_asks_over_quic(serve: Serve, site: Site) -> None:
    if shutil.which("kdig") is None:
        pytest.skip("kdig is not installed")
    server = serve(site.block(scheme="quic"))
    out = subprocess.run(
        ["kdig", "@127.0.0.1", "-p", str(server.port), f"+tls-ca={site.authority.path}",
         f"+tls-hostname={NAME}", "+quic", "+padding=128", "a.example.org"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "192.0.2.1" in out.stdout and "Received 468 B" in out.stdout, out.stdout + out.stderr
    assert "id: 0" in out.stdout


def test_a_query_over_quic_is_answered_and_counted(serve: Serve, site: Site) -> None:
    server = serve(site.block("log", scheme="quic"))
    reply = ask(server, site)
    assert data(reply) == ["192.0.2.1"]
    assert counted("coredns_dns_quic_responses_total", server) == {"0x0": 1}
    assert counted("kdns_tls_handshakes_total", server)["ok"] == 1


def test_streams_of_one_connection_are_answered_as_their_answers_are_there(
    serve: Serve, site: Site, upstream: Start
) -> None:
    def late(query: dns.message.Message, proto: str) -> dns.message.Message | None:
        return None if query.question[0].name.to_text() == "slow.org." else dns.message.make_response(query)

    up = upstream(late)
    server = serve(site.block(f"forward org {up.address} {{\n prefer_udp\n }}", scheme="quic").replace(HOSTS, ""))

    async def script(peer: Client) -> None:
        slow = peer.query("slow.org.")
        quick = peer.query("quick.org.")
        await until(lambda: quick in peer.ended)
        assert slow not in peer.got and peer.reply(quick).id == 0

    play(server, site, script)


def test_what_a_flood_of_connections_had_stayed(serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was free, but below something in use: the C library keeps that."""
    given: list[int] = []
    monkeypatch.setattr(memory, "AFTER", 0.01)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(len(listener(server).connections)))
    server = serve(site.block(scheme="quic"))

    async def flood(count: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(count):
                await stack.enter_async_context(client(server.port, site.authority.path))
            await until(lambda: len(listener(server).connections) == count)
            assert not given

    asyncio.run(flood(quic_module.GIVE_BACK - 1))
    eventually(lambda: not listener(server).connections)
    asyncio.run(flood(quic_module.GIVE_BACK))
    eventually(lambda: given)
    assert given[0] <= quic_module.GIVE_BACK // 2


@pytest.mark.parametrize("new_id", [False, True], ids=["its port changes", "it moves"])
def test_a_client_is_served_on_wherever_it_asks_from(serve: Serve, site: Site, new_id: bool) -> None:
    """It has more IDs for its moves, and gives one for each, though few at a time (quicmachine.IDS_GIVEN)."""
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        ports = set()
        for _ in range(6):
            stream = peer.query("a.example.org.")
            await until(lambda stream=stream: stream in peer.ended)
            assert data(peer.reply(stream)) == ["192.0.2.1"]
            ports.add(connection(server).client()[1])
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", 0))
            before = peer._transport
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: peer, sock=sock)
            assert before is not None
            before.close()
            if new_id:
                await until(lambda: peer._quic._peer_cid_available)
                peer.change_connection_id()
        assert len(ports) == 6 and counted("kdns_tls_handshakes_total", server)["ok"] == 1
        peer.close()
        assert peer._transport is not None
        peer._transport.close()

    play(server, site, script)


V1, V2 = QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2


@pytest.mark.parametrize("first", [V1, V2])
@pytest.mark.parametrize("offered", [[V1], [V2], [V1, V2], [V2, V1]])
def test_a_connection_stays_in_the_version_that_it_begins_with(
    serve: Serve, site: Site, first: int, offered: list[int]
) -> None:
    if first not in offered:
        offered = [*offered, first]
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)
        assert peer._quic._version == first

    play(server, site, script, supported_versions=offered, original_version=first)


def test_a_client_of_another_version_is_told_those_that_there_are(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)
        assert peer._quic._version == V2

    play(server, site, script, supported_versions=[0x1A2A3A4A, V2, V1], original_version=0x1A2A3A4A)


def test_an_acknowledgement_goes_with_the_reply_and_not_in_a_packet_and_by_a_timer_of_its_own(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(site.block(scheme="quic"))
    left: list[float | None] = []  # when what has come is to be acknowledged, once a datagram was sent
    send = quic_module.QuicListener.send

    async def script(peer: Client) -> None:
        await until(lambda: listener(server).connections)
        space = connection(server).quic._spaces[Epoch.ONE_RTT]

        def sending(self: Any, datagrams: list[Any], came: bytes) -> None:
            left.append(space.ack_at)
            send(self, datagrams, came)

        monkeypatch.setattr(quic_module.QuicListener, "send", sending)
        for _ in range(30):
            stream = peer.query("a.example.org.")
            await until(lambda stream=stream: stream in peer.ended)

    play(server, site, script)
    assert len(left) >= 30 and not any(left)


def test_a_reply_is_whole_whatever_the_size_in_its_opt(serve: Serve, site: Site, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("".join(f"192.0.{i >> 8}.{i & 255} big.example.org\n" for i in range(3000)))
    server = serve(site.block(scheme="quic").replace("/nowhere", str(tmp_path / "hosts")))

    async def script(peer: Client) -> None:
        stream = peer.query("big.example.org.", use_edns=0, payload=512)
        await until(lambda: stream in peer.ended)
        assert len(data(peer.reply(stream))) == 3000 and len(peer.got[stream]) > 48_000

    play(server, site, script)


def test_a_query_in_pieces_and_without_the_end_of_its_stream_is_answered(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        wire = framed(dns.message.make_query("a.example.org.", "A", id=0).to_wire())
        stream = peer.send(wire[:1], end=False)
        for at in range(1, len(wire)):
            peer.send(wire[at : at + 1], end=False, stream=stream)
            await asyncio.sleep(0)
        await until(lambda: stream in peer.ended)
        assert data(peer.reply(stream)) == ["192.0.2.1"]

    play(server, site, script)


def test_transfers_and_updates_are_refused(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        axfr = peer.send(framed(dns.message.make_query("example.org.", "AXFR", id=0).to_wire()))
        update = peer.send(framed(b"\0\0\x28\0" + dns.message.make_query("example.org.", "SOA", id=0).to_wire()[4:]))
        await until(lambda: {axfr, update} <= peer.ended | set(peer.reset))
        assert code(peer.reply(update)) == "NOTIMP"
        assert axfr in peer.reset or code(peer.reply(axfr)) != "NOERROR" or not peer.reply(axfr).answer

    play(server, site, script)


@pytest.mark.parametrize("scheme", ["quic", "https3"])
def test_kdns_query_asks_over_quic(serve: Serve, site: Site, scheme: str) -> None:
    server = serve(site.block(scheme=scheme))
    authority = str(site.authority.path)
    done = kdns(
        "query", f"@{scheme}://127.0.0.1:{server.port}", "-ca", authority, "-name", NAME, "-short", "a.example.org"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("192.0.2.1\n", "", 0)
    words = f"query @127.0.0.1 -{scheme} -p {server.port} -name other.example.net a.example.org"
    done = kdns(*words.split(), "-ca", authority)
    assert done.returncode == 9 and not done.stdout
    wrong = "certificate verify failed: Hostname mismatch, certificate is not valid for 'other.example.net'\n"
    assert done.stderr.endswith(wrong), done.stderr  # and not the names it has, as Python's objects


def test_a_block_of_quic_and_tls_has_both(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic") + site.block(scheme="tls"))
    assert data(ask(server, site)) == ["192.0.2.1"]
    query = dns.message.make_query("a.example.org.", "A")
    reply = dns.query.tls(query, "127.0.0.1", 10, server.port, ssl_context=site.client(), server_hostname=NAME)
    assert data(reply) == ["192.0.2.1"]


# Certificates.


def test_a_certificate_that_changes_is_shown_to_later_connections_and_open_ones_go_on(
    serve: Serve, site: Site, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.02)
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        site.issue("other.example.net")
        await until(lambda: any("tls.crt has changed and is in use" in line for line in lines))
        with pytest.raises(UnexpectedEOF):
            await asyncio.to_thread(ask, server, site)
        assert data(await asyncio.to_thread(ask, server, site, "a.example.org.", "other.example.net")) == ["192.0.2.1"]
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)

    play(server, site, script)
    (site.folder / "tls.key").write_text("none")
    eventually(lambda: any("the previous certificate stays in use" in line for line in lines))
    assert data(ask(server, site, "a.example.org.", "other.example.net")) == ["192.0.2.1"]


def _keys() -> dict[str, Any]:
    return {
        "P-256": ec.generate_private_key(ec.SECP256R1()), "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()), "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "RSA": rsa.generate_private_key(65537, 2048), "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "Ed448": ed448.Ed448PrivateKey.generate(),
    }  # fmt: skip


def test_a_key_that_aioquic_cannot_sign_with_was_taken_and_every_handshake_failed(serve: Serve, site: Site) -> None:
    crt, key = site.folder / "tls.crt", site.folder / "tls.key"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    for kind, made in _keys().items():
        signed = (
            x509.CertificateBuilder(name, name, made.public_key(), x509.random_serial_number(), now, now + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .sign(made, None if kind.startswith("Ed") else hashes.SHA256())
        )
        crt.write_bytes(signed.public_bytes(Encoding.PEM))
        key.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        if kind in ("P-521", "secp256k1"):
            for scheme in ("quic", "https3"):
                with pytest.raises(CorefileError, match=r"tls\.key cannot be used over QUIC: expected ECDSA on P-256"):
                    serve(site.block(scheme=scheme))
            continue
        server = serve(site.block(scheme="quic"))
        query = dns.message.make_query("a.example.org.", "A")
        reply = asyncio.run(
            dns.asyncquery.quic(query, "127.0.0.1", 10, server.port, verify=str(crt), server_hostname=NAME)
        )
        assert data(reply) == ["192.0.2.1"], kind


def test_quic_without_a_certificate_is_an_error_with_its_place(serve: Serve, site: Site) -> None:
    with pytest.raises(CorefileError, match=r":1:1: .*QUIC is always encrypted: name a certificate with `tls"):
        serve(site.block(scheme="quic", tls="errors"))


@pytest.mark.parametrize(
    ("more", "text"),
    [("proxyproto", "proxyproto cannot be had over QUIC"), ("", "client_auth cannot be had over QUIC")],
)
def test_what_cannot_be_had_over_quic_is_an_error(serve: Serve, site: Site, more: str, text: str) -> None:
    auth = "" if more else " {\n client_auth require_and_verify\n }"
    block = site.block(more, scheme="quic", tls=f"tls {site.folder}/tls.crt {site.folder}/tls.key{auth}")
    with pytest.raises(CorefileError, match=f":1:1: .*{text}"):
        serve(block)


def test_quic_without_its_library_is_an_error_that_names_the_extra(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorefileError, match=r":1:1: .*quic:// needs .* pip install 'kdns\[quic\]'"):
        serve(site.block(scheme="quic"))


# What breaks the protocol.


KEEPALIVE = dns.edns.GenericOption(11, b"")


@pytest.mark.parametrize(
    "wire",
    [
        framed(dns.message.make_query("a.example.org.", "A", id=7).to_wire()),
        b"\0\0",
        b"\0\5abc",
        b"\0",
        b"",
        framed(dns.message.make_query("a.example.org.", "A", id=0).to_wire()[:11]),
        framed(dns.message.make_query("a.example.org.", "A", id=0, options=[KEEPALIVE]).to_wire()),
        framed(dns.message.make_query("a.example.org.", "A", id=0).to_wire()) * 2,
        framed(dns.message.make_response(dns.message.make_query("a.example.org.", "A", id=0)).to_wire()),
    ],
    ids=["id", "length 0", "cut", "half a length", "empty", "short", "keepalive", "two queries", "response"],
)
def test_what_breaks_the_protocol_closes_the_connection_with_code_2(serve: Serve, site: Site, wire: bytes) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        peer.send(wire)
        await until(lambda: peer.closed is not None)
        assert peer.closed == 2, peer.reason

    play(server, site, script)
    assert counted("coredns_dns_quic_responses_total", server) == {"0x2": 1}
    assert data(ask(server, site)) == ["192.0.2.1"]


def test_a_unidirectional_stream_closes_the_connection_with_code_2(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        peer.send(b"x", stream=2)
        await until(lambda: peer.closed is not None)
        assert peer.closed == 2

    play(server, site, script)


def test_a_malformed_question_gets_formerr_and_the_connection_goes_on(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        stream = peer.send(framed(b"\0\0\1\0\0\1\0\0\0\0\0\0\x3fabc"))
        await until(lambda: stream in peer.ended)
        assert peer.got[stream][5] & 15 == 1
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)

    play(server, site, script)


# Time.


def test_a_stalled_stream_ends_alone(serve: Serve, site: Site) -> None:
    server = serve(site.block("timeouts {\n read 1s\n idle 5s\n }", scheme="quic"))

    async def script(peer: Client) -> None:
        stalled = [peer.send(b"\0", end=False) for _ in range(20)]
        good = peer.query("a.example.org.")
        await until(lambda: good in peer.ended)
        await until(lambda: all(peer.reset.get(each) == 3 and peer.stopped.get(each) == 3 for each in stalled))
        good = peer.query("a.example.org.")
        await until(lambda: good in peer.ended)

    play(server, site, script)


def test_a_connection_without_queries_is_closed_in_good_order_though_it_pings(serve: Serve, site: Site) -> None:
    server = serve(site.block("timeouts {\n read 1s\n idle 1s\n }", scheme="quic"))

    async def script(peer: Client) -> None:
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)
        began = time.monotonic()
        while peer.closed is None and time.monotonic() - began < 10:
            with contextlib.suppress(ConnectionError):
                await peer.ping()
            await asyncio.sleep(0.02)
        assert peer.closed == 0

    play(server, site, script)
    eventually(lambda: not listener(server).by_id)


def test_a_query_that_is_cancelled_gets_no_reply_and_leaves_the_others(
    serve: Serve, site: Site, upstream: Start
) -> None:
    up: Upstream = upstream(lambda query, proto: None)
    server = serve(site.block(f"forward org {up.address} {{\n prefer_udp\n }}", scheme="quic"))

    async def script(peer: Client) -> None:
        stream = peer.query("slow.org.")
        await until(lambda: up.queries)
        peer._quic.stop_stream(stream, 3)
        peer._quic.reset_stream(stream, 3)
        peer.transmit()
        await until(lambda: peer.reset.get(stream) == 3)
        good = peer.query("a.example.org.")
        await until(lambda: good in peer.ended)

    play(server, site, script)


def test_a_shutdown_answers_what_was_asked_and_then_closes_with_0(serve: Serve, site: Site, upstream: Start) -> None:
    def late(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.3)
        return dns.message.make_response(query)

    up = upstream(late)
    server = serve(site.block(f"forward org {up.address}", scheme="quic").replace(HOSTS, ""))

    async def script(peer: Client) -> None:
        stream = peer.query("slow.org.")
        await until(lambda: up.queries)
        ending = asyncio.ensure_future(asyncio.to_thread(server.thread.run, server.server.stop(drain=5)))
        await until(lambda: peer.closed is not None)
        assert peer.closed == 0 and code(peer.reply(stream)) == "EMPTY"
        await ending

    play(server, site, script)


def test_a_reload_keeps_connections(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)
        assert await asyncio.to_thread(server.reload, site.block(scheme="quic").replace("192.0.2.1", "192.0.2.2"))
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)
        assert data(peer.reply(stream)) == ["192.0.2.2"]

    play(server, site, script)


# Bounds.


def test_a_thousand_streams_are_answered_and_no_more_than_allowed_are_open(serve: Serve, site: Site) -> None:
    server = serve(site.block("quic {\n max_streams 10\n }", scheme="quic"))

    async def script(peer: Client) -> None:
        assert peer._quic._remote_max_streams_bidi == 10
        streams = [peer.query("a.example.org.") for _ in range(1000)]
        await until(lambda: len(peer.ended) == 1000)
        assert all(data(peer.reply(each)) == ["192.0.2.1"] for each in streams)

    play(server, site, script)
    eventually(lambda: all(len(each.quic._streams) <= 10 for each in listener(server).connections))


def test_queries_that_are_reset_at_once_count_until_they_are_answered(
    serve: Serve, site: Site, upstream: Start
) -> None:
    """What CVE-2023-44487 is over HTTP/2: a reset lets the client open another stream, and costs it nothing."""
    up = upstream(lambda query, proto: None)
    options = "quic {\n max_streams 10\n }"
    forward = f"forward org {up.address} {{\n prefer_udp\n }}"
    server = serve(site.block(options, forward, scheme="quic").replace(HOSTS, ""))

    async def script(peer: Client) -> None:
        most = 0
        for i in range(50):
            stream = peer.query(f"x{i}.org.")
            peer._quic.reset_stream(stream, 3)
            peer._quic.stop_stream(stream, 3)
            peer.transmit()
            await until(lambda stream=stream: stream in peer.reset)
            most = max([most, *(each.pending for each in listener(server).connections)])
        assert most == 10
        await until(lambda: all(not each.pending for each in listener(server).connections))
        # The connection goes on.
        stream = peer.query("example.net.")
        await until(lambda: stream in peer.ended)

    play(server, site, script)


def test_a_client_at_its_limit_loses_a_connection_of_its_own(serve: Serve, site: Site) -> None:
    server = serve(site.block("limits {\n connections 2 4\n }", scheme="quic"))

    async def script() -> None:
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(client(server.port, site.authority.path)) for _ in range(3)]
            await until(lambda: sum(peer.closed is not None for peer in peers) == 1)
            open_ = [peer for peer in peers if peer.closed is None]
            for peer in open_:
                stream = peer.query("a.example.org.")
                await until(lambda peer=peer, stream=stream: stream in peer.ended)

    asyncio.run(script())


def initial(authority: Path, port: int) -> list[bytes]:
    """The first datagrams of a handshake that never goes on."""
    machine = QuicConnection(configuration=configuration(authority))
    machine.connect(("127.0.0.1", port), 0.0)
    return [datagram for datagram, _ in machine.datagrams_to_send(0.0)]


def received(sock: socket.socket) -> list[bytes]:
    out = []
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            out.append(sock.recv(4096))
    return out


def test_before_an_address_is_validated_it_gets_three_times_what_it_sent_at_most(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", server.port))
        sent = 0
        for datagram in initial(site.authority.path, server.port):
            sock.send(datagram)
            sent += len(datagram)
        got = sum(map(len, received(sock)))
        assert 0 < got <= 3 * sent


def test_a_flood_of_beginnings_is_bounded_and_others_prove_their_address_and_are_served(
    serve: Serve, site: Site
) -> None:
    server = serve(site.block(scheme="quic"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", server.port))
        sent = got = 0
        for _ in range(100):
            for datagram in initial(site.authority.path, server.port):
                sock.send(datagram)
                sent += len(datagram)
            time.sleep(0.002)
        assert len(listener(server).half_open) <= quic_module.RETRY_FROM
        assert data(ask(server, site)) == ["192.0.2.1"]
        got = sum(map(len, received(sock)))
        assert got <= 3 * sent
    assert counted("kdns_quic_retries_total", server)[""] >= 1
    eventually(lambda: not listener(server).half_open, timeout=20)
    assert len(listener(server).by_id) <= 3


def test_octets_that_are_no_quic_are_dropped(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))
    good = initial(site.authority.path, server.port)[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", server.port))
        for at in range(200):
            sock.send(os.urandom(1 + at * 7))
            sock.send(good[: 6 + at] + os.urandom(1300))
            sock.send(b"")
        replies = received(sock)
    assert all(len(each) < 1200 for each in replies)
    eventually(lambda: len(listener(server).half_open) <= 1)
    assert data(ask(server, site)) == ["192.0.2.1"]


def test_an_unknown_version_is_negotiated(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", server.port))
        first = initial(site.authority.path, server.port)[0]
        sock.send(first[:1] + b"\x0a\x0a\x0a\x0a" + first[5:])
        reply = received(sock)
        assert len(reply) == 1 and reply[0][1:5] == b"\0\0\0\0"
        sock.send(reply[0].ljust(1200, b"\0"))
        assert received(sock) == []


def test_another_alpn_is_refused(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        raise AssertionError("it was taken")

    with pytest.raises(ConnectionError):
        play(server, site, script, alpn="h3")
    eventually(lambda: counted("kdns_tls_handshakes_total", server)["failed"] == 1)


def test_data_with_gaps_is_bounded_by_flow_control(serve: Serve, site: Site) -> None:
    """A stream's first octet is held back, so that nothing can be read of what is sent."""
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        for _ in range(8):
            stream = peer._quic.get_next_available_stream_id()
            peer._quic.send_stream_data(stream, b"\xff\xff" + bytes(70_000))
        peer.transmit()
        await until(lambda: peer.closed is not None)
        assert peer.closed == 2  # more octets than the length says

    play(server, site, script)


@pytest.mark.parametrize("octets", [0, 5_000])
def test_answers_that_nobody_takes_are_bounded(serve: Serve, site: Site, tmp_path: Path, octets: int) -> None:
    """A client with little or no room for answers."""
    (tmp_path / "hosts").write_text("".join(f"192.0.{i >> 8}.{i & 255} big.example.org\n" for i in range(3000)))
    server = serve(site.block(scheme="quic").replace("/nowhere", str(tmp_path / "hosts")))

    async def script(peer: Client) -> None:
        streams = [peer.query("big.example.org.") for _ in range(200)]
        await until(lambda: len(streams) - len(peer.reset) <= (1 << 20) // 48_000)
        assert set(peer.reset.values()) == {4}
        held = sum(len(each.sender._buffer) for each in connection(server).quic._streams.values())
        assert held <= 1 << 20

    play(server, site, script, max_data=octets, max_stream_data=octets)


def connection(server: Server) -> Any:
    """The server's side of the only connection."""
    return next(iter(listener(server).connections))


def test_a_client_with_the_largest_datagrams_of_an_ethernet_is_answered(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client) -> None:
        streams = [peer.send(framed(QUERY), stream=None) for _ in range(100)]
        await until(lambda: set(streams) <= peer.ended)

    play(server, site, script, max_datagram_size=1472)


QUERY = dns.message.make_query("a.example.org.", "A", id=0, pad=400).to_wire()
