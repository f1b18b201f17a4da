"""The index of a cluster: the objects that are served, by name. It follows the cluster object by object.

Whether a name exists is decided by two look-ups in dictionaries keyed by the wire form of its labels
(`\\x03web\\x02n1`), so a name that does not exist costs the same however many Services there are. A change of a Service
invalidates what was rendered for it, and nothing else.
"""

from collections.abc import Callable, Iterable
from typing import Final, final

from kdns.dns import iana
from kdns.dns.answer import Answer, Validity
from kdns.dns.errors import BadName
from kdns.dns.name import from_labels
from kdns.dns.reverse import is_reverse
from kdns.kube.cluster import Cluster, ServiceState
from kdns.plugin.readers import Fallthrough
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.endpoints import EndpointView
from kdns.store.trie import Store

SVC: Final = b"\x03svc"
MAX_SOA_TTL: Final = 300
_serials: Final[dict[bytes, int]] = {}  # the last serial of each primary zone in this process


@final
class Zone:
    """One of the plugin's zones: its name, whether it is a reverse zone, and its negative answers.

    `imports`: its names are those of ServiceImports, of a set of clusters. TTLs are in seconds.
    """

    def __init__(self, name: bytes, fallthrough: Fallthrough, imports: bool, ttl: int, denial_ttl: int) -> None:
        self.name = name
        self.imports = imports
        self.ttl = ttl
        self.denial_ttl = denial_ttl
        self.reverse = is_reverse(name)
        # Which names without an answer go on to the next plugin: in most zones none, so that it need not be asked for
        # each.
        self.falls_through: Callable[[bytes], bool] | None = (
            fallthrough.falls_through if fallthrough.overlaps(name) else None
        )
        # rcode << 8 | length of the question's name -> answer: of names that exist or not by the sets of Services and
        # namespaces alone, and of all others, whose users note what they depend on.
        self.denials: dict[int, Answer] = {}
        self.negatives: dict[int, Answer] = {}
        self.apex: dict[bytes, dict[int, Answer]] = {}
        self.version = 0  # the serial, where the zone has versions (kdns.plugins.kubernetes.journal); else the index's


