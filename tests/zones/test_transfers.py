"""Transfers out and in: AXFR, IXFR, NOTIFY, TSIG; between kdns and itself, Knot and BIND; primaries that lie or are
gone.
"""

import asyncio
import base64
import contextlib
import functools
import gc
import itertools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.tsigkeyring
import dns.xfr
import dns.zone
import pytest

from kdns import watchfile
from kdns.corefile import CorefileError
from kdns.dns import tsig
from kdns.dns.name import from_text
from kdns.dns.tsig import Key
from kdns.plugins.secondary import Secondary
from kdns.plugins.secondary.primaries import HostName, Place, Primaries
from kdns.plugins.secondary.zone import SecondaryZone
from kdns.plugins.transfer import TransferPlugin
from kdns.store import zone_transfer
from kdns.testing import Server, code, data, eventually, free_port
from tests import programs
from tests.fixtures import Serve
from tests.zones import peers
from tests.zones.relay import Relay
from tests.zones.xfrpeers import COMMANDS, KEYS, SECRET, serial, urged

ZONE = """\
$TTL 300
@ SOA ns hostmaster {serial} 3600 1 86400 60
@ NS ns
ns A 192.0.2.1
www A 192.0.2.2
www A 192.0.2.3
sub NS ns.sub
ns.sub A 192.0.2.4
*.wild TXT "wild"
a.b.c MX 10 www
"""


def put(path: Path, serial: int, more: str = "") -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(ZONE.replace("{serial}", str(serial)) + more)
    os.replace(new, path)


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    path = tmp_path / "db.example.org"
    put(path, 1)
    return path


def primary(path: Path, *more: str, to: str = "*", inner: str = "") -> str:
    lines = "\n ".join(more)
    return (
        f"example.org:{{port}} {{\n bind 127.0.0.1\n {lines}\n transfer {{\n to {to}\n {inner}\n }}\n"
        f" file {path} {{\n reload 20ms\n }}\n}}\n"
    )


def secondary(port: int, *more: str, inner: str = "") -> str:
    lines = "\n ".join(more)
    return (
        f"example.org:{{port}} {{\n bind 127.0.0.1\n {lines}\n transfer {{\n to *\n }}\n"
        f" secondary {{\n transfer from 127.0.0.1:{port}\n {inner}\n }}\n}}\n"
    )


TSIG = f"tsig {{\n secret key.example. {SECRET}\n require AXFR IXFR\n }}"


def whole(port: int, **options: object) -> set[str]:
    made = dns.zone.Zone("example.org.", relativize=False)
    query, _ = dns.xfr.make_query(made, **options)  # type: ignore[arg-type]
    dns.query.inbound_xfr("127.0.0.1", made, query, port=port, timeout=10)
    return {
        f"{str(name).lower()} {ttl} {dns.rdatatype.to_text(rdata.rdtype)} {rdata}"
        for name, ttl, rdata in made.iterate_rdatas()
    }


def expected(path: Path) -> frozenset[str]:
    return meant(path.read_text())


@functools.cache
def meant(text: str) -> frozenset[str]:
    """What a zone file says; to read one of 3,000 records takes half a second, and tests share them."""
    made = dns.zone.from_text(text, "example.org.", relativize=False)
    return frozenset(
        f"{str(name).lower()} {ttl} {dns.rdatatype.to_text(rdata.rdtype)} {rdata}"
        for name, ttl, rdata in made.iterate_rdatas()
    )


# Out.


def test_a_file_is_given_whole(serve: Serve, db: Path) -> None:
    assert whole(serve(primary(db)).port) == expected(db)


