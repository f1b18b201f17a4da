"""Metadata of cluster names and of the Pods that ask (see `metadata`): each value is worked out when it is read."""

import ipaddress
from collections.abc import Callable
from functools import cache, partial

from kdns.kube.cluster import Cluster
from kdns.pipeline import Request
from kdns.pipeline.protocols import Labels

_FIELDS = ("port-name", "protocol", "endpoint", "cluster", "zone", "service", "namespace", "kind", "parse-error")


def of_name(parts: Callable[[], list[bytes]], imports: bool) -> Labels:
    """The labels of a name; `parts` gives what stands below the zone, from the left.

    `imports`: the zone is one of several clusters.
    """

    @cache
    def parsed() -> dict[str, str]:
        return _parse([part.decode("latin-1") for part in parts()], imports)

    def value(field: str) -> str:
        return parsed().get(field, "")

    return {f"kubernetes/{field}": partial(value, field) for field in _FIELDS}


def _parse(labels: list[str], imports: bool) -> dict[str, str]:
    if not labels:
        return {}
    kind = labels[-1]
    if kind not in ("svc", "pod"):
        return {"parse-error": "invalid query name"}
    out = {"kind": kind}
    if len(labels) > 1:
        out["namespace"] = labels[-2]
    if len(labels) > 2:
        out["service"] = labels[-3]
    if len(labels) == 4:
        out["endpoint"] = labels[0]
    elif len(labels) > 5 and labels[-4] == "_zone":
        out["zone"] = ".".join(labels[:-5])
    elif len(labels) == 5 and imports and not any(label.startswith("_") for label in labels[:2]):
        out["endpoint"], out["cluster"] = labels[:2]
    elif len(labels) == 5:
        out["port-name"], out["protocol"] = (label.removeprefix("_") for label in labels[:2])
    elif len(labels) > 5:
        return {"parse-error": "invalid query name"}
    return out


def of_client(request: Request, cluster: Cluster) -> Labels:
    """The labels of the Pod that asks, and what it is called; nothing for others."""
    try:
        pod = cluster.pod_of(ipaddress.ip_address(str(request.peer[0]).partition("%")[0]).packed)
    except ValueError:
        pod = None
    if pod is None:
        return {}
    found = {"client-namespace": pod.namespace, "client-pod-name": pod.name}
    found |= {f"client-label/{key}": value for key, value in pod.labels}
    return {f"kubernetes/{field}": partial(str, value) for field, value in found.items()}
