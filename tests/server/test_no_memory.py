"""A reply depends on the data and the question, never on what was asked before, by whom, or in which order.

Two servers over one API get the same random questions in opposite orders while Services come, go and change address.
After each round a fresh server judges. All three must say the same, but for the order of records, the SOA's serial and
the TTLs that a cache counts down.
"""

import random
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.SOA
import pytest

from kdns.testing import ApiServer, Server, Upstream, answer, eventually, soa
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve

ROUNDS = 5
QUESTIONS = 220  # a round

KUBEADM = """.:{port} {
    bind 127.0.0.1
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint API
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . UPSTREAM
    cache 30 {
        disable success cluster.local
        disable denial cluster.local
    }
    loop
    loadbalance
}
"""
# All kinds of plugins that change a reply, over a cluster that lets nothing through.
ALONE = """cluster.local in-addr.arpa ip6.arpa {
    bind 127.0.0.1
    nsid replica-1
    minimal
    header {
        response set ra
    }
    loadbalance
    cache
    kubernetes {
        endpoint API
        pods insecure
        ttl 30
        endpoint_pod_names
    }
}
.:{port} {
    bind 127.0.0.1
    rewrite name exact alias.example.org www.example.org
    rewrite type MX A
    bufsize 1100
    cache 60
    family {
        ipv6 auto
    }
    forward . UPSTREAM
}
""".replace("ip6.arpa {", "ip6.arpa:{port} {").replace(
    "cluster.local in-addr.arpa", "cluster.local:{port} in-addr.arpa:{port}"
)
FALLS = """.:{port} {
    bind 127.0.0.1
    metadata
    hosts /nowhere {
        192.0.2.8 special.n1.svc.cluster.local www.example.org
        fallthrough
    }
    kubernetes cluster.local 10.in-addr.arpa {
        endpoint API
        ttl 30
        fallthrough
        ignore empty_service
    }
    cache 30
    forward . UPSTREAM
    loadbalance
}
"""
WORDS = [
    "dns",
    "ns",
    "hostmaster",
    "svc",
    "pod",
    "_tcp",
    "_udp",
    "_http",
    "http",
    "tcp",
    "web",
    "db",
    "db-0",
    "db-1",
    "n1",
    "n2",
    "n3",
    "shop",
    "www",
    "example",
    "alias",
    "ab",
    "zz",
    "nope",
    "*",
    "10-96-1-5",
    "10-244-1-5",
    "10-244-1-6",
    "fd00--5",
    "special",
    "dns-version",
    "any",
    "all",
    "10",
    "96",
    "1",
    "5",
    "6",
    "244",
    "localhost",
    "com",
    "org",
    "a",
    "b",
]
SUFFIXES = [
    "cluster.local.",
    "svc.cluster.local.",
    "pod.cluster.local.",
    "n1.svc.cluster.local.",
    "n1.svc.cluster.local.",
    "n2.svc.cluster.local.",
    "web.n1.svc.cluster.local.",
    "db.n1.svc.cluster.local.",
    "db.n2.svc.cluster.local.",
    "n1.pod.cluster.local.",
    "dns.cluster.local.",
    "1.96.10.in-addr.arpa.",
    "96.10.in-addr.arpa.",
    "1.244.10.in-addr.arpa.",
    "10.in-addr.arpa.",
    "in-addr.arpa.",
    "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
    "0.0.d.f.ip6.arpa.",
    "example.org.",
    "org.",
    ".",
]
TYPES = [
    "A",
    "A",
    "A",
    "A",
    "AAAA",
    "AAAA",
    "SRV",
    "SRV",
    "PTR",
    "PTR",
    "TXT",
    "SOA",
    "NS",
    "ANY",
    "HTTPS",
    "MX",
    "CNAME",
    "DS",
    "TYPE65280",
]


class Asked(NamedTuple):
    """One question as it is sent."""

    data: bytes
    tcp: bool


def question(chance: random.Random) -> Asked:
    """A random question made of the zones' own words."""
    labels = [chance.choice(WORDS) for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3)))]
    name = ".".join([*labels, chance.choice(SUFFIXES)]).replace("..", ".")
    if chance.random() < 0.3:
        name = "".join(chance.choice((c.upper(), c)) for c in name)
    cls = chance.choices(("IN", "ANY", "CH"), (40, 1, 1))[0]
    query = dns.message.make_query(name, chance.choice(TYPES), cls)
    query.id = chance.randrange(65536)
    if chance.random() < 0.2:
        query.flags &= ~dns.flags.RD
    if chance.random() < 0.2:
        query.flags |= dns.flags.AD
    if chance.random() < 0.1:
        query.flags |= dns.flags.CD
    if chance.random() < 0.6:
        options: list[dns.edns.Option] = []
        if chance.random() < 0.4:
            options.append(dns.edns.GenericOption(10, chance.randbytes(8)))
        if chance.random() < 0.2:
            options.append(dns.edns.GenericOption(chance.choice((3, 65001)), b""))
        if chance.random() < 0.1:
            options.append(dns.edns.ECSOption("192.0.2.0", 24))
        size = chance.choice((512, 900, 1232, 1232, 4096))
        query.use_edns(0, dns.flags.DO if chance.random() < 0.3 else 0, size, options=options)
    return Asked(query.to_wire(), chance.random() < 0.2)


