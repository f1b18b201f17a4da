"""Protocols by which plugins find each other: a plugin asks its block for a protocol, not for a plugin's name."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from kdns.dns.answer import Validity
from kdns.dns.rrset import RRset
from kdns.kube.cluster import Cluster, ServiceState

if TYPE_CHECKING:
    from kdns.corefile import Position
    from kdns.plugin.outcome import Outcome
    from kdns.plugin.request import Request


@runtime_checkable
class Processes(Protocol):
    """Says how many processes are to serve (`multisocket`)."""

    @property
    def processes(self) -> int: ...


@runtime_checkable
class Readiness(Protocol):
    """A plugin that may not be ready to serve yet; /ready names it until it is."""

    name: str

    def is_ready(self) -> bool:
        """True once the plugin can serve."""


class SearchBase(NamedTuple):
    """A name `X.NS.svc.ZONE` taken apart: X as labels and as their wire form, the namespace's label, the zone, its
    TTL.
    """

    labels: list[bytes]
    prefix: bytes
    namespace: bytes
    zone: bytes
    ttl: int


@runtime_checkable
class ClusterNames(Protocol):
    """A plugin that serves a cluster's names: what a search list's first name says.

    `names` holds until a Service or a Namespace comes or goes.
    """

    @property
    def names(self) -> Validity: ...

    def search_base(self, name: bytes, starts: list[int]) -> SearchBase | None:
        """The parts of a name below an existing namespace; None for other names, and before the first sync."""

    def is_cluster_label(self, label: bytes) -> bool:
        """True if any Service or Namespace has this name."""

    def cluster_zones(self) -> tuple[bytes, ...]:
        """The zones of its Services."""


@runtime_checkable
class ClusterFamilies(Protocol):
    """A plugin that knows which address families a cluster uses."""

    def has_ipv6(self) -> bool:
        """True if any Service or endpoint has an IPv6 address, and before that is known."""


@runtime_checkable
class NamesHosts(Protocol):
    """A plugin that says where its block listens."""

    def named_hosts(self) -> tuple[str, ...]:
        """Addresses, and names of what stands for some on this machine. Raises CorefileError where none is left."""


@runtime_checkable
class LabelSource(Protocol):
    """A plugin that publishes metadata."""

    def label(self, request: Request, name: str) -> str | None:
        """The value of a label; None for those of other plugins. It may read all of the request."""


@runtime_checkable
class LabelCollector(Protocol):
    """The plugin that gathers metadata."""

    def value(self, request: Request, name: str) -> str:
        """A label's value for a query; empty where it has none."""


@runtime_checkable
class Admission(Protocol):
    """A plugin that decides which queries its block takes; `view` is the name the metrics show."""

    @property
    def view(self) -> str: ...

    def admit(self, request: Request) -> bool:
        """True if the block takes this query."""


@runtime_checkable
class TransferSource(Protocol):
    """A plugin whose zones can be transferred (RFC 5936)."""

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones it has whole."""

    def transfer(self, zone: bytes) -> Iterator[RRset] | None:
        """All records of a zone of its as they are now, the SOA first and not last; None while it cannot say."""


class ZoneStep(Protocol):
    """A step in a zone's history: the SOAs of two versions, and the records that went and came, as pairs."""

    @property
    def old(self) -> RRset: ...

    @property
    def new(self) -> RRset: ...

    @property
    def changes(self) -> Iterable[tuple[RRset | None, RRset | None]]: ...

    @property
    def count(self) -> int: ...


@runtime_checkable
class StepSource(Protocol):
    """A plugin that knows the last versions of its zones (RFC 1995)."""

    def transfer_steps(self, zone: bytes, serial: int) -> Sequence[ZoneStep] | None:
        """The steps from a serial to the present version; None where they are not known."""


@runtime_checkable
class NumbersVersions(Protocol):
    """A StepSource that numbers versions itself, as other replicas do: a serial alone does not say what a secondary
    has. Steps are for those that had their version from this process.
    """

    numbers_versions: bool


@runtime_checkable
class Notifies(Protocol):
    """A plugin that tells secondaries of new versions of a zone (RFC 1996)."""

    def notify(self, zone: bytes) -> None:
        """A zone has another version. Called in the loop."""

    def transfers(self, zone: bytes) -> bool:
        """True if anybody may have a zone: else nobody wants to know of its versions."""


@runtime_checkable
class TakesNotify(Protocol):
    """A plugin that wants to be told of new versions of zones."""

    def notified(self, request: Request) -> int | None:
        """Takes a NOTIFY: the response code; None where the zone is none of its own."""


@runtime_checkable
class TakesUpdate(Protocol):
    """A plugin with zones that clients may change (RFC 2136). It sets `meets_updates`, and is asked by `handle`."""

    @property
    def update_limit(self) -> int:
        """The most records, of prerequisites and updates, that a message may have."""


@runtime_checkable
class KnowsSigner(Protocol):
    """A plugin that checks the signatures of queries."""

    def signer(self, request: Request) -> bytes:
        """The lower-cased wire name of the key that a query was signed with, its signature good; else nothing."""


