"""An answer: final, immutable, and rendered at most once.

Theory of operation. A reply is `header + question as asked + body + OPT`. The body (`Body`) is everything
between question and OPT; its compression pointers lead into itself or into the question, so it stands behind
one question name only, or, for a negative answer, behind every name of one length below one zone: the SOA's
owner is a pointer to where the zone begins in the question. Header words depend on three bits of the query
(RD, CD, EDNS or not) and are kept per answer. So a hit costs a join of five byte strings.

An answer is made of sections (ours), or of a body cut out of an upstream's message (`kdns.dns.message`); each
form is made from the other when first asked for.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, final

from kdns.dns import iana, rdata, wire
from kdns.dns.name import offsets
from kdns.dns.rrset import RRset, Section

# The three bits of a query that change a reply's header, as an index into Answer.heads.
SHAPE_RD: Final = 1
SHAPE_CD: Final = 2
SHAPE_EDNS: Final = 4
_NO_HEADS: Final[tuple[None, ...]] = (None,) * 8
_head: Final = struct.Struct("!HHHHH").pack
# A body over this is not rendered further: no transport carries more (RFC 1035, section 4.2.2).
MAX_BODY: Final = 65535
# The first octets of an address record of the question's name, in class IN.
_ADDRESS_AT_QUESTION: Final = (b"\xc0\x0c\0\1\0\1", b"\xc0\x0c\0\x1c\0\1")
# Cut forms are kept for the sizes nearly all clients have: no EDNS, and DNS Flag Day 2020.
_KEPT_CUTS: Final = (512, 1232)


# A record without its data: owner in lower case, type, TTL in seconds, and the target of a CNAME in lower case.
Outline = tuple[bytes, int, int, bytes]


@final
class Body:
    """What stands behind a question: the octets, the count of records a section, where each ends, where TTLs stand."""

    __slots__ = ("counts", "cuts", "data", "ends", "ttls")

    def __init__(self, data: bytes, counts: tuple[int, int, int], ends: Sequence[int], ttls: Sequence[int]) -> None:
        self.data = data
        self.counts = counts
        self.ends = ends
        self.ttls = ttls
        self.cuts: dict[int, tuple[bytes, bytes, bool]] | None = None

    def with_ttl(self, ttl: int) -> "Body":
        """The same records, each with this TTL in seconds."""
        out = bytearray(self.data)
        packed = ttl.to_bytes(4, "big")
        for at in self.ttls:
            out[at : at + 4] = packed
        return Body(bytes(out), self.counts, self.ends, self.ttls)


@final
class Answer:
    """A response code, header flags, and three sections. Immutable, but for what it remembers of its rendering.

    `flags` are the AA, TC, RA and AD bits of the header. `own` marks our own data: no cache keeps it. `options`
    are EDNS options (wire form) for clients that use EDNS. `name` is the lower-cased name that `body` stands behind.
    """

    __slots__ = ("_sections", "alive", "body", "flags", "heads", "name", "options", "outline", "own", "rcode", "turns")

    def __init__(
        self,
        rcode: int = iana.NOERROR,
        flags: int = 0,
        answer: Iterable[RRset] = (),
        authority: Iterable[RRset] = (),
        additional: Iterable[RRset] = (),
        *,
        own: bool = False,
        options: bytes = b"",
        name: bytes = b"",
        body: Body | None = None,
    ) -> None:
        self.rcode = rcode
        self.flags = flags
        self.own = own
        self.options = options
        self.name = name
        self.body = body
        self.heads: Sequence[bytes | None] = _NO_HEADS
        # Whether a store keeps it for its name: while it does, a finished reply may be repeated.
        self.alive = False
        # Rotations made by loadbalance: None while not looked at, () where there is nothing to rotate.
        self.turns: Sequence[Answer] | None = None
        # Of an upstream's message: its records section by section, as they were found when it was read.
        self.outline: list[Outline] | None = None
        self._sections: tuple[Section, Section, Section] | None = (
            None if body is not None else (tuple(answer), tuple(authority), tuple(additional))
        )

    @property
    def sections(self) -> tuple[Section, Section, Section]:
        """The answer, authority and additional sections, decoded from the body when first asked for."""
        known = self._sections
        if known is None:
            assert self.body is not None
            known = self._sections = _decode(self.name, self.body)
        return known

    @property
    def answer(self) -> Section:
        return self.sections[0]

    @property
    def authority(self) -> Section:
        return self.sections[1]

    @property
    def additional(self) -> Section:
        return self.sections[2]

    def records(self) -> tuple[list[Outline], list[Outline], list[Outline]]:
        """The records of the three sections in outline. Where a message was read this decodes nothing."""
        outline = self.outline
        if outline is not None and self.body is not None:
            an, ns, _ = self.body.counts
            return outline[:an], outline[an : an + ns], outline[an + ns :]
        answer, authority, additional = (
            [
                (rrset.owner.lower(), rrset.type, rrset.ttl, data.lower() if rrset.type == iana.CNAME else b"")
                for rrset in section
                for data in rrset.rdatas
            ]
            for section in self.sections
        )
        return answer, authority, additional

    def replace(
        self,
        *,
        rcode: int | None = None,
        flags: int | None = None,
        answer: Iterable[RRset] | None = None,
        authority: Iterable[RRset] | None = None,
        additional: Iterable[RRset] | None = None,
        options: bytes | None = None,
        own: bool | None = None,
    ) -> "Answer":
        """A copy with these parts changed; the body is kept where no section changes."""
        same = answer is None and authority is None and additional is None
        new = Answer(
            self.rcode if rcode is None else rcode,
            self.flags if flags is None else flags,
            own=self.own if own is None else own,
            options=self.options if options is None else options,
            name=self.name,
            body=self.body if same else None,
        )
        if same:
            new._sections = self._sections
        else:
            old = self.sections
            new._sections = (
                old[0] if answer is None else tuple(answer),
                old[1] if authority is None else tuple(authority),
                old[2] if additional is None else tuple(additional),
            )
        return new

    def with_body(self, body: Body, flags: int) -> "Answer":
        """A copy with another body of the same records (other TTLs) and other flags."""
        new = Answer(self.rcode, flags, own=self.own, options=self.options, name=self.name, body=body)
        if self.turns == ():
            new.turns = ()  # what has no other order has none with other TTLs
        return new

    def rendered(self, name: bytes) -> Body:
        """The body behind a question of this lower-cased name. Rendered when first asked for, and kept."""
        body = self.body
        if body is None:
            self.name = name
            body = self.body = render(name, self.sections)
        elif self.name != name and self.name:
            return render(name, self.sections)
        return body

    def head(self, shape: int, body: Body) -> bytes:
        """The reply header's flags and counts, ten octets, for a query of this shape (SHAPE_*)."""
        made = self.heads[shape]
        if made is None:
            made = pack_head(self.flags, self.rcode, shape, body.counts)
            heads = self.heads
            self.heads = (*heads[:shape], made, *heads[shape + 1 :])
        return made

    @property
    def size_of_body(self) -> int:
        return 0 if self.body is None else len(self.body.data)


