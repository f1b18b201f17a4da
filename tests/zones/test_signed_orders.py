"""Signed zones behind `loadbalance` and `cache`: whatever the order of the records and wherever the reply comes from,
each RRset has its signatures, and they hold.
"""

import time
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from kdns.dns.name import from_text
from kdns.testing import Server, block
from kdns.zonefile.signing import Job, run
from tests.fixtures import Serve
from tests.plugins.test_dnssec import check, key_set
from tests.zones import keymaker

ZONE = "example."
TEXT = (
    "$TTL 300\n@ SOA ns h 1 3600 300 3600000 60\n@ NS ns\n@ NS ns2\nns A 192.0.2.1\nns2 A 192.0.2.2\n"
    + "".join(
        f"many A 192.0.2.{i}\nmany AAAA 2001:db8::{i}\n@ MX {i} mx{i}\nmx{i} A 192.0.2.{i}\n" for i in range(10, 15)
    )
    + "".join(f"crowd A 198.51.{i >> 8}.{i & 255}\n" for i in range(20))
    + "".join(f"*.wild A 203.0.113.{i}\n" for i in range(3))
    + "alias CNAME many\nchain CNAME alias\nmoved DNAME wild\nsub NS ns.sub\nsub NS ns2.sub\nns.sub A 192.0.2.30\n"
    "ns2.sub A 192.0.2.31\nsub DS 1 13 2 0102030405060708091011121314151617181920212223242526272829303132\n"
    "sub DS 2 13 2 0102030405060708091011121314151617181920212223242526272829303133\n"
    "_s._tcp SRV 1 1 5 many\n_s._tcp SRV 1 1 6 crowd\nsvc HTTPS 1 many alpn=h2\n"
)
QUESTIONS = [
    ("many", "A"), ("many", "AAAA"), ("crowd", "A"), ("a.wild", "A"), ("b.wild", "A"), ("alias", "A"),
    ("chain", "AAAA"),
    ("x.moved", "A"), ("@", "MX"), ("@", "NS"), ("_s._tcp", "SRV"), ("svc", "HTTPS"), ("nope", "A"), ("many", "TXT"),
    ("a.wild", "TXT"), ("www.sub", "A"), ("sub", "DS"),
]  # fmt: skip
PLUGINS = {
    "nothing": (), "loadbalance": ("loadbalance",), "cache": ("cache",), "both": ("loadbalance", "cache"),
    "prefer": ("loadbalance {\n prefer 192.0.2.12/32 198.51.100.0/24\n }", "cache"),
}  # fmt: skip
# A synthesised CNAME has no signature (RFC 6672, section 5.3.1), the NS of a cut neither (RFC 4035, section 2.2).
UNSIGNED = ("x.moved.example. CNAME", "sub.example. NS")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "db").write_text(TEXT)
    path = keymaker.make(tmp_path, ZONE)
    done = run(Job(str(tmp_path / "db"), from_text(ZONE), (f"{path}.key",), str(tmp_path / "signed"), int(time.time())))
    assert not done.error
    return tmp_path


def source(serve: Serve, folder: Path, kind: str) -> tuple[str, ...]:
    """Where the answers come from: a file that is signed, one that is signed as it is given, another server."""
    if kind == "signed":
        return (f"file {folder}/signed {ZONE}",)
    if kind == "online":
        return (f"dnssec {ZONE} {{\n key directory {folder}\n }}", f"file {folder}/db {ZONE}")
    return (f"forward . 127.0.0.1:{serve(block(f'file {folder}/signed {ZONE}')).port}",)


def ask(server: Server, name: str, rtype: str, do: bool, tcp: bool = False) -> dns.message.Message:
    full = ZONE if name == "@" else f"{name}.{ZONE}"
    return server.ask(full, rtype, tcp=tcp, use_edns=0 if do else None, want_dnssec=do, payload=4096 if do else None)


def records(reply: dns.message.Message, signatures: bool) -> list[list[str]]:
    """The records of each section; their order, their TTLs and the serial, which a signer counts up, left out."""
    return [
        sorted(
            f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {'' if rrset.rdtype == 6 else record}".lower()
            for rrset in section for record in rrset
            if signatures or rrset.rdtype not in (dns.rdatatype.RRSIG, dns.rdatatype.NSEC)
        )
        for section in reply.sections[1:]
    ]  # fmt: skip


@pytest.mark.parametrize("plugins", list(PLUGINS))
@pytest.mark.parametrize("kind", ["signed", "online", "forwarded"])
def test_every_order_of_a_signed_answer_holds(serve: Serve, folder: Path, kind: str, plugins: str) -> None:
    keys = key_set(folder, ZONE)
    server = serve(block(*PLUGINS[plugins], *source(serve, folder, kind)))
    plain = serve(block(f"file {folder}/db {ZONE}"))
    for name, rtype in QUESTIONS:
        expected = records(ask(plain, name, rtype, False), True)
        orders = set()
        for turn in range(12):
            reply = ask(server, name, rtype, turn % 3 != 2, tcp=turn % 4 == 3)
            if turn % 3 == 2:
                # Who does not ask for signatures gets none, though the cache has them.
                found = records(reply, True)
                assert found[0] == expected[0], (name, rtype)
                # The NS of the zone beside an answer may not fit.
                assert expected[0] or found[1] == expected[1], (name, rtype)
                continue
            check(reply, keys, UNSIGNED)
            assert records(reply, False)[0] == expected[0], (name, rtype)
            signatures = {(rrset.name, rrset.covers) for rrset in reply.answer if rrset.rdtype == dns.rdatatype.RRSIG}
            assert signatures <= {(rrset.name, rrset.rdtype) for rrset in reply.answer}  # none without its records
            orders.update(tuple(map(str, rrset)) for rrset in reply.answer if rrset.rdtype == dns.rdatatype.A)
        if name in ("many", "crowd") and rtype == "A":
            assert (len(orders) > 1) == ("loadbalance" in plugins or plugins in ("both", "prefer"))
        if plugins == "prefer" and name == "many" and rtype == "A":
            assert all(order[0] == "192.0.2.12" for order in orders)


@pytest.mark.parametrize("first", [False, True])
def test_a_cached_answer_is_right_for_who_asks_for_signatures_and_who_does_not(
    serve: Serve, folder: Path, first: bool
) -> None:
    keys = key_set(folder, ZONE)
    server = serve(block("loadbalance", "cache", *source(serve, folder, "forwarded")))
    for name, rtype in QUESTIONS:
        for do in (first, not first, first, not first):
            reply = ask(server, name, rtype, do)
            found = {rrset.rdtype for section in reply.sections[1:3] for rrset in section}
            assert (dns.rdatatype.RRSIG in found) == do, (name, rtype, do)
            if do:
                check(reply, keys, UNSIGNED)
                if reply.rcode() == dns.rcode.NXDOMAIN:
                    assert dns.rdatatype.NSEC in found
            assert not reply.flags & dns.flags.AD
