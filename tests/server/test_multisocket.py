"""Several processes that look like one server (`multisocket`): real processes, real signals, real queries."""

import contextlib
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dns.edns
import dns.message
import dns.opcode
import dns.query
import pytest
from cryptography import x509

from kdns.plugins.multisocket import processors
from kdns.testing import data, free_port
from kdns.testing.apiserver import ApiServer
from kdns.testing.objects import namespace, pod, service
from tests.cli.test_commands import Process, kdns
from tests.cli.test_rollout import asking
from tests.fixtures import Serve
from tests.plugins.test_cookie import given_back
from tests.securepeers import NAME, Site
from tests.zones import keymaker

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
            client.settimeout(10)
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
        each.process.communicate(timeout=90)


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
    while server.workers().get(1, first[1]) == first[1] or server.metric("kdns_workers") < 2:
        assert server.get("/ready")[0] == server.get("/health")[0] == 200  # whoever asks is answered
    assert server.workers()[2] == first[2]
    for _ in range(20):
        assert server.ask() is not None
    # What the dead one had counted is not forgotten: a counter never falls.
    assert server.metric("coredns_dns_requests_total") == counted + 20
    assert server.metric("kdns_worker_restarts_total") == 1
    assert server.end() == 0
    assert any("worker 1" in line and "SIGKILL" in line for line in server.lines)


def test_counters_fell_at_a_reload_by_what_workers_had_counted_that_have_ended(
    several: Callable[..., Several],
) -> None:
    server = several()
    for _ in range(20):
        server.ask()
    soon(lambda: server.metric("coredns_dns_requests_total") == 20)
    before = server.workers()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    soon(lambda: not set(before.values()) & set(server.workers().values()) and len(server.workers()) == 2)
    soon(lambda: server.get("/ready")[0] == 200)
    assert server.metric("coredns_dns_requests_total") == 20
    os.kill(server.pid, signal.SIGUSR1)
    server.until("Reloading complete")
    assert server.metric("coredns_dns_requests_total") == 20


def test_when_a_certificate_expires_was_summed_over_the_workers(
    several: Callable[..., Several], tmp_path: Path
) -> None:
    site = Site(tmp_path / "site")
    expires = x509.load_pem_x509_certificate((site.folder / "tls.crt").read_bytes()).not_valid_after_utc.timestamp()
    server = several(f" whoami\n}}\ntls://.:{free_port()} {{\n bind 127.0.0.1\n tls {site.folder}\n whoami")
    assert server.metric("kdns_tls_certificate_expires_timestamp_seconds") == expires
    # The process that watches over the workers reads the files too, once, and shows nobody the certificate.
    site.issue(NAME, not_after=datetime(2120, 1, 2, tzinfo=UTC))
    renewed = datetime(2120, 1, 2, tzinfo=UTC).timestamp()
    soon(lambda: server.metric("kdns_tls_certificate_expires_timestamp_seconds") == renewed)


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
    # One that is replaced has the state before it answers: nobody gets another answer meanwhile.
    os.kill(server.workers()[2], signal.SIGKILL)
    said = []
    while server.metric("kdns_worker_restarts_total") < 1 or server.metric("kdns_workers") < 2:
        said += [server.addresses("two.n1.svc.cluster.local.") for _ in range(10)]
    said += [server.addresses("two.n1.svc.cluster.local.") for _ in range(40)]
    assert [each for each in said if each != ["10.96.0.2"]] in ([], [["no reply"]])
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


def test_a_pipe_as_an_import_held_the_process_that_answers_probes(
    several: Callable[..., Several], tmp_path: Path
) -> None:
    """A single process read its Corefile in a waiting thread; the one that watches over workers did not."""
    os.mkfifo(tmp_path / "pipe")
    server = several()
    server.write(more=f" import {tmp_path}/pipe")
    os.kill(server.pid, signal.SIGUSR1)
    server.until("Reloading")
    for _ in range(100):  # much less than the five seconds that a pipe is waited for
        assert server.get("/health", timeout=3) == (200, "OK")
    server.until("did not end within 5 s")
    assert server.ask() is not None and server.end() == 0


