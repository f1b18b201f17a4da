"""Primaries of a secondary that are host names: who is asked for them, when, and what nobody waits for."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from kdns import watchfile
from kdns.plugins.secondary import primaries
from kdns.testing import Server, answer, code, data, eventually, free_port
from kdns.upstream import lookup
from tests.fixtures import Serve, Start
from tests.securepeers import NAME, Site
from tests.zones.test_transfers import primary, put
from tests.zones.xfrpeers import serial


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    monkeypatch.setattr(primaries, "AGAIN", 0.05)
    path = tmp_path / "db.example.org"
    put(path, 1)
    return path


def corefile(primary: str, resolver: str, zones: str = "", inner: str = "") -> str:
    return (
        f".:{{port}} {{\n bind 127.0.0.1\n secondary {zones or 'example.org'} {{\n transfer from {primary}\n"
        f" resolver {resolver}\n {inner}\n }}\n hosts /nowhere {{\n 192.0.2.7 other.test\n fallthrough\n }}\n}}\n"
    )


class Names:
    """What a resolver says: addresses by name; None: nothing at all."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | None = list(addresses)
        self.rcode = 0
        self.asked = 0

    def __call__(self, query: dns.message.Message, proto: str) -> dns.message.Message | None:
        self.asked += 1
        if self.addresses is None:
            return None
        name = str(query.question[0].name)
        reply = answer(query)
        if self.addresses and query.question[0].rdtype == dns.rdatatype.A:
            # One by one: dnspython shuffles the records of an RRset.
            reply.answer += [dns.rrset.from_text(name, 60, "IN", "A", each) for each in self.addresses]
        reply.set_rcode(dns.rcode.Rcode(self.rcode))
        return reply


def test_a_primary_by_name_is_looked_up_and_all_its_addresses_are_asked_in_order(
    serve: Serve, upstream: Start, db: Path, lines: list[str]
) -> None:
    first = serve(primary(db))
    names = upstream(Names("127.0.0.8", "127.0.0.1"))
    server = serve(corefile(f"ns.example.net:{first.port}", names.address))
    eventually(lambda: serial(server.port) == 1)
    assert any(f"Failed to transfer example.org. from 127.0.0.8:{first.port}: " in line for line in lines)
    query = dns.message.make_query("example.org.", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    for source, expected in (("127.0.0.1", 0), ("127.0.0.8", 0), ("127.0.0.9", dns.rcode.REFUSED)):
        reply = dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5, source=source)
        assert reply.rcode() == expected


def test_a_name_that_moves_is_followed(
    serve: Serve, upstream: Start, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primaries, "FRESH", 0.05)
    db.write_text(db.read_text().replace("1 3600 1 86400", "1 1 1 86400"))
    said = Names("127.0.0.1")
    with Server(primary(db)) as first:
        server = serve(corefile(f"ns.example.net:{first.port}", upstream(said).address))
        eventually(lambda: serial(server.port) == 1)
        port = first.port
    db.write_text(db.read_text().replace("1 1 1 86400", "7 1 1 86400"))
    serve(primary(db).replace("bind 127.0.0.1", "bind 127.0.0.3"), port=port, host="127.0.0.3")
    said.addresses = ["127.0.0.3"]
    eventually(lambda: serial(server.port) == 7)


def test_a_name_that_cannot_be_resolved_any_more_keeps_its_addresses(
    serve: Serve, upstream: Start, db: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primaries, "FRESH", 0.05)
    db.write_text(db.read_text().replace("1 3600 1 86400", "1 1 1 86400"))
    said = Names("127.0.0.1")
    first = serve(primary(db))
    server = serve(corefile(f"ns.example.net:{first.port}", upstream(said).address))
    eventually(lambda: serial(server.port) == 1)
    said.addresses, said.rcode = [], 2
    put(db, 2)
    eventually(lambda: serial(server.port) == 2)
    eventually(lambda: any("ns.example.net cannot be resolved: " in line and "SERVFAIL" in line for line in lines))


def test_a_name_that_is_not_there_yet_is_tried_again_and_named(
    serve: Serve, upstream: Start, db: Path, lines: list[str]
) -> None:
    said = Names()
    first = serve(primary(db))
    server = serve(corefile(f"ns.example.net:{first.port}", upstream(said).address))
    where = f"ns.example.net:{first.port}: ns.example.net cannot be resolved: it has no address"
    eventually(lambda: any(f"Failed to transfer example.org. from {where}" in line for line in lines))
    assert code(server.ask("www.example.org.")) == "SERVFAIL"
    said.addresses = ["127.0.0.1"]
    eventually(lambda: serial(server.port) == 1)


def test_a_resolver_that_is_silent_holds_nobody(
    serve: Serve, upstream: Start, db: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "TIMEOUT", 0.4)
    said = Names()
    said.addresses = None
    server = serve(corefile(f"ns.example.net:{free_port()}", upstream(said).address))
    worst, end = 0.0, time.monotonic() + 1.0
    while time.monotonic() < end:
        began = time.monotonic()
        assert data(server.ask("other.test.")) == ["192.0.2.7"]
        worst = max(worst, time.monotonic() - began)
    assert worst < 0.3 and said.asked
    eventually(lambda: any("ns.example.net cannot be resolved" in line for line in lines))


def test_many_zones_of_one_primary_look_it_up_once(serve: Serve, upstream: Start, db: Path) -> None:
    said = Names("127.0.0.1")
    zones = " ".join(f"z{i}.example" for i in range(100))
    first = serve(f"example:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n file {db} {zones}\n}}\n")
    server = serve(corefile(f"ns.example.net:{first.port}", upstream(said).address, zones))
    eventually(lambda: all(code(server.ask(f"www.z{i}.example.")) == "NOERROR" for i in range(100)))
    assert said.asked == 2  # A and AAAA


@contextlib.contextmanager
def system(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Iterator[list[str]]:
    """The system's resolver, which knows one name."""
    asked: list[str] = []
    usual: Any = socket.getaddrinfo

    def getaddrinfo(host: str, *more: object, **options: object) -> Any:
        if host != "ns.example.net.":
            return usual(host, *more, **options)
        asked.append(threading.current_thread().name)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (each, 53)) for each in addresses]

    monkeypatch.setattr(lookup.socket, "getaddrinfo", getaddrinfo)
    yield asked


def test_without_a_resolver_the_system_is_asked_in_a_thread(
    serve: Serve, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serve(primary(db))
    with system(monkeypatch, "127.0.0.1") as asked:
        text = corefile(f"ns.example.net:{first.port}", "127.0.0.1").replace(" resolver 127.0.0.1\n", "")
        server = serve(text)
        eventually(lambda: serial(server.port) == 1)
    assert asked == ["files"]


def test_the_certificate_of_a_primary_by_name_is_that_of_its_name(
    serve: Serve, upstream: Start, db: Path, tmp_path: Path, lines: list[str]
) -> None:
    site = Site(tmp_path)
    first = serve(
        primary(db, f"tls {tmp_path}/tls.crt {tmp_path}/tls.key").replace(
            "example.org:{port}", "tls://example.org:{port}"
        )
    )
    names = upstream(Names("127.0.0.1"))
    trust = f"tls {site.authority.path}"
    other = serve(corefile(f"tls://ns.example.net:{first.port}", names.address, inner=trust))
    eventually(lambda: any("its certificate is not accepted: Hostname mismatch" in line for line in lines))
    assert code(other.ask("www.example.org.")) == "SERVFAIL"
    server = serve(corefile(f"tls://{NAME}:{first.port}", names.address, inner=trust))
    eventually(lambda: serial(server.port) == 1)
