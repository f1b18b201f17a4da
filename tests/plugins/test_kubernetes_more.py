"""kubernetes: topology zones, ServiceImports, and what a change of a very large Service costs."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.kube import reflector
from kdns.kube.cluster import Cluster
from kdns.testing import ApiServer, Server, additional, code, data, eventually
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 0.1))


def kubernetes(options: str, zones: str = "cluster.local") -> str:
    return f".:{{port}} {{\n bind 127.0.0.1\n kubernetes {zones} {{\n {options}\n ttl 30\n }}\n}}"


def manifests(tmp_path: Path, *objects: dict[str, Any]) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    return f"manifests {path}"


# Topology zones.


@pytest.fixture
def zonal(serve: Serve, tmp_path: Path) -> Server:
    def at(zone: str, ip: str) -> dict[str, Any]:
        return {**endpoint(ip), "zone": zone}

    return serve(kubernetes("zonal\n " + manifests(
        tmp_path, namespace("n1"), service("n1/db"), service("n1/web", "10.0.0.1"), service("n1/ext", external="a.org"),
        service("n1/none"),
        endpointslice("n1/db-1", "db", at("Zone-A", "10.1.0.1"), at("zone-b", "10.1.0.2"),
            at("eu.west-1.a", "10.1.0.3"), endpoint("10.1.0.4")),
        endpointslice("n1/web-1", "web", at("zone-a", "10.1.0.9")),
    )))  # fmt: skip


@pytest.mark.parametrize(("name", "rtype", "expected"), [
    ("zone-a.pin._zone.db", "A", ["10.1.0.1"]), ("ZONE-B.Pin._Zone.db", "A", ["10.1.0.2"]),
    ("eu.west-1.a.pin._zone.db", "A", ["10.1.0.3"]),
    ("zone-b.prefer._zone.db", "A", ["10.1.0.2"]), ("zone-x.pin._zone.db", "A", "NODATA"),
    ("zone-x.prefer._zone.db", "A", ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]),
    ("zone-a.pin._zone.db", "AAAA", "NODATA"),
    ("zone-a.pin._zone.db", "TXT", "NODATA"),
    ("zone-a.pin._zone.db", "SRV", ["0 100 80 10-1-0-1.db.n1.svc.cluster.local."]),
    ("_zone.db", "A", "NODATA"), ("pin._zone.db", "A", "NODATA"), ("prefer._zone.db", "A", "NODATA"),
    ("other._zone.db", "A", "NXDOMAIN"),
    ("zone-a.other._zone.db", "A", "NXDOMAIN"), ("zone-a.pin._zone.web", "A", "NXDOMAIN"),
    ("zone-a.pin._zone.ext", "A", "NXDOMAIN"),
    ("zone-a.pin._zone.none", "A", "NXDOMAIN"), ("zone-a.pin._zone.nope", "A", "NXDOMAIN"),
    ("db", "A", ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]),
])  # fmt: skip
def test_names_of_topology_zones(zonal: Server, name: str, rtype: str, expected: list[str] | str) -> None:
    for _ in range(2):
        reply = zonal.ask(f"{name}.n1.svc.cluster.local.", rtype)
        assert (data(reply) if reply.answer else code(reply)) == expected


def test_without_zonal_there_are_no_such_names(serve: Serve, tmp_path: Path) -> None:
    text = manifests(
        tmp_path,
        namespace("n1"),
        service("n1/db"),
        endpointslice("n1/db-1", "db", {**endpoint("10.1.0.1"), "zone": "a"}),
    )
    assert code(serve(kubernetes(text)).ask("a.pin._zone.db.n1.svc.cluster.local.")) == "NXDOMAIN"


# ServiceImports.


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


@pytest.mark.parametrize(("options", "expected"), [
    ("multicluster other.local", "none of the zones"), ("zonal\n noendpoints", "cannot both be set"),
    ("zonal yes", "unexpected argument"), ("snapshot", "expected PATH"), ("snapshot a 5", "a unit is missing"),
    ("snapshot a\n manifests b", "manifests are files already"),
])  # fmt: skip
def test_bad_options_are_named(serve: Serve, options: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(kubernetes(options))
    assert expected in str(caught.value)


# Reverse names and what they point to: both or none.


def settled(server: Server) -> None:
    """Waits until what was put last is served: it comes in order, per kind."""
    eventually(lambda: code(server.ask("nothing.n1.svc.cluster.local.")) == "NXDOMAIN")


def pointed(server: Server, address: str) -> list[str]:
    """The names an address has; each must lead back to it."""
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa."
    reply = server.ask(reverse, "PTR")
    names = data(reply)
    assert names or code(reply) == "NXDOMAIN"
    for name in names:
        assert address in data(server.ask(name)), f"{address} is {name}, which is {code(server.ask(name))}"
    return names


def test_the_reverse_name_of_an_endpoint_outlived_its_headless_service(serve: Serve, api: ApiServer) -> None:
    api.put(
        namespace("n1"), service("n1/db"), endpointslice("n1/db-1", "db", endpoint("10.1.0.1", host="db-0")),
        service("n1/web", "10.0.0.1"), endpointslice("n1/web-1", "web", endpoint("10.1.0.2")),
    )  # fmt: skip
    server = serve(kubernetes(f"endpoint {api.url}", "cluster.local in-addr.arpa"))
    settled(server)
    there = (["db-0.db.n1.svc.cluster.local."], ["10-1-0-2.web.n1.svc.cluster.local."], ["web.n1.svc.cluster.local."])

    def names() -> tuple[list[str], ...]:
        return tuple(pointed(server, address) for address in ("10.1.0.1", "10.1.0.2", "10.0.0.1"))

    def is_there(name: str) -> bool:
        return code(server.ask(f"{name}.n1.svc.cluster.local.")) != "NXDOMAIN"

    for gone in (("db", "web"), ("web",), ("db",)):
        assert names() == there
        for name in gone:
            api.delete("Service", f"n1/{name}")
        eventually(lambda gone=gone: not any(is_there(name) for name in gone))
        assert names() == ([] if "db" in gone else there[0], *(([], []) if "web" in gone else there[1:]))
        api.put(*(service("n1/db") if name == "db" else service("n1/web", "10.0.0.1") for name in gone))
        eventually(lambda gone=gone: all(is_there(name) for name in gone))
    # An alias has no endpoints, whatever slices bear its name.
    api.put(service("n1/db", external="a.org"))
    eventually(lambda: code(server.ask("db-0.db.n1.svc.cluster.local.")) == "NXDOMAIN")
    assert names() == ([], *there[1:])
    api.put(service("n1/db"))
    eventually(lambda: code(server.ask("db-0.db.n1.svc.cluster.local.")) != "NXDOMAIN")
    assert names() == there
    # A namespace that is gone takes all of its names with it.
    api.delete("Namespace", "/n1")
    eventually(lambda: not is_there("web"))
    assert names() == ([], [], [])
    api.put(namespace("n1"))
    eventually(lambda: is_there("web"))
    assert names() == there


def test_a_reverse_name_in_a_namespace_that_is_not_selected_points_nowhere(serve: Serve, tmp_path: Path) -> None:
    server = serve(kubernetes("namespace_labels served=yes\n " + manifests(
        tmp_path, namespace("n1", served="yes"), namespace("n2"), service("n1/web", "10.0.0.1"),
        service("n2/web", "10.0.0.2"),
        service("n2/db"), endpointslice("n2/db-1", "db", endpoint("10.1.0.1")),
    ), "cluster.local in-addr.arpa"))  # fmt: skip
    assert [pointed(server, address) for address in ("10.0.0.1", "10.0.0.2", "10.1.0.1")] == [
        ["web.n1.svc.cluster.local."],
        [],
        [],
    ]


def test_below_a_service_that_is_hidden_protocols_were_there(serve: Serve, tmp_path: Path) -> None:
    server = serve(kubernetes("ignore empty_service\n " + manifests(
        tmp_path, namespace("n1"), service("n1/empty", "10.0.0.1"), service("n1/web", "10.0.0.2"),
        endpointslice("n1/web-1", "web", endpoint("10.1.0.1")),
    ), "cluster.local in-addr.arpa"))  # fmt: skip
    for name in ("empty", "_tcp.empty", "_http._tcp.empty", "_udp.empty", "10-1-0-1.empty"):
        assert code(server.ask(f"{name}.n1.svc.cluster.local.", "SRV")) == "NXDOMAIN", name
    assert code(server.ask("_tcp.web.n1.svc.cluster.local.", "SRV")) == "NODATA"
    assert [pointed(server, address) for address in ("10.0.0.1", "10.0.0.2")] == [[], ["web.n1.svc.cluster.local."]]


# Size.


def test_a_change_of_a_headless_service_of_5000_touches_its_slice_alone(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = [
        endpointslice(f"n1/huge-{i}", "huge", *(endpoint(f"10.2.{i}.{j + 1}") for j in range(100))) for i in range(50)
    ]
    api.put(namespace("n1"), service("n1/huge"), *slices)
    server = serve(kubernetes(f"endpoint {api.url}"))
    eventually(lambda: "10.2.49.100" in data(server.ask("10-2-49-100.huge.n1.svc.cluster.local.")))
    eventually(lambda: code(server.ask("nothing.n1.svc.cluster.local.")) == "NXDOMAIN")  # all is listed
    sizes: list[int] = []
    told = Cluster._tell
    monkeypatch.setattr(
        Cluster, "_tell", lambda self, entry, addresses: (sizes.append(len(addresses)), told(self, entry, addresses))
    )
    api.put(endpointslice("n1/huge-7", "huge", *(endpoint(f"10.2.7.{j + 2}") for j in range(100))))
    eventually(lambda: code(server.ask("10-2-7-1.huge.n1.svc.cluster.local.")) == "NXDOMAIN")
    assert data(server.ask("10-2-7-101.huge.n1.svc.cluster.local.")) == ["10.2.7.101"] and sizes == [101]


def test_srv_of_a_very_large_service_gives_another_part_each_time_it_is_made(serve: Serve, api: ApiServer) -> None:
    slices = [
        endpointslice(f"n1/huge-{i}", "huge", *(endpoint(f"10.2.{i}.{j + 1}") for j in range(100))) for i in range(50)
    ]
    api.put(namespace("n1"), service("n1/huge"), *slices)
    server = serve(kubernetes(f"endpoint {api.url}"))
    eventually(lambda: data(server.ask("10-2-49-100.huge.n1.svc.cluster.local.")))
    seen: set[str] = set()
    for i in range(12):
        reply = server.ask("_http._tcp.huge.n1.svc.cluster.local.", "SRV", tcp=True)
        assert reply.flags & 0x0200 and len(reply.to_wire(max_size=65535)) > 30_000
        seen |= set(data(reply))
        api.put(endpointslice("n1/huge-0", "huge", endpoint(f"10.3.0.{i + 1}")))
        eventually(lambda i=i: data(server.ask(f"10-3-0-{i + 1}.huge.n1.svc.cluster.local.")))
        time.sleep(0.01)
    assert len(seen) > 2000
