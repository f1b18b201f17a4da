"""Reloads and rollouts under load, over each encrypted transport: nothing is lost. The client is kdns's own `forward`,
which asks again what the end of a connection left without an answer, as any client must.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from kdns.metrics import REGISTRY
from kdns.testing import Server, data, eventually
from tests.fixtures import Serve
from tests.securepeers import NAME, Site

SCHEMES = ["tls", "https", "grpc", "quic", "https3"]
ANSWERS = (["192.0.2.1"], ["192.0.2.2"])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def above(serve: Serve, site: Site, scheme: str, port: int) -> Server:
    """A server that keeps nothing and asks another one over a scheme."""
    plugin = "grpc" if scheme == "grpc" else "forward"
    options = f"tls {site.authority.path}\n tls_servername {NAME}"
    to = f"127.0.0.1:{port}" if scheme == "grpc" else f"{scheme}://127.0.0.1:{port}"
    return serve(f".:{{port}} {{\n bind 127.0.0.1\n errors\n {plugin} . {to} {{\n {options}\n }}\n}}\n")


class Load:
    """Clients that ask all the time. `wrong` is what went wrong, `done` how many were answered."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.over = threading.Event()
        self.wrong: list[object] = []
        self.done = 0
        self.threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        while not self.over.is_set():
            try:
                reply: dns.message.Message = self.server.ask("a.example.org.", timeout=8)
            except Exception as error:
                self.wrong.append(error)
                continue
            self.done += 1
            if data(reply) not in ANSWERS:
                self.wrong.append(reply.to_text())

    def goes_on(self, count: int = 20) -> None:
        before = self.done
        eventually(lambda: self.wrong or self.done > before + count)


@contextlib.contextmanager
def load(server: Server) -> Iterator[Load]:
    made = Load(server)
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
