"""kdns and CoreDNS side by side: the same Corefile, the same cluster, the same questions; each difference is one that
docs/differences.md lists.

Needs `coredns` on PATH (`go install github.com/coredns/coredns@v1.15.0`); without it nothing here runs, and nothing
depends on it.
"""

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dns.flags
import dns.message
import dns.rcode
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kdns.testing import ApiServer, answer, free_port, soa
from kdns.testing.objects import endpoint, endpointslice, namespace, pod, service
from tests.fixtures import Start

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")
COMMANDS = (["coredns"], [sys.executable, "-m", "kdns"])
TYPES = ("A", "AAAA", "SRV", "PTR", "TXT", "SOA", "NS", "MX", "CNAME")


class Reply(NamedTuple):
    """What of a reply is compared."""

    code: str
    flags: str
    answer: tuple[str, ...]
    authority: tuple[str, ...]
    additional: tuple[str, ...]


class Peer:
    """One of the two servers. `{port}` and `{metrics}` in the Corefile are free ports."""

    def __init__(self, command: list[str], corefile: str, folder: Path) -> None:
        self.port, self.metrics = free_port(), free_port()
        path = folder / f"Corefile.{self.port}"
        path.write_text(
            corefile.replace("{port}", str(self.port))
            .replace("{metrics}", str(self.metrics))
            .replace("HEALTH", str(free_port()))
        )
        self.out = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        self.process = subprocess.Popen([*command, "-conf", str(path)], stdout=self.out, stderr=subprocess.STDOUT)
        end = time.monotonic() + 20
        while "linux/" not in self.log() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    def log(self) -> str:
        self.out.flush()
        return os.pread(self.out.fileno(), 1 << 24, 0).decode()

    def ask(self, name: str, rtype: str) -> Reply:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(("127.0.0.1", self.port))
            client.send(dns.message.make_query(name, rtype, id=77).to_wire())
            reply = dns.message.from_wire(client.recv(4096))
        sections = [
            tuple(sorted(_plain(line) for rrset in section for line in rrset.to_text().splitlines()))
            for section in (reply.answer, reply.authority, reply.additional)
        ]
        return Reply(dns.rcode.to_text(reply.rcode()), dns.flags.to_text(reply.flags), *sections)

    def scrape(self) -> str:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=5)) as connection:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()


def _plain(line: str) -> str:
    """A record without what changes from run to run: SOA serials and the client's port."""
    return re.sub(r" SRV 0 0 \d+ ", " SRV 0 0 P ", re.sub(r" \d{10} ", " SERIAL ", line)).lower()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Callable[[str], tuple[Peer, Peer]]]:
    """Starts CoreDNS and kdns with one Corefile."""
    made: list[Peer] = []

    def start(corefile: str) -> tuple[Peer, Peer]:
        pair = [Peer(command, corefile, tmp_path) for command in COMMANDS]
        made.extend(pair)
        return pair[0], pair[1]

    yield start
    for peer in made:
        peer.close()


def zones(query: dns.message.Message, proto: str) -> dns.message.Message:
    """The upstream's world."""
    name, kind = query.question[0].name.to_text().lower(), query.question[0].rdtype
    known = {
        "www.example.org.": ("A 192.0.2.1", "A 192.0.2.2"), "mail.example.org.": ("A 192.0.2.25",),
        "mail.v.example.org.": ("A 192.0.2.26",),
        "abc.internal.corp.": ("A 10.1.1.1",), "a.us-west-1.example.org.": ("A 192.0.2.31",),
    }  # fmt: skip
    if name in known and kind == 1:
        return answer(query, *known[name], ttl=600)
    if name == "x.internal.corp.":
        return answer(query, "CNAME abc.internal.corp.", ttl=50)
    reply = soa(answer(query), zone="org.")
    if name == "odd.example.org." and kind == 28:
        return reply  # and its A does not exist: an upstream of two minds
    reply.set_rcode(0 if name in known else 3)
    return reply


# Names of the cluster.