def test_health_says_which_worker_hangs_and_it_is_replaced(several: Callable[..., Several]) -> None:
    server = several()
    first = server.workers()
    os.kill(first[2], signal.SIGSTOP)
    began = time.monotonic()
    assert server.get("/health") == (503, "worker 2 does not answer\n")
    assert time.monotonic() - began < 3
    assert server.get("/ready")[0] == 503
    assert server.get("/metrics")[0] == 200
    soon(lambda: server.workers().get(2, first[2]) != first[2], 60)
    soon(lambda: server.metric("kdns_workers") == 2 and server.get("/health")[0] == 200)
    assert server.metric("kdns_worker_restarts_total") == 1
    assert server.end() == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("0", "num sockets can not be zero or negative: 0"),
        ("-1", "num sockets can not be zero or negative: -1"),
        ("1025", "num sockets exceeds maximum (1024): 1025"),
        ("two", 'invalid num sockets: "two" is not a number'),
    ],
)
def test_a_bad_number_is_an_error_with_its_place(tmp_path: Path, words: str, text: str) -> None:
    path = tmp_path / "Corefile"
    path.write_text(f".:1053 {{\n    multisocket {words}\n    whoami\n}}\n")
    done = kdns("check", str(path))
    assert done.returncode == 1
    assert f"{path}:2:17" in done.stdout + done.stderr
    assert text in done.stdout + done.stderr


def test_the_status_page_is_that_of_all_workers(several: Callable[..., Several]) -> None:
    page = free_port()
    server = several(f" status 127.0.0.1:{page}\n template IN A {{\n  rcode NXDOMAIN\n }}\n whoami")
    for _ in range(40):
        assert server.ask("gone.example.org.") is not None
    for _ in range(20):
        assert server.ask("there.example.org.", "TXT") is not None
    http = server.http
    server.http = page
    try:
        state = json.loads(server.get("/status.json")[1])
        assert state["queries"] == 60 and state["rcodes"] == {"NXDOMAIN": 40, "NOERROR": 20}
        assert sum(state["latency_seconds"]["counts"]) == 60
        assert dict(state["names"]) == {"gone.example.org.": 40, "there.example.org.": 20}
        assert dict(state["denied"]) == {"example.org.": 40}
        assert state["outages"] == [] and state["failing_part"] == 0
        assert sum(value for _, value in state["series"]["requests"]) == 60
        assert "<html" in server.get("/")[1]
        assert set(json.loads(server.get("/history.json")[1])) == {"fine", "coarse"}
    finally:
        server.http = http
    assert server.end() == 0


def test_a_loop_is_found_by_whichever_worker_it_comes_back_to(several: Callable[..., Several]) -> None:
    port = free_port()
    server = several(f" loop {{\n  exit\n }}\n forward . 127.0.0.1:{port}", 4)
    # Once it listens on the port that it forwards to, it forwards to itself.
    server.path.write_text(server.path.read_text().replace(f".:{server.port} ", f".:{server.port} .:{port} "))
    os.kill(server.pid, signal.SIGUSR1)
    assert server.process.wait(WAIT) == 1
    server.end()
    assert any("Loop (" in line for line in server.lines)


def test_a_worker_that_dies_again_at_once_is_replaced_after_a_growing_pause(several: Callable[..., Several]) -> None:
    server = several()
    for count in range(1, 4):
        os.kill(server.workers()[1], signal.SIGKILL)
        soon(lambda count=count: server.metric("kdns_worker_restarts_total") == count)  # type: ignore[misc]
        soon(lambda: server.metric("kdns_workers") == 2)
    assert server.metric("kdns_worker_restarts_total") == 3
    assert server.end() == 0
    said = [line.partition("its place ")[2] for line in server.lines if "its place" in line]
    assert [each.partition(";")[0] for each in said] == ["now", "in 0.25 s", "in 0.5 s"]


