"""Plugins that serve HTTP: who shares an address, what a request may look like, and what a lame duck waits for."""

import asyncio
import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdns import metrics
from kdns.corefile import CorefileError
from kdns.plugins.prometheus import exposition
from kdns.plugins.prometheus.exposition import Exposition
from kdns.testing import block, eventually, free_port, http_get
from tests.fixtures import Serve

PATHS = ("/health", "/ready", "/metrics", "/", "/status.json")


def statuses(port: int, times: int = 8) -> set[tuple[str, int]]:
    """What each path gives, by many connections: where two sockets share a port the kernel picks one for each."""
    return {(path, http_get(port, path)[0]) for _ in range(times) for path in PATHS}


def everything(where: str) -> str:
    return block(f"health {where}", f"ready {where}", f"prometheus {where}", f"status {where}", "whoami")


def test_plugins_on_one_address_answered_half_of_the_requests(serve: Serve) -> None:
    port = free_port()
    server = serve(everything(f"127.0.0.1:{port}"))
    wanted = {(path, 200) for path in PATHS}
    assert statuses(port) == wanted
    # Not after a reload either, nor when some of them go and come back.
    assert server.reload(everything(f"127.0.0.1:{port}")) and statuses(port) == wanted
    assert server.reload(block(f"ready 127.0.0.1:{port}", "whoami"))
    assert statuses(port) == {(path, 200 if path == "/ready" else 404) for path in PATHS}
    assert server.reload(everything(f"127.0.0.1:{port}")) and statuses(port) == wanted
    assert server.reload(block("whoami"))
    with pytest.raises(OSError):
        http_get(port, "/ready")


@pytest.mark.parametrize("others", [("localhost",), ("", "0.0.0.0"), ("0.0.0.0", "", "[::]")])
def test_addresses_that_are_the_same_by_another_name_are_shared_too(serve: Serve, others: tuple[str, ...]) -> None:
    port = free_port("0.0.0.0")
    first = "127.0.0.1" if others == ("localhost",) else "0.0.0.0"
    lines = [
        f"{plugin} {host}:{port}" for plugin, host in zip(("health", "status", "prometheus"), others, strict=False)
    ]
    serve(block(f"ready {first}:{port}", *lines, "whoami"))
    wanted = dict.fromkeys(PATHS, 404) | {"/ready": 200, "/health": 200}
    if len(others) > 1:
        wanted |= {"/": 200, "/status.json": 200}
    if len(others) > 2:
        wanted["/metrics"] = 200
    assert statuses(port) == set(wanted.items())


def test_ready_is_one_for_all_blocks_on_an_address(serve: Serve) -> None:
    port = free_port()
    text = "\n".join(
        f"{zone}:{{port}} {{\n bind 127.0.0.1\n ready 127.0.0.1:{port}\n kubernetes cluster.local {{\n endpoint "
        f"http://127.0.0.1:{api}\n }}\n}}"
        for zone, api in (("a.org", free_port()), ("b.org", free_port()))
    )
    server = serve(text + f"\nc.org:{{port}} {{\n bind 127.0.0.1\n ready 127.0.0.1:{port}\n whoami\n}}\n")
    assert {http_get(port, "/ready") for _ in range(10)} == {(503, "kubernetes")}
    assert server.reload(block(f"ready 127.0.0.1:{port}", "whoami"))
    assert {http_get(port, "/ready") for _ in range(10)} == {(200, "OK")}


