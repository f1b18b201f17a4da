"""Metadata of cluster names and of the Pods that ask (see `metadata`): worked out when it is read."""

import ipaddress
from typing import Final

from kdns.kube.cluster import Cluster
from kdns.plugin import Request

CLIENT: Final = "kubernetes/client-"


def of_name(labels: list[str], imports: bool) -> dict[str, str]:
    """What the labels left of a zone stand for, by the field behind `kubernetes/`.

    `imports`: the zone is one of several clusters.
    """
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


def of_client(request: Request, cluster: Cluster, field: str) -> str:
    """A field of the Pod that asks: `namespace`, `pod-name` or `label/KEY`; empty for others."""
    try:
        pod = cluster.pod_of(ipaddress.ip_address(str(request.client[0]).partition("%")[0]).packed)
    except ValueError:
        pod = None
    if pod is None:
        return ""
    if field == "namespace":
        return pod.namespace
    if field == "pod-name":
        return pod.name
    return dict(pod.labels).get(field.removeprefix("label/"), "")
