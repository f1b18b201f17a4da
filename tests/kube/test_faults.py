"""Faults of an API server and of the way to it, each under a load of queries that must not notice."""

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import msgspec
import pytest
import trustme

from kdns.kube import api as api_module
from kdns.kube import decode, informer, reflector, resync
from kdns.kube import snapshot as snapshots
from kdns.kube.access import ApiConfig
from kdns.kube.api import Client
from kdns.kube.cluster import Cluster
from kdns.kube.informer import ApiSource
from kdns.kube.objects import SERVICE, Namespace
from kdns.kube.source import WatchScope
from kdns.metrics import REFRESH, REGISTRY
from kdns.testing import ApiServer, Server, code, data, eventually, free_port, http_get
from kdns.testing.objects import endpoint, endpointslice, namespace, pod, service
from tests.fixtures import Serve
from tests.kube.load import asking

COREFILE = ".:{port} {\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa {\n SOURCE\n ttl 30\n }\n}\n"

KEPT: dict[str, list[str] | str] = {"kept.n1": ["10.0.0.1"], "db.n1": ["10.1.0.1"], "never.n1": "NXDOMAIN"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses in hundredths of a second, so that tests do not wait for them."""
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 0.1))
    monkeypatch.setattr(informer, "TICK", 0.02)


@pytest.fixture
def api(api: ApiServer) -> ApiServer:
    api.put(
        namespace("n1"),
        service("n1/kept", "10.0.0.1"),
        service("n1/db"),
        endpointslice("n1/db-1", "db", endpoint("10.1.0.1")),
    )
    return api


TCP_OPTIONS = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)


def start(serve: Serve, api: ApiServer, more: str = "") -> Server:
    server = serve(COREFILE.replace("SOURCE", f"endpoint {api.url}\n {more}"))
    eventually(lambda: code(server.ask("nothing.default.svc.cluster.local.")) == "NXDOMAIN")
    return server


def a(server: Server, name: str) -> list[str] | str:
    reply = server.ask(f"{name}.svc.cluster.local.")
    return data(reply) if reply.answer else code(reply)


def source(server: Server) -> Any:
    return next(p for p in server.server.instance.plugins if p.name == "kubernetes").source  # type: ignore[union-attr, attr-defined]


def count(name: str, *labels: str) -> float:
    for refresh in list(REFRESH):
        refresh()
    return sum(slot[0] for known, slot in REGISTRY[name].slots.items() if known[: len(labels)] == labels)


def brought(api: ApiServer, plural: str = "services") -> list[str]:
    """The requests for everything of a kind."""
    ours = [path for path in api.requests if plural in path.partition("?")[0]]
    return [
        path for path in ours if "sendInitialEvents" in path or ("watch" not in path and "limit=1&" not in path + "&")
    ]


def extended_errors(reply: dns.message.Message) -> list[int]:
    return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]


# How everything is brought.


def test_everything_comes_as_a_stream_where_the_api_offers_that(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    assert a(server, "kept.n1") == ["10.0.0.1"]
    assert len(brought(api)) == 1 and "resourceVersionMatch=NotOlderThan" in brought(api)[0]


def test_and_in_pages_where_it_does_not(serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reflector.PAGE, "Service", 2)
    api.streams = False
    api.put(*(service(f"n1/s{i}", f"10.0.9.{i}") for i in range(12)))
    server = start(serve, api)
    assert a(server, "s11.n1") == ["10.0.9.11"] and len(brought(api)) == 1 + 7
    api.expire()
    eventually(lambda: len(brought(api)) == 1 + 14)  # a stream is not asked for again


def test_pages_may_come_compressed(serve: Serve, api: ApiServer) -> None:
    api.streams = False
    api.put(*(service(f"n1/s{i}", f"10.0.9.{i}") for i in range(50)))
    assert a(start(serve, api), "s49.n1") == ["10.0.9.49"]


def test_a_continue_token_that_expires_begins_a_new_list_with_larger_pages(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reflector.PAGE, "Service", 2)
    api.streams = False
    server = start(serve, api)
    api.put(*(service(f"n1/s{i}", f"10.0.9.{i}") for i in range(10)))
    api.page_delay = 0.03
    with asking(server, KEPT):
        before = len(brought(api))
        api.expire()
        eventually(lambda: len(brought(api)) > before + 1)
        api.compact()
        api.put(service("n1/late", "10.0.0.7"))
        eventually(lambda: a(server, "late.n1") == ["10.0.0.7"])
    assert source(server).reflectors[1].page > 2


def test_an_object_too_large_for_a_stream_comes_in_a_page(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdns.kube.decode.MAX_LINE", 1 << 20)
    huge = service("n1/huge", "10.0.0.8")
    huge["metadata"]["annotations"] = {"x": "y" * (2 << 20)}
    api.put(huge)
    assert a(start(serve, api), "huge.n1") == ["10.0.0.8"]


# K2, K13: away, and how old that makes the state.


def test_answers_from_old_data_say_so_to_clients_with_edns(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "STALE_AFTER", 0.2)
    http = free_port()
    server = serve(
        COREFILE.replace("SOURCE", f"endpoint {api.url}").replace("ttl 30\n }", f"ttl 30\n }}\n ready 127.0.0.1:{http}")
    )
    eventually(lambda: a(server, "kept.n1") == ["10.0.0.1"])
    name = "kept.n1.svc.cluster.local."
    for _ in range(2):
        assert extended_errors(server.ask(name, use_edns=0)) == []
    assert count("kdns_kubernetes_data_age_seconds", "Service") == 0
    with asking(server, KEPT):
        api.down()
        eventually(lambda: extended_errors(server.ask(name, use_edns=0)) == [3])
        eventually(lambda: extended_errors(server.ask("never.n1.svc.cluster.local.", use_edns=0)) == [3])
        assert not server.ask(name).options
        assert count("kdns_kubernetes_data_age_seconds", "Service") > 0.1
        assert http_get(http, "/ready") == (200, "OK")
        api.up()
        eventually(lambda: extended_errors(server.ask(name, use_edns=0)) == [])
        eventually(lambda: extended_errors(server.ask("never.n1.svc.cluster.local.", use_edns=0)) == [])
    assert count("kdns_kubernetes_data_age_seconds", "Service") == 0


# K3: ends and errors.


@pytest.mark.parametrize("how", ["end", "cut", "429", "500", "restart"])
def test_watches_that_end_in_any_way_lose_nothing(serve: Serve, api: ApiServer, how: str) -> None:
    server = start(serve, api)
    with asking(server, KEPT):
        for i in range(5):
            if how == "restart":
                api.down()
            elif how == "cut":
                api.cut()
            else:
                api.fail = [] if how == "end" else [int(how)] * 3
                api.close_watches()
            api.put(service(f"n1/new{i}", f"10.0.4.{i}"))
            if how == "restart":
                api.up()
            eventually(lambda i=i: a(server, f"new{i}.n1") == [f"10.0.4.{i}"])
    assert len(brought(api)) == 1


def test_retry_after_is_waited_for(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    api.retry_after = "1"
    api.fail = [429] * 3  # one for each kind
    began = time.monotonic()
    api.close_watches()
    eventually(lambda: not api.fail)
    api.put(service("n1/new", "10.0.4.1"))
    eventually(lambda: a(server, "new.n1") == ["10.0.4.1"])
    assert time.monotonic() - began > 0.9


# K4 and another history.


@pytest.mark.parametrize("how", ["status", "event"])
def test_410_under_load_shows_no_wrong_answer(serve: Serve, api: ApiServer, how: str) -> None:
    api.put(service("n1/old", "10.0.0.2"))
    server = start(serve, api)
    with asking(server, KEPT):
        api.quietly(service("n1/new", "10.0.0.3"), delete=("Service", "n1/old"))
        api.compact()
        api.close_watches() if how == "status" else api.send_error(410)
        eventually(lambda: a(server, "new.n1") == ["10.0.0.3"] and a(server, "old.n1") == "NXDOMAIN")


@pytest.mark.parametrize("streams", [True, False])
def test_an_etcd_that_was_restored_from_a_backup_is_noticed_and_believed(
    serve: Serve, api: ApiServer, streams: bool
) -> None:
    """The collection's resourceVersion is lower than ours: CoreDNS waits for it to catch up, and serves the lost
    future.
    """
    api.streams = streams
    api.put(
        *(service(f"n1/x{i}", "10.0.5.1") for i in range(20)),
        service("n1/future", "10.0.0.5"),
        service("n1/moved", "10.0.0.6"),
    )
    server = start(serve, api)
    assert a(server, "future.n1") == ["10.0.0.5"]
    past = (namespace("n1"), service("n1/kept", "10.0.0.1"), service("n1/db"),
        endpointslice("n1/db-1", "db", endpoint("10.1.0.1")),
            service("n1/moved", "10.0.0.7"))  # fmt: skip
    with asking(server, KEPT):
        api.down()
        api.restore(50, *past)
        api.up()
        began = time.monotonic()
        eventually(lambda: a(server, "future.n1") == "NXDOMAIN" and a(server, "moved.n1") == ["10.0.0.7"], timeout=20)
        assert time.monotonic() - began < 60
        api.put(service("n1/after", "10.0.0.8"))
        eventually(lambda: a(server, "after.n1") == ["10.0.0.8"])


def test_a_resource_version_that_the_api_never_had_is_another_history(
    serve: Serve, api: ApiServer, lines: list[str]
) -> None:
    server = start(serve, api)
    source(server).reflectors[1].broken = False
    server.thread.call(lambda: setattr(source(server).reflectors[1], "version", "999999"))
    api.close_watches()
    api.put(service("n1/new", "10.0.4.1"))
    eventually(lambda: a(server, "new.n1") == ["10.0.4.1"], timeout=20)
    assert any("relisting everything" in line for line in lines)


# K5.


def test_a_watch_finds_a_dead_peer_within_45_seconds(serve: Serve, api: ApiServer) -> None:
    """The kernel's doing: keepalive for a silent watch, and a bound for what is sent and not acknowledged."""
    server = start(serve, api)

    def options() -> list[tuple[int, int, int, int]]:
        found = []
        for protocol in source(server).client.session.connector._acquired:
            sock = protocol.transport.get_extra_info("socket")
            tcp = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in TCP_OPTIONS]
            found.append((sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), tcp[0], tcp[1] * tcp[2], tcp[3]))
        return found

    found = eventually(lambda: server.thread.call(options))
    for alive, idle, probes, unacknowledged in found:
        assert alive == 1 and idle + probes <= 45 and unacknowledged <= 45_000


