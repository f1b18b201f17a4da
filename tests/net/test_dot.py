"""DNS over TLS (RFC 7858): the listener, its certificates, and clients that mean it badly."""

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dns.edns
import dns.exception
import dns.message
import dns.query
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kdns import files, memory
from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.net import certificates, connection, tcp_connection
from kdns.net import tls as tls_module
from kdns.net import turns as turns_module
from kdns.net.turns import Turns
from kdns.testing import Server, Upstream, data, eventually
from tests import programs
from tests.fixtures import Serve
from tests.keyupdates import Updater
from tests.securepeers import HOSTS, NAME, Site
from tests.turns import between_turns


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextlib.contextmanager
def connect(server: Server, context: ssl.SSLContext, name: str = NAME) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=name) as sock,
    ):
        yield sock


def ask(
    server: Server, site: Site, name: str = "a.example.org.", cert: str = NAME, **options: Any
) -> dns.message.Message:
    query = dns.message.make_query(name, "A", **options)
    return dns.query.tls(query, "127.0.0.1", 10, server.port, ssl_context=site.client(), server_hostname=cert)


def wire(name: str, qid: int) -> bytes:
    query = dns.message.make_query(name, "A", use_edns=False)
    query.id = qid
    raw = query.to_wire()
    return struct.pack("!H", len(raw)) + raw


def frame(sock: socket.socket) -> bytes:
    file = sock.makefile("rb")
    size = int.from_bytes(file.read(2), "big")
    return file.read(size)


def ids(sock: socket.socket, count: int) -> list[int]:
    """The ids of so many replies."""
    file = sock.makefile("rb")
    return [int.from_bytes(file.read(int.from_bytes(file.read(2), "big"))[:2], "big") for _ in range(count)]


def results(server: Server) -> dict[str, float]:
    label = f"tls://127.0.0.1:{server.port}"
    return {key[1]: slot[0] for key, slot in REGISTRY["kdns_tls_handshakes_total"].slots.items() if key[0] == label}


# Answers.


def test_a_query_over_tls_is_answered_and_counted_as_over_tcp(serve: Serve, site: Site) -> None:
    server = serve(site.block("prometheus 127.0.0.1:0"))
    assert data(ask(server, site)) == ["192.0.2.1"]
    with connect(server, site.client()) as sock:
        assert sock.version() == "TLSv1.3"
    server.thread.call(
        lambda: [plugin.flush() for plugin in server.server.instance.plugins if plugin.name == "prometheus"]
    )
    counted = REGISTRY["coredns_dns_requests_total"].slots
    assert any(
        key[0] == f"tls://127.0.0.1:{server.port}" and key[3] == "tcp" and slot[0] == 1 for key, slot in counted.items()
    )


