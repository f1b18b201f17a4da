"""What differs between two versions of a zone: for IXFR (RFC 1995), and to tell an edited file from one that was only
touched.
"""

from collections.abc import Iterator
from typing import NamedTuple

from kdns.dns import iana
from kdns.dns.rrset import RRset
from kdns.store.zone import Zone
from kdns.store.zone_node import ZoneNode


class Change(NamedTuple):
    """Records of one owner and type (and covered type) that go, and those that come; TTLs are theirs."""

    removed: RRset | None
    added: RRset | None


def differences(old: Zone, new: Zone) -> Iterator[list[Change]]:
    """What leads from one version to the other, name by name, empty lists among them; without the SOA."""
    for before, after in ((old.nodes, new.nodes), (old.hashed, new.hashed)):
        for key, node in after.items():
            other = before.get(key)
            yield [] if other is not None and other.rrsets == node.rrsets else of_name(other, node)
        for key, node in before.items():
            yield of_name(node, None) if key not in after else []


def diff(old: Zone, new: Zone) -> list[Change]:
    """All of `differences` at once."""
    return [change for changes in differences(old, new) for change in changes]


def of_name(old: ZoneNode | None, new: ZoneNode | None) -> list[Change]:
    """What differs at one name, without the SOA."""
    before = {_kind(rrset): rrset for rrset in old.rrsets} if old is not None else {}
    after = {_kind(rrset): rrset for rrset in new.rrsets} if new is not None else {}
    out = []
    for kind in {**before, **after}:
        if kind[0] == iana.SOA:
            continue
        gone, come = before.get(kind), after.get(kind)
        if gone is not None and come is not None and gone.ttl == come.ttl:
            had, has = set(gone.rdatas), set(come.rdatas)
            gone = _only(gone, has)
            come = _only(come, had)
        if gone is not None or come is not None:
            out.append(Change(gone, come))
    return out


def _kind(rrset: RRset) -> tuple[int, bytes]:
    return rrset.type, rrset.rdatas[0][:2] if rrset.type == iana.RRSIG else b""


def _only(rrset: RRset, other: set[bytes]) -> RRset | None:
    """The records of an RRset that are not among others."""
    left = tuple([data for data in rrset.rdatas if data not in other])
    return rrset._replace(rdatas=left) if left else None
