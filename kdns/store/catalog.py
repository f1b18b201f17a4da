"""Catalog zones (RFC 9432): a zone that lists the zones which a secondary shall have."""

from typing import Final, NamedTuple

from kdns.dns import iana
from kdns.dns.name import ROOT, is_within
from kdns.store.zone import Zone

MAX_MEMBERS: Final = 100_000  # each is a zone with timers of its own: some 10 KB
_VERSION: Final = b"\x012"  # the text "2" (section 4.2.1)


class BadCatalog(ValueError):
    """A zone that is not a catalog of version 2."""


class Member(NamedTuple):
    """A member zone: the label that stands for it (another one is another zone), and the catalog it may move to, or
    nothing.
    """

    label: bytes
    moves_to: bytes


def members(zone: Zone) -> dict[bytes, Member]:
    """The members of a catalog by name. Raises BadCatalog (section 5.1: a broken catalog changes nothing)."""
    version = zone.nodes.get(b"\x07version" + zone.origin)
    text = version.rrset(iana.TXT) if version is not None else None
    if text is None or text.rdatas != (_VERSION,):
        raise BadCatalog("a catalog zone says its version by one TXT, which is 2 (RFC 9432, section 4.2.1)")
    if zone.apex.rrset(iana.NS) is None:
        raise BadCatalog("a catalog zone has an NS (RFC 9432, section 4)")
    out: dict[bytes, Member] = {}
    below = b"\x05zones" + zone.origin
    for name, node in zone.nodes.items():
        if len(name) <= len(below) or not is_within(name, below) or name[name[0] + 1 :] != below:
            continue
        pointer = node.rrset(iana.PTR)
        if pointer is None:
            continue  # properties of a member that is not listed
        if len(pointer.rdatas) != 1:
            raise BadCatalog("a member with more than one PTR (RFC 9432, section 4.1)")
        member = pointer.rdatas[0].lower()
        if member in out:
            raise BadCatalog("a zone that is listed twice (RFC 9432, section 4.1)")
        if len(out) >= MAX_MEMBERS:
            raise BadCatalog(f"more than {MAX_MEMBERS} members")
        out[member] = Member(name[1 : name[0] + 1], _moves_to(zone, name))
    out.pop(ROOT, None)
    return out


def _moves_to(zone: Zone, member: bytes) -> bytes:
    """The catalog that a member's `coo` property names (section 4.3.1)."""
    node = zone.nodes.get(b"\x03coo" + member)
    pointer = node.rrset(iana.PTR) if node is not None else None
    if pointer is None:
        return b""
    if len(pointer.rdatas) != 1:
        raise BadCatalog("a member with more than one coo (RFC 9432, section 4.3.1)")
    return pointer.rdatas[0].lower()
