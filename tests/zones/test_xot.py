"""Zone transfers over TLS (RFC 9103), in and out: between kdns and itself, BIND and dnspython; peers that are not who
they should be.
"""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import dns.rdatatype
import dns.tsigkeyring
import dns.xfr
import dns.zone
import pytest

from kdns import watchfile
from kdns.plugins.secondary import client
from kdns.testing import code, data, eventually, free_port
from tests import programs
from tests.fixtures import Serve
from tests.securepeers import NAME, Site
from tests.zones.test_transfers import TSIG, expected, put
from tests.zones.xfrpeers import SECRET, serial


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    path = tmp_path / "db.example.org"
    put(path, 1)
    return path


def primary(site: Site, db: Path, *more: str, to: str = "*") -> str:
    lines = "\n ".join(more)
    return (
        f"tls://example.org:{{port}} {{\n bind 127.0.0.1\n tls {site.folder}/tls.crt {site.folder}/tls.key\n {lines}\n"
        f" transfer {{\n to {to}\n }}\n file {db} {{\n reload 20ms\n }}\n}}\n"
    )


def secondary(site: Site, port: int, *more: str, name: str = NAME, inner: str = "") -> str:
    lines = "\n ".join(more)
    return (
        f"example.org:{{port}} {{\n bind 127.0.0.1\n {lines}\n transfer {{\n to *\n }}\n secondary {{\n"
        f" transfer from tls://127.0.0.1%{name}:{port}\n tls {site.authority.path}\n {inner}\n }}\n}}\n"
    )


def messages(port: int, context: ssl.SSLContext, query: dns.message.Message) -> list[bytes]:
    """What comes over TLS until the SOA is there again."""
    out: list[bytes] = []
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=NAME) as sock,
        sock.makefile("rb") as stream,
    ):
        wire = query.to_wire()
        sock.sendall(len(wire).to_bytes(2, "big") + wire)
        count = 0
        while count < 2:
            out.append(stream.read(int.from_bytes(stream.read(2), "big")))
            records = dns.message.from_wire(out[-1], one_rr_per_rrset=True).answer
            count += sum(rrset.rdtype == dns.rdatatype.SOA for rrset in records)
    return out


def test_a_zone_comes_over_tls_and_is_followed_by_ixfr(serve: Serve, site: Site, db: Path, lines: list[str]) -> None:
    first = serve(primary(site, db))
    second = serve(secondary(site, first.port))
    eventually(lambda: serial(second.port) == 1)
    put(db, 2, "new A 192.0.2.9\n")
    query = dns.message.make_query("example.org.", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)  # a NOTIFY is not encrypted (RFC 9103, section 6.1): the address is what counts

    def followed() -> bool:
        dns.query.udp(query, "127.0.0.1", port=second.port, timeout=5)
        return serial(second.port) == 2

    eventually(followed, step=0.1)
    assert data(second.ask("new.example.org.")) == ["192.0.2.9"]
    assert any(f"from tls://127.0.0.1:{first.port} by IXFR, serial 2" in line for line in lines)


def test_a_signed_zone_transfer_over_tls(serve: Serve, site: Site, db: Path) -> None:
    put(db, 1, "".join(f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(3000)))
    first = serve(primary(site, db, TSIG))
    second = serve(secondary(site, first.port, TSIG, inner="tsig key.example."))
    eventually(lambda: serial(second.port) == 1)


def test_dnspython_has_a_zone_over_tls(serve: Serve, site: Site, db: Path) -> None:
    server = serve(primary(site, db))
    context = site.client()
    context.set_alpn_protocols(["dot"])
    query = dns.message.make_query("example.org.", "AXFR", use_edns=False)
    replies = [dns.message.from_wire(each, xfr=True) for each in messages(server.port, context, query)]
    made = dns.zone.from_xfr(iter(replies), relativize=False)
    found = {
        f"{str(name).lower()} {ttl} {dns.rdatatype.to_text(rdata.rdtype)} {rdata}"
        for name, ttl, rdata in made.iterate_rdatas()
    }
    assert found == expected(db)


