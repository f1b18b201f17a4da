"""What other plugins ask of the cluster: search lists, Services by name, records to transfer, who asks (pipeline.protocols)."""

import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from kdns.dns.name import to_text
from kdns.dns.rrset import RRset
from kdns.kube.api import ApiConfig
from kdns.kube.cluster import Entry
from kdns.kube.podspec import pod_spec
from kdns.pipeline import Request
from kdns.pipeline.protocols import Labels, SearchBase
from kdns.plugins.kubernetes import labels
from kdns.plugins.kubernetes.explain import reason
from kdns.plugins.kubernetes.index import SVC
from kdns.plugins.kubernetes.queries import Queries
from kdns.plugins.kubernetes.transfer import transfer

# First labels of the names that a zone has beside its namespaces.
_NODES: Final = frozenset((b"svc", b"pod", b"dns", b"dns-version"))


class Peers(Queries):
    """Answers to peers."""

    keeps_denials: bool  # whether no zone lets names through to the plugins below
    suffixes: list[bytes]  # what this machine's resolv.conf adds to search lists
    local: tuple[bytes, ...]  # this machine's addresses
    api: ApiConfig | None
    paths: tuple[str, ...]  # of manifests

    def is_ready(self) -> bool:
        """Whether everything has been listed once; it stays so while the API is away."""
        return self.cluster.synced

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
