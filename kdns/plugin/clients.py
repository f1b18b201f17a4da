"""Which namespace a client is of: the Pods of a cluster by their addresses.

A Pod may ask before the watch has told of it. So an address that no Pod has is waited for, WAIT seconds at most, and
only then is it nobody's; for FORGET seconds it is not waited for again. An address that Pods of several namespaces
share, or that is a node's (`hostNetwork`), says nothing of who asks.
"""

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from kdns.address import unmapped
from kdns.kube.cluster import Cluster, Watcher
from kdns.kube.objects import Pod
from kdns.plugin.outcome import Pending

WAIT: Final = 0.2  # seconds; a watch tells of a Pod within some 10 ms of its address
FORGET: Final = 60.0  # seconds; a Pod that takes over the address of one that was nobody's meanwhile is rare
# Addresses held, of each kind: some 2 MiB. A replica serves a few thousand clients.
MAX_ADDRESSES: Final = 16_384
MAX_WAITING: Final = 1024  # addresses; whoever comes beyond that is not waited for

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NOBODY: Final = ""  # no Pod, or none that its address tells
EXEMPT: Final = "*"  # no namespace's name


class Clients:
    """The look-up, over one cluster."""

    def __init__(self, exempt: Sequence[Network] = (), clock: Callable[[], float] = monotonic) -> None:
        self.exempt = tuple(exempt)
        self.clock = clock
        self.cluster: Cluster | None = None
        self.pods: dict[bytes, Pod | tuple[Pod, ...]] = {}
        self.packed: OrderedDict[str, bytes] = OrderedDict()  # of addresses as text; empty: exempt
        # Addresses that were waited for in vain, and until when that counts.
        self.strangers: OrderedDict[bytes, float] = OrderedDict()
        self.waiting: dict[bytes, Pending] = {}

    def attach(self, cluster: Cluster, watcher: Watcher) -> None:
        """Looks into this cluster from now on; the watcher hears of it, and of no other."""
        self.detach(watcher)
        self.cluster = cluster
        cluster.watchers.append(watcher)
        self.follow(cluster)

    def follow(self, cluster: Cluster) -> None:
        """Looks into this cluster from now on."""
        self.pods = cluster.pod_ips
        self.strangers.clear()

    def detach(self, watcher: Watcher) -> None:
        """The watcher hears of no cluster any more."""
        if self.cluster is not None and watcher in self.cluster.watchers:
            self.cluster.watchers.remove(watcher)
        self.cluster = None

    def namespace(self, host: str) -> str | None:
        """The namespace of a client, NOBODY or EXEMPT; None: it is not known yet, and worth to be waited for."""
        packed = self.packed.get(host)
        if packed is None:
            packed = self._pack(host)
        if not packed:
            return EXEMPT
        found = self.pods.get(packed)
        if found is None:
            until = self.strangers.get(packed)
            return None if until is None or self.clock() >= until else NOBODY
        if isinstance(found, Pod):
            return NOBODY if found.host else found.namespace
        first = found[0].namespace
        return first if all(pod.namespace == first and not pod.host for pod in found) else NOBODY

    def wait(self, host: str) -> Pending | None:
        """What is resolved once the client's Pod is known, or after WAIT seconds; None where too many wait."""
        packed = self.packed.get(host) or self._pack(host)
        pending = self.waiting.get(packed)
        if pending is None:
            if len(self.waiting) >= MAX_WAITING:
                return None
            pending = self.waiting[packed] = Pending()
            asyncio.get_running_loop().call_later(WAIT, self._expired, packed, pending)
        return pending

    def pods_changed(self) -> None:
        """Lets those go on whose Pods are known now."""
        for packed in [packed for packed in self.waiting if packed in self.pods] if self.waiting else ():
            self.waiting.pop(packed).resolve(None)

    def _expired(self, packed: bytes, pending: Pending) -> None:
        if self.waiting.get(packed) is pending:
            del self.waiting[packed]
            _bound(self.strangers)
            self.strangers.pop(packed, None)
            self.strangers[packed] = self.clock() + FORGET
            pending.resolve(None)

    def _pack(self, host: str) -> bytes:
        packed = unmapped(ipaddress.ip_address(host.partition("%")[0]).packed)
        address = ipaddress.ip_address(packed)
        if any(address in network for network in self.exempt):
            packed = b""
        _bound(self.packed)
        self.packed[host] = packed
        return packed


def _bound(table: OrderedDict[Any, Any]) -> None:
    """Makes place for one entry more: the oldest goes."""
    if len(table) >= MAX_ADDRESSES:
        table.popitem(last=False)
