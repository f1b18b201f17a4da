"""What queries come to: which zone, which kind of name, and what a miss comes to."""

import ipaddress
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from kdns.dns import edns, iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.reverse import address_of
from kdns.dns.rrset import RRset
from kdns.kube.cluster import Cluster, Entry
from kdns.kube.objects import EXTERNAL
from kdns.pipeline import Bare, Outcome, Plugin, Request, then
from kdns.pipeline.request import Denial
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.index import SVC, Zone
from kdns.plugins.kubernetes.records import (
    DNS_VERSION,
    MULTICLUSTER_VERSION,
    POD,
    VERSION,
    VERSION_TTL,
    Records,
    external_target,
)
from kdns.store.trie import Node

_STALE: Final = edns.extended_error(3)  # Stale Answer: RFC 8914, section 4.4


class Queries(Plugin):
    """The query path over a cluster's records."""

    config: Config
    cluster: Cluster
    records: Records
    nodes: dict[bytes, Node]  # the store's index: what has been asked for
    tails: tuple[bytes, ...]  # the zones' names
    bound: Callable[[bytes, bool], int]  # the most a TTL may be, below a cache

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        if self.cluster.stale and request.edns is not None:
            answered: Outcome | Awaitable[Outcome | None] | None = then(self._answer(request), _marked)
            return answered
        return self._answer(request)

    def _answer(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        node = self.nodes.get(question.name)
        if node is not None:
            answer = node.answers.get(question.type)
            if answer is not None and question.cls == iana.IN:
                return answer
        if question.cls != iana.IN:
            return None
        starts = question.starts
        found = self._zone(question.name, starts)
        if found is None:
            return None
        zone, count = found
        if zone.reverse:
            return self._reverse(request, zone, count)
        return self._forward(request, zone, starts, count)

    def _zone(self, name: bytes, starts: list[int]) -> tuple[Zone, int] | None:
        """The zone that a name is in, and how many labels below its apex."""
        if not name.endswith(self.tails):
            return None  # `endswith` may only lie the other way
        size = len(name)
        for zone in self.records.zones:
            excess = size - len(zone.name)
            if excess >= 0 and excess in starts and name[excess:] == zone.name:
                return zone, starts.index(excess)
        return None

    def _forward(self, request: Request, zone: Zone, starts: list[int], count: int) -> Outcome | Awaitable[Outcome | None] | None:
        """A name in a zone of Services and Pods, `count` labels below the apex."""
        records = self.records
        name, qtype = request.question.name, request.question.type
        if qtype in (iana.AXFR, iana.IXFR):
            return Bare(iana.REFUSED)
        if count == 0:
            return records.apex(zone, name, qtype)
        last = name[starts[count - 1] : starts[count]]
        if last == SVC:
            if count == 1:
                return records.negative(zone, name, iana.NOERROR)
            if name[starts[count - 2] : starts[count - 1]] not in records.exposed:
                return self._missing(request, zone)
            if count == 2:
                return records.negative(zone, name, iana.NOERROR)
            table = records.imports if zone.imports else records.entries
            entry = table.get(name[starts[count - 3] : starts[count - 1]])
            if entry is None or entry.service is None:
                missing = self._missing(request, zone)
                if (
                    count == 3
                    and not zone.imports
                    and type(missing) is Answer
                    and missing.rcode == iana.NXDOMAIN
                    and zone.goes_on is None
                ):
                    namespace = name[starts[1] : starts[2]]
                    request.denial = Denial(self, missing, partial(records.deny, zone, namespace))
                return missing
            if entry.service.kind == EXTERNAL and count == 3:
                return self._external(request, zone, entry)
            below = [name[starts[i] + 1 : starts[i + 1]] for i in range(count - 3)]
            return records.service(zone, name, below, entry, qtype) or self._missing(request, zone)
        if last == POD:
            return self._pod(request, zone, starts, count)
        if name[: starts[count]] == DNS_VERSION:
            if qtype == iana.TXT:
                text = MULTICLUSTER_VERSION if zone.imports else VERSION
                version = RRset(name, iana.TXT, min(VERSION_TTL, self.bound(zone.name, False)), (rdata.txt(text),))
                return Answer(iana.NOERROR, iana.AA, (version,), own=True)
            return records.negative(zone, name, iana.NOERROR)
        if last == b"\x03dns":
            if count == 1:
                return records.negative(zone, name, iana.NOERROR)
            if count == 2 and name.startswith(b"\x02ns"):
                return records.apex(zone, name, qtype)
        return self._missing(request, zone)

    def _pod(self, request: Request, zone: Zone, starts: list[int], count: int) -> Outcome | None:
        records = self.records
        name = request.question.name
        if count == 1:
            return records.negative(zone, name, iana.NOERROR)
        namespace = name[starts[count - 2] : starts[count - 1]]
        if self.config.pods == "disabled" or namespace not in records.exposed or count > 3 or zone.imports:
            return self._missing(request, zone)
        if count == 2:
            return records.negative(zone, name, iana.NOERROR)
        label = name[1 : starts[1]]
        return records.pod(zone, name, namespace[1:], label, request.question.type) or self._missing(request, zone)

    def _reverse(self, request: Request, zone: Zone, count: int) -> Outcome | None:
        """A name in a reverse zone."""
        name, qtype = request.question.name, request.question.type
        if qtype in (iana.AXFR, iana.IXFR):
            return Bare(iana.REFUSED)
        if count == 0:
            return self.records.apex(zone, name, qtype)
        address = address_of(name)
        if address is not None:
            found = self.records.pointer(zone, name, address)
            if found is not None:
                return found if qtype == iana.PTR else self.records.negative(zone, name, iana.NOERROR)
            if not self.cluster.synced and not _private(address) and zone.goes_on is not None and zone.goes_on(name):
                return None  # a public address is no cluster's: others know it, whatever the API does
        return self._missing(request, zone)

    def _missing(self, request: Request, zone: Zone) -> Outcome | None:
        """A name that does not exist, or cannot be said to: before the first sync that is SERVFAIL, for any fallthrough."""
        name = request.question.name
        if not self.cluster.synced:
            return self.records.negative(zone, name, iana.SERVFAIL)
        if zone.goes_on is not None and zone.goes_on(name):
            return None
        return self.records.negative(zone, name, iana.NXDOMAIN)

    def _external(self, request: Request, zone: Zone, entry: Entry) -> Outcome | Awaitable[Outcome | None] | None:
        """An ExternalName Service: a CNAME, and what its target comes to for an address query."""
        name, qtype = request.question.name, request.question.type
        assert entry.service is not None
        target = external_target(entry.service)
        if target is None:
            return self._missing(request, zone)
        if qtype not in (iana.A, iana.AAAA, iana.CNAME):
            return self.records.negative(zone, name, iana.NOERROR)
        cname = RRset(name, iana.CNAME, zone.ttl, (target,))
        alone = Answer(iana.NOERROR, iana.AA, (cname,), own=True)
        if qtype == iana.CNAME or target == name:
            return alone
        found: Outcome | Awaitable[Outcome | None] = then(request.lookup(target, qtype), partial(_spliced, cname, alone))
        return found


def _spliced(cname: RRset, alone: Answer, outcome: Outcome) -> Answer:
    """The CNAME with its target's answer behind it; by itself where the target could not be resolved."""
    if type(outcome) is not Answer or outcome.rcode not in (iana.NOERROR, iana.NXDOMAIN):
        return alone
    # A chain that leads back to this name is cut here.
    rest = [found for found in outcome.answer if found.type != iana.CNAME or found.owner.lower() != cname.owner]
    flags = iana.AA | outcome.flags & (iana.TC | iana.RA)
    # RFC 6604, section 3: the code is the last name's. RFC 2308, section 2.1: so is the SOA.
    authority = () if rest and rest[-1].type != iana.CNAME else outcome.authority
    return Answer(outcome.rcode, flags, (cname, *rest), authority, own=True)


def _marked(outcome: Outcome | None) -> Outcome | None:
    """An answer that says that it may be stale."""
    return outcome.replace(options=outcome.options + _STALE) if type(outcome) is Answer and outcome.own else outcome


def _private(address: bytes) -> bool:
    return ipaddress.ip_address(address).is_private
