"""What of a cluster is served, and under which names: kept equal with the cluster, object by object.

Whether a name exists is decided by two look-ups in dictionaries keyed by the wire form of its labels (`\\x03web\\x02n1`), so a name
that does not exist costs the same however many Services there are. A change of a Service drops what was rendered for it, and
nothing else.
"""

from collections.abc import Callable, Iterable
from typing import Final, final

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.name import from_labels
from kdns.dns.reverse import is_reverse
from kdns.kube.cluster import Cluster, Entry
from kdns.pipeline.setup import Fallthrough
from kdns.plugins.kubernetes.config import Config
from kdns.store.trie import Store

SVC: Final = b"\x03svc"
MAX_SOA_TTL: Final = 300
_serials: Final[dict[bytes, int]] = {}  # the last serial of each primary zone in this process


@final
class Zone:
    """One of the plugin's zones: its name, whether it is a reverse zone, and what is kept of its negative answers.

    `imports`: its names are those of ServiceImports, of a set of clusters. TTLs are in seconds.
    """

    def __init__(self, name: bytes, fallthrough: Fallthrough, imports: bool, ttl: int, denial_ttl: int) -> None:
        self.name = name
        self.imports = imports
        self.ttl = ttl
        self.denial_ttl = denial_ttl
        self.reverse = is_reverse(name)
        # Which names without an answer go on: none in most zones, so that it need not be asked for each.
        self.goes_on = fallthrough.through if fallthrough.meets(name) else None
        # rcode << 8 | length of the question's name -> answer, until the serial changes.
        self.negatives: dict[int, Answer] = {}
        self.apex: dict[bytes, dict[int, Answer]] = {}


class Index:
    """The Services and namespaces of a cluster that one `kubernetes` directive serves. A watcher of the cluster."""

    def __init__(
        self,
        cluster: Cluster,
        config: Config,
        wall: Callable[[], float],
        local: Iterable[bytes] = (),
        freshened: Callable[[], None] = lambda: None,
        bound: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL,
    ) -> None:
        """`bound`: the most seconds that answers, or denials, in a zone may live."""
        self.freshened = freshened
        self.cluster = cluster
        self.config = config
        self.wall = wall
        self.ttl = config.ttl
        self.local = tuple(local)
        self.zones = tuple(
            Zone(
                zone, config.fallthrough, zone in config.multicluster, min(config.ttl, bound(zone, False)),
                min(config.ttl, MAX_SOA_TTL, bound(zone, True)),
            )
            for zone in sorted(config.zones, key=len, reverse=True)
        )  # fmt: skip
        self.forward = tuple(zone for zone in self.zones if not zone.reverse)
        self.primary = config.primary
        self.store = Store()
        self.entries: dict[bytes, Entry] = {}
        self.imports: dict[bytes, Entry] = {}
        self.exposed: set[bytes] = set()
        self.version = 0  # of the sets of Services and namespaces
        self.service_names: dict[bytes, int] = {}  # label -> in how many namespaces
        self.reverse: dict[bytes, bytes] = {}  # address -> reverse name that has an answer in the store
        # Serials outlive a reload: whatever the clock did meanwhile, a zone's never falls.
        self.serial = _serials[self.primary] = max(int(wall()), _serials.get(self.primary, 0))
        for entry in (*cluster.entries.values(), *cluster.imports.values()):
            self._index(entry)
        for name in cluster.namespaces:
            self._expose(name)
        cluster.watchers.append(self)

    def close(self) -> None:
        """Watches no more."""
        if self in self.cluster.watchers:
            self.cluster.watchers.remove(self)

    # Changes.

    def entry_changed(self, entry: Entry, addresses: list[bytes]) -> None:
        """Drops what was rendered for a Service and for addresses that may mean something else now."""
        key = self._index(entry)
        store = self.store
        if store.index:
            if key:
                for zone in self.forward:
                    if zone.imports == entry.imported:
                        store.drop(key + SVC + zone.name)
            reverse = self.reverse
            if reverse:
                for address in addresses:
                    name = reverse.pop(address, None)
                    if name is not None:
                        store.drop(name)
        self._touch()

    def namespace_changed(self, name: str) -> None:
        """A namespace came or went, and all its names with it."""
        label = self._expose(name)
        for zone in self.forward:
            self.store.drop(label + SVC + zone.name)
        for address, kept in list(self.reverse.items()):
            self.store.drop(kept)
            del self.reverse[address]
        self._touch()

    def freshness_changed(self) -> None:
        """The state is the API's again, or not any more."""
        self.freshened()

    def pods_changed(self) -> None:
        """A Pod's address came or went. Nothing is kept for Pods but the serial."""
        self._touch()

    def _touch(self) -> None:
        now = int(self.wall())
        if now > self.serial:  # it never falls, whatever the clock does
            self.serial = _serials[self.primary] = now
            for zone in self.zones:
                zone.negatives.clear()
        for zone in self.zones:
            if zone.apex:
                zone.apex.clear()

    def _index(self, entry: Entry) -> bytes:
        try:
            key = from_labels([entry.name.lower().encode(), entry.namespace.lower().encode()])[:-1]
        except (BadName, UnicodeError):
            return b""
        if entry.imported:
            if entry.service is not None:
                self.imports[key] = entry
            else:
                self.imports.pop(key, None)
            return key
        label = key[1 : key[0] + 1]
        if entry.service is not None:
            if key not in self.entries:
                self.version += 1
                self.service_names[label] = self.service_names.get(label, 0) + 1
            self.entries[key] = entry
        elif self.entries.pop(key, None) is not None:
            self.version += 1
            self.service_names[label] -= 1
            if not self.service_names[label]:
                del self.service_names[label]
        return key

    def _expose(self, name: str) -> bytes:
        label = bytes((len(name),)) + name.lower().encode() if 0 < len(name) < 64 else b"\0"
        self.version += 1
        allowed = self.config.namespaces is None or name in self.config.namespaces
        if allowed and name in self.cluster.namespaces:
            self.exposed.add(label)
        else:
            self.exposed.discard(label)
        return label

    def is_namespace(self, label: bytes) -> bool:
        """Whether this namespace (a lower-cased label) is served."""
        return bytes((len(label),)) + label in self.exposed
