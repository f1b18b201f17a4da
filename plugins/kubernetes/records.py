"""From the cluster's objects to records, and from records to answers in the store.

Theory of operation. What a name of a Service gets is worked out when it is first asked for, rendered, and held at its
node of the store's trie, together with the types there are at that name; a change of the Service removes its subtree.
So the next question sees the new state, a change costs what changed, and a type that is not there costs a look-up. What
there is at all is in the index.

Names of endpoints and reverse names are worked out from the question, never stored ahead: the label, or the address in
it, leads to the endpoint by look-up. Only names that exist have nodes, so clients cannot make the store grow.
"""

import random
import socket
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

from kdns.dns import iana, rdata
from kdns.dns.answer import Answer, negative
from kdns.dns.errors import BadName
from kdns.dns.name import from_text
from kdns.dns.render import MAX_BODY
from kdns.dns.rrset import RRset
from kdns.kube.cluster import ServiceState
from kdns.kube.objects import CLUSTER, EXTERNAL, HEADLESS, Port, Service
from kdns.plugin.providers import Owner
from kdns.plugin.request import ALWAYS, Request
from kdns.plugins.kubernetes.endpoints import Matched, endpoint_label, matches, undashed
from kdns.plugins.kubernetes.index import MAX_SOA_TTL, SVC, Index, Zone, wire_key
from kdns.store.trie import Node

POD: Final = b"\x03pod"
DNS_VERSION: Final = b"\x0bdns-version"
VERSION: Final = b"1.1.0"  # of the specification this follows
MULTICLUSTER_VERSION: Final = b"1.0.0"  # of the multi-cluster one (KEP-1645)
VERSION_TTL: Final = 28800  # seconds; the specification's example
# SRV records of one answer: over 64 KiB of them whatever the names, and 4 ms of work.
MAX_SRV: Final = 2000
MANY_PARTS: Final = 15  # slices of a hundred endpoints that may hold more
_AA: Final = iana.AA
_PTR_ONLY: Final = (iana.PTR,)
_TXT_ONLY: Final = (iana.TXT,)


class Found(NamedTuple):
    """What a name at or below a Service stands for: cluster addresses with ports, or endpoints."""

    addresses: tuple[bytes, ...]
    ports: list[Port]
    endpoints: list[Matched]

    def types(self) -> tuple[int, ...]:
        """The types of records that the name has."""
        widths = {len(address) for address in self.addresses} | {matched.part.width for matched in self.endpoints}
        numbered = any(port.number >= 0 for port in self.ports) or any(
            port.number >= 0 for matched in self.endpoints for port in matched.ports
        )
        found = [iana.A] if 4 in widths else []
        if 16 in widths:
            found.append(iana.AAAA)
        if numbered and widths:
            found.append(iana.SRV)
        return tuple(found)


