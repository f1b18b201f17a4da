"""The objects that become records, trimmed at decode: what is not served is never kept.

Two forms. `Raw*` are msgspec structs that decode straight from the API's JSON (or a manifest's mapping); unknown
fields are skipped by the decoder. The slim forms are what the cluster's state holds: addresses are packed octets,
the addresses of a slice stand in one `bytes`.
"""

import socket
import sys
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct, field

from kdns.address import unmapped
from kdns.kube.policies import Policy, RawPolicySpec, egress_of

SERVICE: Final = "Service"
SLICE: Final = "EndpointSlice"
NAMESPACE: Final = "Namespace"
POD: Final = "Pod"
IMPORT: Final = "ServiceImport"
POLICY: Final = "NetworkPolicy"
NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"  # the label that the API gives each namespace
MAX_LABEL: Final = 63  # octets (RFC 1035, section 3.1)


class BadObject(ValueError):
    """An object that cannot be served; the text says why."""


class RawMeta(Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None


class RawServicePort(Struct):
    port: int = 0
    name: str | None = None
    protocol: str | None = None


_SPEC_NAMES: Final = {
    "cluster_ip": "clusterIP", "cluster_ips": "clusterIPs", "external_name": "externalName",
    "external_ips": "externalIPs",
}  # fmt: skip


class RawServiceSpec(Struct, rename=_SPEC_NAMES):
    type: str | None = None
    cluster_ip: str | None = None
    cluster_ips: list[str] | None = None
    external_name: str | None = None
    external_ips: list[str] | None = None
    ports: list[RawServicePort] | None = None


class RawIngress(Struct):
    ip: str | None = None
    hostname: str | None = None


class RawBalancer(Struct):
    ingress: list[RawIngress] | None = None


class RawServiceStatus(Struct, rename="camel"):
    load_balancer: RawBalancer | None = None


class RawService(Struct):
    metadata: RawMeta = field(default_factory=RawMeta)
    spec: RawServiceSpec = field(default_factory=RawServiceSpec)
    status: RawServiceStatus | None = None


class RawConditions(Struct):
    ready: bool | None = None


class RawTrigger(Struct, rename={"changed": "endpoints.kubernetes.io/last-change-trigger-time"}):
    changed: str | None = None


class RawSliceMeta(RawMeta):
    annotations: RawTrigger | None = None


class RawTarget(Struct):
    name: str | None = None


class RawEndpoint(Struct, rename="camel"):
    addresses: list[str] | None = None
    conditions: RawConditions | None = None
    hostname: str | None = None
    zone: str | None = None
    target_ref: RawTarget | None = None


class RawEndpointPort(Struct):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None


class RawSlice(Struct):
    metadata: RawSliceMeta = field(default_factory=RawSliceMeta)
    endpoints: list[RawEndpoint] | None = None
    ports: list[RawEndpointPort] | None = None


class RawNamespace(Struct):
    metadata: RawMeta = field(default_factory=RawMeta)


class RawPodIP(Struct):
    ip: str | None = None


class RawPodStatus(Struct, rename={"pod_ip": "podIP", "pod_ips": "podIPs"}):
    phase: str | None = None
    pod_ip: str | None = None
    pod_ips: list[RawPodIP] | None = None


class RawPodSpec(Struct, rename="camel"):
    host_network: bool | None = None


class RawPod(Struct):
    metadata: RawMeta = field(default_factory=RawMeta)
    spec: RawPodSpec = field(default_factory=RawPodSpec)
    status: RawPodStatus = field(default_factory=RawPodStatus)


class RawImportSpec(Struct):
    type: str | None = None
    ips: list[str] | None = None
    ports: list[RawServicePort] | None = None


class RawImport(Struct):
    """A ServiceImport of v1alpha1 or v1beta1 (multicluster.x-k8s.io): what DNS reads of it is alike in both."""

    metadata: RawMeta = field(default_factory=RawMeta)
    spec: RawImportSpec = field(default_factory=RawImportSpec)


class RawPolicy(Struct):
    metadata: RawMeta = field(default_factory=RawMeta)
    spec: RawPolicySpec = field(default_factory=RawPolicySpec)


Raw = RawService | RawSlice | RawNamespace | RawPod | RawImport | RawPolicy
RAW: Final[dict[str, type[Raw]]] = {
    SERVICE: RawService, SLICE: RawSlice, NAMESPACE: RawNamespace, POD: RawPod, IMPORT: RawImport,
    POLICY: RawPolicy,
}  # fmt: skip


class Port(NamedTuple):
    """A named port: lower-cased name and protocol, and the number. NO_PORT stands for an object without any."""

    name: str
    protocol: str
    number: int


# CoreDNS's sentinel: a Service or slice without ports answers addresses, and no SRV.
NO_PORT: Final = Port("", "", -1)

CLUSTER: Final = "ClusterIP"
HEADLESS: Final = "Headless"
EXTERNAL: Final = "ExternalName"


class Service(NamedTuple):
    """A Service: its kind as DNS sees it, packed cluster addresses, ports, and the external name.

    `outside` and `outside_hosts` are what it is reached by from outside the cluster, packed addresses and load
    balancers' host names, kept only where they are asked for.
    """

    namespace: str
    name: str
    kind: str
    addresses: tuple[bytes, ...]
    ports: tuple[Port, ...]
    external: str = ""
    outside: tuple[bytes, ...] = ()
    outside_hosts: tuple[str, ...] = ()


class Slice(NamedTuple):
    """The ready endpoints of one slice and one family.

    `packed` are the addresses, `width` octets each. `names` are the endpoints' host names address by address (None
    where none has one); `pods` the names of the Pods behind them and `zones` the zones they are in, kept only where
    they are asked for. `cluster` is the cluster that a slice of a ServiceImport comes from.
    """

    service: str
    packed: bytes
    width: int
    names: tuple[str, ...] | None
    pods: tuple[str, ...] | None
    ports: tuple[Port, ...]
    zones: tuple[str, ...] | None = None
    cluster: str = ""

    def addresses(self) -> list[bytes]:
        """The addresses one by one."""
        width = self.width
        return [self.packed[i : i + width] for i in range(0, len(self.packed), width)]


class Slices(NamedTuple):
    """What one EndpointSlice object comes to: nearly always one family, so one Slice.

    `imported`: it belongs to a ServiceImport of that name, not to a Service. `left_out`: why an endpoint of it is not
    in `parts`, where one cannot be served.
    """

    namespace: str
    name: str
    service: str
    parts: tuple[Slice, ...]
    imported: bool = False
    left_out: str = ""


class Namespace(NamedTuple):
    """A namespace, with its labels where they are asked for."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()


class Pod(NamedTuple):
    """A running Pod's packed address, its labels where they are asked for, and what addresses it has besides (dual
    stack). `host`: it is on its node's network, whose address others share.
    """

    namespace: str
    name: str
    address: bytes
    labels: tuple[tuple[str, str], ...] = ()
    others: tuple[bytes, ...] = ()
    host: bool = False

    def addresses(self) -> tuple[bytes, ...]:
        """All of its addresses, the primary one first."""
        return (self.address, *self.others)


Object = Service | Slices | Namespace | Pod | Policy
TYPES: Final[dict[str, type[Any]]] = {
    SERVICE: Service, IMPORT: Service, SLICE: Slices, NAMESPACE: Namespace, POD: Pod, POLICY: Policy,
}  # fmt: skip


def pack(text: str) -> bytes:
    """The packed form of an address. Raises BadObject."""
    try:
        return unmapped(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text))
    except (OSError, ValueError):
        pass
    # The API takes zeros before the numbers of an IPv4 address in all fields that are older than its strict form
    # (format "ip-sloppy"), and means decimal numbers by them.
    try:
        return socket.inet_pton(socket.AF_INET, ".".join(part.lstrip("0") or part[-1:] for part in text.split(".")))
    except (OSError, ValueError):
        raise BadObject(f"{text[:60]!r} is not an IP address") from None


def _is_label(text: str) -> bool:
    """True if a name is one label of a domain name, in ASCII. API servers see to that; manifests are written by
    hand.
    """
    return text.isascii() and 0 < len(text) <= MAX_LABEL and "." not in text


def _check(what: str, text: str) -> None:
    """Raises BadObject for a name that no label can be."""
    if not _is_label(text):
        raise BadObject(f"its {what} {text[:80]!r} is not a DNS label (of at most {MAX_LABEL} octets)")


def _ports(raw: list[RawServicePort] | list[RawEndpointPort] | None) -> tuple[Port, ...]:
    if not raw:
        return (NO_PORT,)
    return tuple(
        Port((port.name or "").lower(), (port.protocol or "TCP").lower(), port.port if port.port is not None else -1)
        for port in raw
    )


def service(raw: RawService, *, outside: bool = False) -> Service:
    """A Service trimmed. Raises BadObject."""
    spec = raw.spec
    meta = raw.metadata
    _check("name", meta.name)
    _check("namespace", meta.namespace)
    ports = _ports(spec.ports)
    reached = _outside(raw) if outside else ((), ())
    if spec.type == EXTERNAL:
        return Service(meta.namespace, meta.name, EXTERNAL, (), ports, spec.external_name or "", *reached)
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    if "None" in texts:
        return Service(meta.namespace, meta.name, HEADLESS, (), ports, "", *reached)
    addresses = tuple(dict.fromkeys(pack(text) for text in texts if text))
    return Service(meta.namespace, meta.name, CLUSTER, addresses, ports, "", *reached)


def _outside(raw: RawService) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """External addresses and what load balancers say, each once: addresses, and host names."""
    addresses = [pack(text) for text in raw.spec.external_ips or ()]
    hosts = []
    balancer = raw.status.load_balancer if raw.status is not None else None
    for ingress in (balancer.ingress if balancer is not None else None) or ():
        if ingress.ip:
            addresses.append(pack(ingress.ip))
        elif ingress.hostname:
            hosts.append(ingress.hostname)
    return tuple(dict.fromkeys(addresses)), tuple(dict.fromkeys(hosts))


def service_import(raw: RawImport) -> Service:
    """A ServiceImport trimmed to what it is for DNS: a Service of a set of clusters. Raises BadObject."""
    spec = raw.spec
    _check("name", raw.metadata.name)
    _check("namespace", raw.metadata.namespace)
    ports = _ports(spec.ports) if spec.ports else ()
    kind = HEADLESS if spec.type == HEADLESS else CLUSTER
    addresses = tuple(dict.fromkeys(pack(text) for text in spec.ips or () if text)) if kind == CLUSTER else ()
    return Service(raw.metadata.namespace, raw.metadata.name, kind, addresses, ports)


OWNER: Final = "kubernetes.io/service-name"
IMPORTED: Final = "multicluster.kubernetes.io/service-name"
SOURCE_CLUSTER: Final = "multicluster.kubernetes.io/source-cluster"


class Projection(NamedTuple):
    """The parts of objects that are kept. Parts that are never served are not."""

    pod_names: bool = False
    pod_labels: bool = False
    zones: bool = False
    outside: bool = False
    imports: bool = False
    namespace_labels: bool = False


PLAIN: Final = Projection()


def slices(raw: RawSlice, detail: Projection = PLAIN) -> Slices | None:
    """An EndpointSlice trimmed to its ready endpoints; None if it belongs to nothing that is served. Raises
    BadObject.
    """
    meta = raw.metadata
    labels = meta.labels or {}
    owner = labels.get(OWNER)
    imported = False
    if detail.imports and IMPORTED in labels:
        owner, imported = labels[IMPORTED], True
    if not owner:
        return None
    if imported and SOURCE_CLUSTER in labels:
        _check(f"label {SOURCE_CLUSTER}", labels[SOURCE_CLUSTER])
    left_out = ""
    ports = _ports(raw.ports)
    found: dict[int, tuple[list[bytes], list[str], list[str], list[str]]] = {}
    for endpoint in raw.endpoints or ():
        conditions = endpoint.conditions
        # `ready` not set counts as ready (EndpointConditions in discovery.k8s.io/v1).
        if conditions is not None and conditions.ready is False:
            continue
        host = (endpoint.hostname or "").lower()
        if host and not _is_label(host):
            left_out = (
                f"endpoint {' '.join(endpoint.addresses or ())[:80]} rejected: its hostname {host[:80]!r} is not a DNS "
                f"label"
            )
            continue
        target = endpoint.target_ref
        pod = target.name or "" if detail.pod_names and target is not None else ""
        if len(pod) > 63:
            pod = ""
        zone = (endpoint.zone or "").lower() if detail.zones else ""
        for text in endpoint.addresses or ():
            address = pack(text)
            known = found.get(len(address))
            if known is None:
                known = found[len(address)] = ([], [], [], [])
            known[0].append(address)
            known[1].append(host)
            known[2].append(pod)
            known[3].append(zone)
    parts = tuple(
        Slice(
            owner,
            b"".join(addresses),
            width,
            tuple(hosts) if any(hosts) else None,
            tuple(pods) if any(pods) else None,
            ports,
            tuple(sys.intern(zone) for zone in zones) if any(zones) else None,
            labels.get(SOURCE_CLUSTER, "").lower() if imported else "",
        )
        for width, (addresses, hosts, pods, zones) in found.items()
    )
    return Slices(meta.namespace, meta.name, owner, parts, imported, left_out)


def pod(raw: RawPod, *, labels: bool = False) -> Pod | None:
    """A Pod trimmed; None for one that runs no more or has no address yet. Raises BadObject."""
    status = raw.status
    # podIPs begins with podIP; API servers fill in both, what is written by hand may hold one of them (PodStatus in
    # core/v1).
    texts = (status.pod_ip, *(each.ip for each in status.pod_ips or ()))
    found = tuple(dict.fromkeys(pack(text) for text in texts if text))
    if not found or status.phase in ("Succeeded", "Failed", "Unknown"):
        return None
    _check("namespace", raw.metadata.namespace)
    kept = tuple((raw.metadata.labels or {}).items()) if labels else ()
    return Pod(raw.metadata.namespace, raw.metadata.name, found[0], kept, found[1:], bool(raw.spec.host_network))


def project(raw: Raw, detail: Projection = PLAIN) -> Object | None:
    """The slim form of a raw object; None where there is nothing to serve. Raises BadObject."""
    if not raw.metadata.name:
        raise BadObject("it has no metadata.name")
    if isinstance(raw, RawService):
        return service(raw, outside=detail.outside)
    if isinstance(raw, RawSlice):
        return slices(raw, detail)
    if isinstance(raw, RawPod):
        return pod(raw, labels=detail.pod_labels)
    if isinstance(raw, RawImport):
        return service_import(raw)
    if isinstance(raw, RawPolicy):
        return egress_of(raw.metadata.namespace, raw.metadata.name, raw.spec)
    _check("name", raw.metadata.name)
    if not detail.namespace_labels:
        return Namespace(raw.metadata.name)
    found = {**(raw.metadata.labels or {}), NAMESPACE_NAME: raw.metadata.name}
    return Namespace(raw.metadata.name, tuple(sorted(found.items())))


def from_mapping(kind: str, mapping: dict[str, Any]) -> Raw:
    """A raw object from a manifest's mapping. Raises BadObject."""
    try:
        return msgspec.convert(mapping, RAW[kind], strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadObject(str(error)) from None
