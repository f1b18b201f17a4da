"""limits: what one client may take, and that others are not asked to pay for it."""

import socket
import time
import tracemalloc
from typing import Any

import dns.flags
import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.plugin.base import DENIED, IGNORED, PASS, SHORTENED
from kdns.plugins import limits as limits_module
from kdns.plugins.limits import Config, Limiter
from kdns.server import build, catalog
from kdns.testing import Server, answer, block, data, eventually, flags
from tests.fixtures import Serve, Start
from tests.net.test_listeners import framed, question, read_frame

HOSTS = "hosts /nowhere {\n 192.0.2.1 a.example.org\n }"


def limits(*lines: str) -> str:
    return "limits {\n " + "\n ".join(lines) + "\n }"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limiter(clock: Clock, **config: Any) -> Limiter:
    return Limiter(Config(**{"qps": 10, "burst": 5, **config}), "dns://test:53", clock)


def total(name: str, *labels: str) -> float:
    return sum(slot[0] for values, slot in REGISTRY[name].slots.items() if set(labels) <= set(values))


def ask_from(server: Server, host: str, count: int = 1, timeout: float = 0.5) -> list[bytes]:
    """The replies to so many queries from an address of the loopback network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(timeout)
        for i in range(count):
            sock.sendto(question(qid=i), ("127.0.0.1", server.port))
        out = []
        try:
            while len(out) < count:
                out.append(sock.recv(4096))
        except TimeoutError:
            pass
        return out


# The limiter.


def test_a_client_has_its_burst_at_once_and_then_its_rate() -> None:
    clock = Clock()
    judge = limiter(clock)
    assert [judge(("10.0.0.1", 5), False) for _ in range(7)] == [PASS] * 5 + [IGNORED] * 2
    assert judge(("10.0.0.2", 5), False) == PASS
    clock.now += 0.1
    assert [judge(("10.0.0.1", 6), False) for _ in range(2)] == [PASS, IGNORED]
    clock.now += 100
    assert [judge(("10.0.0.1", 7), False) for _ in range(6)] == [PASS] * 5 + [IGNORED]


@given(st.lists(st.floats(0, 0.5), max_size=200), st.integers(1, 50), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_in_no_stretch_of_time_more_pass_than_burst_and_rate_allow_nor_fewer(
    gaps: list[float], rate: int, burst: int
) -> None:
    clock = Clock()
    judge = limiter(clock, qps=rate, burst=burst)
    tokens, before = float(burst), clock.now
    for gap in gaps:
        clock.now += gap
        tokens = min(float(burst), tokens + (clock.now - before) * rate)
        before = clock.now
        passed = judge(("10.0.0.1", 1), False) == PASS
        assert passed or tokens < 1 + 0.51  # half a query is rounded up
        assert not passed or tokens > 0.49
        tokens -= passed


def test_over_tcp_there_is_an_allowance_of_its_own_as_addresses_are_proven_there() -> None:
    judge = limiter(Clock(), slip=2)
    assert [judge(("10.0.0.1", 5), False) for _ in range(9)] == [PASS] * 5 + [IGNORED, SHORTENED] * 2
    assert [judge(("10.0.0.1", 5), True) for _ in range(7)] == [PASS] * 5 + [DENIED] * 2


def test_a_prefix_is_one_client_where_it_is_told_so() -> None:
    judge = limiter(Clock(), prefix4=24, prefix6=56)
    assert [judge((f"192.0.2.{i}", 1), False) for i in range(7)] == [PASS] * 5 + [IGNORED] * 2
    assert judge(("192.0.3.1", 1), False) == PASS
    assert [judge((f"2001:db8:0:{i}::1", 1, 0, 0), False) for i in range(7)] == [PASS] * 5 + [IGNORED] * 2
    assert judge(("2001:db8:0:100::1", 1, 0, 0), False) == PASS
    assert judge(("fe80::1%eth0", 1, 0, 2), False) == PASS


def test_exempt_networks_have_no_limit() -> None:
    config = catalog.plugin_class("limits").parse(  # type: ignore[union-attr]
        build.read(
            block(limits("qps 10 5", "exempt 10.0.0.0/8 fd00::1", "exempt 192.0.2.1")).replace("{port}", "53"), "x"
        )
        .blocks[0]
        .directives["limits"],
        None,  # type: ignore[arg-type]
    )[0]
    judge = Limiter(config, "dns://test:53", Clock())
    for host in ("10.1.2.3", "fd00::1", "192.0.2.1"):
        assert {judge((host, 1), False) for _ in range(50)} == {PASS} and config.exempts(host)
    assert judge(("fd00::2", 1), False) == PASS and not config.exempts("fd00::2")


def test_addresses_that_nobody_has_do_not_grow_the_table_nor_forget_who_is_over_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits_module, "MAX_CLIENTS", 500)
    clock = Clock()
    judge = limiter(clock, prefix4=31)
    for i in range(400):
        judge((f"10.0.{i >> 8}.{i & 255}", 1), False)
    clock.now += 10  # their allowances are whole again
    while judge(("172.16.0.1", 1), False) == PASS:
        pass
    for i in range(450):
        judge((f"10.9.{i >> 8}.{i & 255}", 1), False)
    assert judge(("172.16.0.1", 1), False) == IGNORED  # others had nothing to lose
    for i in range(5000):
        judge((f"11.{i >> 8}.{i & 255}.1", 1), False)
        assert len(judge.hosts) <= 500
    assert sum(each.hosts for each in judge.prefixes.values()) == len(judge.hosts)


def test_the_table_of_clients_has_its_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    share = 8  # of the table: to trace what is allocated for all of it takes half a minute
    most = limits_module.MAX_CLIENTS // share
    monkeypatch.setattr(limits_module, "MAX_CLIENTS", most)
    judge = limiter(Clock(), prefix6=64)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(most + 100):
            judge((f"2001:db8:{i >> 16:x}:{i & 0xFFFF:x}:1111:2222:3333:4444", 1, 0, 0), False)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(judge.hosts) == most and grown <= limits_module.MAX_OCTETS / share * 1.3


# In a server.


def test_a_client_over_its_limit_is_not_answered_and_others_are(serve: Serve) -> None:
    server = serve(block(limits("qps 1 20"), HOSTS))
    before = total("kdns_limits_queries_total", "dropped")
    assert len(ask_from(server, "127.0.0.2", 60)) in (
        20,
        21,
    )  # from the second on they are answered from memory, and counted
    assert len(ask_from(server, "127.0.0.3", 5)) == 5
    assert total("kdns_limits_queries_total", "dropped") - before >= 39


def test_with_slip_a_real_client_comes_over_tcp(serve: Serve) -> None:
    server = serve(block(limits("qps 1 2", "slip 2"), HOSTS))
    replies = ask_from(server, "127.0.0.2", 22)
    short = [
        found
        for reply in replies
        if (found := dns.message.from_wire(reply, ignore_trailing=False)).flags & dns.flags.TC
    ]
    assert len(replies) - len(short) in (2, 3) and len(short) in (9, 10)
    for reply in short:
        # Before it looks at TC, a stub resolver takes an empty reply without AA and RA for a lame referral.
        assert flags(reply) == {"QR", "RD", "RA", "TC"} and not reply.answer and len(reply.question) == 1
    with socket.create_connection(("127.0.0.1", server.port), timeout=5, source_address=("127.0.0.2", 0)) as sock:
        sock.sendall(framed(question()) * 4)
        codes = [dns.message.from_wire(read_frame(sock)).rcode() for _ in range(4)]
    assert codes[:2] == [0, 0] and codes[3] == 5


def test_a_shortened_reply_to_a_query_with_edns_has_an_opt(serve: Serve) -> None:
    server = serve(block(limits("qps 1 1", "slip 1"), HOSTS))
    ask_from(server, "127.0.0.1", 5)
    reply = server.ask("a.example.org.", use_edns=0, want_dnssec=True)
    assert reply.edns == 0 and reply.ednsflags & dns.flags.DO and "TC" in flags(reply)


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 12, b"\0\1\x80\0\0\1\0\0\0\0\0\0\0\0\1\0\1", b"\0\1\0\0\0\1\0\0\0\0\0\1\1a"]
)
def test_over_the_limit_what_is_no_query_gets_no_reply(serve: Serve, junk: bytes) -> None:
    server = serve(block(limits("qps 1 1", "slip 1"), HOSTS))
    ask_from(server, "127.0.0.1", 5)
    assert server.raw(junk, timeout=0.2) is None


def test_the_queries_of_a_client_that_wait_are_bounded(serve: Serve, upstream: Start) -> None:
    def slow(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.05)
        return answer(query, "A 192.0.2.9")

    up = upstream(slow)
    server = serve(block(limits("inflight 3", "exempt 127.0.0.9"), f"forward . {up.address}"))
    before = total("kdns_pending_refused_total", "client")

    def refused(host: str) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            sock.settimeout(10)
            for i in range(8):
                sock.sendto(question(f"{host.replace('.', '-')}-{i}.org.", i), ("127.0.0.1", server.port))
            return sum(sock.recv(4096)[3] & 15 == 2 for _ in range(8))

    assert refused("127.0.0.2") == 5 and total("kdns_pending_refused_total", "client") - before == 5
    assert refused("127.0.0.9") == 0


def test_the_connections_of_a_client_are_bounded(serve: Serve) -> None:
    server = serve(block(limits("connections 3 5", "exempt 127.0.0.9"), HOSTS))
    ((listener,),) = [each.tcp for each in server.server.listeners.values()]
    socks = []
    try:
        for host, count, expected in (("127.0.0.2", 5, 3), ("127.0.0.3", 1, 1), ("127.0.0.9", 4, 0)):
            for _ in range(count):
                socks.append(socket.create_connection(("127.0.0.1", server.port), timeout=5, source_address=(host, 0)))
            eventually(lambda host=host, expected=expected: listener.shares.count(host) == expected)  # type: ignore[misc]
            if host == "127.0.0.9":
                # Those without limits displaced who held most, and are displaced by nobody.
                eventually(lambda: len(listener.connections) == 5 and listener.shares.total == 1)
        for sock in socks[-4:]:
            sock.sendall(framed(question()))
            assert read_frame(sock)[:2] == b"\0\7"
    finally:
        for sock in socks:
            sock.close()


def test_limits_come_and_go_with_a_reload(serve: Serve) -> None:
    server = serve(block(HOSTS))
    assert len(ask_from(server, "127.0.0.2", 30)) == 30
    assert server.reload(block(limits("qps 1 2", "connections 1 2"), HOSTS))
    ((listener,),) = [each.tcp for each in server.server.listeners.values()]
    assert len(ask_from(server, "127.0.0.2", 30)) in (2, 3) and (listener.max_client, listener.max_connections) == (
        1,
        2,
    )
    assert server.reload(block(HOSTS))
    assert len(ask_from(server, "127.0.0.2", 30)) == 30 and listener.max_connections == listener.defaults[2]


def test_without_a_limit_of_queries_nothing_stands_before_the_reply_cache(serve: Serve) -> None:
    server = serve(block(limits("connections 5"), HOSTS))
    ((udp, *_),) = [each.udp for each in server.server.listeners.values()]
    (dispatcher,) = server.server.instance.dispatchers.values()  # type: ignore[union-attr]
    assert udp.handler == dispatcher.datagram


def test_a_gate_that_fails_lets_queries_pass_and_is_counted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def broken(self: Limiter, client: tuple[Any, ...], tcp: bool) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr(Limiter, "__call__", broken)
    server = serve(block(limits("qps 1"), HOSTS))
    assert data(server.ask("a.example.org.")) == data(server.ask("a.example.org.", tcp=True)) == ["192.0.2.1"]
    assert sum("boom" in line for line in lines) == 2


def test_the_last_block_of_a_listener_that_sets_limits_counts(serve: Serve) -> None:
    texts = [
        block(limits(f"qps 1 {burst}"), "whoami").replace(".:", f"{zone}:")
        for zone, burst in (("a.org", 1), ("b.org", 9))
    ]
    server = serve("".join(texts))
    assert len(ask_from(server, "127.0.0.2", 30)) in (9, 10, 11)


@pytest.mark.parametrize(("text", "expected"), [
    ("limits", "limits needs at least one of qps, slip"),
    ("limits {\n }", "limits needs at least one of qps, slip"),
    ("limits 5", "unexpected argument"),
    ("limits {\n inflite 5\n }", 'did you mean "inflight"'),
    ("limits {\n qps\n }", "expected queries a second after qps"),
    ("limits {\n qps 0\n }", "out of range"),
    ("limits {\n qps many\n }", "expected a whole number"),
    ("limits {\n qps 1 2 3\n }", "unexpected argument"),
    ("limits {\n slip 2\n }", "slip is about queries over the limit of qps"),
    ("limits {\n qps 5\n prefix 24\n }", "the lengths of an IPv4 and an IPv6 prefix"),
    ("limits {\n qps 5\n prefix 33 64\n }", "out of range"),
    ("limits {\n inflight\n }", "expected a number of queries"),
    ("limits {\n connections 10 5\n }", "out of range"),
    ("limits {\n qps 5\n qps 6\n }", "qps stands twice"),
    ("limits {\n qps 5\n prefix 24 56\n prefix 24 56\n }", "prefix stands twice"),
    ("limits {\n exempt\n }", "expected an address or a network"),
    ("limits {\n exempt 10.0.0.300\n }", "expected an address or a network"),
    ("limits {\n qps 5 {\n x\n }\n }", "takes no block"),
    ("limits {\n qps 5\n }\n limits {\n qps 5\n }", "can only be used once"),
])  # fmt: skip
def test_bad_limits_are_named_with_their_place(text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"^Corefile:\d+:\d+: ") as caught:
        build.build(build.read(block(text, "whoami").replace("{port}", "53"), "Corefile"))
    assert expected in str(caught.value)