def test_killing_a_worker_loses_at_most_what_waited_in_its_own_sockets(several: Callable[..., Several]) -> None:
    server = several()
    lost = sent = 0
    victim = server.workers()[1]
    for i in range(400):
        if i == 100:
            os.kill(victim, signal.SIGKILL)
        sent += 1
        lost += server.ask() is None
    assert sent == 400 and lost <= 1
    assert server.end() == 0


def test_n_may_change_with_a_reload_without_a_lost_query(several: Callable[..., Several]) -> None:
    server = several()
    with asking(server.port) as lost:
        for count in (3, 2):
            server.write(count)
            os.kill(server.pid, signal.SIGUSR1)
            soon(lambda count=count: sorted(server.workers()) == list(range(1, count + 1)))  # type: ignore[misc]
            server.until("Reloading complete")
    assert not lost
    assert server.end() == 0


def test_sigterm_to_one_worker_ends_and_replaces_it_without_a_lost_query(several: Callable[..., Several]) -> None:
    server = several()
    first = server.workers()
    with asking(server.port) as lost:
        os.kill(first[2], signal.SIGTERM)
        soon(lambda: server.workers().get(2, first[2]) != first[2] and server.metric("kdns_workers") == 2)
    assert not lost
    assert server.end() == 0


def test_the_workers_end_with_the_process_that_watches_over_them(several: Callable[..., Several]) -> None:
    server = several()
    pids = descendants(server.pid)
    assert len(pids) == 3
    server.process.kill()
    soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_start_that_fails_says_why_once_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        path = tmp_path / "Corefile"
        path.write_text(f".:{taken.getsockname()[1]} {{\n bind 127.0.0.1\n multisocket 2\n whoami\n}}\n")
        done = kdns("-conf", str(path))
    assert done.returncode == 1
    assert done.stderr.count("another process has this port") == 1


def test_one_is_a_single_process(several: Callable[..., Several]) -> None:
    server = several(" whoami", 1)
    assert server.ask() is not None
    assert descendants(server.pid) == []
    assert "kdns_worker" not in "".join(line for line in server.get("/metrics")[1].splitlines() if line[0] != "#")
    assert server.end() == 0


