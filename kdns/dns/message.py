"""An upstream's message, read through the bounded scanner and kept as it came.

The body is cut out between question and OPT: its pointers lead into itself or the question, and the client's
question is as long as the one that was sent. So a forwarded answer is never taken apart, unless a plugin asks
for its records. Where an OPT or a TSIG stands before other records, the sections are rendered anew.
"""

from typing import NamedTuple

from kdns.dns import edns as _edns
from kdns.dns import iana, wire
from kdns.dns.answer import Answer, Body
from kdns.dns.errors import FormatError
from kdns.dns.query import Question
from kdns.dns.rrset import RRset

_FOR_CLIENTS = frozenset((_edns.EDE, _edns.SUBNET))


class Message(NamedTuple):
    """A reply: its id, its question (None where it has none), the OPT's, and the answer."""

    id: int
    opcode: int
    question: Question | None
    answer: Answer


def parse_reply(data: bytes) -> Message:
    """Reads a reply. Raises FormatError for anything that is not one well-formed message with QR set."""
    if len(data) < 12 or not data[2] & 0x80:
        raise FormatError("no reply")
    word = data[2] << 8 | data[3]
    qd, an, ns, ar = (data[i] << 8 | data[i + 1] for i in (4, 6, 8, 10))
    if qd > 1:
        raise FormatError("more than one question")
    budget = wire.Budget()
    question = None
    off = 12
    if qd:
        name, off = wire.read_name(data, 12, budget)
        if off + 4 > len(data) or off - 12 != len(name):
            raise FormatError("the question is cut or compressed")
        question = Question(name.lower(), data[off] << 8 | data[off + 1], data[off + 2] << 8 | data[off + 3])
        off += 4
    base = off
    ends: list[int] = []
    ttls: list[int] = []
    rcode = word & 15
    options = b""
    stop = len(data)
    clean = True
    counts = []
    for count in (an, ns, ar):
        kept = 0
        for record in wire.records(data, off, count, budget):
            off = record.end
            if record.type in (iana.OPT, iana.TSIG):
                if record.type == iana.OPT:
                    at = record.fixed
                    raw = data[at + 10 : off]
                    found = _edns.from_record(record.cls, data[at + 4 : at + 8], raw)
                    rcode |= data[at + 4] << 4
                    # An extended error is for whoever asked (RFC 8914, section 4), the subnet's scope too (RFC 7871,
                    # section 7.2.2); the rest is between us and the upstream.
                    options = b"".join(_edns.option(c, p) for c, p in _edns.options(found.options) if c in _FOR_CLIENTS)
                stop = min(stop, record.start)
                continue
            clean = clean and stop == len(data)
            wire.check_rdata(data, record, budget)
            kept += 1
            ends.append(off - base)
            ttls.append(record.fixed + 4 - base)
        counts.append(kept)
    flags = word & (iana.AA | iana.TC | iana.RA | iana.AD)
    body = Body(data[base : min(stop, off)], (counts[0], counts[1], counts[2]), ends, ttls)
    name_asked = question.name if question is not None else b"\0"
    if not clean:
        return Message(data[0] << 8 | data[1], (word >> 11) & 15, question, _anew(data, base, (an, ns, ar), rcode, flags))
    answer = Answer(rcode, flags, options=options, name=name_asked, body=body)
    return Message(data[0] << 8 | data[1], (word >> 11) & 15, question, answer)


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


def pack_query(qid: int, question: Question, *, rd: bool = True, cd: bool = False, ad: bool = False, opt: bytes = b"") -> bytes:
    """A query's bytes; `opt` is an OPT record's wire form, or empty."""
    word = (iana.RD if rd else 0) | (iana.CD if cd else 0) | (iana.AD if ad else 0)
    return b"".join((
        qid.to_bytes(2, "big"), word.to_bytes(2, "big"), b"\0\1\0\0\0\0", b"\0\1" if opt else b"\0\0",
        question.name, question.type.to_bytes(2, "big"), question.cls.to_bytes(2, "big"), opt,
    ))  # fmt: skip