def test_ixfr_gives_the_steps_since_a_version(serve: Serve, db: Path) -> None:
    server = serve(primary(db))
    before = expected(db)
    put(db, 2, "new A 192.0.2.9\n")
    eventually(lambda: serial(server.port) == 2)
    put(db, 3, 'new A 192.0.2.9\nnewer TXT "x"\n')
    eventually(lambda: serial(server.port) == 3)
    made = dns.zone.from_text(
        "\n".join(sorted(before, key=lambda line: " SOA " not in line)).replace(" SOA ", " IN SOA "),
        "example.org.",
        relativize=False,
    )
    query, _ = dns.xfr.make_query(made)
    assert query.question[0].rdtype == dns.rdatatype.IXFR
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        wire = query.to_wire()
        connection.sendall(len(wire).to_bytes(2, "big") + wire)
        stream = connection.makefile("rb")
        reply = dns.message.from_wire(
            stream.read(int.from_bytes(stream.read(2), "big")), one_rr_per_rrset=True, xfr=True
        )
    kinds = [(dns.rdatatype.to_text(rrset.rdtype), getattr(rrset[0], "serial", 0)) for rrset in reply.answer]
    assert kinds == [("SOA", 3), ("SOA", 1), ("SOA", 2), ("A", 0), ("SOA", 2), ("SOA", 3), ("TXT", 0), ("SOA", 3)]
    dns.query.inbound_xfr("127.0.0.1", made, query, port=server.port, timeout=5)
    assert {
        f"{name} {ttl} {dns.rdatatype.to_text(rdata.rdtype)} {rdata}" for name, ttl, rdata in made.iterate_rdatas()
    } == expected(db)


def test_ixfr_from_a_version_that_is_not_known_gives_the_whole_zone(serve: Serve, db: Path) -> None:
    server = serve(primary(db))
    put(db, 5)
    eventually(lambda: serial(server.port) == 5)
    made = dns.zone.from_text(db.read_text().replace(" 5 3600", " 3 3600"), "example.org.", relativize=False)
    query, _ = dns.xfr.make_query(made)
    dns.query.inbound_xfr("127.0.0.1", made, query, port=server.port, timeout=5)
    assert made.get_soa().serial == 5


