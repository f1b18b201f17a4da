"""kubernetes: ServiceImports (the Multi-Cluster Services API)."""

from pathlib import Path
from typing import Any

import pytest

from kdns.kube import reflector
from kdns.testing import ApiServer, Server, additional, code, data, eventually
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve
from tests.plugins.kubernetes_blocks import kubernetes, manifests


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 0.1))


def service_import(
    key: str, *ips: str, kind: str = "ClusterSetIP", ports: bool = True, version: str = "v1beta1"
) -> dict[str, Any]:
    ns, _, name = key.partition("/")
    spec: dict[str, Any] = {"type": kind, "ips": list(ips)}
    if ports:
        spec["ports"] = [{"name": "http", "protocol": "TCP", "port": 80}]
    return {"apiVersion": f"multicluster.x-k8s.io/{version}", "kind": "ServiceImport",
            "metadata": {"namespace": ns, "name": name}, "spec": spec}  # fmt: skip


def imported_slice(key: str, of: str, cluster: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    made = endpointslice(key, of, *endpoints)
    made["metadata"]["labels"] = {
        "multicluster.kubernetes.io/service-name": of, "multicluster.kubernetes.io/source-cluster": cluster,
    }  # fmt: skip
    return made


IMPORTS = (
    namespace("n1"), service("n1/web", "10.0.0.1"), service_import("n1/web", "10.9.0.1", "fd00::9"),
    service_import("n1/db", kind="Headless"),
    service_import("n1/portless", "10.9.0.7", ports=False),
    imported_slice("n1/db-east", "db", "East", endpoint("10.2.0.1", host="db-0"), endpoint("10.2.0.2")),
    imported_slice("n1/db-west", "db", "west", endpoint("10.3.0.1", host="db-0")),
    imported_slice("n1/empty-1", "empty", "west"),
    service_import("n1/empty", kind="Headless"),
)  # fmt: skip


CASES = [
    ("web.n1.svc.clusterset.local.", "A", ["10.9.0.1"]), ("web.n1.svc.clusterset.local.", "AAAA", ["fd00::9"]),
    ("web.n1.svc.cluster.local.", "A", ["10.0.0.1"]),
    ("db.n1.svc.clusterset.local.", "A", ["10.2.0.1", "10.2.0.2", "10.3.0.1"]),
    ("db.n1.svc.cluster.local.", "A", "NXDOMAIN"), ("db-0.east.db.n1.svc.clusterset.local.", "A", ["10.2.0.1"]),
    ("db-0.west.db.n1.svc.clusterset.local.", "A", ["10.3.0.1"]),
    ("10-2-0-2.east.db.n1.svc.clusterset.local.", "A", ["10.2.0.2"]),
    ("db-0.north.db.n1.svc.clusterset.local.", "A", "NXDOMAIN"), ("db-0.db.n1.svc.clusterset.local.", "A", "NXDOMAIN"),
    ("east.db.n1.svc.clusterset.local.", "A", "NXDOMAIN"), ("empty.n1.svc.clusterset.local.", "A", "NXDOMAIN"),
    ("portless.n1.svc.clusterset.local.", "A", "NXDOMAIN"), ("nope.n1.svc.clusterset.local.", "A", "NXDOMAIN"),
    ("web.n1.svc.clusterset.local.", "SRV", ["0 50 80 web.n1.svc.clusterset.local."]),
    ("_http._tcp.web.n1.svc.clusterset.local.", "SRV", ["0 50 80 web.n1.svc.clusterset.local."]),
    ("_http._tcp.db.n1.svc.clusterset.local.", "SRV", ["0 33 80 10-2-0-2.east.db.n1.svc.clusterset.local.",
        "0 33 80 db-0.east.db.n1.svc.clusterset.local.", "0 33 80 db-0.west.db.n1.svc.clusterset.local."]),
    ("_none._tcp.db.n1.svc.clusterset.local.", "SRV", "NXDOMAIN"),
    ("dns-version.clusterset.local.", "TXT", ['"1.0.0"']),
    ("dns-version.cluster.local.", "TXT", ['"1.1.0"']), ("n1.svc.clusterset.local.", "A", "NODATA"),
    ("1-2-3-4.n1.pod.clusterset.local.", "A", "NXDOMAIN"),
    ("1.0.9.10.in-addr.arpa.", "PTR", "NXDOMAIN"), ("1.0.0.10.in-addr.arpa.", "PTR", ["web.n1.svc.cluster.local."]),
]  # fmt: skip


def check_imports(server: Server) -> None:
    for name, rtype, expected in CASES:
        reply = server.ask(name, rtype)
        assert (data(reply) if reply.answer else code(reply)) == expected, (name, rtype)
    srv = server.ask("_http._tcp.db.n1.svc.clusterset.local.", "SRV")
    assert "db-0.east.db.n1.svc.clusterset.local. A 10.2.0.1" in additional(srv)


MULTI = "multicluster clusterset.local\n pods insecure\n "


ZONES = "clusterset.local cluster.local in-addr.arpa"


def test_names_of_service_imports_from_manifests(serve: Serve, tmp_path: Path) -> None:
    check_imports(serve(kubernetes(MULTI + manifests(tmp_path, *IMPORTS), ZONES)))


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_names_of_service_imports_from_the_api(serve: Serve, api: ApiServer, version: str) -> None:
    api.installed = {version}
    api.put(*IMPORTS)
    server = serve(kubernetes(f"{MULTI}endpoint {api.url}", ZONES))
    eventually(lambda: data(server.ask("web.n1.svc.clusterset.local.")) == ["10.9.0.1"])
    check_imports(server)
    api.put(
        imported_slice("n1/db-west", "db", "west", endpoint("10.3.0.2", host="db-0")),
        service_import("n1/web", "10.9.0.2"),
    )
    eventually(lambda: data(server.ask("db-0.west.db.n1.svc.clusterset.local.")) == ["10.3.0.2"])
    eventually(lambda: data(server.ask("web.n1.svc.clusterset.local.")) == ["10.9.0.2"])
    api.delete("ServiceImport", "n1/web")
    eventually(lambda: code(server.ask("web.n1.svc.clusterset.local.")) == "NXDOMAIN")
    assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]


def test_where_service_imports_are_not_installed_there_are_none_and_the_rest_is_served(
    serve: Serve, api: ApiServer
) -> None:
    api.installed = set()
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = serve(kubernetes(f"{MULTI}endpoint {api.url}", ZONES))
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"])
    eventually(lambda: code(server.ask("web.n1.svc.clusterset.local.")) == "NXDOMAIN")
