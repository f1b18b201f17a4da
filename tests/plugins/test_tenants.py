"""tenants: whose names a client sees, judged by a model beside the server and by a fresh server."""

import asyncio
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.plugin.clients import NOBODY, WAIT, Clients
from kdns.server import build
from kdns.testing import ApiServer, Server, code, data, eventually
from kdns.testing.objects import endpoint, endpointslice, namespace, pod, service
from tests.fixtures import Serve

BASE = (
    namespace("a", team="red"), namespace("b", team="red"), namespace("c", team="blue"), namespace("infra"),
    namespace("default"), pod("a/p", "127.0.1.1"), pod("b/p", "127.0.1.2"), pod("c/p", "127.0.1.3"),
    service("a/web", "10.0.0.1"), service("b/web", "10.0.0.2"), service("c/web", "10.0.0.3"),
    service("infra/log", "10.0.0.4"), service("default/kubernetes", "10.0.0.5"), service("default/other", "10.0.0.6"),
    service("a/alias", external="web.c.svc.cluster.local"), service("a/db"), service("c/db"),
    endpointslice("a/db-1", "db", endpoint("10.1.0.1")), endpointslice("c/db-1", "db", endpoint("10.1.0.1")),
)  # fmt: skip
NODE, A, B, C = "127.0.0.9", "127.0.1.1", "127.0.1.2", "127.0.1.3"


def policy(key: str, *peers: dict[str, Any], some: bool = False, **rule: Any) -> dict[str, Any]:
    """A NetworkPolicy that lets out to these peers; `some`: it is for a part of the Pods."""
    ns, _, name = key.partition("/")
    spec = {"podSelector": {"matchLabels": {"x": "y"}} if some else {}, "policyTypes": ["Egress"]}
    spec["egress"] = [{"to": list(peers), **rule}] if peers or rule else []
    return {"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": name, "namespace": ns}, "spec": spec}  # fmt: skip


