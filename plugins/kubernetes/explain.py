"""Explanations of answers: the object that a name belongs to, or what is missing. For `kdns explain`, not for
queries.
"""

from kdns.dns.reverse import address_of
from kdns.kube.cluster import Cluster, ServiceState
from kdns.kube.objects import EXTERNAL, HEADLESS, Service
from kdns.plugin.request import Request
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.endpoints import endpoint_label, undashed
from kdns.plugins.kubernetes.index import Index, Zone

MAX_NAMED = 8  # names listed in one line


def reason(index: Index, request: Request, zone: Zone, count: int) -> str:
    """A sentence for the name of a request, which is `count` labels below one of the plugin's zones; may be empty."""
    question = request.question
    cluster, config = index.cluster, index.config
    if not cluster.synced:
        return "the API has not been listed yet"
    if zone.reverse:
        return _of_address(cluster, address_of(question.name))
    parts = [question.name[question.starts[i] + 1 : question.starts[i + 1]].decode("latin-1") for i in range(count)]
    if count < 2 or parts[-1] not in ("svc", "pod"):
        odd = count and parts[-1] not in ("svc", "pod", "dns", "dns-version")
        return f'"{parts[-1]}" is neither svc nor pod' if odd else ""
    space = parts[-2]
    if parts[-1] == "pod" and config.pods == "disabled":
        return "names of Pods are not served: `pods` is disabled"
    if not index.is_namespace(space.encode("latin-1")):
        if config.namespaces is not None and space not in config.namespaces:
            return f"the namespace {space} is not among those that `namespaces` serves"
        return f"there is no namespace {space}" + _elsewhere(
            cluster, parts[-3] if count > 2 and parts[-1] == "svc" else ""
        )
    if count == 2:
        return f"namespace {space}"
    if parts[-1] == "pod":
        return _of_pod(cluster, config, space, parts[:-2])
    table = index.imports if zone.imports else index.entries
    entry = table.get(question.name[question.starts[count - 3] : question.starts[count - 1]])
    if entry is None or entry.service is None:
        slices = " (there are EndpointSlices for one)" if entry is not None else ""
        return f"namespace {space} has no Service {parts[-3]}{slices}" + _elsewhere(cluster, parts[-3])
    return _of_service(config, entry, entry.service, parts[:-3])


def _of_address(cluster: Cluster, address: bytes | None) -> str:
    if address is None:
        return "this is not a whole address"
    owner = cluster.cluster_owner(address)
    owners = [owner] if owner is not None else list(cluster.owners(address))
    return ", ".join(f"Service {entry.namespace}/{entry.name}" for entry in owners) or "no Service has this address"


def _of_pod(cluster: Cluster, config: Config, space: str, labels: list[str]) -> str:
    address = undashed(labels[-1].encode("latin-1"))
    if address is None:
        return f'"{labels[-1]}" is not an address with dashes'
    if len(labels) > 1:
        return "nothing is below the name of a Pod's address"
    if config.pods != "verified":
        return "`pods insecure`: any address is answered, whether a Pod has it or not"
    return (
        f"a Pod of namespace {space}" + (" has" if cluster.has_pod(space, address) else ": none has") + " this address"
    )


def _of_service(config: Config, entry: ServiceState, service: Service, below: list[str]) -> str:
    ready = sum(len(part.packed) // part.width for part in entry.parts())
    if service.kind == EXTERNAL:
        return f"Service {entry.namespace}/{entry.name}, ExternalName {service.external}" + (
            ": nothing is below its name" if below else ""
        )
    ports = ", ".join(f"{port.name or '-'}/{port.protocol}" for port in service.ports if port.number >= 0)
    text = (
        f"Service {entry.namespace}/{entry.name}, {service.kind}, ports {ports or 'none'}, {ready} ready "
        f"endpoint{'s' * (ready != 1)}"
    )
    names = [
        endpoint_label(part, i, address, config.endpoint_pod_names).decode("latin-1")
        for part in entry.parts() for i, address in enumerate(part.addresses())
    ]  # fmt: skip
    if len(below) == 1 and below[0] not in ("_tcp", "_udp", "_sctp") and below[0] not in names:
        shown = ", ".join(sorted(set(names))[:MAX_NAMED]) + (", ..." if len(set(names)) > MAX_NAMED else "")
        return f"{text}; none of them is called {below[0]}" + (f" (there are: {shown})" if names else "")
    if len(below) == 2 and not any(
        (port.name, port.protocol) == (below[0].removeprefix("_"), below[1].removeprefix("_")) for port in service.ports
    ):
        return f"{text}; no port is called {below[0]} with the protocol {below[1]}"
    if len(below) > 2:
        return f"{text}; no name has that many labels"
    if service.kind == HEADLESS and not ready:
        return f"{text}: a headless Service has addresses only while endpoints are ready"
    return text


def _elsewhere(cluster: Cluster, name: str) -> str:
    """Where a Service of this name is, if it is anywhere: a wrong namespace is the most frequent mistake."""
    found = sorted(
        entry.namespace
        for entry in cluster.entries.values()
        if name and entry.name.lower() == name and entry.service is not None
    )
    more = ", ..." if len(found) > MAX_NAMED else ""
    return f"; a Service {name} is in: {', '.join(found[:MAX_NAMED])}{more}" if found else ""
