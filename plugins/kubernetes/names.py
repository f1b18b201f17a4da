"""From a question to what it gets: which zone it is in, which kind of name it is, and what a name that is not there
gets.
"""

import ipaddress
from collections.abc import Awaitable
from functools import partial
from itertools import islice
from typing import Final, final

from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.reverse import address_of, range_below
from kdns.dns.rrset import RRset
from kdns.kube.cluster import ServiceState
from kdns.kube.objects import EXTERNAL
from kdns.plugin.aliases import joined
from kdns.plugin.outcome import Outcome, RcodeOnly, then
from kdns.plugin.providers import NO_SERVICE, Owner
from kdns.plugin.request import ALWAYS, Request
from kdns.plugins.kubernetes.index import SVC, Index, Zone
from kdns.plugins.kubernetes.records import DNS_VERSION, POD, Records, external_target
from kdns.store.trie import Node

# Addresses below a reverse name that are looked at: those of namespaces that are not served do not count.
MAX_LOOKED_AT: Final = 1000
_STALE: Final = edns.extended_error(edns.STALE_ANSWER)
Handled = Outcome | Awaitable[Outcome | None] | None


@final
class Names:
    """The query path over the records of one cluster."""

    def __init__(self, index: Index, records: Records) -> None:
        self.index = index
        self.records = records
        self.cluster = index.cluster
        self.nodes: dict[bytes, Node] = index.store.index  # what has been asked for
        self.tails: tuple[bytes, ...] = tuple([zone.name for zone in index.zones])
        self.pods = index.config.pods != "disabled"

    def handle(self, request: Request) -> Handled:
        """The outcome for a question; None: it is not in these zones, or falls through."""
        if self.cluster.stale and request.edns is not None:
            answered: Handled = then(self._handle(request), _marked)
            return answered
        return self._handle(request)

    def _handle(self, request: Request) -> Handled:
        question = request.question
        cls = question.cls
        if cls == iana.IN:
            node = self.nodes.get(question.name)
            if node is not None:
                answer = node.find(question.type)
                if answer is not None:
                    return answer
        found = self.zone(question.name, question.starts)
        if found is None:
            return None
        if cls != iana.IN and cls != iana.ANY:
            # Our names have no data in other classes, and nobody else may say what they have.
            return RcodeOnly(iana.REFUSED)
        zone, count = found
        if zone.reverse:
            return self._reverse(request, zone, count)
        return self._forward(request, zone, question.starts, count)

    def zone(self, name: bytes, starts: list[int]) -> tuple[Zone, int] | None:
        """The zone that a name is in, and how many labels the name has below its apex."""
        if not name.endswith(self.tails):
            return None  # `endswith` may only lie the other way
        size = len(name)
        for zone in self.index.zones:
            excess = size - len(zone.name)
            if excess >= 0 and excess in starts and name[excess:] == zone.name:
                return zone, starts.index(excess)
        return None

    def _forward(self, request: Request, zone: Zone, starts: list[int], count: int) -> Handled:
        """A name in a zone of Services and Pods, `count` labels below the apex."""
        index, records = self.index, self.records
        name, qtype = request.question.name, request.question.type
        if qtype == iana.AXFR or qtype == iana.IXFR:
            return RcodeOnly(iana.REFUSED)
        if count == 0:
            return records.apex(zone, name, qtype)
        last = name[starts[count - 1] : starts[count]]
        if last == SVC:
            if count == 1:
                return records.denial(zone, name, iana.NOERROR)
            if name[starts[count - 2] : starts[count - 1]] not in index.exposed:
                return self._missing(request, zone)
            if count == 2:
                return records.denial(zone, name, iana.NOERROR)
            table = index.imports if zone.imports else index.entries
            entry = table.get(name[starts[count - 3] : starts[count - 1]])
            if entry is None or entry.service is None:
                return self._missing(request, zone)
            return self._service(request, zone, starts, count, entry)
        if last == POD:
            return self._pod(request, zone, starts, count)
        if name[: starts[count]] == DNS_VERSION:
            limit = index.limit(zone.name, False)
            return records.version(zone, name, limit).find(qtype)
        if last == b"\x03dns":
            if count == 1:
                return records.denial(zone, name, iana.NOERROR)
            if count == 2 and name.startswith(b"\x02ns"):
                return records.apex(zone, name, qtype)
        return self._missing(request, zone)

    def _service(self, request: Request, zone: Zone, starts: list[int], count: int, entry: ServiceState) -> Handled:
        """A name at or below a Service that is there."""
        name = request.question.name
        service = entry.service
        assert service is not None
        # Whatever comes holds until the Service changes. Answers that are held at a node say so themselves.
        life = self.index.store.add(name[starts[count - 3] :]).validity
        if service.kind == EXTERNAL:
            request.depends_on(life)
            if count == 3:
                return self._external(request, zone, entry)
            return self._missing_below(request, zone)
        labels = [name[starts[i] + 1 : starts[i + 1]] for i in range(count - 3)]
        answer = self.records.service(request, zone, labels, entry)
        if answer is None or answer.validity is ALWAYS:
            request.depends_on(life)
        return answer if answer is not None else self._missing_below(request, zone)

    def _pod(self, request: Request, zone: Zone, starts: list[int], count: int) -> Outcome | None:
        records = self.records
        name = request.question.name
        if count == 1:
            return records.denial(zone, name, iana.NOERROR)
        namespace = name[starts[count - 2] : starts[count - 1]]
        if not self.pods or namespace not in self.index.exposed or count > 3 or zone.imports:
            return self._missing(request, zone)
        if count == 2:
            return records.denial(zone, name, iana.NOERROR)
        request.depends_on(self.index.changes)
        answer = records.pod(zone, name, namespace[1:], name[1 : starts[1]], request.question.type)
        return answer if answer is not None else self._missing_below(request, zone)

    def _reverse(self, request: Request, zone: Zone, count: int) -> Outcome | None:
        """A name in a reverse zone."""
        name, qtype = request.question.name, request.question.type
        if qtype == iana.AXFR or qtype == iana.IXFR:
            return RcodeOnly(iana.REFUSED)
        if count == 0:
            return self.records.apex(zone, name, qtype)
        request.depends_on(self.index.changes)
        address = address_of(name)
        if address is not None:
            node = self.records.pointer(zone, name, address)
            if node is not None:
                return node.find(qtype)
            if not self.cluster.synced and not _private(address) and _falls_through(zone, name):
                return None  # a public address is not a cluster's: others know it, whatever the API does
        elif self._has_addresses_below(name) and not _falls_through(zone, name):
            # RFC 8020, section 2: a name with names below it exists.
            return self.records.negative(zone, name, iana.NOERROR)
        return self._missing_below(request, zone)

    def _has_addresses_below(self, name: bytes) -> bool:
        """True if a Service has an address whose reverse name is below this one."""
        ordered = self.cluster.ordered
        if ordered is None or not self.cluster.synced:
            return False
        ends = range_below(name)
        if ends is None:
            return False
        found = islice(ordered.between(*ends), MAX_LOOKED_AT)
        return any(self.records.has_pointer(address) for address in found)

    def _missing(self, request: Request, zone: Zone) -> Outcome | None:
        """A name that the sets of Services and namespaces rule out, or cannot yet: that is SERVFAIL, for any
        fallthrough.
        """
        name = request.question.name
        if not self.cluster.synced:
            return self.records.negative(zone, name, iana.SERVFAIL)
        if _falls_through(zone, name):
            request.depends_on(self.index.names)
            return None
        return self.records.denial(zone, name, iana.NXDOMAIN)

    def _missing_below(self, request: Request, zone: Zone) -> Outcome | None:
        """A name that does not exist by what the caller has noted."""
        name = request.question.name
        if not self.cluster.synced:
            return self.records.negative(zone, name, iana.SERVFAIL)
        if _falls_through(zone, name):
            return None
        return self.records.negative(zone, name, iana.NXDOMAIN)

    # For who tells clients apart.

    def owners(self, name: bytes, starts: list[int]) -> list[Owner] | None:
        """Whose a name is, whether it exists or not; None for names that are not a namespace's."""
        found = self.zone(name, starts)
        if found is None:
            return None
        zone, count = found
        if zone.reverse:
            address = address_of(name)
            if address is not None:
                return self.records.address_owners(address) or None
            ends = range_below(name)
            ordered = self.cluster.ordered
            if not count or ordered is None or ends is None:
                return None
            below = islice(ordered.between(*ends), MAX_LOOKED_AT)
            return [owner for each in below for owner in self.records.address_owners(each)] or None
        if count < 2:
            return None
        last = name[starts[count - 1] : starts[count]]
        if last not in (SVC, POD):
            return None
        namespace = name[starts[count - 2] + 1 : starts[count - 1]]
        if last == POD:
            return [Owner(namespace, NO_SERVICE)]
        return [Owner(namespace, name[starts[count - 3] + 1 : starts[count - 2]] if count > 2 else b"")]

    def absent(self, request: Request) -> Outcome | None:
        """What a name of these zones gets where it does not exist; None: it falls through."""
        found = self.zone(request.question.name, request.question.starts)
        if found is None:
            return None
        if found[0].reverse:
            request.depends_on(self.index.changes)
            return self._missing_below(request, found[0])
        return self._missing(request, found[0])

    def _external(self, request: Request, zone: Zone, entry: ServiceState) -> Handled:
        """An ExternalName Service: a CNAME, and what its target gets for an address query."""
        name, qtype = request.question.name, request.question.type
        assert entry.service is not None
        target = external_target(entry.service)
        if target is None:
            return self._missing_below(request, zone)
        if qtype not in (iana.A, iana.AAAA, iana.CNAME):
            return self.records.negative(zone, name, iana.NOERROR)
        cname = RRset(name, iana.CNAME, zone.ttl, (target,))
        if qtype == iana.CNAME or target == name:
            return Answer(iana.NOERROR, iana.AA, (cname,), local=True, validity=ALWAYS)
        found: Handled = then(request.lookup(target, qtype), partial(joined, (cname,)))
        return found


def _marked(outcome: Outcome | None) -> Outcome | None:
    """An answer that says that it may be stale (RFC 8914, section 4.4)."""
    if type(outcome) is Answer and outcome.local:
        return outcome.replace(options=outcome.options + _STALE, validity=outcome.validity)
    return outcome


def _falls_through(zone: Zone, name: bytes) -> bool:
    return zone.falls_through is not None and zone.falls_through(name)


def _private(address: bytes) -> bool:
    return ipaddress.ip_address(address).is_private
