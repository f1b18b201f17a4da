"""k8s_external: Services as they are seen from outside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.query
import dns.rdatatype
import dns.xfr
import dns.zone
import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.testing import ApiServer, Server, additional, answer, answers, code, data, eventually, flags, soa
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve, Start


def balanced(key: str, *ingress: dict[str, str], **spec: Any) -> dict[str, Any]:
    made = service(key, "10.0.0.1", **spec)
    made["status"] = {"loadBalancer": {"ingress": list(ingress)}}
    return made


OBJECTS = (
    namespace("n1"), balanced("n1/web", {"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}, externalIPs=["192.0.2.9"]),
    balanced("n1/named", {"hostname": "lb.example.net"}), service("n1/inner", "10.0.0.7"), service("n1/db"),
    endpointslice("n1/db-1", "db", endpoint("10.1.0.1", host="db-0"), endpoint("10.1.0.2")),
    service("n1/app", ports=(("http", "TCP", 80),)),
    endpointslice("n1/app-1", "app", endpoint("10.1.0.3", host="a"), ports=(("http", "TCP", 8080),)),
    balanced("n1/bare", {"ip": "192.0.2.3"}, ports=()),
)  # fmt: skip


@pytest.fixture
def start(serve: Serve, upstream: Start, tmp_path: Path) -> Callable[..., Server]:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all(OBJECTS))

    def world(query: Any, proto: str) -> Any:
        if query.question[0].name.to_text() == "lb.example.net.":
            return answer(query, "A 198.51.100.7") if query.question[0].rdtype == 1 else soa(answer(query))
        return soa(answer(query))

    def make(options: str = "") -> Server:
        up = upstream(world)
        return serve(
            f".:{{port}} {{\n bind 127.0.0.1\n k8s_external ext.org 2.0.192.in-addr.arpa {{\n ttl 60\n {options}\n }}\n"
            f" transfer ext.org {{\n to *\n }}\n kubernetes cluster.local {{\n manifests {path}\n ttl 30\n }}\n "
            f"forward . {up.address}\n}}"
        )

    return make


@pytest.mark.parametrize(("name", "rtype", "expected"), [
    ("web.n1.ext.org.", "A", ["192.0.2.1", "192.0.2.9"]), ("WEB.n1.Ext.org.", "AAAA", ["2001:db8::1"]),
    ("web.n1.ext.org.", "TXT", "NODATA"),
    ("named.n1.ext.org.", "A", ["198.51.100.7", "lb.example.net."]),
    ("named.n1.ext.org.", "CNAME", ["lb.example.net."]),
    ("named.n1.ext.org.", "AAAA", ["lb.example.net."]), ("named.n1.ext.org.", "TXT", "NODATA"),
    ("_http._tcp.web.n1.ext.org.", "SRV", ["0 33 80 web.n1.ext.org."]),
    ("web.n1.ext.org.", "SRV", ["0 33 80 web.n1.ext.org."]),
    ("_http._tcp.web.n1.ext.org.", "A", ["192.0.2.1", "192.0.2.9"]), ("_no._tcp.web.n1.ext.org.", "SRV", "NXDOMAIN"),
    ("_http._tcp.named.n1.ext.org.", "SRV", ["0 100 80 lb.example.net."]), ("inner.n1.ext.org.", "A", "NXDOMAIN"),
    ("nope.n1.ext.org.", "A", "NXDOMAIN"), ("x.web.n1.ext.org.", "A", "NXDOMAIN"),
    ("a.b.c.web.n1.ext.org.", "A", "NXDOMAIN"),
    ("n1.ext.org.", "A", "NODATA"), ("n2.ext.org.", "A", "NXDOMAIN"), ("db.n1.ext.org.", "A", "NXDOMAIN"),
    ("ext.org.", "A", "NODATA"),
    ("ext.org.", "NS", ["ns1.dns.ext.org."]), ("dns.ext.org.", "A", "NODATA"), ("x.dns.ext.org.", "A", "NXDOMAIN"),
    ("ns1.dns.ext.org.", "TXT", "NODATA"), ("1.2.0.192.in-addr.arpa.", "PTR", ["web.n1.ext.org."]),
    ("1.2.0.192.in-addr.arpa.", "A", "NODATA"),
    ("5.2.0.192.in-addr.arpa.", "PTR", "NXDOMAIN"),
])  # fmt: skip
def test_names_from_outside(start: Callable[..., Server], name: str, rtype: str, expected: list[str] | str) -> None:
    server = start()
    for _ in range(2):
        reply = server.ask(name, rtype)
        assert (data(reply) if reply.answer else code(reply)) == expected
        assert "AA" in flags(reply) and all(rrset.ttl == 60 for rrset in reply.answer)


def test_the_apex_has_a_soa_and_glue(start: Callable[..., Server]) -> None:
    server = start("apex ns")
    found = server.ask("ext.org.", "SOA").answer[0][0]
    assert (
        str(found.mname) == "ns1.ns.ext.org." and str(found.rname) == "hostmaster.ns.ext.org." and found.minimum == 60
    )
    assert all(line.startswith("ns1.ns.ext.org. ") for line in additional(server.ask("ext.org.", "NS")))
    assert additional(server.ask("_http._tcp.web.n1.ext.org.", "SRV")) == [
        "web.n1.ext.org. A 192.0.2.1", "web.n1.ext.org. A 192.0.2.9", "web.n1.ext.org. AAAA 2001:db8::1",
    ]  # fmt: skip


def test_headless_services_have_their_endpoints_where_that_is_asked_for(start: Callable[..., Server]) -> None:
    server = start("headless")
    assert data(server.ask("db.n1.ext.org.")) == ["10.1.0.1", "10.1.0.2"]
    assert (
        data(server.ask("db-0.db.n1.ext.org.")) == ["10.1.0.1"]
        and code(server.ask("db-1.db.n1.ext.org.")) == "NXDOMAIN"
    )
    srv = server.ask("_http._tcp.db.n1.ext.org.", "SRV")
    assert data(srv) == ["0 50 80 10-1-0-2.db.n1.ext.org.", "0 50 80 db-0.db.n1.ext.org."]
    assert "db-0.db.n1.ext.org. A 10.1.0.1" in additional(srv)


def test_srv_records_of_a_headless_service_had_the_services_port_and_not_its_endpoints(
    start: Callable[..., Server],
) -> None:
    """Their targets are the endpoints, which listen on ports of their own."""
    server = start("headless")
    for name in ("_http._tcp.app.n1.ext.org.", "app.n1.ext.org.", "a.app.n1.ext.org."):
        assert data(server.ask(name, "SRV")) == ["0 100 8080 a.app.n1.ext.org."]


def test_a_protocol_with_ports_below_it_did_not_exist(start: Callable[..., Server]) -> None:
    """A name that exists has all names above it (RFC 8020)."""
    server = start("headless")
    for name in ("_tcp.web.n1.ext.org.", "_tcp.named.n1.ext.org.", "_tcp.db.n1.ext.org."):
        assert code(server.ask(name, "SRV")) == "NODATA"
    for name in ("_udp.web.n1.ext.org.", "_udp.db.n1.ext.org.", "_tcp.inner.n1.ext.org.", "_tcp.bare.n1.ext.org."):
        assert code(server.ask(name, "SRV")) == "NXDOMAIN"


def test_a_service_without_ports_was_answered_for_srv_without_a_soa(start: Callable[..., Server]) -> None:
    reply = start().ask("bare.n1.ext.org.", "SRV")
    assert code(reply) == "NODATA" and reply.authority[0].rdtype == dns.rdatatype.SOA


def test_endpoints_outside_are_named_after_their_pods_where_they_are_inside(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    part = endpointslice("n1/db-1", "db", endpoint("10.1.0.1"))
    part["endpoints"][0]["targetRef"] = {"kind": "Pod", "name": "db-x7"}
    path.write_text(yaml.safe_dump_all((namespace("n1"), service("n1/db"), part)))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n k8s_external ext.org {{\n headless\n }}\n"
        f" kubernetes cluster.local {{\n manifests {path}\n endpoint_pod_names\n }}\n}}"
    )
    for zone in ("svc.cluster.local.", "ext.org."):
        assert data(server.ask(f"db-x7.db.n1.{zone}")) == ["10.1.0.1"]
        assert data(server.ask(f"db.n1.{zone}", "SRV")) == [f"0 100 80 db-x7.db.n1.{zone}"]


def test_what_is_missing_falls_through_where_that_is_said(start: Callable[..., Server]) -> None:
    assert code(start("fallthrough").ask("nope.n1.ext.org.")) == "NODATA"  # the upstream's


def test_the_zone_can_be_transferred(start: Callable[..., Server]) -> None:
    server = start()
    zone = dns.zone.Zone("ext.org.", relativize=False)
    query, _ = dns.xfr.make_query(zone)
    dns.query.inbound_xfr("127.0.0.1", zone, query, port=server.port, timeout=5)
    names = {str(name) for name in zone}
    assert {
        "web.n1.ext.org.",
        "_http._tcp.web.n1.ext.org.",
        "named.n1.ext.org.",
        "ext.org.",
    } <= names and "inner.n1.ext.org." not in names


def test_a_transfer_left_out_the_endpoints_of_headless_services(start: Callable[..., Server]) -> None:
    server = start("headless")
    zone = dns.zone.Zone("ext.org.", relativize=False)
    query, _ = dns.xfr.make_query(zone)
    dns.query.inbound_xfr("127.0.0.1", zone, query, port=server.port, timeout=5)
    for name, rtype in (
        ("app.n1.ext.org.", "A"), ("a.app.n1.ext.org.", "A"), ("_http._tcp.app.n1.ext.org.", "SRV"),
        ("db-0.db.n1.ext.org.", "A"), ("10-1-0-2.db.n1.ext.org.", "A"),
    ):  # fmt: skip
        assert sorted(rdata.to_text() for rdata in zone.find_rdataset(name, rtype)) == data(server.ask(name, rtype))


def test_changes_show_at_once_and_nothing_is_said_before_the_sync(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), balanced("n1/web", {"ip": "192.0.2.1"}))
    api.down()
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n k8s_external ext.org\n kubernetes cluster.local {{\n endpoint {api.url}\n "
        f"}}\n}}"
    )
    assert code(server.ask("web.n1.ext.org.")) == "SERVFAIL"
    api.up()
    eventually(lambda: answers(server.ask("web.n1.ext.org.")) == ["web.n1.ext.org. A 192.0.2.1"])
    api.put(balanced("n1/web", {"ip": "192.0.2.2"}))
    eventually(lambda: data(server.ask("web.n1.ext.org.")) == ["192.0.2.2"])
    api.put(balanced("n1/web"))
    eventually(lambda: code(server.ask("web.n1.ext.org.")) == "NXDOMAIN")


@pytest.mark.parametrize(("text", "expected"), [
    ("k8s_external ext.org\n whoami", "needs the plugin kubernetes"),
    ("k8s_external ext.org {\n apex a.b\n }", "one label"),
    ("k8s_external ext.org {\n ttl 9999\n }", "out of range"),
    ("k8s_external ext.org {\n headless yes\n }", "unexpected argument"),
    ("k8s_external ext.org {\n what\n }", "unknown property"),
    ("k8s_external a.org\n k8s_external b.org", "only be used once"),
])  # fmt: skip
def test_bad_options_are_named(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(f".:{{port}} {{\n bind 127.0.0.1\n {text}\n}}")
    assert expected in str(caught.value)
