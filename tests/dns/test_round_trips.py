"""What is written is read back as it was: records of all layouts, whole messages, queries; what is cut or changed is
read or refused.
"""

import contextlib

import dns.message
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns import edns, freshness, iana, message, name, query, rdata, reply, wire
from kdns.dns.answer import REPLY_EDNS, REPLY_RD, Answer
from kdns.dns.errors import BadName, FormatError
from kdns.dns.query import Question
from kdns.dns.render import decode, render, truncate
from kdns.dns.rrset import RRset

# Few labels, so that names share suffixes and are compressed; letter case is lost where a name is.
labels = st.sampled_from([b"a", b"b", b"\0", b".", b"\xff\x20", b"long" * 15, b"com"])
names = st.lists(labels, max_size=4).map(name.from_labels)
others = sorted({iana.TXT, 256, 257, 65, 35, 999})
times = st.integers(0, 2**31 - 1)


@st.composite
def rdatas(draw: st.DrawFn, rtype: int) -> bytes:
    """An rdata that this type may have."""
    if rtype in rdata.FIXED:
        return draw(st.binary(min_size=rdata.FIXED[rtype], max_size=rdata.FIXED[rtype]))
    if rtype in rdata.NAMES_AT:
        before, count, after = rdata.NAMES_AT[rtype]
        parts = [draw(st.binary(min_size=before, max_size=before))]
        parts += [draw(names) for _ in range(count)]
        return b"".join(parts) + draw(st.binary(min_size=after, max_size=after))
    if rtype == iana.TXT:
        return rdata.txt(*draw(st.lists(st.binary(max_size=20), min_size=1, max_size=3)))
    return draw(st.binary(max_size=40))


@st.composite
def rrsets(draw: st.DrawFn) -> RRset:
    rtype = draw(st.sampled_from([*rdata.FIXED, *rdata.NAMES_AT, *others]))
    found = draw(st.lists(rdatas(rtype), min_size=1, max_size=3, unique=True))
    return RRset(draw(names), rtype, draw(times), tuple(found), draw(st.sampled_from([iana.IN, iana.IN, 3])))


def _apart(rrset: RRset) -> tuple[bytes, int, int]:
    return rrset.owner, rrset.type, rrset.cls


sections = st.tuples(*[st.lists(rrsets(), max_size=2, unique_by=_apart).map(tuple) for _ in range(3)])
questions = st.builds(Question, names, st.sampled_from([iana.A, iana.AAAA, iana.SRV, 65280]), st.just(iana.IN))


@given(names, sections)
@settings(max_examples=80, deadline=None)
def test_sections_are_read_back_as_they_were_rendered(asked: bytes, given_: tuple[tuple[RRset, ...], ...]) -> None:
    body = render(asked, given_)  # type: ignore[arg-type]
    assert decode(asked, body) == given_
    assert len(body.ends) == len(body.ttls) == sum(body.counts)
    assert not body.ends or body.ends[-1] == len(body.data)


