"""doctor: each fault planted in a cluster, and what is said of it; a cluster that is well; and an API that says no."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kdns.cli import cluster, doctor, serverneeds, statuspages
from kdns.cli.clusterstate import State
from kdns.cli.corefiles import Source
from kdns.cli.finding import Finding
from kdns.kube.access import ApiConfig
from kdns.testing import ApiServer, answer, free_port, soa
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.cli.test_commands import kdns
from tests.cli.test_tools import config_map, kubeconfig
from tests.fixtures import Serve, Start

GOOD = ".:53 {\n errors\n kubernetes cluster.local\n forward . 192.0.2.53\n loop\n}\n"
TENANTS = GOOD.replace(" forward", " tenants {\n isolate\n from networkpolicy\n unknown deny\n }\n forward")
PORTS = (("dns", "UDP", 53), ("dns-tcp", "TCP", 53))
DNS = {"k8s-app": "kube-dns"}


def server(name: str, node: str = "n1", ready: bool = True, **status: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "kube-system", "labels": DNS}
    spec = {
        "nodeName": node,
        "dnsPolicy": "Default",
        "serviceAccountName": "coredns",
        "containers": [{"image": "coredns:1.12.1"}],
    }
    conditions = [{"type": "Ready", "status": str(ready), "message": "" if ready else "containers with unready status"}]
    return {
        "kind": "Pod",
        "metadata": meta,
        "spec": spec,
        "status": {"podIP": "10.244.0.2", "conditions": conditions, **status},
    }


def client(**spec: Any) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": "cart", "namespace": "shop", "labels": {"app": "cart"}},
        "spec": spec,
        "status": {},
    }


def policy(key: str, selector: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    ns, _, name = key.partition("/")
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": ns},
        "spec": {"podSelector": selector or {}, **spec},
    }


def kube_dns(**spec: Any) -> dict[str, Any]:
    return service("kube-system/kube-dns", "10.96.0.10", ports=PORTS, labels=DNS, **{"selector": DNS, **spec})


def well() -> list[dict[str, Any]]:
    return [
        namespace("kube-system"), namespace("shop"), kube_dns(), server("coredns-a", "n1"), server("coredns-b", "n2"),
        endpointslice("kube-system/kube-dns-1", "kube-dns", endpoint("10.244.0.2"), endpoint("10.244.0.3")),
        config_map("coredns", Corefile=GOOD), client(),
    ]  # fmt: skip


def replaced(*objects: dict[str, Any], without: tuple[str, ...] = ()) -> Callable[[ApiServer], None]:
    def plant(api: ApiServer) -> None:
        api.put(*objects)
        for each in without:
            kind, _, key = each.partition(" ")
            api.delete(kind, key)

    return plant


EGRESS = {"policyTypes": ["Egress"]}
TO_DNS = {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]}
PORT_53 = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
OOM = {"containerStatuses": [{"restartCount": 2, "lastState": {"terminated": {"reason": "OOMKilled"}}}]}
CRASH = {
    "containerStatuses": [
        {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}, "restartCount": 9}
    ]
}
NODE_LOCAL = {"kind": "DaemonSet", "metadata": {"name": "node-local-dns", "namespace": "kube-system"},
              "status": {"desiredNumberScheduled": 3, "numberReady": 2}}  # fmt: skip


@pytest.mark.parametrize(("plant", "words", "level", "said"), [
    (replaced(without=("Service kube-system/kube-dns",)), [], "error", "Service: no Service of the cluster's DNS in "
        "kube-system"),
    (replaced(service("kube-system/kube-dns", "10.96.0.10", ports=PORTS[:1], labels=DNS)), [],
        "error", "kube-dns has no port 53/TCP"),
    (replaced(service("kube-system/kube-dns", ports=PORTS, labels=DNS, selector=DNS)), [],
        "error", "kube-dns has no cluster address"),
    (replaced(without=("Pod kube-system/coredns-a", "Pod kube-system/coredns-b")), [],
        "error", "Pods: no DNS Pod runs in kube-system"),
    (replaced(without=("Pod kube-system/coredns-b",)), [], "warning", "Pods: there is one DNS Pod"),
    (replaced(namespace("com")), [], "warning", "names: there is a namespace com, as the top-level domain"),
    (replaced(server("coredns-b", "n1")), [], "warning", "all 2 DNS Pods are on the node n1"),
    (replaced(server("coredns-b", "n2", False, **CRASH)), [],
        "warning", "coredns-b is not ready: CrashLoopBackOff back-off 5m0s"),
    (replaced(server("coredns-a", "n1", False), server("coredns-b", "n2", False)), [],
        "error", "coredns-a is not ready: containers with unready"),
    (replaced(server("coredns-b", "n2", True, **OOM)), [], "warning", "coredns-b was killed for memory"),
    (replaced(server("coredns-b", "n2", True, **CRASH)), [], "warning", "coredns-b restarted 9 times"),
    (replaced({**server("coredns-b", "n2"),
        "spec": {**server("b")["spec"], "nodeName": "n2", "containers": [{"image": "kdns:0.1.0"}]}}), [],
        "warning", "versions: DNS Pods run 2 images: coredns:1.12.1, kdns:0.1.0"),
    (replaced({**server("coredns-b", "n2"), "spec": {"dnsPolicy": "ClusterFirst"}}), [],
        "error", "loops: coredns-b has dnsPolicy ClusterFirst"),
    (replaced(endpointslice("kube-system/kube-dns-1", "kube-dns", endpoint("10.244.0.2", ready=False))), [],
        "error", "kube-dns has no ready endpoint"),
    (replaced(without=("ConfigMap kube-system/coredns",)), [], "error", "no ConfigMap in kube-system has a key "
        "Corefile"),
    (replaced(config_map("coredns", Corefile=".:53 {\n errrs\n}\n")), [],
        "error", 'kube-system/coredns:2:2: unknown directive "errrs"'),
    (replaced(config_map("coredns", Corefile=".:53 {\n whoami\n loop\n}\n")), [],
        "error", "kube-system/coredns has no plugin kubernetes"),
    (replaced(config_map("coredns", Corefile=".:53 {\n kubernetes cluster.local\n}\n")), [], "warning", "has no plugin "
        "loop"),
    (replaced(config_map("coredns", Corefile=GOOD.replace("192.0.2.53", "127.0.0.53"))), [],
        "error", "forwards to 127.0.0.53, which is the Pod itself"),
    (replaced(config_map("coredns", Corefile=GOOD.replace("192.0.2.53", "10.96.0.10:53"))), [],
        "error", "which is this server's own Service"),
    (replaced(config_map("coredns", Corefile=TENANTS), {**NODE_LOCAL, "status": {}}), [], "warning",
        "NodeLocal DNSCache runs in front of tenants"),
    (lambda api: (api.denied.add(("watch", "networkpolicies")), replaced(config_map("coredns", Corefile=TENANTS))(api)),
        [], "error", "RBAC: the servers may not watch networkpolicies"),
    (lambda api: api.denied.add(("watch", "endpointslices")), [], "error", "RBAC: the servers may not watch "
        "endpointslices"),
    (replaced(policy("shop/deny", **EGRESS)), [],
        "error", "deny in shop: Pods of the namespace shop may not send to port 53/UDP"),
    (replaced(policy("shop/web", **EGRESS, egress=[{**TO_DNS, "ports": [{"port": 443}]}])), [],
        "error", "may not send to port 53/UDP"),
    (replaced(policy("shop/udp", **EGRESS, egress=[{**TO_DNS, "ports": PORT_53[:1]}])), [],
        "warning", "may not send to port 53/TCP"),
    (replaced(policy("shop/here", **EGRESS, egress=[{"to": [{"podSelector": {}}]}])), [], "error", "may not send to "
        "port 53/UDP"),
    (replaced(policy("shop/cart", {"matchLabels": {"app": "cart"}}, **EGRESS)), ["--from", "shop/cart"],
        "error", "shop/cart may not send to port 53/UDP"),
    (replaced(policy("kube-system/in", policyTypes=["Ingress"], ingress=[{"ports": [{"port": 9153}]}])), [],
        "error", "lets no query in to the DNS Pods"),
    (replaced(NODE_LOCAL), [], "error", "NodeLocal: node-local-dns: 2 of 3 are ready"),
    (replaced(client(hostNetwork=True)), ["--from", "shop/cart"],
        "warning", "hostNetwork without dnsPolicy ClusterFirstWithHostNet"),
    (replaced(client(dnsPolicy="None", dnsConfig={"nameservers": ["192.0.2.1"]})), ["--from", "shop/cart"],
        "warning", "it asks 192.0.2.1, not the cluster's DNS"),
    (replaced(client(dnsConfig={"nameservers": ["192.0.2.1"] * 4})), ["--from", "shop/cart"],
        "error", "dnsConfig names 4 servers"),
    (replaced(), ["--from", "shop/gone"], "error", "there is no Pod shop/gone"),
    (lambda api: api.forbidden.add("pods"), [], "warning", "access: pods cannot be read: 403 Forbidden: pods is "
        "forbidden"),
])  # fmt: skip
def test_each_fault_is_found_and_comes_with_what_it_means_and_the_next_command(
    api: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[ApiServer], None],
    words: list[str],
    level: str,
    said: str,
) -> None:
    api.put(*well())
    plant(api)
    code = doctor.main(["--kubeconfig", kubeconfig(tmp_path, here=api.url), "--json", *words])
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [each for each in findings if said in f"{each['part']}: {each['seen']}"]
    assert found["level"] == level and found["next"], found
    assert code == (3 if any(each["level"] == "error" for each in findings) else 0)
    others = [
        each
        for each in findings
        if each["level"] == "error" and each["part"] not in (found["part"], "Pods", "EndpointSlices")
    ]
    assert not others, "one fault was planted"


@pytest.mark.parametrize(("name", "image", "level"), [
    *((name, "coredns:1.12.1", "info") for name in ("pprof", "trace", "etcd", "geoip")),
    ("pprof", "kdns:0.1.0", "error"), ("errrs", "coredns:1.12.1", "error"),
])  # fmt: skip
def test_a_plugin_that_only_coredns_has_was_said_to_stop_coredns(
    name: str, image: str, level: str, api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(
        *well(), config_map("coredns", Corefile=GOOD.replace(" errors", f" errors\n {name}").replace(" loop\n", ""))
    )
    for each in (server("coredns-a", "n1"), server("coredns-b", "n2")):
        each["spec"]["containers"] = [{"image": image}]
        api.put(each)
    assert doctor.main(["--kubeconfig", kubeconfig(tmp_path, here=api.url), "--json"]) == (0 if level == "info" else 3)
    found = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["part"] == "ConfigMap"]
    (told,) = [each for each in found if name in each["seen"]]
    assert told["level"] == level and told["seen"].startswith("kube-system/coredns:3:2: ") and told["next"]
    assert ("kdns would not take this" in told["means"]) == (level == "info")
    # The rest of the Corefile is still looked at.
    assert any("no plugin loop" in each["seen"] for each in found) == (level == "info")


def test_an_error_in_coredns_custom_was_named_by_a_path_that_does_not_exist(
    api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    custom = config_map("coredns-custom", **{"a.server": "x.org {\n frwd . 192.0.2.1\n}\n"})
    scaler = config_map("coredns-autoscaler", linear="{}")
    main = config_map("coredns", Corefile=f"{GOOD}import custom/*.server\n")
    api.put(*well(), main, custom, scaler)
    words = ["--kubeconfig", kubeconfig(tmp_path, here=api.url)]
    assert doctor.main([*words, "--json"]) == 3
    (told,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["part"] == "ConfigMap"]
    assert told["seen"].startswith('kube-system/coredns-custom/a.server:2:2: unknown directive "frwd"')
    assert told["next"] == "kubectl -n kube-system get cm coredns coredns-custom -o yaml | kdns check -"
    # What that command says, which kubectl answers with a list; and what explain says of the cluster's own Corefile.
    done = kdns("check", "-", stdin=yaml.safe_dump({"kind": "List", "items": [main, custom]}))
    assert done.returncode == 1 and "a.server:2:2: error: unknown directive" in done.stderr
    done = kdns("explain", *words, "x.org", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("kube-system/coredns-custom/a.server:2:2: "), done.stderr


ALLOWED = (
    policy("shop/a", **EGRESS, egress=[{}]), policy("shop/b", **EGRESS, egress=[{**TO_DNS, "ports": PORT_53}]),
    policy(
        "shop/c", **EGRESS, egress=[{"ports": [{"port": 1, "endPort": 100, "protocol": p} for p in ("UDP", "TCP")]}]
    ),
    policy("shop/d", **EGRESS, egress=[{"to": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}]),
    policy("shop/e", {"matchLabels": {"app": "other"}}, **EGRESS), policy("shop/f", policyTypes=["Ingress"]),
    policy("shop/g", **EGRESS, egress=[{"to": [{"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["kube-system"]}]},
        "podSelector": {"matchLabels": DNS}}]}]),
)  # fmt: skip


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda each: str(each["metadata"]["name"]))
def test_a_policy_that_lets_queries_through_is_no_finding(
    api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], allowed: dict[str, Any]
) -> None:
    api.put(*well(), allowed)
    code = doctor.main(["--kubeconfig", kubeconfig(tmp_path, here=api.url), "--from", "shop/cart"])
    assert code == 0 and "NetworkPolicy" not in capsys.readouterr().out


TO_API = {"ports": [{"port": 443}]}
OUT_53 = {"ports": PORT_53}


@pytest.mark.parametrize(("to", "egress", "said"), [
    ("192.0.2.53", [TO_API], ["error port 53/UDP of their upstreams 192.0.2.53"]),
    ("192.0.2.53", [OUT_53], ["error port 443 or 6443/TCP of the API"]),
    ("192.0.2.53", [], ["error port 53/UDP of their", "error port 443 or 6443/TCP of the API"]),
    ("192.0.2.53", [TO_API, {"ports": PORT_53[:1]}], ["warning port 53/TCP of their upstreams 192.0.2.53"]),
    ("/etc/resolv.conf", [TO_API], ["error port 53/UDP of their upstreams /etc/resolv.conf"]),
    ("tls://9.9.9.9", [TO_API, OUT_53], ["error port 853/TCP of their upstreams tls://9.9.9.9"]),
    ("9.9.9.9 8.8.8.8", [TO_API, {**OUT_53, "to": [{"ipBlock": {"cidr": "9.0.0.0/8"}}]}],
        ["warning port 53/UDP of their upstreams 8.8.8.8"]),
    ("9.9.9.9", [TO_API, {**OUT_53, "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["9.9.9.0/24"]}}]}],
        ["error port 53/UDP of their upstreams 9.9.9.9"]),
    ("9.9.9.9", [TO_API, {**OUT_53, "to": [{"namespaceSelector": {}}]}], ["error port 53/UDP of their upstreams 9.9"]),
    # What may be let out is not a finding.
    ("192.0.2.53", [{}], []), ("192.0.2.53", [TO_API, OUT_53], []),
    ("192.0.2.53", [{"ports": [{"port": 6443}]}, OUT_53], []),
    ("10.96.7.7", [TO_API, {**OUT_53, "to": [{"namespaceSelector": {}}]}], []),
    ("/etc/resolv.conf", [TO_API, {**OUT_53, "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}], []),
    ("tls://9.9.9.9", [TO_API, {"ports": [{"port": 853}]}], []),
])  # fmt: skip
def test_a_policy_on_the_dns_pods_that_cut_them_off_was_not_seen(
    api: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    to: str,
    egress: list[dict[str, Any]],
    said: list[str],
) -> None:
    api.put(
        *well(),
        policy("kube-system/out", {"matchLabels": DNS}, **EGRESS, egress=egress),
        config_map("coredns", Corefile=GOOD.replace("192.0.2.53", to)),
    )
    code = doctor.main(["--kubeconfig", kubeconfig(tmp_path, here=api.url), "--json"])
    findings = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["part"] == "NetworkPolicy"]
    assert len(findings) == len(said) and all(each["means"] and each["next"] for each in findings), findings
    for told, wanted in zip(findings, said, strict=True):
        level, _, rest = wanted.partition(" ")
        assert told["level"] == level
        assert told["seen"].startswith(f"out in kube-system: the DNS Pods may not send to {rest}"), told
    assert code == (3 if any(each.startswith("error") for each in said) else 0)


def test_the_apis_own_port_is_looked_for_in_a_policy_on_the_dns_pods(
    api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = endpointslice("default/kubernetes", "kubernetes", endpoint("203.0.113.7"), ports=(("https", "TCP", 8443),))
    out = policy("kube-system/out", {"matchLabels": DNS}, **EGRESS, egress=[OUT_53, {"ports": [{"port": 8443}]}])
    words = ["--kubeconfig", kubeconfig(tmp_path, here=api.url)]
    api.put(*well(), out)
    assert doctor.main(words) == 3 and "port 443 or 6443/TCP of the API" in capsys.readouterr().out
    api.put(at)
    assert doctor.main(words) == 0 and "NetworkPolicy" not in capsys.readouterr().out


def test_a_cluster_that_is_well_is_said_to_be(api: ApiServer, tmp_path: Path, upstream: Start) -> None:
    api.put(*well())
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    words = ["doctor", "--kubeconfig", kubeconfig(tmp_path, here=api.url), "--from", "shop/cart"]
    done = kdns(*words)
    assert done.returncode == 0 and done.stdout.endswith("\nnothing is wrong\n") and not done.stderr, done.stdout
    assert (
        "2 DNS Pods run coredns:1.12.1" in done.stdout and "coredns-a could not be asked through the API" in done.stdout
    )
    assert "shop/cart searches shop.svc.cluster.local svc.cluster.local cluster.local; ndots 5" in done.stdout
    done = kdns(*words, "--server", up.address)
    assert done.returncode == 0 and "3 of 3 queries were answered" in done.stdout
    assert sorted(up.protos) == ["tcp", "udp", "udp"]
    assert not any(path.startswith(("PUT", "PATCH")) for path in api.requests)


def test_queries_that_fail_are_findings(api: ApiServer, tmp_path: Path, upstream: Start) -> None:
    api.put(*well())
    up = upstream(lambda query, proto: soa(answer(query)) if b"example" in query.to_wire() else None, tcp=False)
    began = time.monotonic()
    done = kdns("doctor", "--kubeconfig", kubeconfig(tmp_path, here=api.url), "--server", up.address)
    assert done.returncode == 3 and f"{up.address} over udp, kubernetes.default.svc.cluster.local.: " in done.stdout
    assert f"next: kdns query @{up.address} kubernetes.default.svc.cluster.local. -tcp" in done.stdout
    assert time.monotonic() - began < 30


def test_who_may_not_ask_for_the_servers_rights_from_outside_is_told_so(api: ApiServer, tmp_path: Path) -> None:
    api.put(*well())
    api.denied.add(("list", "services"))
    api.forbidden.add("subjectaccessreviews")
    done = kdns("doctor", "--kubeconfig", kubeconfig(tmp_path, here=api.url))
    assert (
        "subjectaccessreviews cannot be read: 403 Forbidden" in done.stdout
        and "may not list services" not in done.stdout
    )


@pytest.mark.parametrize("may_ask", [True, False])
def test_inside_a_pod_its_own_accounts_rights_were_said_to_be_the_servers(
    may_ask: bool, api: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put(*well())
    api.denied.add(("list", "services"))
    if not may_ask:
        api.forbidden.add("subjectaccessreviews")
    monkeypatch.setattr(cluster, "access", lambda values: ApiConfig(api.url, None, "", ""))
    doctor.main(["--server", f"127.0.0.1:{free_port()}", "--json"])
    found = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["part"] == "RBAC"]
    theirs, own = (
        any(f"/{kind}" in path for path in api.requests) for kind in ("subjectaccessr", "selfsubjectaccessr")
    )
    assert theirs and own != may_ask
    assert all(
        "--as=system:serviceaccount:kube-system:coredns" in each["next"] for each in found if "list" in each["seen"]
    )
    said = [(each["level"], each["seen"]) for each in found]
    if may_ask:
        assert said == [("error", "the servers may not list services")]
    else:
        assert said[0] == ("warning", "this account may not list services")
        assert said[1][0] == "info" and "asked for its own rights" in said[1][1]


@pytest.mark.parametrize("flag", ["--namespace", "-n", "--from"])
def test_a_namespace_was_an_unknown_flag_and_is_the_one_of_the_pod_that_asks(
    flag: str, api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {**client(), "status": {"phase": "Running", "podIP": "10.244.1.7"}}
    api.put(*well(), policy("shop/cart", {"matchLabels": {"app": "cart"}}, **EGRESS))
    words = ["--kubeconfig", kubeconfig(tmp_path, here=api.url), flag]
    assert doctor.main([*words, "shop"]) == 0
    said = capsys.readouterr().out
    assert "no running Pod of the namespace shop is known" in said and "Pods of the namespace shop searches" not in said
    assert "a Pod of the namespace shop searches shop.svc.cluster.local svc" in said
    api.put(runs)
    assert doctor.main([*words, "shop"]) == 3
    said = capsys.readouterr().out
    assert "asks as the Pod shop/cart, the first by name; another with --from shop/POD" in said
    assert "shop/cart searches shop.svc" in said and "shop/cart may not send to port 53/UDP" in said
    assert doctor.main([*words, "shpo"]) == 3
    assert "client: there is no namespace shpo" in capsys.readouterr().out


def workers(words: str, limit: str, image: str = "kdns:0.1.0") -> list[Finding]:
    pod = server("coredns-a")
    pod["spec"]["containers"] = [{"image": image, "resources": {"limits": {"memory": limit}}}]
    text = GOOD.replace(" loop", f" loop\n multisocket {words}")
    return list(serverneeds.findings(State("kube-system", corefiles=[Source("it", text, {})], pods=[pod])))


@pytest.mark.parametrize(("words", "limit"), [("3", "170Mi"), ("8", "268435456"), ("8", "0.3Gi"), ("", "4Gi")])
def test_a_memory_limit_that_is_too_small_for_the_workers_is_a_warning(words: str, limit: str) -> None:
    (told,) = workers(words, limit)
    assert told.level == "warning" and f"multisocket {words}".strip() in told.seen and "memory limit of" in told.seen
    assert not workers(words, limit, "coredns/coredns:1.14")


@pytest.mark.parametrize(("words", "limit"), [("1", "70Mi"), ("2", "170Mi"), ("8", "400M"), ("8", ""), ("8", "x"),
    ("nonsense", "170Mi"), ("8", "1Gi")])  # fmt: skip
def test_a_memory_limit_that_fits_the_workers_is_no_finding(words: str, limit: str) -> None:
    assert not workers(words, limit)


STATUS = GOOD.replace(" forward", " status 0.0.0.0:8053\n forward")


def test_the_workloads_that_ask_most_for_names_that_do_not_exist_are_named_by_the_status_page(
    api: ApiServer, tmp_path: Path, serve: Serve
) -> None:
    asking = {**client(), "metadata": {"name": "cart-7d9f8b6c5d-x2k4p", "namespace": "shop"}}
    (tmp_path / "pods.yaml").write_text(
        yaml.safe_dump_all([namespace("shop"), {**asking, "status": {"podIP": "127.0.0.1", "phase": "Running"}}])
    )
    port = free_port()
    running = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n status 127.0.0.1:{port}\n kubernetes cluster.local {{\n"
        f" manifests {tmp_path / 'pods.yaml'}\n pods verified\n }}\n}}"
    )
    for number in range(120):
        running.ask(f"x{number}.shop.svc.cluster.local.")
    api.put(*well(), config_map("coredns", Corefile=STATUS))
    words = ["doctor", "--kubeconfig", kubeconfig(tmp_path, here=api.url), "--json"]
    api.pages["kube-system/coredns-a:8053"] = api.pages["kube-system/coredns-b:8053"] = f"http://127.0.0.1:{port}"

    def found() -> list[dict[str, str]]:
        done = kdns(*words)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [each for each in json.loads(done.stdout)["findings"] if each["part"] == "waste"]

    (told,) = found()
    assert told["level"] == "info" and told["seen"] == "shop/cart asked for 240 names that do not exist, lately"
    assert told["next"].startswith("kdns doctor --from shop/cart-...")
    api.pages["kube-system/coredns-a:8053"] += "/nowhere"
    (told,) = found()
    assert "shop/cart asked for 120 names" in told["seen"]
    api.pages.clear()
    (told,) = found()
    assert told["seen"].startswith("the status page of coredns-a cannot be read: 503 ")


def test_a_status_page_that_only_its_own_pod_can_reach_is_not_asked_for(api: ApiServer, tmp_path: Path) -> None:
    api.put(*well(), config_map("coredns", Corefile=STATUS.replace("0.0.0.0", "127.0.0.1")))
    done = kdns("doctor", "--kubeconfig", kubeconfig(tmp_path, here=api.url))
    assert done.returncode == 0 and "waste" not in done.stdout
    assert not any("/proxy/" in path for path in api.requests)


@pytest.mark.parametrize("said", ["null", "[]", "{", '{"wasted": 5}', '{"wasted": [[5, "x"]]}', '{"wasted": [["a"]]}'])
def test_a_page_that_is_no_status_page_is_one_finding(said: str, api: ApiServer, tmp_path: Path) -> None:
    api.put(*well(), config_map("coredns", Corefile=STATUS))
    state = State("kube-system", corefiles=[Source("it", STATUS, {})], pods=[server("coredns-a")])

    class Says:
        async def get(self, path: str) -> object:
            assert path == "/api/v1/namespaces/kube-system/pods/coredns-a:8053/proxy/status.json"
            return msgspec.json.decode(said)

    asyncio.run(statuspages.read(state, Says()))  # type: ignore[arg-type]
    (told,) = statuspages.findings(state)
    assert told.seen.startswith("the status page of coredns-a cannot be read: ") and told.seen.isprintable()


@pytest.mark.parametrize(("words", "code", "said"), [
    (["x"], 2, 'takes no arguments, found "x"'), (["--from", "shop/"], 2, "takes NAMESPACE or NAMESPACE/POD"),
    (["--nope"], 2, "not defined"),
    (["--server", "a:b"], 2, "a:b"), (["--zone", "a..b"], 2, "label"),
    (["--kubeconfig", "/nowhere"], 1, "kubeconfig /nowhere: no such file"),
    (["--kubeconfig", "/dev/null"], 1, "the cluster cannot be asked: "),
])  # fmt: skip
def test_what_cannot_be_is_one_line(words: list[str], code: int, said: str) -> None:
    done = kdns("doctor", *words)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_api_that_is_away_or_says_no_to_all_is_one_line(api: ApiServer, tmp_path: Path) -> None:
    api.put(*well())
    path = kubeconfig(tmp_path, gone=f"http://127.0.0.1:{free_port()}", here=api.url)
    done = kdns("doctor", "--kubeconfig", path)
    assert (
        done.returncode == 1
        and done.stderr.startswith("the cluster cannot be asked: ")
        and done.stderr.count("\n") == 1
    )
    api.fail += [401]
    done = kdns("doctor", "--kubeconfig", path, "--context", "here")
    assert done.returncode == 1 and "401 Unauthorized" in done.stderr and done.stderr.count("\n") == 1
    api.forbidden |= set(api.objects) | {"subjectaccessreviews"}
    done = kdns("doctor", "--kubeconfig", path, "--context", "here")
    assert done.returncode == 0 and done.stdout.count("cannot be read: 403") == 8, done.stdout


def test_the_rights_that_the_troubleshooting_page_gives_doctor_are_those_it_uses(
    api: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "troubleshoot.md").read_text()
    objects = list(yaml.safe_load_all(page.partition("```yaml\n")[2].partition("```")[0]))
    given = {
        (group, resource, verb, each["metadata"].get("namespace", ""))
        for each in objects
        for rule in each.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    for each in objects[3:]:
        assert each["subjects"] == [{"kind": "ServiceAccount", **objects[0]["metadata"]}]
    api.put(*well(), config_map("coredns", Corefile=STATUS))
    monkeypatch.setattr(cluster, "access", lambda values: ApiConfig(api.url, None, "", ""))
    for place in ("shop", "shop/cart"):
        doctor.main(["--server", f"127.0.0.1:{free_port()}", "--from", place])
    assert "cannot be read: 403" not in capsys.readouterr().out
    used = set()
    for path in api.requests:
        words = path.partition("?")[0].strip("/").split("/")
        if words == ["version"]:
            continue  # whoever has an account may ask for it: the ClusterRole system:public-info-viewer
        group = "" if words[0] == "api" else words[1]
        rest = words[2 if words[0] == "api" else 3 :]
        if "proxy" in rest:
            used.add(("", "pods/proxy", "get", rest[1]))
        else:
            verb = "create" if group == "authorization.k8s.io" else "list"
            used.add((group, rest[-1], verb, "kube-system" if rest[-1] == "configmaps" else ""))
    assert used == given
