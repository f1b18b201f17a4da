"""The plugin `kubernetes`: its life, and what other plugins ask of it. What it answers is in `names`."""

import asyncio
import hashlib
import importlib
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, final

from kdns import faults, files, log
from kdns.address import family_of
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Validity
from kdns.dns.name import to_text
from kdns.dns.resolvconf import MAX_RESOLV_CONF, search_list
from kdns.dns.rrset import RRset
from kdns.kube import source
from kdns.kube.access import ApiConfig
from kdns.kube.cluster import Cluster, ServiceState
from kdns.kube.manifests import ManifestSource
from kdns.kube.objects import IMPORT, NAMESPACE, POLICY, SERVICE, SLICE, Projection, pack
from kdns.kube.objects import POD as POD_KIND
from kdns.kube.pod import pod_object, some_pod
from kdns.kube.relay import Relay, RelayedSource
from kdns.kube.source import Source, WatchScope
from kdns.metrics import MAX, MIN, REFRESH, Gauge
from kdns.net.interfaces import addresses
from kdns.plugin import Outcome, Plugin, Request
from kdns.plugin.base import BlockInfo
from kdns.plugin.providers import (
    WATCH_LABELS,
    WATCH_PODS,
    WATCH_POLICIES,
    ExternalAddresses,
    LabelCollector,
    Notifies,
    Owner,
    SearchBase,
    WatchesMore,
)
from kdns.plugin.runtime import Crew, Runtime
from kdns.plugins.kubernetes import config as _config
from kdns.plugins.kubernetes import labels
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.explain import reason
from kdns.plugins.kubernetes.index import SVC, Index
from kdns.plugins.kubernetes.journal import Journal
from kdns.plugins.kubernetes.names import Names
from kdns.plugins.kubernetes.records import Records
from kdns.plugins.kubernetes.transfer import Contents, State
from kdns.timeslice import emptied
from kdns.zonefile.history import Step

if TYPE_CHECKING:
    from kdns.kube.informer import ApiSource

S = TypeVar("S", bound=source.State)

SYNCED: Final = Gauge("kdns_kubernetes_synced", "Whether everything has been listed once.", across=MIN)
OBJECTS: Final = Gauge("kdns_kubernetes_objects", "Objects held, by kind.", ("kind",), across=MAX)

_log = log.plugin("kubernetes")
_INVALIDATED: Final = 500  # nodes invalidated in a turn of the loop: some 0.2 ms
_WAIT_LOG: Final = 0.5  # seconds between lines while the API is waited for, as CoreDNS writes them