@pytest.fixture
def cluster(api: ApiServer) -> ApiServer:
    api.put(
        namespace("shop"), namespace("data"), namespace("empty"),
        service("shop/web", "10.96.1.5", ports=(("http", "TCP", 80), ("dns", "UDP", 53))),
        service("shop/dual", "10.96.1.6", "fd00::6"),
        service("shop/noport", "10.96.1.7", ports=()), service("shop/idle", ports=(("x", "TCP", 1),)),
        service("data/db", ports=(("pg", "TCP", 5432),)),
        service("data/pub", ports=(("pg", "TCP", 5432),), publishNotReadyAddresses=True),
        service("shop/ext", external="www.example.org"), pod("shop/p1", "10.244.1.7"),
        pod("shop/p2", "10.244.1.8", "fd00::8"),
        endpointslice("shop/web-1", "web", endpoint("10.244.1.7", pod="web-1"),
            ports=(("http", "TCP", 8080), ("dns", "UDP", 5353))),
        endpointslice("data/db-1", "db", endpoint("10.244.2.7", host="db-0"), endpoint("10.244.2.9", pod="nohost"),
            ports=(("pg", "TCP", 5432),)),
        endpointslice("data/db-2", "db", endpoint("fd00::2:7", host="db-0"), ports=(("pg", "TCP", 5432),)),
        endpointslice("data/pub-1", "pub", endpoint("10.244.4.7", host="a", ready=False), ports=(("pg", "TCP", 5432),)),
    )  # fmt: skip
    return api


def names() -> list[str]:
    out = []
    for each in (
        "web.shop",
        "dual.shop",
        "noport.shop",
        "idle.shop",
        "db.data",
        "pub.data",
        "ext.shop",
        "nope.shop",
        "web.nope",
    ):
        base = f"{each}.svc.cluster.local."
        out += [
            base,
            f"_tcp.{base}",
            f"_http._tcp.{base}",
            f"_pg._tcp.{base}",
            f"http.tcp.{base}",
            f"*.{base}",
            f"x.{base}",
            f"a.b.c.{base}",
        ]
    out += [
        f"{label}.db.data.svc.cluster.local."
        for label in ("db-0", "10-244-2-9", "10-244-2-7", "nohost", "DB-0", "_pg._tcp.db-0")
    ]
    for space in ("shop", "empty", "nope"):
        out += [
            f"{space}.svc.cluster.local.",
            f"{space}.pod.cluster.local.",
            f"{space}.cluster.local.",
            f"x.{space}.pod.cluster.local.",
        ]
        out += [
            f"{label}.{space}.pod.cluster.local."
            for label in ("10-244-1-7", "10-244-1-8", "fd00--8", "10-1-2-3", "fd00--1", "x.10-244-1-7", "1-1-1")
        ]
    out += [
        "cluster.local.",
        "svc.cluster.local.",
        "pod.cluster.local.",
        "dns-version.cluster.local.",
        "dns.cluster.local.",
        "*.cluster.local.",
    ]
    out += [
        f"{octets}.in-addr.arpa."
        for octets in ("5.1.96.10", "7.1.244.10", "7.2.244.10", "1.1.96.10", "1.96.10", "x.5.1.96.10", "8.8.8.8")
    ]
    return out


def listed(name: str, rtype: str, theirs: Reply, ours: Reply) -> str:
    """The line of docs/differences.md that a difference falls under; nothing where it falls under none."""
    if rtype == "SOA" and theirs.code == "NOERROR" and not theirs.answer and ours.code == "NXDOMAIN":
        return "a name that does not exist is never NODATA"
    if theirs.code == "NXDOMAIN" and ours.code == "NOERROR" and not ours.answer:
        return "a name that exists is never NXDOMAIN"
    if (".pod." in name and rtype == "SRV") or name.startswith("x.10-"):
        return "labels before a Pod's address name do not exist"
    if ours.answer and ours.answer[0].startswith("ext.shop.") and theirs.answer[:1] == ours.answer[:1]:
        return "an ExternalName keeps its CNAME, with what its target comes to"
    if name.startswith("fd00--8.") and theirs.code == "NXDOMAIN" and ours.answer == (f"{name} 5 in aaaa fd00::8",):
        return "a Pod's second address has names too"
    if name == "cluster.local." and rtype == "NS":
        return "the apex has its name server"
    return ""


@pytest.mark.parametrize("options", ["pods insecure\n fallthrough in-addr.arpa ip6.arpa\n ttl 30", "pods verified\n "
    "endpoint_pod_names",
    "pods disabled\n namespaces shop", "noendpoints"])  # fmt: skip
