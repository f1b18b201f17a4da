"""k8s_external - serves the external addresses of Services.

## Syntax

    k8s_external [ZONES...] {
        apex LABEL
        ttl TTL
        headless
        fallthrough [ZONES...]
    }

* ZONES are the zones of outside names; the block's if there are none. `SERVICE.NAMESPACE.ZONE` has a Service's external
  IPs and what its load balancer says: addresses, or a CNAME to a host name. `_port._protocol.SERVICE.NAMESPACE.ZONE`
  and the name itself have SRV records. In a reverse zone, external IPs have PTR records.
* `apex` is the label of the name server's name, `ns1.LABEL.ZONE`. Default: dns.
* `ttl` is that of answers, in seconds, 0 to 3600. Default: 5.
* `headless`: headless Services have their endpoints' addresses, and endpoints names of their own.
* `fallthrough`: names that do not exist go on to the next plugin.

It needs `kubernetes` in the same block, and answers SERVFAIL until that has been synced. Its zones can be transferred
(see `transfer`).

## Examples

~~~ corefile
.:1053 {
    kubernetes cluster.local {
        manifests cluster.yaml
    }
    k8s_external apps.example.org {
        ttl 30
    }
}
~~~
"""

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer, negative
from kdns.dns.errors import BadName
from kdns.dns.name import from_text, offsets
from kdns.dns.reverse import address_of, is_reverse
from kdns.dns.rrset import RRset
from kdns.kube.cluster import ServiceState
from kdns.kube.objects import HEADLESS, Port
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, readers, then
from kdns.plugin.aliases import joined
from kdns.plugin.base import BlockInfo
from kdns.plugin.providers import Owner
from kdns.plugin.readers import Fallthrough
from kdns.plugins.kubernetes.endpoints import Matched, endpoint_label, matches, port_labels
from kdns.plugins.kubernetes.index import wire_key
from kdns.plugins.kubernetes.plugin import Kubernetes

