"""From the cluster's objects to records, and from records to answers in the store.

Theory of operation. What a name of a Service comes to is computed when it is first asked for, rendered, and kept at
its node of the store's trie; a change of the Service drops its subtree, so the next question sees the new state, and
a change costs what changed. What there is at all is in the index.

Names of endpoints and reverse names are computed from the question, never stored ahead: an address in the name leads
to its Service in one look-up.
"""

import random
import socket
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

from kdns.dns import iana, rdata
from kdns.dns.answer import MAX_BODY, Answer, negative
from kdns.dns.errors import BadName
from kdns.dns.name import from_labels, from_text
from kdns.dns.rrset import RRset
from kdns.kube.cluster import Entry
from kdns.kube.names import dashed, endpoint_label, undashed
from kdns.kube.objects import CLUSTER, EXTERNAL, HEADLESS, Port, Service
from kdns.plugins.kubernetes.index import MAX_SOA_TTL, SVC, Index, Zone

POD: Final = b"\x03pod"
DNS_VERSION: Final = b"\x0bdns-version"
VERSION: Final = b"1.1.0"  # of the specification this follows
MULTICLUSTER_VERSION: Final = b"1.0.0"  # of the multi-cluster one (KEP-1645)
VERSION_TTL: Final = 28800  # seconds; the specification's example
# SOA timers (RFC 1035, section 3.3.13), CoreDNS's. Nothing transfers this zone by them; resolvers read the minimum.
REFRESH, RETRY, EXPIRE = 7200, 1800, 86400
# SRV records of one answer: over 64 KiB of them whatever the names, and 4 ms of work.
MAX_SRV: Final = 2000
MANY_PARTS: Final = 15  # slices of a hundred endpoints that may hold more
_AA: Final = iana.AA


class Candidate(NamedTuple):
    """An address and a port of a Service that a question matches, and what stands before the Service's name in the
    endpoint's (wire labels; empty: the Service itself)."""

    address: bytes
    port: Port
    prefix: bytes