@final
class Index:
    """The Services and namespaces of a cluster that one `kubernetes` directive serves. A watcher of the cluster.

    `names` is the validity of what depends on the sets of Services and namespaces, `changes` of what depends on
    anything in the cluster.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: Config,
        wall: Callable[[], float],
        local: Iterable[bytes] = (),
        freshened: Callable[[], None] = lambda: None,
        limit: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL,
    ) -> None:
        """`wall` is the wall clock; `limit` the most seconds that answers, or denials, in a zone may live."""
        self.freshened = freshened
        self.cluster = cluster
        self.config = config
        self.wall = wall
        self.limit = limit
        self.ttl = config.ttl
        self.local = tuple(local)
        self.zones = tuple([
            Zone(
                zone, config.fallthrough, zone in config.multicluster, min(config.ttl, limit(zone, False)),
                min(config.ttl, MAX_SOA_TTL, limit(zone, True)),
            )
            for zone in sorted(config.zones, key=len, reverse=True)
        ])  # fmt: skip
        self.forward = tuple([zone for zone in self.zones if not zone.reverse])
        self.primary = config.primary
        self.store = Store()
        self.entries: dict[bytes, ServiceState] = {}
        self.imports: dict[bytes, ServiceState] = {}
        self.exposed: set[bytes] = set()
        self.names = Validity()
        self.changes = Validity()
        self.service_names: dict[bytes, int] = {}  # label -> in how many namespaces
        self.reverse: dict[bytes, bytes] = {}  # address -> reverse name that has an answer in the store
        self.views: dict[ServiceState, EndpointView] = {}
        # Serials outlive a reload: whatever the clock did meanwhile, a zone's never falls.
        self.serial = _serials[self.primary] = max(int(wall()), _serials.get(self.primary, 0))
        for entry in (*cluster.entries.values(), *cluster.imports.values()):
            self._index(entry)
        for name in cluster.namespaces:
            self._expose(name)
        cluster.watchers.append(self)

    def close(self) -> None:
        """Watches no more, and lets go of who is told; nothing that was said holds any more."""
        self.freshened = lambda: None
        if self in self.cluster.watchers:
            self.cluster.watchers.remove(self)
        self.names.end()
        self.changes.end()

    # Changes.

    def entry_changed(self, entry: ServiceState, addresses: list[bytes]) -> None:
        """Drops what was rendered for a Service and for addresses that may mean something else now."""
        key = self._index(entry)
        self.views.pop(entry, None)
        store = self.store
        if store.index:
            if key:
                for zone in self.forward:
                    if zone.imports == entry.imported:
                        store.remove_subtree(key + SVC + zone.name)
            reverse = self.reverse
            if reverse:
                for address in addresses:
                    name = reverse.pop(address, None)
                    if name is not None:
                        store.remove_subtree(name)
        self._touch()

    def namespace_changed(self, name: str) -> None:
        """A namespace came or went, and all its names with it."""
        label = self._expose(name)
        for zone in self.forward:
            self.store.remove_subtree(label + SVC + zone.name)
        for address, rendered in list(self.reverse.items()):
            self.store.remove_subtree(rendered)
            del self.reverse[address]
        self._touch()

    def freshness_changed(self) -> None:
        """The state is the API's again, or not any more."""
        self._names_changed()
        self._touch()
        self.freshened()

    def pods_changed(self) -> None:
        """A Pod's address came or went."""
        self._touch()

    def _touch(self) -> None:
        self.changes.end()
        self.changes = Validity()
        now = int(self.wall())
        fresh = now > self.serial  # it never falls, whatever the clock does
        if fresh:
            self.serial = _serials[self.primary] = now
        for zone in self.zones:
            if zone.apex:
                zone.apex = {}
            if fresh:
                # They hold as they are; the next ones show the new serial.
                zone.denials = {}
                zone.negatives = {}

    def publish(self, zones: Iterable[Zone], serial: int) -> None:
        """Zones have another version: they show its serial from now on."""
        for zone in zones:
            zone.version = serial
            zone.apex = {}
            zone.denials = {}
            zone.negatives = {}
        self.changes.end()
        self.changes = Validity()

    def _names_changed(self) -> None:
        self.names.end()
        self.names = Validity()
        for zone in self.zones:
            zone.denials = {}

    def _index(self, entry: ServiceState) -> bytes:
        key = wire_key(entry)
        if not key:
            return b""
        if entry.imported:
            if entry.service is not None:
                if key not in self.imports:
                    self._names_changed()
                self.imports[key] = entry
            elif self.imports.pop(key, None) is not None:
                self._names_changed()
            return key
        label = key[1 : key[0] + 1]
        if entry.service is not None:
            if key not in self.entries:
                self._names_changed()
                self.service_names[label] = self.service_names.get(label, 0) + 1
            self.entries[key] = entry
        elif self.entries.pop(key, None) is not None:
            self._names_changed()
            self.service_names[label] -= 1
            if not self.service_names[label]:
                del self.service_names[label]
        return key

    def _expose(self, name: str) -> bytes:
        label = bytes((len(name),)) + name.lower().encode() if 0 < len(name) < 64 else b"\0"
        self._names_changed()
        allowed = self.config.namespaces is None or name in self.config.namespaces
        if allowed and name in self.cluster.namespaces:
            self.exposed.add(label)
        else:
            self.exposed.discard(label)
        return label

    # What there is.

    def is_namespace(self, label: bytes) -> bool:
        """True if this namespace (a lower-cased label) is served."""
        return bytes((len(label),)) + label in self.exposed

    def view(self, entry: ServiceState) -> EndpointView:
        """A Service's endpoints as names see them; made once for each change of the Service."""
        made = self.views.get(entry)
        if made is None:
            made = self.views[entry] = EndpointView(entry, self.config.endpoint_pod_names)
        return made


def wire_key(entry: ServiceState) -> bytes:
    """`SERVICE.NAMESPACE` of a Service as lower-cased wire labels without a root; empty where they are not labels."""
    try:
        return from_labels([entry.name.lower().encode(), entry.namespace.lower().encode()])[:-1]
    except (BadName, UnicodeError):
        return b""