ALGORITHMS = [
    "hmac-md5.sig-alg.reg.int.", "hmac-sha1.", "hmac-sha224.", "hmac-sha256.", "hmac-sha384.", "hmac-sha512.",
    "hmac-sha256-128.", "hmac-sha384-192.", "hmac-sha512-256.",
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signed_transfer_is_signed_message_by_message(serve: Serve, db: Path, algorithm: str) -> None:
    put(db, 1, "".join(f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(3000)))  # several messages
    server = serve(primary(db, TSIG))
    options = {"keyring": KEYS, "keyname": "key.example.", "keyalgorithm": algorithm}
    assert whole(server.port, **options) == expected(db)
    with pytest.raises(dns.xfr.TransferError):
        whole(server.port)


def test_a_signed_query_gets_a_signed_reply_each_time(serve: Serve, db: Path) -> None:
    server = serve(primary(db, TSIG))
    for name, rcode in (("www.example.org.", 0), ("nope.example.org.", 3), ("www.example.org.", 0)):
        query = dns.message.make_query(name, "A", use_edns=0)
        query.use_tsig(KEYS, "key.example.")
        for send in (dns.query.udp, dns.query.tcp):
            reply = send(query, "127.0.0.1", port=server.port, timeout=5)
            assert reply.had_tsig and reply.rcode() == rcode
    assert not server.ask("www.example.org.").had_tsig


@pytest.mark.parametrize(("algorithm", "least", "most"), [
    ("hmac-sha256.", 16, 32), ("hmac-sha256-128.", 16, 16), ("hmac-sha384-192.", 24, 24), ("hmac-sha512-256.", 32, 32),
])  # fmt: skip
def test_a_mac_is_as_long_as_its_algorithm_allows(
    serve: Serve, db: Path, algorithm: str, least: int, most: int
) -> None:
    server = serve(primary(db, TSIG))
    made = Key(from_text("key.example."), base64.b64decode(SECRET), from_text(algorithm))
    query = dns.message.make_query("www.example.org.", "A").to_wire()
    now = int(time.time())
    mac = tsig.mac_of(query, made, now, 300, 0, b"")
    for size in (9, least - 1, least, most, most + 1):
        wire = tsig.with_record(query, made, now, mac.ljust(size, b"x")[:size], 0, b"", query[:2])
        reply = server.raw(wire)
        assert reply is not None
        assert reply[3] & 15 == (dns.rcode.NOERROR if least <= size <= most else dns.rcode.FORMERR), size


@pytest.mark.parametrize(("name", "secret", "shift", "error"), [
    ("other.example.", SECRET, 0, dns.tsig.PeerBadKey), ("key.example.", "d3Jvbmc=", 0, dns.tsig.PeerBadSignature),
    ("key.example.", SECRET, -1000, dns.tsig.PeerBadTime), ("KEY.Example.", SECRET, 0, None),
])  # fmt: skip
def test_a_bad_signature_is_told_why(
    serve: Serve,
    db: Path,
    name: str,
    secret: str,
    shift: int,
    error: type[Exception] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(primary(db, TSIG))
    query = dns.message.make_query("www.example.org.", "A")
    query.use_tsig(dns.tsigkeyring.from_text({name: secret}), name)
    usual = time.time
    monkeypatch.setattr(dns.message.time, "time", lambda: usual() + shift)
    wire = query.to_wire()
    monkeypatch.setattr(dns.message.time, "time", usual)
    raw = server.raw(wire)
    assert raw is not None
    if error is None:
        assert dns.message.from_wire(raw, keyring=query.keyring, request_mac=query.mac).rcode() == 0
        return
    with pytest.raises(error):
        dns.message.from_wire(raw, keyring=query.keyring, request_mac=query.mac)
    assert raw[3] & 15 == dns.rcode.NOTAUTH


def test_the_place_of_a_signature_and_its_form_are_checked(serve: Serve, db: Path) -> None:
    server = serve(primary(db, TSIG))
    query = dns.message.make_query("www.example.org.", "A")
    query.use_tsig(KEYS, "key.example.")
    wire = query.to_wire()
    at = wire.rindex(b"\x03key\x07example\0")
    for broken in (
        wire[: at + 13] + b"\0\xfa\0\1" + wire[at + 17 :],  # class IN
        wire + wire[at:],  # two
        wire[:-2],  # cut
    ):
        broken = broken[:10] + (2 if len(broken) > len(wire) else 1).to_bytes(2, "big") + broken[12:]
        reply = server.raw(broken)
        assert reply is not None and reply[3] & 15 == dns.rcode.FORMERR


# In.


@pytest.mark.parametrize("signed", ["", "hmac-sha256", "hmac-sha256-128", "hmac-sha384-192", "hmac-sha512-256"])
def test_a_secondary_follows_its_primary(serve: Serve, db: Path, signed: str) -> None:
    port = free_port()
    keys = (TSIG,) if signed else ()
    inner = f"tsig key.example. {signed}" if signed else ""
    first = serve(primary(db, *keys, to=f"* 127.0.0.1:{port}", inner=inner))
    second = serve(secondary(first.port, *keys, inner=inner), port=port)
    eventually(lambda: serial(port) == 1)
    assert (
        data(second.ask("x.wild.example.org.", "TXT")) == ['"wild"']
        and second.ask("www.example.org.").flags & dns.flags.AA
    )
    put(db, 2, "new A 192.0.2.9\n".replace("A", "A") + "deep.er.new A 192.0.2.10\n")
    eventually(lambda: serial(port) == 2)
    assert (
        data(second.ask("deep.er.new.example.org.")) == ["192.0.2.10"]
        and code(second.ask("er.new.example.org.")) == "NODATA"
    )
    db.with_name("x").write_text("")
    put(db, 3)
    eventually(lambda: serial(port) == 3)
    assert code(second.ask("er.new.example.org.")) == "NXDOMAIN"
    options = {"keyring": KEYS, "keyname": "key.example."} if signed else {}
    assert whole(port, **options) == expected(db)


def test_a_signed_zone_stays_whole_through_its_changes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not programs.find("dnssec-signzone"):
        pytest.skip("dnssec-signzone is not installed")
    monkeypatch.setattr(watchfile, "SETTLE", 0.01)
    text = ZONE.replace("{serial}", "1")
    path = peers.signed(tmp_path, "example.org.", text, "-3", "ab", "-H", "1")
    port = free_port()
    first = serve(primary(path, to=f"* 127.0.0.1:{port}"))
    second = serve(secondary(first.port), port=port)
    eventually(lambda: serial(port) == 1)
    plain = tmp_path / "example.org.plain"
    plain.write_text(text.replace(" 1 3600", " 2 3600") + "new.ly A 192.0.2.77\n")
    out = tmp_path / "next"
    signer = programs.find("dnssec-signzone")
    assert signer
    subprocess.run(
        [signer, "-S", "-K", str(tmp_path), "-o", "example.org.", "-f", str(out), "-O", "full", "-3", "ab", "-H", "1",
            str(plain)],
        check=True, capture_output=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    os.replace(out, path)
    eventually(lambda: serial(port) == 2)
    for name in (
        "new.ly.example.org.",
        "ly.example.org.",
        "nope.example.org.",
        "x.wild.example.org.",
        "sub.example.org.",
    ):
        for rtype in ("A", "TXT"):
            replies = [each.ask(name, rtype, want_dnssec=True, tcp=True) for each in (first, second)]
            assert [sorted(map(str, part)) for part in replies[0].sections[1:]] == [
                sorted(map(str, part)) for part in replies[1].sections[1:]
            ]
    assert whole(port) == expected(path)


def test_a_large_zone_comes_whole_and_in_order(serve: Serve, db: Path) -> None:
    put(db, 1, "".join(f"h{i}.{i % 7}.x A 10.{i >> 16}.{i >> 8 & 255}.{i & 255}\n" for i in range(6000)))
    first = serve(primary(db))
    second = serve(secondary(first.port))
    eventually(lambda: serial(second.port) == 1)
    assert whole(second.port) == expected(db) and code(second.ask("3.x.example.org.")) == "NODATA"


def test_before_the_first_transfer_a_zone_is_servfail_with_a_reason(serve: Serve) -> None:
    server = serve(secondary(free_port()))
    reply = server.ask("www.example.org.", use_edns=0)
    assert code(reply) == "SERVFAIL"
    assert [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)] == [14]
    assert code(server.ask("example.org.", "AXFR", tcp=True)) == "SERVFAIL"


def test_a_zone_whose_primary_is_gone_expires_and_comes_back(serve: Serve, db: Path) -> None:
    db.write_text(db.read_text().replace("1 3600 1 86400", "1 1 1 2"))
    with Server(primary(db)) as first:
        second = serve(secondary(first.port))
        eventually(lambda: serial(second.port) == 1)
        text, port = first.text, first.port

    def expired() -> bool:
        reply = second.ask("www.example.org.", use_edns=0)
        return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)] == [24]

    eventually(expired)
    serve(text, port=port)
    eventually(lambda: serial(second.port) == 1)


