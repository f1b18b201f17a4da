"""dnssec: what is signed and by which keys, denials in both forms, key files, the clock, the tables."""

import random
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import dns.dnssec
import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdns.corefile import CorefileError
from kdns.dns import dnssec
from kdns.dns.name import from_text, to_text
from kdns.plugins.dnssec import LIFE, MISSES, RENEW, Dnssec
from kdns.plugins.dnssec.table import MAX_ENTRY, Made, Signatures
from kdns.server import build
from kdns.store.zone_node import canonical_key
from kdns.testing import Server, Upstream, block, code, data
from kdns.testing.upstream import answer
from kdns.zonefile import keys as keyfiles
from tests import programs
from tests.fixtures import Serve, Start
from tests.zones import keymaker, peers
from tests.zones.example_zones import ZONES

CO = 0x4000


def key_set(folder: Path, zone: str) -> dict[dns.name.Name, Any]:
    """The DNSKEYs of a zone's files as dnspython validates with them."""
    records = [
        path.read_text().split("DNSKEY")[1].strip() for path in folder.glob(f"K{zone}+*.key") if "~" not in path.name
    ]
    name = dns.name.from_text(zone)
    return {name: dns.rrset.from_text_list(zone, 3600, "IN", "DNSKEY", records)}


def check(reply: dns.message.Message, keys: dict[dns.name.Name, Any], unsigned: tuple[str, ...] = ()) -> None:
    """Every RRset of answer and authority has a good signature, but for those named `NAME TYPE`."""
    for section in (reply.answer, reply.authority):
        signatures = {(rrset.name, rrset.covers): rrset for rrset in section if rrset.rdtype == dns.rdatatype.RRSIG}
        for rrset in section:
            if rrset.rdtype == dns.rdatatype.RRSIG:
                continue
            text = f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)}"
            found = signatures.get((rrset.name, rrset.rdtype))
            assert (found is None) == (text in unsigned), text
            if found is not None:
                dns.dnssec.validate(rrset, found, keys)


def nsecs(reply: dns.message.Message) -> list[str]:
    return sorted(
        f"{rrset.name} {record}" for rrset in [*reply.answer, *reply.authority]
        if rrset.rdtype == dns.rdatatype.NSEC for record in rrset
    )  # fmt: skip


def plugin_of(server: Server) -> Dnssec:
    instance = server.server.instance
    assert instance is not None
    (found,) = [plugin for plugin in instance.plugins if isinstance(plugin, Dnssec)]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for zone, text in ZONES.items():
        (tmp_path / f"db.{zone}").write_text(text)
        keymaker.make(tmp_path, zone)
    return tmp_path


def corefile(folder: Path, *options: str, zones: tuple[str, ...] = tuple(ZONES), more: str = "") -> str:
    inner = "\n ".join(options)
    files = "\n ".join(f"file {folder}/db.{zone} {zone}" for zone in zones)
    signing = f"dnssec {' '.join(zones)} {{\n key directory {folder}\n {inner}\n }}"
    return block(signing, files, more)


# What is signed.