def pack_head(flags: int, rcode: int, shape: int, counts: tuple[int, int, int]) -> bytes:
    """Header octets 2 to 12 of a reply: QR and the flags, RD and CD as the query had them, one question, counts."""
    word = iana.QR | flags | (rcode & 15)
    if shape & SHAPE_RD:
        word |= iana.RD
    if shape & SHAPE_CD:
        word |= iana.CD
    an, ns, ar = counts
    return _head(word, 1, an, ns, ar + (1 if shape & SHAPE_EDNS else 0))


def negative(name: bytes, zone: bytes, rcode: int, flags: int, ttl: int, soa_rdata: bytes, *, own: bool = True) -> Answer:
    """A negative answer of ours with the zone's SOA (RFC 2308, section 3), rendered for all names of this length in the zone.

    Its `name` is empty: the caller vouches that it is used for such names only.
    """
    made = Answer(rcode, flags, (), (RRset(zone, iana.SOA, ttl, (soa_rdata,)),), (), own=own)
    made.body = render(name, made.sections, zone)
    made.name = b""
    return made


def render(name: bytes, sections: tuple[Section, Section, Section], shared: bytes = b"") -> Body:
    """The sections' wire form behind a question of this lower-cased name, names compressed (RFC 1035, section 4.1.4).

    Names in rdata are compressed in the types of RFC 1035 only (RFC 3597, section 4). The cost is linear: each
    name is looked up label by label in one table. `shared` is a suffix of the name: if given, pointers lead to no
    part of the question but that suffix, so the body also fits other names of this length that end in it.
    """
    base = 12 + len(name) + 4
    least = len(name) - len(shared) if shared else 0
    known = {name[off:]: 12 + off for off in offsets(name)[:-1] if off >= least}
    out = bytearray()
    ends: list[int] = []
    ttls: list[int] = []
    counts = []
    for section in sections:
        before = len(ends)
        for owner, rtype, ttl, rdatas, cls in section:
            fixed = rtype.to_bytes(2, "big") + cls.to_bytes(2, "big") + ttl.to_bytes(4, "big")
            layout = rdata.NAMES_AT[rtype] if rtype in rdata.COMPRESSIBLE else None
            for data in rdatas:
                if len(out) > MAX_BODY:
                    break
                _put_name(out, owner, base, known)
                ttls.append(len(out) + 4)
                out += fixed
                if layout is None:
                    out += len(data).to_bytes(2, "big")
                    out += data
                else:
                    _put_rdata(out, data, layout, base, known)
                ends.append(len(out))
        counts.append(len(ends) - before)
    return Body(bytes(out), (counts[0], counts[1], counts[2]), ends, ttls)