def test_notify_is_taken_from_primaries_only(serve: Serve, db: Path, lines: list[str]) -> None:
    server = serve(secondary(serve(primary(db)).port))
    eventually(lambda: serial(server.port) == 1)
    query = dns.message.make_query("example.org.", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    query.flags |= dns.flags.AA
    reply = dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5)
    assert reply.rcode() == 0 and reply.opcode() == dns.opcode.NOTIFY and reply.flags & dns.flags.AA
    assert (
        dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5, source="127.0.0.9").rcode() == dns.rcode.REFUSED
    )
    assert any("127.0.0.9, which is not a primary" in line for line in lines)
    other = dns.message.make_query("example.net.", "SOA")
    other.set_opcode(dns.opcode.NOTIFY)
    assert dns.query.udp(other, "127.0.0.1", port=server.port, timeout=5).rcode() == dns.rcode.REFUSED


def test_notify_to_a_server_without_secondaries_is_not_implemented(serve: Serve, db: Path) -> None:
    query = dns.message.make_query("example.org.", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    assert dns.query.udp(query, "127.0.0.1", port=serve(primary(db)).port, timeout=5).rcode() == dns.rcode.NOTIMP


@contextlib.contextmanager
def liar(messages: Callable[[dns.message.Message], Iterable[bytes]]) -> Iterator[int]:
    """A primary that answers an AXFR over TCP with what a function says, and then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with (
                    connection,
                    connection.makefile("rb") as stream,
                    contextlib.suppress(OSError, dns.exception.DNSException),
                ):
                    query = dns.message.from_wire(stream.read(int.from_bytes(stream.read(2), "big")), keyring=False)
                    for each in messages(query):
                        connection.sendall(len(each).to_bytes(2, "big") + each)

        threading.Thread(target=run, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


SOA = ("example.org.", "SOA", "ns.example.org. h.example.org. 7 3600 1 86400 60")


def said(query: dns.message.Message, *records: tuple[str, str, str], rcode: int = 0) -> bytes:
    reply = dns.message.make_response(query)
    reply.set_rcode(dns.rcode.Rcode(rcode))
    for name, rtype, rdata in records:
        reply.answer.append(dns.rrset.from_text(name, 60, "IN", rtype, rdata))
    return reply.to_wire(max_size=65535)


WWW = ("www.example.org.", "A", "192.0.2.2")


@pytest.mark.parametrize(("messages", "expected"), [
    (lambda query: [said(query, WWW, SOA)], "does not begin with the zone's SOA"),
    (lambda query: [said(query, SOA, WWW)], "bytes read"),
    (lambda query: [said(query, rcode=5)], "the primary says REFUSED"),
    (lambda query: [said(query)], "a message without records"),
    (lambda query: [said(query, SOA, WWW, (*SOA[:2], SOA[2].replace(" 7 ", " 8 ")))], "another SOA at the end"),
    (lambda query: [b"\0" * 5], "without a header"), (lambda query: [said(query, SOA, WWW, SOA)[:-3]], "past the end"),
    (lambda query: [said(query, SOA), b"\xff" * 40], "not a reply to the transfer"),
])  # fmt: skip
def test_a_primary_that_lies_or_breaks_off_changes_nothing(
    serve: Serve, lines: list[str], messages: Callable[[dns.message.Message], list[bytes]], expected: str
) -> None:
    with liar(messages) as port:
        server = serve(secondary(port))
        eventually(lambda: any(expected in line for line in lines if "Failed to transfer" in line))
        assert code(server.ask("www.example.org.")) == "SERVFAIL"


@pytest.mark.parametrize("more", [lambda i: (f"h{i}.example.org.", *WWW[1:]), lambda i: WWW])
def test_a_transfer_that_never_ends_is_broken_off_and_changes_nothing(
    serve: Serve, lines: list[str], monkeypatch: pytest.MonkeyPatch, more: Callable[[int], tuple[str, str, str]]
) -> None:
    monkeypatch.setattr(zone_transfer, "MAX_RECORDS", 2000)

    def endless(query: dns.message.Message) -> Iterator[bytes]:
        yield said(query, SOA)
        for i in itertools.count():
            yield said(query, more(i))

    with liar(endless) as port:
        server = serve(secondary(port))
        eventually(lambda: any("a transfer of more than 2,000 records" in line for line in lines))
        assert code(server.ask("www.example.org.")) == "SERVFAIL"


def test_an_unsigned_transfer_is_refused_where_a_signed_one_was_asked(serve: Serve, lines: list[str]) -> None:
    with liar(lambda query: [said(query, SOA, WWW, SOA)]) as port:
        server = serve(secondary(port, TSIG, inner="tsig key.example."))
        eventually(lambda: any("Failed to transfer" in line and "TSIG" in line for line in lines))
        assert code(server.ask("www.example.org.")) == "SERVFAIL"


def test_the_next_primary_is_asked_where_one_fails(serve: Serve, db: Path) -> None:
    good = serve(primary(db))
    server = serve(
        secondary(free_port()).replace("transfer from", f"transfer from 127.0.0.1:{free_port()} 127.0.0.1:{good.port}")
    )
    eventually(lambda: serial(server.port) == 1)


def test_a_reload_of_the_corefile_keeps_the_zone(serve: Serve, db: Path) -> None:
    with Server(primary(db)) as first:
        server = serve(secondary(first.port))
        eventually(lambda: serial(server.port) == 1)
    assert server.reload(server.text.replace("transfer {", "errors\n transfer {", 1))
    assert data(server.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]


@pytest.mark.parametrize(("text", "expected"), [
    ("secondary", "needs `transfer from`"), ("secondary {\n transfer to *\n }", "expected `from`"),
    ("secondary {\n transfer from ns..example.\n }", "expected an address or a host name"),
    ("secondary {\n transfer from 10.0.0\n }", "expected an address or a host name"),
    ("secondary {\n transfer from https://192.0.2.1\n }", "over TCP or, by tls://, over TLS"),
    ("secondary {\n transfer from 192.0.2.1\n tls ca.pem\n }", "no primary is asked over TLS"),
    ("secondary {\n transfer from 192.0.2.1\n tls_servername ns.example\n }", "no primary is asked over TLS"),
    ("secondary {\n transfer from tls://192.0.2.1\n tls nowhere.pem\n }", "tls nowhere.pem: No such file"),
    ("secondary {\n transfer from tls://192.0.2.1\n tls /dev/null\n }", "tls /dev/null: it is not a regular file"),
    ("secondary {\n transfer from ns.example\n resolver ns.example\n }", "expected an IP address"),
    ("secondary {\n transfer from 192.0.2.1\n directory\n }", "expected a folder"),
    ("secondary {\n transfer from 127.0.0.1\n tsig k.\n }", "has no key k."),
    ("secondary {\n transfer from 127.0.0.1\n tsig k. md4\n }", "unknown algorithm"),
    ("tsig {\n secret a !!\n }\n whoami", "expected a secret in base64"),
    ("tsig {\n require BOGUS\n }\n whoami", "unknown type"),
    ("tsig {\n secret a AA==\n secret A. AA==\n }\n whoami", "defined twice"), ("tsig {\n secrets nowhere\n }\n whoami",
    "nowhere: No such file"),
    ("tsig {\n require_opcode AXFR\n }\n whoami", "unknown opcode"),
    ("transfer {\n to *\n tsig k\n }\n whoami", "has no key k."),
])  # fmt: skip
def test_bad_directives_are_named(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(f"example.org:{{port}} {{\n bind 127.0.0.1\n {text}\n}}\n")
    assert expected in str(caught.value)


# Catalogs.

CATALOG = "@ 60 SOA . . {serial} 3600 1 86400 60\n@ NS invalid.\nversion TXT 2\n"


def catalog_corefile(port: int, members: str = "") -> str:
    return (
        f".:{{port}} {{\n bind 127.0.0.1\n secondary catalog.example {{\n transfer from 127.0.0.1:{port}\n catalog "
        f"{members}\n }}\n}}\n"
    )


def test_the_members_of_a_catalog_come_and_go_with_it(serve: Serve, db: Path, tmp_path: Path, lines: list[str]) -> None:
    cat, ours = tmp_path / "cat", free_port()

    def write(serial: int, *members: str) -> None:
        new = tmp_path / "cat.new"
        new.write_text(CATALOG.replace("{serial}", str(serial)) + "".join(f"{each}\n" for each in members))
        os.replace(new, cat)

    write(1, "a.zones PTR example.org.", "b.zones PTR sub.example.net.")
    shutil.copy(db, tmp_path / "net")
    first = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to * 127.0.0.1:{ours}\n }}\n file {cat} catalog.example {{\n "
        f"reload 20ms\n }}\n"
        f" file {db} example.org\n file {tmp_path}/net sub.example.net\n}}\n"
    )
    server = serve(catalog_corefile(first.port), port=ours)
    eventually(lambda: serial(ours) == 1)
    eventually(lambda: data(server.ask("www.sub.example.net.")) == ["192.0.2.2", "192.0.2.3"])
    assert server.reload(server.text + "\n") and data(server.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]
    write(2, "a.zones PTR example.org.")
    eventually(lambda: code(server.ask("www.sub.example.net.")) == "REFUSED")
    assert data(server.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]
    write(3, "a.zones PTR example.org.", "c.zones PTR example.org.")  # a zone that is listed twice
    eventually(lambda: any("listed twice" in line for line in lines))
    assert data(server.ask("www.example.org.")) == ["192.0.2.2", "192.0.2.3"]
    write(4, "other.zones PTR example.org.", "b.zones PTR sub.example.net.")
    eventually(lambda: any("Reset catalog member zone example.org." in line for line in lines))
    eventually(lambda: serial(ours) == 1 and data(server.ask("www.sub.example.net.")) == ["192.0.2.2", "192.0.2.3"])


@pytest.mark.parametrize("later", range(4))
def test_a_zone_that_was_given_up_as_a_notify_came_was_followed_for_ever_and_held_all_that_waited_for_its_end(
    later: int,
) -> None:
    """Python 3.11's wait_for lost the cancellation: a catalog took no more changes, and a reload never ended."""

    async def run() -> None:
        zone = SecondaryZone(from_text("example.org."))
        await zone.start()
        assert zone.woken is not None and zone.task is not None
        async with asyncio.timeout(10):
            while not zone.woken._waiters:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            zone.wake()
            for _ in range(later):
                await asyncio.sleep(0)
            await zone.stop()
        assert zone.task is None

    asyncio.run(run())


def test_a_catalog_that_changed_while_it_was_let_go_of_took_zones_that_nobody_gave_back(serve: Serve) -> None:
    server = serve(catalog_corefile(free_port()))
    assert server.server.instance is not None
    (plugin,) = [each for each in server.server.instance.plugins if isinstance(each, Secondary)]

    async def run() -> None:
        catalog = plugin.served[from_text("catalog.example.")]

        def changed() -> None:
            for call in list(catalog.on_change):
                call(catalog)

        async def syncs(origin: bytes) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                changed()

        plugin._sync = syncs  # type: ignore[method-assign]
        changed()
        await asyncio.sleep(0)
        assert len(plugin.tasks) == 1
        await plugin.stop()
        await asyncio.sleep(0)
        assert not plugin.tasks

    server.thread.run(run())


def test_a_zone_that_was_told_of_other_primaries_meanwhile_asked_for_a_name_as_if_it_were_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def run() -> None:
        gate, reached = asyncio.Event(), asyncio.Event()

        async def look(name: HostName) -> tuple[str, ...]:
            reached.set()
            await gate.wait()
            return ("192.0.2.1" if name.host == "one.example" else "192.0.2.2",)

        async def ask(zone: SecondaryZone, place: Place) -> bool:
            asked.append(place.host)
            return False

        monkeypatch.setattr(HostName, "look", look)
        monkeypatch.setattr(SecondaryZone, "_ask", ask)
        zone = SecondaryZone(from_text("example.org."))
        zone.follow(Primaries((Place("one.example", 53), Place("two.example", 53))), None, None)
        fetching = asyncio.create_task(zone._fetch())
        await reached.wait()
        zone.follow(Primaries((Place("192.0.2.3", 53),)), None, None)
        gate.set()
        await fetching

    asyncio.run(run())
    assert asked == ["192.0.2.1", "192.0.2.2"]


def test_a_notify_that_was_given_up_before_it_began_was_a_warning_of_pythons(
    serve: Serve, db: Path, recwarn: pytest.WarningsRecorder
) -> None:
    server = serve(primary(db, to=f"* 127.0.0.1:{free_port()}"))
    assert server.server.instance is not None
    (plugin,) = [each for each in server.server.instance.plugins if isinstance(each, TransferPlugin)]

    async def run() -> None:
        await plugin.stop()
        plugin.serving = True
        plugin.notify(from_text("example.org."))
        assert plugin.tasks
        await plugin.stop()

    server.thread.run(run())
    gc.collect()
    assert not [each for each in recwarn if "never awaited" in str(each.message)]


def test_only_what_a_catalog_may_list_is_taken(serve: Serve, db: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").write_text(
        CATALOG.replace("{serial}", "1") + "a.zones PTR example.org.\nb.zones PTR sub.example.net.\n"
    )
    first = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n file {tmp_path}/cat catalog.example\n file {db} "
        f"example.org\n"
        f" file {db} sub.example.net\n}}\n"
    )
    server = serve(catalog_corefile(first.port, "example.org"))
    eventually(lambda: serial(server.port) == 1)
    assert code(server.ask("www.sub.example.net.")) == "REFUSED"


