"""Kept connections to an upstream that fall silent: one slow query, and no outage."""

import gc
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import pytest

from kdns.testing import Server, answer, block, code, data, eventually
from kdns.upstream import connections
from tests.fixtures import Serve, Start
from tests.securepeers import Authority, Doh, Dot, Peer, Script

KINDS = pytest.mark.parametrize("kind", ["dns", "tls", "https"])


@pytest.fixture
def begin(serve: Serve, tmp_path: Path) -> Iterator[Callable[..., tuple[Server, Peer]]]:
    """Starts an upstream that speaks TCP, TLS or HTTPS, and a server that forwards to it."""
    authority = Authority(tmp_path)
    made: list[Peer] = []

    def start(kind: str, script: Script | None = None, *options: str) -> tuple[Server, Peer]:
        play = script or (lambda query: answer(query, "A 192.0.2.1"))
        context = None
        if kind != "dns":
            context = authority.context("dns.example.net", alpn="h2" if kind == "https" else "")
        peer = Peer(context, lambda owner: Doh(owner, play) if kind == "https" else Dot(owner, play))
        made.append(peer)
        secure = "force_tcp" if kind == "dns" else f"tls {authority.path}\n tls_servername dns.example.net"
        more = "\n ".join(options or ("read_timeout 400ms",))
        return serve(block(f"forward . {kind}://127.0.0.1:{peer.port} {{\n {secure}\n {more}\n }}")), peer

    yield start
    for peer in made:
        peer.close()


def pool(server: Server) -> Any:
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    return forwarder.upstreams[0].tcp


def timed(server: Server, name: str, **options: Any) -> float:
    """Seconds until a name is answered as it must be."""
    began = time.monotonic()
    assert data(server.ask(name, timeout=10, **options)) == ["192.0.2.1"]
    return time.monotonic() - began


@KINDS
def test_a_connection_that_fell_silent_was_an_outage_for_ever(
    begin: Callable[..., tuple[Server, Peer]], kind: str
) -> None:
    server, up = begin(kind, None, "read_timeout 1s")
    timed(server, "before.org.")
    up.silence()
    times = [timed(server, f"x{i}.org.") for i in range(5)]
    assert [took > 0.9 for took in times] == [True, False, False, False, False], times
    assert len(up.connections) == 2
    eventually(lambda: len(pool(server).open) == 1)  # the silent one is closed


@KINDS
def test_queries_behind_the_first_on_a_silent_connection_wait_no_longer_than_it(
    begin: Callable[..., tuple[Server, Peer]], kind: str
) -> None:
    server, up = begin(kind, None, "read_timeout 2s")
    timed(server, "before.org.")
    up.silence()
    times: dict[int, float] = {}
    threads = []
    for i in range(6):
        threads.append(threading.Thread(target=lambda i=i: times.update({i: timed(server, f"x{i}.org.")})))
        threads[-1].start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert len(times) == 6 and all(times[i] < 2.0 for i in range(2, 6)), times  # not even their own time-outs
    assert len(up.connections) == 2


@KINDS
def test_a_name_that_takes_too_long_costs_a_busy_connection_nothing(
    begin: Callable[..., tuple[Server, Peer]], kind: str
) -> None:
    server, up = begin(
        kind,
        lambda query: None if "slow" in str(query.question[0].name) else answer(query, "A 192.0.2.1"),
        "read_timeout 2s",
        "max_connect_attempts 1",
    )
    timed(server, "before.org.")
    thread = threading.Thread(target=lambda: server.ask("slow.org.", timeout=10))
    thread.start()
    while thread.is_alive():
        timed(server, f"x{time.monotonic_ns()}.org.")
        time.sleep(0.05)
    assert len(up.connections) == 1
    eventually(lambda: not pool(server).open[0].flights)


