"""A zone transfer as it comes in: messages in, a zone's records or changes out (AXFR: RFC 5936; IXFR: RFC 1995). Pure.

Theory of operation. The first record is the new SOA. If the second one is an SOA too, what follows are difference
sequences: an old SOA and what goes, the next SOA and what comes, until the new SOA ends it. If not, all of the zone
follows, and the SOA again at its end. An answer to an IXFR may have either form, or be nothing but an SOA: then we are
up to date.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, final

from kdns.dns import iana, rdata, wire
from kdns.dns.name import is_within, parent
from kdns.store.zone import Zone
from kdns.store.zone_builder import ZoneBuilder
from kdns.store.zone_node import NSEC3, Bare, canonical_key

MAX_OCTETS: Final = 1 << 30  # of one transfer
MAX_RECORDS: Final = 10_000_000  # of one transfer; they take some 5 GB of memory
_SLICE: Final = 64  # records between two breaths: a third of a millisecond
_SIGNED: Final = 16  # as in kdns.zonefile.reader: the type an RRSIG covers is part of its key

Sets = dict[int, list[Any]]  # [TTL, rdata, rdata...] by type


class BadTransfer(ValueError):
    """A transfer that does not follow the protocol, or does not fit what we have."""


@final
class Inbound:
    """One transfer. `serial` is that of the IXFR's question; None for an AXFR. `old` is what an IXFR changes."""

    def __init__(self, origin: bytes, qid: bytes, old: Zone | None = None) -> None:
        self.origin = origin
        self.qid = qid
        self.old = old
        self.serial = old.serial if old is not None else None
        self.names: dict[bytes, Sets] = {}  # of a whole zone; or, of changes, the names that change as they are then
        self.incremental = False
        self.up_to_date = False
        self.done = False
        self.count = 0
        self.octets = 0
        self.messages = 0
        self.new_soa = b""
        self.soa_ttl = 0
        self.current = b""  # the serial that the sequences have come to
        self.adding = False

    def feed(self, data: bytes) -> Iterator[None]:
        """Takes the next message, without its TSIG; yields where others may run. Raises BadTransfer or FormatError."""
        if len(data) < 12 or data[:2] != self.qid or data[2] & 0xF8 != 0x80:
            raise BadTransfer("a message that is not a reply to the transfer")
        rcode = data[3] & 15
        if rcode:
            raise BadTransfer(f"the primary says {iana.rcode_text(rcode)}")
        self.octets += len(data)
        if self.octets > MAX_OCTETS:
            raise BadTransfer(f"a transfer of more than {MAX_OCTETS >> 20} MiB")
        questions, answers = int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:8], "big")
        if questions > 1 or (not answers and not self.messages):
            raise BadTransfer("a message without records")
        budget = wire.Budget()
        off = 12
        if questions:
            off = wire.skip_name(data, off) + 4
        self.messages += 1
        if self.count + answers > MAX_RECORDS:
            raise BadTransfer(f"a transfer of more than {MAX_RECORDS:,} records")
        for i, record in enumerate(wire.records(data, off, answers, budget)):
            if self.done:
                raise BadTransfer("records after the last SOA")
            if i % _SLICE == _SLICE - 1:
                yield
            self._record(record, wire.expand_rdata(data, record, budget))
        if self.serial is not None and self.count == 1 and not self._is_newer(self.serial):
            self.up_to_date = self.done = True  # RFC 1995, sections 2 and 4: a single SOA, not newer than ours

    def _is_newer(self, serial: int) -> bool:
        return rdata.is_newer(int.from_bytes(self.new_soa[-20:-16], "big"), serial)

    def _record(self, record: wire.Record, rdata: bytes) -> None:
        owner, rtype = record.owner.lower(), record.type
        self.count += 1
        is_soa = rtype == iana.SOA and owner == self.origin
        if self.count == 1:
            if not is_soa or len(rdata) < 22:
                raise BadTransfer("a transfer that does not begin with the zone's SOA")
            self.new_soa, self.soa_ttl = rdata, record.ttl
            return
        if self.count == 2 and is_soa and self.old is not None and rdata[-20:-16] != self.new_soa[-20:-16]:
            self.incremental = True
            if int.from_bytes(rdata[-20:-16], "big") != self.serial:
                raise BadTransfer("difference sequences that do not begin with our serial")
            self.current = rdata[-20:-16]
            return
        if record.cls != iana.IN or not is_within(owner, self.origin):
            return  # no record of this zone
        if self.incremental:
            self._change(owner, record, rdata, is_soa)
        elif is_soa:
            if rdata != self.new_soa:
                raise BadTransfer("another SOA at the end than at the beginning")
            self._add(self.names, owner, record, rdata)
            self.done = True
        else:
            self._add(self.names, owner, record, rdata)

    def _change(self, owner: bytes, record: wire.Record, rdata: bytes, is_soa: bool) -> None:
        if is_soa:
            serial = rdata[-20:-16]
            if not self.adding:
                self.current = serial
                self.adding = True
            elif self.current == self.new_soa[-20:-16] and serial == self.current:
                self._set_soa()
                self.done = True
            elif serial == self.current:
                self.adding = False  # the next sequence's old SOA
            else:
                raise BadTransfer("difference sequences that do not follow on each other")
            return
        sets = self._present(owner)
        key = _key(record.type, rdata)
        if self.adding:
            self._add(self.names, owner, record, rdata)
            return
        found = sets.get(key)
        if found is None or rdata not in found[1:]:
            raise BadTransfer("a change takes away a record that is not there")
        found.remove(rdata)
        if len(found) == 1:
            del sets[key]

    def _present(self, owner: bytes) -> Sets:
        """What there is of a name, as the changes so far have left it."""
        known = self.names.get(owner)
        if known is None:
            assert self.old is not None
            node = self.old.nodes.get(owner)
            if node is None:
                node = self.old.hashed.get(owner[1 : owner[0] + 1])
            sets = node.rrsets if node is not None else ()
            known = self.names[owner] = {
                _key(rrset.type, rrset.rdatas[0]): [rrset.ttl, *rrset.rdatas] for rrset in sets
            }
        return known

    def _set_soa(self) -> None:
        self._present(self.origin)[iana.SOA] = [self.soa_ttl, self.new_soa]

    def _add(self, names: dict[bytes, Sets], owner: bytes, record: wire.Record, rdata: bytes) -> None:
        sets = self._present(owner) if self.incremental else names.setdefault(owner, {})
        key = _key(record.type, rdata)
        found = sets.get(key)
        if found is None:
            sets[key] = [record.ttl, rdata]
        else:
            found[0] = record.ttl if self.incremental else min(found[0], record.ttl)  # RFC 2181, section 5.2
            found.append(rdata)