def to(**labels: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": labels}}


@pytest.fixture
def start(serve: Serve, tmp_path: Path) -> Callable[..., Server]:
    def make(*options: str, objects: tuple[dict[str, Any], ...] = BASE, more: str = "") -> Server:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump_all(objects))
        lines = "\n ".join(options)
        return serve(
            f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa {{\n manifests {path}\n "
            f"pods insecure\n }}\n tenants cluster.local {{\n {lines}\n }}\n {more}\n}}"
        )

    return make


def ask(server: Server, client: str, name: str, rtype: str = "A", tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, rtype, use_edns=0)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, "127.0.0.1", port=server.port, timeout=5, source=client)


def said(server: Server, client: str, name: str, rtype: str = "A") -> Any:
    reply = ask(server, client, name, rtype)
    return data(reply) if reply.answer else code(reply)


def ede(reply: dns.message.Message) -> list[int]:
    return [int(option.code) for option in reply.options if option.otype == 15]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("client", "name", "rtype", "expected"), [
    (A, "web.a.svc.cluster.local.", "A", ["10.0.0.1"]), (A, "web.b.svc.cluster.local.", "A", ["10.0.0.2"]),
    (A, "web.c.svc.cluster.local.", "A", "NXDOMAIN"), (A, "c.svc.cluster.local.", "A", "NXDOMAIN"),
    (A, "_http._tcp.web.c.svc.cluster.local.", "SRV", "NXDOMAIN"), (A, "x.web.c.svc.cluster.local.", "A", "NXDOMAIN"),
    (A, "1-2-3-4.c.pod.cluster.local.", "A", "NXDOMAIN"), (A, "*.*.svc.cluster.local.", "A", "NXDOMAIN"),
    (A, "3.0.0.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
    (A, "2.0.0.10.in-addr.arpa.", "PTR", ["web.b.svc.cluster.local."]),
    (A, "1.0.1.10.in-addr.arpa.", "PTR", ["10-1-0-1.db.a.svc.cluster.local."]),
    (C, "1.0.1.10.in-addr.arpa.", "PTR", ["10-1-0-1.db.a.svc.cluster.local.", "10-1-0-1.db.c.svc.cluster.local."]),
    (A, "alias.a.svc.cluster.local.", "A", "CNAME"), (A, "log.infra.svc.cluster.local.", "A", ["10.0.0.4"]),
    (C, "web.a.svc.cluster.local.", "A", ["10.0.0.1"]), (C, "web.b.svc.cluster.local.", "A", "NXDOMAIN"),
    (B, "web.c.svc.cluster.local.", "A", "NXDOMAIN"), (A, "kubernetes.default.svc.cluster.local.", "A", ["10.0.0.5"]),
    (A, "default.svc.cluster.local.", "A", "NODATA"), (A, "other.default.svc.cluster.local.", "A", "NXDOMAIN"),
    (A, "5.0.0.10.in-addr.arpa.", "PTR", ["kubernetes.default.svc.cluster.local."]),
    (A, "cluster.local.", "A", "NODATA"), (A, "web.nowhere.svc.cluster.local.", "A", "NXDOMAIN"),
])  # fmt: skip
def test_a_pod_sees_its_own_tenant_and_what_is_shared(
    start: Callable[..., Server], client: str, name: str, rtype: str, expected: Any
) -> None:
    server = start("isolate by team", "share infra", "allow c -> a", "unknown deny")
    for _ in range(4):
        reply = ask(server, client, name, rtype)
        if expected == "CNAME":
            assert code(reply) == "NXDOMAIN" and data(reply) == ["web.c.svc.cluster.local."]
        else:
            assert (data(reply) if reply.answer else code(reply)) == expected


def test_a_hidden_name_is_told_from_one_that_does_not_exist_by_nothing(start: Callable[..., Server]) -> None:
    server = start("isolate", "unknown deny")
    for _ in range(3):
        hidden = ask(server, A, "web.c.svc.cluster.local.")
        missing = ask(server, A, "web.x.svc.cluster.local.")
        assert hidden.to_wire()[12 + 29 :] == missing.to_wire()[12 + 29 :]
        assert hidden.flags == missing.flags and hidden.authority == missing.authority and not ede(hidden)


def test_who_is_no_pod_sees_what_is_written(start: Callable[..., Server]) -> None:
    server = start("isolate", "share infra", "unknown deny", "exempt 127.0.0.8")
    reply = ask(server, NODE, "web.a.svc.cluster.local.")
    assert reply.rcode() == dns.rcode.SERVFAIL and ede(reply) == [18]
    assert said(server, NODE, "log.infra.svc.cluster.local.") == ["10.0.0.4"]
    assert said(server, NODE, "kubernetes.default.svc.cluster.local.") == ["10.0.0.5"]
    assert said(server, "127.0.0.8", "web.a.svc.cluster.local.") == ["10.0.0.1"]
    open_ = start("isolate", "unknown allow")
    assert said(open_, NODE, "web.a.svc.cluster.local.") == ["10.0.0.1"]
    assert said(open_, A, "web.c.svc.cluster.local.") == "NXDOMAIN"


def test_deny_refused_says_no_to_what_exists_and_what_does_not_alike(start: Callable[..., Server]) -> None:
    server = start("isolate", "deny refused", "unknown deny")
    for name in ("web.c.svc.cluster.local.", "web.nowhere.svc.cluster.local."):
        reply = ask(server, A, name)
        assert reply.rcode() == dns.rcode.REFUSED and ede(reply) == [18]


def test_outside_names_are_the_same_for_all(start: Callable[..., Server]) -> None:
    server = start("isolate", "unknown deny", more="whoami")
    assert all(code(ask(server, client, "example.org.")) == "EMPTY" for client in (A, NODE))


def test_egress_policies_say_which_namespaces_a_namespace_sees(start: Callable[..., Server]) -> None:
    dns_only = policy("b/dns", {"namespaceSelector": {}}, ports=[{"port": 53, "protocol": "UDP"}])
    server = start(
        "isolate", "from networkpolicy", "unknown deny",
        objects=(*BASE, policy("a/out", to(team="blue")), dns_only, policy("c/out", to(team="red"), some=True)),
    )  # fmt: skip
    web = {
        c: [said(server, c, f"web.{ns}.svc.cluster.local.") != "NXDOMAIN" for ns in ("a", "b", "c")] for c in (A, B, C)
    }
    assert web == {A: [True, False, True], B: [False, True, False], C: [True, True, True]}


def test_without_isolate_only_namespaces_with_policies_are_bounded(start: Callable[..., Server]) -> None:
    server = start("from networkpolicy", "unknown deny", objects=(*BASE, policy("a/out")))
    assert said(server, A, "web.b.svc.cluster.local.") == "NXDOMAIN"
    assert said(server, B, "web.a.svc.cluster.local.") == ["10.0.0.1"]


def test_a_zone_transfer_is_refused_to_whoever_does_not_see_all(start: Callable[..., Server]) -> None:
    server = start("isolate", "unknown deny", "exempt 127.0.0.8", more="transfer cluster.local {\n to *\n }")
    for client, rcode in ((A, dns.rcode.REFUSED), (NODE, dns.rcode.REFUSED), ("127.0.0.8", dns.rcode.NOERROR)):
        assert ask(server, client, "cluster.local.", "AXFR", tcp=True).rcode() == rcode


def test_names_from_outside_are_hidden_too(start: Callable[..., Server]) -> None:
    objects = [{**each, "spec": {**each["spec"], "externalIPs": ["192.0.2.1"]}} if each["kind"] == "Service" and
        each["metadata"] == service("c/web", "1.1.1.1")["metadata"] else each for each in BASE]  # fmt: skip
    server = start("isolate", "unknown deny", objects=tuple(objects), more="k8s_external ext.org")
    assert said(server, C, "web.c.ext.org.") == ["192.0.2.1"]
    assert said(server, A, "web.c.ext.org.") == said(server, A, "c.ext.org.") == "NXDOMAIN"


def test_a_pod_of_the_nodes_network_is_nobody(start: Callable[..., Server]) -> None:
    host = pod("a/host", "127.0.1.7")
    host["spec"] = {"hostNetwork": True}
    server = start("isolate", "unknown deny", objects=(*BASE, host, pod("b/q", "127.0.1.8"), pod("c/q", "127.0.1.8")))
    for client in ("127.0.1.7", "127.0.1.8"):
        assert said(server, client, "web.a.svc.cluster.local.") == "SERVFAIL"


def test_a_query_waits_for_its_pod_but_not_for_long(serve: Serve, api: ApiServer) -> None:
    api.put(*(each for each in BASE if each["kind"] != "Pod"))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n endpoint {api.url}\n }}\n "
        "tenants {\n isolate\n unknown deny\n }\n}"
    )
    eventually(lambda: said(server, NODE, "kubernetes.default.svc.cluster.local.") == ["10.0.0.5"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((A, 0))
        sock.settimeout(5)
        query = dns.message.make_query("web.a.svc.cluster.local.", "A")
        sock.sendto(query.to_wire(), ("127.0.0.1", server.port))
        api.put(pod("a/p", A))
        sock.recv(4096)  # whichever came first
    eventually(lambda: said(server, A, "web.a.svc.cluster.local.") == ["10.0.0.1"])
    began = time.monotonic()
    assert said(server, "127.0.0.77", "web.a.svc.cluster.local.") == "SERVFAIL"
    assert time.monotonic() - began >= WAIT
    began = time.monotonic()
    assert said(server, "127.0.0.77", "web.a.svc.cluster.local.") == "SERVFAIL"
    assert time.monotonic() - began < WAIT
    api.delete("Pod", "a/p")
    api.put(pod("c/p", A))
    eventually(lambda: said(server, A, "web.a.svc.cluster.local.") == "NXDOMAIN")


def test_an_address_is_waited_for_once_and_resolved_by_the_watch() -> None:
    from kdns.kube import objects
    from kdns.kube.cluster import Cluster

    async def run() -> None:
        now = [0.0]
        clients, cluster = Clients(clock=lambda: now[0]), Cluster()
        clients.follow(cluster)
        assert clients.namespace("10.0.0.1") is None
        pending = clients.wait("10.0.0.1")
        assert pending is not None and clients.wait("10.0.0.1") is pending
        cluster.apply(objects.POD, "a/p", objects.Pod("a", "p", b"\x0a\0\0\1"))
        clients.pods_changed()
        assert pending.done and clients.namespace("10.0.0.1") == clients.namespace("::ffff:10.0.0.1") == "a"
        late = clients.wait("10.0.0.2")
        assert late is not None
        await late
        assert clients.namespace("10.0.0.2") == NOBODY
        now[0] += 61
        assert clients.namespace("10.0.0.2") is None

    asyncio.run(run())


def test_hidden_answers_are_counted_also_when_they_are_repeated(start: Callable[..., Server]) -> None:
    server = start("isolate", "unknown deny")
    for _ in range(5):
        said(server, A, "web.c.svc.cluster.local.")
    slots = REGISTRY["kdns_tenants_hidden_total"].slots
    assert sum(slot[0] for values, slot in slots.items() if f"dns://127.0.0.1:{server.port}" in values) == 5


@pytest.mark.parametrize(("lines", "message"), [
    ("isolate", r"3:1: tenants needs `unknown allow` or `unknown deny`"),
    ("unknown deny", "tenants needs `isolate` or `from networkpolicy`"),
    ("isolate\nunknown maybe", 'expected allow or deny, found "maybe"'),
    ("isolate by\nunknown deny", 'expected "by" and keys of labels'),
    ("isolate by -\nunknown deny", "not a key of a label"),
    ("isolate\nisolate\nunknown deny", "isolate stands twice"),
    ("isolate\nallow a b\nunknown deny", "NAMESPACE -> NAMES"),
    ("isolate\nshare b\nallow a -> b\nunknown deny", "b is shared with all"),
    ("isolate\nallow a -> a\nunknown deny", "a sees itself"),
    ("isolate\nshare A_\nunknown deny", "not a name of a namespace"),
    ("isolate\nexempt 1.2.3\nunknown deny", "expected an address or a network"),
    ("from ingress\nunknown deny", "expected networkpolicy"), ("isolate\nnope\nunknown deny", "unknown property"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(lines: str, message: str) -> None:
    with pytest.raises(CorefileError, match=message):
        build.build(build.read(f".:53 {{\nkubernetes cluster.local\ntenants {{\n{lines}\n}}\n}}", "Corefile"))


@pytest.mark.parametrize(("text", "message"), [
    ("tenants {\nisolate\nunknown deny\n}", "it needs the plugin kubernetes"),
    ("kubernetes cluster.local {\nlabels a=b\nmanifests /\n}\ntenants {\nisolate\nunknown deny\n}", "`labels`"),
    ("kubernetes cluster.local {\nmanifests /\n}\ntenants x.org {\nisolate\nunknown deny\n}", "not a zone of the"),
])  # fmt: skip
def test_what_contradicts_the_block_is_an_error(text: str, message: str) -> None:
    with pytest.raises(CorefileError, match=message):
        build.build(build.read(f".:53 {{\n{text}\n}}", "Corefile")).load()


# A model: who sees what, by brute force.

SPACES = ("a", "b", "c", "d")
PODS = {"a": "127.0.2.1", "b": "127.0.2.2", "c": "127.0.2.3", "d": "127.0.2.4"}


class World:
    """A cluster at random, as plain data."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.teams = dict.fromkeys(SPACES, "")
        self.policies: dict[str, tuple[bool, tuple[str, ...]]] = {}
        self.pods = dict(PODS)
        for _ in range(4):
            self.change()

    def change(self) -> None:
        pick = self.chance
        space = pick.choice(SPACES)
        what = pick.randrange(3)
        if what == 0:
            self.teams[space] = pick.choice(("", "red", "blue"))
        elif what == 1:
            teams = tuple(pick.sample(("red", "blue"), pick.randrange(3)))
            self.policies[space] = (pick.random() < 0.3, teams)
            if pick.random() < 0.4:
                del self.policies[space]
        else:
            other = pick.choice(SPACES)
            self.pods[space], self.pods[other] = self.pods[other], self.pods[space]

    def objects(self) -> list[dict[str, Any]]:
        out = [namespace(s, **({"team": t} if t else {})) for s, t in self.teams.items()]
        out += [service(f"{s}/web", f"10.0.0.{i}") for i, s in enumerate(SPACES, 1)]
        out += [pod(f"{s}/p", address) for s, address in self.pods.items()]
        return out + [
            policy(f"{s}/out", *(to(team=team) for team in teams), some=some)
            for s, (some, teams) in self.policies.items()
        ]

    def sees(self, viewer: str, seen: str, by: bool, policies: bool) -> bool:
        if viewer == seen or seen == "d" or (viewer, seen) == ("a", "b"):
            return True
        bound = self.policies.get(viewer) if policies else None
        if bound is not None and self.teams[seen] in bound[1] and self.teams[seen]:
            return True
        if bound is not None and not bound[0]:
            return False
        return by and bool(self.teams[viewer]) and self.teams[viewer] == self.teams[seen]


@pytest.mark.parametrize("seed", range(6))
def test_who_sees_what_is_what_a_model_and_a_fresh_server_say(serve: Serve, tmp_path: Path, seed: int) -> None:
    by, policies = bool(seed & 1), bool(seed & 2)
    world, path = World(seed), tmp_path / "c.yaml"
    text = (
        f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa {{\n manifests {path}\n ttl 0\n }}\n "
        f"tenants {{\n isolate{' by team' * by}\n share d\n allow a -> b\n {'from networkpolicy' * policies}\n "
        f"unknown deny\n }}\n}}"
    )

    def write() -> None:
        (tmp_path / "new").write_text(yaml.safe_dump_all([*world.objects(), mark(marks)]))
        (tmp_path / "new").replace(path)

    def mark(number: int) -> dict[str, Any]:
        return service("d/mark", f"10.9.0.{number}")

    marks = 1
    write()
    server = serve(text)
    questions = [
        (viewer, seen, name, rtype)
        for viewer in SPACES
        for i, seen in enumerate(SPACES, 1)
        for name, rtype in ((f"web.{seen}.svc.cluster.local.", "A"), (f"{i}.0.0.10.in-addr.arpa.", "PTR"))
    ]
    for _ in range(4):
        with Server(text) as fresh:
            for viewer, seen, name, rtype in world.chance.choices(questions, k=120):
                reply = ask(server, world.pods[viewer], name, rtype)
                assert bool(reply.answer) == world.sees(viewer, seen, by, policies), (viewer, seen, vars(world))
                assert code(reply) == ("NOERROR" if reply.answer else "NXDOMAIN")
                other = ask(fresh, world.pods[viewer], name, rtype)
                assert (reply.answer, code(reply)) == (other.answer, code(other))
        world.change()
        marks += 1
        write()
        _until_marked(server, world.pods["d"], marks)


def _until_marked(server: Server, client: str, number: int) -> None:
    """Waits until a server has read the manifests that hold this mark."""
    eventually(lambda: said(server, client, "mark.d.svc.cluster.local.") == [f"10.9.0.{number}"])


def test_a_namespace_that_only_follows_from_its_objects_keeps_the_labels_of_another_file(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "1.yaml").write_text(yaml.safe_dump_all([*BASE]))
    (tmp_path / "2.yaml").write_text(yaml.safe_dump_all([service("b/more", "10.0.0.9")]))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n manifests {tmp_path}\n }}\n "
        "tenants {\n isolate by team\n unknown deny\n }\n}"
    )
    assert said(server, A, "more.b.svc.cluster.local.") == ["10.0.0.9"]
