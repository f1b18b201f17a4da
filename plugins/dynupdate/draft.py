"""What updates make of a zone: prerequisites, permissions, and the changes (RFC 2136, section 3). Pure.

Laws: an update is done whole or not at all; later updates see what earlier ones have made; the zone itself never
changes, a draft stands over it until it is stored. Every update that changes anything has a serial of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kdns.dns import iana, rdata
from kdns.dns.errors import FormatError
from kdns.dns.name import is_within
from kdns.plugins.dynupdate.message import ANY, NONE, Record, Update, check_update, folded, same
from kdns.store.zone import Zone

YXDOMAIN: Final = 6
YXRRSET: Final = 7
NXRRSET: Final = 8
NOTZONE: Final = 10
_SLICE: Final = 32  # records between two breaths
_SOA: Final = 6
# Types that a signer makes, or that only belong to a signed zone: kdns does not sign what it changes.
NOT_TAKEN: Final = frozenset((
    24, 25, 30, 43, 46, 47, 48, 50, 51, 58, 59, 60, 63, 32768, 32769,
))  # fmt: skip
# Types of which a name has one record at most (RFC 2181, section 10.1; RFC 6672, section 2.4).
_SINGLE: Final = frozenset((iana.CNAME, iana.DNAME, _SOA))

Sets = dict[int, tuple[int, tuple[bytes, ...]]]  # TTL and rdatas by type; never changed in place but by their owner


class Refusal(Exception):
    """An update that is not done: the response code, and why."""

    def __init__(self, rcode: int, why: str) -> None:
        super().__init__(why)
        self.rcode = rcode


class Permission(NamedTuple):
    """One `allow`: a key, a name (empty: any in the zone), and types (None: all); iana.ANY is to delete all at a
    name.
    """

    key: bytes
    name: bytes
    types: frozenset[int] | None

    def covers(self, record: Record) -> bool:
        """Whether it allows what a record asks for."""
        return (not self.name or self.name == record.owner) and (self.types is None or record.type in self.types)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a zone: records and octets (each record's owner, rdata and the 10 octets between them); of a message:
    records.
    """

    records: int = 10_000
    octets: int = 8 << 20
    update_records: int = 1024


def size_of(owner: bytes, sets: Mapping[int, tuple[int, tuple[bytes, ...]]]) -> tuple[int, int]:
    """The records and octets of a name."""
    records = octets = 0
    for _, rdatas in sets.values():
        records += len(rdatas)
        octets += sum([len(data) for data in rdatas]) + len(rdatas) * (len(owner) + 10)
    return records, octets