def test_names_of_a_cluster_come_to_what_coredns_says_or_what_is_listed(
    both: Callable[[str], tuple[Peer, Peer]], cluster: ApiServer, upstream: Start, options: str
) -> None:
    up = upstream(zones)
    theirs, ours = both(
        f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n endpoint "
        f"{cluster.url}\n {options}\n }}\n"
        f" forward . {up.address}\n}}\n"
    )
    end = time.monotonic() + 20
    while (
        any(peer.ask("web.shop.svc.cluster.local.", "A").code != "NOERROR" for peer in (theirs, ours))
        and time.monotonic() < end
    ):
        time.sleep(0.2)
    odd = []
    for name in names():
        for rtype in TYPES:
            a, b = theirs.ask(name, rtype), ours.ask(name, rtype)
            if a != b and not listed(name, rtype, a, b):
                odd.append((name, rtype, a, b))
    assert not odd, "\n".join(map(str, odd[:10]))


# Plugins that change questions and answers.

RULES: dict[str, tuple[str, ...]] = {
    "rewrite name foo.org www.example.org": ("foo.org", "x.foo.org"),
    "rewrite name suffix .corp.lab .internal.corp": ("abc.corp.lab", "x.corp.lab", "corp.lab", "nope.corp.lab"),
    "rewrite name suffix .corp.lab .internal.corp answer auto": ("abc.corp.lab", "x.corp.lab", "nope.corp.lab"),
    "rewrite name substring coredns example": ("www.coredns.org",),
    "rewrite name regex (.*)-(us-west-1)\\.lab {1}.{2}.example.org": ("a-us-west-1.lab", "b-us-west-1.lab"),
    "rewrite stop {\nname regex (.*)\\.corp\\.lab {1}.internal.corp\nanswer name (.*)\\.internal\\.corp "
    "{1}.corp.lab\n}": (
        "abc.corp.lab", "x.corp.lab",
    ),
    "rewrite name regex ^(.*)[.]x[.]org[.]?$ {1}.example.org answer auto": ("www.x.org", "nope.x.org"),
    "rewrite continue name suffix .lab .internal.corp\nrewrite stop type MX A": ("abc.lab",),
    "rewrite ttl exact www.example.org 30-100": ("www.example.org", "mail.example.org"),
    "rewrite ttl regex .*example.org -50": ("www.example.org", "mail.example.org"),
    "rewrite type TXT A": ("www.example.org",),
    "rewrite rcode suffix example.org NXDOMAIN NOERROR": ("nope.example.org",),
    "template IN A lab {\nmatch (?P<a>[0-9]+)-(?P<b>[0-9]+)[.]ip[.]lab[.]$\n"
    'answer "{{ .Name }} 60 IN A 10.0.{{ .Group.a }}.{{ .Group.b }}"\nfallthrough\n}': ("1-2.ip.lab", "y.lab"),
    'template IN TXT lab {\nanswer "{{ .Name }} 60 IN TXT {{ .Type }}-{{ .Class }}-{{ .Zone }}"\n}': ("x.lab",),
    'template IN ANY lab {\nrcode REFUSED\nederror 5 hi\nadditional "a.lab. 1 A 192.0.2.3"\n}': ("x.lab",),
    'template IN ANY lab {\nrcode NXDOMAIN\nauthority "lab. 60 IN SOA a.lab. b.lab. 1 60 60 60 60"\n}': ("x.lab",
        "lab"),
    "metadata\nview v {\nexpr true\n}\nrewrite name regex ^([^.]+)[.]lab[.]$ {1}.{view/name}.example.org metadata "
    "answer auto": (
        "mail.lab", "a.b.lab",
    ),
    "metadata\nrewrite name regex ^([^.]+)[.]lab[.]$ {1}.{view/name}.example.org metadata": ("mail.lab",),
    "dns64 {\nallow_ipv4\n}": ("www.example.org", "nope.example.org", "odd.example.org"),
    "dns64 {\nallow_ipv4\nprefix 2001:db8:1::/48\n}": ("mail.example.org",),
    "any": ("www.example.org",),
    "minimal": ("www.example.org",),
    "loadbalance": ("www.example.org",),
    "bufsize 1100": ("www.example.org",),
    "hosts {\n10.0.0.1 a.lab b.lab\n10.0.0.1 c.lab\n::1 e.lab\nttl 5\nfallthrough\n}": ("a.lab", "e.lab", "z.lab",
        "1.0.0.10.in-addr.arpa"),
}  # fmt: skip


