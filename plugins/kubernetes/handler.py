"""The plugin `kubernetes`: its life. What it answers is in `queries`, what other plugins ask of it in `peers`."""

import asyncio
import ipaddress
import os
import time
from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, Final

from kdns import log
from kdns.address import family_of
from kdns.corefile import CorefileError, Directive
from kdns.dns import iana
from kdns.kube.api import ApiConfig
from kdns.kube.cluster import Cluster
from kdns.kube.informer import ApiSource, SnapshotFile
from kdns.kube.manifests import ManifestSource
from kdns.kube.objects import IMPORT, NAMESPACE, SERVICE, SLICE, Detail
from kdns.kube.objects import POD as POD_KIND
from kdns.kube.source import Source, Wanted
from kdns.metrics import REFRESH, Gauge
from kdns.net.interfaces import addresses
from kdns.pipeline import setup
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.protocols import LabelCollector, OutsideNames
from kdns.pipeline.runtime import Runtime
from kdns.plugins.kubernetes import config as _config
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.peers import Peers
from kdns.plugins.kubernetes.records import Records

SYNCED: Final = Gauge("kdns_kubernetes_synced", "Whether everything has been listed once.")
OBJECTS: Final = Gauge("kdns_kubernetes_objects", "Objects held, by kind.", ("kind",))

_log = log.plugin("kubernetes")
_FORGET: Final = 500  # answers forgotten in a turn
_WAIT_LOG: Final = 0.5  # seconds between lines while the API is waited for, as CoreDNS writes them


class Kubernetes(Peers):
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