@pytest.mark.parametrize("padded", [True, False])
def test_messages_of_a_transfer_are_padded_where_the_query_was(
    serve: Serve, site: Site, db: Path, padded: bool
) -> None:
    put(db, 1, "".join(f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(1500)))
    server = serve(primary(site, db))
    query = dns.message.make_query("example.org.", "AXFR", use_edns=0, pad=128 if padded else 0)
    found = messages(server.port, site.client(), query)
    assert len(found) > 1 and all((len(each) % 468 == 0) == padded for each in found[:-1])
    assert (len(found[-1]) % 468 == 0) == padded


def test_a_primary_with_another_name_is_not_believed(serve: Serve, site: Site, db: Path, lines: list[str]) -> None:
    first = serve(primary(site, db))
    second = serve(secondary(site, first.port, name="other.example"))
    eventually(lambda: any("its certificate is not accepted: Hostname mismatch" in line for line in lines))
    assert code(second.ask("www.example.org.")) == "SERVFAIL"


def test_a_primary_with_a_certificate_of_a_stranger_is_not_believed(
    serve: Serve, site: Site, db: Path, tmp_path: Path, lines: list[str]
) -> None:
    (tmp_path / "other").mkdir()
    first = serve(primary(site, db))
    second = serve(secondary(Site(tmp_path / "other"), first.port))
    eventually(lambda: any("its certificate is not accepted: " in line for line in lines))
    assert code(second.ask("www.example.org.")) == "SERVFAIL"


def test_the_certificate_of_a_primary_without_a_server_name_is_that_of_its_address(
    serve: Serve, site: Site, db: Path, lines: list[str]
) -> None:
    first = serve(primary(site, db))
    second = serve(secondary(site, first.port).replace(f"%{NAME}", ""))
    eventually(lambda: any("IP address mismatch" in line for line in lines))
    site.issue("127.0.0.1")
    eventually(lambda: serial(second.port) == 1)


def test_the_last_good_zone_stays_when_the_primary_becomes_somebody_else(
    serve: Serve, site: Site, db: Path, lines: list[str]
) -> None:
    db.write_text(db.read_text().replace("1 3600 1 86400", "1 1 1 86400"))
    first = serve(primary(site, db))
    second = serve(secondary(site, first.port))
    eventually(lambda: serial(second.port) == 1)
    site.issue("other.example")
    eventually(lambda: any("its certificate is not accepted" in line for line in lines))
    assert data(second.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]
    site.issue(NAME)
    put(db, 2)
    eventually(lambda: serial(second.port) == 2)


def test_a_reload_takes_another_authority_and_keeps_the_zone(
    serve: Serve, site: Site, db: Path, tmp_path: Path, lines: list[str]
) -> None:
    db.write_text(db.read_text().replace("1 3600 1 86400", "1 1 1 86400"))
    first = serve(primary(site, db))
    second = serve(secondary(site, first.port))
    eventually(lambda: serial(second.port) == 1)
    (tmp_path / "other").mkdir()
    other = Site(tmp_path / "other")
    for name in ("tls.key", "tls.crt", "ca.pem"):
        (other.folder / name).replace(site.folder / name)
    assert second.reload(second.text + "\n")
    assert data(second.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]
    put(db, 2)
    eventually(lambda: serial(second.port) == 2)
    assert not any("Failed to transfer" in line for line in lines[-3:])