@final
class Records(Index):
    """What the names of an index come to."""

    # Negative answers and the apex.

    def soa(self, zone: Zone) -> bytes:
        """The zone's SOA rdata."""
        mname, rname = b"\x02ns\x03dns" + zone.name, b"\x0ahostmaster" + zone.name
        return rdata.soa(mname, rname, self.serial, REFRESH, RETRY, EXPIRE, self.ttl)

    def negative(self, zone: Zone, name: bytes, rcode: int) -> Answer:
        """NXDOMAIN, NODATA (NOERROR) or SERVFAIL for a name in a zone: one answer for all names of its length."""
        key = rcode << 8 | len(name)
        made = zone.negatives.get(key)
        if made is None:
            made = negative(name, zone.name, rcode, _AA, zone.denial_ttl, self.soa(zone))
            zone.negatives[key] = made
        return made

    def deny(self, zone: Zone, namespace: bytes, label: bytes, length: int) -> Answer | None:
        """NXDOMAIN for `LABEL.NAMESPACE.svc.ZONE` (wire labels), if there is no such Service and the answer is at hand."""
        if label + namespace in self.entries or namespace not in self.exposed or self.cluster.stale:
            return None
        return zone.negatives.get(iana.NXDOMAIN << 8 | length)

    def apex(self, zone: Zone, owner: bytes, qtype: int) -> Answer:
        """The answer for the apex or for `ns.dns` below it: SOA, NS and addresses of name servers, or NODATA."""
        kept = zone.apex.setdefault(owner, {})
        made = kept.get(qtype)
        if made is None:
            made = kept[qtype] = self._apex(zone, owner, qtype) or self.negative(zone, owner, iana.NOERROR)
        return made

    def _apex(self, zone: Zone, owner: bytes, qtype: int) -> Answer | None:
        if owner != zone.name:
            addresses = dict.fromkeys(address for _, address in self._servers(zone))
            return self._addresses(zone, owner, qtype, addresses)
        if qtype == iana.SOA:
            soa = RRset(owner, iana.SOA, min(zone.ttl, MAX_SOA_TTL), (self.soa(zone),))
            return Answer(iana.NOERROR, _AA, (soa,), own=True)
        if qtype == iana.NS:
            servers = list(self._servers(zone))
            if servers:
                names = tuple(dict.fromkeys(name for name, _ in servers))
                glue = [glued for name in names for glued in self._glue(zone, name, [a for n, a in servers if n == name])]
                return Answer(iana.NOERROR, _AA, (RRset(owner, iana.NS, zone.ttl, names),), (), glue, own=True)
        return None

    def _servers(self, zone: Zone) -> Iterator[tuple[bytes, bytes]]:
        """The name servers of the zone: the Services that select this machine, else ns.dns with its own addresses."""
        found = False
        # PTR zones name the servers of the primary zone: theirs would not resolve.
        home = self.primary if zone.reverse else zone.name
        for entry in dict.fromkeys(entry for address in self.local for entry in self.cluster.owners(address)):
            service = entry.service
            if service is None:
                continue
            name = self.service_name(entry, home)
            if service.kind == HEADLESS:
                for part in entry.parts():
                    for i, address in enumerate(part.addresses()):
                        found = True
                        label = endpoint_label(part, i, address)
                        yield bytes((len(label),)) + label + name, address
            else:
                for address in service.addresses:
                    found = True
                    yield name, address
        if not found:
            for address in self.local:
                yield b"\x02ns\x03dns" + home, address

    def _glue(self, zone: Zone, name: bytes, addresses: Iterable[bytes]) -> list[RRset]:
        v4 = tuple(dict.fromkeys(address for address in addresses if len(address) == 4))
        v6 = tuple(dict.fromkeys(address for address in addresses if len(address) == 16))
        both = ((iana.A, v4), (iana.AAAA, v6))
        return [RRset(name, rtype, zone.ttl, found) for rtype, found in both if found]

    def _addresses(self, zone: Zone, owner: bytes, qtype: int, addresses: Iterable[bytes]) -> Answer | None:
        width = 4 if qtype == iana.A else 16 if qtype == iana.AAAA else 0
        found = tuple(address for address in addresses if len(address) == width)
        if not found:
            return None
        return Answer(iana.NOERROR, _AA, (RRset(owner, qtype, zone.ttl, found),), own=True)

    # Services.

    def service_name(self, entry: Entry, zone: bytes) -> bytes:
        """`web.n1.svc.ZONE`."""
        return from_labels([entry.name.lower().encode(), entry.namespace.lower().encode()])[:-1] + SVC + zone

    def service(self, zone: Zone, name: bytes, labels: list[bytes], entry: Entry, qtype: int) -> Answer | None:
        """The answer for a name at or below a Service, whose labels left of it are `labels`; None: it does not exist.

        ExternalName is the handler's: its answer may have to be looked up.
        """
        service = entry.service
        assert service is not None
        if service.kind == EXTERNAL:
            return None
        if self.config.zonal and service.kind == HEADLESS and labels and labels[-1] == b"_zone" and not zone.imports:
            return self._zonal(zone, name, labels[:-1], entry, qtype)
        if len(labels) > 2:
            return None
        endpoint = port = protocol = source = b""
        if len(labels) == 1:
            endpoint = labels[0]
            if _is_protocol_node(entry, service, endpoint):
                return self.negative(zone, name, iana.NOERROR)
            if zone.imports:
                return None  # an endpoint's name has its cluster's label; the cluster's alone is reserved (KEP-1645)
        elif zone.imports and labels and not labels[0].startswith(b"_") and not labels[1].startswith(b"_"):
            endpoint, source = labels
        elif labels:
            # One leading underscore is optional, as in CoreDNS; nothing behind it matches everything.
            port, protocol = labels[0].removeprefix(b"_"), labels[1].removeprefix(b"_")
        wanted = (port.decode("latin-1"), protocol.decode("latin-1"))
        if qtype in (iana.A, iana.AAAA) and not endpoint and service.kind == HEADLESS:
            addresses = _endpoints(entry, *wanted)
            return self._keep(zone, name, qtype, self._addresses(zone, name, qtype, addresses)) if addresses else None
        found = self._candidates(entry, service, endpoint, *wanted, source)
        if found is None:
            return None
        return self._keep(zone, name, qtype, self._answer(zone, name, entry, qtype, found))

    def _zonal(self, zone: Zone, name: bytes, labels: list[bytes], entry: Entry, qtype: int) -> Answer | None:
        """`TOPOLOGY.pin` or `TOPOLOGY.prefer` before `_zone` of a headless Service; a topology zone may have dots."""
        assert entry.service is not None
        found = self._candidates(entry, entry.service, b"", "", "", whole=True)
        if found is None or (labels and labels[-1] not in (b"pin", b"prefer")):
            return None
        if len(labels) < 2:
            return self.negative(zone, name, iana.NOERROR)  # an empty non-terminal
        wanted = b".".join(labels[:-1]).decode("latin-1")
        near = {
            address
            for part in entry.parts()
            if part.zones is not None
            for address, where in zip(part.addresses(), part.zones, strict=True)
            if where == wanted
        }
        chosen = [candidate for candidate in found if candidate.address in near]
        if not chosen and labels[-1] == b"pin":
            return self.negative(zone, name, iana.NOERROR)
        return self._keep(zone, name, qtype, self._answer(zone, name, entry, qtype, chosen or found))

    def _keep(self, zone: Zone, name: bytes, qtype: int, answer: Answer | None) -> Answer:
        """The answer, kept in the store; NODATA where there is none of the type."""
        if answer is None:
            return self.negative(zone, name, iana.NOERROR)
        self.store.add(name).keep(qtype, answer)
        self.store.generation += 1
        return answer

    def _candidates(
        self,
        entry: Entry,
        service: Service,
        endpoint: bytes,
        port: str,
        protocol: str,
        source: bytes = b"",
        *,
        whole: bool = False,
    ) -> list[Candidate] | None:
        """What of a Service a question matches; None where nothing does, so that the name does not exist."""
        if service.kind == CLUSTER and not endpoint:
            ports = [p for p in service.ports if _matches(p, port, protocol)]
            if not ports or (self.config.ignore_empty and not entry.has_ready()):
                return None
            return [Candidate(address, p, b"") for p in ports for address in service.addresses]
        out: list[Candidate] = []
        names = self.config.endpoint_pod_names
        parts = list(entry.parts())
        # Where there are more than any message holds, a part of them is given, another one each time (cut, and with TC).
        first = random.randrange(len(parts)) if len(parts) > MANY_PARTS else 0
        for part in parts[first:] + parts[:first]:
            if len(out) >= MAX_SRV and not (endpoint or whole):
                break
            ports = [p for p in part.ports if _matches(p, port, protocol)]
            if not ports:
                continue
            for i, address in enumerate(part.addresses()):
                label = endpoint_label(part, i, address, names)
                if endpoint and (label != endpoint or part.cluster.encode() != source):
                    continue
                prefix = bytes((len(label),)) + label
                if part.cluster:
                    prefix += bytes((len(part.cluster),)) + part.cluster.encode()
                out += [Candidate(address, p, prefix) for p in ports]
        return out or None

    def _answer(self, zone: Zone, name: bytes, entry: Entry, qtype: int, found: list[Candidate]) -> Answer | None:
        if qtype in (iana.A, iana.AAAA):
            return self._addresses(zone, name, qtype, dict.fromkeys(candidate.address for candidate in found))
        if qtype != iana.SRV:
            return None
        base = self.service_name(entry, zone.name)
        weight = max(100 // len(found), 1)
        records: dict[bytes, None] = {}
        targets: dict[bytes, list[bytes]] = {}
        for address, port, prefix in found:
            if port.number < 0:
                continue
            target = prefix + base
            records[rdata.srv(0, weight, port.number, target)] = None
            targets.setdefault(target, []).append(address)
        if not records:
            return None
        if sum(len(data) for data in records) + 12 * len(records) > MAX_BODY:
            targets.clear()  # the answer alone fills a message
        glue = [glued for target, addresses in targets.items() for glued in self._glue(zone, target, addresses)]
        return Answer(iana.NOERROR, _AA, (RRset(name, iana.SRV, zone.ttl, tuple(records)),), (), glue, own=True)

    # Reverse names and Pods.

    def pointer(self, zone: Zone, name: bytes, address: bytes) -> Answer | None:
        """The PTR answer for an address; None: no Service has it. A cluster address wins over endpoints'."""
        owner = self.cluster.cluster_owner(address)
        if owner is not None and self._shown(owner):
            targets = [self.service_name(owner, self.primary)]
        else:
            targets = []
            for entry in self.cluster.owners(address):
                if entry.service is not None and self._shown(entry):
                    base = self.service_name(entry, self.primary)
                    label = self._label_of(entry, address)
                    targets.append(bytes((len(label),)) + label + base)
        if not targets:
            return None
        made = Answer(iana.NOERROR, _AA, (RRset(name, iana.PTR, zone.ttl, tuple(dict.fromkeys(targets))),), own=True)
        self.store.add(name).keep(iana.PTR, made)
        self.reverse[address] = name
        return made

    def _shown(self, entry: Entry) -> bool:
        return self.config.namespaces is None or entry.namespace in self.config.namespaces

    def _label_of(self, entry: Entry, address: bytes) -> bytes:
        for part in entry.parts():
            if part.width == len(address):
                for i, found in enumerate(part.addresses()):
                    if found == address:
                        return endpoint_label(part, i, address, self.config.endpoint_pod_names)
        return dashed(address)

    def pod(self, zone: Zone, name: bytes, namespace: bytes, label: bytes, qtype: int) -> Answer | None:
        """The answer for `1-2-3-4.ns.pod.ZONE`; None: it does not exist."""
        address = undashed(label)
        if address is None:
            return None
        if self.config.pods == "verified" and not self.cluster.has_pod(namespace.decode("latin-1"), address):
            return None
        return self._addresses(zone, name, qtype, (address,)) or self.negative(zone, name, iana.NOERROR)


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


def _endpoints(entry: Entry, port: str, protocol: str) -> dict[bytes, None]:
    """The addresses of all endpoints with such a port, each once: 5,000 take a millisecond."""
    found: dict[bytes, None] = {}
    for part in entry.parts():
        if any(_matches(p, port, protocol) for p in part.ports):
            found.update(dict.fromkeys(part.addresses()))
    return found


def _matches(port: Port, name: str, protocol: str) -> bool:
    return (not name or port.name == name) and (not protocol or port.protocol == protocol)


def _is_protocol_node(entry: Entry, service: Service, label: bytes) -> bool:
    """Whether `_tcp.web...` is an empty non-terminal: a named port of that protocol stands below it (RFC 8020)."""
    if not label.startswith(b"_"):
        return False
    protocol = label[1:].decode("latin-1")
    if service.kind == CLUSTER:
        ports: Iterable[Port] = service.ports
    else:
        ports = (port for part in entry.parts() for port in part.ports)
    return any(port.name and port.protocol == protocol for port in ports)