# K6: what a watch loses.


@pytest.mark.parametrize("what", ["changed", "added", "deleted"])
def test_an_event_that_was_lost_is_repaired_and_counted(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch, lines: list[str], what: str
) -> None:
    monkeypatch.setattr(resync, "INTERVAL", (0.1, 0.2))
    monkeypatch.setattr(resync, "GRACE", 0.2)
    api.put(service("n1/web", "10.0.0.2"))
    server = start(serve, api)
    before = count("kdns_kubernetes_healed_total", "Service")
    with asking(server, KEPT):
        if what == "changed":
            api.quietly(service("n1/web", "10.0.0.3"))
            eventually(lambda: a(server, "web.n1") == ["10.0.0.3"])
        elif what == "added":
            api.quietly(service("n1/more", "10.0.0.4"))
            eventually(lambda: a(server, "more.n1") == ["10.0.0.4"])
        else:
            api.quietly(delete=("Service", "n1/web"))
            eventually(lambda: a(server, "web.n1") == "NXDOMAIN")
        eventually(lambda: count("kdns_kubernetes_healed_total", "Service") == before + 1)
    assert any("repaired 1 of Service" in line for line in lines)


def test_a_resync_during_a_busy_watch_finds_nothing_to_repair(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "INTERVAL", (0.02, 0.05))
    monkeypatch.setattr(resync, "GRACE", 0.2)
    monkeypatch.setitem(reflector.PAGE, "Service", 5)
    api.page_delay = 0.005
    server = start(serve, api)
    before = count("kdns_kubernetes_healed_total")
    with asking(server, KEPT):
        for i in range(150):
            api.put(service(f"n1/s{i % 20}", f"10.0.6.{i}"))
            if i % 3 == 2:
                api.delete("Service", f"n1/s{i % 20}")
            time.sleep(0.005)
    assert count("kdns_kubernetes_healed_total") == before
    eventually(lambda: a(server, "s9.n1") == ["10.0.6.149"] or a(server, "s9.n1") == "NXDOMAIN")


