"""The plugin `kubernetes` in the query path: which zone, which kind of name, and what a miss comes to."""

import asyncio
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Final

from kdns import log
from kdns.address import family_of
from kdns.corefile import CorefileError, Directive
from kdns.dns import edns, iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import to_text
from kdns.dns.reverse import address_of
from kdns.dns.rrset import RRset
from kdns.kube.api import ApiConfig
from kdns.kube.cluster import Cluster, Entry
from kdns.kube.informer import ApiSource, SnapshotFile
from kdns.kube.manifests import ManifestSource
from kdns.kube.objects import EXTERNAL, IMPORT, NAMESPACE, SERVICE, SLICE, Detail
from kdns.kube.objects import POD as POD_KIND
from kdns.kube.podspec import pod_spec
from kdns.kube.source import Source, Wanted
from kdns.metrics import REFRESH, Gauge
from kdns.net.interfaces import addresses
from kdns.pipeline import Bare, Outcome, Plugin, Request, setup, then
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.protocols import LabelCollector, Labels, OutsideNames, SearchBase
from kdns.pipeline.request import Denial
from kdns.pipeline.runtime import Runtime
from kdns.plugins.kubernetes import config as _config
from kdns.plugins.kubernetes import labels
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.explain import reason
from kdns.plugins.kubernetes.records import (
    DNS_VERSION,
    MULTICLUSTER_VERSION,
    POD,
    SVC,
    VERSION,
    VERSION_TTL,
    Records,
    Zone,
    external_target,
)
from kdns.plugins.kubernetes.transfer import transfer

SYNCED: Final = Gauge("kdns_kubernetes_synced", "Whether everything has been listed once.")
OBJECTS: Final = Gauge("kdns_kubernetes_objects", "Objects held, by kind.", ("kind",))

_log = log.plugin("kubernetes")
_STALE: Final = edns.option(edns.EDE, b"\0\3")  # RFC 8914, section 4.4: Stale Answer
_FORGET: Final = 500  # answers forgotten in a turn
_WAIT_LOG: Final = 0.5  # seconds between lines while the API is waited for, as CoreDNS writes them
# First labels of the names that a zone has beside its namespaces.
_NODES: Final = frozenset((b"svc", b"pod", b"dns", b"dns-version"))


