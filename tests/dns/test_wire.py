"""Names, the scanner, queries, answers: against dnspython, and against what hostile senders make."""

import contextlib
import ipaddress
import struct
import time

import dns.message
import dns.name
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns import edns, iana, message, name, query, rdata, reply, reverse, wire
from kdns.dns.answer import Answer, render, with_cname_prefix
from kdns.dns.errors import BadName, FormatError
from kdns.dns.rrset import RRset

labels = st.binary(min_size=1, max_size=20)
names = st.lists(labels, max_size=8)


@given(names)
def test_a_name_goes_to_text_and_back(parts: list[bytes]) -> None:
    made = name.from_labels(parts)
    assert name.from_text(name.to_text(made)) == made
    assert name.labels(made) == parts
    assert name.to_text(made).isascii() and name.to_text(made).isprintable()
    assert dns.name.from_text(name.to_text(made)).to_wire() == made


@pytest.mark.parametrize("text", ["a..b", ".a", "a" * 64, "a." * 128, "\\300.x", "x\\", "x\\1"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        name.from_text(text)


def test_a_suffix_is_a_matter_of_labels() -> None:
    com = name.from_text("com.")
    assert name.is_within(name.from_text("x.com."), com) and name.is_within(com, com) and name.is_within(com, b"\0")
    assert not name.is_within(b"\x05x\x03com\0", com)
    assert not name.is_within(name.from_text("xcom."), com)


@given(st.ip_addresses())
def test_an_address_goes_to_its_reverse_name_and_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    made = reverse.name_of(address.packed)
    assert name.to_text(made) == address.reverse_pointer + "."
    assert reverse.address_of(made) == address.packed
    assert reverse.address_of(b"\x01x" + made) is None


@pytest.mark.parametrize(
    "text",
    ["01.0.0.10.in-addr.arpa.", "256.0.0.10.in-addr.arpa.", "1.0.10.in-addr.arpa.", "in-addr.arpa.", "x.ip6.arpa."],
)
def test_what_is_no_reverse_name_has_no_address(text: str) -> None:
    assert reverse.address_of(name.from_text(text)) is None


# The scanner.


@given(st.binary(max_size=300))
@settings(max_examples=600)
def test_any_octets_are_read_or_refused(data: bytes) -> None:
    for read in (
        lambda: query.parse(data),
        lambda: message.parse_reply(data),
        lambda: message.parse_reply(b"\0\0\x80\0\0\1\0\2\0\1\0\1" + data),
    ):
        with contextlib.suppress(FormatError):
            read()


def test_a_pointer_leads_backward_or_nowhere() -> None:
    head = b"\0" * 12
    for data in (b"\xc0\x0c", b"\xc0\x0e", b"\x01a\xc0\x0c", b"\xc0\x00", b"\xff\xff", b"\xc0"):
        with pytest.raises(FormatError):
            wire.read_name(head + data, 12, wire.Budget())


def test_64_kib_of_pointers_cost_bounded_time() -> None:
    body = bytearray(b"\x01a\0")
    while len(body) < 16000:
        body += struct.pack("!H", 0xC000 | (12 + max(len(body) - 2, 0)) if len(body) > 3 else 0xC00C)
    records = bytearray()
    while len(records) + len(body) < 64000:
        records += struct.pack("!HHHIH", 0xC000 | 12 + len(body) - 2, 1, 1, 0, 0)
    count = len(records) // 12
    data = struct.pack("!6H", 0, 0x8000, 0, count, 0, 0) + bytes(records)
    began = time.thread_time()
    with pytest.raises(FormatError):
        message.parse_reply(data)
    assert time.thread_time() - began < 0.5


def test_replies_of_all_kinds_are_read_as_dnspython_wrote_them() -> None:
    records = {
        "A": "192.0.2.1", "AAAA": "2001:db8::1", "MX": "10 mail.example.org.", "TXT": '"one" "two"',
        "SRV": "1 2 3 t.example.org.",
        "CAA": '0 issue "ca.example.org"', "NAPTR": '1 2 "u" "x" "!a!b!" .', "HTTPS": "1 . alpn=h2",
        "DS": "1 8 2 " + "00" * 32,
    }  # fmt: skip
    for rtype, text in records.items():
        asked = dns.message.make_query("www.example.org.", rtype, use_edns=0)
        made = dns.message.make_response(asked)
        made.answer.append(dns.rrset.from_text("www.example.org.", 300, "IN", rtype, text))
        made.authority.append(
            dns.rrset.from_text("example.org.", 300, "IN", "NS", "ns1.example.org.", "ns2.example.org.")
        )
        made.additional.append(dns.rrset.from_text("ns1.example.org.", 300, "IN", "A", "192.0.2.53"))
        found = message.parse_reply(made.to_wire())
        sent = query.parse(asked.to_wire())
        packed = reply.pack(
            found.answer, found.answer.rendered(sent[0].name), asked.to_wire(), sent[1], 5, sent[2], 65535
        )
        back = dns.message.from_wire(packed)
        assert (back.answer, back.authority, back.additional) == (made.answer, made.authority, made.additional), rtype
        anew = Answer(0, 0, *found.answer.sections)
        packed = reply.pack(anew, anew.rendered(sent[0].name), asked.to_wire(), sent[1], 5, sent[2], 65535)
        assert dns.message.from_wire(packed).answer == made.answer, rtype


@pytest.mark.parametrize(
    ("rtype", "data"),
    [
        (iana.A, b"\1\2\3"),
        (iana.A, b"\1\2\3\4\5"),
        (iana.AAAA, b"\1" * 15),
        (iana.TXT, b"\5ab"),
        (iana.MX, b"\0"),
        (iana.NS, b"\x05ab"),
    ],
)
def test_rdata_that_cannot_be_of_its_type_is_refused(rtype: int, data: bytes) -> None:
    head = struct.pack("!6H", 1, 0x8000, 1, 1, 0, 0) + b"\x01a\0" + struct.pack("!2H", rtype, 1)
    with pytest.raises(FormatError):
        message.parse_reply(head + b"\xc0\x0c" + struct.pack("!HHIH", rtype, 1, 60, len(data)) + data)


def test_a_body_is_rendered_anew_behind_another_name() -> None:
    zone = name.from_text("example.org.")
    one, two = name.from_text("a.example.org."), name.from_text("longer.example.org.")
    made = Answer(0, 0, (RRset(one, iana.CNAME, 5, (two,)), RRset(two, iana.A, 5, (b"\1\2\3\4",))))
    for asked in (one, two, zone):
        body = made.rendered(asked)
        packed = b"\0\1\x80\0\0\1\0\2\0\0\0\0" + asked + b"\0\1\0\1" + body.data
        assert [str(rrset.name) for rrset in dns.message.from_wire(packed).answer] == [
            "a.example.org.",
            "longer.example.org.",
        ]


def test_compression_of_thousands_of_names_is_linear() -> None:
    asked = name.from_text("x.example.org.")
    owners = [name.from_text(f"n{i}.example.org.") for i in range(4000)]
    began = time.thread_time()
    body = render(asked, ((), (), tuple(RRset(owner, iana.A, 1, (b"\1\2\3\4",)) for owner in owners)))
    assert time.thread_time() - began < 1 and len(body.data) <= 65600


def test_ttls_are_changed_where_they_stand() -> None:
    asked = name.from_text("x.org.")
    made = Answer(
        0, 0, (RRset(asked, iana.A, 300, (b"\1\2\3\4", b"\1\2\3\5")),), (RRset(asked, iana.NS, 60, (asked,)),)
    )
    aged = made.with_body(made.rendered(asked).with_ttl(7), 0)
    assert {rrset.ttl for section in aged.sections for rrset in section} == {7}


def test_opts_of_odd_kinds_are_read_or_refused() -> None:
    assert edns.options(edns.option(10, b"12345678") + edns.option(15, b"")) == [(10, b"12345678"), (15, b"")]
    for raw in (b"\0", b"\0\1\0", b"\0\1\0\2x"):
        with pytest.raises(FormatError):
            edns.options(raw)
    assert rdata.txt(b"a", b"bc") == b"\1a\2bc"


@given(
    st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=5, unique=True),
    st.booleans(),
    st.integers(0, 600),
    st.integers(0, 600),
)
def test_addresses_behind_an_alias_are_what_a_rendering_would_be(
    found: list[bytes], v6: bool, ttl: int, most: int
) -> None:
    target, asked = name.from_text("api.example.net."), name.from_text("api.example.net.n1.svc.cluster.local.")
    rtype = iana.AAAA if v6 else iana.A
    rdatas = tuple(data * 4 if v6 else data for data in found)
    made = with_cname_prefix(asked, target, render(target, ((RRset(target, rtype, ttl, rdatas),), (), ())), most)
    cname = RRset(asked, iana.CNAME, min(ttl, most), (target,))
    expected = render(asked, ((cname, RRset(target, rtype, ttl, rdatas)), (), ()))
    assert made is not None and (made.data, made.counts) == (expected.data, expected.counts)
    assert (list(made.ends), list(made.ttls)) == (list(expected.ends), list(expected.ttls))


def test_what_is_more_than_addresses_of_the_target_takes_a_rendering() -> None:
    target, asked = name.from_text("a.org."), name.from_text("a.org.n1.svc.cluster.local.")
    address = RRset(target, iana.A, 60, (b"\n\0\0\1",))
    for sections in (
        ((RRset(target, iana.CNAME, 60, (name.from_text("b.org."),)),
            RRset(name.from_text("b.org."), iana.A, 60, (b"\n\0\0\1",))), (), ()),
        ((address,), (address,), ()), ((address,), (), (address,)), ((), (), ()),
        ((RRset(target, iana.TXT, 60, (b"\1x",)),), (), ()),
        ((RRset(name.from_text("c.org."), iana.A, 60, (b"\n\0\0\1",)),), (), ()), ((address._replace(cls=3),), (), ()),
    ):  # fmt: skip
        assert with_cname_prefix(asked, target, render(target, sections), 60) is None
