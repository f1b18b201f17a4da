"""The bounded scanner: every byte from outside passes here first.

Laws: iterative, never recursive; a name follows at most 126 pointers, each to an earlier octet than the one
before (RFC 9267, sections 2-4: no loops); all pointers of one message share one work budget, so 64 KiB of
pointers cost no more than 64 KiB of names; every length is checked against what is there; a name in rdata ends
inside that rdata; what a pointer leads to ends before the name that has the pointer begins. What is wrong raises
FormatError; nothing else leaves.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from kdns.dns import iana, rdata
from kdns.dns.errors import FormatError
from kdns.dns.name import MAX_NAME

MAX_HOPS: Final = 126  # a name has at most 127 labels, and a chain of pointers need not be longer
# Octets copied while names of one message are expanded: four times the largest message. A message of
# 8,000 records with a fresh pointer each needs some 0.3 MB of it; the torture cases would need 100 times.
WORK_BUDGET: Final = 4 * 65535 * 4


class Record(NamedTuple):
    """One resource record of a message: the owner expanded (case kept), and where its parts stand."""

    owner: bytes
    type: int
    cls: int
    ttl: int
    start: int
    fixed: int  # where type, class, TTL and length stand
    end: int


class Budget:
    """What work the names of one message may still cause, in octets; and where its names are, if that is asked for.

    `heads`: where labels (or a name's pointer) begin that were read as parts of names; None where nobody wants to know.
    Where a pointer leads to one of them, what follows is a name that was read before. `strays`: where pointers led that
    is no such place. If that is a TTL, an address or the rdata of an unknown type, the name is what it is only as long
    as nobody changes those octets.
    """

    __slots__ = ("heads", "left", "strays")

    def __init__(self) -> None:
        self.left = WORK_BUDGET
        self.heads: set[int] | None = None
        self.strays: list[int] | None = None


def read_name(data: bytes, off: int, budget: Budget) -> tuple[bytes, int]:
    """The expanded name at `off`, letter case kept, and the offset behind it. Raises FormatError."""
    parts: list[bytes] = []
    size = 1
    hops = 0
    end = -1
    floor = off
    limit = len(data)
    heads = budget.heads
    try:
        while length := data[off]:
            if length < 64:
                stop = off + 1 + length
                size += length + 1
                if size > MAX_NAME:
                    raise FormatError("a name over 255 octets")
                if stop >= limit:
                    raise FormatError("a name runs past the end of the message, or into the name that leads to it")
                if heads is not None and end < 0:
                    heads.add(off)
                parts.append(data[off:stop])
                off = stop
            elif length >= 0xC0:
                target = (length & 0x3F) << 8 | data[off + 1]
                if end < 0:
                    end = off + 2
                    if heads is not None:
                        heads.add(off)
                        if target not in heads:
                            if budget.strays is None:
                                budget.strays = []
                            budget.strays.append(target)
                elif off + 2 > limit:
                    raise FormatError("a pointer runs into the name that leads to it")
                hops += 1
                # RFC 1035, section 4.1.4: a pointer names a *prior* occurrence. Strictly backward means no loop.
                if target >= floor or hops > MAX_HOPS or target < 12:
                    raise FormatError("a compression pointer that does not lead backward")
                limit = floor
                off = floor = target
            else:
                raise FormatError("a label type that is neither a label nor a pointer (RFC 6891, section 5)")
    except IndexError:
        raise FormatError("a name runs past the end of the message") from None
    budget.left -= size + hops * 16
    if budget.left < 0:
        raise FormatError("the names of this message cost too much work")
    parts.append(b"\0")
    return b"".join(parts), off + 1 if end < 0 else end


def folded(data: bytes, layout: tuple[int, int, int]) -> bytes:
    """An rdata with its names in lower case; `layout` says where they are (rdata.NAMES_AT)."""
    before, names, _ = layout
    end = before
    for _ in range(names):
        end = skip_name(data, end)
    return data[:before] + data[before:end].lower() + data[end:]


def skip_name(data: bytes, off: int) -> int:
    """The offset behind the name at `off`, without following its pointer. Raises FormatError."""
    size = 0
    try:
        while length := data[off]:
            if length >= 0xC0:
                data[off + 1]
                return off + 2
            if length > 63:
                raise FormatError("a label type that is neither a label nor a pointer")
            off += length + 1
            size += length + 1
            if size >= MAX_NAME:
                raise FormatError("a name over 255 octets")
    except IndexError:
        raise FormatError("a name runs past the end of the message") from None
    return off + 1


def records(data: bytes, off: int, count: int, budget: Budget) -> Iterator[Record]:
    """The next `count` records from `off` on. Raises FormatError at the first that is truncated or malformed."""
    total = len(data)
    for _ in range(count):
        owner, fixed = read_name(data, off, budget)
        start = off
        if fixed + 10 > total:
            raise FormatError("a record is truncated")
        rtype = data[fixed] << 8 | data[fixed + 1]
        off = fixed + 10 + (data[fixed + 8] << 8 | data[fixed + 9])
        if off > total:
            raise FormatError("an rdata runs past the end of the message")
        cls = data[fixed + 2] << 8 | data[fixed + 3]
        ttl = int.from_bytes(data[fixed + 4 : fixed + 8], "big")
        # RFC 2181, section 8: a TTL with the most significant bit set counts as zero.
        yield Record(owner, rtype, cls, ttl if ttl < 0x80000000 else 0, start, fixed, off)


def check_rdata(data: bytes, record: Record, budget: Budget) -> None:
    """Raises FormatError where a record's rdata cannot be of its type: a wrong length, a name that leaves it."""
    start, end, rtype = record.fixed + 10, record.end, record.type
    fixed = rdata.FIXED.get(rtype)
    if fixed is not None:
        if end - start != fixed and record.cls == iana.IN:
            raise FormatError(f"a {iana.type_text(rtype)} of {end - start} octets")
        return
    layout = rdata.NAMES_AT.get(rtype)
    if layout is not None:
        before, names, after = layout
        off = start + before
        for _ in range(names):
            if off >= end:
                raise FormatError("an rdata ends before its name")
            _, off = read_name(data, off, budget)
        if off + after != end:
            raise FormatError("an rdata and its names differ in length")
    elif rtype == iana.TXT:
        off = start
        while off < end:
            off += data[off] + 1
        if off != end or start == end:
            raise FormatError("a TXT's strings and its rdata differ in length")


def expand_rdata(data: bytes, record: Record, budget: Budget) -> bytes:
    """A record's rdata with the names in it expanded, so that it means the same in any message."""
    start, end = record.fixed + 10, record.end
    layout = rdata.NAMES_AT.get(record.type)
    if layout is None:
        return data[start:end]
    before, names, after = layout
    out = [data[start : start + before]]
    off = start + before
    for _ in range(names):
        name, off = read_name(data, off, budget)
        out.append(name)
    if off + after != end:
        raise FormatError("an rdata and its names differ in length")
    out.append(data[off:end])
    return b"".join(out)
