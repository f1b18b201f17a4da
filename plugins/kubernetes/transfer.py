"""A cluster's zone whole, for transfers: what the names of each Service come to. No Pods and no reverse names.

A Service of thousands of endpoints is given in many small RRsets, so that whoever goes through them may stop at any
time: the same owner and type may come more than once, the same record never does.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, final

from kdns.dns import iana, rdata
from kdns.dns.name import labels
from kdns.dns.rrset import RRset
from kdns.kube.cluster import ServiceState
from kdns.kube.objects import EXTERNAL, HEADLESS, Port, Service, Slice
from kdns.plugins.kubernetes.endpoints import endpoint_label, port_labels
from kdns.plugins.kubernetes.index import SVC, Index, Zone
from kdns.plugins.kubernetes.records import Records, external_target


class State(NamedTuple):
    """A Service as its records are made of it: never changed, so that it stays what it was in a zone's version.

    `parts` are the endpoints of a headless one; of others they make no records.
    """

    service: Service
    parts: tuple[Slice, ...] = ()


Side = Iterator[RRset]


@final
class Contents:
    """What `kubernetes` puts into its zones (kdns.plugins.kubernetes.journal.Contents)."""

    def __init__(self, index: Index, records: Records) -> None:
        self.index = index
        self.records = records

    def state(self, entry: ServiceState) -> State | None:
        """A Service as it is now; None where it has no records."""
        service = entry.service
        if service is None or not self.records.exists(entry):
            return None
        if service.kind != HEADLESS:
            return State(service)
        parts = tuple(entry.parts())
        return State(service, parts) if parts else None

    def soa(self, zone: Zone) -> RRset:
        """The SOA that a query gets."""
        return self.records.apex(zone, zone.name, iana.SOA).answer[0]

    def head(self, zone: Zone, table: Mapping[bytes, State]) -> list[RRset]:
        """The name servers, and their addresses where these are not the records of a Service."""
        answer = self.records.apex(zone, zone.name, iana.NS)
        return [*answer.answer, *[rrset for rrset in answer.additional if _key(rrset.owner, zone) not in table]]

    def rrsets(self, zone: Zone, key: bytes, state: State) -> Side:
        """A Service's records."""
        service = state.service
        base = key + SVC + zone.name
        if service.kind == HEADLESS:
            yield from self._headless(base, state.parts, _weight(state))
            return
        ttl = self.index.ttl
        if service.kind == EXTERNAL:
            target = external_target(service)
            if target is not None:
                yield RRset(base, iana.CNAME, ttl, (target,))
            return
        for rtype, width in ((iana.A, 4), (iana.AAAA, 16)):
            found = tuple([address for address in service.addresses if len(address) == width])
            if found:
                yield RRset(base, rtype, ttl, found)
        srvs = dict.fromkeys([rdata.srv(0, 100, port.number, base) for port in service.ports if port.number >= 0])
        if srvs:
            yield RRset(base, iana.SRV, ttl, tuple(srvs))
        below: dict[bytes, dict[bytes, None]] = {}
        for port in service.ports:
            if port.number >= 0 and (names := port_labels(port)):
                below.setdefault(names, {})[rdata.srv(0, 100, port.number, base)] = None
        for names, found_below in below.items():
            yield RRset(names + base, iana.SRV, ttl, tuple(found_below))

    def sides(self, zone: Zone, key: bytes, old: State | None, new: State | None) -> tuple[Side, Side, Side]:
        """What only one state has, what only the other has, and what both have of that. Records may stand in several.

        Slices that did not change are passed by, unless they hold addresses of those that did: an endpoint is in two
        while it is moved from one to the other.
        """
        if old is not None and new is not None and old.service == new.service and _weight(old) == _weight(new):
            before, after = set(old.parts), set(new.parts)
            gone = State(old.service, tuple([part for part in old.parts if part not in after]))
            come = State(new.service, tuple([part for part in new.parts if part not in before]))
            moved = {address for part in (*gone.parts, *come.parts) for address in part.addresses()}
            base, weight = key + SVC + zone.name, _weight(old)
            kept = [part for part in new.parts if part in before]
            return (
                self._headless(base, gone.parts, weight),
                self._headless(base, come.parts, weight),
                self._headless(base, kept, weight, moved),
            )
        nothing: Side = iter(())
        return (
            self.rrsets(zone, key, old) if old is not None else nothing,
            self.rrsets(zone, key, new) if new is not None else nothing,
            nothing,
        )

    def _headless(
        self, base: bytes, parts: tuple[Slice, ...] | list[Slice], weight: int, only: set[bytes] | None = None
    ) -> Side:
        """The records of endpoints, or of those with some addresses only."""
        ttl, pod_names = self.index.ttl, self.index.config.endpoint_pod_names
        addresses: set[bytes] = set()
        named: set[bytes] = set()  # owner and address
        srvs: set[bytes] = set()  # port and target
        for part in parts:
            rtype = iana.A if part.width == 4 else iana.AAAA
            every = part.addresses()
            if only is not None and only.isdisjoint(every):
                yield RRset(base, rtype, ttl, ())  # a place to stop at
                continue
            found = [(i, each) for i, each in enumerate(every) if only is None or each in only]
            fresh = dict.fromkeys([each for _, each in found if each not in addresses])
            if fresh:
                addresses.update(fresh)
                yield RRset(base, rtype, ttl, tuple(fresh))
            owners: dict[bytes, None] = {}
            for i, address in found:
                label = endpoint_label(part, i, address, pod_names)
                owner = bytes((len(label),)) + label + base
                owners[owner] = None
                if owner + address not in named:
                    named.add(owner + address)
                    yield RRset(owner, rtype, ttl, (address,))
            for port in part.ports:
                if port.number >= 0 and (names := port_labels(port)):
                    yield from _srv(names + base, ttl, weight, port, owners, srvs)


def _srv(owner: bytes, ttl: int, weight: int, port: Port, targets: dict[bytes, None], seen: set[bytes]) -> Side:
    datas = [rdata.srv(0, weight, port.number, target) for target in targets]
    fresh = [data for data in datas if owner + data not in seen]
    if fresh:
        seen.update([owner + data for data in fresh])
        yield RRset(owner, iana.SRV, ttl, tuple(fresh))


def _weight(state: State) -> int:
    """That of a headless Service's SRV records."""
    return max(100 // max(sum([len(part.packed) // part.width for part in state.parts]), 1), 1)


def _key(owner: bytes, zone: Zone) -> bytes:
    """The Service that a name in a zone belongs to, as an index has it; empty where it is none's."""
    below = SVC + zone.name
    if not owner.endswith(below):
        return b""
    return b"".join([bytes((len(label),)) + label for label in labels(owner[: -len(below)] + b"\0")[-2:]])
