"""Reloading: what did not change is kept, what is wrong changes nothing, and no query is lost."""

import asyncio
import gc
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdns.metrics import REGISTRY
from kdns.plugin import Plugin, Request
from kdns.plugins import reload as reload_plugin
from kdns.server import gc_policy, lifecycle
from kdns.server.order import BUILT
from kdns.store.trie import Node
from kdns.testing import ApiServer, Server, Upstream, answer, code, data, eventually, free_port, http_get
from kdns.testing.objects import namespace, service
from tests.cli.test_commands import Process, kdns, processes  # noqa: F401 - a fixture
from tests.fixtures import Serve
from tests.securepeers import NAME, Site
from tests.zones import keymaker


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
                    found = data(server.ask("a.org.", tcp=tcp, timeout=10))
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


@pytest.mark.parametrize("bad", [
    "nonsense {",  # cannot be read
    ".:{port} {\n whomai\n}\n",
    ".:{port} {\n cache 0\n}\n",  # a plugin's own parse
    ".:{port} {\n forward . /nowhere/x\n}\n",  # load
    ".:{port} {\n whoami\n}\n.:{port} {\n whoami\n}\n",
    ".:{port} {\n bind 127.0.0.1\n status 203.0.113.9:80\n whoami\n}\n",  # start
    ".:{port} {\n bind 203.0.113.9\n whoami\n}\n",  # sockets
])  # fmt: skip
def test_a_reload_that_failed_left_garbage_collection_off_until_the_restart(serve: Serve, bad: str) -> None:
    server = serve(text("10.0.0.1"))
    assert gc.isenabled()
    assert not server.reload(bad)
    assert gc.isenabled() and data(server.ask("a.org.")) == ["10.0.0.1"]
    assert server.reload(text("10.0.0.2")) and gc.isenabled() and data(server.ask("a.org.")) == ["10.0.0.2"]


EVERYTHING = """
.:{port} {
    bind 127.0.0.1
    root FOLDER
    metadata
    cancel 300ms
    timeouts {
        idle 5s
    }
    reload
    limits {
        qps 10000
    }
    nsid x
    shed 1s
    bufsize
    debug
    ready 127.0.0.1:READY
    health 127.0.0.1:HEALTH
    prometheus 127.0.0.1:PROMETHEUS
    status 127.0.0.1:STATUS
    errors {
        consolidate 5m ".*" warning
    }
    log
    family
    local
    dns64
    siit
    acl {
        allow
    }
    any
    chaos
    loadbalance
    cache {
        prefetch 1
        serve_stale
    }
    rewrite name exact b.org a.org
    rewrite edns0 local set 0xffee abcd
    header {
        response set aa
    }
    minimal
    blocklist {
        name blocked.example.org
    }
    autopath search.conf
    searchpath
    template IN A t.org {
        answer "{{ .Name }} 60 IN A 192.0.2.7"
    }
    transfer {
        to *
    }
    hosts hosts {
        fallthrough
    }
    tenants cluster.local {
        isolate
        unknown allow
    }
    kubernetes cluster.local in-addr.arpa {
        manifests c.yaml
        fallthrough
    }
    k8s_external ext.org
    tsig sec.org {
        secret key.org c2VjcmV0
    }
    dynupdate dyn.org {
        file db.file.org
        database dyn.zone
        allow key.org * TXT
    }
    file db.file.org file.org
    auto auto.org {
        directory zones
    }
    secondary sec.org {
        transfer from 127.0.0.1:9
        tsig key.org
    }
    loop
    forward . UPSTREAM
    grpc g.org 127.0.0.1:1
}
v.org:{port} {
    bind 127.0.0.1
    metadata
    view x {
        expr metadata('view/name') == 'x'
    }
    whoami
}
tls://.:TLS {
    bind 127.0.0.1
    tls FOLDER/tls.crt FOLDER/tls.key
    whoami
}
https://.:HTTPS grpc://.:GRPC {
    bind 127.0.0.1
    tls FOLDER/tls.crt FOLDER/tls.key
    https
    grpc_server
    proxyproto
    whoami
}
quic://.:QUIC https3://.:H3 {
    bind 127.0.0.1
    tls FOLDER/tls.crt FOLDER/tls.key
    quic
    https3
    whoami
}
e.org:{port} {
    bind 127.0.0.1
    erratic {
        drop 0
    }
    cookie
    multisocket 1
}
signed.org:{port} {
    bind 127.0.0.1
    dnssec {
        key file KEY
    }
    sign FOLDER/db.signed.org {
        key file KEY
        directory FOLDER
    }
    file FOLDER/db.signed.org.signed
}
"""
QUESTIONS = (
    "a.org.",
    "b.org.",
    "web.n1.svc.cluster.local.",
    "nope.n1.svc.cluster.local.",
    "x.t.org.",
    "a.v.org.",
    "x.ext.org.",
    "x.file.org.",
    "x.auto.org.",
    "x.sec.org.",
)