MAX_TTL: Final = 3600
_OPTIONS: Final = ("apex", "ttl", "headless", "fallthrough")
_AA: Final = iana.AA


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of the directive. `zones` are wire names, `apex` a label, `ttl` in seconds."""

    zones: tuple[bytes, ...]
    apex: bytes = b"dns"
    ttl: int = 5
    headless: bool = False
    fallthrough: Fallthrough = Fallthrough()  # noqa: RUF009 (never changed)


class K8sExternal(Plugin):
    """Answers for Services as they are seen from outside."""

    name: ClassVar[str] = "k8s_external"
    pure = True
    serves_external = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        zones = readers.zone_names(directive.args, block)
        found: dict[str, object] = {}
        for line in directive.body or ():
            readers.no_block(line)
            name = line.name.text
            if name == "apex":
                word = readers.one(line, "a label")
                if not word.text or len(word.text) > 63 or "." in word.text:
                    raise readers.fail(word, f'expected one label, found "{word.text}"')
                found["apex"] = word.text.lower().encode()
            elif name == "ttl":
                found["ttl"] = readers.integer(readers.one(line, "a TTL in seconds"), 0, MAX_TTL)
            elif name == "headless":
                readers.arguments(line, 0, 0)
                found["headless"] = True
            elif name == "fallthrough":
                found["fallthrough"] = Fallthrough.parse(line)
            else:
                raise readers.unknown(line, _OPTIONS)
        return [Config(zones, **found)]  # type: ignore[arg-type]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.zones = sorted(config.zones, key=len, reverse=True)
        self.primary = next((zone for zone in config.zones if not is_reverse(zone)), b"\0")
        self.cluster: Kubernetes | None = None
        self.ttl = config.ttl
        self.pod_names = False
        self.block: BlockInfo | None = None

    def check(self, block: BlockInfo) -> None:
        if not block.all(Kubernetes):
            raise CorefileError(
                block.parsed.at, "plugin/k8s_external: it needs the plugin kubernetes in the same server block"
            )

    def wire(self, block: BlockInfo) -> None:
        self.block = block
        self.ttl = min(
            self.config.ttl, *(block.ttl_limit(zone, denial) for zone in self.zones for denial in (False, True))
        )
        self.cluster = block.all(Kubernetes)[0]
        self.pod_names = self.cluster.index.config.endpoint_pod_names

    # Queries.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        name, starts = question.name, question.starts
        zone = self._zone(name, starts)
        if zone is None:
            return None
        if question.cls != iana.IN and question.cls != iana.ANY:
            return RcodeOnly(iana.REFUSED)  # no other class has these names
        assert self.cluster is not None
        request.depends_on(self.cluster.index.changes)
        count = starts.index(len(name) - len(zone))
        return self._in_zone(request, zone, [name[starts[i] + 1 : starts[i + 1]] for i in range(count)])

    def _in_zone(
        self, request: Request, zone: bytes, labels: list[bytes]
    ) -> Outcome | Awaitable[Outcome | None] | None:
        assert self.cluster is not None
        name, qtype = request.question.name, request.question.type
        if qtype in (iana.AXFR, iana.IXFR):
            return RcodeOnly(iana.REFUSED)
        if not self.cluster.is_ready():
            return self._none(name, zone, iana.SERVFAIL)
        if not labels:
            return self._apex(zone, qtype) or self._none(name, zone, iana.NOERROR)
        if labels[-1] == self.config.apex:
            return self._server(name, zone, labels[:-1], qtype)
        if is_reverse(zone):
            return self._reverse(request, zone)
        if len(labels) == 1:
            return (
                self._none(name, zone, iana.NOERROR)
                if self.cluster.index.is_namespace(labels[0])
                else self._missing(request, zone)
            )
        entry = self.cluster.service(labels[-2], labels[-1])
        if entry is None or len(labels) > 4:
            return self._missing(request, zone)
        return self._service(request, zone, entry, labels[:-2])

    def _missing(self, request: Request, zone: bytes) -> Outcome | None:
        if self.config.fallthrough.falls_through(request.question.name):
            return None
        return self._none(request.question.name, zone, iana.NXDOMAIN)

    def _none(self, name: bytes, zone: bytes, rcode: int) -> Answer:
        return negative(name, zone, rcode, _AA, self.ttl, self._soa(zone), ALWAYS)

    def _soa(self, zone: bytes) -> bytes:
        assert self.cluster is not None
        apex = bytes((len(self.config.apex),)) + self.config.apex + zone
        mname, rname = b"\x03ns1" + apex, b"\x0ahostmaster" + apex
        return rdata.soa(mname, rname, self.cluster.index.serial, rdata.REFRESH, rdata.RETRY, rdata.EXPIRE, self.ttl)

    # The apex, and the name server's name below it.

    def _apex(self, zone: bytes, qtype: int) -> Answer | None:
        ttl = self.ttl
        if qtype == iana.SOA:
            return Answer(
                iana.NOERROR, _AA, (RRset(zone, iana.SOA, ttl, (self._soa(zone),)),), local=True, validity=ALWAYS
            )
        if qtype == iana.NS:
            server = b"\x03ns1" + bytes((len(self.config.apex),)) + self.config.apex + zone
            glue = self._address_sets(server, self._server_addresses())
            return Answer(
                iana.NOERROR, _AA, (RRset(zone, iana.NS, ttl, (server,)),), (), glue, local=True, validity=ALWAYS
            )
        return None

    def _server(self, name: bytes, zone: bytes, labels: list[bytes], qtype: int) -> Answer:
        if not labels:
            return self._none(name, zone, iana.NOERROR)
        if labels != [b"ns1"]:
            return self._none(name, zone, iana.NXDOMAIN)
        found = [rrset for rrset in self._address_sets(name, self._server_addresses()) if rrset.type == qtype]
        return (
            Answer(iana.NOERROR, _AA, found, local=True, validity=ALWAYS)
            if found
            else self._none(name, zone, iana.NOERROR)
        )

    def _server_addresses(self) -> list[bytes]:
        """Where this server is reached from outside: its Services' external addresses, else this machine's."""
        assert self.cluster is not None
        found = [
            a for entry in self.cluster.server_services() if entry.service is not None for a in entry.service.outside
        ]
        return list(dict.fromkeys(found)) or list(self.cluster.addresses)

    def _address_sets(self, owner: bytes, addresses: Iterable[bytes]) -> list[RRset]:
        every = tuple(dict.fromkeys(addresses))
        sets = ((iana.A, tuple(a for a in every if len(a) == 4)), (iana.AAAA, tuple(a for a in every if len(a) == 16)))
        return [RRset(owner, rtype, self.ttl, found) for rtype, found in sets if found]

    # Services.

    def _service(
        self, request: Request, zone: bytes, entry: ServiceState, labels: list[bytes]
    ) -> Outcome | Awaitable[Outcome | None] | None:
        service = entry.service
        assert service is not None
        name, qtype = request.question.name, request.question.type
        outside = bool(service.outside or service.outside_hosts)
        headless = self.config.headless and service.kind == HEADLESS and not outside
        if not outside and not headless:
            return self._missing(request, zone)
        if len(labels) == 1 and self._is_protocol(entry, headless, labels[0]):
            return self._none(name, zone, iana.NOERROR)
        base = name[offsets(name)[len(labels)] :]
        port = protocol = ""
        if len(labels) == 2:
            port, protocol = (label.removeprefix(b"_").decode("latin-1") for label in labels)
        if headless:
            assert self.cluster is not None
            view = self.cluster.index.view(entry)
            endpoints = view.endpoint(labels[0], b"") if len(labels) == 1 else view.select(port, protocol)
            if not endpoints:
                return self._missing(request, zone)
            sets = (
                self._endpoint_srv(name, base, endpoints) if qtype == iana.SRV else self._endpoint_sets(name, endpoints)
            )
            return self._found(name, zone, qtype, sets)
        ports = [p for p in service.ports if matches(p, port, protocol)]
        if len(labels) == 1 or not ports:
            return self._missing(request, zone)
        if qtype == iana.SRV:
            return self._found(name, zone, qtype, self._srv(name, base, ports, service.outside, service.outside_hosts))
        if service.outside:
            return self._found(name, zone, qtype, self._address_sets(name, service.outside))
        return self._alias(request, zone, service.outside_hosts)

    def _is_protocol(self, entry: ServiceState, headless: bool, label: bytes) -> bool:
        """True if `_tcp.web...` is an empty non-terminal: a named port of that protocol stands below it (RFC 8020)."""
        assert self.cluster is not None and entry.service is not None
        ports = self.cluster.index.view(entry).has_ports if headless else [p[:2] for p in entry.service.ports]
        return any(name and label == b"_" + kind.encode() for name, kind in ports)

    def _found(self, name: bytes, zone: bytes, qtype: int, sets: list[RRset]) -> Answer:
        """The RRsets of the type asked; those of other types are what an SRV record needs beside it."""
        found = [rrset for rrset in sets if rrset.type == qtype]
        if not found:
            return self._none(name, zone, iana.NOERROR)
        beside = [rrset for rrset in sets if rrset.type != qtype] if qtype == iana.SRV else ()
        return Answer(iana.NOERROR, _AA, found, (), beside, local=True, validity=ALWAYS)

    def _alias(self, request: Request, zone: bytes, hosts: tuple[str, ...]) -> Outcome | Awaitable[Outcome | None]:
        """A load balancer's host name: a CNAME, and what it resolves to."""
        name, qtype = request.question.name, request.question.type
        target = _target(hosts)
        if target is None or qtype not in (iana.A, iana.AAAA, iana.CNAME):
            return self._none(name, zone, iana.NOERROR)
        cname = RRset(name, iana.CNAME, self.ttl, (target,))
        if qtype == iana.CNAME:
            return Answer(iana.NOERROR, _AA, (cname,), local=True, validity=ALWAYS)
        found: Outcome | Awaitable[Outcome | None] = then(request.lookup(target, qtype), partial(joined, (cname,)))
        return found

    def _srv(
        self, name: bytes, base: bytes, ports: list[Port], addresses: tuple[bytes, ...], hosts: tuple[str, ...]
    ) -> list[RRset]:
        target = base if addresses else _target(hosts) or base
        weight = max(100 // max(len(addresses) * len(ports), 1), 1)
        srvs = tuple(dict.fromkeys(rdata.srv(0, weight, p.number, target) for p in ports if p.number >= 0))
        return [RRset(name, iana.SRV, self.ttl, srvs), *self._address_sets(base, addresses)] if srvs else []

    # Headless Services.

    def _endpoint_sets(self, owner: bytes, endpoints: list[Matched]) -> list[RRset]:
        return self._address_sets(owner, (address for part in endpoints for _, address in part.addresses()))

    def _endpoint_names(self, base: bytes, endpoints: list[Matched]) -> list[tuple[bytes, bytes, list[int]]]:
        """Each endpoint's name, its address, and the ports that it listens on itself."""
        return [
            (bytes((len(label),)) + label + base, address, [p.number for p in part.ports if p.number >= 0])
            for part in endpoints
            for i, address in part.addresses()
            for label in [endpoint_label(part.part, i, address, self.pod_names)]
        ]

    def _named_sets(self, named: list[tuple[bytes, bytes, list[int]]]) -> list[RRset]:
        owned: dict[bytes, list[bytes]] = {}
        for owner, address, _ in named:
            owned.setdefault(owner, []).append(address)
        return [rrset for owner, addresses in owned.items() for rrset in self._address_sets(owner, addresses)]

    def _endpoint_srv(self, name: bytes, base: bytes, endpoints: list[Matched]) -> list[RRset]:
        """SRV records to the endpoints' names, and their addresses; nothing where they have no ports."""
        named = self._endpoint_names(base, endpoints)
        weight = max(100 // max(sum([len(numbers) for _, _, numbers in named]), 1), 1)
        srvs = tuple(
            dict.fromkeys([rdata.srv(0, weight, number, owner) for owner, _, numbers in named for number in numbers])
        )
        return [RRset(name, iana.SRV, self.ttl, srvs), *self._named_sets(named)] if srvs else []

    def _reverse(self, request: Request, zone: bytes) -> Outcome | None:
        assert self.cluster is not None
        name = request.question.name
        address = address_of(name)
        entry = self.cluster.cluster.outside_owner(address) if address is not None else None
        if entry is None:
            return self._missing(request, zone)
        if request.question.type != iana.PTR:
            return self._none(name, zone, iana.NOERROR)
        target = wire_key(entry) + self.primary
        return Answer(iana.NOERROR, _AA, (RRset(name, iana.PTR, self.ttl, (target,)),), local=True, validity=ALWAYS)

    # For who tells clients apart.

    def owners(self, name: bytes, starts: list[int]) -> list[Owner] | None:
        """Whose a name is, whether it exists or not; None for names that are not a namespace's."""
        zone = self._zone(name, starts)
        if zone is None:
            return None
        if is_reverse(zone):
            address = address_of(name)
            assert self.cluster is not None
            entry = self.cluster.cluster.outside_owner(address) if address is not None else None
            return [Owner(entry.namespace.lower().encode(), entry.name.lower().encode())] if entry is not None else None
        count = starts.index(len(name) - len(zone))
        labels = [name[starts[i] + 1 : starts[i + 1]] for i in range(max(count - 2, 0), count)]
        if not labels or labels[-1] == self.config.apex:
            return None
        return [Owner(labels[-1], labels[0] if count > 1 else b"")]

    def named_zones(self) -> tuple[bytes, ...]:
        """Its zones."""
        return self.config.zones

    def absent(self, request: Request) -> Outcome | None:
        """What a name of its zones gets where it does not exist; None: it falls through."""
        zone = self._zone(request.question.name, request.question.starts)
        if zone is None or self.cluster is None:
            return None
        request.depends_on(self.cluster.index.changes)
        if not self.cluster.is_ready():
            return self._none(request.question.name, zone, iana.SERVFAIL)
        return self._missing(request, zone)

    def _zone(self, name: bytes, starts: list[int]) -> bytes | None:
        """The longest of its zones that a name is in."""
        for zone in self.zones:
            excess = len(name) - len(zone)
            if excess >= 0 and excess in starts and name[excess:] == zone:
                return zone
        return None

    # Transfers.

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones that are not reverse zones."""
        return tuple(zone for zone in self.config.zones if not is_reverse(zone))

    def transfer(self, zone: bytes) -> Iterator[RRset] | None:
        """All records of a zone; None before the first sync."""
        assert self.cluster is not None
        if not self.cluster.is_ready():
            return None
        entries = sorted(self.cluster.services(), key=lambda entry: (entry.namespace, entry.name))
        return self._all(zone, [(wire_key(entry) + zone, entry) for entry in entries])

    def _all(self, zone: bytes, entries: list[tuple[bytes, ServiceState]]) -> Iterator[RRset]:
        for qtype in (iana.SOA, iana.NS):
            answer = self._apex(zone, qtype)
            for section in answer.sections if answer is not None else ():
                yield from section
        for base, entry in entries:
            service = entry.service
            if service is None:
                continue
            if not (service.outside or service.outside_hosts):
                if self.config.headless and service.kind == HEADLESS:
                    yield from self._all_of_headless(base, entry)
                continue
            if service.outside:
                yield from self._address_sets(base, service.outside)
            else:
                target = _target(service.outside_hosts)
                if target is not None:
                    yield RRset(base, iana.CNAME, self.ttl, (target,))
            for port in service.ports:
                labels = port_labels(port)
                if labels and port.number >= 0:
                    yield from self._srv(labels + base, base, [port], service.outside, service.outside_hosts)[:1]

    def _all_of_headless(self, base: bytes, entry: ServiceState) -> Iterator[RRset]:
        assert self.cluster is not None
        view = self.cluster.index.view(entry)
        endpoints = view.select("", "")
        yield from self._endpoint_sets(base, endpoints)
        yield from self._named_sets(self._endpoint_names(base, endpoints))
        for name, protocol in sorted(view.has_ports):
            labels = port_labels(Port(name, protocol, 0))
            if labels:
                yield from self._endpoint_srv(labels + base, base, view.select(name, protocol))[:1]


def _target(hosts: tuple[str, ...]) -> bytes | None:
    for host in hosts:
        try:
            return from_text(host).lower()
        except BadName:
            continue
    return None