@final
class Records:
    """The records of the names of an index."""

    def __init__(self, index: Index) -> None:
        self.index = index

    # Negative answers and the apex.

    def soa(self, zone: Zone) -> bytes:
        """The zone's SOA rdata."""
        mname, rname = b"\x02ns\x03dns" + zone.name, b"\x0ahostmaster" + zone.name
        serial = zone.version or self.index.serial
        return rdata.soa(mname, rname, serial, rdata.REFRESH, rdata.RETRY, rdata.EXPIRE, self.index.ttl)

    def denial(self, zone: Zone, name: bytes, rcode: int) -> Answer:
        """NXDOMAIN, or NODATA (NOERROR), of a name where the sets of Services and namespaces decide that."""
        key = rcode << 8 | len(name)
        made = zone.denials.get(key)
        if made is None:
            made = negative(name, zone.name, rcode, _AA, zone.denial_ttl, self.soa(zone), self.index.names)
            zone.denials[key] = made
        return made

    def negative(self, zone: Zone, name: bytes, rcode: int) -> Answer:
        """NXDOMAIN, NODATA (NOERROR) or SERVFAIL for a name; the caller has noted what that depends on."""
        key = rcode << 8 | len(name)
        made = zone.negatives.get(key)
        if made is None:
            made = negative(name, zone.name, rcode, _AA, zone.denial_ttl, self.soa(zone), ALWAYS)
            zone.negatives[key] = made
        return made

    def _nodata(self, zone: Zone, name: bytes) -> Answer:
        """A NODATA of its own for a node, its body shared with all others of its length."""
        shared = self.negative(zone, name, iana.NOERROR)
        made = shared.replace()
        made.heads = shared.heads
        return made

    def apex(self, zone: Zone, owner: bytes, qtype: int) -> Answer:
        """The answer for the apex or for `ns.dns` below it: SOA, NS and addresses of name servers, or NODATA."""
        known = zone.apex.setdefault(owner, {})
        made = known.get(qtype)
        if made is None:
            made = self._apex(zone, owner, qtype)
            if made is None:
                return self.denial(zone, owner, iana.NOERROR)  # not held: there are 65,536 types
            made.validity = self.index.changes
            known[qtype] = made
        return made

    def _apex(self, zone: Zone, owner: bytes, qtype: int) -> Answer | None:
        if owner != zone.name:
            addresses = dict.fromkeys([address for _, address in self._servers(zone)])
            return self._addresses(zone, owner, qtype, addresses)
        if qtype == iana.SOA:
            soa = RRset(owner, iana.SOA, min(zone.ttl, MAX_SOA_TTL), (self.soa(zone),))
            return Answer(iana.NOERROR, _AA, (soa,), local=True)
        if qtype == iana.NS:
            servers = list(self._servers(zone))
            if servers:
                names = tuple(dict.fromkeys([name for name, _ in servers]))
                glue = [
                    glued for name in names for glued in self._glue(zone, name, [a for n, a in servers if n == name])
                ]
                return Answer(iana.NOERROR, _AA, (RRset(owner, iana.NS, zone.ttl, names),), (), glue, local=True)
        return None

    def _servers(self, zone: Zone) -> Iterator[tuple[bytes, bytes]]:
        """The name servers of the zone: the Services that select this machine, else ns.dns with its own addresses."""
        found = False
        index = self.index
        # PTR zones name the servers of the primary zone: theirs would not resolve.
        home = index.primary if zone.reverse else zone.name
        for entry in dict.fromkeys([entry for address in index.local for entry in index.cluster.owners(address)]):
            service = entry.service
            if service is None:
                continue
            name = service_name(entry, home)
            if service.kind == HEADLESS:
                for part in entry.parts():
                    for i, address in enumerate(part.addresses()):
                        found = True
                        label = endpoint_label(part, i, address, index.config.endpoint_pod_names)
                        yield bytes((len(label),)) + label + name, address
            else:
                for address in service.addresses:
                    found = True
                    yield name, address
        if not found:
            for address in index.local:
                yield b"\x02ns\x03dns" + home, address

    def _glue(self, zone: Zone, name: bytes, addresses: Iterable[bytes]) -> list[RRset]:
        every = list(dict.fromkeys(addresses))
        v4 = tuple([address for address in every if len(address) == 4])
        v6 = tuple([address for address in every if len(address) == 16])
        return [RRset(name, rtype, zone.ttl, found) for rtype, found in ((iana.A, v4), (iana.AAAA, v6)) if found]

    def _addresses(self, zone: Zone, owner: bytes, qtype: int, addresses: Iterable[bytes]) -> Answer | None:
        width = 4 if qtype == iana.A else 16 if qtype == iana.AAAA else 0
        found = tuple([address for address in addresses if len(address) == width])
        if not found:
            return None
        return Answer(iana.NOERROR, _AA, (RRset(owner, qtype, zone.ttl, found),), local=True)

    def version(self, zone: Zone, name: bytes, limit: int) -> Node:
        """The node of `dns-version`, with its TXT record."""
        text = MULTICLUSTER_VERSION if zone.imports else VERSION
        node = self.index.store.add(name)
        node.put(
            iana.TXT,
            Answer(
                iana.NOERROR, _AA, (RRset(name, iana.TXT, min(VERSION_TTL, limit), (rdata.txt(text),)),), local=True
            ),
        )
        node.put_types(_TXT_ONLY, self._nodata(zone, name))
        return node

    # Services.

    def service(self, request: Request, zone: Zone, labels: list[bytes], entry: ServiceState) -> Answer | None:
        """The answer for a name at or below a Service, whose labels left of it are `labels`; None: it does not exist.

        The caller has noted that this depends on the Service. Services of kind ExternalName are the caller's.
        """
        service = entry.service
        assert service is not None
        name, qtype = request.question.name, request.question.type
        index = self.index
        if self._hides(entry, service):
            return None
        if index.config.zonal and service.kind == HEADLESS and labels and labels[-1] == b"_zone" and not zone.imports:
            return self._zonal(zone, name, labels[:-1], entry, qtype)
        if len(labels) > 2:
            return None
        if len(labels) == 1 and self._is_protocol(entry, service, labels[0]):
            return self.negative(zone, name, iana.NOERROR)
        found = self._find(zone, labels, entry, service)
        if found is None:
            return None
        return self._hold(zone, name, qtype, entry, found)

    def _find(self, zone: Zone, labels: list[bytes], entry: ServiceState, service: Service) -> Found | None:
        """What the labels left of a Service's name stand for; None: nothing."""
        port = protocol = ""
        if len(labels) == 1:
            if zone.imports:
                return None  # an endpoint's name has its cluster's label; the cluster's alone is reserved (KEP-1645)
            return _endpoints(self.index.view(entry).endpoint(labels[0], b""))
        if labels:
            if zone.imports and not labels[0].startswith(b"_") and not labels[1].startswith(b"_"):
                return _endpoints(self.index.view(entry).endpoint(labels[0], labels[1]))
            # One leading underscore is optional, as in CoreDNS; nothing behind it matches everything.
            port = labels[0].removeprefix(b"_").decode("latin-1")
            protocol = labels[1].removeprefix(b"_").decode("latin-1")
        if service.kind == CLUSTER:
            ports = [p for p in service.ports if matches(p, port, protocol)]
            return Found(service.addresses, ports, []) if ports else None
        return _endpoints(self.index.view(entry).select(port, protocol))

    def _hold(self, zone: Zone, name: bytes, qtype: int, entry: ServiceState, found: Found) -> Answer:
        """The answer, held at the name's node together with the types that the name has."""
        node = self.index.store.add(name)
        if node.nodata is None:
            node.put_types(found.types(), self._nodata(zone, name))
        made = node.find(qtype)
        if made is None:
            made = self._answer(zone, name, entry, qtype, found)
            if made is None:
                assert node.nodata is not None
                return node.nodata
            node.put(qtype, made)
        return made

    def _answer(self, zone: Zone, name: bytes, entry: ServiceState, qtype: int, found: Found) -> Answer | None:
        if qtype == iana.SRV:
            return self._srv(zone, name, entry, found)
        addresses = dict.fromkeys(found.addresses)
        width = 4 if qtype == iana.A else 16
        for matched in found.endpoints:
            part = matched.part
            if part.width != width:
                continue
            if matched.places is None:
                addresses.update(dict.fromkeys(part.addresses()))
            else:
                addresses.update(dict.fromkeys([address for _, address in matched.addresses()]))
        return self._addresses(zone, name, qtype, addresses)

    def _srv(self, zone: Zone, name: bytes, entry: ServiceState, found: Found) -> Answer | None:
        base = service_name(entry, zone.name)
        count = len(found.addresses) * len(found.ports) + sum([m.count() * len(m.ports) for m in found.endpoints])
        weight = max(100 // max(count, 1), 1)
        records: dict[bytes, None] = {}
        targets: dict[bytes, list[bytes]] = {}
        for address in found.addresses:
            for port in found.ports:
                if port.number >= 0:
                    records[rdata.srv(0, weight, port.number, base)] = None
                    targets.setdefault(base, []).append(address)
        endpoints = found.endpoints
        # Where there are more than any message holds, a part of them is given, another one each time (with TC).
        first = random.randrange(len(endpoints)) if len(endpoints) > MANY_PARTS else 0
        for matched in endpoints[first:] + endpoints[:first]:
            if len(records) >= MAX_SRV:
                break
            part = matched.part
            numbers = [port.number for port in matched.ports if port.number >= 0]
            behind = bytes((len(part.cluster),)) + part.cluster.encode() + base if part.cluster else base
            for i, address in matched.addresses() if numbers else ():
                label = endpoint_label(part, i, address, self.index.config.endpoint_pod_names)
                target = bytes((len(label),)) + label + behind
                for number in numbers:
                    records[rdata.srv(0, weight, number, target)] = None
                targets.setdefault(target, []).append(address)
        if not records:
            return None
        if sum([len(data) for data in records]) + 12 * len(records) > MAX_BODY:
            targets.clear()  # the answer alone fills a message
        glue = [glued for target, addresses in targets.items() for glued in self._glue(zone, target, addresses)]
        return Answer(iana.NOERROR, _AA, (RRset(name, iana.SRV, zone.ttl, tuple(records)),), (), glue, local=True)

    def _zonal(self, zone: Zone, name: bytes, labels: list[bytes], entry: ServiceState, qtype: int) -> Answer | None:
        """`TOPOLOGY.pin` or `TOPOLOGY.prefer` before `_zone` of a headless Service; a topology zone may have dots."""
        view = self.index.view(entry)
        every = view.select("", "")
        if not every or (labels and labels[-1] not in (b"pin", b"prefer")):
            return None
        if len(labels) < 2:
            return self.negative(zone, name, iana.NOERROR)  # an empty non-terminal
        wanted = b".".join(labels[:-1]).decode("latin-1")
        if view.has_zone(wanted):
            return self._hold(zone, name, qtype, entry, Found((), [], view.in_zone(wanted)))
        if labels[-1] == b"pin":
            return self.negative(zone, name, iana.NOERROR)
        return self._as_service(zone, name, entry, qtype, Found((), [], every))

    def _as_service(self, zone: Zone, name: bytes, entry: ServiceState, qtype: int, every: Found) -> Answer:
        """What the Service's own name gets, under another one. Clients make these names up, so nothing is held for
        them.
        """
        answer = self._hold(zone, service_name(entry, zone.name), qtype, entry, every)
        if not answer.answer:
            return self.negative(zone, name, iana.NOERROR)
        if qtype != iana.SRV:
            # Address records point to the question and to nothing else, so the body fits any name.
            body = answer.rendered(answer.name or service_name(entry, zone.name))
            return Answer(iana.NOERROR, _AA, local=True, name=name, body=body, validity=ALWAYS)
        owned = [rrset._replace(owner=name) for rrset in answer.answer]
        return Answer(iana.NOERROR, _AA, owned, (), answer.additional, local=True, validity=ALWAYS)

    def _is_protocol(self, entry: ServiceState, service: Service, label: bytes) -> bool:
        """True if `_tcp.web...` is an empty non-terminal: a named port of that protocol stands below it (RFC 8020)."""
        if not label.startswith(b"_"):
            return False
        protocol = label[1:].decode("latin-1")
        if service.kind == CLUSTER:
            return any(port.name and port.protocol == protocol for port in service.ports)
        return any(name and kind == protocol for name, kind in self.index.view(entry).has_ports)

    # Reverse names and Pods.

    def pointer(self, zone: Zone, name: bytes, address: bytes) -> Node | None:
        """The node of an address's reverse name, with its PTR answer; None: no Service has the address.

        A cluster address wins over endpoints'.
        """
        index = self.index
        owner = index.cluster.cluster_owner(address)
        if owner is not None and self._shown(owner):
            targets = [service_name(owner, index.primary)]
        else:
            targets = []
            for entry in index.cluster.owners(address):
                if self._shown(entry):
                    label = index.view(entry).label_of(address)
                    targets.append(bytes((len(label),)) + label + service_name(entry, index.primary))
        if not targets:
            return None
        answer = Answer(
            iana.NOERROR, _AA, (RRset(name, iana.PTR, zone.ttl, tuple(dict.fromkeys(targets))),), local=True
        )
        node = index.store.add(name)
        node.put(iana.PTR, answer)
        node.put_types(_PTR_ONLY, self._nodata(zone, name))
        index.reverse[address] = name
        return node

    def has_pointer(self, address: bytes) -> bool:
        """True if an address has a reverse name with a PTR record."""
        cluster = self.index.cluster
        owner = cluster.cluster_owner(address)
        if owner is not None and self._shown(owner):
            return True
        return any(self._shown(entry) for entry in cluster.owners(address))

    def address_owners(self, address: bytes) -> list[Owner]:
        """The Services that an address's PTR records point to."""
        owner = self.index.cluster.cluster_owner(address)
        if owner is not None and self._shown(owner):
            found: Iterable[ServiceState] = (owner,)
        else:
            found = filter(self._shown, self.index.cluster.owners(address))
        return [Owner(entry.namespace.lower().encode(), entry.name.lower().encode()) for entry in found]

    def exists(self, entry: ServiceState) -> bool:
        """True if the names of a Service exist."""
        service = entry.service
        if service is None or not self.index.is_namespace(entry.namespace.lower().encode()):
            return False
        return not self._hides(entry, service)

    def _shown(self, entry: ServiceState) -> bool:
        """True if the names of a Service that addresses belong to exist: else no address may point to them."""
        service = entry.service
        return service is not None and service.kind != EXTERNAL and self.exists(entry)

    def _hides(self, entry: ServiceState, service: Service) -> bool:
        """True if `ignore empty_service` takes a Service away, and all that would be below it."""
        return self.index.config.ignore_empty and service.kind == CLUSTER and not entry.has_ready()

    def pod(self, zone: Zone, name: bytes, namespace: bytes, label: bytes, qtype: int) -> Answer | None:
        """The answer for `1-2-3-4.ns.pod.ZONE`; None: it does not exist."""
        address = undashed(label)
        if address is None:
            return None
        index = self.index
        if index.config.pods == "verified" and not index.cluster.has_pod(namespace.decode("latin-1"), address):
            return None
        made = self._addresses(zone, name, qtype, (address,))
        if made is None:
            return self.negative(zone, name, iana.NOERROR)
        made.validity = ALWAYS
        return made


def _endpoints(found: list[Matched]) -> Found | None:
    return Found((), [], found) if found else None


def service_name(entry: ServiceState, zone: bytes) -> bytes:
    """`web.n1.svc.ZONE`."""
    return wire_key(entry) + SVC + zone


def external_target(service: Service) -> bytes | None:
    """The name an ExternalName Service points to; None where it is none: empty, no name at all, or an address."""
    text = service.external
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text.rstrip("."))
            return None
        except (OSError, ValueError):
            continue
    try:
        target = from_text(text).lower()
    except (BadName, UnicodeError):
        return None
    return target if target != b"\0" else None
