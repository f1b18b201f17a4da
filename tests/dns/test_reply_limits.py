"""A reply never exceeds its limit: options count too, and give way before records do."""

import itertools

import dns.edns
import dns.flags
import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.dns import edns, iana, reply
from kdns.dns.answer import Answer
from kdns.dns.query import Question
from kdns.dns.rrset import RRset
from kdns.testing import answer, block, code, data
from tests.fixtures import Serve, Start

QUESTION = Question(b"\1x\3org\0", iana.A)
QUERY = b"\0\1\1\0\0\1\0\0\0\0\0\1" + QUESTION.wire
NSID = edns.option(edns.NSID, b"right")


def packed(records: int, options: bytes, limit: int) -> dns.message.Message:
    rdatas = tuple(bytes((10, 0, 0, i)) for i in range(records))
    found = Answer(answer=(RRset(QUESTION.name, iana.A, 60, rdatas),), options=options)
    wire = reply.pack(found, found.rendered(QUESTION.name), QUERY, len(QUERY), 5, edns.Edns(limit), limit)
    assert len(wire) <= limit
    return dns.message.from_wire(wire)


def ede(message: dns.message.Message) -> str | None:
    return next((option.text for option in message.options if isinstance(option, dns.edns.EDEOption)), None)


def test_the_text_of_an_extended_error_is_shortened_before_records_are_cut() -> None:
    for records in (1, 10, 25):
        found = packed(records, edns.extended_error(6, b"x" * 3500) + NSID, 512)
        assert len(found.answer[0]) == records and not found.flags & dns.flags.TC
        assert set(ede(found) or "") == {"x"} and len(found.options) == 2
        assert len(found.to_wire()) == 512


def test_an_extended_error_goes_before_records_do() -> None:
    """29 addresses leave room for nothing but a small option."""
    found = packed(29, edns.extended_error(6, b"x" * 3500) + NSID, 512)
    assert len(found.answer[0]) == 29 and [option.otype for option in found.options] == [dns.edns.OptionType.NSID]
    assert not found.flags & dns.flags.TC
    found = packed(200, edns.extended_error(6, b"short") + NSID, 512)
    assert found.flags & dns.flags.TC and [option.otype for option in found.options] == [dns.edns.OptionType.NSID]


def test_options_that_leave_no_room_for_the_question_go_too() -> None:
    found = packed(1, edns.option(edns.NSID, b"x" * 600), 512)
    assert len(found.answer[0]) == 1 and not found.options


def test_a_text_is_shortened_between_characters() -> None:
    for size in range(400, 420):
        found = edns.within(edns.extended_error(0, "é€𝄞".encode() * 200), size)
        assert size - 4 < len(found) <= size
        ((_, payload),) = edns.options(found)
        assert payload[2:].decode()


@given(
    st.lists(
        st.tuples(st.sampled_from([edns.NSID, edns.SUBNET, edns.EDE]), st.binary(min_size=2, max_size=80)), max_size=6
    ),
    st.integers(-5, 400),
)
def test_options_are_within_what_is_asked_for(parts: list[tuple[int, bytes]], room: int) -> None:
    whole = b"".join(edns.option(each, payload) for each, payload in parts)
    found = edns.within(whole, room)
    assert len(found) <= max(room, 0) and len(edns.options(found)) <= len(parts)
    assert len(whole) > room or found == whole


