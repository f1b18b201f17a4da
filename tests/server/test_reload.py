"""Reloading: what did not change is kept, what is wrong changes nothing, and no query is lost."""

import threading
from pathlib import Path

import pytest
import yaml

from kdns.plugins import reload as reload_plugin
from kdns.testing import ApiServer, code, data, eventually, free_port, http_get
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve


def text(address: str, more: str = "") -> str:
    return f".:{{port}} {{\n bind 127.0.0.1\n hosts /nowhere {{\n {address} a.org\n fallthrough\n }}\n {more}\n}}\n"


def test_a_reload_serves_the_new_corefile_and_loses_no_query(serve: Serve) -> None:
    server = serve(text("10.0.0.0"))
    wrong: list[object] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            for tcp in (False, True):
                try:
                    found = data(server.ask("a.org.", tcp=tcp, timeout=2))
                except Exception as error:
                    wrong.append(error)
                else:
                    if not (len(found) == 1 and found[0].startswith("10.0.0.")):
                        wrong.append(found)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(1, 60):
        assert server.reload(text(f"10.0.0.{i}"))
        assert data(server.ask("a.org.")) == [f"10.0.0.{i}"]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("bad", [
    "nonsense {",
    ".:{port} {\n whomai\n}\n", ".:{port} {\n forward . /nowhere/x\n}\n", ".:{port} {\n bind 203.0.113.9\n whoami\n}\n",
])  # fmt: skip
def test_a_bad_corefile_keeps_the_old_one_and_says_where(serve: Serve, lines: list[str], bad: str) -> None:
    server = serve(text("10.0.0.1"))
    assert not server.reload(bad)
    assert any("[ERROR] Restart failed: " in line for line in lines)
    assert data(server.ask("a.org.")) == ["10.0.0.1"]
    assert server.reload(text("10.0.0.2")) and data(server.ask("a.org.")) == ["10.0.0.2"]


def test_a_port_that_is_taken_fails_the_reload_and_health_stays_up(serve: Serve) -> None:
    import socket

    health = free_port()
    server = serve(text("10.0.0.1", f"health 127.0.0.1:{health}"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        other = taken.getsockname()[1]
        bad = text("10.0.0.2", f"health 127.0.0.1:{health}") + f"b.org:{other} {{\n bind 127.0.0.1\n whoami\n}}\n"
        assert not server.reload(bad)
    assert http_get(health, "/health") == (200, "OK")
    assert data(server.ask("a.org.")) == ["10.0.0.1"]


def test_the_informer_is_kept_where_its_configuration_did_not_change(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))

    def corefile(ttl: int) -> str:
        return f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n endpoint {api.url}\n ttl {ttl}\n }}\n}}\n"

    server = serve(corefile(5))
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"])
    eventually(lambda: code(server.ask("x.n1.svc.cluster.local.")) == "NXDOMAIN")
    requests = len(api.requests)
    assert server.reload(corefile(60))
    reply = server.ask("web.n1.svc.cluster.local.")
    assert data(reply) == ["10.0.0.1"] and reply.answer[0].ttl == 60
    assert len(api.requests) == requests
    api.put(service("n1/web", "10.0.0.2"))
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.2"])


def test_a_listener_that_is_new_or_gone_is_opened_or_closed(serve: Serve) -> None:
    server = serve(text("10.0.0.1"))
    other = free_port()
    assert server.reload(text("10.0.0.1") + f"b.org:{other} {{\n bind 127.0.0.1\n whoami\n}}\n")
    first, server.port = server.port, other
    assert code(server.ask("b.org.")) == "EMPTY"
    server.port = first
    assert server.reload(text("10.0.0.1"))
    server.port = other
    with pytest.raises(OSError):
        server.ask("b.org.", tcp=True, timeout=1)
    server.port = first


def test_the_reload_plugin_follows_a_file_and_its_imports(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_plugin, "MIN_INTERVAL", 0.05)
    extra = tmp_path / "extra"
    extra.write_text("hosts /nowhere {\n 10.0.0.1 a.org\n}\n")
    body = f".:{{port}} {{\n bind 127.0.0.1\n reload 50ms 0\n import {extra}\n}}\n"
    server = serve(body)
    eventually(lambda: any("plugin/reload: Running configuration SHA512 = " in line for line in lines))
    assert data(server.ask("a.org.")) == ["10.0.0.1"]
    extra.write_text("hosts /nowhere {\n 10.0.0.2 a.org\n}\n")
    eventually(lambda: data(server.ask("a.org.")) == ["10.0.0.2"])
    failed = reload_plugin.FAILED.slot()
    before = failed[0]
    extra.write_text("hosts /nowhere {\n 10.0.0.3 a.org\n ttl nope\n}\n")
    eventually(lambda: failed[0] == before + 1)
    assert any(f"{extra}:3:" in line for line in lines)
    assert data(server.ask("a.org.")) == ["10.0.0.2"]
    # What cannot even be parsed is counted too, once and not at every look.
    extra.write_text("hosts /nowhere {\n")
    eventually(lambda: failed[0] == before + 2)
    extra.unlink()
    eventually(lambda: failed[0] == before + 3)
    assert sum("Corefile changed but reload failed" in line for line in lines) == 3
    extra.write_text("hosts /nowhere {\n 10.0.0.4 a.org\n}\n")
    eventually(lambda: data(server.ask("a.org.")) == ["10.0.0.4"])


def test_the_soa_serial_never_falls_through_a_reload_or_a_wrong_clock(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n manifests {path}\n }}\n}}\n")

    def serial() -> int:
        return int(server.ask("cluster.local.", "SOA").answer[0][0].serial)

    first = serial()
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 3600)
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.2")))
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.2"])
    assert serial() >= first
    assert server.reload(server.text.replace("manifests", "ttl 60\n manifests"))
    assert serial() >= first


def test_the_hash_that_is_shown_is_that_of_what_is_served(serve: Serve, lines: list[str]) -> None:
    def shown() -> list[str]:
        return [value for (_, value), slot in reload_plugin.VERSION.slots.items() if slot[0]]

    server = serve(text("10.0.0.1", "reload"))
    first = shown()
    assert any(line.endswith(f"Running configuration SHA512 = {first[0]}") for line in lines)
    lines.clear()
    assert server.reload(text("10.0.0.2", "reload"))
    second = shown()
    assert len(first) == len(second) == 1 and first != second
    said = [line for line in lines if "Reload" in line or "SHA512" in line]
    assert said == [
        "[INFO] Reloading", f"[INFO] plugin/reload: Running configuration SHA512 = {second[0]}", "[INFO] Reloading complete",
    ]  # fmt: skip
    assert not server.reload("nonsense {") and shown() == second


def test_a_reload_leaves_no_panel_of_enabled_plugins_empty(serve: Serve) -> None:
    port = free_port()
    body = text("10.0.0.1", f"prometheus 127.0.0.1:{port}\n errors")
    server = serve(body)

    def enabled() -> list[str]:
        lines = http_get(port, "/metrics")[1].splitlines()
        mark = f'server="dns://127.0.0.1:{server.port}"'
        return sorted(line for line in lines if line.startswith("coredns_plugin_enabled{") and mark in line)

    before = enabled()
    assert len(before) == 3
    assert server.reload(body) and enabled() == before
    assert not server.reload(body + f".:{server.port} {{\n}}") and enabled() == before
    assert server.reload(text("10.0.0.1", f"prometheus 127.0.0.1:{port}")) and len(enabled()) == 2
