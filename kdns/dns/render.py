"""From sections to the octets between question and OPT, and back; what of them fits into a reply.

Law: a rendered body may point into the question it was rendered for, or into what all names that it is used for
provably share, never to more (RFC 1035, section 4.1.4).
"""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple, final

from kdns.dns import rdata, wire
from kdns.dns.rrset import RRset, Section

# A body over this is not rendered further: no transport carries more (RFC 1035, section 4.2.2).
MAX_BODY: Final = 65535
_fixed: Final = struct.Struct("!HHI").pack  # type, class, TTL
_A: Final = b"\0\1\0\1"  # type and class of address records
_AAAA: Final = b"\0\x1c\0\1"


class RecordSummary(NamedTuple):
    """A record without its data: owner in lower case, type, TTL in seconds, and the target of a CNAME in lower case."""

    owner: bytes
    type: int
    ttl: int
    target: bytes


@final
class Body:
    """The message after the question: its octets, record counts by section, the ends of records, the places of TTLs."""

    __slots__ = ("counts", "data", "ends", "truncated", "ttls")

    def __init__(self, data: bytes, counts: tuple[int, int, int], ends: Sequence[int], ttls: Sequence[int]) -> None:
        self.data = data
        self.counts = counts
        self.ends = ends
        self.ttls = ttls
        # What `truncate` gave, by the room there was. Answers of other flags and codes share the body, so no header.
        self.truncated: dict[int, tuple[bytes, tuple[int, int, int], bool]] | None = None

    def with_ttl(self, ttl: int) -> "Body":
        """The same records, each with this TTL in seconds."""
        return Body(aged(self.data, self.ttls, ttl), self.counts, self.ends, self.ttls)

    def address_run(self) -> tuple[int, int, int] | None:
        """The answer section's address records, if they can change places: (octet where they start, count, octets of
        each).

        That holds where all of them are of one type, stand side by side at the section's end, and begin with one and
        the same pointer. It leads to a place before them, and a name elsewhere that points to one of them finds the
        same pointer in any order.
        """
        count = self.counts[0]
        if count < 2:
            return None
        data, ends, ttls = self.data, self.ends, self.ttls
        last = ends[count - 1]
        kind = data[ttls[count - 1] - 4 : ttls[count - 1]]
        size = 16 if kind == _A else 28 if kind == _AAAA else 0
        head = data[last - size : last - size + 2]
        if not size or head[0] < 0xC0 or ttls[count - 1] != last - size + 6:
            return None
        run = 0
        for i in range(count - 1, -1, -1):
            if run == count - 1 - i:
                begin = ends[i - 1] if i else 0
                if ends[i] - begin == size and data[begin : begin + 2] == head and data[begin + 2 : begin + 6] == kind:
                    run += 1
                    continue
            if data[ttls[i] - 4 : ttls[i]] == kind:
                return None  # an address that stands apart
        return (last - run * size, run, size) if run > 1 else None

    def with_addresses(self, start: int, size: int, order: Sequence[int]) -> "Body":
        """The same records, those of `address_run` in this order."""
        data = self.data
        parts = [data[:start]]
        for i in order:
            at = start + i * size
            parts.append(data[at : at + size])
        parts.append(data[start + len(order) * size :])
        return Body(b"".join(parts), self.counts, self.ends, self.ttls)

    def turned(self, start: int, size: int, count: int, at: int) -> "Body":
        """The same records, those of `address_run` from the one at place `at` on, and then those before it."""
        data = self.data
        first, end = start + at * size, start + count * size
        turned = b"".join((data[:start], data[first:end], data[start:first], data[end:]))
        return Body(turned, self.counts, self.ends, self.ttls)


def aged(data: bytes, ttls: Sequence[int], ttl: int) -> bytes:
    """A body's octets with another TTL in seconds at each of the places `ttls`."""
    out = bytearray(data)
    packed = ttl.to_bytes(4, "big")
    for at in ttls:
        out[at : at + 4] = packed
    return bytes(out)


