"""shed: under overload the queries that have waited longest are dropped, and the next ones are answered in time."""

import socket
import time
from typing import Any

import pytest

from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.net import udp as udp_module
from kdns.net.udp import Shedding, UdpListener
from kdns.plugins import shed as shed_module
from kdns.plugins.shed import Shed
from kdns.server import build, pending
from kdns.testing import Server, answer, block, data, eventually
from tests.fixtures import Serve, Start
from tests.net.test_listeners import question

HOSTS = "hosts /nowhere {\n 192.0.2.1 a.example.org\n }"


def dropped(server: Server, reason: str) -> float:
    return sum(
        slot[0]
        for labels, slot in REGISTRY["coredns_shed_dropped_total"].slots.items()
        if str(server.port) in labels[0] and labels[1] == reason
    )


def flood(server: Server, count: int) -> int:
    """Sends queries while the server is held up for half a second; how many it answers."""
    server.thread.loop.call_soon_threadsafe(time.sleep, 0.5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        for i in range(count):
            sock.sendto(question(qid=i), ("127.0.0.1", server.port))
        sock.settimeout(1)
        got = 0
        try:
            while got < count:
                sock.recv(512)
                got += 1
        except TimeoutError:
            pass
        return got


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_module, "BATCH_DATAGRAMS", 8)


@pytest.mark.interpreted("it replaces what is compiled in")
def test_what_has_waited_longest_is_dropped_and_counted_and_the_next_query_is_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    monkeypatch.setattr(udp_module, "LATE_FOR", -1.0)
    server = serve(block(f"shed 50ms\n {HOSTS}"))
    assert flood(server, 200) < 100
    eventually(lambda: dropped(server, "query") > 100)
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]


def test_a_pause_of_the_process_loses_no_query(serve: Serve, small_batches: None) -> None:
    server = serve(block(f"shed 50ms\n {HOSTS}"))
    assert flood(server, 200) == 200 and not dropped(server, "query")


def test_without_it_nothing_that_young_is_dropped(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    monkeypatch.setattr(udp_module, "LATE_FOR", -1.0)
    assert flood(serve(block(HOSTS)), 200) == 200


class Clocked:
    """A listener whose datagrams have the age that a test says, at the time that it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shed: Shedding | None) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        self.now = 1000.0
        self.age = 0.0
        monkeypatch.setattr(udp_module.time, "monotonic", lambda: self.now)
        self.listener = UdpListener(sock, lambda *_: None, "dns://test:53")
        self.listener.shed = shed
        monkeypatch.setattr(UdpListener, "age", lambda _: self.age)

    def looks(self, now: float, age: float) -> bool:
        """Whether a batch that leaves datagrams behind at this time makes the listener drop what waits."""
        self.now, self.age = 1000.0 + now, age
        self.listener._check_lateness()
        return self.listener.discarding


@pytest.mark.interpreted("it replaces what is compiled in")
def test_an_overload_must_last_to_be_one_and_is_recognised_at_once_while_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, str, int]] = []
    clocked = Clocked(monkeypatch, Shedding(0.1, lambda *words: told.append(words)))
    listener = clocked.listener
    with listener.sock:
        assert not any(clocked.looks(at / 10, 0.2) for at in range(6))
        assert clocked.looks(0.6, 0.2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(3):
                client.sendto(b"x", listener.local)
        listener._discard()
        assert told == [("dns://test:53", "query", 3)] and not listener.discarding
        assert not clocked.looks(0.7, 0.05)  # young again
        assert clocked.looks(1.9, 0.11)  # a backlog again: the overload goes on
        listener._discard()
        assert not clocked.looks(2.7, 0.2) and not clocked.looks(3.1, 0.2)  # over for two seconds: it must last again
        assert clocked.looks(3.3, 0.2)


@pytest.mark.interpreted("it replaces what is compiled in")
def test_without_it_each_backlog_must_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked = Clocked(monkeypatch, None)
    with clocked.listener.sock:
        assert not any(clocked.looks(at / 10, 0.9) for at in range(20))
        assert not any(clocked.looks(3 + at / 10, 1.1) for at in range(6))
        assert clocked.looks(3.6, 1.1)
        clocked.listener._discard()
        assert not clocked.looks(3.7, 1.1)


@pytest.mark.interpreted("it replaces what is compiled in")
def test_a_new_query_takes_the_place_of_one_whose_client_has_given_up(
    serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 2)
    monkeypatch.setattr(pending, "CLIENT_TIMEOUT", 0.3)
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.9") if b"new" in query.to_wire() else None)
    server = serve(block(f"shed\n forward . {up.address}"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect(("127.0.0.1", server.port))
        sock.send(question("one.example.org.", 1))
        sock.send(question("two.example.org.", 2))
        sock.send(question("new1.example.org.", 3))
        reply = sock.recv(512)
        assert reply[1] == 3 and reply[3] & 15 == 2  # younger ones stay
        time.sleep(0.4)
        sock.send(question("new2.example.org.", 4))
        reply = sock.recv(512)
        assert reply[1] == 4 and reply[3] & 15 == 0
    assert dropped(server, "waiting") == 2  # of both that had waited for so long


def test_lines_in_the_log_are_ten_seconds_apart_and_say_how_many(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(shed_module, "_log", type("Log", (), {"warning": staticmethod(lines.append)}))
    now = [100.0]
    plugin = Shed(0.1, lambda: now[0])
    for at, count in ((0.0, 1), (1.0, 500), (9.9, 500), (10.0, 5), (25.0, 7)):
        now[0] = 100.0 + at
        plugin.dropped("dns://.:53", "query", count)
    assert [line.split("; ")[1].split(" dropped")[0] for line in lines] == [
        "1 query was",
        "1005 queries were",
        "7 queries were",
    ]


@pytest.mark.parametrize(
    "text, complaint",
    [
        (".:1053 {\n shed 100\n whoami\n}", "a unit is missing"),
        (".:1053 {\n shed 2s\n whoami\n}", "expected at most 1s"),
        (".:1053 {\n shed 1ms\n whoami\n}", "out of range"),
        (".:1053 {\n shed 1s 2s\n whoami\n}", "unexpected argument"),
        (".:1053 {\n shed {\n age 1s\n }\n whoami\n}", "takes no block"),
        (".:1053 {\n shed\n shed\n whoami\n}", "only be used once"),
        (".:1053 tls://.:1853 {\n shed\n whoami\n}", "tls://.:1853"),
        ("https://.:1443 {\n shed\n whoami\n}", "plain DNS over UDP"),
    ],
)
def test_what_is_no_shed_is_said_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(CorefileError, match=complaint):
        build.build(build.read(text, "Corefile"))