def test_the_default_is_what_affinity_and_cgroups_allow(tmp_path: Path) -> None:
    mine = len(os.sched_getaffinity(0))
    own = tmp_path / "cgroup"
    own.write_text("0::/kubepods/pod1\n")
    inner = tmp_path / "kubepods" / "pod1"
    inner.mkdir(parents=True)
    assert processors(str(tmp_path), str(own)) == mine
    (inner / "cpu.max").write_text("max 100000\n")
    assert processors(str(tmp_path), str(own)) == mine
    (tmp_path / "kubepods" / "cpu.max").write_text("50000 100000\n")
    assert processors(str(tmp_path), str(own)) == 1
    (tmp_path / "kubepods" / "cpu.max").write_text("150000 100000\n")
    assert processors(str(tmp_path), str(own)) == min(2, mine)
    own.write_text("3:cpu,cpuacct:/\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("20000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert processors(str(tmp_path), str(own)) == 1


def test_all_get_sigterm_at_once_and_end_without_a_complaint(several: Callable[..., Several]) -> None:
    server = several()
    for pid in [*descendants(server.pid), server.pid]:
        os.kill(pid, signal.SIGTERM)
    assert server.process.wait(WAIT) == 0
    server.end()
    assert not [line for line in server.lines if "ERROR" in line or "its place" in line]


def test_a_second_sigint_ends_all_at_once(several: Callable[..., Several]) -> None:
    server = several()
    pids = descendants(server.pid)
    os.kill(server.pid, signal.SIGINT)
    assert server.process.wait(WAIT) == 0
    soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_lines_say_which_worker_writes_them(several: Callable[..., Several]) -> None:
    server = several(" log\n errors\n forward . 127.0.0.1:1", 2)
    for _ in range(20):
        server.ask()
    server.end()
    failed = [line for line in server.lines if line.startswith("[ERROR]")]
    assert failed and all(re.match(r"\[ERROR\] worker [12]: plugin/errors: ", line) for line in failed)
    asked = [line for line in server.lines if '"A IN example.org.' in line]
    assert len(asked) == 20 and all(line.startswith("[INFO] 127.0.0.1:") for line in asked)


def test_json_lines_have_the_number_of_the_worker(several: Callable[..., Several]) -> None:
    server = several(" log\n whoami", 2, "-log-format", "json")
    for _ in range(20):
        assert server.ask() is not None
    server.end()
    asked = [each for line in server.lines if "example.org" in line and (each := json.loads(line))]
    assert len(asked) == 20 and {each["worker"] for each in asked} == {1, 2}


def test_long_lines_of_several_workers_are_not_mixed(several: Callable[..., Several]) -> None:
    server = several(' log . "{name} {name} {name} {name} {name} end"\n whoami', 3)
    name = ".".join(["a" * 60] * 3) + ".example.org."
    with asking(server.port):
        for _ in range(300):
            assert server.ask(name) is not None
    server.end()
    lines = [line for line in server.lines if (line.startswith("[INFO] ") and "end" in line) or "example" in line]
    assert len([line for line in lines if name in line]) == 300
    assert all(line.count("[INFO]") == 1 and line.endswith(" end") for line in lines)


def test_a_worker_of_a_plan_is_said(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:1053 {\n multisocket 3\n whoami\n}\n")
    done = kdns("plan", str(path))
    assert "served by 3 processes on the same ports (multisocket)" in done.stdout
    assert kdns("check", str(path)).returncode == 0


def test_a_notify_that_comes_to_one_worker_is_known_to_all(
    several: Callable[..., Several], serve: Serve, tmp_path: Path
) -> None:
    zone = "@ 3600 SOA ns h {serial} 3600 3600 86400 60\n@ NS ns\nx A 192.0.2.{serial}\n"
    path = tmp_path / "db"
    path.write_text(zone.replace("{serial}", "1"))
    first = serve(
        f"example.org:{{port}} {{\n bind 127.0.0.1\n transfer {{\n  to *\n }}\n"
        f" file {path} {{\n  reload 50ms\n }}\n}}\n"
    )
    server = several(f" secondary example.org {{\n  transfer from 127.0.0.1:{first.port}\n }}")
    soon(lambda: all(server.addresses("x.example.org.") == ["192.0.2.1"] for _ in range(20)))
    (tmp_path / "new").write_text(zone.replace("{serial}", "2"))
    os.replace(tmp_path / "new", path)
    soon(lambda: data(first.ask("x.example.org.")) == ["192.0.2.2"])
    notify = dns.message.make_query("example.org.", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert dns.query.udp(notify, "127.0.0.1", port=server.port, timeout=5).rcode() == 0
    soon(lambda: all(server.addresses("x.example.org.") == ["192.0.2.2"] for _ in range(20)))
    assert server.end() == 0


def test_a_snapshot_is_written_once_and_served_by_all_while_the_api_is_down(
    several: Callable[..., Several], api: ApiServer, tmp_path: Path
) -> None:
    api.put(namespace("n1"), service("n1/one", "10.96.0.1"))
    text = f" kubernetes cluster.local {{\n  endpoint {api.url}\n  snapshot {tmp_path}/state\n }}"
    first = several(text)
    soon(lambda: all(first.addresses("one.n1.svc.cluster.local.") == ["10.96.0.1"] for _ in range(10)))
    assert first.end() == 0
    assert (tmp_path / "state").stat().st_size > 100
    api.down()
    second = several(text)
    soon(lambda: all(second.addresses("one.n1.svc.cluster.local.") == ["10.96.0.1"] for _ in range(20)))
    assert second.get("/ready") == (200, "OK")
    assert second.end() == 0


def test_a_worker_that_dies_during_a_reload_comes_back_with_the_new_corefile(several: Callable[..., Several]) -> None:
    server = several(' template IN A {\n  answer "{{ .Name }} 1 IN A 192.0.2.1"\n }')
    server.text = server.text.replace("192.0.2.1", "192.0.2.2")
    server.write()
    os.kill(server.workers()[1], signal.SIGKILL)
    os.kill(server.pid, signal.SIGUSR1)
    server.until("Reloading complete")
    soon(lambda: server.metric("kdns_workers") == 2)
    assert all(server.addresses("a.org.") == ["192.0.2.2"] for _ in range(20))
    assert server.end() == 0


def test_without_the_process_that_forks_the_server_ends_to_be_started_again(several: Callable[..., Several]) -> None:
    server = several()
    pids = descendants(server.pid)
    (forks,) = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "kdns forks"]
    os.kill(forks, signal.SIGKILL)
    assert server.process.wait(WAIT) == 1
    server.end()
    assert any("the process that forks the workers has ended" in line for line in server.lines)
    soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_workers_cookie_is_good_at_the_others(several: Callable[..., Several]) -> None:
    server = several(" cookie\n whoami")
    query = dns.message.make_query("a.org.", "A", use_edns=0, options=[dns.edns.GenericOption(10, b"a" * 8)])
    made = given_back(dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5))
    query = dns.message.make_query("a.org.", "A", use_edns=0, options=[dns.edns.GenericOption(10, made)])
    # The kernel picks a worker by the source port: of forty all have some.
    for _ in range(40):
        assert given_back(dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5)) == made
    assert server.end() == 0