class Draft:
    """A zone with updates that are not stored yet. `records` and `octets` are what it would have."""

    def __init__(self, zone: Zone, records: int, octets: int) -> None:
        self.zone = zone
        self.origin = zone.origin
        self.names: dict[bytes, Sets] = {}  # the names that change, as they are then
        self.records = records
        self.octets = octets

    def sets(self, name: bytes) -> Sets:
        """What there is of a name."""
        known = self.names.get(name)
        if known is not None:
            return known
        node = self.zone.nodes.get(name)
        return {rrset.type: (rrset.ttl, rrset.rdatas) for rrset in node.rrsets} if node is not None else {}

    def apply(
        self, update: Update, allowed: list[Permission], limits: Limits, into: dict[bytes, Sets]
    ) -> Iterator[None]:
        """Does an update and leaves in `into` what it changed, by name; yields where others may run.

        Raises Refusal; then nothing has changed.
        """
        yield from self._prerequisites(update.prerequisites)
        yield from self._permitted(update.updates, allowed)
        yield from self._prescan(update.updates)
        changes: dict[bytes, Sets] = {}
        for i, record in enumerate(update.updates):
            if i % _SLICE == _SLICE - 1:
                yield
            self._one(record, changes)
        real = {name: sets for name, sets in changes.items() if sets != self.sets(name)}
        if not real:
            return
        self._raise_serial(real)
        records, octets = self.records, self.octets
        for name, sets in real.items():
            before, after = size_of(name, self.sets(name)), size_of(name, sets)
            records += after[0] - before[0]
            octets += after[1] - before[1]
        grows = records > self.records or octets > self.octets
        if grows and (records > limits.records or octets > limits.octets):
            raise Refusal(
                iana.REFUSED, f"the zone may have {limits.records} records and {limits.octets} octets, and is full"
            )
        self.take(real, records, octets)
        into.update(real)

    def take(self, names: dict[bytes, Sets], records: int, octets: int) -> None:
        """Puts names into the draft as they are from now on."""
        self.names.update(names)
        self.records, self.octets = records, octets

    # RFC 2136, section 3.2.

    def _prerequisites(self, records: list[Record]) -> Iterator[None]:
        wanted: dict[tuple[bytes, int], set[bytes]] = {}
        for i, record in enumerate(records):
            if i % _SLICE == _SLICE - 1:
                yield
            if not is_within(record.owner, self.origin):
                raise Refusal(NOTZONE, "a prerequisite outside of the zone")
            sets = self.sets(record.owner)
            if record.cls == iana.IN:
                wanted.setdefault((record.owner, record.type), set()).add(folded(record.type, record.rdata))
            elif record.cls == ANY:
                if record.type == iana.ANY:
                    if not sets:
                        raise Refusal(iana.NXDOMAIN, "a name that must be there is not")
                elif record.type not in sets:
                    raise Refusal(NXRRSET, "records that must be there are not")
            elif record.type == iana.ANY:
                if sets:
                    raise Refusal(YXDOMAIN, "a name that must not be there is")
            elif record.type in sets:
                raise Refusal(YXRRSET, "records that must not be there are")
        for (owner, rtype), rdatas in wanted.items():
            _, ours = self.sets(owner).get(rtype, (0, ()))
            if {folded(rtype, data) for data in ours} != rdatas:
                raise Refusal(NXRRSET, "records that must be there are others")

    # RFC 2136, section 3.3.

    def _permitted(self, records: list[Record], allowed: list[Permission]) -> Iterator[None]:
        for i, record in enumerate(records):
            if i % _SLICE == _SLICE - 1:
                yield
            if is_within(record.owner, self.origin) and not any([each.covers(record) for each in allowed]):
                raise Refusal(iana.REFUSED, f"the key may not change {iana.type_text(record.type)} there")

    # RFC 2136, section 3.4.1.

    def _prescan(self, records: list[Record]) -> Iterator[None]:
        for i, record in enumerate(records):
            if i % _SLICE == _SLICE - 1:
                yield
            if not is_within(record.owner, self.origin):
                raise Refusal(NOTZONE, "an update outside of the zone")
            try:
                check_update(record)
            except FormatError as error:
                raise Refusal(iana.FORMERR, str(error)) from None
            if record.type in NOT_TAKEN:
                raise Refusal(iana.NOTIMP, f"{iana.type_text(record.type)} is not taken: the zone is not signed here")

    # RFC 2136, section 3.4.2.

    def _one(self, record: Record, changes: dict[bytes, Sets]) -> None:
        owner = record.owner
        sets = changes.get(owner)
        if sets is None:
            sets = changes[owner] = dict(self.sets(owner))
        if record.cls == iana.IN:
            self._add(record, sets)
        elif record.cls == ANY:
            self._delete_sets(record, sets)
        elif record.cls == NONE:
            self._delete_one(record, sets)

    def _add(self, record: Record, sets: Sets) -> None:
        """Section 3.4.2.2."""
        rtype = record.type
        if rtype == iana.CNAME:
            if any([other != iana.CNAME for other in sets]):
                return
        elif iana.CNAME in sets:
            return
        if rtype == _SOA:
            serial = int.from_bytes(record.rdata[-20:-16], "big")
            ours = sets.get(_SOA)
            if ours is None or not serial or not rdata.is_newer(serial, int.from_bytes(ours[1][0][-20:-16], "big")):
                return  # no apex, or no newer version (RFC 1982); 0 is not a serial to begin anew with
        _, rdatas = sets.get(rtype, (0, ()))
        if rtype in _SINGLE:
            sets[rtype] = (record.ttl, (record.rdata,))
            return
        # One that is equal is replaced; the set has one TTL (RFC 2181, section 5.2), which is that of the newest.
        kept = tuple([data for data in rdatas if not same(rtype, data, record.rdata)])
        changed = record.rdata not in rdatas
        sets[rtype] = (record.ttl, (*kept, record.rdata) if changed else rdatas)

    def _delete_sets(self, record: Record, sets: Sets) -> None:
        """Section 3.4.2.3: at the apex SOA and NS stay."""
        apex = record.owner == self.origin
        if record.type == iana.ANY:
            for rtype in list(sets):
                if not apex or rtype not in (_SOA, iana.NS):
                    del sets[rtype]
        elif not apex or record.type not in (_SOA, iana.NS):
            sets.pop(record.type, None)

    def _delete_one(self, record: Record, sets: Sets) -> None:
        """Section 3.4.2.4: the SOA stays, and the apex keeps an NS."""
        rtype = record.type
        found = sets.get(rtype)
        if found is None or rtype == _SOA:
            return
        ttl, rdatas = found
        kept = tuple([data for data in rdatas if not same(rtype, data, record.rdata)])
        if kept:
            sets[rtype] = (ttl, kept)
        elif rtype != iana.NS or record.owner != self.origin:
            del sets[rtype]

    def _raise_serial(self, changes: dict[bytes, Sets]) -> None:
        """Another version has another serial (section 3.6); one that the update gave itself is that."""
        before_ttl, before = self.sets(self.origin)[_SOA]
        sets = changes.get(self.origin)
        if sets is None:
            sets = changes[self.origin] = dict(self.sets(self.origin))
        ttl, rdatas = sets[_SOA]
        if rdatas[0][-20:-16] != before[0][-20:-16]:
            return
        serial = (int.from_bytes(rdatas[0][-20:-16], "big") + 1) & 0xFFFFFFFF or 1
        sets[_SOA] = (ttl, (rdatas[0][:-20] + serial.to_bytes(4, "big") + rdatas[0][-16:],))