class Kubernetes(Plugin):
    """Serves the names of one cluster."""

    name: ClassVar[str] = "kubernetes"
    central = True
    pure = True
    numbers_versions = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return _config.parse(directives, block)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.addresses: tuple[bytes, ...] = ()  # this machine's
        self.limit: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL
        self.suffixes: list[bytes] = []  # what this machine's resolv.conf adds to search lists
        self.paths: tuple[str, ...] = ()  # of manifests
        self.snapshot = ""
        self.api: ApiConfig | None = None
        self.runtime: Runtime | None = None
        self.key: Hashable = None
        self.waiting: asyncio.Task[None] | None = None
        self.publishes = False  # whether the block has metadata
        self.wanted: frozenset[str] = frozenset()  # what others of the block want to know of the cluster
        self.external = False  # whether the block serves Services' addresses outside the cluster
        self.notifiers: list[Notifies] = []
        self.journal: Journal[State] | None = None  # where any zone is transferred
        self.source: Source | None = None
        self.invalidating: asyncio.Task[None] | None = None
        self.outdated = False  # whether what was rendered says that it is stale and is not, or the other way round
        self.attach(Cluster())

    def attach(self, cluster: Cluster) -> None:
        """Serves this cluster's state from now on."""
        self.cluster = cluster
        self.index = Index(cluster, self.config, time.time, self.addresses, self._freshened, self.limit)
        self.records = Records(self.index)
        self.queries = Names(self.index, self.records)

    # Life.

    def load(self, block: BlockInfo) -> None:
        self.limit = block.ttl_limit
        self.addresses = _local_addresses(block.hosts)
        self.suffixes = _node_search_list()
        if self.config.manifests:
            self.paths = tuple(os.path.abspath(block.path(path)) for path in self.config.manifests)
            for path, text in zip(self.paths, self.config.manifests, strict=True):
                if not os.path.exists(path):
                    raise CorefileError(block.parsed.at, f"plugin/kubernetes: manifests {text}: no such file or folder")
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
            raise CorefileError(block.parsed.at, f"plugin/kubernetes: {error}") from None
        importlib.import_module("kdns.kube.informer")  # now, and not in a turn of the loop: 0.3 s for its HTTP client

    def warnings(self) -> Sequence[str]:
        return self.config.warnings

    def wire(self, block: BlockInfo) -> None:
        self.publishes = bool(block.all(LabelCollector))
        self.external = bool(block.all(ExternalAddresses))
        self.notifiers = block.all(Notifies)
        self.wanted = frozenset().union(*(each.watches() for each in block.all(WatchesMore)))

    async def start(self, runtime: Runtime) -> None:
        config = self.config
        scope = WatchScope(
            slices=not config.noendpoints,
            pods=config.pods == "verified" or WATCH_PODS in self.wanted,
            imports=bool(config.multicluster),
            policies=WATCH_POLICIES in self.wanted,
            detail=Projection(
                pod_names=config.endpoint_pod_names,
                pod_labels=config.pods == "verified" and self.publishes,
                zones=config.zonal,
                outside=self.external,
                imports=bool(config.multicluster),
                namespace_labels=WATCH_LABELS in self.wanted,
            ),
            labels=config.labels,
            namespace_labels=config.namespace_labels,
        )
        file = (self.snapshot, config.snapshot_age) if self.snapshot else None
        # Which addresses are below a reverse name matters only where such names do not all fall through.
        ordered = any(zone.reverse and not config.fallthrough.covers(zone.name) for zone in self.index.zones)
        self.key = ("kubernetes", self.paths or self.api, scope, file, ordered)

        # The same in all processes that were forked from one.
        name = hashlib.sha256(repr(self.key).encode()).hexdigest()

        def make() -> Source:
            if self.api is None:
                return ManifestSource(self.paths, scope, Cluster(ordered))
            if runtime.link is not None:
                return RelayedSource(name, runtime.link, Cluster(ordered))
            return _watched(self.api, scope, Cluster(ordered), file)

        if runtime.crew is not None:
            if self.api is not None:
                # One process watches the API for all workers.
                api, crew = self.api, runtime.crew
                await runtime.acquire(self.key, lambda: RelaySource(name, crew, _watched(api, scope, Relay(), file)))
                self.runtime = runtime
            return
        self.source = await runtime.acquire(self.key, make)
        self.runtime = runtime
        self.index.close()
        self.attach(self.source.cluster)
        index = self.index
        zones = [zone for zone in index.forward if not zone.imports and self._is_transferred(zone.name)]
        if zones:
            self.journal = Journal(index, Contents(index, self.records), zones, self._changed)
            await self.journal.start()
        REFRESH.append(self._count)
        if not self.cluster.synced:
            self.waiting = asyncio.create_task(self._wait(), name="kubernetes-wait")

    async def stop(self) -> None:
        if self.journal is not None:
            await self.journal.stop()
            self.journal = None
        self.notifiers = []
        self.index.close()
        if self._count in REFRESH:
            REFRESH.remove(self._count)
        if self.invalidating is not None:
            self.invalidating.cancel()
            self.invalidating = None
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None
        index = self.index
        await emptied(index.store, index.entries, index.imports, index.reverse)
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
            _log.info(
                "waiting for Kubernetes API: cluster names are SERVFAIL until it has listed, all others are answered"
            )
            await asyncio.sleep(min(_WAIT_LOG, max(end - time.monotonic(), 0.01)))

    def _count(self) -> None:
        cluster = self.cluster
        SYNCED.slot()[0] = float(self.source is not None and self.source.listed())
        for kind, count in (
            (SERVICE, sum(entry.service is not None for entry in cluster.entries.values())),
            (SLICE, cluster.slices), (NAMESPACE, len(cluster.namespaces)), (POD_KIND, len(cluster.pods)),
            (IMPORT, len(cluster.imports)), (POLICY, len(cluster.policies)),
        ):  # fmt: skip
            OBJECTS.slot(kind)[0] = count

    def _is_transferred(self, zone: bytes) -> bool:
        return any(each.transfers(zone) for each in self.notifiers)

    def _changed(self, zone: bytes) -> None:
        for each in self.notifiers:
            each.notify(zone)

    def _freshened(self) -> None:
        """Answers say from now on that they are stale, or do not any more: what was rendered does not hold."""
        self.outdated = True
        if self.invalidating is None or self.invalidating.done():
            self.invalidating = asyncio.create_task(
                faults.supervise("plugin/kubernetes", self._invalidate), name="kubernetes-freshness"
            )

    async def _invalidate(self) -> None:
        while self.outdated:  # again, where that has changed once more meanwhile
            self.outdated = False
            for i, node in enumerate(list(self.index.store.index.values())):
                node.invalidate()
                if i % _INVALIDATED == _INVALIDATED - 1:
                    await asyncio.sleep(0)

    # Queries.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        return self.queries.handle(request)

    def explain(self, request: Request) -> str:
        where = self.queries.zone(request.question.name, request.question.starts)
        return reason(self.index, request, *where) if where is not None else ""

    # What other plugins ask of it (kdns.plugin.providers).

    def is_ready(self) -> bool:
        """True if everything has been listed once; it stays so while the API is away."""
        return self.cluster.synced

    def search_base(self, name: bytes, starts: list[int]) -> SearchBase | None:
        """The parts of `X.NS.svc.ZONE`, if the cluster is synced and the namespace exists."""
        found = self.queries.zone(name, starts) if self.cluster.synced else None
        if found is None or found[0].reverse:
            return None
        zone, count = found
        if count < 3 or name[starts[count - 1] : starts[count]] != SVC:
            return None
        namespace = name[starts[count - 2] : starts[count - 1]]
        if namespace not in self.index.exposed:
            return None
        parts = [name[starts[i] + 1 : starts[i + 1]] for i in range(count - 2)]
        return SearchBase(parts, name[: starts[count - 2]], namespace[1:], zone.name, self.config.ttl)

    @property
    def names(self) -> Validity:
        """What holds until a Service or a Namespace comes or goes."""
        return self.index.names

    def is_cluster_label(self, label: bytes) -> bool:
        """True if any Service or Namespace has this name."""
        return label in self.index.service_names or self.index.is_namespace(label)

    def cluster_zones(self) -> tuple[bytes, ...]:
        """The zones of Services."""
        return tuple(zone.name for zone in self.index.forward)

    def search_path(self, host: str) -> list[bytes]:
        """The search list of the Pod with this address, the server's own suffixes behind the cluster's."""
        try:
            pod = self.cluster.pod_of(pack(host.partition("%")[0]))
        except ValueError:
            return []
        if pod is None:
            return []
        zone = self.index.primary
        first = bytes((len(pod.namespace),)) + pod.namespace.encode() + SVC + zone
        return [first, SVC + zone, zone, *self.suffixes, b"\0"]

    def search_problem(self) -> str:
        """Why it cannot know who asks."""
        return "" if self.config.pods == "verified" else "kubernetes must have `pods verified` to know which Pod asks"

    def label(self, request: Request, name: str) -> str | None:
        """Metadata of a query: of its name, and of the Pod that asks."""
        if name.startswith(labels.CLIENT):
            verified = self.config.pods == "verified"
            return labels.of_client(request, self.cluster, name.removeprefix(labels.CLIENT)) if verified else ""
        if not name.startswith("kubernetes/"):
            return None
        asked = request.asked
        where = self.queries.zone(asked.name, asked.starts)
        if where is None or where[0].reverse:
            return ""
        starts, count = asked.starts, where[1]
        parts = [asked.name[starts[i] + 1 : starts[i + 1]].decode("latin-1") for i in range(count)]
        return labels.of_name(parts, where[0].imports).get(name.removeprefix("kubernetes/"), "")

    def search_zone(self) -> str:
        """The zone of Pods' search lists."""
        return to_text(self.config.primary).rstrip(".")

    def client_name(self, host: str) -> str:
        """`NAMESPACE/POD` of the Pod with this address, where Pods are watched (`pods verified`)."""
        try:
            pod = self.cluster.pod_of(pack(host.partition("%")[0]))
        except ValueError:
            return ""
        return f"{pod.namespace}/{pod.name}" if pod is not None else ""

    async def pod_object(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Pod, asked for anew."""
        return await pod_object(self.api, self.paths, namespace, name)

    async def some_pod(self, namespace: str) -> dict[str, Any] | None:
        """A Pod of a namespace that runs."""
        return await some_pod(self.api, self.paths, namespace)

    def has_ipv6(self) -> bool:
        """True if any Service or endpoint has an IPv6 address; True until that is known."""
        return self.cluster.ipv6 > 0 or not self.cluster.synced

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones of Services."""
        return tuple(zone.name for zone in self.index.forward if not zone.imports)

    def transfer(self, zone: bytes) -> Iterator[RRset] | None:
        """All records of a zone; None before the first sync."""
        return self.journal.whole(zone) if self.journal is not None else None

    def transfer_steps(self, zone: bytes, serial: int) -> Sequence[Step] | None:
        """The steps that lead from a version to the present one."""
        return self.journal.since(zone, serial) if self.journal is not None else None

    def selects(self) -> str:
        """Which option keeps part of the cluster from it, or nothing."""
        config = self.config
        return "labels" if config.labels.terms else "namespace_labels" if config.namespace_labels.terms else ""

    def owners(self, name: bytes, starts: list[int]) -> list[Owner] | None:
        """Whose a name is, whether it exists or not; None for names that are not a namespace's."""
        return self.queries.owners(name, starts)

    def named_zones(self) -> tuple[bytes, ...]:
        """Its zones."""
        return self.config.zones

    def absent(self, request: Request) -> Outcome | None:
        """What a name of its zones gets where it does not exist; None: it falls through."""
        return self.queries.absent(request)

    # What k8s_external asks of it.

    def service(self, name: bytes, namespace: bytes) -> ServiceState | None:
        """The Service of this name and namespace (lower-cased labels), if it is served."""
        where = bytes((len(namespace),)) + namespace
        if where not in self.index.exposed:
            return None
        return self.index.entries.get(bytes((len(name),)) + name + where)

    def services(self) -> list[ServiceState]:
        """All Services that are served."""
        return [e for e in self.index.entries.values() if self.index.is_namespace(e.namespace.lower().encode())]

    def server_services(self) -> list[ServiceState]:
        """The Services that lead to this machine."""
        return list(dict.fromkeys(entry for address in self.addresses for entry in self.cluster.owners(address)))


@final
class RelaySource:
    """A source whose state goes to all workers; a resource of the process that watches over them."""

    def __init__(self, name: str, crew: Crew, source: "ApiSource[Relay]") -> None:
        self.name = name
        self.crew = crew
        self.source = source

    async def start(self) -> None:
        """Begins to watch, and to send."""
        self.crew.publish(self.name, self.source.cluster)
        await self.source.start()

    async def stop(self) -> None:
        """Ends both."""
        self.crew.withdraw(self.name)
        await self.source.stop()


def _watched(api: ApiConfig, scope: WatchScope, state: S, file: tuple[str, float] | None) -> "ApiSource[S]":
    """What the API says, in a state; `file` is the snapshot's path, and how old (seconds) it may be."""
    from kdns.kube.informer import ApiSource, SnapshotFile  # `load` has brought it

    return ApiSource(api, scope, state, SnapshotFile(*file) if file is not None else None)


def _local_addresses(hosts: tuple[str, ...]) -> tuple[bytes, ...]:
    """This machine's addresses that others may ask: those of `bind`, else all that are neither loopback nor
    link-local.
    """
    if hosts:
        return tuple(ipaddress.ip_address(host.partition("%")[0]).packed for host in hosts if family_of(host))
    return tuple(found.packed for found in addresses() if not found.loopback and not found.link_local)


def _node_search_list() -> list[bytes]:
    """What this machine's resolv.conf adds to search lists: Pods get the same behind the cluster's own."""
    try:
        return search_list(files.read_text("/etc/resolv.conf", MAX_RESOLV_CONF))
    except OSError:
        return []