def test_one_process_signs_a_zone_and_all_serve_it(several: Callable[..., Several], tmp_path: Path) -> None:
    (tmp_path / "db.example.org").write_text("@ 60 SOA ns h 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\n")
    key = keymaker.make(tmp_path, "example.org.")
    signed = f"{tmp_path}/db.example.org.signed"
    server = several(
        f" sign {tmp_path}/db.example.org example.org {{\n key file {key}\n directory {tmp_path}\n }}\n"
        f" file {signed} example.org {{\n reload 1s\n }}\n whoami",
    )
    query = dns.message.make_query("ns.example.org.", "A", want_dnssec=True)

    def both_answer() -> bool:
        replies = [dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5) for _ in range(20)]
        return all(len(reply.answer) == 2 for reply in replies)

    soon(both_answer, 40)
    assert server.end() == 0
    assert sum("Successfully signed zone" in line for line in server.lines) == 1


def test_tenants_are_told_apart_by_all_workers(several: Callable[..., Several], api: ApiServer) -> None:
    for each in (
        namespace("a"), namespace("b"), service("a/web", "10.0.1.1"), service("b/web", "10.0.1.2"),
        pod("a/p", "127.0.1.1"), pod("b/p", "127.0.1.2"),
    ):  # fmt: skip
        api.put(each)
    kubernetes = f" kubernetes cluster.local {{\n  endpoint {api.url}\n }}"
    server = several(f"{kubernetes}\n tenants cluster.local {{\n  isolate\n  from networkpolicy\n  unknown deny\n }}")
    soon(lambda: server.get("/ready")[0] == 200)
    for client, own, other in (("127.0.1.1", "a", "b"), ("127.0.1.2", "b", "a")):
        for name, rcode in ((own, 0), (other, 3)):
            query = dns.message.make_query(f"web.{name}.svc.cluster.local.", "A")
            for _ in range(20):
                reply = dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5, source=client)
                assert reply.rcode() == rcode, (client, name)
    assert server.end() == 0


def test_updates_and_several_processes_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("@ 60 SOA ns h 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\n")
    (tmp_path / "Corefile").write_text(
        "example.org:1053 {\n bind 127.0.0.1\n multisocket 2\n tsig {\n  secret k. c2VjcmV0\n }\n dynupdate {\n"
        f"  file {tmp_path}/db\n  database {tmp_path}/zone\n  allow k. * *\n }}\n}}\n"
    )
    done = kdns("-conf", str(tmp_path / "Corefile"))
    assert done.returncode == 1 and "with multisocket each process would change" in done.stderr