def test_keys_are_read_from_a_file_as_bind_writes_it(serve: Serve, db: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(
        f'# made by tsig-keygen\nkey "key.example." {{\n\talgorithm hmac-sha256;\n\tsecret "{SECRET}";\n}};\n'
    )
    server: Server = serve(primary(db, f"tsig {{\n secrets {tmp_path}/keys\n require all\n }}"))
    assert whole(server.port, keyring=KEYS, keyname="key.example.") == expected(db)
    assert code(server.ask("www.example.org.")) == "REFUSED"


# Peers.


PEERS = [pytest.param(peer, marks=programs.needs(program)) for peer, program in peers.PROGRAMS.items()]


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_follows_kdns_by_signed_notify_axfr_and_ixfr(serve: Serve, db: Path, tmp_path: Path, peer: str) -> None:
    def words(port: int) -> list[str]:
        server = serve(primary(db, TSIG, to=f"* 127.0.0.1:{port}", inner="tsig key.example."))
        return COMMANDS[peer](tmp_path / peer, port, master=server.port)

    with programs.running(tmp_path / peer, words) as program:
        urged(program, lambda: serial(program.port) == 1)
        put(db, 2, "new A 192.0.2.9\n")
        program.until(lambda: serial(program.port) == 2)
        assert whole(program.port, keyring=KEYS, keyname="key.example.") == expected(db)
    # Not the whole zone: BIND counts the records of each transfer, Knot names its kind; NSD says neither.
    by_ixfr = {"knot": "ixfr, incoming", "bind": "5 records", "nsd": ""}
    assert by_ixfr[peer] in program.said().lower(), program.said()[-2000:]


@pytest.mark.parametrize("peer", PEERS)
def test_kdns_follows_a_peer_by_signed_notify_axfr_and_ixfr(
    serve: Serve, db: Path, tmp_path: Path, peer: str, lines: list[str]
) -> None:
    ours = free_port()
    copy = tmp_path / "zone"
    shutil.copy(db, copy)
    with programs.running(
        tmp_path / peer, lambda port: COMMANDS[peer](tmp_path / peer, port, file=copy, slave=ours)
    ) as program:
        program.until(lambda: serial(program.port) == 1)
        server = serve(secondary(program.port, TSIG, inner="tsig key.example."), port=ours)
        program.until(lambda: serial(ours) == 1)
        put(copy, 2, "new A 192.0.2.9\n")
        program.hang_up()
        program.until(lambda: serial(ours) == 2)
        assert data(server.ask("new.example.org.")) == ["192.0.2.9"]
        assert whole(ours, keyring=KEYS, keyname="key.example.") == expected(copy)
    assert any("by AXFR, serial 1" in line for line in lines) and any("by IXFR, serial 2" in line for line in lines)


@pytest.mark.parametrize("peer", PEERS)
def test_a_primary_that_is_killed_in_a_transfer_leaves_the_zone_as_it_was_and_is_caught_up_with(
    serve: Serve, db: Path, tmp_path: Path, peer: str, lines: list[str]
) -> None:
    ours = free_port()
    copy = tmp_path / "zone"
    put(copy, 1, "".join(f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(3000)))
    relay = Relay(0)
    alive: list[programs.Program] = []

    def half(octets: int) -> None:
        if alive and octets > 30_000:  # of some 80,000
            alive.pop().kill()
            raise OSError

    relay.more = half

    def words(port: int) -> list[str]:
        relay.octets, relay.to = 0, port
        return COMMANDS[peer](tmp_path / peer, port, file=copy, slave=ours)

    try:
        with programs.running(tmp_path / peer, words) as program:
            program.until(lambda: serial(program.port) == 1)
            alive.append(program)
            serve(secondary(relay.port, TSIG, inner="tsig key.example."), port=ours)
            eventually(lambda: not alive, timeout=programs.PATIENCE)
        assert serial(ours) == -1  # half a zone is none
        with programs.running(tmp_path / peer, words) as program:
            program.until(lambda: serial(ours) == 1)
            before = expected(copy)
            put(copy, 2, "".join(f"n{i} TXT 10.1.{i >> 8}.{i & 255}\n" for i in range(3000)))
            relay.octets = 0
            alive.append(program)
            program.hang_up()
            eventually(lambda: not alive, timeout=programs.PATIENCE)
        eventually(lambda: sum("Failed to transfer" in line for line in lines) >= 2)
        assert whole(ours, keyring=KEYS, keyname="key.example.") == before
        with programs.running(tmp_path / peer, words) as program:
            program.until(lambda: serial(ours) == 2)
            assert whole(ours, keyring=KEYS, keyname="key.example.") == expected(copy)
    finally:
        relay.close()
