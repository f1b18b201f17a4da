"""Signatures, keys and denials as octets (RFC 4034): what is signed, in which form, and what an RRSIG holds.

Pure: no keys that sign, and no clock. Whoever has a private key (kdns.zonefile.keys) signs `prefix + canonical`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from kdns.dns import iana, rdata, wire
from kdns.dns.name import MAX_LABEL, MAX_NAME, is_within, parent
from kdns.dns.rrset import RRset

NXNAME: Final = 128  # a name that does not exist, in the bitmap of a compact denial (RFC 9824, section 2)
NSEC3: Final = 50
NSEC3PARAM: Final = 51
CDS: Final = 59
CDNSKEY: Final = 60
ZONE_KEY: Final = 0x0100  # flags of a DNSKEY: RFC 4034, section 2.1.1
SEP: Final = 0x0001
REVOKED: Final = 0x0080  # RFC 5011, section 7
SHA256: Final = 2  # digest of a DS; SHA-1 must not be made any more (RFC 9905)

# Types whose rdata has names that are lower-cased before it is signed (RFC 4034, section 6.2; RFC 6840, section 5.1).
_LOWERED: Final = {**rdata.NAMES_AT, 24: (18, 1, 0), 30: (0, 1, 0)}
_NAPTR: Final = 35


def key_tag(data: bytes) -> int:
    """The tag of a DNSKEY's rdata (RFC 4034, appendix B)."""
    total = sum(data[0::2]) * 256 + sum(data[1::2])
    return (total + (total >> 16)) & 0xFFFF


def digest(owner: bytes, key: bytes) -> bytes:
    """The rdata of the DS (or CDS) with SHA-256 of a DNSKEY's rdata (RFC 4034, section 5.1.4)."""
    made = hashlib.sha256(owner + key).digest()
    return key_tag(key).to_bytes(2, "big") + key[3:4] + bytes((SHA256,)) + made


def canonical_rdata(rtype: int, data: bytes) -> bytes:
    """An rdata in the form that is signed: the names of some types in lower case."""
    layout = _LOWERED.get(rtype)
    if layout is not None:
        return wire.folded(data, layout)
    if rtype == _NAPTR:
        at = 4
        for _ in range(3):
            at += data[at] + 1
        return data[:at] + data[at:].lower()
    return data


def label_count(owner: bytes) -> int:
    """The Labels field of a signature: without the root's, and without a leading asterisk (RFC 4034, 3.1.3)."""
    count, off = 0, 0
    while size := owner[off]:
        count += 1
        off += size + 1
    return count - 1 if owner[:2] == b"\x01*" else count


def canonical(rrset: RRset, ttl: int) -> bytes:
    """The records of an RRset as they are signed (RFC 4034, section 3.1.8.1), with their original TTL in seconds."""
    head = rrset.owner.lower() + rrset.type.to_bytes(2, "big") + rrset.cls.to_bytes(2, "big") + ttl.to_bytes(4, "big")
    rtype = rrset.type
    if len(rrset.rdatas) == 1:
        data = canonical_rdata(rtype, rrset.rdatas[0])
        return b"".join((head, len(data).to_bytes(2, "big"), data))
    every = sorted({canonical_rdata(rtype, data) for data in rrset.rdatas})
    return b"".join([part for data in every for part in (head, len(data).to_bytes(2, "big"), data)])


def prefix(rrset: RRset, ttl: int, algorithm: int, tag: int, zone: bytes, inception: int, expiration: int) -> bytes:
    """A signature's rdata up to the signature (RFC 4034, section 3.1); times in seconds of the epoch."""
    return b"".join((
        rrset.type.to_bytes(2, "big"), bytes((algorithm, label_count(rrset.owner))), ttl.to_bytes(4, "big"),
        (expiration & 0xFFFFFFFF).to_bytes(4, "big"), (inception & 0xFFFFFFFF).to_bytes(4, "big"),
        tag.to_bytes(2, "big"), zone,
    ))  # fmt: skip


def bitmap(types: Iterable[int]) -> bytes:
    """Types as an NSEC lists them (RFC 4034, section 4.1.2)."""
    windows: dict[int, bytearray] = {}
    for rtype in types:
        window = windows.setdefault(rtype >> 8, bytearray(32))
        window[(rtype & 0xFF) >> 3] |= 0x80 >> (rtype & 7)
    out = []
    for number in sorted(windows):
        bits = bytes(windows[number]).rstrip(b"\0")
        out.append(bytes((number, len(bits))) + bits)
    return b"".join(out)


def nsec(owner: bytes, following: bytes, types: Iterable[int], ttl: int) -> RRset:
    """An NSEC of a name: the next name, and the types there are; RRSIG and NSEC are added."""
    return RRset(owner, iana.NSEC, ttl, (following + bitmap((*types, iana.RRSIG, iana.NSEC)),))


def covered(rrsets: Sequence[RRset]) -> set[tuple[bytes, int]]:
    """What has signatures already: owners in lower case, and types."""
    return {
        (rrset.owner.lower(), int.from_bytes(data[:2], "big"))
        for rrset in rrsets
        if rrset.type == iana.RRSIG
        for data in rrset.rdatas
    }


# Neighbours in canonical order (RFC 4034, section 6.1; after RFC 4470, section 4).


def first_below(name: bytes, zone: bytes) -> bytes:
    """The name right behind a name in canonical order: its first child, where it can have one."""
    return b"\x01\0" + name if len(name) + 2 <= MAX_NAME else behind(name, zone)


def behind(name: bytes, zone: bytes) -> bytes:
    """The first name behind a name and all that is below it; the zone's apex where there is none."""
    while name != zone:
        label, rest = name[1 : name[0] + 1], name[name[0] + 1 :]
        if len(label) < MAX_LABEL and len(name) < MAX_NAME:
            return bytes((len(label) + 1,)) + label + b"\0" + rest
        label = label.rstrip(b"\xff")
        if label:
            last = label[-1] + 1
            if 0x41 <= last <= 0x5A:
                last = 0x5B  # upper case counts as lower
            return bytes((len(label),)) + label[:-1] + bytes((last,)) + rest
        name = rest
    return zone


def before(name: bytes, zone: bytes) -> bytes:
    """A name before a name, with nothing between them that anybody would use; the zone's apex at least."""
    if name == zone:
        return zone
    label, rest = name[1 : name[0] + 1], name[name[0] + 1 :]
    if label[-1] == 0:
        label = label[:-1]
        return bytes((len(label),)) + label + rest if label else rest
    last = label[-1] - 1
    if 0x41 <= last <= 0x5A:
        last = 0x40
    room = min(MAX_LABEL - len(label), MAX_NAME - len(name))
    label = label[:-1] + bytes((last,)) + b"\xff" * room
    return bytes((len(label),)) + label + rest


def below_encloser(name: bytes, encloser: bytes) -> bytes:
    """The ancestor of a name that is one label below an encloser of it (RFC 5155, section 1.3: next closer)."""
    while parent(name) != encloser and is_within(name, encloser) and name != encloser:
        name = parent(name)
    return name
