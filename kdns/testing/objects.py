"""Kubernetes objects in few words."""

from typing import Any


def namespace(name: str, **labels: str) -> dict[str, Any]:
    """A Namespace with these labels."""
    return {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}}


def service(
    key: str, *ips: str, ports: tuple[tuple[str, str, int], ...] = (("http", "TCP", 80),), kind: str = "ClusterIP",
    external: str = "", labels: dict[str, str] | None = None, **spec: Any,
) -> dict[str, Any]:  # fmt: skip
    """`key` is namespace/name; without addresses it is headless."""
    ns, _, name = key.partition("/")
    body: dict[str, Any] = {"type": kind, **spec}
    if external:
        body.update(type="ExternalName", externalName=external)
    else:
        body.update(clusterIP=ips[0] if ips else "None", clusterIPs=list(ips) or ["None"])
    if ports:
        body["ports"] = [
            {"name": n, "protocol": p, "port": number} if n else {"port": number, "protocol": p}
            for n, p, number in ports
        ]
    meta = {"name": name, "namespace": ns, "labels": labels or {}}
    return {"kind": "Service", "apiVersion": "v1", "metadata": meta, "spec": body}


def endpoint(*ips: str, host: str = "", ready: bool | None = True, pod: str = "") -> dict[str, Any]:
    """An endpoint of an EndpointSlice; `ready` None: nothing is said of it."""
    out: dict[str, Any] = {"addresses": list(ips), "conditions": {} if ready is None else {"ready": ready}}
    if host:
        out["hostname"] = host
    if pod:
        out["targetRef"] = {"kind": "Pod", "name": pod}
    return out


def endpointslice(
    key: str, of: str, *endpoints: dict[str, Any], ports: tuple[tuple[str, str, int], ...] = (("http", "TCP", 80),),
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`key` is namespace/name, `of` the Service's name; ports are (name, protocol, number)."""
    ns, _, name = key.partition("/")
    meta = {"name": name, "namespace": ns, "labels": {"kubernetes.io/service-name": of, **(labels or {})}}
    body: dict[str, Any] = {
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": meta,
        "addressType": "IPv6" if endpoints and ":" in endpoints[0]["addresses"][0] else "IPv4",
        "endpoints": list(endpoints),
    }  # fmt: skip
    body["ports"] = [{"name": n, "protocol": p, "port": number} for n, p, number in ports]
    return body


def pod(key: str, *ips: str, phase: str = "Running") -> dict[str, Any]:
    """`key` is namespace/name."""
    ns, _, name = key.partition("/")
    status = {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": ns}, "status": status}