@pytest.fixture
def everything(tmp_path: Path, upstream: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch) -> str:
    """A Corefile with every plugin that there is."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump_all([namespace("n1"), service("n1/web", "10.0.0.1")]))
    (tmp_path / "hosts").write_text("10.0.0.1 a.org")
    Site(tmp_path)
    (tmp_path / "search.conf").write_text("search n1.svc.cluster.local")
    (tmp_path / "zones").mkdir()
    for path in ("db.file.org", "zones/db.auto.org"):
        (tmp_path / path).write_text("@ 60 SOA ns h 1 60 60 60 60\n@ NS ns\nx A 192.0.2.1\n")
    (tmp_path / "db.signed.org").write_text("@ 60 SOA ns h 1 60 60 60 60\n@ NS ns\nx A 192.0.2.1\n")
    key = keymaker.make(tmp_path, "signed.org.")
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    monkeypatch.setattr(up, "queries", deque(maxlen=1))  # what this test counts must not grow by itself
    text = EVERYTHING.replace("FOLDER", str(tmp_path)).replace("UPSTREAM", up.address).replace("KEY", key)
    for word in ("READY", "HEALTH", "PROMETHEUS", "STATUS", "TLS", "HTTPS", "GRPC", "QUIC", "H3"):
        text = text.replace(word, str(free_port()))
    return text


def parts(server: Server) -> dict[str, weakref.ref[Any]]:
    """What a configuration consists of, held weakly."""
    instance = server.server.instance
    assert instance is not None
    found: dict[str, Any] = {plugin.name: plugin for plugin in instance.plugins}
    found |= {f"dispatcher {group.label}": dispatcher for group, dispatcher in instance.dispatchers.items()}
    found |= {f"chain of {block.zones}": block.chain for block in instance.blocks}
    return {name: weakref.ref(each) for name, each in found.items()}


@pytest.mark.interpreted("compiled classes have no weak references")
def test_a_configuration_that_was_replaced_stayed_in_memory_for_ever(serve: Serve, everything: str) -> None:
    server = serve(everything)
    old = parts(server)
    assert set(old) >= set(BUILT) - {"import"}
    for name in QUESTIONS:
        server.ask(name)
        server.ask(name, tcp=True)
    server.ask("outside.example.org.")
    gc.collect()
    gc.disable()  # nothing but reference counting frees it
    try:
        assert server.reload(everything)
        eventually(lambda: not [name for name, part in old.items() if part() is not None])
    finally:
        gc.enable()


def test_a_clusters_state_that_nobody_serves_any_more_stayed_in_memory(serve: Serve, api: ApiServer) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    text = f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n endpoint {api.url}\n }}\n}}\n"
    server = serve(text)
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"])
    gc.collect()
    assert server.server.instance is not None
    old = [weakref.ref(each) for each in (found("kubernetes", server).source, found("kubernetes", server).cluster)]
    gc.disable()
    try:
        assert server.reload(text.replace("endpoint", "labels a\n endpoint"))
        eventually(lambda: not any(part() for part in old))
    finally:
        gc.enable()


def test_a_hosts_file_that_is_read_again_left_what_was_read_before(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 a.org\n")
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n hosts {path} {{\n reload 50ms\n }}\n}}\n")

    def nodes() -> int:
        return sum(type(each) is Node for each in gc.get_objects())

    def read_again(address: str) -> None:
        path.write_text(f"{address} a.org{' ' * len(address)}\n")
        eventually(lambda: data(server.ask("a.org.")) == [address])

    gc.disable()
    try:
        read_again("10.0.0.22")
        first = nodes()
        read_again("10.0.0.133")
        read_again("10.0.0.4")
        eventually(lambda: nodes() <= first)
    finally:
        gc.enable()


def test_a_query_that_a_reload_does_not_wait_for_is_servfail_and_no_fault_of_ours(
    serve: Serve, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, over = asyncio.Event(), threading.Event()

    class Slow(Plugin):
        name = "slow"

        async def handle(self, request: Request) -> None:
            await go_on.wait()
            over.set()
            request.slots[self.position] = 1  # what it knew is gone

    monkeypatch.setattr(lifecycle, "DRAIN", 0.1)
    server = serve(text("10.0.0.1", "slow"), plugins=[Slow])
    panics = REGISTRY["coredns_panics_total"].slots[()]
    before = panics[0]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "x.org.", timeout=10)
        assert server.server.instance is not None
        waiting = [dispatcher.waiting for dispatcher in server.server.instance.dispatchers.values()]
        eventually(lambda: any(each.table for each in waiting))
        assert server.reload(text("10.0.0.2"))
        assert code(asked.result()) == "SERVFAIL"
    server.thread.call(go_on.set)
    assert over.wait(10) and data(server.ask("a.org.")) == ["10.0.0.2"]
    assert panics[0] == before and not [line for line in lines if "panic" in line]


def test_garbage_that_a_relist_left_was_never_found(serve: Serve) -> None:
    """What a hold ends with goes through a pass if a pass can take it, and is not put where none looks."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

    serve(text("10.0.0.1"))
    over = gc_policy.pause()
    garbage = weakref.ref(Cycle())
    assert not gc.isenabled() and garbage() is not None
    over()
    assert gc.isenabled()
    gc.collect(0)
    assert garbage() is None


