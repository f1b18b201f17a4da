"""The cluster as DNS needs it: Services with their slices, namespaces, addresses. Changed object by object.

Laws: `apply` is idempotent, and nothing is lost whatever the order of objects: a slice may come before its Service.
An address may belong to several Services; which one is decided when asked, not when stored. Watchers hear of a
change after it is made, with what it touched.
"""

from collections.abc import Iterator
from typing import Protocol, final

from kdns.kube.addresses import AddressSet
from kdns.kube.objects import (
    IMPORT,
    NAMESPACE,
    POD,
    POLICY,
    SERVICE,
    SLICE,
    Namespace,
    Object,
    Pod,
    Service,
    Slice,
    Slices,
)
from kdns.kube.policies import Policy
from kdns.timeslice import emptied


@final
class ServiceState:
    """A Service and its slices. `service` is None while only slices are known; `imported`: it is a ServiceImport."""

    __slots__ = ("imported", "name", "namespace", "service", "slices")

    def __init__(self, namespace: str, name: str, imported: bool = False) -> None:
        self.imported = imported
        self.namespace = namespace
        self.name = name
        self.service: Service | None = None
        self.slices: dict[str, tuple[Slice, ...]] = {}

    def parts(self) -> Iterator[Slice]:
        """All slices' parts, in the order they came."""
        for parts in self.slices.values():
            yield from parts

    def has_ready(self) -> bool:
        """True if any endpoint is ready."""
        return any(part.packed for part in self.parts())


class Watcher(Protocol):
    """A listener for changes."""

    def entry_changed(self, entry: ServiceState, addresses: list[bytes]) -> None:
        """A Service or its endpoints changed; `addresses` are those that may mean something else now."""

    def namespace_changed(self, name: str) -> None:
        """A namespace came or went, or what is known of it changed: its labels, its policies."""

    def pods_changed(self) -> None:
        """A Pod's address came or went."""

    def freshness_changed(self) -> None:
        """The state is known to be the API's again, or not any more (`Cluster.stale`); or all was listed for the first
        time.
        """


# An address's owners: nearly always one.
Owners = ServiceState | tuple[ServiceState, ...]