class Kubernetes(Plugin):
    """Serves the names of one cluster."""

    name: ClassVar[str] = "kubernetes"
    client_dependent = False
    owner = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        return _config.parse(directives, block)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.local: tuple[bytes, ...] = ()
        self.bound: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL
        self.suffixes: list[bytes] = []
        self.paths: tuple[str, ...] = ()
        self.snapshot = ""
        self.api: ApiConfig | None = None
        self.runtime: Runtime | None = None
        self.key: Hashable = None
        self.waiting: asyncio.Task[None] | None = None
        self.publishes = False  # whether the block has metadata
        self.outside = False  # whether a peer serves Services' addresses outside the cluster
        self.source: Source | None = None
        self.forgetting: asyncio.Task[None] | None = None
        self.attach(Cluster())

    def attach(self, cluster: Cluster) -> None:
        """Serves this cluster's state from now on."""
        self.cluster = cluster
        self.records = Records(cluster, self.config, time.time, self.local, self._freshened, self.bound)
        self.nodes = self.records.store.index
        self.tails = tuple(zone.name for zone in self.records.zones)
        self.keeps_denials = all(zone.goes_on is None for zone in self.records.forward)

    # Life.

    def load(self, block: Block) -> None:
        self.bound = block.ttl_bounds(self)
        self.local = _local_addresses(block.hosts)
        self.suffixes = _own_search_list()
        if self.config.manifests:
            self.paths = tuple(os.path.abspath(block.path(path)) for path in self.config.manifests)
            for path, text in zip(self.paths, self.config.manifests, strict=True):
                if not os.path.exists(path):
                    raise CorefileError(block.keys.at, f"plugin/kubernetes: manifests {text}: no such file or folder")
            return
        config = self.config
        if config.snapshot:
            self.snapshot = os.path.abspath(block.path(config.snapshot))
        try:
            self.api = ApiConfig.load(
                endpoint=config.endpoint,
                tls=tuple(block.path(path) for path in config.tls) if config.tls else None,
                kubeconfig=block.path(config.kubeconfig) if config.kubeconfig else "",
                context=config.context,
            )
        except (OSError, ValueError) as error:
            raise CorefileError(block.keys.at, f"plugin/kubernetes: {error}") from None

    def warnings(self) -> Sequence[str]:
        return self.config.warnings

    def wire(self, block: Block) -> None:
        self.publishes = bool(block.all(LabelCollector))  # type: ignore[type-abstract]
        self.outside = bool(block.all(OutsideNames))  # type: ignore[type-abstract]

    async def start(self, runtime: Runtime) -> None:
        config = self.config
        wanted = Wanted(
            slices=not config.noendpoints,
            pods=config.pods == "verified",
            imports=bool(config.multicluster),
            detail=Detail(
                pod_names=config.endpoint_pod_names,
                pod_labels=config.pods == "verified" and self.publishes,
                zones=config.zonal,
                outside=self.outside,
                imports=bool(config.multicluster),
            ),
            labels=config.labels,
            namespace_labels=config.namespace_labels,
        )
        file = SnapshotFile(self.snapshot, config.snapshot_age) if self.snapshot else None
        self.key = ("kubernetes", self.paths or self.api, wanted, file)

        def make() -> Source:
            if self.api is not None:
                return ApiSource(self.api, wanted, Cluster(), file)
            return ManifestSource(self.paths, wanted, Cluster())

        self.runtime = runtime
        self.source = await runtime.acquire(self.key, make)
        self.records.close()
        self.attach(self.source.cluster)
        REFRESH.append(self._count)
        if not self.cluster.synced:
            self.waiting = asyncio.create_task(self._wait(), name="kubernetes-wait")

    async def stop(self) -> None:
        self.records.close()
        if self._count in REFRESH:
            REFRESH.remove(self._count)
        if self.forgetting is not None:
            self.forgetting.cancel()
        if self.waiting is not None:
            self.waiting.cancel()
        if self.runtime is not None:
            await self.runtime.release(self.key)
            self.runtime = None

    async def _wait(self) -> None:
        """Says what is being waited for. Serving has begun: outside names need no API."""
        end = time.monotonic() + self.config.startup_timeout
        while not self.cluster.synced:
            if time.monotonic() >= end:
                _log.warning("starting server with unsynced Kubernetes API")
                return
            _log.info("waiting for Kubernetes API: cluster names are SERVFAIL until it has listed, all others are answered")
            await asyncio.sleep(min(_WAIT_LOG, max(end - time.monotonic(), 0.01)))

    def _count(self) -> None:
        cluster = self.cluster
        SYNCED.slot()[0] = float(self.source is not None and self.source.listed())
        for kind, count in (
            (SERVICE, sum(entry.service is not None for entry in cluster.entries.values())),
            (SLICE, cluster.slices), (NAMESPACE, len(cluster.namespaces)), (POD_KIND, len(cluster.pods)),
            (IMPORT, len(cluster.imports)),
        ):  # fmt: skip
            OBJECTS.slot(kind)[0] = count

    def _freshened(self) -> None:
        """Answers say from now on that they are stale, or do not any more: what is kept of them goes."""
        if self.forgetting is None or self.forgetting.done():
            self.forgetting = asyncio.create_task(self._forget(), name="kubernetes-freshness")

    async def _forget(self) -> None:
        for i, node in enumerate(list(self.nodes.values())):
            node.forget()
            if i % _FORGET == _FORGET - 1:
                await asyncio.sleep(0)

    def is_ready(self) -> bool:
        """Whether everything has been listed once; it stays so while the API is away."""
        return self.cluster.synced

    # What peers ask (pipeline.protocols).

    def search_base(self, name: bytes, starts: list[int]) -> SearchBase | None:
        """The parts of `X.NS.svc.ZONE`, if the cluster is synced and the namespace exists."""
        found = self._zone(name, starts) if self.cluster.synced else None
        if found is None or found[0].reverse:
            return None
        zone, count = found
        if count < 3 or name[starts[count - 1] : starts[count]] != SVC:
            return None
        namespace = name[starts[count - 2] : starts[count - 1]]
        if namespace not in self.records.exposed:
            return None
        labels = [name[starts[i] + 1 : starts[i + 1]] for i in range(count - 2)]
        return SearchBase(labels, name[: starts[count - 2]], namespace[1:], zone.name, self.config.ttl)

    @property
    def version(self) -> int:
        """Changes whenever a Service or a Namespace comes or goes."""
        return self.records.version

    def is_cluster_label(self, label: bytes) -> bool:
        """Whether any Service or Namespace has this name."""
        return label in self.records.service_names or self.records.is_namespace(label)

    def has_nothing_below(self, label: bytes) -> bool:
        """Whether no name ends in `LABEL.svc.ZONE` or `LABEL.ZONE`: it is neither a namespace nor a node of the zones' own."""
        return self.keeps_denials and label not in _NODES and not self.records.is_namespace(label)

    def cluster_zones(self) -> tuple[bytes, ...]:
        """The zones of Services."""
        return tuple(zone.name for zone in self.records.forward)

    def search_path(self, host: str) -> list[bytes]:
        """The search list of the Pod with this address, the server's own suffixes behind the cluster's."""
        try:
            pod = self.cluster.pod_of(ipaddress.ip_address(host.partition("%")[0]).packed)
        except ValueError:
            return []
        if pod is None:
            return []
        zone = self.records.primary
        first = bytes((len(pod.namespace),)) + pod.namespace.encode() + SVC + zone
        return [first, SVC + zone, zone, *self.suffixes, b"\0"]

    def search_problem(self) -> str:
        """Why it cannot know who asks."""
        return "" if self.config.pods == "verified" else "kubernetes must have `pods verified` to know which Pod asks"

    def labels(self, request: Request) -> Labels:
        """What metadata says of a query: of its name, and of the Pod that asks."""
        found: Labels = {}
        question = request.question
        where = self._zone(question.name, question.starts)
        if where is not None and not where[0].reverse:
            name, starts, count = question.name, question.starts, where[1]
            found |= labels.of_name(lambda: [name[starts[i] + 1 : starts[i + 1]] for i in range(count)], where[0].imports)
        if self.config.pods == "verified":
            found |= labels.of_client(request, self.cluster)
        return found

    def explain(self, request: Request) -> str:
        """Which object answers a name, or what is missing for it."""
        where = self._zone(request.question.name, request.question.starts)
        return reason(self.records, self.cluster, self.config, request, *where) if where is not None else ""

    def search_zone(self) -> str:
        """The zone of Pods' search lists."""
        return to_text(self.config.primary).rstrip(".")

    async def pod_spec(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Pod's spec, asked for anew."""
        return await pod_spec(self.api, self.paths, namespace, name)

    def has_ipv6(self) -> bool:
        """Whether any Service or endpoint has an IPv6 address; True until that is known."""
        return self.cluster.ipv6 > 0 or not self.cluster.synced

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones of Services."""
        return tuple(zone.name for zone in self.records.forward if not zone.imports)

    def transfer(self, zone: bytes) -> Iterator[RRset] | None:
        """All records of a zone; None before the first sync."""
        found = next((known for known in self.records.forward if known.name == zone), None)
        return transfer(self.records, found) if found is not None and self.cluster.synced else None

    def service_entry(self, name: bytes, namespace: bytes) -> Entry | None:
        """The Service of this name and namespace, if it is served."""
        where = bytes((len(namespace),)) + namespace
        if where not in self.records.exposed:
            return None
        return self.records.entries.get(bytes((len(name),)) + name + where)

    def is_namespace(self, namespace: bytes) -> bool:
        """Whether this namespace is served."""
        return self.records.is_namespace(namespace)

    def service_entries(self) -> list[Entry]:
        """All Services that are served."""
        return [entry for entry in self.records.entries.values() if self.is_namespace(entry.namespace.lower().encode())]

    def outside_owner(self, address: bytes) -> Entry | None:
        """The Service that has this address outside the cluster."""
        return self.cluster.outside_owner(address)

    def own_entries(self) -> list[Entry]:
        """The Services that lead to this machine."""
        return list(dict.fromkeys(entry for address in self.local for entry in self.cluster.owners(address)))

    def own_addresses(self) -> tuple[bytes, ...]:
        """This machine's addresses."""
        return self.local

    def soa_serial(self) -> int:
        """The serial of the cluster's zones."""
        return self.records.serial

    # Queries.

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


def _local_addresses(hosts: tuple[str, ...]) -> tuple[bytes, ...]:
    """This machine's addresses that others may ask: those of `bind`, else all that are neither loopback nor link-local."""
    if hosts:
        return tuple(ipaddress.ip_address(host.partition("%")[0]).packed for host in hosts if family_of(host))
    return tuple(found.packed for found in addresses() if not found.loopback and not found.link_local)


def _own_search_list() -> list[bytes]:
    """What this machine's resolv.conf adds to search lists: Pods get the same behind the cluster's own."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            return setup.search_list(file.read())
    except OSError:
        return []


def _private(address: bytes) -> bool:
    return ipaddress.ip_address(address).is_private
