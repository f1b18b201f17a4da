"""The order of a zone's names, and denials whose proofs stand behind what all denials of the zone begin with."""

from pathlib import Path

import dns.message
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.dns import iana, reply
from kdns.dns.edns import Edns
from kdns.dns.name import from_text, labels
from kdns.dns.render import render
from kdns.store.zone import Zone
from kdns.store.zone_node import canonical_key
from kdns.zonefile.load import BrokenZone, read

ORIGIN = from_text("example.")
RRSIG = "RRSIG {} 13 2 300 20300101000000 20200101000000 1 example. " + "A" * 86 + "=="
NSEC = f"""\
$TTL 300
@ SOA ns hostmaster 1 3600 300 86400 60
@ {RRSIG.format("SOA")}
@ NS ns
@ NSEC ab.hostmaster NS SOA RRSIG NSEC
@ {RRSIG.format("NSEC")}
ab.hostmaster A 192.0.2.1
ab.hostmaster NSEC ns A RRSIG NSEC
ab.hostmaster {RRSIG.format("NSEC")}
ns A 192.0.2.2
ns NSEC @ A RRSIG NSEC
ns {RRSIG.format("NSEC")}
"""
octet = st.one_of(st.integers(0, 3), st.integers(0, 255))
name = st.lists(st.lists(octet, min_size=1, max_size=3).map(bytes), max_size=4).map(
    lambda parts: b"".join(bytes((len(part),)) + part for part in parts).lower()
)


@given(st.lists(name, max_size=12), st.sampled_from((b"\0", b"\3com\0", b"\1\0\1\1\0")))
def test_names_are_sorted_by_their_labels_from_the_root_on_whatever_octets_they_have(
    heads: list[bytes], origin: bytes
) -> None:
    names = [head + origin for head in heads]
    by_labels = sorted(names, key=lambda each: labels(each)[::-1])
    assert sorted(names, key=canonical_key) == by_labels
    assert sorted(names, key=lambda each: canonical_key(each, len(origin))) == by_labels


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    path = tmp_path / "db"
    path.write_text(NSEC)
    return read(str(path), ORIGIN).zone


def proven(zone: Zone, asked: bytes, qtype: int = iana.A) -> dns.message.Message:
    """The reply with the proofs, which must say what a rendering of its sections says."""
    answer = zone.proven(asked, zone.answer(asked, qtype, do=True))
    query = b"\0\1\1\0\0\1\0\0\0\0\0\1" + asked + qtype.to_bytes(2, "big") + b"\0\1\0\0\x29\x10\0\0\0\x80\0\0\0"
    end = 12 + len(asked) + 4
    packed = [
        reply.pack(answer, body, query, end, 4, Edns(4096, True), 1232)
        for body in (answer.rendered(asked), render(asked, answer.sections))
    ]
    one, other = map(dns.message.from_wire, packed)
    assert one.to_text() == other.to_text() and len(packed[0]) <= len(packed[1]) + 20
    return one


def owners(message: dns.message.Message) -> list[str]:
    return [str(rrset.name) for rrset in message.authority if rrset.rdtype == dns.rdatatype.NSEC]


def test_a_denial_begins_as_those_of_all_names_of_its_length_and_has_its_own_proofs(zone: Zone) -> None:
    # Names of one length whose labels stand elsewhere, some of them those of the SOA.
    for made_for in ("xy.hostmaster.example.", "xyzhostmaster.example.", "x.y.z.9876.ns.example."):
        zone._signed_denials.clear()
        asked = from_text(made_for)
        proven(zone, asked)
        for head in ("xy.hostmaster", "abcdefghijklm", "a.b.c.d.e.f.g", "zz.zzzz.zz.ns", "a.hostmaster2"):
            other = from_text(f"{head}.example.")
            reply = proven(zone, other)
            assert reply.rcode() == 3 and str(reply.authority[0].name) == "example."
            (soa,) = reply.authority[0]
            assert str(soa).startswith("ns.example. hostmaster.example. 1 ")
        assert len(zone._signed_denials) == 1 + (len(asked) != len(from_text("xy.hostmaster.example.")))
    assert owners(proven(zone, from_text("zz.example."))) == ["ns.example.", "example."]
    assert owners(proven(zone, from_text("a.example."))) == ["example."]
    assert owners(proven(zone, from_text("x.ab.hostmaster.example."))) == ["ab.hostmaster.example."]


def test_a_name_without_the_type_and_an_empty_non_terminal_have_their_proof(zone: Zone) -> None:
    reply = proven(zone, from_text("ns.example."), iana.TXT)
    assert reply.rcode() == 0 and owners(reply) == ["ns.example."]
    reply = proven(zone, from_text("hostmaster.example."))
    assert reply.rcode() == 0 and owners(reply) == ["example."]


def test_a_proof_lives_no_longer_than_the_denial(zone: Zone) -> None:
    reply = proven(zone, from_text("zz.example."))
    assert {rrset.ttl for rrset in reply.authority} == {60} and len(reply.authority) == 6


def test_a_chain_whose_hashes_cost_too_much_is_not_served(tmp_path: Path) -> None:
    """A name that does not exist takes as many hashes as its chain says, for whoever asks."""
    path = tmp_path / "db"
    hashed = "0P9MHAVEQVM6T7VBL5LOP2U3T2RP3TOM"
    zone = "$TTL 300\n@ SOA ns hostmaster 1 3600 300 86400 60\n@ NS ns\nns A 192.0.2.2\n@ NSEC3PARAM 1 0 {0} aabb\n"
    zone += f"{hashed} NSEC3 1 0 {{0}} aabb {hashed} NS SOA NSEC3PARAM\n"
    path.write_text(zone.format(150))
    assert read(str(path), ORIGIN).zone.proofs is not None
    path.write_text(zone.format(151))
    with pytest.raises(BrokenZone, match="NSEC3 with 151 iterations: resolvers take at most 150"):
        read(str(path), ORIGIN)