def test_removals_between_two_resyncs_are_not_remembered(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[resync.Resync] = []
    init = resync.Resync.__init__

    def kept(self: resync.Resync, of: reflector.Reflector) -> None:
        init(self, of)
        made.append(self)

    monkeypatch.setattr(resync.Resync, "__init__", kept)
    server = start(serve, api)
    for i in range(100):
        api.put(service(f"n1/s{i}", f"10.0.6.{i}"))
        api.delete("Service", f"n1/s{i}")
    api.put(service("n1/last", "10.0.0.9"))
    eventually(lambda: a(server, "last.n1") == ["10.0.0.9"])
    assert made and not any(resync.removed or resync.repaired for resync in made)


# K7: credentials.


@pytest.mark.parametrize("gone", [False, True])
def test_a_resync_beside_a_new_list_brought_back_what_was_older(gone: bool) -> None:
    """`gone`: the object had been removed meanwhile."""
    cluster = Cluster()
    reached, go_on = asyncio.Event(), asyncio.Event()

    class Pages:
        version, over = "", False

        async def next(self) -> list[Any]:
            reached.set()
            await go_on.wait()
            self.version, self.over = "10", True
            return [raw(10, "10.0.0.1")]

    def raw(version: int, address: str) -> Any:
        made = service("n1/a", address)
        made["metadata"]["resourceVersion"] = str(version)
        return decode.one(SERVICE, msgspec.json.encode(made))

    async def run() -> None:
        of = reflector.Reflector(SERVICE, Client(ApiConfig("http://127.0.0.1:9")), cluster, {}, WatchScope().project)
        healer = resync.Resync(of)
        of.pages = Pages  # type: ignore[assignment]
        of.watching = True
        of.apply("n1/a", raw(11, "10.0.0.2"))
        healing = asyncio.create_task(healer.heal())
        await reached.wait()
        with of._diff() as unseen:  # the watch has ended, and a list has begun
            if gone:
                await of._remove_all(unseen)
            go_on.set()
            for _ in range(5):
                await asyncio.sleep(0)
            if not gone:
                of._put(raw(11, "10.0.0.2"), unseen)
        healing.cancel()
        found = [obj.addresses for _, obj in cluster.objects(SERVICE)]  # type: ignore[union-attr]
        assert found == ([] if gone else [(b"\n\0\0\2",)])

    asyncio.run(run())


def test_a_token_file_that_is_rotated_is_read_again_also_through_an_empty_one(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(api_module, "TOKEN_AGE", 0.05)
    guarded = ApiServer(token="one")
    try:
        guarded.put(namespace("n1"), service("n1/kept", "10.0.0.1"))
        token = tmp_path / "token"
        token.write_text("one")
        config = tmp_path / "config"
        config.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {server: '"
            + guarded.url
            + "'}\n"
            "contexts:\n- name: c\n  context: {cluster: c, user: u}\nusers:\n- name: u\n  user: {tokenFile: "
            + str(token)
            + "}\n"
        )
        server = serve(COREFILE.replace("SOURCE", f"kubeconfig {config}"))
        eventually(lambda: a(server, "kept.n1") == ["10.0.0.1"])
        with asking(server, {"kept.n1": ["10.0.0.1"]}):
            token.write_text("")
            guarded.close_watches()
            time.sleep(0.3)
            token.write_text("two")
            guarded.token = "two"
            guarded.put(service("n1/new", "10.0.0.2"))
            guarded.close_watches()
            eventually(lambda: a(server, "new.n1") == ["10.0.0.2"], timeout=20)
    finally:
        guarded.close()


def test_an_authority_that_is_replaced_is_read_again(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def context(ca: trustme.CA) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(made)
        return made

    one, two = trustme.CA(), trustme.CA()
    path = tmp_path / "ca.pem"
    one.cert_pem.write_to_path(str(path))
    secure = ApiServer(tls=context(one))
    try:
        secure.put(namespace("n1"), service("n1/kept", "10.0.0.1"))
        config = tmp_path / "config"
        config.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {server: '" + secure.url
            + f"', certificate-authority: {path}}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: "
                f"u}}\nusers:\n- name: u\n  user: {{}}\n"
        )  # fmt: skip
        server = serve(COREFILE.replace("SOURCE", f"kubeconfig {config}"))
        eventually(lambda: a(server, "kept.n1") == ["10.0.0.1"])
        with asking(server, {"kept.n1": ["10.0.0.1"]}):
            secure.down()
            secure.tls = context(two)
            two.cert_pem.write_to_path(str(path))
            secure.put(service("n1/new", "10.0.0.2"))
            secure.up()
            eventually(lambda: a(server, "new.n1") == ["10.0.0.2"], timeout=20)
    finally:
        secure.close()


# K8: a large list while queries go on.


@pytest.mark.parametrize("streams", [True, False])
def test_a_relist_of_thousands_under_load_shows_no_wrong_answer(serve: Serve, api: ApiServer, streams: bool) -> None:
    api.streams = streams
    api.put(*(service(f"n1/s{i}", f"10.{100 + i // 60000}.{i // 250 % 250}.{i % 250}") for i in range(3000)))
    server = start(serve, api)
    with asking(server, {**KEPT, "s2999.n1": a(server, "s2999.n1")}):
        for _ in range(2):
            lists = count("kdns_kubernetes_lists_total", "Service")
            api.expire()
            eventually(lambda lists=lists: count("kdns_kubernetes_lists_total", "Service") > lists, timeout=20)


# K9: objects that cannot be read.


@pytest.mark.parametrize("streams", [True, False])
def test_objects_of_every_strange_kind_are_served_or_set_aside_alone(
    serve: Serve, api: ApiServer, lines: list[str], streams: bool
) -> None:
    api.streams = streams
    nothing = endpointslice(
        "n1/null-1", "null", {"addresses": ["10.1.9.1"], "conditions": None, "hostname": None, "targetRef": None}
    )
    nothing["ports"] = None
    no_ports = service("n1/null")
    no_ports["spec"].pop("ports")
    no_ips = service("n1/noips", "10.0.0.9")
    no_ips["spec"].pop("clusterIPs")
    bad = endpointslice("n1/bad-1", "db", endpoint("10.1.0.300"))
    list_as_ports = service("n1/wrong", "10.0.0.8")
    list_as_ports["spec"]["ports"] = {"a": 1}
    api.put(nothing, no_ports, no_ips, bad, list_as_ports)
    server = start(serve, api)
    before = count("kdns_kubernetes_quarantined_total")
    with asking(server, {**KEPT, "null.n1": ["10.1.9.1"], "noips.n1": ["10.0.0.9"], "wrong.n1": "NXDOMAIN"}):
        api.send_raw("services", b'{"type":"MODIFIED","object":{"kind":"Surprise","metadata":{"name":7}}}\n')
        api.send_raw("services", b'{"type":"ADDED","object":[]}\n')
        api.send_raw("services", b'{"type":"WHAT","object":{"metadata":{"name":"x","namespace":"n1"}}}\n')
        fat = service("n1/fat", "10.0.0.7")
        fat["metadata"]["annotations"] = {"x": "y" * (1 << 20)}
        api.put(fat)
        eventually(lambda: a(server, "fat.n1") == ["10.0.0.7"])
    assert sum("rejected" in line for line in lines) >= 3
    assert sum("n1/wrong rejected" in line for line in lines) == 1
    assert count("kdns_kubernetes_quarantined_total") >= before


def test_an_endpoint_that_cannot_be_named_is_set_aside_alone_and_said_once(
    serve: Serve, api: ApiServer, lines: list[str]
) -> None:
    server = start(serve, api)
    for i in range(3):
        api.put(
            endpointslice(
                "n1/db-1", "db", endpoint("10.1.0.1"), endpoint("10.1.0.2", host="h" * 64), endpoint(f"10.1.1.{i}")
            )
        )
        eventually(lambda i=i: a(server, "db.n1") == ["10.1.0.1", f"10.1.1.{i}"])
    assert sum("10.1.0.2 rejected" in line for line in lines) == 1
    api.put(endpointslice("n1/db-1", "db", endpoint("10.1.0.1"), endpoint("10.1.0.2", host="h" * 63)))
    eventually(lambda: a(server, "db.n1") == ["10.1.0.1", "10.1.0.2"])


def test_garbage_on_a_watch_ends_that_watch_only(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    with asking(server, KEPT):
        for garbage in (b"no json\n", b'{"type":1}\n', b"\x00\xff\n", b'{"type":"ADDED"}\n'):
            api.send_raw("services", garbage)
        api.put(service("n1/new", "10.0.4.1"))
        eventually(lambda: a(server, "new.n1") == ["10.0.4.1"])


def test_a_reflector_that_dies_is_said_aloud_and_started_again(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    server = start(serve, api)
    before = count("kdns_kubernetes_reflector_restarts_total")
    original = reflector.Reflector.apply
    hit = threading.Event()

    def broken(self: reflector.Reflector, key: str, raw: Any) -> bool:
        if key == "n1/poison" and not hit.is_set():
            hit.set()
            raise RuntimeError("nobody thought of this")
        return original(self, key, raw)

    monkeypatch.setattr(reflector.Reflector, "apply", broken)
    with asking(server, KEPT):
        api.put(service("n1/poison", "10.0.0.9"))
        eventually(lambda: a(server, "poison.n1") == ["10.0.0.9"], timeout=20)
    assert any("nobody thought of this; restarting it" in line for line in lines)
    assert count("kdns_kubernetes_reflector_restarts_total") == before + 1


# K10, K11, K16.


def test_an_address_in_two_slices_is_answered_once(serve: Serve, api: ApiServer) -> None:
    api.put(endpointslice("n1/db-2", "db", endpoint("10.1.0.1"), endpoint("10.1.0.2")))
    server = start(serve, api)
    assert a(server, "db.n1") == ["10.1.0.1", "10.1.0.2"]
    api.delete("EndpointSlice", "n1/db-1")
    api.put(service("n1/mark", "10.0.0.9"))
    eventually(lambda: a(server, "mark.n1") == ["10.0.0.9"])
    assert a(server, "db.n1") == ["10.1.0.1", "10.1.0.2"]


def test_churn_under_load_shows_each_change_and_nothing_wrong(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    with asking(server, KEPT):
        for i in range(200):
            api.put(endpointslice("n1/churn-1", "churn", *(endpoint(f"10.2.{i}.{j}") for j in range(1, 4))))
        api.put(service("n1/churn"))
        eventually(lambda: a(server, "churn.n1") == ["10.2.199.1", "10.2.199.2", "10.2.199.3"])


def test_a_clock_that_is_set_back_lets_no_serial_fall(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdns.plugins.kubernetes import plugin

    offset = [0.0]
    monkeypatch.setattr(plugin.time, "time", lambda: 1_900_000_000.0 + offset[0])
    server = start(serve, api)

    def serial() -> int:
        return int(server.ask("cluster.local.", "SOA").answer[0][0].serial)

    found = [serial()]
    for step in (3600.0, -3600.0, 10.0):
        offset[0] = step
        api.put(service("n1/new", f"10.0.4.{len(found)}"))
        eventually(lambda: a(server, "new.n1") == [f"10.0.4.{len(found)}"])
        found.append(serial())
    assert found == sorted(found)


# Programming latency.


def test_the_time_from_a_change_to_its_answer_is_counted(serve: Serve, api: ApiServer) -> None:
    server = start(serve, api)
    family = REGISTRY["coredns_kubernetes_dns_programming_duration_seconds"]

    def observed(kind: str) -> float:
        return sum(sum(slot[1:]) for labels, slot in family.slots.items() if labels == (kind,))

    before = observed("headless_with_selector")
    changed = endpointslice("n1/db-1", "db", endpoint("10.1.0.2"))
    changed["metadata"]["annotations"] = {
        "endpoints.kubernetes.io/last-change-trigger-time": datetime.now(UTC).isoformat()
    }
    api.put(changed)
    eventually(lambda: observed("headless_with_selector") == before + 1)
    changed["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"}
    changed["endpoints"] = [endpoint("10.1.0.3")]
    api.put(changed)
    eventually(lambda: a(server, "db.n1") == ["10.1.0.3"])
    assert observed("headless_with_selector") == before + 1
    requests = REGISTRY["coredns_kubernetes_rest_client_requests_total"].slots
    assert any(labels[:2] == ("200", "GET") for labels in requests)


# The snapshot.


def write(serve: Serve, api: ApiServer, path: Path) -> None:
    """Leaves the snapshot of a server that has seen everything."""
    first = snapshot(serve, api, path)
    eventually(lambda: a(first, "never.n1") == "NXDOMAIN")
    assert a(first, "kept.n1") == ["10.0.0.1"]
    first.thread.run(first.server.stop(drain=0))


def snapshot(serve: Serve, api: ApiServer, path: Path, more: str = "") -> Server:
    return serve(COREFILE.replace("SOURCE", f"endpoint {api.url}\n pods verified\n snapshot {path} {more}"))


def test_a_snapshot_serves_at_once_while_the_api_is_down_and_a_diff_catches_up(
    serve: Serve, api: ApiServer, tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "snapshot"
    api.put(pod("n1/p", "10.5.0.1"), service("n1/gone", "10.0.0.7"))
    write(serve, api, path)
    assert path.exists() and path.stat().st_mode & 0o777 == 0o600
    api.down()
    server = snapshot(serve, api, path)
    assert (
        a(server, "kept.n1") == ["10.0.0.1"]
        and a(server, "db.n1") == ["10.1.0.1"]
        and a(server, "never.n1") == "NXDOMAIN"
    )
    assert data(server.ask("10-5-0-1.n1.pod.cluster.local.")) == ["10.5.0.1"]
    assert data(server.ask("1.0.0.10.in-addr.arpa.", "PTR")) == ["kept.n1.svc.cluster.local."]
    assert extended_errors(server.ask("kept.n1.svc.cluster.local.", use_edns=0)) == [3]
    assert count("kdns_kubernetes_synced") == 0
    assert any("serving 6 objects of the snapshot" in line for line in lines)
    with asking(server, KEPT):
        api.quietly(service("n1/late", "10.0.0.8"), delete=("Service", "n1/gone"))
        api.up()
        eventually(lambda: a(server, "late.n1") == ["10.0.0.8"] and a(server, "gone.n1") == "NXDOMAIN")
        eventually(lambda: extended_errors(server.ask("kept.n1.svc.cluster.local.", use_edns=0)) == [])
    assert count("kdns_kubernetes_synced") == 1


def test_a_snapshot_is_saved_while_serving(
    serve: Serve, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "SAVE", 0.05)
    path = tmp_path / "snapshot"
    server = snapshot(serve, api, path)
    eventually(path.exists)
    before = path.read_bytes()
    api.put(service("n1/new", "10.0.0.9"))
    eventually(lambda: path.read_bytes() != before)
    assert a(server, "new.n1") == ["10.0.0.9"] and [p.name for p in tmp_path.iterdir()] == ["snapshot"]


def test_a_snapshot_that_was_being_written_at_the_end_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshot"
    write_it = snapshots.write
    monkeypatch.setattr(informer, "SAVE", 0.0)

    async def run() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def writes(*args: Any) -> int:
            reached.set()
            await go_on.wait()
            return await write_it(*args)

        monkeypatch.setattr(snapshots, "write", writes)
        cluster = Cluster()
        source = ApiSource(ApiConfig("http://127.0.0.1:9"), WatchScope(), cluster, informer.SnapshotFile(str(path)))
        cluster.apply("Namespace", "/n1", Namespace("n1"))
        cluster.set_synced()
        await source.start()
        await reached.wait()
        ending = asyncio.create_task(source.stop())
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
        await ending

    asyncio.run(run())
    assert path.exists()


@pytest.mark.parametrize(("damage", "why"), [
    (lambda data: data[:-7], "checksum"), (lambda data: data[:100] + bytes((data[100] ^ 1,)) + data[101:], "checksum"),
    (lambda data: b"", "not a snapshot"), (lambda data: b"PK\3\4" + data, "not a snapshot"),
    (lambda data: data[:48], "checksum"),
])  # fmt: skip
def test_a_damaged_snapshot_is_ignored_with_a_line(
    serve: Serve, api: ApiServer, tmp_path: Path, lines: list[str], damage: Callable[[bytes], bytes], why: str
) -> None:
    path = tmp_path / "snapshot"
    write(serve, api, path)
    path.write_bytes(damage(path.read_bytes()))
    api.down()
    server = snapshot(serve, api, path)
    assert a(server, "kept.n1") == "SERVFAIL"
    assert any("is ignored" in line and why in line for line in lines)
    api.up()
    eventually(lambda: a(server, "kept.n1") == ["10.0.0.1"])


def test_a_pipe_as_a_snapshot_kept_the_start_waiting_for_ever(
    serve: Serve, api: ApiServer, tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "snapshot"
    os.mkfifo(path)
    server = snapshot(serve, api, path)
    assert any("is ignored" in line and "it is not a regular file" in line for line in lines)
    eventually(lambda: a(server, "kept.n1") == ["10.0.0.1"])


def test_a_snapshot_on_a_file_system_that_hangs_kept_the_start_waiting_for_ever(
    serve: Serve, api: ApiServer, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(snapshots, "_parts_of", lambda path: over.wait(20))
    monkeypatch.setattr(snapshots, "READING", 0.2)
    try:
        server = snapshot(serve, api, tmp_path / "snapshot")
        assert any("is ignored" in line and "took over 0.2 s and was given up" in line for line in lines)
        eventually(lambda: a(server, "kept.n1") == ["10.0.0.1"])
        assert not over.is_set()
    finally:
        over.set()


def test_a_snapshot_of_another_cluster_or_too_old_is_ignored(
    serve: Serve, api: ApiServer, tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "snapshot"
    write(serve, api, path)
    api.down()
    other = serve(COREFILE.replace("SOURCE", f"endpoint {api.url}\n labels a=b\n pods verified\n snapshot {path}"))
    assert a(other, "kept.n1") == "SERVFAIL"
    assert any("another cluster or configuration" in line for line in lines)
    time.sleep(0.05)
    old = snapshot(serve, api, path, "10ms")
    assert a(old, "kept.n1") == "SERVFAIL"
    assert any("s old, at most" in line for line in lines)


def test_a_snapshot_that_cannot_be_written_is_said_and_serving_goes_on(
    serve: Serve, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(informer, "SAVE", 0.05)
    server = snapshot(serve, api, tmp_path / "nowhere" / "snapshot")
    eventually(lambda: any("cannot be written: No such file or directory" in line for line in lines))
    assert a(server, "kept.n1") == ["10.0.0.1"]


def test_the_source_of_a_snapshot_holds_nothing_after_it_is_read(api: ApiServer, tmp_path: Path) -> None:
    """A restart loop must not grow: reading twice gives the same state."""
    from kdns.kube.cluster import Cluster
    from kdns.kube.objects import Namespace, Service

    async def run() -> None:
        cluster = Cluster()
        cluster.apply("Namespace", "/n1", Namespace("n1"))
        cluster.apply("Service", "n1/a", Service("n1", "a", "ClusterIP", (b"\n\0\0\1",), ()))
        path = str(tmp_path / "s")
        await snapshots.write(path, "me", cluster, {"Service": {"n1/a": "7"}, "Namespace": {}})
        for _ in range(2):
            other = Cluster()
            known, age = await snapshots.read(path, "me", 0, other)
            assert known == {"Service": {"n1/a": "7"}, "Namespace": {"/n1": ""}} and age < 5
            assert list(other.objects("Service")) == list(cluster.objects("Service")) and other.namespaces == {"n1"}

    asyncio.run(run())
    assert ApiSource is not None


def test_an_api_that_was_away_for_long_is_noticed_soon_and_also_where_it_first_says_forbidden(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real API server answers 403 for a moment while it loads its roles: by then pauses had grown to half a
    minute.
    """
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 1000.0))
    monkeypatch.setattr(reflector, "UNANSWERED", 0.05)
    server = start(serve, api)
    errors = [REGISTRY["kdns_kubernetes_errors_total"].slot(kind) for kind in ("Service", "EndpointSlice", "Namespace")]
    before = [slot[0] for slot in errors]
    api.down()
    # Twenty doublings would be hours.
    eventually(lambda: all(slot[0] > old + 20 for slot, old in zip(errors, before, strict=True)))
    api.fail += [403] * 6
    api.put(service("n1/late", "10.0.0.7"))
    api.up()
    eventually(lambda: a(server, "late.n1") == ["10.0.0.7"])
    assert not api.fail and a(server, "kept.n1") == ["10.0.0.1"]
