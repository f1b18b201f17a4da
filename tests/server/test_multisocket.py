"""Several processes that look like one server (`multisocket`): real processes, real signals, real queries."""

import contextlib
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from kdns.testing import free_port
from kdns.testing.apiserver import ApiServer
from kdns.testing.objects import namespace, service
from tests.cli.test_commands import Process, kdns
from tests.cli.test_rollout import asking

WAIT = 20.0


class Several(Process):
    """A server of several processes, and what its page of metrics says."""

    def __init__(self, folder: Path, text: str, count: int = 2, *words: str) -> None:
        self.port, self.http = free_port(), free_port()
        self.path = folder / "Corefile"
        self.text = text
        self.write(count)
        super().__init__("-conf", str(self.path), *words)

    def write(self, count: int = 2, more: str = "") -> None:
        self.path.write_text(
            f".:{self.port} {{\n bind 127.0.0.1\n multisocket {count}\n health 127.0.0.1:{self.http}\n"
            f" ready 127.0.0.1:{self.http}\n prometheus 127.0.0.1:{self.http}\n{self.text}\n{more}\n}}\n"
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> dict[int, int]:
        """The workers' process ids by number, as the kernel names them."""
        found = {}
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if name.startswith("kdns worker "):
                    found[int(name.rpartition(" ")[2])] = pid
        return found

    def get(self, path: str, timeout: float = 5) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a metric's lines."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line))

    def ask(self, name: str = "example.org.", rtype: str = "A") -> dns.message.Message | None:
        """A reply to a query from a new port; None where there is none within two seconds."""
        query = dns.message.make_query(name, rtype)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            client.connect(("127.0.0.1", self.port))
            try:
                client.send(query.to_wire())
                return dns.message.from_wire(client.recv(4096))
            except OSError:
                return None

    def addresses(self, name: str) -> list[str]:
        reply = self.ask(name)
        return sorted(str(rdata) for rrset in reply.answer for rdata in rrset) if reply is not None else ["no reply"]


def descendants(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            children += [int(each) for each in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]


def soon(true: Callable[[], bool], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Callable[..., Several]]:
    made: list[Several] = []

    def begin(text: str = " whoami", count: int = 2, *words: str) -> Several:
        server = Several(tmp_path, text, count, *words)
        made.append(server)
        server.until("linux/")
        return server

    yield begin
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate(timeout=20)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


def test_queries_from_many_ports_are_answered_by_all_workers_and_counted_once(
    several: Callable[..., Several],
) -> None:
    server = several()
    assert sorted(server.workers()) == [1, 2]
    for _ in range(60):
        assert server.ask() is not None
    assert server.metric("coredns_dns_requests_total") == 60
    assert server.metric("coredns_dns_responses_total") == 60
    assert server.metric("coredns_dns_request_duration_seconds_count") == 60
    assert server.metric("kdns_workers") == 2
    assert server.get("/ready") == (200, "OK")
    assert server.get("/health") == (200, "OK")
    assert server.end() == 0


def test_a_killed_worker_is_replaced_while_the_other_answers(several: Callable[..., Several]) -> None:
    server = several()
    first = server.workers()
    for _ in range(20):
        assert server.ask() is not None
    counted = server.metric("coredns_dns_requests_total")
    os.kill(first[1], signal.SIGKILL)
    soon(lambda: server.workers().get(1, first[1]) != first[1] and server.get("/ready")[0] == 200)
    assert server.workers()[2] == first[2]
    for _ in range(20):
        assert server.ask() is not None
    # What the dead one had counted is not forgotten: a counter never falls.
    assert server.metric("coredns_dns_requests_total") == counted + 20
    assert server.metric("kdns_worker_restarts_total") == 1
    assert server.end() == 0
    assert any("worker 1" in line and "SIGKILL" in line for line in server.lines)


def test_changes_of_services_reach_all_workers_by_one_watch(several: Callable[..., Several], api: ApiServer) -> None:
    api.put(namespace("n1"), service("n1/one", "10.96.0.1"))
    server = several(f" kubernetes cluster.local {{\n  endpoint {api.url}\n }}")
    soon(lambda: server.get("/ready")[0] == 200)
    for _ in range(20):
        assert server.addresses("one.n1.svc.cluster.local.") == ["10.96.0.1"]
    api.put(service("n1/two", "10.96.0.2"))
    api.delete("Service", "n1/one")
    soon(lambda: all(server.addresses("two.n1.svc.cluster.local.") == ["10.96.0.2"] for _ in range(20)))
    soon(lambda: all(server.addresses("one.n1.svc.cluster.local.") == [] for _ in range(20)))
    watches = [each for each in api.requests if "watch" in each and "/services" in each]
    assert len(watches) == 1
    os.kill(server.workers()[2], signal.SIGKILL)
    soon(lambda: server.metric("kdns_workers") == 2)
    soon(lambda: all(server.addresses("two.n1.svc.cluster.local.") == ["10.96.0.2"] for _ in range(20)))
    assert server.end() == 0


def test_sigterm_under_load_and_a_replacement_that_shares_the_port_lose_nothing(
    several: Callable[..., Several],
) -> None:
    old = several(" whoami", 2, "-share-port")
    with asking(old.port) as lost:
        text, port = old.path.read_text(), old.port
        old.path.write_text(text.replace(str(old.http), str(free_port())))
        new = Process("-conf", str(old.path), "-share-port")
        try:
            new.until("linux/")
            time.sleep(0.3)
            assert old.end() == 0
            time.sleep(0.3)
        finally:
            assert port
    assert new.end() == 0
    assert not lost


def test_a_reload_changes_all_workers_and_a_broken_corefile_none(several: Callable[..., Several]) -> None:
    server = several(' template IN A {\n  answer "{{ .Name }} 1 IN A 192.0.2.1"\n }')
    with asking(server.port) as lost:
        server.text = server.text.replace("192.0.2.1", "192.0.2.2")
        server.write()
        os.kill(server.pid, signal.SIGUSR1)
        soon(lambda: all(server.addresses("a.org.") == ["192.0.2.2"] for _ in range(20)))
        server.write(more=" nonsense")
        os.kill(server.pid, signal.SIGUSR1)
        server.until("Restart failed")
        # What only a worker finds: a file that is not there.
        server.write(more=" hosts /nonexistent/hosts {\n  fallthrough\n }\n forward . /nonexistent/resolv.conf")
        os.kill(server.pid, signal.SIGUSR1)
        server.until("Restart failed")
        assert all(server.addresses("a.org.") == ["192.0.2.2"] for _ in range(20))
    assert not lost
    assert server.end() == 0


def test_health_says_which_worker_hangs_and_it_is_replaced(several: Callable[..., Several]) -> None:
    server = several()
    first = server.workers()
    os.kill(first[2], signal.SIGSTOP)
    began = time.monotonic()
    assert server.get("/health") == (503, "worker 2 does not answer\n")
    assert time.monotonic() - began < 3
    assert server.get("/ready")[0] == 503
    assert server.get("/metrics")[0] == 200
    soon(lambda: server.get("/health")[0] == 200, 40)
    assert server.workers()[2] != first[2]
    assert server.metric("kdns_worker_restarts_total") == 1
    assert server.end() == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("0", "num sockets can not be zero or negative: 0"),
        ("-1", "num sockets can not be zero or negative: -1"),
        ("1025", "num sockets exceeds maximum (1024): 1025"),
        ("two", 'invalid num sockets: "two" is no number'),
    ],
)
def test_a_bad_number_is_an_error_with_its_place(tmp_path: Path, words: str, text: str) -> None:
    path = tmp_path / "Corefile"
    path.write_text(f".:1053 {{\n    multisocket {words}\n    whoami\n}}\n")
    done = kdns("check", str(path))
    assert done.returncode == 1
    assert f"{path}:2:17" in done.stdout + done.stderr
    assert text in done.stdout + done.stderr