@given(
    questions, sections, st.integers(0, 4095), st.sampled_from([0, iana.AA, iana.TC, iana.RA | iana.AD]), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_a_message_is_read_back_as_it_was_packed(
    asked: Question, given_: tuple[tuple[RRset, ...], ...], rcode: int, flags: int, with_opt: bool
) -> None:
    rcode = rcode if with_opt else rcode & 15
    sent = message.pack_query(4711, asked, opt=edns.opt(do=True) if with_opt else b"")
    question, end, opt, _ = query.parse(sent)
    made = Answer(rcode, flags, *given_)
    packed = reply.pack(
        made, made.rendered(asked.name), sent, end, REPLY_RD | (REPLY_EDNS if with_opt else 0), opt, 65535
    )
    found = message.parse_reply(packed)
    assert found.question is not None and found.question.wire == question.wire == asked.wire and found.id == 4711
    assert (found.answer.rcode, found.answer.flags) == (rcode, flags)
    assert found.answer.sections == given_
    # A client that shares no code with us reads the same numbers.
    theirs = (
        dns.message.from_wire(packed, raise_on_truncation=False, ignore_trailing=False)
        if rcode < 11 and _plain(given_)
        else None
    )
    if theirs is not None:
        assert theirs.rcode() == rcode and sum(len(rrset) for rrset in theirs.answer) <= sum(
            len(r.rdatas) for r in given_[0]
        )


def _plain(given_: tuple[tuple[RRset, ...], ...]) -> bool:
    """Whether dnspython has no rules of its own for what is in the sections."""
    return all(
        rrset.type in (iana.A, iana.AAAA, iana.NS, iana.CNAME, iana.MX) and rrset.cls == iana.IN
        for s in given_
        for rrset in s
    )


@given(names, sections, st.integers(0, 1400))
@settings(max_examples=60, deadline=None)
def test_what_fits_is_a_beginning_of_each_section_and_a_loss_is_said(
    asked: bytes, given_: tuple[tuple[RRset, ...], ...], room: int
) -> None:
    body = render(asked, given_)  # type: ignore[arg-type]
    data, counts, lost = truncate(given_, body, room)  # type: ignore[arg-type]
    assert len(data) <= room and all(kept <= full for kept, full in zip(counts, body.counts, strict=True))
    assert lost == (counts[:2] != body.counts[:2])
    budget = wire.Budget()
    whole = b"\0" * 12 + asked + b"\0\0\0\0" + data
    off = 12 + len(asked) + 4
    flat = [(r.owner, r.type) for section in given_ for r in section for _ in r.rdatas]
    kept = list(wire.records(whole, off, sum(counts), budget))
    assert [(r.owner, r.type) for r in kept][: counts[0]] == flat[: counts[0]] and (
        kept[-1].end if kept else off
    ) == len(whole)


@given(
    questions,
    sections,
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
@settings(max_examples=80, deadline=None)
def test_a_message_that_was_changed_on_its_way_is_read_or_refused_and_what_is_read_can_be_written(
    asked: Question, given_: tuple[tuple[RRset, ...], ...], changes: list[tuple[int, int]], cut: int
) -> None:
    sent = message.pack_query(1, asked, opt=edns.opt(do=False))
    _, end, opt, _ = query.parse(sent)
    made = Answer(0, 0, *given_)
    data = bytearray(reply.pack(made, made.rendered(asked.name), sent, end, REPLY_RD | REPLY_EDNS, opt, 65535))
    for at, octet in changes:
        data[at % len(data)] = octet
    octets = bytes(data[: max(len(data) - cut, 0)]) if cut < 400 else bytes(data)
    with contextlib.suppress(FormatError):
        found = message.parse_reply(octets, asked)
        sections_ = found.answer.sections
        if found.question is not None and sum(map(len, sections_)) < 50:
            body = render(found.question.name, sections_)
            assert len(body.ends) == sum(body.counts)
    with contextlib.suppress(FormatError):
        query.parse(octets)
    assert len(freshness.older(octets, 60)) == len(octets)


@given(questions, sections, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_an_older_reply_has_the_same_records_with_less_time_left(
    asked: Question, given_: tuple[tuple[RRset, ...], ...], seconds: int
) -> None:
    sent = message.pack_query(1, asked, opt=edns.opt(do=False))
    _, end, opt, _ = query.parse(sent)
    made = Answer(0, 0, *given_)
    octets = reply.pack(made, made.rendered(asked.name), sent, end, REPLY_RD | REPLY_EDNS, opt, 65535)
    off = 12 + len(asked.name) + 4
    counts = sum(int.from_bytes(octets[at : at + 2], "big") for at in (6, 8, 10))
    before = list(wire.records(octets, off, counts, wire.Budget()))
    after = list(wire.records(freshness.older(octets, seconds), off, counts, wire.Budget()))
    assert [(r.owner, r.type, r.end) for r in before] == [(r.owner, r.type, r.end) for r in after]
    for old, new in zip(before, after, strict=True):
        least = old.ttl if old.type == iana.OPT else max(old.ttl - seconds, 0)
        assert new.ttl <= least if old.type == iana.SOA else new.ttl == least


@given(st.text(max_size=60) | st.text(alphabet="a.\\0129é*_-", max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_text_is_a_name_or_no_name_and_a_name_is_told_back(text: str) -> None:
    with contextlib.suppress(BadName):
        made = name.from_text(text)
        assert len(made) <= name.MAX_NAME and name.from_text(name.to_text(made)) == made
        assert name.from_labels(name.labels(made)) == made


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=30)), max_size=10), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_options_are_read_back_and_a_cut_is_seen(made: list[tuple[int, bytes]], room: int) -> None:
    raw = b"".join(edns.option(code, data) for code, data in made)
    assert edns.options(raw) == made
    assert len(edns.within(raw, room)) <= room
    with contextlib.suppress(FormatError):
        assert edns.options(raw[:-1]) == made[:-1]  # an option without data is four octets: less is a cut
        assert not made
