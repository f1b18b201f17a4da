"""An upstream's message, read through the bounded scanner and kept as it came.

The body is cut out between question and OPT: its pointers lead into itself or the question, and the client's
question is as long as the one that was sent. So a forwarded answer is never taken apart, unless a plugin asks
for its records. Where an OPT or a TSIG stands before other records, or a pointer leads to octets that are not a name,
the sections are rendered anew: the OPT is taken out, and a cache changes TTLs.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from kdns.dns import edns as _edns
from kdns.dns import iana, wire
from kdns.dns.answer import Answer
from kdns.dns.errors import FormatError
from kdns.dns.query import Question
from kdns.dns.render import Body, RecordSummary
from kdns.dns.rrset import RRset

_FOR_CLIENTS: Final = frozenset((_edns.EDE, _edns.SUBNET))
_TO_QUESTION: Final = b"\xc0\x0c"  # a pointer to the octet behind the header
_counts: Final = struct.Struct("!HHHH").unpack_from
_fixed: Final = struct.Struct("!HHIH").unpack_from  # a record's type, class, TTL and length of rdata


class Message(NamedTuple):
    """A reply: its id, its question (None where it has none), the OPT's, and the answer."""

    id: int
    opcode: int
    question: Question | None
    answer: Answer


def parse_reply(data: bytes, asked: Question | None = None) -> Message:
    """Reads a reply. Raises FormatError for anything that is not one well-formed message with QR set.

    `asked` is the question that was sent: a reply repeats it octet by octet nearly always, and is then not read again.
    """
    if len(data) < 12 or not data[2] & 0x80:
        raise FormatError("no reply")
    qd, an, ns, ar = _counts(data, 4)
    if qd > 1:
        raise FormatError("more than one question")
    budget = wire.Budget()
    question = None
    off = 12
    if qd:
        if asked is not None and data.startswith(asked.wire, 12):
            question = asked
            off += len(asked.wire)
        else:
            name, off = wire.read_name(data, 12, budget)
            if off + 4 > len(data) or off - 12 != len(name):
                raise FormatError("the question is truncated or compressed")
            question = Question(name.lower(), data[off] << 8 | data[off + 1], data[off + 2] << 8 | data[off + 3])
            off += 4
    name, starts = (question.name, question.starts) if question is not None else (b"\0", [])
    answer = _content(data, off, (an, ns, ar), name, starts, budget)
    return Message(data[0] << 8 | data[1], data[2] >> 3 & 15, question, answer)


def _content(  # noqa: C901 - one pass over a message, checked as it goes
    data: bytes, base: int, claimed: tuple[int, int, int], name: bytes, starts: Sequence[int], budget: wire.Budget
) -> Answer:
    """The answer in a reply, whose records begin at `base` behind a question of this name, whose labels begin at
    `starts`.

    Raises FormatError.
    """
    total = len(data)
    ends: list[int] = []
    ttls: list[int] = []
    summary: list[RecordSummary] = []
    rcode = data[3] & 15
    options = b""
    stop = total  # where an OPT or TSIG begins, which is not ours to keep
    clean = True
    counts = []
    off = base
    for count in claimed:
        for _ in range(count):
            start = off
            # Most owners are a pointer to the question's name, which has been read.
            if data.startswith(_TO_QUESTION, off) and base > 16:
                owner, fixed = name, off + 2
            elif data.startswith(b"\0", off):
                owner, fixed = b"\0", off + 1  # an OPT's, nearly always
            else:
                if budget.heads is None:
                    budget.heads = set()
                owner, fixed = wire.read_name(data, off, budget)
                owner = owner.lower()
            off = fixed + 10
            if off > total:
                raise FormatError("a record is truncated")
            rtype, cls, ttl, size = _fixed(data, fixed)
            off += size
            if off > total:
                raise FormatError("an rdata runs past the end of the message")
            if rtype == iana.OPT or rtype == iana.TSIG:
                if rtype == iana.OPT:
                    rcode |= data[fixed + 4] << 4
                    if size:
                        raw = data[fixed + 10 : off]
                        _edns.check_options(raw, in_reply=True)
                        options = b"".join([_edns.option(c, p) for c, p in _edns.options(raw) if c in _FOR_CLIENTS])
                if start < stop:
                    stop = start
                continue
            if stop != total:
                clean = False
            target = b""
            if (size == 4 and rtype == iana.A) or (size == 16 and rtype == iana.AAAA):
                pass
            elif rtype == iana.CNAME:
                if budget.heads is None:
                    budget.heads = set()
                target, end = wire.read_name(data, fixed + 10, budget)
                if end != off:
                    raise FormatError("an rdata and its name differ in length")
                target = target.lower()
            else:
                if budget.heads is None:
                    budget.heads = set()
                wire.check_rdata(data, wire.Record(owner, rtype, cls, ttl, start, fixed, off), budget)
            # RFC 2181, section 8: a TTL with the most significant bit set counts as zero.
            summary.append(RecordSummary(owner, rtype, ttl if ttl < 0x80000000 else 0, target))
            ends.append(off - base)
            ttls.append(fixed + 4 - base)
        counts.append(len(ends))
    an, ns, ar = counts
    word = data[2] << 8 | data[3]
    flags = word & (iana.AA | iana.TC | iana.RA | iana.AD)
    if not clean or (budget.strays is not None and not _in_question(budget.strays, starts)):
        return _anew(data, base, claimed, rcode, flags)
    body = Body(data[base : stop if stop < off else off], (an, ns - an, ar - ns), ends, ttls)
    answer = Answer(rcode, flags, options=options, name=name, body=body)
    answer.summary = summary
    return answer


def _in_question(targets: list[int], starts: Sequence[int]) -> bool:
    """True if pointers lead to labels of the question's name, which are none of `heads`."""
    for target in targets:  # noqa: SIM110 - `all` of a generator takes four times as long
        if target - 12 not in starts:
            return False
    return True


def _anew(data: bytes, base: int, counts: tuple[int, int, int], rcode: int, flags: int) -> Answer:
    budget = wire.Budget()
    off = base
    sections: list[list[RRset]] = []
    for count in counts:
        section = []
        for record in wire.records(data, off, count, budget):
            off = record.end
            if record.type not in (iana.OPT, iana.TSIG):
                rdata = wire.expand_rdata(data, record, budget)
                section.append(RRset(record.owner, record.type, record.ttl, (rdata,), record.cls))
        sections.append(section)
    return Answer(rcode, flags, *sections)


def pack_query(
    qid: int, question: Question, *, rd: bool = True, cd: bool = False, ad: bool = False, opt: bytes = b""
) -> bytes:
    """A query's bytes; `opt` is an OPT record's wire form, or empty."""
    word = (iana.RD if rd else 0) | (iana.CD if cd else 0) | (iana.AD if ad else 0)
    return b"".join((
        qid.to_bytes(2, "big"), word.to_bytes(2, "big"), b"\0\1\0\0\0\0", b"\0\1" if opt else b"\0\0",
        question.wire, opt,
    ))  # fmt: skip
