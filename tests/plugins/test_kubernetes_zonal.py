"""kubernetes: names of topology zones."""

import socket
from pathlib import Path
from typing import Any

import dns.message
import pytest

from kdns.testing import Server, code, data
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve
from tests.plugins.kubernetes_blocks import kubernetes, manifests

N = ".n1.svc.cluster.local."


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
        reply = zonal.ask(f"{name}{N}", rtype)
        assert (data(reply) if reply.answer else code(reply)) == expected


def test_names_of_zones_that_clients_make_up_are_not_held(zonal: Server) -> None:
    assert zonal.server.instance is not None
    plugin: Any = next(found for found in zonal.server.instance.plugins if found.name == "kubernetes")
    types = ("A", "SRV", "TXT")
    for rtype in types:
        zonal.ask(f"a.prefer._zone.db{N}", rtype)  # what the Service's own name gets is held
    before = len(plugin.index.store)
    assert before
    queries = [dns.message.make_query(f"a0000.prefer._zone.db{N}", rtype).to_wire() for rtype in types]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((zonal.host, zonal.port))
        for i in range(2000):
            label = b"a%04d" % i
            sock.send(queries[i % 3].replace(b"a0000", label))
            reply = sock.recv(65535)
            assert label in reply and reply[3] & 15 == 0 and reply[7] == (4, 4, 0)[i % 3]
    assert len(plugin.index.store) == before
    assert len(data(zonal.ask(f"a1999.prefer._zone.db{N}"))) == 4


def test_without_zonal_there_are_no_such_names(serve: Serve, tmp_path: Path) -> None:
    text = manifests(
        tmp_path,
        namespace("n1"),
        service("n1/db"),
        endpointslice("n1/db-1", "db", {**endpoint("10.1.0.1"), "zone": "a"}),
    )
    assert code(serve(kubernetes(text)).ask("a.pin._zone.db.n1.svc.cluster.local.")) == "NXDOMAIN"
