"""From an answer to the octets that leave: header, question as asked, body, OPT; truncated where it does not fit.

Law: no reply is longer than its limit. Where it would be, the texts of extended errors are shortened, then those errors
are left out, then records. Options alone that are too long are left out.
"""

from typing import Final

from kdns.dns import edns as _edns
from kdns.dns import iana
from kdns.dns.answer import REPLY_CD, REPLY_RD, Answer, pack_head
from kdns.dns.edns import Edns
from kdns.dns.render import Body, truncate

_OPT: Final = 11  # octets of an OPT without options


def flags_of(data: bytes) -> int:
    """The header bits of a query that a reply repeats (REPLY_*), without EDNS."""
    return (REPLY_RD if data[2] & 1 else 0) | (REPLY_CD if data[3] & 0x10 else 0)


def pack(
    answer: Answer, body: Body, data: bytes, end: int, reply_flags: int, edns: Edns | None, limit: int,
    added: bytes = b"",
    padded: bool = False,
) -> bytes:  # fmt: skip
    """A whole reply of at most `limit` octets to the query `data` whose question ends at `end`.

    `body` is the answer's, rendered for that question; `reply_flags` are REPLY_*; `added` are options beside the
    answer's.
    """
    head = answer.heads[reply_flags]
    if head is None:
        head = answer.head(reply_flags, body)
    options = b""
    if edns is None:
        opt = b""
    elif answer.options or added or padded or answer.rcode > 15 or edns.compact:
        options = _fitting(answer.options + added, limit - end - _OPT, len(body.data))
        if padded:
            options = _edns.padded(options, end + len(body.data) + _OPT + len(options), limit)
        opt = _edns.opt(do=edns.do, options=options, rcode=answer.rcode, co=edns.compact)
    else:
        opt = _edns.WITH_DO if edns.do else _edns.PLAIN
    records = body.data
    if end + len(records) + len(opt) > limit:
        head, records = _truncated(answer, body, reply_flags, limit - end - len(opt), limit)
        if padded and edns is not None:  # there was no room before
            options = _edns.padded(options, end + len(records) + len(opt), limit)
            opt = _edns.opt(do=edns.do, options=options, rcode=answer.rcode, co=edns.compact)
    return b"".join((data[:2], head, data[12:end], records, opt))


def _fitting(options: bytes, room: int, records: int) -> bytes:
    """What of options leaves in `room` octets, of which records want so many; extended errors leave them theirs."""
    if not options or len(options) <= room - records:
        return options
    least = sum(4 + len(payload) for code, payload in _edns.options(options) if code != _edns.EDE)
    return _edns.within(options, max(room - records, least if least <= room else 0))


def _truncated(answer: Answer, body: Body, reply_flags: int, room: int, limit: int) -> tuple[bytes, bytes]:
    """The head of a reply and what of its records fits into `room`, with TC where something is missing."""
    memo = body.truncated
    known = memo.get(room) if memo is not None else None
    if known is None:
        known = truncate(answer.sections, body, room)
        # Kept for the limits that nearly all clients have: no EDNS, and DNS Flag Day 2020.
        if limit in (_edns.MIN_SIZE, _edns.UDP_SIZE) and not answer.options:
            if memo is None:
                memo = body.truncated = {}
            memo[room] = known
    part, counts, lost = known
    return pack_head(answer.flags | (iana.TC if lost else 0), answer.rcode, reply_flags, counts), part


def bare(
    data: bytes,
    end: int,
    rcode: int,
    edns: Edns | None,
    options: bytes = b"",
    limit: int = _edns.MIN_SIZE,
    padded: bool = False,
) -> bytes:
    """A reply that is nothing but a code: header, the question if it was read (`end` > 12), OPT if the query had one.

    It has at most `limit` octets.
    """
    word = iana.QR | (data[2] & 0x79) << 8 | (data[3] & 0x10) | (rcode & 15)
    counts = b"\0\1\0\0\0\0" if end > 12 else b"\0\0\0\0\0\0"
    if edns is None:
        return b"".join((data[:2], word.to_bytes(2, "big"), counts, b"\0\0", data[12:end]))
    options = _fitting(options, limit - end - _OPT, 0)
    if padded:
        options = _edns.padded(options, end + _OPT + len(options), limit)
    opt = _edns.opt(do=edns.do, options=options, rcode=rcode)
    return b"".join((data[:2], word.to_bytes(2, "big"), counts, b"\0\1", data[12:end], opt))


def refusal(data: bytes, rcode: int, opcode_kept: bool, question: bytes = b"") -> bytes:
    """The reply of an accept check that failed: TC, RD, RA, AD and CD as in the query, no OPT, no records.

    `opcode_kept` is for NOTIMP; a FORMERR leaves with opcode QUERY.
    """
    word = iana.QR | (data[2] << 8 | data[3]) & (iana.TC | iana.RD | iana.RA | iana.AD | iana.CD) | rcode
    if opcode_kept:
        word |= (data[2] & 0x78) << 8
    counts = b"\0\1" if question else b"\0\0"
    return data[:2] + word.to_bytes(2, "big") + counts + b"\0\0\0\0\0\0" + question