@final
class Cluster:
    """The state. Keys are `namespace/name`."""

    def __init__(self, ordered: bool = False) -> None:
        """`ordered`: whether addresses are also held in order (`AddressSet`)."""
        self.entries: dict[str, ServiceState] = {}
        self.imports: dict[str, ServiceState] = {}  # of ServiceImports
        self.namespaces: set[str] = set()
        self.namespace_labels: dict[str, dict[str, str]] = {}  # of those that have any, where they are asked for
        self.policies: dict[str, Policy] = {}  # those that bound egress, where they are asked for
        self.cluster_ips: dict[bytes, Owners] = {}
        self.endpoint_ips: dict[bytes, Owners] = {}
        self.outside_ips: dict[bytes, Owners] = {}
        self.pods: dict[str, Pod] = {}
        # Pods on their node's network share its address.
        self.pod_ips: dict[bytes, Pod | tuple[Pod, ...]] = {}
        self._slice_owner: dict[str, tuple[str, bool]] = {}
        self.watchers: list[Watcher] = []
        self.changes = 0
        self.synced = False
        self.stale = False  # whether it may be older than what the API has
        self.ipv6 = 0  # IPv6 addresses held, of Services and endpoints
        # Addresses of Services and endpoints, where somebody asks which of them lie in a range.
        self.ordered = AddressSet() if ordered else None

    def apply(self, kind: str, key: str, obj: Object | None) -> bool:
        """Sets an object, or removes it (None). Says whether anything is different now."""
        if kind == SLICE:
            changed = self._slice(key, obj if isinstance(obj, Slices) else None)
        elif kind == SERVICE:
            changed = self._service(self.entries, key, obj if isinstance(obj, Service) else None)
        elif kind == IMPORT:
            changed = self._service(self.imports, key, obj if isinstance(obj, Service) else None)
        elif kind == NAMESPACE:
            changed = self._namespace(key.rpartition("/")[2], obj if isinstance(obj, Namespace) else None)
        elif kind == POD:
            changed = self._pod(key, obj if isinstance(obj, Pod) else None)
        elif kind == POLICY:
            changed = self._policy(key, obj if isinstance(obj, Policy) else None)
        else:
            raise ValueError(kind)
        self.changes += changed
        return changed

    async def close(self) -> None:
        """Lets go of all, once nobody watches or asks any more."""
        await emptied(
            self.entries, self.imports, self.cluster_ips, self.endpoint_ips, self.outside_ips, self.pods, self.pod_ips,
            self._slice_owner, self.namespace_labels, self.policies,
        )  # fmt: skip

    def service_kind(self, key: str) -> str:
        """What kind of Service this is; empty where there is none."""
        entry = self.entries.get(key)
        return entry.service.kind if entry is not None and entry.service is not None else ""

    @property
    def slices(self) -> int:
        """How many EndpointSlices are held."""
        return len(self._slice_owner)

    def set_synced(self) -> None:
        """All that there was at the start is here."""
        if not self.synced:
            self.synced = True
            for watcher in self.watchers:
                watcher.freshness_changed()

    def set_stale(self, stale: bool) -> None:
        """Says whether the state may be older than what the API has."""
        if stale != self.stale:
            self.stale = stale
            for watcher in self.watchers:
                watcher.freshness_changed()

    def objects(self, kind: str) -> Iterator[tuple[str, Object]]:
        """What is held of a kind, as it would be applied: keys and objects. Changes meanwhile may or may not be in
        it.
        """
        if kind in (SERVICE, IMPORT):
            table = self.entries if kind == SERVICE else self.imports
            for key in list(table):
                entry = table.get(key)
                if entry is not None and entry.service is not None:
                    yield key, entry.service
        elif kind == POD:
            for key in list(self.pods):
                pod = self.pods.get(key)
                if pod is not None:
                    yield key, pod
        elif kind == NAMESPACE:
            for name in list(self.namespaces):
                yield f"/{name}", Namespace(name, tuple(self.namespace_labels.get(name, {}).items()))
        elif kind == POLICY:
            yield from list(self.policies.items())
        else:
            for key in list(self._slice_owner):
                found = self._slice_owner.get(key)
                if found is not None:
                    owner, imported = found
                    namespace, _, name = key.partition("/")
                    owning = (self.imports if imported else self.entries).get(owner)
                    parts = owning.slices.get(key, ()) if owning is not None else ()
                    yield key, Slices(namespace, name, owner.partition("/")[2], parts, imported)

    # Services and slices.

    def _entry(self, table: dict[str, ServiceState], key: str) -> ServiceState:
        entry = table.get(key)
        if entry is None:
            namespace, _, name = key.partition("/")
            entry = table[key] = ServiceState(namespace, name, table is self.imports)
        return entry

    def _service(self, table: dict[str, ServiceState], key: str, service: Service | None) -> bool:
        entry = table.get(key)
        old = entry.service if entry is not None else None
        if old == service:
            return False
        if entry is None:
            entry = self._entry(table, key)
        before = old.addresses if old is not None else ()
        after = service.addresses if service is not None else ()
        if entry.imported:
            entry.service = service
            self._tidy(key, entry)
            self._tell(entry, [])
            return True
        for address in before:
            if address not in after:
                self._release(self.cluster_ips, address, entry)
        for address in after:
            if address not in before:
                self._claim(self.cluster_ips, address, entry)
        for address in old.outside if old is not None else ():
            self._release(self.outside_ips, address, entry)
        for address in service.outside if service is not None else ():
            self._claim(self.outside_ips, address, entry)
        entry.service = service
        self._tidy(key, entry)
        touched = [*before, *after]
        if (old.kind if old is not None else "") != (service.kind if service is not None else ""):
            # Its endpoints' addresses have names only while it has, and is not an alias.
            touched += (address for part in entry.parts() for address in part.addresses())
        self._tell(entry, touched)
        return True

    def _tell(self, entry: ServiceState, addresses: list[bytes]) -> None:
        for watcher in self.watchers:
            watcher.entry_changed(entry, addresses)

    def _slice(self, key: str, new: Slices | None) -> bool:
        owner = (f"{new.namespace}/{new.service}", new.imported) if new is not None else None
        was = self._slice_owner.get(key)
        if was is not None and was != owner:
            self._set_parts(was, key, ())
            self._slice_owner.pop(key)
            changed = True
        else:
            changed = False
        if new is not None and owner is not None:
            changed |= self._set_parts(owner, key, new.parts)
            self._slice_owner[key] = owner
        return changed

    def _set_parts(self, where: tuple[str, bool], key: str, parts: tuple[Slice, ...]) -> bool:
        owner, imported = where
        table = self.imports if imported else self.entries
        entry = table.get(owner)
        before = entry.slices.get(key, ()) if entry is not None else ()
        if before == parts:
            return False
        if entry is None:
            entry = self._entry(table, owner)
        if imported:
            if parts:
                entry.slices[key] = parts
            else:
                entry.slices.pop(key, None)
            self._tidy(owner, entry)
            self._tell(entry, [])
            return True
        old = {address for part in before for address in part.addresses()}
        new = {address for part in parts for address in part.addresses()}
        if parts:
            entry.slices[key] = parts
        else:
            entry.slices.pop(key, None)
        for address in old - new:
            # Another slice of the same Service may hold it too: slices overlap while one is moved to the next.
            if not any(_holds(part, address) for part in entry.parts()):
                self._release(self.endpoint_ips, address, entry)
        for address in new - old:
            self._claim(self.endpoint_ips, address, entry)
        self._tidy(owner, entry)
        # Whether a Service shows at all may depend on whether anybody is behind it.
        self._tell(entry, [*(old | new), *(entry.service.addresses if entry.service is not None else ())])
        return True

    def _tidy(self, key: str, entry: ServiceState) -> None:
        if entry.service is None and not entry.slices:
            (self.imports if entry.imported else self.entries).pop(key, None)

    def _claim(self, table: dict[bytes, Owners], address: bytes, entry: ServiceState) -> None:
        found = table.get(address)
        if self.ordered is not None and table is not self.outside_ips:
            self.ordered.add(address)
        if found is None:
            table[address] = entry
            self.ipv6 += len(address) == 16 and table is not self.outside_ips
        elif isinstance(found, tuple):
            if entry not in found:
                table[address] = (*found, entry)
        elif found is not entry:
            table[address] = (found, entry)

    def _release(self, table: dict[bytes, Owners], address: bytes, entry: ServiceState) -> None:
        found = table.get(address)
        if found is entry:
            del table[address]
            self.ipv6 -= len(address) == 16 and table is not self.outside_ips
        elif isinstance(found, tuple):
            left = tuple(owner for owner in found if owner is not entry)
            table[address] = left[0] if len(left) == 1 else left
        if self.ordered is not None and address not in self.cluster_ips and address not in self.endpoint_ips:
            self.ordered.discard(address)

    # Namespaces and Pods.

    def _namespace(self, name: str, namespace: Namespace | None) -> bool:
        labels = dict(namespace.labels) if namespace is not None else {}
        if (name in self.namespaces) == (namespace is not None) and self.namespace_labels.get(name, {}) == labels:
            return False
        if namespace is not None:
            self.namespaces.add(name)
        else:
            self.namespaces.discard(name)
        if labels:
            self.namespace_labels[name] = labels
        else:
            self.namespace_labels.pop(name, None)
        for watcher in self.watchers:
            watcher.namespace_changed(name)
        return True

    def _policy(self, key: str, policy: Policy | None) -> bool:
        if self.policies.get(key) == policy:
            return False
        if policy is not None:
            self.policies[key] = policy
        else:
            self.policies.pop(key, None)
        for watcher in self.watchers:
            watcher.namespace_changed(key.partition("/")[0])
        return True

    def _pod(self, key: str, pod: Pod | None) -> bool:
        old = self.pods.get(key)
        if old == pod:
            return False
        if old is not None:
            for address in old.addresses():
                left = tuple(other for other in self.pods_at(address) if other is not old)
                if left:
                    self.pod_ips[address] = left if len(left) > 1 else left[0]
                else:
                    del self.pod_ips[address]
            del self.pods[key]
        if pod is not None:
            for address in pod.addresses():
                there = self.pods_at(address)
                self.pod_ips[address] = (*there, pod) if there else pod
            self.pods[key] = pod
        for watcher in self.watchers:
            watcher.pods_changed()
        return True

    def has_pod(self, namespace: str, address: bytes) -> bool:
        """True if a running Pod of this namespace has this address."""
        return any(pod.namespace == namespace for pod in self.pods_at(address))

    def pods_at(self, address: bytes) -> tuple[Pod, ...]:
        """The running Pods with this address."""
        found = self.pod_ips.get(address)
        return () if found is None else (found,) if isinstance(found, Pod) else found

    def pod_of(self, address: bytes) -> Pod | None:
        """The running Pod with this address; the first where several share it."""
        found = self.pods_at(address)
        return found[0] if found else None

    def owners(self, address: bytes) -> tuple[ServiceState, ...]:
        """The Services whose endpoints hold this address."""
        found = self.endpoint_ips.get(address)
        return () if found is None else found if isinstance(found, tuple) else (found,)

    def outside_owner(self, address: bytes) -> ServiceState | None:
        """The Service that has this address outside the cluster; the newest of several."""
        found = self.outside_ips.get(address)
        return found[-1] if isinstance(found, tuple) else found

    def cluster_owner(self, address: bytes) -> ServiceState | None:
        """The Service whose cluster address this is; the newest where an address was taken over."""
        found = self.cluster_ips.get(address)
        return found[-1] if isinstance(found, tuple) else found


def _holds(part: Slice, address: bytes) -> bool:
    if part.width != len(address):
        return False
    at = part.packed.find(address)
    while at >= 0 and at % part.width:
        at = part.packed.find(address, at + 1)
    return at >= 0
