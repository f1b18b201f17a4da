"""Reloads and rollouts under load, over each encrypted transport: nothing is lost. The client is kdns's own `forward`,
which asks again what the end of a connection left without an answer, as any client must.
"""

import contextlib
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dns.message
import pytest

from kdns.metrics import REGISTRY
from kdns.server.dispatch import Dispatcher
from kdns.testing import Server, data, eventually, free_port
from tests.cli.test_commands import Process, processes  # noqa: F401 (a fixture)
from tests.fixtures import Serve
from tests.securepeers import HOSTS, NAME, Site
from tests.server.test_multisocket import descendants

SCHEMES = ["tls", "https", "grpc", "quic", "https3"]
ANSWERS = (["192.0.2.1"], ["192.0.2.2"])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def above(serve: Serve, site: Site, scheme: str, port: int, name: str = NAME) -> Server:
    """A server that keeps nothing and asks another one over a scheme."""
    plugin = "grpc" if scheme == "grpc" else "forward"
    options = f"tls {site.authority.path}\n tls_servername {name}"
    to = f"127.0.0.1:{port}" if scheme == "grpc" else f"{scheme}://127.0.0.1:{port}"
    return serve(f".:{{port}} {{\n bind 127.0.0.1\n errors\n {plugin} . {to} {{\n {options}\n }}\n}}\n")


def late(serve: Serve, site: Site, scheme: str) -> tuple[Server, Server, Dispatcher]:
    """A server that answers each query after 500 ms, one that has asked it over a scheme, and what answers there."""
    text = site.block("erratic {", "  delay 1 500ms", "}", scheme=scheme).replace(HOSTS, "").replace(" whoami\n", "")
    below = serve(text)
    server = above(serve, site, scheme, below.port)
    assert data(server.ask("first.example.org.")) == ["192.0.2.53"]
    return below, server, next(iter(below.server.instance.dispatchers.values()))


