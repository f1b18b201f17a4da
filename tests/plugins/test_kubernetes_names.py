"""Every name of the specification and of CoreDNS's beyond it, from manifests and through an API server, over UDP and
TCP.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdns.testing import ApiServer, Server, additional, answer, answers, block, code, data, eventually, flags, free_port
from kdns.testing.objects import endpoint, endpointslice, namespace, pod, service
from tests.fixtures import Serve, Start

COREFILE = """
.:{port} {
    bind 127.0.0.1 ::1
    kubernetes cluster.local 10.in-addr.arpa 0.0.0.0.d.f.ip6.arpa {
        pods verified
        ttl 30
        SOURCE
    }
    loadbalance
}
"""


def objects() -> list[dict[str, Any]]:
    pg = (("pg", "TCP", 5432),)
    return [
        namespace("n1"), namespace("n2"), namespace("default"),
        service("n1/web", "10.96.1.5", "fd00::5"),
        endpointslice("n1/web-1", "web", endpoint("10.1.9.1"), endpoint("10.1.9.2", host="web-two")),
        service("n1/db", ports=pg),
        endpointslice(
            "n1/db-1", "db", endpoint("10.1.0.1", host="db-0"), endpoint("10.1.0.2", ready=None, pod="db-pod"),
            endpoint("10.1.0.3", host="db-2", ready=False), ports=pg,
        ),
        service("n1/ext", external="www.example.com"),
        service("n1/inside", external="web.n1.svc.cluster.local"),
        service("n1/through", external="inside.n1.svc.cluster.local."),
        service("n1/nowhere", external="nothing.n1.svc.cluster.local"),
        service("n1/self", external="self.n1.svc.cluster.local"),
        service("n1/ring-a", external="ring-b.n1.svc.cluster.local"),
        service("n1/ring-b", external="ring-a.n1.svc.cluster.local"),
        service("n1/address", external="192.0.2.1"),
        service("n1/multi", "10.96.1.6", ports=(("http", "TCP", 80), ("dns", "UDP", 53), ("dns-tcp", "TCP", 53))),
        service("n1/node", "10.96.1.7", kind="NodePort"),
        service("n1/edge", "10.96.1.8", kind="LoadBalancer"),
        service("n1/unnamed", "10.96.1.9", ports=(("", "TCP", 8080),)),
        service("n1/portless", "10.96.1.10", ports=()),
        service("n1/bare"), {**endpointslice("n1/bare-1", "bare", endpoint("10.1.2.1")), "ports": []},
        service("n1/starting"), endpointslice("n1/starting-1", "starting", endpoint("10.1.3.1", ready=False)),
        service("n1/halves"),
        endpointslice("n1/halves-1", "halves", endpoint("10.1.4.1"), endpoint("10.1.4.2")),
        endpointslice("n1/halves-2", "halves", endpoint("10.1.4.3"), endpoint("10.1.4.1")),
        endpointslice("n1/halves-6", "halves", endpoint("fd00::4:1")),
        service("n1/twin"),
        endpointslice("n1/twin-1", "twin", endpoint("10.1.5.1", "10.1.5.2", host="pair")),
        service("n1/shared"), endpointslice("n1/shared-1", "shared", endpoint("10.1.0.1", host="alias")),
        service("n1/six"), endpointslice("n1/six-6", "six", endpoint("5678:abcd::1"), endpoint("5678:abcd::")),
        service("n1/1digit", "10.96.1.11"),
        service("n2/web", "10.96.2.5"),
        pod("n1/runner", "10.1.7.7"), pod("n1/six", "fd00::7"), pod("n1/both", "10.1.7.9", "fd00::9"),
        pod("n1/done", "10.1.7.8", phase="Succeeded"),
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["manifests", "api"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    api: ApiServer | None = None
    if request.param == "manifests":
        path = tmp_path_factory.mktemp("cluster") / "all.yaml"
        path.write_text(yaml.safe_dump_all(objects()))
        source = f"manifests {path}"
    else:
        api = ApiServer()
        api.put(*objects())
        source = f"endpoint {api.url}"
    server = Server(COREFILE.replace("SOURCE", source))
    eventually(
        lambda: server.ask("web.n2.svc.cluster.local").answer and server.ask("10-1-7-7.n1.pod.cluster.local").answer
    )
    yield server
    server.close()
    if api is not None:
        api.close()


N = ".n1.svc.cluster.local."
HALVES = sorted(f"0 20 80 {host}.halves{N}" for host in ("10-1-4-1", "10-1-4-2", "10-1-4-3", "fd00--4-1"))
# Name, type, and what comes: data as sorted text, or a code.
TABLE: list[tuple[str, str, list[str] | str]] = [
    # The specification's records (kubernetes-dns.md 1).
    ("dns-version.cluster.local.", "TXT", ['"1.1.0"']),
    ("dns-version.cluster.local.", "A", "NODATA"),
    ("web" + N, "A", ["10.96.1.5"]),
    ("web" + N, "AAAA", ["fd00::5"]),
    ("_http._tcp.web" + N, "SRV", [f"0 50 80 web{N}"]),
    ("5.1.96.10.in-addr.arpa.", "PTR", ["web" + N]),
    ("5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", ["web" + N]),
    ("db" + N, "A", ["10.1.0.1", "10.1.0.2"]),
    ("db-0.db" + N, "A", ["10.1.0.1"]),
    ("_pg._tcp.db" + N, "SRV", [f"0 50 5432 10-1-0-2.db{N}", f"0 50 5432 db-0.db{N}"]),
    ("ext" + N, "CNAME", ["www.example.com."]),
    # The golden fixture (kubernetes-dns.md 7).
    ("web" + N, "TXT", "NODATA"),
    ("_http._udp.web" + N, "SRV", "NXDOMAIN"),
    ("_x._tcp.web" + N, "SRV", "NXDOMAIN"),
    ("nope" + N, "A", "NXDOMAIN"),
    ("db" + N, "AAAA", "NODATA"),
    ("10-1-0-2.db" + N, "A", ["10.1.0.2"]),
    ("db-2.db" + N, "A", "NXDOMAIN"),
    ("ext" + N, "SRV", "NODATA"),
    ("3.0.1.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
    ("2.0.1.10.in-addr.arpa.", "PTR", ["10-1-0-2.db" + N]),
    # Answers beyond the specification (kubernetes-dns.md 2, plugins-core.md 1.3 to 1.5).
    ("cluster.local.", "A", "NODATA"),
    ("svc.cluster.local.", "A", "NODATA"),
    ("pod.cluster.local.", "A", "NODATA"),
    ("n1.svc.cluster.local.", "A", "NODATA"),
    ("n1.pod.cluster.local.", "A", "NODATA"),
    ("n9.svc.cluster.local.", "A", "NXDOMAIN"),
    ("n9.pod.cluster.local.", "A", "NXDOMAIN"),
    ("web.n9.svc.cluster.local.", "A", "NXDOMAIN"),
    ("other.cluster.local.", "A", "NXDOMAIN"),
    ("a.b.c.web" + N, "A", "NXDOMAIN"),
    ("unknown.db" + N, "A", "NXDOMAIN"),
    *[("web" + N, rtype, "NODATA") for rtype in ("MX", "HTTPS", "CAA", "NS", "DS", "SOA", "CNAME", "ANY", "TYPE65280")],
    *[("nope" + N, rtype, "NXDOMAIN") for rtype in ("TXT", "MX", "SOA", "SRV", "ANY", "HTTPS")],
    *[(name, "TXT", "NODATA") for name in ("cluster.local.", "svc.cluster.local.", "n1.svc.cluster.local.")],
    ("multi" + N, "A", ["10.96.1.6"]),
    ("multi" + N, "SRV", [f"0 33 53 multi{N}", f"0 33 80 multi{N}"]),
    ("_dns._udp.multi" + N, "SRV", [f"0 100 53 multi{N}"]),
    ("dns.udp.multi" + N, "SRV", [f"0 100 53 multi{N}"]),
    ("_http._tcp.web" + N, "A", ["10.96.1.5"]),
    ("_tcp.web" + N, "A", "NODATA"),
    ("_udp.web" + N, "A", "NXDOMAIN"),
    ("node" + N, "A", ["10.96.1.7"]),
    ("edge" + N, "A", ["10.96.1.8"]),
    ("_http._tcp.edge" + N, "SRV", [f"0 100 80 edge{N}"]),
    ("unnamed" + N, "SRV", [f"0 100 8080 unnamed{N}"]),
    ("_http._tcp.unnamed" + N, "SRV", "NXDOMAIN"),
    ("portless" + N, "A", ["10.96.1.10"]),
    ("portless" + N, "SRV", "NODATA"),
    ("bare" + N, "A", ["10.1.2.1"]),
    ("bare" + N, "SRV", "NODATA"),
    ("starting" + N, "A", "NXDOMAIN"),
    ("starting" + N, "SRV", "NXDOMAIN"),
    ("10-1-3-1.starting" + N, "A", "NXDOMAIN"),
    ("halves" + N, "A", ["10.1.4.1", "10.1.4.2", "10.1.4.3"]),
    ("halves" + N, "AAAA", ["fd00::4:1"]),
    ("_http._tcp.halves" + N, "SRV", HALVES),
    ("pair.twin" + N, "A", ["10.1.5.1", "10.1.5.2"]),
    ("10-1-5-1.twin" + N, "A", "NXDOMAIN"),
    ("_http._tcp.twin" + N, "SRV", [f"0 50 80 pair.twin{N}"]),
    ("web-two.web" + N, "A", ["10.1.9.2"]),
    ("10-1-9-1.web" + N, "A", ["10.1.9.1"]),
    ("10-1-9-2.web" + N, "A", "NXDOMAIN"),
    ("5678-abcd--1.six" + N, "AAAA", ["5678:abcd::1"]),
    ("5678-abcd--0.six" + N, "AAAA", ["5678:abcd::"]),
    ("1digit" + N, "A", ["10.96.1.11"]),
    ("web.n2.svc.cluster.local.", "A", ["10.96.2.5"]),
    ("inside" + N, "A", ["10.96.1.5", "web" + N]),
    ("inside" + N, "AAAA", ["fd00::5", "web" + N]),
    ("through" + N, "A", ["10.96.1.5", "inside" + N, "web" + N]),
    ("nowhere" + N, "A", "NXDOMAIN"),
    ("self" + N, "A", ["self" + N]),
    ("address" + N, "A", "NXDOMAIN"),
    ("address" + N, "CNAME", "NXDOMAIN"),
    ("sub.ext" + N, "A", "NXDOMAIN"),
    ("_http._tcp.ext" + N, "SRV", "NXDOMAIN"),
    ("1.0.1.10.in-addr.arpa.", "PTR", ["alias.shared" + N, "db-0.db" + N]),
    ("9.9.9.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
    ("5.1.96.10.in-addr.arpa.", "A", "NODATA"),
    ("5.1.96.10.in-addr.arpa.", "TXT", "NODATA"),
    ("05.1.96.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
    # Names above reverse names of Services exist (RFC 8020, section 2); others do not.
    *[(name, rtype, "NODATA") for rtype in ("PTR", "A") for name in (
        "1.96.10.in-addr.arpa.", "96.10.in-addr.arpa.", "0.1.10.in-addr.arpa.", "0.0.0.0.0.d.f.ip6.arpa.",
        "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
    )],
    *[(name, rtype, "NXDOMAIN") for rtype in ("PTR", "A") for name in (
        "3.96.10.in-addr.arpa.", "97.10.in-addr.arpa.", "x.96.10.in-addr.arpa.", "1.0.0.0.0.d.f.ip6.arpa.",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "g.0.0.0.0.d.f.ip6.arpa.",
    )],
    ("web" + N, "PTR", "NODATA"),
    ("10-1-7-7.n1.pod.cluster.local.", "A", ["10.1.7.7"]),
    ("10-1-7-7.n1.pod.cluster.local.", "AAAA", "NODATA"),
    ("10-1-7-9.n1.pod.cluster.local.", "A", ["10.1.7.9"]),
    ("fd00--9.n1.pod.cluster.local.", "AAAA", ["fd00::9"]),
    ("fd00--7.n1.pod.cluster.local.", "AAAA", ["fd00::7"]),
    ("10-1-7-8.n1.pod.cluster.local.", "A", "NXDOMAIN"),
    ("10-1-7-7.n2.pod.cluster.local.", "A", "NXDOMAIN"),
    ("x.10-1-7-7.n1.pod.cluster.local.", "A", "NXDOMAIN"),
    ("10-1-7.n1.pod.cluster.local.", "A", "NXDOMAIN"),
    ("a-b-c-d.n1.pod.cluster.local.", "A", "NXDOMAIN"),
    ("10-1-7-7.n1.pod.cluster.local.", "SRV", "NODATA"),
    ("dns.cluster.local.", "A", "NODATA"),
    ("ns.dns.cluster.local.", "TXT", "NODATA"),
    ("x.dns.cluster.local.", "A", "NXDOMAIN"),
    ("*.n1.svc.cluster.local.", "A", "NXDOMAIN"),
    ("any.n1.svc.cluster.local.", "A", "NXDOMAIN"),
    ("www.google.com.n1.svc.cluster.local.", "A", "NXDOMAIN"),
    ("www.google.com.svc.cluster.local.", "A", "NXDOMAIN"),
    ("www.google.com.cluster.local.", "A", "NXDOMAIN"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rtype", "expected"), TABLE, ids=lambda value: value if isinstance(value, str) else "data"
)
@pytest.mark.parametrize("way", ["udp", "tcp", "udp6"])
def test_a_name_comes_to_what_the_specification_or_coredns_says(
    cluster: Server, name: str, rtype: str, expected: list[str] | str, way: str
) -> None:
    reply = cluster.ask(name, rtype, tcp=way == "tcp", host="::1" if way == "udp6" else None)
    if isinstance(expected, str):
        assert code(reply) == expected
        soa = reply.authority[0][0]
        assert soa.mname.to_text().startswith("ns.dns.") and soa.minimum == 30 and reply.authority[0].ttl == 30
        assert (soa.refresh, soa.retry, soa.expire) == (7200, 1800, 86400)
    else:
        assert data(reply) == expected
        assert code(reply) == "NOERROR"
    assert {"QR", "AA"} <= flags(reply)
    assert all(rrset.ttl in (30, 28800) for rrset in reply.answer)


def test_srv_brings_the_addresses_of_its_targets_in_both_families(cluster: Server) -> None:
    assert additional(cluster.ask("_http._tcp.web" + N, "SRV")) == [f"web{N} A 10.96.1.5", f"web{N} AAAA fd00::5"]
    assert additional(cluster.ask("_pg._tcp.db" + N, "SRV")) == [f"10-1-0-2.db{N} A 10.1.0.2", f"db-0.db{N} A 10.1.0.1"]


def test_the_question_comes_back_in_the_case_it_was_asked_in(cluster: Server) -> None:
    reply = cluster.ask("_HTTP._TCP.Web.N1.SVC.Cluster.LOCAL.", "SRV")
    assert str(reply.question[0].name) == "_HTTP._TCP.Web.N1.SVC.Cluster.LOCAL."
    assert str(reply.answer[0].name) == "_HTTP._TCP.Web.N1.SVC.Cluster.LOCAL."
    assert len(reply.answer[0]) == 1
    negative = cluster.ask("NOPE.n1.svc.CLUSTER.local.")
    assert str(negative.authority[0].name) == "CLUSTER.local."


def test_an_external_name_that_does_not_exist_keeps_its_cname(cluster: Server) -> None:
    reply = cluster.ask("nowhere" + N)
    assert answers(reply) == [f"nowhere{N} CNAME nothing{N}"]
    assert code(reply) == "NXDOMAIN"
    none = cluster.ask("inside" + N, "AAAA")
    assert answers(none) == [f"inside{N} CNAME web{N}", f"web{N} AAAA fd00::5"]


def test_an_external_name_that_could_not_be_had_was_taken_for_one_without_addresses(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump_all([namespace("n1"), service("n1/ext", external="www.example.com")]))
    kubernetes = f"kubernetes cluster.local {{\n manifests {path}\n }}"
    for rule, expected in (("rcode SERVFAIL", "SERVFAIL"), ("rcode REFUSED", "REFUSED")):
        reply = serve(block(f"template ANY ANY example.com {{\n {rule}\n }}", kubernetes)).ask("ext" + N)
        assert code(reply) == expected and answers(reply) == [f"ext{N} CNAME www.example.com."]
    silent = serve(block(kubernetes, f"forward . 127.0.0.1:{free_port()}"))
    assert code(silent.ask("ext" + N)) == "SERVFAIL"


def test_external_names_that_lead_in_a_circle_end(cluster: Server) -> None:
    reply = cluster.ask("ring-a" + N)
    assert answers(reply) == [f"ring-a{N} CNAME ring-b{N}", f"ring-b{N} CNAME ring-a{N}"]
    assert code(reply) == "NOERROR"


def test_the_apex_has_a_soa_and_name_servers_with_addresses(cluster: Server) -> None:
    soa = cluster.ask("cluster.local.", "SOA")
    assert data(soa)[0].startswith("ns.dns.cluster.local. hostmaster.cluster.local. ")
    servers = cluster.ask("cluster.local.", "NS")
    assert data(servers) == ["ns.dns.cluster.local."]
    assert additional(servers) == ["ns.dns.cluster.local. A 127.0.0.1", "ns.dns.cluster.local. AAAA ::1"]
    assert data(cluster.ask("ns.dns.cluster.local.")) == ["127.0.0.1"]
    assert data(cluster.ask("NS.DNS.Cluster.Local.", "AAAA")) == ["::1"]


def test_transfers_are_refused(cluster: Server) -> None:
    assert code(cluster.ask("cluster.local.", "AXFR")) == "REFUSED"


def test_a_name_outside_the_zones_is_nobodys(cluster: Server) -> None:
    assert code(cluster.ask("www.example.org.")) == "SERVFAIL"
    assert code(cluster.ask("xcluster.local.")) == "SERVFAIL"


def test_addresses_take_turns_at_being_first(cluster: Server) -> None:
    firsts = {str(cluster.ask("halves" + N).answer[0][0]) for _ in range(60)}
    assert firsts == {"10.1.4.1", "10.1.4.2", "10.1.4.3"}


def corefile(source: str, *options: str, zones: str = "cluster.local in-addr.arpa") -> str:
    body = "\n".join(options)
    return f".:{{port}} {{\n bind 127.0.0.1\n kubernetes {zones} {{\n {source}\n {body}\n }}\n}}\n"


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"kind": "List", "items": objects()}))
    return f"manifests {path}"


def test_pods_disabled_hides_all_pod_names(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests))
    assert code(server.ask("10-1-7-7.n1.pod.cluster.local.")) == "NXDOMAIN"
    assert code(server.ask("n1.pod.cluster.local.")) == "NXDOMAIN"
    assert code(server.ask("pod.cluster.local.")) == "NODATA"


def test_pods_insecure_answers_any_address_in_a_namespace_that_exists(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests, "pods insecure"))
    assert data(server.ask("192-0-2-9.n1.pod.cluster.local.")) == ["192.0.2.9"]
    assert data(server.ask("2001-db8--9.n1.pod.cluster.local.", "AAAA")) == ["2001:db8::9"]
    assert code(server.ask("192-0-2-9.n9.pod.cluster.local.")) == "NXDOMAIN"
    assert code(server.ask("192-0-2-999.n1.pod.cluster.local.")) == "NXDOMAIN"


def test_each_address_of_a_pod_of_two_families_is_verified_as_long_as_it_has_it(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), pod("n1/a", "10.1.0.1", "fd00::1"), pod("n1/b", "10.1.0.2", "10.1.0.2", "fd00::1"))
    by_hand = pod("n1/c", "10.1.0.3")
    del by_hand["status"]["podIPs"]
    only = pod("n1/d", "10.1.0.4")
    del only["status"]["podIP"]
    api.put(
        by_hand, only, {**pod("n1/e", "10.1.0.5"), "status": {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{}]}}
    )
    server = serve(corefile(f"endpoint {api.url}", "pods verified"))

    def there(label: str) -> bool:
        return bool(server.ask(f"{label}.n1.pod.cluster.local.", "AAAA" if "--" in label else "A").answer)

    eventually(lambda: there("10-1-0-1"))
    assert all(there(f"10-1-0-{i}") for i in (2, 3, 4, 5)) and there("fd00--1")
    api.put(pod("n1/a", "10.1.0.1", "fd00::a"))
    eventually(lambda: there("fd00--a"))
    assert there("fd00--1")  # b has it still
    api.delete("Pod", "n1/b")
    eventually(lambda: not there("10-1-0-2"))
    assert not there("fd00--1") and there("fd00--a") and there("10-1-0-1")
    api.put(pod("n1/a", "10.1.0.1"))
    eventually(lambda: not there("fd00--a"))
    assert there("10-1-0-1")


def test_endpoint_pod_names_name_endpoints_after_their_pods(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests, "endpoint_pod_names"))
    assert data(server.ask("db-pod.db" + N)) == ["10.1.0.2"]
    assert code(server.ask("10-1-0-2.db" + N)) == "NXDOMAIN"
    assert data(server.ask("db-0.db" + N)) == ["10.1.0.1"]


def test_noendpoints_leaves_only_cluster_addresses(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests, "noendpoints"))
    assert data(server.ask("web" + N)) == ["10.96.1.5"]
    assert code(server.ask("db" + N)) == "NXDOMAIN"


def test_ignore_empty_service_hides_services_nobody_is_behind(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests, "ignore empty_service"))
    assert data(server.ask("web" + N)) == ["10.96.1.5"]
    assert code(server.ask("multi" + N)) == "NXDOMAIN"


def test_namespaces_serves_only_those(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests, "namespaces n2"))
    assert data(server.ask("web.n2.svc.cluster.local.")) == ["10.96.2.5"]
    assert code(server.ask("web" + N)) == "NXDOMAIN"
    assert code(server.ask("n1.svc.cluster.local.")) == "NXDOMAIN"
    assert code(server.ask("5.1.96.10.in-addr.arpa.", "PTR")) == "NXDOMAIN"
    assert code(server.ask("1.96.10.in-addr.arpa.", "PTR")) == "NXDOMAIN"  # nor is there anything below it
    assert (
        code(server.ask("2.96.10.in-addr.arpa.", "PTR")) == code(server.ask("96.10.in-addr.arpa.", "PTR")) == "NODATA"
    )


def test_labels_and_namespace_labels_select_objects(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "labelled.yaml"
    path.write_text(yaml.safe_dump_all([
        namespace("red", team="red"), namespace("blue", team="blue"),
        service("red/a", "10.0.0.1", labels={"tier": "front"}), service("red/b", "10.0.0.2"),
        service("blue/a", "10.0.0.3", labels={"tier": "front"}),
    ]))  # fmt: skip
    one = serve(corefile(f"manifests {path}", "labels tier in (front, back)"))
    assert data(one.ask("a.red.svc.cluster.local.")) == ["10.0.0.1"]
    assert code(one.ask("b.red.svc.cluster.local.")) == "NXDOMAIN"
    two = serve(corefile(f"manifests {path}", "namespace_labels team=red"))
    assert data(two.ask("b.red.svc.cluster.local.")) == ["10.0.0.2"]
    assert code(two.ask("a.blue.svc.cluster.local.")) == "NXDOMAIN"


def test_fallthrough_passes_only_the_zones_it_names(serve: Serve, manifests: str) -> None:
    text = corefile(manifests, "fallthrough in-addr.arpa").replace("}\n}\n", "}\n whoami\n}\n")
    server = serve(text)
    assert code(server.ask("9.9.9.10.in-addr.arpa.", "PTR")) == "EMPTY"
    assert data(server.ask("5.1.96.10.in-addr.arpa.", "PTR")) == ["web" + N]
    assert code(server.ask("nope" + N)) == "NXDOMAIN"
    every = serve(corefile(manifests, "fallthrough").replace("}\n}\n", "}\n whoami\n}\n"))
    assert code(every.ask("nope" + N)) == "EMPTY"


def test_a_question_of_any_class_for_a_name_of_the_cluster_is_answered_here(
    serve: Serve, upstream: Start, manifests: str
) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(corefile(manifests).replace("}\n}\n", f"}}\n forward . {up.address}\n}}\n"))
    expected = (
        ("web" + N, "A", ["10.96.1.5"]), ("db-0.db" + N, "A", ["10.1.0.1"]), ("web" + N, "TXT", "NODATA"),
        ("nope" + N, "A", "NXDOMAIN"), ("nope.cluster.local.", "A", "NXDOMAIN"),
        ("5.1.96.10.in-addr.arpa.", "PTR", ["web" + N]), ("9.9.9.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
    )  # fmt: skip
    for rdclass in ("ANY", "IN", "ANY"):  # what one class is told is not kept for another
        for name, rtype, found in expected:
            reply = server.ask(name, rtype, rdclass=rdclass)
            assert (data(reply) if reply.answer else code(reply)) == found and "AA" in flags(reply)
    assert code(server.ask("web" + N, rdclass="CH")) == "REFUSED"
    assert not up.queries
    assert data(server.ask("www.example.org.", rdclass="ANY")) == ["192.0.2.1"]


def test_ttl_is_that_of_the_corefile(serve: Serve, manifests: str) -> None:
    assert serve(corefile(manifests)).ask("web" + N).answer[0].ttl == 5
    assert serve(corefile(manifests, "ttl 0")).ask("web" + N).answer[0].ttl == 0
    long = serve(corefile(manifests, "ttl 3600"))
    assert long.ask("web" + N).answer[0].ttl == 3600
    assert long.ask("nope" + N).authority[0].ttl == 300


def test_several_zones_serve_the_same_cluster(serve: Serve, manifests: str) -> None:
    server = serve(corefile(manifests, zones="cluster.local example.org in-addr.arpa"))
    assert data(server.ask("web.n1.svc.example.org.")) == ["10.96.1.5"]
    assert data(server.ask("_http._tcp.web.n1.svc.example.org.", "SRV")) == ["0 50 80 web.n1.svc.example.org."]
    assert data(server.ask("5.1.96.10.in-addr.arpa.", "PTR")) == ["web" + N]


def test_the_services_that_select_this_server_are_its_name_servers(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "dns.yaml"
    path.write_text(yaml.safe_dump_all([
        service("kube-system/kube-dns", "10.96.0.10", ports=(("dns", "UDP", 53),)),
        endpointslice("kube-system/kube-dns-1", "kube-dns", endpoint("127.0.0.1"), ports=(("dns", "UDP", 53),)),
    ]))  # fmt: skip
    reply = serve(corefile(f"manifests {path}")).ask("cluster.local.", "NS")
    assert data(reply) == ["kube-dns.kube-system.svc.cluster.local."]
    assert additional(reply) == ["kube-dns.kube-system.svc.cluster.local. A 10.96.0.10"]
