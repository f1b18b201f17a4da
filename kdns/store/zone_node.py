"""The nodes of an authoritative zone, and how the records of a zone become nodes.

Nodes come in canonical order (RFC 4034, section 6.1), empty non-terminals among them, so that whoever puts a zone
together walks a list once and nothing is sorted where queries wait.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from kdns.dns import iana
from kdns.dns.name import parent
from kdns.dns.rrset import RRset

CUT: Final = 1  # a delegation: what is below belongs to another zone
REDIRECT: Final = 2  # a DNAME: what is below is not there (RFC 6672, section 2.3)
WILDCARD: Final = b"\x01*"
NSEC3: Final = 50
NSEC3PARAM: Final = 51


@final
class ZoneNode:
    """One name of a zone: its RRsets, and what it is (CUT, REDIRECT). Without RRsets it is an empty non-terminal. Never
    changed.
    """

    __slots__ = ("flags", "name", "rrsets")

    def __init__(self, name: bytes, rrsets: tuple[RRset, ...], flags: int) -> None:
        self.name = name
        self.rrsets = rrsets
        self.flags = flags

    def rrset(self, rtype: int) -> RRset | None:
        """The RRset of a type; for RRSIG the first of several."""
        for rrset in self.rrsets:
            if rrset.type == rtype:
                return rrset
        return None

    def signatures(self, rtype: int) -> RRset | None:
        """The RRSIGs that cover a type."""
        covered = rtype.to_bytes(2, "big")
        for rrset in self.rrsets:
            if rrset.type == iana.RRSIG and rrset.rdatas[0].startswith(covered):
                return rrset
        return None


# A name and its RRsets as (type, TTL, rdatas).
Bare = tuple[bytes, tuple[tuple[int, int, tuple[bytes, ...]], ...]]


def canonical_key(name: bytes, shared: int = 1) -> bytes:
    """What lower-cased names are sorted by: their labels from the root on (RFC 4034, section 6.1), as octets.

    `shared` are the octets at the end of all names that are compared: the root's, or a zone's name.
    """
    end = len(name) - shared
    parts: list[bytes] = []
    off = 0
    while off < end:
        stop = off + 1 + name[off]
        parts.append(name[off + 1 : stop])
        off = stop
    parts.reverse()
    key = b"\0".join(parts)
    if b"\1" in key or key.count(b"\0") >= max(1, len(parts)):
        # Between two labels stands what is less than all that a label may hold.
        key = b"\0".join([part.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1") for part in parts])
    return key


def arranged(origin: bytes, names: Mapping[bytes, Mapping[int, Sequence[Any]]]) -> list[Bare]:
    """All names of a zone in canonical order, empty non-terminals added, records that stand twice left out.

    `names[owner][key]` is a TTL and then rdatas (kdns.zonefile.reader); owners are lower-cased and within `origin`.
    """
    every = set(names)
    for name in names:
        while name != origin:
            name = parent(name)
            if name in every:
                break
            every.add(name)
    nothing: dict[int, Sequence[Any]] = {}
    out: list[Bare] = []
    for name in sorted(every, key=canonical_key):
        sets = names.get(name, nothing)
        out.append(
            (
                name,
                tuple(
                    [(key & 0xFFFF, found[0], _once(found[1:])) for key, found in sorted(sets.items(), key=_by_type)]
                ),
            )
        )
    return out


def _by_type(item: tuple[int, Any]) -> tuple[int, int]:
    return item[0] & 0xFFFF, item[0]


def _once(rdatas: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(rdatas) if len(rdatas) == 1 else tuple(dict.fromkeys(rdatas))


def made(origin: bytes, bare: Bare) -> ZoneNode:
    """The node of a name."""
    name, sets = bare
    flags = 0
    if name != origin and not name.startswith(WILDCARD):
        # A wildcard that owns an NS delegates nothing (RFC 4592, section 4.2 leaves it open): it is data.
        for rtype, _, _ in sets:
            if rtype == iana.NS:
                flags |= CUT
    for rtype, _, _ in sets:
        if rtype == iana.DNAME:
            flags |= REDIRECT
    return ZoneNode(name, tuple([RRset(name, rtype, ttl, rdatas) for rtype, ttl, rdatas in sets]), flags)


def ancestors(name: bytes, origin: bytes) -> Iterator[bytes]:
    """The names from just below the zone's apex down to a name in the zone."""
    found = []
    size = len(origin)
    off = 0
    while len(name) - off > size:
        found.append(off)
        off += name[off] + 1
    for off in reversed(found):
        yield name[off:] if off else name