def render(name: bytes, sections: tuple[Section, Section, Section], shared: bytes = b"") -> Body:
    """The sections' wire form for a question of this lower-cased name, names compressed (RFC 1035, section 4.1.4).

    Names in rdata are compressed in the types of RFC 1035 only (RFC 3597, section 4). The cost is linear: each
    name is looked up label by label in one table. `shared` is a suffix of the name: if given, pointers lead to no
    other part of the question, so the body also fits other names of this length that end in it.
    """
    known = _question_names(name, len(name) - len(shared) if shared else 0)
    base = 12 + len(name) + 4
    out = bytearray()
    ends: list[int] = []
    ttls: list[int] = []
    counts: list[int] = []
    for section in sections:
        before = len(ends)
        for rrset in section:
            _put_rrset(out, rrset, base, known, ends, ttls)
        counts.append(len(ends) - before)
    return Body(bytes(out), (counts[0], counts[1], counts[2]), ends, ttls)


def with_authority(body: Body, name: bytes, more: Sequence[RRset]) -> Body:
    """A body for a question of this lower-cased name with more RRsets behind it, in the authority section.

    `body` fits the name and has no additional section.
    """
    known = _question_names(name, 0)
    out = bytearray(body.data)
    ends, ttls = list(body.ends), list(body.ttls)
    for rrset in more:
        _put_rrset(out, rrset, 12 + len(name) + 4, known, ends, ttls)
    answers = body.counts[0]
    return Body(bytes(out), (answers, len(ends) - answers, 0), ends, ttls)


def _question_names(name: bytes, least: int) -> dict[bytes, int]:
    """Where in a message the question's name stands, and the names above it, from octet `least` of it on."""
    known: dict[bytes, int] = {}
    off = 0
    while size := name[off]:
        if off >= least:
            known[name[off:]] = 12 + off
        off += size + 1
    return known


def _put_rrset(
    out: bytearray, rrset: RRset, base: int, known: dict[bytes, int], ends: list[int], ttls: list[int]
) -> None:
    owner, rtype, ttl, rdatas, cls = rrset
    fixed = _fixed(rtype, cls, ttl)
    layout = rdata.NAMES_AT[rtype] if rtype in rdata.COMPRESSIBLE else None
    for data in rdatas:
        if len(out) > MAX_BODY:
            break
        at = known.get(owner)
        if at is None:
            _put_name(out, owner, base, known)
        else:
            out += (0xC000 | at).to_bytes(2, "big")
        ttls.append(len(out) + 4)
        out += fixed
        if layout is None:
            out += len(data).to_bytes(2, "big")
            out += data
        else:
            _put_rdata(out, data, layout, base, known)
        ends.append(len(out))


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


def decode(name: bytes, body: Body) -> tuple[Section, Section, Section]:
    """The sections of a body that was rendered for a question of this name."""
    message = b"\0" * 12 + name + b"\0\0\0\0" + body.data
    budget = wire.Budget()
    off = 12 + len(name) + 4
    out: list[Section] = []
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
        out.append(tuple([rrset._replace(rdatas=tuple(found)) for rrset, found in sets.values()]))
    return out[0], out[1], out[2]


def truncate(
    sections: tuple[Section, Section, Section], body: Body, room: int
) -> tuple[bytes, tuple[int, int, int], bool]:
    """What of a body fits in `room` octets: its first octets, its counts, and whether TC must be set.

    Records of the answer section are kept one by one; authority and additional lose whole RRsets. A lost
    additional alone sets no TC (RFC 2181, section 9).
    """
    fit = bisect_right(body.ends, room)
    an, ns, _ = body.counts
    if fit < an:
        return body.data[: body.ends[fit - 1] if fit else 0], (fit, 0, 0), True
    kept = an
    counts: list[int] = []
    lost = False
    for section in sections[1:]:
        start = kept
        for rrset in section:
            if lost or kept + len(rrset.rdatas) > fit:
                lost = True
                break
            kept += len(rrset.rdatas)
        counts.append(kept - start)
    return body.data[: body.ends[kept - 1] if kept else 0], (an, counts[0], counts[1]), counts[0] < ns
