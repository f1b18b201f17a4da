"""From an answer to the bytes that leave: header, question as asked, body, OPT; cut where it does not fit."""

from kdns.dns import edns as _edns
from kdns.dns import iana
from kdns.dns.answer import SHAPE_CD, SHAPE_EDNS, SHAPE_RD, Answer, Body, cut, pack_head
from kdns.dns.edns import Edns


def shape_of(data: bytes, edns: Edns | None) -> int:
    """The bits of a query that a reply's header repeats, as Answer.heads is indexed."""
    return (SHAPE_RD if data[2] & 1 else 0) | (SHAPE_CD if data[3] & 0x10 else 0) | (SHAPE_EDNS if edns is not None else 0)


def pack(answer: Answer, body: Body, data: bytes, end: int, shape: int, edns: Edns | None) -> bytes:
    """A whole reply to the query `data` whose question ends at `end`.

    `shape` is `shape_of(data, edns)`; `body` is the answer's, rendered behind that question.
    """
    head = answer.heads[shape] or answer.head(shape, body)
    if edns is None:
        return b"".join((data[:2], head, data[12:end], body.data))
    if answer.options or answer.rcode > 15:
        return b"".join((data[:2], head, data[12:end], body.data, _opt(answer, edns)))
    return b"".join((data[:2], head, data[12:end], body.data, _edns.WITH_DO if edns.do else _edns.PLAIN))


def _opt(answer: Answer, edns: Edns) -> bytes:
    return _edns.opt(do=edns.do, options=answer.options, rcode=answer.rcode)


def pack_cut(answer: Answer, body: Body, data: bytes, end: int, shape: int, edns: Edns | None, limit: int) -> bytes:
    """A reply of at most `limit` octets: what of the answer fits, with TC where something is missing."""
    opt = b"" if edns is None else _opt(answer, edns)
    kept = body.cuts.get(limit << 3 | shape) if body.cuts is not None and not answer.options else None
    if kept is None:
        part, counts, lost = cut(answer, body, limit - end - len(opt))
        flags = answer.flags | (iana.TC if lost else 0)
        kept = (part, pack_head(flags, answer.rcode, shape, counts), lost)
        if limit in (_edns.MIN_SIZE, _edns.UDP_SIZE):
            if body.cuts is None:
                body.cuts = {}
            body.cuts[limit << 3 | shape] = kept
    return b"".join((data[:2], kept[1], data[12:end], kept[0], opt))


def bare(data: bytes, end: int, rcode: int, edns: Edns | None, options: bytes = b"") -> bytes:
    """A reply that is nothing but a code: header, the question if it was read (`end` > 12), OPT if the query had one."""
    word = iana.QR | (data[2] & 0x79) << 8 | (data[3] & 0x10) | (rcode & 15)
    counts = b"\0\1\0\0\0\0" if end > 12 else b"\0\0\0\0\0\0"
    tail = b"\0\0" if edns is None else b"\0\1" + b""
    opt = b"" if edns is None else _edns.opt(do=edns.do, options=options, rcode=rcode)
    return b"".join((data[:2], word.to_bytes(2, "big"), counts, tail, data[12:end], opt))


def refusal(data: bytes, rcode: int, opcode_kept: bool, question: bytes = b"") -> bytes:
    """The reply of an accept check that failed: TC, RD, RA, AD and CD as in the query, no OPT, no records.

    `opcode_kept` is for NOTIMP; a FORMERR leaves with opcode QUERY.
    """
    word = iana.QR | (data[2] << 8 | data[3]) & (iana.TC | iana.RD | iana.RA | iana.AD | iana.CD) | rcode
    if opcode_kept:
        word |= (data[2] & 0x78) << 8
    counts = b"\0\1" if question else b"\0\0"
    return data[:2] + word.to_bytes(2, "big") + counts + b"\0\0\0\0\0\0" + question