@runtime_checkable
class KeyRing(Protocol):
    """A plugin that has keys for transaction signatures (RFC 8945)."""

    def tsig_key(self, name: bytes) -> bytes | None:
        """The secret of a key, by its lower-cased wire name."""


@runtime_checkable
class ExternalAddresses(Protocol):
    """A plugin that serves the addresses that Services have outside the cluster."""

    serves_external: bool


@runtime_checkable
class TtlLimit(Protocol):
    """A plugin that lets no TTL through that is above its own."""

    def ttl_limit(self, name: bytes, denial: bool) -> int:
        """The most seconds for answers, or denials, of a name; MAX_TTL where it sets no bound."""


@runtime_checkable
class BoundsSize(Protocol):
    """A plugin that bounds the size of UDP replies, also of those that upstreams are asked for."""

    @property
    def udp_size(self) -> int:
        """Octets."""


@runtime_checkable
class Encrypts(Protocol):
    """A plugin that gives its block's listeners a certificate. `at`: where it stands; `verifies`: whether clients must
    show certificates of theirs; `asks`: all that is asked of clients, in the Corefile's words. After `load` there may
    be more.
    """

    @property
    def at(self) -> Position: ...

    @property
    def verifies(self) -> ssl.VerifyMode: ...

    @property
    def asks(self) -> Mapping[str, str]: ...


@runtime_checkable
class TellsLimits(Protocol):
    """A plugin that sets limits of its own for its listener."""

    def limits_told(self) -> Sequence[str]:
        """A line for each, for `kdns explain`."""


@runtime_checkable
class Forwards(Protocol):
    """A plugin that sends names on to others. `passes_subnet`: the client's ECS option goes with them."""

    @property
    def passes_subnet(self) -> bool: ...

    def forwarded_zones(self) -> tuple[bytes, ...]:
        """The zones at which its treatment of names changes: what it sends on, and what it leaves out."""


class UpstreamState(NamedTuple):
    """The state of an upstream: `up`, `failing` (it did not answer, and is being probed), `down`, or `unused` yet.

    `since`: for how many seconds it has been so. `answered`: how many seconds ago it last answered, 0 where it never
    did. `error`: what became of the last query that it did not answer, empty where there was none; `error_age`: how
    many seconds ago that was. `rtt`: seconds, 0 where it is not known.
    """

    to: str
    zone: bytes
    state: str
    since: float
    answered: float
    error: str
    error_age: float
    rtt: float


@runtime_checkable
class HasUpstreams(Protocol):
    """A plugin with upstreams."""

    def upstream_states(self) -> list[UpstreamState]:
        """The current state of each upstream."""


@runtime_checkable
class ClientNames(Protocol):
    """A plugin that knows who has an address."""

    def client_name(self, host: str) -> str:
        """`NAMESPACE/POD` of a client's address; empty where that is not known."""


@runtime_checkable
class Pods(Protocol):
    """A plugin that can look at Pods; for tools."""

    def search_zone(self) -> str:
        """The zone of Pods' search lists, as text without its final dot."""

    async def pod_object(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Pod as the API has it; None if there is no such Pod."""

    async def some_pod(self, namespace: str) -> dict[str, Any] | None:
        """The first Pod of a namespace, by name, that runs and has an address of its own; None if there is none."""


@runtime_checkable
class SearchPath(Protocol):
    """A plugin that knows the search lists of clients."""

    def search_path(self, host: str) -> list[bytes]:
        """The search list of the client with this address as wire names, the root last; empty where it is not known."""

    def search_problem(self) -> str:
        """The reason why this configuration cannot know search lists; empty if it can."""


# What a plugin wants of a cluster beside what its names need.
WATCH_PODS: Final = "pods"
WATCH_LABELS: Final = "the labels of namespaces"
WATCH_POLICIES: Final = "NetworkPolicies"


@runtime_checkable
class WatchesMore(Protocol):
    """A plugin that needs to know more of a cluster than its names."""

    def watches(self) -> frozenset[str]:
        """Some of WATCH_PODS, WATCH_LABELS and WATCH_POLICIES."""


@runtime_checkable
class ServesCluster(Protocol):
    """A plugin that knows a cluster's state. `selects`: why it does not know all of it, or nothing."""

    name: str
    cluster: Cluster

    def cluster_zones(self) -> tuple[bytes, ...]: ...

    def server_services(self) -> list[ServiceState]:
        """The Services that lead to this machine."""

    def selects(self) -> str: ...


class Owner(NamedTuple):
    """Whose a name is: a namespace, and a Service of it (empty: the name is the namespace's own; NO_SERVICE: it is of
    no Service). Lower-cased labels.
    """

    namespace: bytes
    service: bytes


NO_SERVICE: Final = b"\0"  # no label of a Service


@runtime_checkable
class NamesNamespaces(Protocol):
    """A plugin whose names belong to namespaces of a cluster."""

    name: str

    def owners(self, name: bytes, starts: list[int]) -> list[Owner] | None:
        """Whose a name is, whether it exists or not; None for names that are not a namespace's."""

    def named_zones(self) -> tuple[bytes, ...]:
        """The zones that such names are in."""

    def absent(self, request: Request) -> Outcome | None:
        """What the name gets where it does not exist; None: it falls through."""