def test_an_upstreams_extended_error_made_a_reply_of_3500_octets_for_who_takes_512(
    serve: Serve, upstream: Start
) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        name = query.question[0].name.labels[0]
        said = answer(query, *(f"A 10.0.0.{i}" for i in range(0 if name == b"none" else 5)))
        said.use_edns(0, options=[dns.edns.EDEOption(6, "x" * 3500)])
        if name == b"none":
            said.set_rcode(2)
        return said

    server = serve(block(f"forward . {upstream(script).address} {{\n force_tcp\n }}"))
    for name, payload in itertools.product(("some", "none"), (512, 600, 1232, 4096)):
        query = dns.message.make_query(f"{name}.org.", "A", use_edns=0, payload=payload)
        wire = server.raw(query.to_wire())
        assert wire is not None and len(wire) <= min(payload, 1232)
        found = dns.message.from_wire(wire)
        assert len(data(found)) == (5 if name == "some" else 0) and code(found) == (
            "NOERROR" if name == "some" else "SERVFAIL"
        )
        assert set(ede(found) or "") == {"x"}
    assert len(ede(server.ask("some.org.", tcp=True, use_edns=0)) or "") == 3500


@pytest.mark.parametrize("size", [0, 400, 2000])
def test_a_code_alone_is_within_the_limit_too(size: int) -> None:
    wire = reply.bare(QUERY, len(QUERY), iana.SERVFAIL, edns.Edns(512), edns.extended_error(0, b"x" * size), 512)
    assert len(wire) <= 512 and len(dns.message.from_wire(wire).options) == 1


def _addresses(query: dns.message.Message, proto: str) -> dns.message.Message:
    """Ninety addresses, validated: over UDP a client gets them truncated."""
    said = answer(query, *(f"A 10.0.0.{i}" for i in range(90)))
    said.flags |= dns.flags.AD
    return said


def test_a_truncated_reply_had_the_ad_bit_of_who_asked_before(serve: Serve, upstream: Start) -> None:
    server = serve(block(f"cache 30\n forward . {upstream(_addresses).address} {{\n force_tcp\n }}"))
    for wants in (True, False, True, False):
        query = dns.message.make_query("big.org.", "A")
        query.flags |= dns.flags.AD if wants else 0
        wire = server.raw(query.to_wire())
        found = dns.message.from_wire(wire or b"")
        assert found.flags & dns.flags.TC and bool(found.flags & dns.flags.AD) == wants


def test_a_truncated_reply_with_a_cookie_was_longer_than_its_limit_after_one_without(
    serve: Serve, upstream: Start
) -> None:
    server = serve(block(f"cookie\n cache 30\n forward . {upstream(_addresses).address} {{\n force_tcp\n }}"))
    for options in ([], [], [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")]):
        wire = server.raw(dns.message.make_query("big.org.", "A", use_edns=0, payload=1232, options=options).to_wire())
        assert wire is not None and len(wire) <= 1232 and wire[2] & 2


def test_a_truncated_reply_keeps_its_own_code_and_flags_where_answers_share_their_records() -> None:
    records = tuple(bytes((10, 0, 0, i)) for i in range(90))
    first = Answer(iana.NOERROR, iana.AA | iana.AD, (RRset(QUESTION.name, iana.A, 60, records),))
    body = first.rendered(QUESTION.name)
    for found in (first, first.replace(flags=iana.RA), first.replace(rcode=iana.REFUSED)):
        wire = reply.pack(found, body, QUERY, len(QUERY), 5, edns.Edns(512), 512)
        message = dns.message.from_wire(wire)
        assert message.rcode() == found.rcode and message.flags & 0x04A0 == found.flags & 0x04A0


@given(st.integers(0, 200), st.integers(512, 4000), st.integers(0, 60))
def test_a_reply_that_was_truncated_was_not_padded(records: int, limit: int, size: int) -> None:
    """RFC 7830, section 4: it must be, where that does not make it too long."""
    rdatas = tuple(b"\0\1" + bytes((i,)) * size for i in range(records))
    found = Answer(answer=(RRset(QUESTION.name, 999, 60, rdatas),))
    wire = reply.pack(found, found.rendered(QUESTION.name), QUERY, len(QUERY), 5, edns.Edns(limit), limit, padded=True)
    assert len(wire) % edns.PADDING_BLOCK == 0 or limit - 4 < len(wire) <= limit
    assert dns.message.from_wire(wire).edns == 0