class Load:
    """Clients that ask all the time, each a server of its own. `wrong` is what went wrong, `done` how many were
    answered, `last` what each was answered last.
    """

    def __init__(self, *servers: Server) -> None:
        self.over = threading.Event()
        self.wrong: list[object] = []
        self.done = 0
        self.last: dict[Server, list[str]] = {}
        self.threads = [
            threading.Thread(target=self._ask, args=(server,)) for server in servers for _ in range(4 // len(servers))
        ]

    def _ask(self, server: Server) -> None:
        while not self.over.wait(0.005):  # so that what starts beside it has the processor too
            try:
                reply: dns.message.Message = server.ask("a.example.org.", timeout=8)
            except Exception as error:
                self.wrong.append(error)
                continue
            self.done += 1
            self.last[server] = data(reply)
            if data(reply) not in ANSWERS:
                self.wrong.append(reply.to_text())

    def goes_on(self, count: int = 20) -> None:
        before = self.done
        eventually(lambda: self.wrong or self.done > before + count)


@contextlib.contextmanager
def load(*servers: Server) -> Iterator[Load]:
    made = Load(*servers)
    for thread in made.threads:
        thread.start()
    try:
        yield made
    finally:
        made.over.set()
        for thread in made.threads:
            thread.join(20)


def handshakes(scheme: str, server: Server) -> float:
    return REGISTRY["kdns_tls_handshakes_total"].slots[(f"{scheme}://127.0.0.1:{server.port}", "ok")][0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reloads_under_load_lose_no_query_and_no_connection(serve: Serve, site: Site, scheme: str) -> None:
    text = site.block(scheme=scheme)
    below = serve(text)
    with load(above(serve, site, scheme, below.port)) as client:
        client.goes_on()
        opened = handshakes(scheme, below)
        for i in range(6):
            assert below.reload(text.replace("192.0.2.1", f"192.0.2.{1 + i % 2}"))
            client.goes_on()
    assert not client.wrong, client.wrong[:3]
    # Over TLS there may be one for each query in flight.
    assert handshakes(scheme, below) <= opened + (4 if scheme == "tls" else 0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rollout_under_load_loses_no_query(serve: Serve, site: Site, scheme: str) -> None:
    """Servers that share the port, one after the other."""
    text = site.block(scheme=scheme)
    old = serve(text, share_port=True)
    with load(above(serve, site, scheme, old.port)) as client:
        client.goes_on()
        for _ in range(3):
            new = serve(text, port=old.port, share_port=True)
            old.thread.run(old.server.stop())
            client.goes_on()
            old = new
    assert not client.wrong, client.wrong[:3]


class Workers:
    """Processes that serve a scheme on one port with two workers each."""

    def __init__(self, site: Site, scheme: str, made: list[Process]) -> None:
        self.port, self.http = free_port(), free_port()
        self.path = site.folder / "Corefile"
        self.text = site.block("multisocket 2", "prometheus 127.0.0.1:{http}", scheme=scheme)
        self.made = made

    def begin(self, number: int = 1) -> Process:
        """One more, with a page of metrics of its own."""
        self.http = free_port()
        self.write(number)
        made = Process("-conf", str(self.path), "-share-port")
        self.made.append(made)
        made.until("linux/")
        return made

    def write(self, number: int) -> None:
        """The answer from the next reload on."""
        text = self.text.replace("{port}", str(self.port)).replace("{http}", str(self.http))
        self.path.write_text(text.replace("192.0.2.1", f"192.0.2.{number}"))

    def handshakes(self) -> float:
        """Those that were made with the last process."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=10) as page:
            lines = page.read().decode()
        found = re.findall(r'^kdns_tls_handshakes_total\{.*result="ok".*\} (\S+)$', lines, re.M)
        return sum(float(value) for value in found)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reloads_of_several_workers_the_death_of_one_and_a_rollout_under_load_lose_no_query(
    serve: Serve,
    site: Site,
    scheme: str,
    processes: list[Process],  # noqa: F811
) -> None:
    workers = Workers(site, scheme, processes)
    old = workers.begin()
    with load(*(above(serve, site, scheme, workers.port) for _ in range(4))) as client:
        client.goes_on()
        opened = workers.handshakes()
        for number in (2, 1, 2):
            workers.write(number)
            old.process.send_signal(signal.SIGUSR1)
            expected = [f"192.0.2.{number}"]
            eventually(lambda expected=expected: client.wrong or list(client.last.values()) == [expected] * 4)
        # A reload ends no connection.
        assert client.wrong or workers.handshakes() <= opened + (4 if scheme == "tls" else 0)
        # A worker that dies takes its connections with it; what was asked on them is asked again.
        named = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in descendants(old.process.pid)}
        os.kill(named["kdns worker 1"], signal.SIGKILL)
        client.goes_on()
        workers.begin(2)
        client.goes_on()
        assert old.end(signal.SIGTERM) == 0
        client.goes_on()
    assert not client.wrong, client.wrong[:3]


@pytest.mark.parametrize("change", ["reload", "stop"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_queries_that_wait_while_the_server_changes_are_answered_on_the_connection_they_came_by(
    serve: Serve, site: Site, scheme: str, change: str
) -> None:
    below, server, dispatcher = late(serve, site, scheme)
    opened = handshakes(scheme, below)
    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(server.ask, f"x{number}.example.org.", timeout=8) for number in range(20)]
        eventually(lambda: len(dispatcher.waiting.table) == 20)
        if change == "reload":
            assert below.reload(below.text + "\n")
        else:
            below.thread.run(below.server.stop())
        assert [data(each.result()) for each in found] == [["192.0.2.53"]] * 20
    assert handshakes(scheme, below) <= opened + (19 if scheme == "tls" else 0)


@pytest.mark.parametrize("scheme", ["quic", "https3"])
def test_answers_that_waited_for_their_pace_were_lost_when_the_server_ended(
    serve: Serve, site: Site, scheme: str
) -> None:
    """A farewell takes the place of all that waits, and nothing is sent again after it (RFC 9000, section 10.2)."""
    below, server, dispatcher = late(serve, site, scheme)
    (listener,) = next(iter(below.server.listeners.values())).tcp
    until = 0.0

    def pace(now: float) -> float | None:
        return now + 0.02 if now < until else None

    with ThreadPoolExecutor(5) as pool:
        found = [pool.submit(server.ask, f"x{number}.example.org.", timeout=8) for number in range(5)]
        eventually(lambda: len(dispatcher.waiting.table) == 5)
        until = below.thread.call(below.thread.loop.time) + 0.8
        for connection in listener.connections:
            connection.quic._loss._pacer.next_send_time = pace
        below.thread.run(below.server.stop())
        assert [data(each.result()) for each in found] == [["192.0.2.53"]] * 5