def found(name: str, server: Server) -> Any:
    """A plugin of the configuration that is served."""
    assert server.server.instance is not None
    return next(plugin for plugin in server.server.instance.plugins if plugin.name == name)


@pytest.mark.interpreted("compiled classes have no weak references")
def test_thirty_reloads_with_a_full_cache_left_thirty_caches(serve: Serve, everything: str) -> None:
    server = serve(everything)

    def reloaded(times: int) -> int:
        old = []
        for _ in range(times):
            old += parts(server).values()
            for n in range(50):
                assert data(server.ask(f"x{n}.example.org.")) == ["192.0.2.1"]
            assert server.reload(everything)
        # Deadlines that were not cancelled hold a few things for some seconds more.
        eventually(lambda: not any(part() for part in old))
        return gc.get_freeze_count()

    first = reloaded(2)
    assert reloaded(30) < first + 3_000 and gc.isenabled()


@pytest.mark.parametrize("tcp", [False, True])
def test_a_reload_that_closed_a_port_cut_the_queries_that_waited_there(serve: Serve, tcp: bool) -> None:
    block = ".:{port} {\n bind 127.0.0.1\n erratic {\n  delay 1 500ms\n }\n}\n"
    server = serve(block)
    dispatcher = next(iter(server.server.instance.dispatchers.values()))
    with ThreadPoolExecutor(5) as pool:
        found = [pool.submit(server.ask, f"x{number}.org.", tcp=tcp, timeout=8) for number in range(5)]
        eventually(lambda: len(dispatcher.waiting.table) == 5)
        assert server.reload(block.replace("{port}", str(free_port())))
        assert [data(each.result()) for each in found] == [["192.0.2.53"]] * 5
    with pytest.raises(OSError):
        server.connect()


def test_a_port_that_is_taken_fails_the_reload_and_health_stays_up(serve: Serve) -> None:
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
        return (
            f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n endpoint {api.url}\n ttl {ttl}\n }}\n}}\n"
        )

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


@pytest.mark.parametrize("workers", ["", " multisocket 2\n"])
def test_a_reload_that_changed_a_scheme_or_an_address_said_that_another_process_has_the_port(
    tmp_path: Path,
    processes: list[Process],  # noqa: F811
    workers: str,
) -> None:
    site, port, path = Site(tmp_path / "site"), free_port(), tmp_path / "Corefile"

    def corefile(scheme: str, bind: str = "127.0.0.1") -> str:
        where = f" bind {bind}\n" if bind else ""
        return f"{scheme}://.:{port} {{\n{where}{workers} tls {site.folder}\n whoami\n}}\n"

    def reloaded(text: str) -> str:
        path.write_text(text)
        server.process.send_signal(signal.SIGUSR1)
        while (line := server.until("Re")).endswith("Reloading"):
            pass
        return line

    def answers(scheme: str) -> bool:
        trust = ["-ca", str(site.authority.path), "-name", NAME]
        return kdns("query", f"@{scheme}://127.0.0.1", "-p", str(port), *trust, "who.example").returncode == 0

    path.write_text(corefile("https"))
    server = Process("-conf", str(path))
    processes.append(server)
    server.until("linux/")
    for words in (["tls"], ["quic"], ["https3"], ["dns"], ["dns", ""], ["dns", "127.0.0.1 ::1"], ["grpc", ""]):
        assert reloaded(corefile(*words)).endswith("Reloading complete")
        assert answers(words[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        other = f"tls://b.example:{taken.getsockname()[1]} {{\n bind 127.0.0.1\n whoami\n}}\n"
        assert "another process has this port" in reloaded(corefile("grpc", "") + other)
    assert answers("grpc")


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


def test_a_look_at_the_corefile_that_fails_for_any_reason_is_not_the_last(
    serve: Serve, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_plugin, "MIN_INTERVAL", 0.05)
    server = serve(text("10.0.0.1", "reload 50ms 0"))
    looks = server.server.runtime.fingerprint
    failed = threading.Event()

    def fails() -> str:
        failed.set()
        raise RuntimeError("boom")

    server.server.runtime.fingerprint = fails
    assert failed.wait(20)
    server.server.runtime.fingerprint = looks
    server.text = text("10.0.0.2", "reload 50ms 0")
    eventually(lambda: data(server.ask("a.org.")) == ["10.0.0.2"])


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
        "[INFO] Reloading", f"[INFO] plugin/reload: Running configuration SHA512 = {second[0]}",
        "[INFO] Reloading complete",
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
