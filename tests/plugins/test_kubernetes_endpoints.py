"""kubernetes: names of endpoints, what points to them, and what a change of a very large Service costs."""

import time
from pathlib import Path
from typing import Any

import pytest

from kdns.kube import reflector
from kdns.kube.cluster import Cluster
from kdns.kube.objects import Slice
from kdns.testing import ApiServer, Server, code, data, eventually
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve
from tests.plugins.kubernetes_blocks import kubernetes, manifests


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 0.1))


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


def test_names_and_types_of_a_headless_service_of_5000_cost_what_those_of_one_of_100_do(
    serve: Serve, api: ApiServer
) -> None:
    def of(name: str, count: int) -> list[dict[str, Any]]:
        return [service(f"n1/{name}"), *(
            endpointslice(f"n1/{name}-{i}", name, *(
                endpoint(f"10.{3 + (name == 'huge')}.{i}.{j + 1}", host=f"host-{i}-{j}") for j in range(100)
            )) for i in range(count)
        )]  # fmt: skip

    api.put(namespace("n1"), *of("small", 1), *of("huge", 50))
    server = serve(kubernetes(f"endpoint {api.url}"))
    settled(server)
    assert server.server.instance is not None
    plugin: Any = next(found for found in server.server.instance.plugins if found.name == "kubernetes")
    reads = 0

    class Counted(Slice):
        """A slice that counts what is read of it: whoever walks over endpoints reads each slice."""

        def __getattribute__(self, name: str) -> Any:
            nonlocal reads
            reads += 1
            return super().__getattribute__(name)

    def ask(name: str, rtype: str | int = "A") -> str:
        reply = server.ask(f"{name}.n1.svc.cluster.local.", rtype)
        return "DATA" if reply.answer else code(reply)

    def cost(name: str) -> int:
        """What is read for 200 names and types, once those with data have been made."""
        entry = plugin.service(name.encode(), b"n1")
        entry.slices = {key: tuple([Counted(*part) for part in parts]) for key, parts in entry.slices.items()}
        for first in (f"{name}", f"_http._tcp.{name}"):
            assert (ask(first), ask(first, "SRV")) == ("DATA", "DATA")
        assert ask(f"host.{name}") == "NXDOMAIN"
        before = reads
        assert before > len(entry.slices)  # it does count
        for i in range(40):
            assert ask(name, 300 + i) == ask(f"_http._tcp.{name}", 300 + i) == "NODATA"
            assert ask(f"_x{i}._tcp.{name}", "SRV") == ask(f"host-x{i}.{name}") == "NXDOMAIN"
            assert ask(f"host-0-{i}.{name}") == "DATA"
        return reads - before

    assert cost("huge") == cost("small")


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