@KINDS
def test_an_upstream_that_never_answers_is_not_dialled_for_each_query(
    begin: Callable[..., tuple[Server, Peer]], kind: str
) -> None:
    server, up = begin(kind, lambda query: None, "read_timeout 500ms", "max_fails 0")
    threads = [threading.Thread(target=lambda i=i: server.ask(f"x{i}.org.", timeout=10)) for i in range(60)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    # One in half a timeout at most, and each is closed when its queries are over.
    assert len(up.connections) <= 2 + (time.monotonic() - began) / 0.25
    eventually(lambda: len(pool(server).open) <= 1 and not pool(server).waiting)


def test_after_a_cut_reply_a_silent_connection_is_one_slow_query_too(serve: Serve, upstream: Start) -> None:
    muted: set[int] = set()
    known: set[int] = set()
    release = threading.Event()

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.1")
        if proto == "udp":
            reply.answer = []
            reply.flags |= dns.flags.TC
            return reply
        thread = threading.get_ident()  # a connection has a thread of its own
        known.add(thread)
        if thread in muted:
            release.wait(20)
        return reply

    up = upstream(script)
    server = serve(block(f"forward . {up.address} {{\n read_timeout 1s\n }}"))
    timed(server, "before.org.", tcp=True)
    muted |= known
    reply = server.ask("first.org.", timeout=10, tcp=True)
    assert data(reply) == ["192.0.2.1"] or reply.flags & dns.flags.TC  # cut as it came, or whole by a second try
    assert all(timed(server, f"x{i}.org.", tcp=True) < 0.9 for i in range(3))
    release.set()


@KINDS
def test_the_kernel_looks_after_kept_connections(begin: Callable[..., tuple[Server, Peer]], kind: str) -> None:
    server, _ = begin(kind)
    timed(server, "x.org.")

    def options() -> list[int]:
        sock = pool(server).open[0].transport.get_extra_info("socket")
        tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        return [
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            *(sock.getsockopt(socket.IPPROTO_TCP, each) for each in tcp),
        ]

    alive, idle, interval, probes, unacknowledged = server.thread.call(options)
    assert alive and idle + interval * probes <= 5 and unacknowledged <= 5000


@KINDS
def test_an_idle_connection_is_closed_in_its_time(begin: Callable[..., tuple[Server, Peer]], kind: str) -> None:
    server, _ = begin(kind, None, "expire 100ms")
    timed(server, "x.org.")
    eventually(lambda: not pool(server).open)
    timed(server, "y.org.")


@KINDS
def test_a_connection_that_was_closed_stayed_for_ever(begin: Callable[..., tuple[Server, Peer]], kind: str) -> None:
    """Over HTTPS it was in a cycle. What is frozen while it lives is looked at by no collection (server.gc_policy)."""
    server, _ = begin(kind, None, "expire 100ms")
    timed(server, "x.org.")
    eventually(lambda: not pool(server).open)
    gc.collect()
    gc.disable()
    try:
        timed(server, "y.org.")
        eventually(lambda: not pool(server).open)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(each) for each in gc.garbage if type(each).__module__.startswith(("kdns", "uvloop"))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_a_connection_that_is_being_closed_does_not_stand_in_the_way_of_a_new_one(
    begin: Callable[..., tuple[Server, Peer]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "GOODBYE", 20.0)
    server, up = begin(kind, None, "expire 100ms", "read_timeout 5s")
    timed(server, "x.org.")
    old = pool(server).open[0]
    up.silence()  # nobody says goodbye
    eventually(lambda: old.transport is None or old.transport.is_closing())
    assert timed(server, "y.org.") < 3
    assert old in pool(server).open and len(up.connections) == 2


@KINDS
def test_connections_to_one_upstream_are_bounded(
    begin: Callable[..., tuple[Server, Peer]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    server, up = begin(kind, lambda query: None, "read_timeout 200ms", "max_fails 0")
    for i in range(8):
        assert code(server.ask(f"x{i}.org.", timeout=10)) == "SERVFAIL"
        assert len(pool(server).open) <= 2
    assert up.connections
    eventually(lambda: not pool(server).waiting)


SCRIPT = """
import asyncio, subprocess, sys, time
from kdns.deadlines import Deadlines
from kdns.dns.answer import Answer
from kdns.dns.query import Question
from kdns.upstream.upstream import Address, Options, Upstream

async def serve(reader, writer):
    while head := await reader.read(2):
        query = await reader.readexactly(int.from_bytes(head, "big"))
        writer.write(head + query[:2] + b"\\x81\\x80" + query[4:])

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = Options(timeout=1.0, force_tcp=True, interval=0.1)
    up = Upstream(Address("dns", "127.0.0.1", port), options, "t", Deadlines(), None)

    async def ask():
        done, began = asyncio.get_running_loop().create_future(), time.monotonic()
        question = Question(b"\\1x\\3org\\0", 1)
        query = b"\\0\\0\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + question.wire
        up.exchange(query, question, "tcp", done.set_result)
        return type(await done) is Answer, time.monotonic() - began

    assert (await ask())[0]
    ours = up.tcp.open[0].transport.get_extra_info("sockname")[1]
    for way in ("--sport", "--dport"):
        subprocess.run(["iptables", "-A", "INPUT", "-p", "tcp", way, str(ours), "-j", "DROP"], check=True)
    found = [await ask() for _ in range(10)]
    assert [good for good, _ in found].count(False) == 1, found
    assert not found[0][0] and all(took < 0.9 for _, took in found[1:]), found
    # The kernel ends an idle one without any query: its probes are lost too.
    ours = up.tcp.open[-1].transport.get_extra_info("sockname")[1]
    for way in ("--sport", "--dport"):
        subprocess.run(["iptables", "-A", "INPUT", "-p", "tcp", way, str(ours), "-j", "DROP"], check=True)
    idle = time.monotonic()
    while up.tcp.open and time.monotonic() - idle < 30:
        await asyncio.sleep(0.1)
    assert not up.tcp.open
    assert await ask() and (await ask())[0]
    await up.close()
    server.close()
    print("whole")

asyncio.run(main())
"""


def namespaces() -> str:
    """Why no network of its own can be had here; empty where it can."""
    if shutil.which("unshare") is None or shutil.which("iptables") is None:
        return "unshare or iptables is not installed"
    test = "ip link set lo up && iptables -A INPUT -p tcp --dport 1 -j DROP"
    done = subprocess.run(["unshare", "--net", "sh", "-c", test], capture_output=True, text=True, timeout=90)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_a_flow_that_the_network_drops_is_one_slow_query_and_an_idle_one_none() -> None:
    """As when a conntrack entry is lost: what is sent on that one connection vanishes, new ones work."""
    why = namespaces()
    if why:
        pytest.skip(f"no network namespace with iptables: {why}")
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(["unshare", "--net", *inside], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "whole", done.stderr
