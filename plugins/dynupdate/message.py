"""An UPDATE message (RFC 2136, section 2): its prerequisites and updates, read and checked for their form.

Pure. Which zone it is for was read before, as its question. What is malformed raises FormatError; whether a record has
a place in the zone is decided later, in RFC 2136's order.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from kdns.dns import iana, rdata, wire
from kdns.dns.errors import FormatError
from kdns.zonefile import types

NONE: Final = 254  # the class that deletes one record, or wants none
ANY: Final = 255  # the class that deletes many, or wants some
_SLICE: Final = 32  # records between two breaths: half a millisecond
# Types of questions and messages, which no zone has (RFC 2136, section 3.4.1.2).
_META: Final = frozenset((0, iana.OPT, *range(249, 256)))


class Record(NamedTuple):
    """A record of an update or a prerequisite: the owner in lower case, names in the rdata expanded."""

    owner: bytes
    type: int
    cls: int
    ttl: int
    rdata: bytes


class Update(NamedTuple):
    """What a message asks for."""

    prerequisites: list[Record]
    updates: list[Record]


def read(data: bytes, end: int, into: Update) -> Iterator[None]:
    """Reads a message whose zone section ends at `end`; yields where others may run. Raises FormatError."""
    budget = wire.Budget()
    count = int.from_bytes(data[6:8], "big")
    for i, record in enumerate(wire.records(data, end, count + int.from_bytes(data[8:10], "big"), budget)):
        if i % _SLICE == _SLICE - 1:
            yield
        # RFC 2136, section 2.4 and 2.5: the TTL is looked at as it stands, so one of over 31 bits is malformed too.
        ttl = int.from_bytes(data[record.fixed + 4 : record.fixed + 8], "big")
        size = record.end - record.fixed - 10
        content = b""
        if size:
            content = wire.expand_rdata(data, record, budget)
        made = Record(record.owner.lower(), record.type, record.cls, ttl, content)
        if i < count:
            _check_prerequisite(made)
            into.prerequisites.append(made)
        else:
            into.updates.append(made)


def _check_prerequisite(record: Record) -> None:
    """The form of a prerequisite (RFC 2136, section 3.2)."""
    if record.ttl:
        raise FormatError("a prerequisite with a TTL")
    if record.cls in (ANY, NONE):
        if record.rdata:
            raise FormatError("a prerequisite of class ANY or NONE with an rdata")
        if record.type in _META and record.type != iana.ANY:
            raise FormatError("a prerequisite of a type that is not data")
    elif record.cls != iana.IN:
        raise FormatError("a prerequisite of another class")
    elif record.type in _META or not types.fits(record.type, record.rdata):
        raise FormatError("a prerequisite whose rdata is not of its type")


def check_update(record: Record) -> None:
    """The form of an update (RFC 2136, section 3.4.1). Raises FormatError."""
    rtype = record.type
    if record.cls == iana.IN:
        if rtype in _META or record.ttl >= 1 << 31:
            raise FormatError("a record to add of a type that is not data, or with a TTL over 31 bits")
        if not record.rdata and rtype in types.LAYOUTS and rtype != 42:  # APL alone may be empty (RFC 3123, section 4)
            raise FormatError("a record to add without an rdata")
        if not types.fits(rtype, record.rdata):
            raise FormatError("a record to add whose rdata is not of its type")
    elif record.cls == ANY:
        if record.ttl or record.rdata or (rtype in _META and rtype != iana.ANY):
            raise FormatError("a deletion of records with a TTL or an rdata, or of a type that is not data")
    elif record.cls == NONE:
        if record.ttl or rtype in _META:
            raise FormatError("a deletion of a record with a TTL, or of a type that is not data")
        if rtype in types.LAYOUTS and not types.fits(rtype, record.rdata):
            raise FormatError("a deletion of a record whose rdata is not of its type")
    else:
        raise FormatError("an update of another class")


def same(rtype: int, one: bytes, other: bytes) -> bool:
    """Whether two rdatas are equal (RFC 2136, section 1.1.1): names in them in any case, all else octet by octet."""
    if one == other:
        return True
    return len(one) == len(other) and folded(rtype, one) == folded(rtype, other)


def folded(rtype: int, data: bytes) -> bytes:
    """An rdata with its names in lower case."""
    layout = rdata.NAMES_AT.get(rtype)
    return data if layout is None else wire.folded(data, layout)