def test_one_address_with_two_web_configurations_is_an_error(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    web = tmp_path / "web.yaml"
    web.write_text("http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
    with pytest.raises(CorefileError, match=rf"Corefile:1:1: .*health and prometheus .*127.0.0.1:{port}"):
        serve(block(f"health 127.0.0.1:{port}", f"prometheus 127.0.0.1:{port} {{\n tls {web}\n }}", "whoami"))


# Requests.


def ask(port: int, request: str) -> bytes:
    """The first line of what a request gets."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(request.encode())
        return sock.makefile("rb").readline().rstrip()


@pytest.mark.parametrize(("target", "status"), [
    ("http://127.0.0.1/health", 200), ("HTTP://anybody:8080/health", 200), ("https://a/health?x=http://b/y", 200),
    ("/health?a=b", 200),
    ("http://a/nothing", 404), ("http://a", 404), ("http://a?x", 404), ("//a/health", 404), ("/http://a/health", 404),
    ("health", 400),
    ("http://[::1/health", 400),
])  # fmt: skip
def test_a_target_in_absolute_form_was_not_found(serve: Serve, target: str, status: int) -> None:
    port = free_port()
    serve(block(f"health 127.0.0.1:{port}", "whoami"))
    found = ask(port, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert found.split()[1] == str(status).encode()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_a_method_other_than_get_was_refused_where_coredns_answers(serve: Serve, method: str) -> None:
    port = free_port()
    serve(everything(f"127.0.0.1:{port}"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for path in PATHS:
        for body in (None, b"abc"):
            connection.request(method, path, body)
            response = connection.getresponse()
            found = response.read()
            assert response.status == 200 and (found == b"" if method == "HEAD" else found)
            assert int(response.headers["Content-Length"]) > 1
    connection.close()


def test_a_version_that_is_not_spoken_is_said_to_be(serve: Serve) -> None:
    port = free_port()
    serve(block(f"health 127.0.0.1:{port}", "whoami"))
    assert b" 505 " in ask(port, "GET /health HTTP/2.0\r\nHost: a\r\n\r\n")


# Metrics.


def test_scrapes_at_one_time_were_rendered_one_by_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def families() -> Iterator[bytes]:
        begun.append(0)
        for _ in range(200):
            yield b"a 1\n" * 1000
            time.sleep(0.0005)

    monkeypatch.setattr(metrics, "families", families)
    port = free_port()
    serve(block(f"prometheus 127.0.0.1:{port}", "whoami"))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: http_get(port, "/metrics"), range(16)))
    assert all(status == 200 and text.count("a 1\n") == 200_000 for status, text in found)
    # One for who came first, one for those who came while it ran; a slow machine lets some come later still.
    assert 1 <= len(begun) < 8


def test_a_scrape_that_is_given_up_ends_no_other(serve: Serve) -> None:
    port = free_port()
    serve(block(f"prometheus 127.0.0.1:{port}", "whoami"))
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert "coredns_build_info" in http_get(port, "/metrics")[1]


def test_large_metrics_were_put_together_in_one_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    many = metrics.Counter("test_many_total", "Many.", ("a",))
    try:
        for number in range(5000):
            many.slot(f"{number:0100}")
        body = asyncio.run(Exposition().respond()).body
        assert not isinstance(body, bytes) and len(body) > 8 and max(map(len, body)) < 2 * exposition.PIECE
        text = b"".join(body)
        assert text.count(b"# TYPE test_many_total ") == 1 and text.count(b"test_many_total{") == 5000
    finally:
        del metrics.REGISTRY["test_many_total"]


# The lame duck.


def test_two_lameducks_were_waited_for_one_after_the_other(serve: Serve, lines: list[str]) -> None:
    text = "".join(
        f"{zone}:{{port}} {{\n bind 127.0.0.1\n health 127.0.0.1:{free_port()} {{\n lameduck 30s\n }}\n whoami\n}}\n"
        for zone in ("a.org", "b.org")
    )
    server = serve(text)
    running = asyncio.run_coroutine_threadsafe(server.server.lameduck(), server.thread.loop)
    eventually(lambda: sum("Going into lameduck mode for 30s" in line for line in lines) == 2)
    running.cancel()


def test_a_lameduck_that_fails_ends_no_other(serve: Serve, lines: list[str]) -> None:
    server = serve(block(f"health 127.0.0.1:{free_port()} {{\n lameduck 300ms\n }}", "whoami"))

    async def fails() -> None:
        raise RuntimeError("boom")

    server.server.runtime.before_stop.insert(0, fails)
    began = time.monotonic()
    server.thread.run(server.server.lameduck())
    assert time.monotonic() - began > 0.25
    eventually(lambda: any("[ERROR]" in line and "boom" in line for line in lines))
