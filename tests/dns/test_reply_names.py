"""Names of an upstream's reply lie where names are: what leads elsewhere is refused, or rendered anew."""

import struct

import dns.message
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns import edns, iana, reply
from kdns.dns.errors import FormatError
from kdns.dns.message import parse_reply
from kdns.dns.query import Question

QUESTION = Question(b"\1x\3org\0", iana.A)
BASE = 12 + len(QUESTION.wire)
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def message(*records: bytes, opt: bool = True) -> bytes:
    head = struct.pack("!HHHHHH", 1, 0x8180, 1, len(records), 0, int(opt))
    return head + QUESTION.wire + b"".join(records) + (OPT if opt else b"")


def record(owner: bytes, rtype: int, rdata: bytes, ttl: int = 60) -> bytes:
    return owner + struct.pack("!HHIH", rtype, 1, ttl, len(rdata)) + rdata


def to(offset: int) -> bytes:
    return struct.pack("!H", 0xC000 | offset)


def served(data: bytes, ttl: int | None = None) -> dns.message.Message:
    """What a client gets of a reply, perhaps from the cache with another TTL."""
    answer = parse_reply(data, QUESTION).answer
    query = dns.message.make_query("x.org.", "A", use_edns=0).to_wire()
    body = answer.rendered(QUESTION.name)
    if ttl is not None:
        body = body.with_ttl(ttl)
    return dns.message.from_wire(reply.pack(answer, body, query, BASE, 4, edns.Edns(1232), 1232))


@pytest.mark.parametrize("second", [
    pytest.param(record(to(BASE + 12), iana.A, b"\1\2\3\4"), id="an owner that runs over an address into itself"),
    pytest.param(record(b"\xc0\x0c", iana.CNAME, to(BASE + 12)), id="an rdata that does"),
    pytest.param(record(b"\xc0\x0c", iana.MX, b"\0\5" + to(BASE + 12)), id="a mail exchanger that does"),
])  # fmt: skip
def test_a_name_that_ran_into_the_opt_was_broken_when_that_was_taken_away(second: bytes) -> None:
    """The address before it is read as a label, which ends with the OPT's first octet."""
    first = record(b"\xc0\x0c", iana.A, bytes((4 + len(second) - 1, 2, 3, 4)))
    with pytest.raises(FormatError):
        parse_reply(message(first, second), QUESTION)


def test_a_name_in_a_ttl_changed_with_the_ttl() -> None:
    """Cached replies get other TTLs: who points at one gets another name, or none."""
    first = record(b"\xc0\x0c", iana.A, b"\1\2\3\4", ttl=0x01620000)
    second = record(to(BASE + 6), iana.AAAA, b"\0" * 16)
    for ttl in (None, 5, 0x3F000000):
        reply = served(message(first, second), ttl)
        assert [str(rrset.name) for rrset in reply.answer] == ["x.org.", "b."]


def test_a_name_in_an_unknown_rdata_is_kept() -> None:
    """Some servers point at names that they wrote into types whose names are not compressed, such as RRSIG's signer."""
    first = record(b"\xc0\x0c", iana.RRSIG, b"\0" * 18 + b"\3sig\3org\0" + b"\0" * 20)
    second = record(to(BASE + 12 + 18), iana.A, b"\1\2\3\4")
    assert [str(rrset.name) for rrset in served(message(first, second)).answer] == ["x.org.", "sig.org."]


def test_ordinary_compression_is_kept_as_it_came() -> None:
    """Owners, and names in rdata that lead to each other, a pointer to a pointer among them."""
    alias = record(b"\xc0\x0c", iana.CNAME, b"\3www\3net\0")
    target = BASE + 12
    more = record(to(target), iana.CNAME, b"\1y" + to(target + 4))
    last = record(to(BASE + len(alias) + 12), iana.A, b"\1\2\3\4")
    again = record(to(BASE + len(alias) + len(more)), iana.A, b"\1\2\3\5")
    found = parse_reply(message(alias, more, last, again), QUESTION).answer
    assert found.body is not None and found.body.data == alias + more + last + again
    names = [str(rrset.name) for rrset in served(message(alias, more, last, again), 5).answer]
    assert names == ["x.org.", "www.net.", "y.net."]


def test_addresses_of_mail_exchangers_are_kept_as_they_came() -> None:
    first = record(b"\xc0\x0c", iana.MX, b"\0\5\4mail" + to(14))
    second = record(to(BASE + 14), iana.A, b"\1\2\3\4")
    found = parse_reply(message(first, second), QUESTION).answer
    assert found.body is not None and found.body.data == first + second


@settings(max_examples=600)
@given(
    st.lists(
        st.tuples(
            st.integers(12, BASE + 120),
            st.sampled_from([iana.A, iana.TXT, iana.CNAME, iana.MX, 999]),
            st.integers(0, 2**31 - 1),
            st.binary(min_size=1, max_size=20),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_taken_means_the_same_without_its_opt_and_with_any_ttl(
    parts: list[tuple[int, int, int, bytes]],
) -> None:
    records = []
    for at, rtype, ttl, rdata in parts:
        data = {
            iana.A: rdata[:4].ljust(4, b"\5"),
            iana.TXT: bytes((len(rdata),)) + rdata,
            iana.CNAME: to(at),
            iana.MX: b"\0\1" + to(at),
        }
        records.append(record(to(at), rtype, data.get(rtype, rdata), ttl))
    try:
        parse_reply(message(*records), QUESTION)
    except FormatError:
        return
    shown = [
        sorted(
            f"{rrset.name} {rrset.rdtype} {each}".lower()
            for rrset in served(message(*records), ttl).answer
            for each in rrset
        )
        for ttl in (None, 0, 0x01610000, 0x3F3F3F3F)
    ]
    assert shown.count(shown[0]) == len(shown)