def test_an_answer_has_signatures_only_where_the_query_has_do(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    plain = server.ask("xx.example.", "A")
    assert [rrset.rdtype for rrset in plain.answer] == [1] and not plain.ednsflags
    for _ in range(3):  # made, and repeated
        reply = server.ask("XX.eXample.", "A", want_dnssec=True)
        check(reply, key_set(folder, "example."))
        assert [rrset.rdtype for rrset in reply.answer] == [1, 46] and reply.flags & dns.flags.AA
        assert str(reply.question[0].name) == "XX.eXample."
    signature = reply.answer[1][0]
    now = time.time()
    assert signature.signer == dns.name.from_text("example.") and signature.original_ttl == 3600
    assert now - 3 * 3600 - 60 < signature.inception <= now - 3 * 3600
    assert now + 8 * 86400 - 60 < signature.expiration <= now + 8 * 86400


@pytest.mark.parametrize("kind", ["compact", "nsec"])
def test_without_do_everything_is_as_without_the_plugin(serve: Serve, folder: Path, kind: str) -> None:
    with_it = serve(corefile(folder, f"denial {kind}"))
    without = serve(block(*(f"file {folder}/db.{zone} {zone}" for zone in ZONES)))
    chance = random.Random(kind)
    names = ["example.", "ns1.a.example.", "x.w.example.", "q.w.example.", "of.two.labels.example.", "nope.example.",
             "a.example.", "b.example.", "chain.more.example.", "q.moved.more.example.", "outside.more.example.",
             "dangling.more.example.", "srv.more.example.", "a.wcname.more.example."]  # fmt: skip
    asked = [(name, rtype) for name in names for rtype in ("A", "MX", "DS", "TXT", "NS", "SRV", "NSEC", "CNAME")]
    chance.shuffle(asked)
    for name, rtype in asked:
        for _ in range(chance.choice((1, 3))):
            with_it.ask(name, rtype, want_dnssec=True)
        for options in ({}, {"use_edns": 0}):
            one, other = with_it.ask(name, rtype, **options), without.ask(name, rtype, **options)
            one.id = other.id = 0
            assert one.to_text() == other.to_text(), (name, rtype)


def test_the_order_of_questions_does_not_matter(serve: Serve, folder: Path) -> None:
    asked = [
        (name, rtype, flags)
        for name in ("xx.example.", "nope.example.", "q.w.example.", "b.example.", "example.", "two.labels.example.")
        for rtype in ("A", "MX", "DNSKEY", "NSEC")
        for flags in (0, dns.flags.DO, CO, dns.flags.DO | CO)
    ]
    seen: dict[Any, set[str]] = {}
    for order in range(3):
        server = serve(corefile(folder, "cache_capacity 5"))
        random.Random(order).shuffle(asked)
        for name, rtype, flags in asked * 3:
            reply = server.ask(name, rtype, ednsflags=flags)
            text = "\n".join(
                f"{rrset.name} {rrset.ttl} {rrset.rdtype} {rrset.covers} {'' if rrset.rdtype == 46 else rrset}"
                for section in (reply.answer, reply.authority, reply.additional) for rrset in section
            )  # fmt: skip
            found = f"{reply.rcode()} {reply.flags:x} {reply.ednsflags:x}\n{text}"
            seen.setdefault((name, rtype, flags), set()).add(found)
    assert all(len(found) == 1 for found in seen.values()), [key for key, found in seen.items() if len(found) > 1]


def test_each_rrset_of_a_chain_is_signed_by_its_own_zone(serve: Serve, tmp_path: Path) -> None:
    head = "$TTL 60\n@ SOA ns h 1 2 3 4 60\n@ NS ns\nns A 192.0.2.1\n"
    (tmp_path / "db.one.test.").write_text(head + "www CNAME www.two.test.\nout CNAME www.three.test.\n")
    (tmp_path / "db.two.test.").write_text(head + "www A 192.0.2.2\n")
    (tmp_path / "db.three.test.").write_text(head + "www A 192.0.2.3\n")
    for zone in ("one.test.", "two.test."):
        keymaker.make(tmp_path, zone)
    text = corefile(tmp_path, zones=("one.test.", "two.test."), more=f"file {tmp_path}/db.three.test. three.test.")
    server = serve(text)
    keys = key_set(tmp_path, "one.test.") | key_set(tmp_path, "two.test.")
    reply = server.ask("www.one.test.", want_dnssec=True)
    signers = {(str(r.name), str(r[0].signer)) for r in reply.answer if r.rdtype == 46}
    assert signers == {("www.one.test.", "one.test."), ("www.two.test.", "two.test.")}
    check(reply, keys)
    outside = server.ask("out.one.test.", want_dnssec=True)
    assert data(outside)[0] == "192.0.2.3"
    check(outside, keys, ("www.three.test. A", "three.test. NS"))
    assert not [r for r in server.ask("www.three.test.", want_dnssec=True).answer if r.rdtype == 46]
    gone = server.ask("www.one.test.", "AAAA", want_dnssec=True)  # denied by the zone that the chain ends in
    check(gone, keys)
    assert nsecs(gone) == ["www.two.test. \\000.www.two.test. A RRSIG NSEC"]


def test_a_delegation_is_not_signed_but_its_ds_or_that_there_is_none(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    keys = key_set(folder, "example.")
    secure = server.ask("x.a.example.", want_dnssec=True)
    check(secure, keys, ("a.example. NS",))
    assert not secure.flags & dns.flags.AA and not secure.answer and not nsecs(secure)
    assert [r.rdtype for r in secure.authority] == [2, 43, 46]
    assert {r.rdtype for r in secure.additional} == {1}  # glue, without signatures
    insecure = server.ask("x.b.example.", want_dnssec=True)
    check(insecure, keys, ("b.example. NS",))
    # RFC 9824, section 3.4: the next name is behind all that is below the cut.
    assert nsecs(insecure) == ["b.example. b\\000.example. NS RRSIG NSEC"]
    no_ds = server.ask("b.example.", "DS", want_dnssec=True)
    check(no_ds, keys)
    assert nsecs(no_ds) == ["b.example. b\\000.example. NS RRSIG NSEC"]
    check(server.ask("a.example.", "DS", want_dnssec=True), keys)


@pytest.mark.parametrize("kind", ["compact", "nsec"])
@pytest.mark.parametrize("delegated", [True, False])
def test_that_a_zone_below_has_no_ds_was_signed_by_that_zone(
    serve: Serve, folder: Path, kind: str, delegated: bool
) -> None:
    """Its key does not prove anything about the zone above, whose denial it is."""
    if delegated:
        with (folder / "db.example.").open("a") as file:
            file.write("more.example. 3600 NS ns.more.example.\n")
    server = serve(corefile(folder, f"denial {kind}"))
    reply = server.ask("more.example.", "DS", want_dnssec=True)
    check(reply, key_set(folder, "example."))
    signers = {str(record.signer) for rrset in reply.authority if rrset.rdtype == 46 for record in rrset}
    assert signers == {"example."} and not reply.answer and nsecs(reply)


def test_addresses_beside_an_answer_are_signed_and_glue_is_not(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    reply = server.ask("srv.more.example.", "SRV", want_dnssec=True, payload=4096)
    signed = {str(r.name) for r in reply.additional if r.rdtype == 46}
    assert signed == {"ns1.more.example."}
    servers = server.ask("more.example.", "NS", want_dnssec=True, payload=4096)
    assert "ns.sister.more.example." in {str(r.name) for r in servers.additional if r.rdtype == 1}
    assert "ns.sister.more.example." not in {str(r.name) for r in servers.additional if r.rdtype == 46}


def test_a_dnames_cname_has_no_signature_and_the_dname_has_one(serve: Serve, folder: Path) -> None:
    reply = serve(corefile(folder)).ask("ns1.moved.more.example.", want_dnssec=True)
    check(reply, key_set(folder, "more.example."), ("ns1.moved.more.example. CNAME",))


def test_a_zone_that_is_signed_already_is_left_as_it_is(serve: Serve, folder: Path) -> None:
    if not programs.find("dnssec-signzone"):
        pytest.skip("BIND's tools are not installed")
    path = peers.signed(folder / "theirs", "example.", ZONES["example."])
    shutil.copy(path, folder / "db.example.")
    server = serve(corefile(folder, zones=("example.",)))
    keys = key_set(folder / "theirs", "example.")
    check(server.ask("xx.example.", "A", want_dnssec=True), keys)
    absent = server.ask("nope.example.", want_dnssec=True)
    check(absent, keys)
    assert code(absent) == "NXDOMAIN"


def test_a_wildcards_answer_is_signed_as_if_its_name_existed(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    reply = server.ask("q.w.example.", "MX", want_dnssec=True)
    check(reply, key_set(folder, "example."))
    assert [r[0].labels for r in reply.answer if r.rdtype == 46] == [3]
    without = server.ask("q.w.example.", "A", want_dnssec=True)
    assert nsecs(without) == ["q.w.example. \\000.q.w.example. MX RRSIG NSEC"]


# Denials.


def test_compact_denials_say_which_names_and_types_there_are(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    keys = key_set(folder, "example.")
    cases = {
        ("nope.example.", "A"): "nope.example. \\000.nope.example. RRSIG NSEC NXNAME",
        ("a.b.c.xx.example.", "NS"): "a.b.c.xx.example. \\000.a.b.c.xx.example. RRSIG NSEC NXNAME",
        ("two.labels.example.", "A"): "two.labels.example. \\000.two.labels.example. RRSIG NSEC",
        ("xx.example.", "TXT"): "xx.example. \\000.xx.example. A HINFO AAAA RRSIG NSEC",
        ("example.", "TXT"): "example. \\000.example. NS SOA MX RRSIG NSEC DNSKEY",
    }
    for (name, rtype), expected in cases.items():
        reply = server.ask(name, rtype, want_dnssec=True)
        check(reply, keys)
        found = [text.replace("TYPE128", "NXNAME") for text in nsecs(reply)]
        assert code(reply) == "NODATA" and found == [expected]
        assert {r.ttl for r in reply.authority} == {1800}


def test_the_code_of_a_compact_denial_is_nxdomain_where_co_asks_for_it(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    both = dns.flags.DO | CO
    for _ in range(3):
        for name, plain, with_co in (("nope.example.", "NODATA", "NXDOMAIN"), ("xx.example.", "NODATA", "NODATA")):
            asked = server.ask(name, "TXT", ednsflags=dns.flags.DO)
            assert (code(asked), asked.ednsflags) == (plain, dns.flags.DO)
            asked = server.ask(name, "TXT", ednsflags=both)
            assert (code(asked), asked.ednsflags) == (with_co, both)
            assert code(server.ask(name, "TXT", ednsflags=CO)) == ("NXDOMAIN" if "nope" in name else "NODATA")
    positive = server.ask("xx.example.", "A", ednsflags=both)
    assert positive.ednsflags == both and len(positive.answer) == 2
    lies = serve(corefile(folder, "denial nsec"))
    assert lies.ask("xx.example.", "TXT", ednsflags=both).ednsflags == dns.flags.DO


def test_white_lies_cover_the_name_and_the_wildcard_and_little_else(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder, "denial nsec"))
    reply = server.ask("a.b.nope.xx.example.", want_dnssec=True)
    check(reply, key_set(folder, "example."))
    assert code(reply) == "NXDOMAIN"
    covers = []
    for rrset in reply.authority:
        if rrset.rdtype == dns.rdatatype.NSEC:
            covers.append((rrset.name, rrset[0].next))
    name, star = dns.name.from_text("a.b.nope.xx.example."), dns.name.from_text("*.xx.example.")
    assert len(covers) == 2
    for denied in (name, star):
        assert any(owner < denied < following for owner, following in covers)
    for other in ("nopd.xx.example.", "nopf.xx.example.", "xx.example.", "-.xx.example."):
        assert not any(owner < dns.name.from_text(other) < following for owner, following in covers)


def test_nxname_is_no_type_to_ask_for(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    reply = server.ask("xx.example.", 128, want_dnssec=True)
    assert reply.rcode() == dns.rcode.FORMERR
    assert [option.code for option in reply.options if isinstance(option, dns.edns.EDEOption)] == [30]


def test_an_nsec_that_is_asked_for_is_the_answer(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    reply = server.ask("xx.example.", "NSEC", want_dnssec=True)
    check(reply, key_set(folder, "example."))
    assert [r.rdtype for r in reply.answer] == [47, 46] and not reply.authority
    assert [r.rdtype for r in server.ask("xx.example.", "RRSIG", want_dnssec=True).answer] == [46]


def test_names_that_cannot_be_longer_have_a_next_name_too(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    keys = key_set(folder, "example.")
    for label in ("q" * 63, "\\255" * 63):
        for rest in (".".join(["p" * 63] * 2), ".".join(["p" * 63] * 2 + ["o" * 50])):
            name = f"{label}.{rest}.example."
            assert len(dns.name.from_text(name).to_wire()) <= 255
            reply = server.ask(name, want_dnssec=True)
            check(reply, keys)
            (proof,) = [r for r in reply.authority if r.rdtype == 47]
            assert proof.name < proof[0].next


labels = st.binary(min_size=1, max_size=63).map(bytes.lower)


@given(st.lists(labels, min_size=1, max_size=5).filter(lambda parts: sum(map(len, parts)) + len(parts) < 245))
def test_neighbours_of_a_name_are_on_either_side_of_it(parts: list[bytes]) -> None:
    zone = from_text("example.")
    name = b"".join(bytes((len(part),)) + part for part in parts) + zone
    key = canonical_key(name)
    child = dnssec.first_below(name, zone)
    assert canonical_key(dnssec.before(name, zone)) < key < canonical_key(child)
    behind = dnssec.behind(name, zone)
    assert behind == zone or canonical_key(child) < canonical_key(behind)
    assert all(len(each) <= 255 and to_text(each) for each in (child, behind, dnssec.before(name, zone)))


# Sources beside files.


def test_a_clusters_names_are_signed_and_denied(serve: Serve, tmp_path: Path) -> None:
    sample = Path(__file__).resolve().parents[2] / "kdns/cli/sample/cluster.yaml"
    keymaker.make(tmp_path, "cluster.local.")
    signing = f"dnssec cluster.local {{\n key directory {tmp_path}\n }}"
    server = serve(block(signing, f"kubernetes cluster.local {{\n manifests {sample}\n }}"))
    keys = key_set(tmp_path, "cluster.local.")
    service = "kubernetes.default.svc.cluster.local."
    for name, rtype in (
        (service, "A"), (service, "TXT"), (f"_https._tcp.{service}", "SRV"), ("cluster.local.", "SOA"),
        ("cluster.local.", "NS"), ("default.svc.cluster.local.", "A"), ("svc.cluster.local.", "A"),
        ("nope.default.svc.cluster.local.", "A"), ("dns-version.cluster.local.", "TXT"),
    ):  # fmt: skip
        for _ in range(3):
            check(server.ask(name, rtype, want_dnssec=True), keys)
    assert nsecs(server.ask(service, "AAAA", want_dnssec=True)) == [f"{service} \\000.{service} A SRV RRSIG NSEC"]
    assert nsecs(server.ask("svc.cluster.local.", "A", want_dnssec=True)) == [
        "svc.cluster.local. \\000.svc.cluster.local. RRSIG NSEC"
    ]


def test_hosts_and_what_comes_from_upstream_is_signed(serve: Serve, tmp_path: Path, upstream: Start) -> None:
    up: Upstream = upstream(lambda query, proto: answer(query, "A 198.51.100.7", ttl=300))
    keymaker.make(tmp_path, "example.org.")
    signing = f"dnssec example.org {{\n key directory {tmp_path}\n }}"
    hosts = "hosts example.org {\n 192.0.2.7 printer.example.org\n fallthrough\n }"
    server = serve(block(signing, hosts, "cache 60", f"forward . {up.address}"))
    keys = key_set(tmp_path, "example.org.")
    for _ in range(3):
        check(server.ask("printer.example.org.", want_dnssec=True), keys)
        check(server.ask("printer.example.org.", "TXT", want_dnssec=True), keys)
        cached = server.ask("www.example.org.", want_dnssec=True)
        check(cached, keys)
        assert cached.answer[1][0].original_ttl == 3600
    assert not [r for r in server.ask("www.example.net.", want_dnssec=True).answer if r.rdtype == 46]


# Keys.


@pytest.mark.parametrize("algorithm", [8, 10, 13, 14, 15, 16])
def test_every_algorithm_signs(serve: Serve, folder: Path, algorithm: int) -> None:
    for path in folder.glob("Kexample.*"):
        path.unlink()
    keymaker.make(folder, "example.", algorithm)
    server = serve(corefile(folder, zones=("example.",)))
    for name in ("xx.example.", "nope.example.", "example."):
        check(server.ask(name, "A", want_dnssec=True, payload=4096), key_set(folder, "example."))


def test_a_slow_key_signs_beside_the_loop(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.glob("Kexample.*"):
        path.unlink()
    keymaker.make(folder, "example.", 8)
    monkeypatch.setattr(keyfiles, "SLOW", 0.0)
    server = serve(corefile(folder, zones=("example.",)))
    for _ in range(3):
        check(server.ask("xx.example.", "A", want_dnssec=True), key_set(folder, "example."))
    assert plugin_of(server).threads is not None


def test_answers_wait_for_their_signatures_where_a_turn_is_not_enough_and_share_them(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdns.plugins.dnssec.SLICE", 0.0)
    server = serve(corefile(folder))
    keys = key_set(folder, "example.")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    with sock:
        queries = [dns.message.make_query(f"n{i % 10}.example.", "A", want_dnssec=True) for i in range(40)]
        for query in queries:
            sock.sendto(query.to_wire(), ("127.0.0.1", server.port))
        replies = [dns.message.from_wire(sock.recv(4096)) for _ in queries]
    assert {reply.id for reply in replies} == {query.id for query in queries}
    for reply in replies:
        check(reply, keys)
    assert MISSES.slot(f"dns://127.0.0.1:{server.port}")[0] == 11  # ten names, and the SOA


def test_split_keys_sign_keys_and_data_apart(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "db.example.").write_text(ZONES["example."])
    ksk, zsk = keymaker.make(tmp_path, "example."), keymaker.make(tmp_path, "example.", flags=256)
    server = serve(corefile(tmp_path, "cds", zones=("example.",)))
    tags = {name: int(path.rpartition("+")[2]) for name, path in (("ksk", ksk), ("zsk", zsk))}

    def signed_by(name: str, rtype: str) -> set[int]:
        reply = server.ask(name, rtype, want_dnssec=True, payload=4096)
        check(reply, key_set(tmp_path, "example."))
        return {record.key_tag for r in reply.answer if r.rdtype == 46 for record in r}

    assert signed_by("example.", "DNSKEY") == {tags["ksk"]} == signed_by("example.", "CDS")
    assert signed_by("example.", "SOA") == {tags["zsk"]} == signed_by("xx.example.", "A")
    assert len(server.ask("example.", "DNSKEY").answer[0]) == 2
    (cds,) = server.ask("example.", "CDS").answer[0]
    (public,) = [record for record in server.ask("example.", "DNSKEY").answer[0] if record.flags == 257]
    assert str(cds) == str(dns.dnssec.make_ds("example.", public, "SHA256"))
    assert len(server.ask("example.", "CDNSKEY").answer[0]) == 1
    assert "CDS CDNSKEY" in nsecs(server.ask("example.", "TXT", want_dnssec=True))[0]


def test_a_zone_without_a_key_of_its_own_is_signed_with_another_ones(serve: Serve, folder: Path) -> None:
    (other,) = folder.glob("Kmore.*.key")
    text = corefile(folder, zones=("example.", "more.example.")).replace(f"key directory {folder}", f"key file {other}")
    with pytest.raises(CorefileError, match="can not sign any of the zones"):
        serve(corefile(folder, zones=("wild.example.",)).replace(f"key directory {folder}", f"key file {other}"))
    server = serve(text)
    (keys,) = key_set(folder, "more.example.").values()
    check(server.ask("xx.example.", "A", want_dnssec=True), {dns.name.from_text("example."): keys})


@pytest.mark.skipif(not programs.find("dnssec-keygen"), reason="dnssec-keygen is not installed")
@pytest.mark.parametrize("algorithm", ["ECDSAP256SHA256", "ECDSAP384SHA384", "ED25519", "ED448", "RSASHA256"])
def test_keys_of_bind_are_read(tmp_path: Path, algorithm: str) -> None:
    for name in peers.keygen(tmp_path, "Example.ORG", algorithm):
        for end in ("", ".key", ".private"):
            key = keyfiles.read(f"{tmp_path}/{name}{end}")
            assert name.endswith(f"+{key.algorithm:03d}+{key.tag:05d}") and key.owner == from_text("example.org.")


@pytest.mark.skipif(not programs.find("ldns-keygen"), reason="ldns-keygen is not installed")
def test_keys_of_ldns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.chdir(tmp_path)
    words = [str(programs.find("ldns-keygen")), "-a", "ECDSAP256SHA256", "-k", "example.org"]
    name = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    assert keyfiles.read(name).is_sep


def _spoil(folder: Path, kind: str) -> tuple[str, str]:
    """Spoils the pair of example.; gives the path to name, and what the error says."""
    (public,) = folder.glob("Kexample.*.key")
    base = str(public).removesuffix(".key")
    private = Path(base + ".private")
    other = keymaker.make(folder / "other", "example.")
    if kind == "missing":
        return f"{folder}/Knone.+013+00001", f"{folder}/Knone.+013+00001.key: No such file or directory"
    if kind == "no private":
        private.unlink()
        return base, f"{private}: No such file or directory"
    if kind == "another's":
        shutil.copy(other + ".private", private)
        return base, f"{private}: this private key does not belong to the public one"
    if kind == "misnamed":
        for end in (".key", ".private"):
            shutil.copy(base + end, f"{folder}/Kexample.+013+00001{end}")
        return f"{folder}/Kexample.+013+00001", "the file is named for key 013+00001, it holds 013+"
    if kind == "another zone's name":
        (wild,) = folder.glob("Kwild.*.key")
        tag = str(wild).partition("+")[2].removesuffix(".key")
        for end in (".key", ".private"):
            shutil.copy(str(wild).removesuffix(".key") + end, f"{folder}/Kexample.+{tag}{end}")
        return f"{folder}/Kexample.+{tag}", "the file is named for a key of example, it holds one of wild.example."
    if kind == "sha-1":
        public.write_text(public.read_text().replace(" 13 ", " 5 "))
        return base, "algorithm RSASHA1 must not be used for signing any more"
    if kind == "empty":
        public.write_text("; nothing\n")
        return base, "expected one DNSKEY record, found 0"
    if kind == "no key":
        public.write_text("example. DNSKEY 257 3 13 ???\n")
        return base, f"{public}:1:26: "
    if kind == "cut":
        private.write_text("Private-key-format: v1.3\nAlgorithm: 13 (ECDSAP256SHA256)\n")
        return base, "the field privatekey is missing"
    assert kind == "binary"
    private.write_bytes(bytes(range(256)))
    return base, f"{private}: this is not a key file"


@pytest.mark.parametrize(
    "kind",
    ["missing", "no private", "another's", "misnamed", "another zone's name", "sha-1", "empty", "no key", "cut",
     "binary"],
)  # fmt: skip
def test_a_key_that_cannot_be_used_is_an_error_at_the_start_with_its_place(
    serve: Serve, folder: Path, kind: str
) -> None:
    (folder / "other").mkdir()
    path, expected = _spoil(folder, kind)
    text = corefile(folder, zones=("example.",)).replace(f"key directory {folder}", f"key file {path}")
    with pytest.raises(CorefileError) as caught:
        serve(text)
    assert str(caught.value).startswith("Corefile:4:11: dnssec: ") and expected in str(caught.value)


@pytest.mark.parametrize(("wrong", "expected"), [
    ("dnssec", "needs a key"),
    ("dnssec {\n key aws_secretsmanager Kx\n }", "Corefile:4:6: keys in AWS Secrets Manager are not read"),
    ("dnssec {\n key Kx\n }", "Corefile:4:2: expected file KEY..., or directory DIR after key"),
    ("dnssec {\n key files Kx\n }", "expected file or directory after key"),
    ("dnssec {\n key file Kx\n cache_capacity many\n }", "Corefile:5:17: expected a whole number"),
    ("dnssec {\n key file Kx\n denial nsec3\n }", "expected compact or nsec"),
    ("dnssec {\n keys file Kx\n }", "unknown property"),
    ("dnssec {\n key file Kx\n }\n dnssec {\n key file Kx\n }", "once per server block"),
])  # fmt: skip
def test_errors_of_the_corefile_have_their_place(wrong: str, expected: str) -> None:
    with pytest.raises(CorefileError) as caught:
        build.build(build.read(f"example.org {{\n bind 127.0.0.1\n {wrong}\n}}\n", "Corefile"))
    assert expected in str(caught.value)


def test_a_folder_without_keys_of_the_zone_is_an_error(serve: Serve, folder: Path) -> None:
    (folder / "none").mkdir()
    with pytest.raises(CorefileError, match="no keys of example"):
        serve(corefile(folder, zones=("example.",)).replace(f"directory {folder}", f"directory {folder}/none"))
    with pytest.raises(CorefileError, match="No such file or directory"):
        serve(corefile(folder, zones=("example.",)).replace(f"directory {folder}", f"directory {folder}/nowhere"))


# Time and memory.


def expiration(server: Server, name: str = "xx.example.") -> int:
    (found,) = [r for r in server.ask(name, "A", want_dnssec=True).answer if r.rdtype == 46]
    return int(found[0].expiration)


def test_signatures_are_renewed_before_they_end(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    plugin = plugin_of(server)
    now = time.time()
    first = [expiration(server) for _ in range(3)]
    assert len(set(first)) == 1

    def at(seconds: float) -> int:
        plugin.clock = lambda: now + seconds
        server.thread.call(plugin.look_at_clock, time.monotonic())
        return [expiration(server) for _ in range(3)][-1]

    assert at(LIFE - RENEW - 3600) == first[0]
    renewed = at(LIFE - RENEW + 3600)
    assert renewed >= first[0] + LIFE - RENEW


def test_a_repeated_reply_is_not_repeated_beyond_the_renewal_of_its_signatures(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder))
    for _ in range(3):
        expiration(server)
    instance = server.server.instance
    assert instance is not None
    (replies,) = [dispatcher.replies for dispatcher in instance.dispatchers.values()]
    (entry,) = replies.young.values()
    assert 0 < LIFE - RENEW - (entry.dies - time.monotonic()) < 60


def test_a_clock_that_is_set_ends_what_was_reckoned_by_it(serve: Serve, folder: Path, lines: list[str]) -> None:
    server = serve(corefile(folder))
    plugin = plugin_of(server)
    now = time.time()
    for jump in (30 * 86400, -30 * 86400, 0):
        plugin.clock = lambda jump=jump: now + jump  # type: ignore[misc]
        server.thread.call(plugin.look_at_clock, time.monotonic())
        for _ in range(3):
            (found,) = [r for r in server.ask("xx.example.", "A", want_dnssec=True).answer if r.rdtype == 46]
            assert found[0].inception <= now + jump < found[0].expiration - RENEW + 60
    assert sum("the clock was set by" in line for line in lines) == 3
    # A small step is none: signatures have hours, and their inception is hours ago.
    plugin.clock = lambda: now + 30
    server.thread.call(plugin.look_at_clock, time.monotonic())
    assert sum("the clock was set by" in line for line in lines) == 3


def test_random_names_leave_no_more_signatures_than_the_table_may_hold(serve: Serve, folder: Path) -> None:
    server = serve(corefile(folder, "cache_capacity 50"))
    for i in range(300):
        server.ask(f"n{i}.example.", want_dnssec=True)
    assert len(plugin_of(server).table) == 50
    none = serve(corefile(folder, "cache_capacity 0"))
    check(none.ask("xx.example.", "A", want_dnssec=True), key_set(folder, "example."))
    assert len(plugin_of(none).table) == 0


def test_the_table_lets_go_of_what_was_longest_not_asked_for_and_of_what_does_not_serve() -> None:
    table = Signatures(2)
    a, b, c = [(b"\0", bytes((letter,)), 1, 60, (b"x",)) for letter in b"abc"]
    for what in (a, b):
        table.put(what, Made((b"s",), 100, 200))
    assert table.get(a, 150) is not None
    table.put(c, Made((b"s",), 100, 200))
    assert table.get(b, 150) is None and table.get(a, 150) is not None
    assert table.get(a, 99) is None and table.get(c, 200) is None and len(table) == 0
    table.put((b"\0", b"d", 1, 60, (b"x" * MAX_ENTRY,)), Made((b"s",), 100, 200))
    assert len(table) == 0


# Random zones.

_NAMES = st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=3).map(".".join)
_DATA = st.sampled_from(["A 192.0.2.1", "TXT x", "MX 1 a", "NS ns.example.net.", "AAAA 2001:db8::1"])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(_NAMES, st.sets(_DATA, min_size=1, max_size=2), max_size=6), st.sampled_from(["compact", "nsec"])
)
def test_all_that_is_said_of_random_zones_has_good_signatures(
    tmp_path: Path, zone: dict[str, set[str]], kind: str
) -> None:
    records = "".join(f"{name} {text}\n" for name, found in zone.items() for text in sorted(found))
    (tmp_path / "db.example.").write_text(f"$TTL 60\n@ SOA ns h 1 2 3 4 30\n@ NS ns.example.net.\n{records}")
    if not list(tmp_path.glob("K*.key")):
        keymaker.make(tmp_path, "example.")
    keys = key_set(tmp_path, "example.")
    with Server(corefile(tmp_path, f"denial {kind}", zones=("example.",))) as server:
        for name in ("a", "b.a", "c.b.a", "x", "x.a", "*.a", "x.b.a", "c.x.b"):
            for rtype in ("A", "DS", "MX"):
                reply = server.ask(f"{name}.example.", rtype, want_dnssec=True)
                cuts = tuple(f"{r.name} NS" for r in reply.authority if r.rdtype == 2 and str(r.name) != "example.")
                check(reply, keys, cuts)
                assert reply.answer or nsecs(reply) or any(r.rdtype == 43 for r in reply.authority)