def behind_alias(name: bytes, target: bytes, body: Body, most: int) -> Body | None:
    """The body behind a question of `name`: a CNAME to `target`, and the addresses that `body` has behind a question of that.

    The TTL of the CNAME is the least of theirs and `most`. None where the body holds anything else, or names them otherwise than
    by a pointer to the question: then it takes a rendering. This is what that would come to, for a fifth of the time.
    """
    count = body.counts[0]
    if not count or body.counts[1] or body.counts[2]:
        return None
    given = body.data
    data = bytearray(given)
    pointer = (0xC000 | 12 + len(name) + 4 + 12).to_bytes(2, "big")  # where the target stands in the CNAME
    ttl = most
    start = 0
    for at, end in zip(body.ttls, body.ends, strict=True):
        if at != start + 6 or given[start : start + 6] not in _ADDRESS_AT_QUESTION:
            return None
        ttl = min(ttl, int.from_bytes(given[at : at + 4], "big"))
        data[start : start + 2] = pointer
        start = end
    alias = b"\xc0\x0c\0\5\0\1" + ttl.to_bytes(4, "big") + len(target).to_bytes(2, "big") + target
    size = len(alias)
    ends, ttls = [size, *(end + size for end in body.ends)], [6, *(at + size for at in body.ttls)]
    return Body(alias + bytes(data), (1 + count, 0, 0), ends, ttls)


def _put_name(out: bytearray, name: bytes, base: int, known: dict[bytes, int]) -> None:
    lower = name.lower()
    off = 0
    while size := name[off]:
        suffix = lower[off:]
        at = known.get(suffix)
        if at is not None:
            out += (0xC000 | at).to_bytes(2, "big")
            return
        here = base + len(out)
        if here < 0x4000:
            known[suffix] = here
        out += name[off : off + size + 1]
        off += size + 1
    out.append(0)


def _put_rdata(out: bytearray, data: bytes, layout: tuple[int, int, int], base: int, known: dict[bytes, int]) -> None:
    before, names, _ = layout
    at = len(out)
    out += b"\0\0"
    out += data[:before]
    off = before
    for _ in range(names):
        end = wire.skip_name(data, off)
        _put_name(out, data[off:end], base, known)
        off = end
    out += data[off:]
    out[at : at + 2] = (len(out) - at - 2).to_bytes(2, "big")


def _decode(name: bytes, body: Body) -> tuple[Section, Section, Section]:
    message = b"\0" * 12 + name + b"\0\0\0\0" + body.data
    budget = wire.Budget()
    off = 12 + len(name) + 4
    out = []
    for count in body.counts:
        sets: dict[tuple[bytes, int, int], tuple[RRset, list[bytes]]] = {}
        for record in wire.records(message, off, count, budget):
            off = record.end
            key = (record.owner.lower(), record.type, record.cls)
            data = wire.expand_rdata(message, record, budget)
            if key in sets:
                sets[key][1].append(data)
            else:
                sets[key] = (RRset(record.owner, record.type, record.ttl, (), record.cls), [data])
        out.append(tuple(rrset._replace(rdatas=tuple(data)) for rrset, data in sets.values()))
    return out[0], out[1], out[2]


def cut(answer: Answer, body: Body, room: int) -> tuple[bytes, tuple[int, int, int], bool]:
    """What of a body fits in `room` octets: its first octets, its counts, and whether TC must be set.

    Records of the answer section are kept one by one; authority and additional lose whole RRsets. A lost
    additional alone sets no TC (RFC 2181, section 9).
    """
    fit = bisect_right(body.ends, room)
    an, ns, ar = body.counts
    if fit < an:
        return body.data[: body.ends[fit - 1] if fit else 0], (fit, 0, 0), True
    kept = an
    counts = []
    lost = False
    for section in answer.sections[1:]:
        start = kept
        for rrset in section:
            if lost or kept + len(rrset.rdatas) > fit:
                lost = True
                break
            kept += len(rrset.rdatas)
        counts.append(kept - start)
    return body.data[: body.ends[kept - 1] if kept else 0], (an, counts[0], counts[1]), counts[0] < ns
