"""Upstreams at their worst: spoofed, mute, slow, lossy, half-open, flooding."""

import asyncio
import collections
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
import yaml

from kdns.deadlines import Deadlines
from kdns.dns.query import Question
from kdns.plugins.forward.handler import COALESCED
from kdns.server import pending
from kdns.testing import Upstream, answer, block, code, data, eventually, flags, free_port, soa
from kdns.testing.objects import namespace, service
from kdns.upstream import exchange
from kdns.upstream.udp import UdpSockets, _Socket
from kdns.upstream.upstream import Address, Options
from kdns.upstream.upstream import Upstream as Real
from tests.fixtures import Serve, Start


def mute(query: dns.message.Message, proto: str) -> None:
    return None


def says(text: str) -> Callable[[dns.message.Message, str], dns.message.Message]:
    return lambda query, proto: answer(query, text)


def evenly_spread(values: list[int], low: int, high: int, buckets: int = 64) -> bool:
    """Whether a chi-square test finds nothing: 63 degrees of freedom have a mean of 63 and a deviation of 11; 150 is 8
    of them.
    """
    counts = collections.Counter((value - low) * buckets // (high - low) for value in values)
    expected = len(values) / buckets
    return sum((counts[i] - expected) ** 2 / expected for i in range(buckets)) < 150


def test_ids_are_evenly_spread() -> None:
    ids = [int.from_bytes(exchange.new_id(), "big") for _ in range(100_000)]
    assert evenly_spread(ids, 0, 65536) and len(set(ids)) > 50_000
    assert evenly_spread([(b - a) & 0xFFFF for a, b in itertools.pairwise(ids)], 0, 65536)


@pytest.mark.parametrize("source", ["", "127.0.0.1"])
def test_ports_are_evenly_spread_also_from_a_fixed_address(source: str) -> None:
    low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    async def collect() -> list[int]:
        owner = UdpSockets("127.0.0.1", 9, "x", "test", Deadlines(), fresh=True, source=source)
        out = []
        for _ in range(20_000):
            sock = _Socket(owner, 0.0)
            out.append(sock.sock.getsockname()[1])
            sock.close()
        return out

    ports = asyncio.run(collect())
    # The kernel gives unbound sockets ports of the range; a connected socket may favour one parity, so pairs are
    # counted.
    assert evenly_spread([port // 2 for port in ports], low // 2, high // 2 + 1)


def test_ids_0_and_65535_are_as_good_as_others(serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(block(f"forward . {upstream(says('A 192.0.2.1')).address}"))
    for qid in (b"\0\0", b"\xff\xff"):
        monkeypatch.setattr(exchange._ids, "pool", qid * 50)
        monkeypatch.setattr(exchange._ids, "at", 0)
        assert data(server.ask(f"x{qid[0]}.org.")) == ["192.0.2.1"]


def test_a_cut_reply_behind_junk_is_still_asked_for_over_tcp(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        reply = answer(query, "A 192.0.2.1")
        if proto == "tcp":
            return [reply.to_wire()]
        reply.answer = []
        reply.flags |= dns.flags.TC
        return [b"junk", b"\0" * 12, reply.to_wire()]

    up = upstream(script)
    assert data(serve(block(f"forward . {up.address}")).ask("x.org.")) == ["192.0.2.1"] and up.protos == ["udp", "tcp"]


def test_a_flood_of_junk_neither_answers_nor_marks_anybody_down(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        wire = answer(query, "A 192.0.2.1").to_wire()
        return [bytes((wire[0] ^ 0xFF, wire[1])) + wire[2:]] * 150 + [wire]

    server = serve(block(f"forward . {upstream(script).address}"))
    for i in range(5):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert not forwarder.upstreams[0].fails and not forwarder.upstreams[0].down()
    assert not forwarder.upstreams[0].udp.idle  # such a port is not used again


def test_five_thousand_clients_with_one_question_cost_one_upstream_query(serve: Serve, upstream: Start) -> None:
    go = threading.Event()

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        go.wait(5)
        return answer(query, "A 192.0.2.1")

    up = upstream(script)
    server = serve(block(f"forward . {up.address} {{\n read_timeout 10s\n }}"))
    dispatcher = next(iter(server.server.instance.dispatchers.values()))  # type: ignore[union-attr]
    query = dns.message.make_query("x.org.", "A").to_wire()
    shared = COALESCED.slot()
    before = shared[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)

        def send(first: int) -> None:
            for i in range(first, first + 500):
                client.sendto(i.to_bytes(2, "big") + query[2:], ("127.0.0.1", server.port))

        for first in range(0, 5000, 500):
            # In the server's own thread: two that take turns at the interpreter's lock are slow.
            server.thread.call(send, first)
            eventually(lambda first=first: len(dispatcher.waiting.table) == first + 500)
        go.set()
        assert data(dns.message.from_wire(client.recv(512))) == ["192.0.2.1"]
    eventually(lambda: not dispatcher.waiting.table)
    assert len(up.queries) == 1 and shared[0] - before == 4999


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_query_makes_more_than_two_tries_an_upstream(serve: Serve, upstream: Start, count: int) -> None:
    ups = [upstream(mute) for _ in range(count)]
    options = "read_timeout 50ms\n max_fails 0"
    server = serve(block(f"forward . {' '.join(up.address for up in ups)} {{\n {options}\n }}"))
    began = time.monotonic()
    assert code(server.ask("x.org.")) == "SERVFAIL" and time.monotonic() - began < 5
    assert sum(len(up.queries) for up in ups) <= 2 * count


def test_a_query_ends_within_five_seconds_whatever_its_upstreams_do(serve: Serve, upstream: Start) -> None:
    ups = [upstream(mute) for _ in range(5)]
    server = serve(block(f"forward . {' '.join(up.address for up in ups)} {{\n policy sequential\n max_fails 0\n }}"))
    began = time.monotonic()
    assert code(server.ask("x.org.", timeout=8)) == "SERVFAIL" and time.monotonic() - began < 5.0


def test_aliases_are_followed_ten_deep_and_no_further(serve: Serve, upstream: Start) -> None:
    template = (
        'template IN A chain {\n match ^n([0-9]*)[.]chain[.]$\n answer "{{ .Name }} CNAME n{{ .Group.1 }}0.chain."\n }'
    )
    server = serve(block(template))
    reply = server.ask("n1.chain.")
    assert sum(len(rrset) for rrset in reply.answer) <= 11


@pytest.mark.interpreted("it replaces what is compiled in")
def test_queries_in_flight_are_bounded_for_all_and_for_each_client(
    serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 6)
    monkeypatch.setattr(pending, "MAX_PENDING_CLIENT", 4)
    up = upstream(mute)
    server = serve(".:{port} {\n forward . " + up.address + " {\n read_timeout 10s\n }\n}")
    dispatcher = next(iter(server.server.instance.dispatchers.values()))  # type: ignore[union-attr]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        two.bind(("127.0.0.2", 0))
        one.settimeout(2)
        two.settimeout(2)
        for i in range(5):
            one.sendto(dns.message.make_query(f"a{i}.org.", "A").to_wire(), ("127.0.0.1", server.port))
        assert dns.message.from_wire(one.recv(512)).rcode() == 2  # the fifth of one client
        for i in range(3):
            two.sendto(dns.message.make_query(f"b{i}.org.", "A").to_wire(), ("127.0.0.1", server.port))
        assert dns.message.from_wire(two.recv(512)).rcode() == 2  # the seventh of all
    assert len(dispatcher.waiting.table) == 6 and dispatcher.waiting.clients == {"127.0.0.1": 4, "127.0.0.2": 2}


def test_an_rrset_of_over_a_hundred_records_is_passed_on_and_not_kept(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, *(f"A 10.0.{i // 250}.{i % 250}" for i in range(150))))
    server = serve(block("cache 30", f"forward . {up.address}"))
    for _ in range(2):
        assert len(data(server.ask("x.org.", tcp=True))) == 150
    assert len(up.queries) == 2


def test_a_hit_never_makes_an_answer_live_longer(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=2))
    server = serve(block("cache {\n success 100 3600 0\n }", f"forward . {up.address}"))
    server.ask("x.org.")
    began = time.monotonic()
    while time.monotonic() - began < 1.7:
        assert server.ask("x.org.").answer[0].ttl <= 2
        time.sleep(0.05)
    eventually(lambda: bool(server.ask("x.org.")) and len(up.queries) == 2)


def test_a_stub_domains_reply_writes_nothing_outside_its_question(serve: Serve, upstream: Start) -> None:
    def lies(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.66")
        for section in (reply.authority, reply.additional):
            section.append(dns.rrset.from_text("www.bank.org.", 3600, "IN", "A", "192.0.2.66"))
        reply.authority.append(dns.rrset.from_text("org.", 3600, "IN", "NS", "ns.stub.test."))
        return reply

    stub, outside = upstream(lies), upstream(says("A 192.0.2.1"))
    server = serve(block("cache 30", f"forward stub.test {stub.address}", f"forward . {outside.address}"))
    for _ in range(2):
        server.ask("x.stub.test.")
        assert data(server.ask("www.bank.org.")) == ["192.0.2.1"]


# K17: upstreams slow, dead, refusing, lossy.


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump_all([namespace("n1"), service("n1/web", "10.0.0.1")]))
    return f"kubernetes cluster.local {{\n manifests {tmp_path / 'c.yaml'}\n }}"


def test_names_of_the_cluster_are_answered_while_every_upstream_is_dead(
    serve: Serve, upstream: Start, cluster: str
) -> None:
    """Hundreds of outside queries wait; what is ours goes by them in order."""
    server = serve(block("cache 30", cluster, f"forward . {upstream(mute).address}"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        for i in range(300):
            client.sendto(dns.message.make_query(f"x{i}.org.", "A").to_wire(), ("127.0.0.1", server.port))
            ours = dns.message.make_query("web.n1.svc.cluster.local.", "A")
            client.sendto(ours.to_wire(), ("127.0.0.1", server.port))
            assert client.recv(512)[:2] == struct.pack("!H", ours.id)  # nothing else has come meanwhile


def test_an_upstream_that_is_back_is_noticed_within_a_second(serve: Serve, upstream: Start) -> None:
    up = upstream(mute)
    server = serve(block(f"forward . {up.address} {{\n read_timeout 200ms\n failfast_all_unhealthy_upstreams\n }}"))
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert code(server.ask("x.org.")) == "SERVFAIL"
    eventually(lambda: forwarder.upstreams[0].down(), timeout=20)
    up.script = says("A 192.0.2.1")
    back = time.monotonic()
    eventually(lambda: not forwarder.upstreams[0].down(), timeout=20)
    assert time.monotonic() - back < 1.5  # half a second between probes, and what else this machine does
    assert data(server.ask("y.org.")) == ["192.0.2.1"]


@pytest.mark.parametrize("tcp", [False, True])
def test_a_retry_of_what_closing_failed_opened_sockets_and_probes_again(upstream: Start, tcp: bool) -> None:
    """They outlived a configuration whose last queries were in flight when it ended."""
    up = upstream(mute)
    said: list[Any] = []

    async def ask_and_close() -> None:
        options = Options(timeout=10, max_fails=2)
        found = Real(Address("dns", "127.0.0.1", up.port), options, "forward", Deadlines(), None)
        query, question = dns.message.make_query("x.org.", "A").to_wire(), Question(b"\1x\3org\0", 1)

        def retry(result: Any) -> None:
            said.append(result)
            if len(said) < 3:
                found.exchange(query, question, "tcp" if tcp else "udp", retry)

        found.exchange(query, question, "tcp" if tcp else "udp", retry)
        await asyncio.sleep(0.05)
        await found.close()
        assert not found.udp.open and not found.tcp.dials and found.task is None

    asyncio.run(ask_and_close())
    assert len(said) == 3 and all(isinstance(each, exchange.UpstreamError) for each in said)


def test_an_upstream_over_tcp_that_is_back_is_noticed_within_a_second(serve: Serve, upstream: Start) -> None:
    """A listener with a full backlog drops SYNs, as an upstream that is away does."""
    port = free_port()
    full = socket.socket()
    full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    full.bind(("127.0.0.1", port))
    full.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
    server = serve(block(f"forward . 127.0.0.1:{port} {{\n force_tcp\n read_timeout 200ms\n }}"))
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert code(server.ask("x.org.")) == "SERVFAIL"
    eventually(lambda: forwarder.upstreams[0].down(), timeout=20)
    stop = threading.Event()

    def answers() -> None:
        while not stop.is_set():
            try:
                connection, _ = full.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    def converse(connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while head := stream.read(2):
                reply = answer(dns.message.from_wire(stream.read(int.from_bytes(head, "big"))), "A 192.0.2.1").to_wire()
                stream.write(len(reply).to_bytes(2, "big") + reply)
                stream.flush()

    thread = threading.Thread(target=answers, daemon=True)
    back = time.monotonic()
    thread.start()
    try:
        eventually(lambda: not forwarder.upstreams[0].down(), timeout=20)
        assert time.monotonic() - back < 1.7
    finally:
        stop.set()
        for sock in (*fillers, full):
            sock.close()


def test_an_upstream_that_refuses_is_passed_over_where_that_is_said(serve: Serve, upstream: Start) -> None:
    def refuses(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(5)
        return reply

    bad, good = upstream(refuses), upstream(says("A 192.0.2.1"))
    options = "policy sequential\n failover REFUSED SERVFAIL"
    server = serve(block(f"forward . {bad.address} {good.address} {{\n {options}\n }}"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    assert code(serve(block(f"forward . {bad.address}")).ask("x.org.")) == "REFUSED"


def test_every_name_is_answered_over_upstreams_that_lose_half(serve: Serve, upstream: Start) -> None:
    def lossy() -> Upstream:
        count = iter(range(100_000))
        return upstream(lambda query, proto: None if next(count) % 2 else answer(query, "A 192.0.2.1"))

    first, second = lossy(), lossy()
    server = serve(block(f"forward . {first.address} {second.address} {{\n read_timeout 100ms\n max_fails 0\n }}"))
    for i in range(20):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]


def test_a_denial_without_soa_and_a_servfail_are_not_kept_long(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(2 if query.question[0].name.to_text().startswith("broken") else 3)
        return soa(reply) if query.question[0].name.to_text().startswith("known") else reply

    up = upstream(script)
    server = serve(block("cache 30", f"forward . {up.address}"))
    for name, asked in (("bare.org.", 2), ("known.org.", 1), ("broken.org.", 1)):
        before = len(up.queries)
        server.ask(name)
        server.ask(name)
        assert len(up.queries) - before == asked, name
    assert flags(server.ask("known.org.")) >= {"QR", "RA"}