SINCE_1_15 = "metadata\n"  # how the rules begin that CoreDNS knows since 1.15: {view/name} in `rewrite name`


def test_plugins_change_questions_and_answers_alike(both: Callable[[str], tuple[Peer, Peer]], upstream: Start) -> None:
    up = upstream(zones)
    for rule, asked in RULES.items():
        theirs, ours = both(f".:{{port}} {{\n bind 127.0.0.1\n {rule}\n forward . {up.address}\n}}\n")
        if theirs.process.poll() is not None:  # a version that does not know this rule yet
            assert rule.startswith(SINCE_1_15), theirs.log()
            continue
        for name in asked:
            for rtype in ("A", "AAAA", "MX", "TXT", "PTR", "ANY"):
                a, b = theirs.ask(name, rtype), ours.ask(name, rtype)
                if rule.startswith("dns64") and rtype == "AAAA":
                    b = b._replace(flags=a.flags)  # ours have RA
                assert a == b, (rule, name, rtype)
        theirs.close()
        ours.close()


# What operators see.

OPERATED = """.:{port} {
    bind 127.0.0.1
    errors
    log . "{type} {class} {name} {proto} {size} {>do} {>bufsize} {rcode} {>rflags} {>opcode}"
    prometheus 127.0.0.1:{metrics}
    acl blocked.org {
        block
    }
    hosts HOSTS h.lab {
        fallthrough
    }
    template IN A tmpl.lab {
        answer "{{ .Name }} 60 IN A 192.0.2.44"
    }
    kubernetes cluster.local in-addr.arpa {
        endpoint API
        pods insecure
    }
    forward . UP
    cache 30
    reload 30s
    health 127.0.0.1:HEALTH
    local
}
"""
ASKED = (
    ("web.shop.svc.cluster.local.", "A"), ("nope.shop.svc.cluster.local.", "A"), ("www.example.org.", "A"),
    ("www.example.org.", "A"),
    ("nope.example.org.", "AAAA"), ("x.tmpl.lab.", "A"), ("h.lab.", "A"), ("x.blocked.org.", "A"),
    ("a.org.", "TYPE65280"),
    ("cluster.local.", "AXFR"), ("localhost.", "A"),
)  # fmt: skip


def test_metrics_and_log_lines_are_the_same(
    both: Callable[[str], tuple[Peer, Peer]], cluster: ApiServer, upstream: Start, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("192.0.2.9 h.lab\n")
    up = upstream(zones)
    text = OPERATED.replace("HOSTS", str(tmp_path / "hosts")).replace("API", cluster.url).replace("UP", up.address)
    theirs, ours = both(text)
    time.sleep(2)
    for name, rtype in ASKED:
        assert theirs.ask(name, rtype).code == ours.ask(name, rtype).code, name
    time.sleep(0.5)
    queries = [[line for line in peer.log().splitlines() if " IN " in line] for peer in (theirs, ours)]
    # The cache clears AA: docs/differences.md says so.
    assert [line.replace(",aa", "") for line in queries[0]] == [line.replace(",aa", "") for line in queries[1]]
    mark = re.compile(r"127\.0\.0\.1:(\d+)")
    families: list[dict[str, Any]] = []
    counters: list[dict[Any, float]] = []
    for peer in (theirs, ours):
        shapes, values = {}, {}
        for family in text_string_to_metric_families(peer.scrape()):
            labels = {tuple(sorted(set(sample.labels) - {"le"})) for sample in family.samples}
            bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
            shapes[family.name] = (family.type, labels, bounds)
            if family.name in (
                "coredns_dns_requests",
                "coredns_dns_responses",
                "coredns_template_matches",
                "coredns_acl_blocked_requests",
            ):
                for sample in family.samples:
                    plain = tuple(sorted((key, mark.sub("P", value)) for key, value in sample.labels.items()))
                    if sample.value and not sample.name.endswith("_created"):
                        values[sample.name, plain] = sample.value
        families.append(shapes)
        counters.append(values)
    for name, shape in families[0].items():
        if not name.startswith("go_"):
            assert families[1].get(name) == shape, name
    assert counters[0] == counters[1]