class Client:
    """Sends datagrams and frames to one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.settimeout(10)
        self.udp.connect((server.host, server.port))
        self.tcp: socket.socket | None = None

    def ask(self, asked: Asked) -> bytes:
        if not asked.tcp:
            self.udp.send(asked.data)
            return self.udp.recv(65535)
        for _ in range(2):
            if self.tcp is None:
                self.tcp = self.server.connect(timeout=10)
            try:
                self.tcp.sendall(len(asked.data).to_bytes(2, "big") + asked.data)
                head = self._read(2)
                return self._read(int.from_bytes(head, "big"))
            except (EOFError, ConnectionError):
                self.tcp.close()  # it was idle for too long
                self.tcp = None
        raise AssertionError("the server closes its connections")

    def _read(self, count: int) -> bytes:
        assert self.tcp is not None
        out = b""
        while len(out) < count:
            part = self.tcp.recv(count - len(out))
            if not part:
                raise EOFError
            out += part
        return out

    def close(self) -> None:
        self.udp.close()
        if self.tcp is not None:
            self.tcp.close()


def said(reply: bytes) -> tuple[Any, ...]:
    """A reply as it is compared; dnspython must be able to read it."""
    message = dns.message.from_wire(reply)
    sections = []
    for section in (message.answer, message.authority, message.additional):
        lines = []
        for rrset in section:
            ours = bool(message.flags & dns.flags.AA)
            for record in rrset:
                if rrset.rdtype == dns.rdatatype.SOA:
                    assert isinstance(record, dns.rdtypes.ANY.SOA.SOA)
                    record = record.replace(serial=0)
                ttl = rrset.ttl if ours else -1
                lines.append((str(rrset.name), ttl, dns.rdatatype.to_text(rrset.rdtype), str(record)))
        sections.append(sorted(lines))
    options = sorted((option.otype, option.to_wire()) for option in message.options)
    head = (message.rcode(), dns.flags.to_text(message.flags), message.edns, message.ednsflags, options)
    return (*head, str(message.question[0]), *sections)


def outside(query: dns.message.Message, proto: str) -> dns.message.Message:
    """An upstream that says the same to the same question."""
    name = str(query.question[0].name).lower()
    kind = dns.rdatatype.to_text(query.question[0].rdtype)
    if "www" in name and kind in ("A", "AAAA"):
        return answer(query, *(["A 192.0.2.1", "A 192.0.2.2"] if kind == "A" else ["AAAA 2001:db8::1"]), ttl=300)
    if "alias" in name:
        return answer(query, "CNAME www.example.org.", ttl=300)
    reply = soa(answer(query), "." if "example" not in name else "example.org.", ttl=300, minimum=300)
    if "ab" not in name:
        reply.set_rcode(3)
    reply.flags |= dns.flags.AD
    return reply


def changes(api: ApiServer, chance: random.Random, turn: int) -> None:
    """Services and endpoints come, go and change address; the last changes mark the round."""
    for ns in ("n1", "n2"):
        for name in ("web", "ab", "zz"):
            key = f"{ns}/{name}"
            draw = chance.random()
            if draw < 0.3 and key in api.objects["services"]:
                api.delete("Service", key)
            elif draw < 0.9:
                ips = [f"10.96.1.{chance.randrange(5, 7)}"] + (["fd00::5"] if chance.random() < 0.3 else [])
                api.put(service(key, *ips, ports=(("http", "TCP", 80), ("dns", "UDP", 53))))
        if chance.random() < 0.8:
            ends = [
                endpoint(f"10.244.1.{n}", host=f"db-{i}", pod=f"p{i}")
                for i, n in enumerate(chance.sample(range(4, 9), 3))
            ]
            api.put(service(f"{ns}/db"), endpointslice(f"{ns}/db-1", "db", *ends))
        elif f"{ns}/db-1" in api.objects["endpointslices"]:
            api.delete("EndpointSlice", f"{ns}/db-1")
    if turn == 2:
        api.put(namespace("n3"), service("n3/web", "10.96.1.9"))
    if turn == 3:
        api.delete("Namespace", "/n3")
    api.put(
        namespace(f"marker{turn}"),
        service(f"n1/m{turn}"),
        endpointslice(f"n1/m{turn}-1", f"m{turn}", endpoint("10.9.9.9")),
    )


def sees(server: Server, turn: int) -> bool:
    """Whether a server has seen a round's marks: an object of each kind."""
    if not server.ask(f"m{turn}.n1.svc.cluster.local.").answer:
        return False
    return server.ask(f"marker{turn}.svc.cluster.local.").rcode() == 0


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    made: list[Client] = []
    yield made
    for client in made:
        client.close()


@pytest.mark.parametrize("text", [KUBEADM, ALONE, FALLS], ids=["kubeadm", "alone", "falls-through"])
def test_any_order_of_questions_gives_what_a_fresh_server_gives(
    api: ApiServer, upstream: Callable[..., Upstream], serve: Serve, clients: list[Client], text: str
) -> None:
    chance = random.Random(11)
    api.put(namespace("n1"), namespace("n2"))
    text = text.replace("API", api.url).replace("UPSTREAM", upstream(outside).address)
    changes(api, chance, 0)
    servers = [serve(text), serve(text)]
    clients += [Client(server) for server in servers]
    wrong = []
    for turn in range(1, ROUNDS + 1):
        changes(api, chance, turn)
        fresh = serve(text)
        for server in (*servers, fresh):
            eventually(partial(sees, server, turn))
        asked = [question(chance) for _ in range(QUESTIONS)]
        asked += chance.sample(asked, QUESTIONS // 4)
        forward = [said(clients[0].ask(each)) for each in asked]
        backward = [said(clients[1].ask(each)) for each in reversed(asked)][::-1]
        clients.append(Client(fresh))
        order = list(range(len(asked)))
        chance.shuffle(order)
        judged = {i: said(clients[-1].ask(asked[i])) for i in order}
        wrong += [
            (turn, judged[i], forward[i], backward[i]) for i in order if not forward[i] == backward[i] == judged[i]
        ]
    assert not wrong, f"{len(wrong)} replies depend on what was asked before, such as {wrong[0]}"
