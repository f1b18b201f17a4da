"""A cluster's zone whole, for transfers: what its names come to, in one moment's state."""

from collections.abc import Iterable, Iterator

from kdns.dns import iana, rdata
from kdns.dns.rrset import RRset
from kdns.kube.objects import EXTERNAL, HEADLESS, Port, Service, Slice
from kdns.plugins.kubernetes.endpoints import endpoint_label, port_labels
from kdns.plugins.kubernetes.index import SVC, Index, Zone
from kdns.plugins.kubernetes.records import Records, external_target


def transfer(index: Index, records: Records, zone: Zone) -> Iterator[RRset]:
    """The SOA, the name servers, and each Service's records, by namespace and name. No Pods and no reverse names."""
    # Objects are never changed once made, so references to them are a moment's state.
    state = sorted(
        (entry.namespace, entry.name, key, entry.service, tuple(entry.slices.values()))
        for key, entry in index.entries.items()
        if entry.service is not None
        and bytes((len(entry.namespace),)) + entry.namespace.lower().encode() in index.exposed
    )
    head = [
        rrset
        for qtype in (iana.SOA, iana.NS)
        for section in records.apex(zone, zone.name, qtype).sections
        for rrset in section
    ]
    return _all(index, zone, head, state)


def _all(
    index: Index,
    zone: Zone,
    head: list[RRset],
    state: list[tuple[str, str, bytes, Service, tuple[tuple[Slice, ...], ...]]],
) -> Iterator[RRset]:
    yield from head
    for _, _, key, service, slices in state:
        base = key + SVC + zone.name
        if service.kind == EXTERNAL:
            target = external_target(service)
            if target is not None:
                yield RRset(base, iana.CNAME, index.ttl, (target,))
        elif service.kind == HEADLESS:
            yield from _headless(index, base, [part for parts in slices for part in parts])
        else:
            yield from _addresses(base, index.ttl, service.addresses)
            srvs = [rdata.srv(0, 100, port.number, base) for port in service.ports if port.number >= 0]
            if srvs:
                yield RRset(base, iana.SRV, index.ttl, tuple(dict.fromkeys(srvs)))
            for port in service.ports:
                if below := port_labels(port):
                    yield RRset(below + base, iana.SRV, index.ttl, (rdata.srv(0, 100, port.number, base),))


def _headless(index: Index, base: bytes, parts: list[Slice]) -> Iterator[RRset]:
    addresses = dict.fromkeys(address for part in parts for address in part.addresses())
    yield from _addresses(base, index.ttl, addresses)
    weight = max(100 // max(len(addresses), 1), 1)
    named: dict[bytes, dict[bytes, None]] = {}
    ports: dict[Port, dict[bytes, None]] = {}
    for part in parts:
        for i, address in enumerate(part.addresses()):
            label = endpoint_label(part, i, address, index.config.endpoint_pod_names)
            owner = bytes((len(label),)) + label + base
            named.setdefault(owner, {})[address] = None
            for port in part.ports:
                if port_labels(port) and port.number >= 0:
                    ports.setdefault(port, {})[rdata.srv(0, weight, port.number, owner)] = None
    for owner, found in named.items():
        yield from _addresses(owner, index.ttl, found)
    for port, srvs in ports.items():
        yield RRset(port_labels(port) + base, iana.SRV, index.ttl, tuple(srvs))


def _addresses(owner: bytes, ttl: int, addresses: Iterable[bytes]) -> Iterator[RRset]:
    every = tuple(addresses)
    for rtype, width in ((iana.A, 4), (iana.AAAA, 16)):
        found = tuple(address for address in every if len(address) == width)
        if found:
            yield RRset(owner, rtype, ttl, found)