def test_kdig_asks_over_tls(serve: Serve, site: Site) -> None:
    if shutil.which("kdig") is None:
        pytest.skip("kdig is not installed")
    server = serve(site.block())
    out = subprocess.run(
        ["kdig", "@127.0.0.1", "-p", str(server.port), f"+tls-ca={site.authority.path}", f"+tls-hostname={NAME}",
            "+padding=128",
         "a.example.org"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "192.0.2.1" in out.stdout and "Received 468 B" in out.stdout, out.stdout + out.stderr


@programs.needs("unbound")
def test_unbound_forwards_over_tls_and_checks_the_certificate(serve: Serve, site: Site, tmp_path: Path) -> None:
    server = serve(site.block())

    def words(port: int) -> list[str]:
        (tmp_path / "unbound.conf").write_text(
            f"""server:
  interface: 127.0.0.1
  port: {port}
  do-daemonize: no
  do-not-query-localhost: no
  use-syslog: no
  username: ""
  chroot: ""
  pidfile: ""
  module-config: "iterator"
  tls-cert-bundle: "{site.authority.path}"
forward-zone:
  name: "."
  forward-tls-upstream: yes
  forward-addr: 127.0.0.1@{server.port}#{NAME}
"""
        )
        return ["unbound", "-d", "-c", str(tmp_path / "unbound.conf")]

    with programs.running(tmp_path / "unbound", words) as program:

        def found() -> bool:
            with contextlib.suppress(OSError, dns.exception.DNSException):
                reply = dns.query.udp(dns.message.make_query("a.example.org.", "A"), "127.0.0.1", 3, program.port)
                return bool(reply.answer) and data(reply) == ["192.0.2.1"]
            return False

        program.until(found)


def test_the_protocol_dot_is_offered_and_need_not_be_asked_for(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    client = site.client()
    client.set_alpn_protocols(["dot"])
    for context, chosen in ((client, "dot"), (site.client(), None)):
        with connect(server, context) as sock:
            assert sock.selected_alpn_protocol() == chosen
            sock.sendall(wire("a.example.org.", 7))
            assert frame(sock)[:2] == b"\0\7"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_many_queries_in_one_record_are_all_answered(serve: Serve, site: Site, version: ssl.TLSVersion) -> None:
    server = serve(site.block())
    batch = b"".join(wire("a.example.org.", i) for i in range(3000))
    with connect(server, site.client(maximum_version=version, minimum_version=version)) as sock:
        sock.sendall(batch)
        file = sock.makefile("rb")
        seen = set()
        for _ in range(3000):
            seen.add(file.read(int.from_bytes(file.read(2), "big"))[:2])
        assert len(seen) == 3000


def test_queries_that_came_with_the_end_of_the_handshake_ended_the_connection(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    batch = b"".join(wire("a.example.org.", i) for i in range(3000))
    for _ in range(20):
        with connect(server, site.client()) as sock:
            sock.sendall(batch)
            assert frame(sock)[:2] == b"\0\0"


def test_a_quick_answer_overtakes_a_slow_one(serve: Serve, site: Site, upstream: Any) -> None:
    up: Upstream = upstream(lambda query, proto: None)
    text = site.block().replace("whoami", f"forward . 127.0.0.1:{up.port} {{\n max_fails 0\n }}")
    server = serve(text)
    with connect(server, site.client()) as sock:
        sock.sendall(wire("slow.example.", 1) + wire("a.example.org.", 2))
        assert frame(sock)[:2] == b"\0\2"


def test_replies_are_padded_where_the_query_was_and_nobody_can_look_in(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    padding = dns.edns.GenericOption(dns.edns.OptionType.PADDING, bytes(100))
    for _ in range(3):  # the third is a repeated reply
        padded = ask(server, site, use_edns=0, options=[padding])
        assert len(padded.to_wire()) == 468 and data(padded) == ["192.0.2.1"]
        denied = ask(server, site, "none.example.org.", use_edns=0, options=[padding])
        assert len(denied.to_wire()) == 468
        assert len(ask(server, site, use_edns=0).to_wire()) < 100
    plain = serve(".:{port} {\n bind 127.0.0.1\n" + HOSTS + "}\n")
    assert len(plain.ask("a.example.org.", tcp=True, use_edns=0, options=[padding]).to_wire()) < 100


def test_a_client_that_asks_is_told_how_long_its_connection_is_kept(serve: Serve, site: Site) -> None:
    keepalive = dns.edns.GenericOption(11, b"")

    def told(reply: dns.message.Message) -> list[bytes]:
        return [option.to_wire() for option in reply.options if option.otype == 11]

    server = serve(site.block("timeouts {", "  idle 31s", "}"))
    for _ in range(3):
        assert told(ask(server, site, use_edns=0, options=[keepalive])) == [struct.pack("!H", 300)]
        assert told(ask(server, site, use_edns=0)) == []
    plain = serve(".:{port} {\n bind 127.0.0.1\n" + HOSTS + "}\n")
    assert told(plain.ask("a.example.org.", tcp=True, use_edns=0, options=[keepalive])) == [struct.pack("!H", 100)]
    assert (
        told(plain.ask("a.example.org.", use_edns=0, options=[keepalive])) == []
    )  # RFC 7828, section 3.2.1: not over UDP


def test_a_client_that_writes_no_more_still_gets_its_answers(serve: Serve, site: Site, upstream: Any) -> None:
    def late(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.2)
        return dns.message.make_response(query)

    up: Upstream = upstream(late)
    server = serve(site.block().replace("whoami", f"forward . 127.0.0.1:{up.port}"))
    with connect(server, site.client()) as sock:
        sock.sendall(wire("b.example.", 5))
        socket.socket.shutdown(sock, socket.SHUT_WR)
        assert frame(sock)[:2] == b"\0\5"
        assert sock.recv(1) == b""


def test_the_last_of_maxtcpqueries_is_answered_and_the_goodbye_is_said(serve: Serve, site: Site) -> None:
    server = serve(site.block("timeouts {", "  maxtcpqueries 2", "}"))
    with connect(server, site.client()) as sock:
        sock.suppress_ragged_eofs = False
        sock.sendall(wire("a.example.org.", 1) + wire("a.example.org.", 2) + wire("a.example.org.", 3))
        got = b"".join(iter(lambda: sock.recv(4096), b""))
        assert got.count(b"\1a\7example") == 2


# Certificates.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are looked at all the time."""
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.02)


def shown(server: Server, site: Site, name: str) -> bool:
    """Whether handshakes show a certificate of this name."""
    try:
        return data(ask(server, site, cert=name)) == ["192.0.2.1"]
    except ssl.SSLCertVerificationError:
        return False


@pytest.mark.usefixtures("quick")
def test_a_renewed_certificate_is_used_by_handshakes_and_open_connections_go_on(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    with connect(server, site.client()) as sock:
        site.issue("renewed.example.net")
        eventually(lambda: shown(server, site, "renewed.example.net"))
        sock.sendall(wire("a.example.org.", 7))
        assert frame(sock)[:2] == b"\0\7"


@pytest.mark.usefixtures("quick")
def test_a_renewed_certificate_may_have_a_key_of_another_kind(serve: Serve, site: Site) -> None:
    import trustme

    site.issue(NAME, key_type=trustme.KeyType.RSA)
    server = serve(site.block())
    assert data(ask(server, site)) == ["192.0.2.1"]
    site.issue("other.example.net", key_type=trustme.KeyType.ECDSA)
    eventually(lambda: shown(server, site, "other.example.net"))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with connect(server, site.client(maximum_version=version), "other.example.net"):
            pass


@pytest.mark.usefixtures("quick")
def test_a_secrets_folder_is_followed_through_its_swap(serve: Serve, site: Site, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(number: int, name: str) -> None:
        site.issue(name)
        version = mount / f"..{number}"
        version.mkdir()
        for file in ("tls.crt", "tls.key"):
            shutil.copy(site.folder / file, version / file)
        os.symlink(version.name, mount / "..new")
        os.replace(mount / "..new", mount / "..data")

    publish(1, "one.example.net")
    for file in ("tls.crt", "tls.key"):
        os.symlink(f"..data/{file}", mount / file)
    server = serve(site.block(tls=f"tls {mount}"))
    assert data(ask(server, site, cert="one.example.net")) == ["192.0.2.1"]
    publish(2, "two.example.net")
    eventually(lambda: shown(server, site, "two.example.net"))


@pytest.mark.usefixtures("quick")
def test_a_certificate_that_is_half_renewed_leaves_the_one_before_in_use(
    serve: Serve, site: Site, lines: list[str]
) -> None:
    server = serve(site.block())
    key = (site.folder / "tls.key").read_bytes()
    site.issue("renewed.example.net")
    new = (site.folder / "tls.key").read_bytes()
    (site.folder / "tls.key").write_bytes(key)

    def said(text: str) -> list[str]:
        return [line for line in lines if text in line]

    eventually(lambda: said("is not that of the certificate"))
    assert shown(server, site, NAME)
    (site.folder / "tls.key").write_bytes(new)
    eventually(lambda: shown(server, site, "renewed.example.net"))
    [line] = said("is not that of the certificate")
    assert f"{site.folder}/tls.key" in line and "stays in use" in line
    (site.folder / "tls.crt").unlink()
    eventually(lambda: said("does not exist"))
    assert shown(server, site, "renewed.example.net")


@pytest.mark.usefixtures("quick")
def test_a_pipe_in_a_certificates_place_held_everybody(serve: Serve, site: Site, lines: list[str]) -> None:
    server = serve(site.block())
    (site.folder / "tls.crt").unlink()
    os.mkfifo(site.folder / "tls.crt")
    eventually(lambda: any("tls.crt is not a regular file; the previous certificate stays" in line for line in lines))
    assert shown(server, site, NAME)


@pytest.mark.usefixtures("quick")
def test_a_certificate_on_a_file_system_that_hangs_held_everybody(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(site.block())
    begun, over = threading.Event(), threading.Event()
    look = files.look

    def hangs(path: str) -> files.Seen:
        if path.endswith("tls.crt"):
            begun.set()
            over.wait(20)
        return look(path)

    monkeypatch.setattr(files, "look", hangs)
    try:
        assert begun.wait(10)
        for _ in range(5):
            assert shown(server, site, NAME)
        assert not over.is_set()
    finally:
        over.set()


@pytest.mark.usefixtures("quick")
def test_a_certificate_that_took_too_long_to_read_was_not_read_until_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("one")
    waiting, make, late = files.waiting, (tmp_path / "tls.crt").read_text, ["once"]

    async def given_up(what: str, *rest: Any) -> Any:
        if late and what.startswith("reading certificate"):
            late.clear()
            raise TimeoutError(errno.ETIMEDOUT, f"{what} took over 5 s and was given up")
        return await waiting(what, *rest)

    async def run() -> None:
        paths = certificates.TlsFiles(str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))
        identity = certificates.Identity(paths, make)
        identity.start()
        (tmp_path / "tls.crt").write_text("two")
        async with asyncio.timeout(20):
            while identity.current != "two":
                await asyncio.sleep(0.001)
        identity.stop()

    monkeypatch.setattr(files, "waiting", given_up)
    asyncio.run(run())
    assert not late


def test_files_that_make_no_certificate_are_an_error_that_names_them(site: Site, serve: Serve, tmp_path: Path) -> None:
    good, key = f"{tmp_path}/tls.crt", f"{tmp_path}/tls.key"
    other = tmp_path / "other"
    other.mkdir()
    Site(other)
    (tmp_path / "rsa.key").write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "heard")
    heard = os.open(tmp_path / "heard", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "locked").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    wrong = [
        (f"{tmp_path}/gone {key}", "gone does not exist"),
        (f"{good} {tmp_path}/gone", "private key .*gone does not exist"),
        (f"{tmp_path}/text {key}", 'text holds no certificate .* "-----BEGIN CERTIFICATE-----"'),
        (f"{good} {good}", "tls.crt holds no private key"),
        (f"{tmp_path}/broken {key}", "broken .*cannot be read .*: expected PEM files"),
        (f"{good} {other}/tls.key", "is not that of the certificate .*renew both together"),
        (f"{good} {tmp_path}/rsa.key", "is not that of the certificate .*, the first in its file: renew both together"),
        (f"{good} {tmp_path}/locked", "locked"),
        (f"{tmp_path}/nowhere", "nowhere is not a folder"),
        (
            f"{good} {key} {tmp_path}/text {{\n client_auth require_and_verify\n }}",
            "text holds no authority's certificate",
        ),
        (f"{good} {key} {{\n client_auth require\n }}", "keeps no one out"),
        (f"{good} {key} {{\n client_auth maybe\n }}", 'unknown authentication type "maybe"'),
        (f"{good} {key} {{\n min_version 1.1\n }}", "expected 1.2 or 1.3"),
        (f"{good} {key} {{\n keylog {tmp_path}/no/log\n }}", "key log .* cannot be written"),
        # Nobody reads the one; the start, a reload and `check` waited for ever. The other is read.
        (f"{good} {key} {{\n keylog {tmp_path}/pipe\n }}", "key log .*pipe cannot be written: "),
        (f"{good} {key} {{\n keylog {tmp_path}/heard\n }}", "key log .*heard cannot be written: it is not a regular"),
        ("{\n acme example.org\n }", "cert-manager"),
        ("", "CERT KEY"),
    ]
    for words, message in wrong:
        with pytest.raises(CorefileError, match=f"(?s)Corefile:[34]:.*{message}"):
            serve(site.block(tls=f"tls {words}"))
    os.close(heard)


def test_a_certificate_that_has_expired_is_warned_of(serve: Serve, site: Site, lines: list[str]) -> None:
    import datetime

    site.issue(NAME, not_after=datetime.datetime(2020, 2, 3, 4, 5, tzinfo=datetime.UTC))
    server = serve(site.block())
    assert any("tls.crt expired on 2020-02-03 04:05" in line for line in lines)
    assert (
        REGISTRY["kdns_tls_certificate_expires_timestamp_seconds"].slots[(f"{site.folder}/tls.crt",)][0] == 1580702700
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        ask(server, site)


def test_a_certificate_that_is_not_valid_yet_was_not_warned_of(serve: Serve, site: Site, lines: list[str]) -> None:
    import datetime

    site.issue(
        NAME, not_before=datetime.datetime(2120, 2, 3, tzinfo=datetime.UTC),
        not_after=datetime.datetime(2121, 2, 3, tzinfo=datetime.UTC),
    )  # fmt: skip
    serve(site.block())
    assert any(
        "tls.crt is not valid before 2120-02-03 00:00+00:00: until then clients refuse it" in line for line in lines
    )


def test_a_certificate_that_nobody_was_shown_any_more_still_expired_in_the_metrics(
    serve: Serve, site: Site, tmp_path: Path
) -> None:
    series = REGISTRY["kdns_tls_certificate_expires_timestamp_seconds"].slots

    def shown() -> set[str]:
        return {path for (path,) in series if path.startswith(str(tmp_path))}

    other = Site(tmp_path / "other", authority=site.authority)
    server = serve(site.block() + site.block(tls=f"tls {other.folder}", scheme="quic"))
    assert shown() == {f"{site.folder}/tls.crt", f"{other.folder}/tls.crt"}
    server.reload(site.block() + site.block(scheme="quic"))
    assert shown() == {f"{site.folder}/tls.crt"}
    # Not one that a reload that failed had read either.
    assert not server.reload(site.block(tls=f"tls {other.folder}") + site.block(tls="tls /nowhere", zone="b."))
    assert shown() == {f"{site.folder}/tls.crt"}
    assert server.reload(site.block(tls=f"tls {other.folder}", scheme="quic"))
    assert shown() == {f"{other.folder}/tls.crt"}


def test_clients_show_certificates_where_they_must(serve: Serve, site: Site) -> None:
    files = f"{site.folder}/tls.crt {site.folder}/tls.key {site.authority.path}"
    server = serve(site.block(tls=f"tls {files} {{\n client_auth require_and_verify\n }}"))
    known = site.client()
    site.authority.ca.issue_cert("client.example.net").configure_cert(known)
    with connect(server, known) as sock:
        sock.sendall(wire("a.example.org.", 7))
        assert frame(sock)[:2] == b"\0\7"
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)), connect(server, site.client()) as sock:
        sock.sendall(wire("a.example.org.", 7))
        if not sock.recv(1):
            raise EOFError


def test_a_minimum_version_refuses_those_below(serve: Serve, site: Site) -> None:
    server = serve(site.block(tls=f"tls {site.folder}/tls.crt {site.folder}/tls.key {{\n min_version 1.3\n }}"))
    assert data(ask(server, site)) == ["192.0.2.1"]
    with pytest.raises(ssl.SSLError), connect(server, site.client(maximum_version=ssl.TLSVersion.TLSv1_2)):
        pass


def test_the_key_log_is_written_where_it_is_asked_for(serve: Serve, site: Site, lines: list[str]) -> None:
    path = site.folder / "keys.log"
    server = serve(site.block(tls=f"tls {site.folder}/tls.crt {site.folder}/tls.key {{\n keylog {path}\n }}"))
    ask(server, site)
    assert "CLIENT_HANDSHAKE_TRAFFIC_SECRET" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0  # everybody could read it
    assert any("the secrets of all connections are written to" in line for line in lines)


def test_without_tls_the_listener_serves_unencrypted_and_says_so(serve: Serve, site: Site, lines: list[str]) -> None:
    server = serve(site.block(tls="minimal"))
    assert data(server.ask("a.example.org.", tcp=True)) == ["192.0.2.1"]
    assert any("is served unencrypted" in line for line in lines)


def test_a_reload_changes_the_certificate_and_whether_there_is_one(serve: Serve, site: Site, tmp_path: Path) -> None:
    server = serve(site.block())
    other = tmp_path / "other"
    other.mkdir()
    new = Site(other)
    new.issue("new.example.net")
    with connect(server, site.client()) as sock:
        assert server.reload(new.block())
        assert data(ask(server, new, cert="new.example.net")) == ["192.0.2.1"]
        sock.sendall(wire("a.example.org.", 7))
        assert frame(sock)[:2] == b"\0\7"
    assert not server.reload(new.block(tls=f"tls {other}/gone {other}/tls.key"))
    assert data(ask(server, new, cert="new.example.net")) == ["192.0.2.1"]
    assert server.reload(new.block(tls="minimal"))
    assert data(server.ask("a.example.org.", tcp=True)) == ["192.0.2.1"]


# Clients that mean it badly.


def limited(server: Server, seconds: float, half_open: int) -> tls_module.TlsGate:
    """The handshakes of a server's listener, with these limits from now on."""
    (listener,) = next(iter(server.server.listeners.values())).tcp
    gate = listener.tls
    assert gate is not None
    gate.limit, gate.max_half_open = seconds, half_open
    return gate


def test_handshakes_that_stall_end_in_time_and_hold_nobody(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    gate = limited(server, 0.3, 1000)
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(100)]
        for sock in stalled[:50]:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a hello
        assert data(ask(server, site)) == ["192.0.2.1"]
        for sock in stalled:
            sock.settimeout(10)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
    eventually(lambda: results(server)["timeout"] == 100)
    eventually(lambda: not gate.half_open)
    (listener,) = next(iter(server.server.listeners.values())).tcp
    assert not listener.connections


def test_too_many_half_open_handshakes_cost_the_oldest(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    gate = limited(server, 60.0, 20)
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(60)]
        assert data(ask(server, site)) == ["192.0.2.1"]
        stalled[0].settimeout(10)
        with contextlib.suppress(ConnectionError):
            assert stalled[0].recv(1) == b""
        assert results(server)["evicted"] == 41
    eventually(lambda: not gate.half_open)


def test_ten_thousand_half_open_handshakes_are_bounded_and_a_client_among_them_is_served(
    serve: Serve, site: Site
) -> None:
    server = serve(site.block())
    over = threading.Event()
    began: list[None] = []

    def flood() -> None:
        socks: deque[socket.socket] = deque()
        try:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    socks.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
                    socks[-1].sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a hello
                    began.append(None)
                if len(socks) > 1000:  # more than the server keeps
                    socks.popleft().close()
        finally:
            for sock in socks:
                sock.close()

    thread = threading.Thread(target=flood)
    thread.start()
    (listener,) = next(iter(server.server.listeners.values())).tcp
    assert listener.tls is not None
    served = evicted = 0
    try:
        while len(began) < 10_000 or served <= 10:
            try:
                assert data(ask(server, site)) == ["192.0.2.1"]
                served += 1
            except (OSError, EOFError):  # on a busy machine 500 others may come while it shakes hands
                evicted += 1
            assert len(listener.tls.half_open) <= tls_module.MAX_HALF_OPEN + 1
    finally:
        over.set()
        thread.join(30)
    assert served > 10 * evicted
    eventually(lambda: not listener.tls.half_open and not listener.connections, timeout=30)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_client_cannot_begin_the_handshake_anew(serve: Serve, site: Site) -> None:
    """Each renegotiation costs the server a signature (CVE-2011-1473)."""
    server = serve(site.block())
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2", "-CAfile", str(site.authority.path)],
        input="R\nR\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "RENEGOTIATING" in said and "no renegotiation" in said, said[-500:]
    assert data(ask(server, site)) == ["192.0.2.1"]


@pytest.mark.interpreted("it replaces what is compiled in")
def test_where_all_handshakes_wait_for_the_server_the_last_to_come_is_refused(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module.TlsGate, "_turn", lambda self: None)
    server = serve(site.block())
    held = limited(server, 60.0, 5).queue
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(5)]
        for sock in first:
            sock.sendall(b"x" * 8)
        eventually(lambda: len(held) == 5)
        last = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        with contextlib.suppress(ConnectionError):
            assert last.recv(1) == b""
        assert server.thread.call(lambda: [connection.is_closing() for connection in held]) == [False] * 5


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", wire("a.example.org.", 7), os.urandom(200), b"\x16\x03\x01\xff\xff" * 20_000]
)
def test_what_is_no_handshake_is_closed(serve: Serve, site: Site, junk: bytes) -> None:
    server = serve(site.block())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(junk)
        while sock.recv(4096):
            pass
    assert data(ask(server, site)) == ["192.0.2.1"]
    assert results(server)["ok"] == 1


def test_a_client_that_does_not_read_is_not_read_from(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    (listener,) = next(iter(server.server.listeners.values())).tcp
    with connect(server, site.client()) as sock:
        sock.settimeout(0.5)
        sent = 0
        batch = b"".join(wire("a.example.org.", i) for i in range(500))
        with contextlib.suppress(TimeoutError, ssl.SSLError):
            for _ in range(2000):
                sock.sendall(batch)
                sent += len(batch)
        assert sent < 64 << 20
        held = server.thread.call(lambda: [each.transport.get_write_buffer_size() for each in listener.connections])
        assert len(held) == 1 and held[0] < 2 << 20
        assert data(ask(server, site)) == ["192.0.2.1"]


def test_what_comes_behind_a_goodbye_is_not_kept(serve: Serve, site: Site) -> None:
    server = serve(site.block())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = site.client().wrap_bio(incoming, outgoing, server_hostname=NAME)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
        with contextlib.suppress(ssl.SSLError):
            tls.unwrap()
        raw.sendall(outgoing.read())
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                raw.sendall(bytes(65536))
    (listener,) = next(iter(server.server.listeners.values())).tcp
    eventually(lambda: not listener.connections)
    assert data(ask(server, site)) == ["192.0.2.1"]


@pytest.mark.interpreted("it replaces what is compiled in")
def test_handshakes_that_came_together_were_done_in_one_turn_while_queries_waited() -> None:
    turns: list[int] = []
    now = 0

    class Step:
        def step(self) -> None:
            turns.append(now)
            if len(turns) == 3:
                raise RuntimeError("a fault of one handshake")

        def abort(self) -> None:
            pass

    async def run() -> None:
        nonlocal now
        gate = tls_module.TlsGate(None, "tls://test:853", Turns())  # type: ignore[arg-type]
        for _ in range(10):
            gate.wants(Step())  # type: ignore[arg-type]
        while len(turns) < 10:
            await asyncio.sleep(0)
            now += 1
        assert not gate.queue

    asyncio.run(run())
    assert len(set(turns)) == 10


@pytest.mark.interpreted("it replaces what is compiled in")
@pytest.mark.parametrize("answered", [False, True])
def test_changes_of_keys_without_end_held_everybody_for_70_ms(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """All that a socket had was decrypted in one go: 64 KiB may be 2,400 changes of keys (RFC 8446, section 4.6.3)."""
    pieces: list[int] = []
    feed = tls_module.TlsConnection._feed

    def count(self: tls_module.TlsConnection, octets: int) -> None:
        before = len(self.left)
        feed(self, octets)
        pieces.append(before - len(self.left))

    monkeypatch.setattr(tls_module.TlsConnection, "_feed", count)
    monkeypatch.setattr(turns_module, "LOOP_SECONDS", 0.0)  # each piece takes that long
    server = serve(site.block())
    peer = Updater(server.port, site.client(), site.folder, NAME)
    with peer.sock:
        pieces.clear()
        query = wire("a.example.org.", 7)
        peer.sock.sendall(peer.updates(2400, answered=answered) + peer.data(query) + peer.updates(1) + peer.data(query))
        for _ in range(2):
            size = int.from_bytes(peer.read(2), "big")
            assert data(dns.message.from_wire(peer.read(size))) == ["192.0.2.1"]
        assert max(pieces) <= tls_module.PIECE and sum(pieces) > 64_000
    (listener,) = next(iter(server.server.listeners.values())).tcp
    eventually(lambda: not listener.connections)


@pytest.mark.interpreted("it replaces what is compiled in")
def test_who_had_waited_long_for_its_turn_gave_way_once_it_was_answered() -> None:
    """In a flood a client waits for us, and is the oldest by then; those that say nothing were kept instead."""

    class Connection:
        def __init__(self) -> None:
            self.aborted = False

        def abort(self) -> None:
            self.aborted = True
            gate.leave(self)  # type: ignore[arg-type]

        def step(self) -> None:
            gate.answered(self)  # type: ignore[arg-type]

    gate = tls_module.TlsGate(None, "tls://test:853", Turns())  # type: ignore[arg-type]
    gate.max_half_open = 3
    every: list[Any] = [Connection() for _ in range(7)]

    async def run() -> None:
        for each in every[:3]:
            gate.enter(each)
        gate.wants(every[0])
        gate.enter(every[3])
        assert [each.aborted for each in every] == [False, True] + [False] * 5
        while gate.queue:
            await asyncio.sleep(0)
        for each in every[4:]:
            gate.enter(each)

    asyncio.run(run())
    assert [each.aborted for each in every] == [True, True, True, True, False, False, False]
    assert list(gate.stalled) == list(gate.half_open) == every[4:]


@pytest.mark.interpreted("it replaces what is compiled in")
def test_what_a_flood_of_handshakes_had_stayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was free, but below something in use: the C library keeps that."""
    given: list[int] = []
    monkeypatch.setattr(memory, "AFTER", 0.01)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(1))

    async def run() -> None:
        gate = tls_module.TlsGate(None, "tls://test:853", Turns())  # type: ignore[arg-type]
        for count, times in ((tls_module.GIVE_BACK - 1, 0), (tls_module.GIVE_BACK, 1), (5, 1)):
            every: list[Any] = [object() for _ in range(count)]
            for each in every:
                gate.enter(each)
            for each in every:
                gate.leave(each)
            await asyncio.sleep(0.1)
            assert len(given) == times

    asyncio.run(run())


@pytest.mark.interpreted("it replaces what is compiled in")
def test_a_handshake_that_comes_an_octet_at_a_time_is_not_begun(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each octet had a turn, and the first made the state of a connection: 70 KB."""
    steps: list[tls_module.TlsConnection] = []
    step = tls_module.TlsConnection.step
    monkeypatch.setattr(tls_module.TlsConnection, "step", lambda self: steps.append(self) or step(self))
    server = serve(site.block())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = site.client().wrap_bio(incoming, outgoing, server_hostname=NAME)
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        for at in range(len(hello)):
            assert not steps
            sock.sendall(hello[at : at + 1])
        while True:
            incoming.write(sock.recv(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        sock.sendall(outgoing.read())
        tls.write(wire("a.example.org.", 7))
        sock.sendall(outgoing.read())
        reply = b""
        while not reply:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                reply = tls.read(4096)
    assert reply[2:4] == b"\0\7" and len(steps) <= 4


@pytest.mark.interpreted("it replaces what is compiled in")
def test_each_of_many_connections_had_its_octets_decrypted_in_the_same_turn(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(site.block())
    done = [0]
    now = [0.0]
    decrypt = tls_module.TlsConnection._decrypt

    def costly(self: tls_module.TlsConnection, *arguments: Any) -> bool:
        done[0] += 1
        now[0] += 0.001
        return decrypt(self, *arguments)

    batch = b"".join(wire("a.example.org.", i) for i in range(900))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server, site.client())) for _ in range(20)]
        monkeypatch.setattr(tls_module.TlsConnection, "_decrypt", costly)
        monkeypatch.setattr(tls_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        between = between_turns(server, lambda: done[0], 300)
        for sock in socks:
            sock.sendall(batch)
        for sock in socks:
            assert ids(sock, 900) == list(range(900))
    assert done[0] >= 300 and max(between) <= 4
    (listener,) = next(iter(server.server.listeners.values())).tcp
    eventually(lambda: not listener.connections)


@pytest.mark.interpreted("it replaces what is compiled in")
def test_to_decrypt_and_to_answer_took_a_millisecond_of_a_turn_each(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(site.block())
    now = [0.0]
    decrypt = tls_module.TlsConnection._decrypt
    (listener,) = next(iter(server.server.listeners.values())).tcp
    handler = listener.handler

    def decrypting(self: tls_module.TlsConnection, *arguments: Any) -> bool:
        now[0] += 0.0009
        return decrypt(self, *arguments)

    def answering(*arguments: Any) -> Any:
        now[0] += 0.0004
        return handler(*arguments)

    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server, site.client())) for _ in range(10)]
        monkeypatch.setattr(tls_module.TlsConnection, "_decrypt", decrypting)
        monkeypatch.setattr(listener, "handler", answering)
        for module in (tls_module, tcp_connection, connection):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        between = between_turns(server, lambda: now[0], 0.2)
        for sock in socks:
            sock.sendall(b"".join(wire("a.example.org.", i) for i in range(50)))
        for sock in socks:
            assert ids(sock, 50) == list(range(50))
    assert now[0] >= 0.2 and max(between) < 0.003


def test_what_waits_to_be_decrypted_is_not_lost_where_the_client_does_not_always_read(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "LOOP_SECONDS", 0.0)
    server = serve(site.block())
    (listener,) = next(iter(server.server.listeners.values())).tcp
    loop = server.thread.loop
    over = threading.Event()

    def turn(number: int) -> None:
        """Stops and goes on, some turns of the loop each."""
        for each in listener.connections:
            if number % 9 == 0:
                each.pause_writing()
            elif number % 9 == 4:
                each.resume_writing()
        if not over.is_set():
            loop.call_soon(turn, number + 1)

    batch = b"".join(wire("a.example.org.", i) for i in range(1000))
    with connect(server, site.client()) as sock:
        eventually(lambda: listener.connections)
        server.thread.call(turn, 0)
        try:
            for _ in range(5):
                sock.sendall(batch)
                assert ids(sock, 1000) == list(range(1000))
        finally:
            over.set()
