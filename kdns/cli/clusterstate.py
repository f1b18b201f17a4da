"""The state of a cluster that `kdns doctor` judges: objects as the API gives them, and real queries. Pure."""

import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kdns.cli.corefiles import Source
from kdns.cli.networkpolicies import Place, Targets

Object = dict[str, Any]


class Asked(NamedTuple):
    """A real query: to whom, over what, for which name, and the response code or why there is none."""

    server: str
    transport: str
    name: str
    said: str
    answered: bool
    took: float  # seconds
    again: str = ""  # the command that asks the same; without: kdns query


class Tried(NamedTuple):
    """An upstream of the Corefile as it was asked from here: the line and the word that name it, a query to each of its
    addresses, or why none was asked.
    """

    at: str
    word: str
    asked: tuple[Asked, ...] = ()
    unasked: str = ""


_TENANTS: Final = re.compile(r"^\s*tenants\b", re.M)
_FROM_POLICIES: Final = re.compile(r"^\s*from\s+networkpolicy\b", re.M)


@dataclass
class State:
    """The gathered state. A list that is None could not be read; `unread` says why, by kind."""

    namespace: str
    zone: str = "cluster.local"
    inside: bool = False  # whether this runs in a Pod
    services: list[Object] | None = None
    pods: list[Object] | None = None
    slices: list[Object] | None = None
    policies: list[Object] | None = None
    daemonsets: list[Object] | None = None
    namespaces: list[Object] | None = None
    corefiles: list[Source] | None = None
    api_places: tuple[Place, ...] = ()  # the servers of the API, where they can be read
    denied: list[str] = field(default_factory=list)  # "list services": what the servers may not do
    reviewed_self: bool = (
        False  # whether `denied` is of the account that this runs under, as theirs may not be asked for
    )
    client: Object | None = None  # the Pod that asks
    client_name: str = ""  # NAMESPACE/POD, or the namespace that was named where no Pod of it is known
    client_note: str = ""  # why it is this Pod, where a namespace was named
    nameservers: tuple[str, ...] = ()  # of this machine's resolv.conf, where it is a Pod's
    nodes_resolv_conf: bool = False  # whether that is the node's, as DNS Pods have it too
    asked: list[Asked] = field(default_factory=list)
    unreached: dict[str, str] = field(default_factory=dict)  # by server: why the API did not lead us to it
    upstreams: list[Tried] = field(default_factory=list)  # those that were asked themselves
    unread: dict[str, str] = field(default_factory=dict)
    wasted: dict[str, int] = field(default_factory=dict)  # by workload: names asked for that do not exist
    pages_unread: dict[str, str] = field(default_factory=dict)  # by server: why its status page could not be read

    @property
    def hides(self) -> bool:
        """Whether the Corefile tells tenants apart (`tenants`)."""
        return any(_TENANTS.search(each.text) for each in (self.corefiles or ())[:1])

    @property
    def hides_by_policies(self) -> bool:
        """Whether NetworkPolicies say what tenants see."""
        return self.hides and any(_FROM_POLICIES.search(each.text) for each in (self.corefiles or ())[:1])

    @property
    def service(self) -> Object | None:
        """The Service that Pods ask: by label, else by the names that platforms give it."""
        found = [
            each for each in self.services or () if labels_of(each).get("k8s-app") == "kube-dns" and _has_dns(each)
        ]
        named = [
            each
            for each in self.services or ()
            if name_of(each) in ("kube-dns", "coredns", "dns-default", "rke2-coredns-rke2-coredns")
        ]
        return next(iter([*found, *named]), None)

    @property
    def address(self) -> str:
        """The Service's address."""
        return str(((self.service or {}).get("spec") or {}).get("clusterIP") or "")

    @property
    def servers(self) -> list[Object]:
        """The Pods that the Service selects."""
        selector = ((self.service or {}).get("spec") or {}).get("selector") or {"k8s-app": "kube-dns"}
        return [each for each in self.pods or () if selector.items() <= labels_of(each).items()]

    @property
    def port(self) -> int:
        """The port of the DNS Pods that TCP queries go to."""
        spec = (self.service or {}).get("spec") or {}
        ports = [
            each for each in spec.get("ports") or () if each.get("port") == 53 and each.get("protocol", "TCP") == "TCP"
        ]
        wanted = ports[0].get("targetPort", 53) if ports else 53
        if isinstance(wanted, int):
            return wanted
        for server in self.servers:
            for container in (server.get("spec") or {}).get("containers") or ():
                for each in container.get("ports") or ():
                    if each.get("name") == wanted and isinstance(each.get("containerPort"), int):
                        return int(each["containerPort"])
        return 53

    @property
    def account(self) -> str:
        """The service account that the servers run under."""
        found = [str((each.get("spec") or {}).get("serviceAccountName") or "default") for each in self.servers]
        return (found or ["coredns"])[0]

    @property
    def images(self) -> list[str]:
        """The images that the servers run, each once."""
        specs = [each.get("spec") or {} for each in self.servers]
        return sorted({str(container.get("image")) for spec in specs for container in spec.get("containers") or ()})

    @property
    def runs_kdns(self) -> bool:
        """Whether some server is kdns, by its image's name."""
        return any("kdns" in image for image in self.images)

    @property
    def targets(self) -> Targets:
        """The servers, as NetworkPolicies see them."""
        known = {name_of(each): labels_of(each) for each in self.namespaces or ()}
        labels = {"kubernetes.io/metadata.name": self.namespace, **known.get(self.namespace, {})}
        addresses = [str((each.get("status") or {}).get("podIP") or "") for each in self.servers]
        pods = [labels_of(each) for each in self.servers] or [{"k8s-app": "kube-dns"}]
        return Targets(self.namespace, labels, pods, [*addresses, self.address])


def name_of(each: Object) -> str:
    """An object's name."""
    return str((each.get("metadata") or {}).get("name", ""))


def labels_of(each: Object) -> dict[str, str]:
    """An object's labels."""
    return (each.get("metadata") or {}).get("labels") or {}


def is_ready(pod: Object) -> bool:
    """Whether a Pod is ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _has_dns(each: Object) -> bool:
    return any(port.get("port") == 53 for port in (each.get("spec") or {}).get("ports") or ())