def _key(rtype: int, rdata: bytes) -> int:
    return rtype | (rdata[0] << 8 | rdata[1]) << _SIGNED if rtype == iana.RRSIG and len(rdata) > 1 else rtype


def bare(name: bytes, sets: Mapping[int, list[Any]]) -> Bare:
    """A name and its sets as a builder takes them."""
    return name, tuple([
        (key & 0xFFFF, found[0], tuple(dict.fromkeys(found[1:])))
        for key, found in sorted(sets.items(), key=lambda item: (item[0] & 0xFFFF, item[0]))
    ])  # fmt: skip


def changed(old: Zone, names: Mapping[bytes, Sets], builder: ZoneBuilder) -> Iterator[None]:
    """Puts a zone with these names changed into a builder, in canonical order; what did not change is shared with the
    old one.

    Yields where others may run.
    """
    come = [name for name, sets in names.items() if sets]
    new = sorted([name for name in come if not _is_hashed(names[name])], key=canonical_key)
    keys = [canonical_key(name) for name in new]
    place = 0
    for i, (name, node) in enumerate(old.nodes.items()):
        if i % _SLICE == _SLICE - 1:
            yield
        if place < len(new):
            key = canonical_key(name)
            while place < len(new) and keys[place] < key:
                _place(builder, bare(new[place], names[new[place]]))
                place += 1
            if place < len(new) and new[place] == name:
                _place(builder, bare(name, names[name]))
                place += 1
                continue
        if name not in names and node.rrsets:
            _enclose(builder, name)
            builder.put(node)
    for name in new[place:]:
        _place(builder, bare(name, names[name]))
    # The hashed ones in the order of their hashes: they are on one level.
    new = sorted([name for name in come if _is_hashed(names[name])])
    place = 0
    for i, node in enumerate(old.hashed.values()):
        if i % _SLICE == _SLICE - 1:
            yield
        while place < len(new) and new[place] <= node.name:
            builder.add(bare(new[place], names[new[place]]))
            place += 1
        if node.name not in names:
            builder.put(node)
    for name in new[place:]:
        builder.add(bare(name, names[name]))


def _is_hashed(sets: Sets) -> bool:
    """Whether records are those of a hashed name: its NSEC3 and signatures."""
    return NSEC3 in sets


def _place(builder: ZoneBuilder, name: Bare) -> None:
    _enclose(builder, name[0])
    builder.add(name)


def _enclose(builder: ZoneBuilder, name: bytes) -> None:
    """Adds the empty non-terminals above a name that are not there yet: in canonical order they stand right before
    it.
    """
    missing = []
    while name != builder.origin:
        name = parent(name)
        if name in builder.nodes or name == builder.origin:
            break
        missing.append(name)
    for each in reversed(missing):
        builder.add((each, ()))