@contextlib.contextmanager
def listening(said: bytes | None) -> Iterator[int]:
    """A listener that says something to whoever comes, in plain text, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    if said is not None:
                        connection.sendall(said)

        threading.Thread(target=run, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            for each in held:
                each.close()


@pytest.mark.parametrize(("said", "expected"), [(None, "no connection within 0.3 s"), (b"\0\x0c" + bytes(40), "TLS: "),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS: ")])  # fmt: skip
def test_what_is_no_tls_server_is_named(
    serve: Serve, site: Site, lines: list[str], monkeypatch: pytest.MonkeyPatch, said: bytes | None, expected: str
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.3)
    with listening(said) as port:
        serve(secondary(site, port))
        eventually(lambda: any(f"from tls://127.0.0.1:{port}: {expected}" in line for line in lines))


@pytest.mark.parametrize("alpn", ["", "h2"])
def test_a_tls_server_that_does_not_choose_dot_is_not_asked(
    serve: Serve, site: Site, lines: list[str], alpn: str
) -> None:
    context = site.authority.context(NAME, alpn=alpn)
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
                        asked.append(secure.recv(2))

        threading.Thread(target=run, daemon=True).start()
        serve(secondary(site, server.getsockname()[1]))
        eventually(lambda: any("not chosen the protocol `dot`" in line for line in lines))
        server.shutdown(socket.SHUT_RDWR)
    assert not any(asked)


def test_a_primary_that_knows_no_tls_1_3_is_named(serve: Serve, site: Site, lines: list[str]) -> None:
    context = site.authority.context(NAME, alpn="dot")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with contextlib.suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=run, daemon=True).start()
        serve(secondary(site, server.getsockname()[1]))
        eventually(lambda: any("protocol version" in line for line in lines))
        server.shutdown(socket.SHUT_RDWR)


# Peers.

KEYS = f'key key.example. {{ algorithm hmac-sha256; secret "{SECRET}"; }};\n'


def named(folder: Path, port: int, site: Site, tls: int, zone: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "named.conf").write_text(
        f'{KEYS}tls ours {{ cert-file "{site.folder}/tls.crt"; key-file "{site.folder}/tls.key"; }};\n'
        f'tls kdns {{ ca-file "{site.authority.path}"; remote-hostname "{NAME}"; }};\n'
        f'options {{ directory "{folder}"; listen-on port {port} {{ 127.0.0.1; }};'
        f" listen-on port {tls} tls ours {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};"
        f' pid-file "{folder}/pid"; recursion no; session-keyfile none; dnssec-validation no; notify-delay 0; }};\n'
        f'controls {{ }};\nzone "example.org" {{ {zone} }};\n'
    )
    return ["named", "-c", str(folder / "named.conf"), "-g", "-n", "1"]


needs_bind = programs.needs("named")


@needs_bind
def test_kdns_has_a_zone_of_bind_over_tls(serve: Serve, site: Site, db: Path, tmp_path: Path, lines: list[str]) -> None:
    tls, ours = free_port(), free_port()
    zone = (
        f'type primary; file "{db}"; ixfr-from-differences yes; also-notify {{ 127.0.0.1 port {ours}; }};'
        f" notify explicit; allow-transfer port {tls} transport tls {{ key key.example.; }};"
    )
    with programs.running(tmp_path / "bind", lambda port: named(tmp_path / "bind", port, site, tls, zone)) as program:
        program.until(lambda: serial(program.port) == 1)
        server = serve(secondary(site, tls, TSIG, inner="tsig key.example."), port=ours)
        program.until(lambda: serial(ours) == 1)
        put(db, 2, "new A 192.0.2.9\n")
        program.hang_up()
        program.until(lambda: serial(ours) == 2)
        assert data(server.ask("new.example.org.")) == ["192.0.2.9"]
    assert any(f"from tls://127.0.0.1:{tls} by IXFR, serial 2" in line for line in lines)


@needs_bind
def test_bind_has_a_zone_of_kdns_over_tls(serve: Serve, site: Site, db: Path, tmp_path: Path) -> None:
    tls = free_port()
    server = serve(primary(site, db, TSIG))
    put(db, 1, "".join(f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(3000)))
    zone = (
        f"type secondary; primaries {{ 127.0.0.1 port {server.port} key key.example. tls kdns; }};"
        " min-refresh-time 1; max-refresh-time 1; notify no;"
    )
    with programs.running(tmp_path / "bind", lambda port: named(tmp_path / "bind", port, site, tls, zone)) as program:
        program.until(lambda: serial(program.port) == 1)
        put(db, 2, "new A 192.0.2.9\n")
        program.until(lambda: serial(program.port) == 2)


@programs.needs("kdig")
def test_kdig_has_a_zone_over_tls(serve: Serve, site: Site, db: Path) -> None:
    server = serve(primary(site, db))
    words = ["kdig", "@127.0.0.1", "-p", str(server.port), f"+tls-ca={site.authority.path}", f"+tls-hostname={NAME}"]
    done = subprocess.run([*words, "example.org.", "AXFR"], capture_output=True, text=True, timeout=90)
    assert "www.example.org." in done.stdout and "Received 468 B" in done.stdout, done.stdout + done.stderr
