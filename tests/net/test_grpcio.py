"""gRPC's own library as a client of our listener, and as an upstream of ours."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dns.message
import grpc
import pytest

from kdns.testing import Server, answer, code, data, eventually, free_port
from tests.fixtures import Serve, Start
from tests.plugins.test_grpc import asking
from tests.securepeers import NAME, Site

SERVICE = "coredns.dns.DnsService"
LISTENER = [("grpc.enable_http_proxy", 0)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def packet(message: bytes) -> bytes:
    """A message of protobuf with one field: `bytes msg = 1`."""
    size, length = len(message), b""
    while size > 0x7F:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return b"\x0a" + length + bytes((size,)) + message


def message(octets: bytes) -> dns.message.Message:
    """The reply in such a message."""
    at = 1
    while octets[at] & 0x80:
        at += 1
    assert octets[0] == 0x0A
    return dns.message.from_wire(octets[at + 1 :])


class Caller:
    """A channel to a server, and calls of its method."""

    def __init__(self, server: Server, site: Site | None = None, method: str = "Query") -> None:
        where = f"127.0.0.1:{server.port}"
        if site is None:
            self.channel = grpc.insecure_channel(where, LISTENER)
        else:
            trusted = grpc.ssl_channel_credentials(site.authority.path.read_bytes())
            self.channel = grpc.secure_channel(where, trusted, [*LISTENER, ("grpc.ssl_target_name_override", NAME)])
        self.call = self.channel.unary_unary(f"/{SERVICE}/{method}")

    def begin(self, name: str = "a.example.org.", timeout: float = 10, **options: Any) -> Any:
        return self.call.future(packet(dns.message.make_query(name, "A", **options).to_wire()), timeout=timeout)

    def ask(self, name: str = "a.example.org.", **options: Any) -> dns.message.Message:
        return message(self.begin(name, **options).result())

    def fails(self, octets: bytes, **options: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as raised:
            self.call(octets, timeout=10, **options)
        return raised.value.code(), raised.value.details()


@pytest.fixture
def caller() -> Iterator[Callable[..., Caller]]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **options: Any) -> Caller:
            made = Caller(*args, **options)
            stack.callback(made.channel.close)
            return made

        yield make


def plain(site: Site, *more: str) -> str:
    return site.block(*more, tls="minimal", scheme="grpc")


Call = Callable[..., Caller]


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_is_answered_many_times_at_once_on_one_connection(
    serve: Serve, site: Site, caller: Call, encrypted: bool
) -> None:
    server = serve(site.block(scheme="grpc") if encrypted else plain(site))
    client = caller(server, site if encrypted else None)
    first = client.ask()
    assert data(first) == ["192.0.2.1"] and code(first) == "NOERROR"
    calls = [client.begin(id=number) for number in range(1, 601)]
    replies = [message(call.result()) for call in calls]
    assert [reply.id for reply in replies] == list(range(1, 601))
    assert all(data(reply) == ["192.0.2.1"] for reply in replies)
    (listener,) = next(iter(server.server.listeners.values())).tcp
    assert len(listener.connections) == 1


def test_what_is_no_call_of_the_method_has_its_status(serve: Serve, site: Site, caller: Call) -> None:
    server = serve(plain(site))
    status = grpc.StatusCode
    client = caller(server)
    query = packet(dns.message.make_query("a.example.org.", "A").to_wire())
    assert client.fails(query[:-1])[0] is status.INVALID_ARGUMENT
    assert client.fails(b"")[0] is status.INVALID_ARGUMENT
    assert client.fails(packet(bytes(5)))[0] is status.INVALID_ARGUMENT
    assert client.fails(packet(bytes(70_000)))[0] is status.RESOURCE_EXHAUSTED
    assert client.fails(packet(bytes(5_000_000)))[0] is status.RESOURCE_EXHAUSTED
    # https://grpc.io: a server that does not know an encoding says UNIMPLEMENTED, and which ones it knows.
    compressible = packet(query + bytes(2048))
    assert client.fails(compressible, compression=grpc.Compression.Gzip)[0] is status.UNIMPLEMENTED
    assert caller(server, method="Notify").fails(query) == (status.UNIMPLEMENTED, "unknown method")
    assert data(client.ask()) == ["192.0.2.1"]
    (listener,) = next(iter(server.server.listeners.values())).tcp
    eventually(lambda: not any(connection.pending for connection in listener.connections))


def test_a_query_of_the_largest_size_is_answered(serve: Serve, site: Site, caller: Call) -> None:
    client = caller(serve(plain(site)))
    query = dns.message.make_query("a.example.org.", "A").to_wire()
    assert data(message(client.call(packet(query + bytes(65_535 - len(query))), timeout=10))) == ["192.0.2.1"]


def test_calls_that_are_cancelled_or_late_leave_nothing_behind(
    serve: Serve, site: Site, caller: Call, upstream: Start
) -> None:
    heard: list[str] = []

    def mute(query: dns.message.Message, proto: str) -> None:
        heard.append(str(query.question[0].name))

    up = upstream(mute)
    server = serve(
        plain(site, f"forward org {up.address} {{", "  prefer_udp", "}").replace(
            " hosts /nowhere", " hosts /nowhere a.example.org"
        )
    )
    client = caller(server)
    calls = [client.begin(f"x{number}.org.", timeout=30) for number in range(50)]
    eventually(lambda: len(set(heard)) == 50)
    for call in calls:
        call.cancel()
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        client.ask("late.org.", timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - began < 4
    assert data(client.ask()) == ["192.0.2.1"]
    (listener,) = next(iter(server.server.listeners.values())).tcp
    eventually(lambda: not any(connection.pending for connection in listener.connections))
    assert len(listener.connections) == 1


@contextlib.contextmanager
def under_load(ask: Callable[[int], object]) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Four threads call `ask` with what was done so far, which gives what was wrong, if anything, until the block ends;
    nothing may be. What it gives is a block that ends when twenty more are done since it began.
    """
    wrong: list[object] = []
    over = threading.Event()
    done = [0]

    def load() -> None:
        while not over.is_set():
            if (found := ask(done[0])) is not None:
                wrong.append(found)
            done[0] += 1

    @contextlib.contextmanager
    def some_more() -> Iterator[None]:
        before = done[0]
        yield
        eventually(lambda: wrong or done[0] > before + 20)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield some_more
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert not wrong, wrong[:3]


def test_a_reload_under_load_loses_no_call(serve: Serve, site: Site, caller: Call) -> None:
    text = site.block(scheme="grpc")
    server = serve(text)
    client = caller(server, site)

    def ask(number: int) -> object:
        try:
            return None if data(client.ask()) in (["192.0.2.1"], ["192.0.2.2"]) else "another answer"
        except grpc.RpcError as error:
            return error

    with under_load(ask) as some_more:
        for i in range(5):
            with some_more():
                assert server.reload(text.replace("192.0.2.1", f"192.0.2.{1 + i % 2}"))


# As an upstream.


class GrpcUpstream:
    """A server of gRPC's own library. `script` makes replies of queries, or ends a call."""

    def __init__(self, script: Callable[[dns.message.Message, Any], dns.message.Message], site: Site | None = None):
        self.script = script
        self.site = site
        self.port = free_port()
        self.count = 0
        self.server = self.begin()

    def begin(self) -> Any:
        handler = grpc.unary_unary_rpc_method_handler(self._query)
        made = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 1)])
        made.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Query": handler})])
        where = f"127.0.0.1:{self.port}"
        if self.site is None:
            assert made.add_insecure_port(where)
        else:
            folder = self.site.folder
            pair = [((folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes())]
            assert made.add_secure_port(where, grpc.ssl_server_credentials(pair))
        made.start()
        return made

    def _query(self, octets: bytes, context: Any) -> bytes:
        self.count += 1
        return packet(self.script(message(octets), context).to_wire())

    def close(self) -> None:
        self.server.stop(0).wait(20)


@pytest.fixture
def peer() -> Iterator[Callable[..., GrpcUpstream]]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any) -> GrpcUpstream:
            made = GrpcUpstream(*args)
            stack.callback(made.close)
            return made

        yield make


Peer = Callable[..., GrpcUpstream]


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_upstream_is_asked_many_times_at_once(serve: Serve, site: Site, peer: Peer, encrypted: bool) -> None:
    up = peer(lambda query, context: answer(query, "A 192.0.2.9"), site if encrypted else None)
    options = [f"tls {site.authority.path}", f"tls_servername {NAME}"] if encrypted else []
    server = serve(asking(up, *options))
    assert data(server.ask("a.org.")) == ["192.0.2.9"]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: data(server.ask(f"x{number}.org.")), range(200)))
    assert found == [["192.0.2.9"]] * 200 and up.count == 201


def test_what_an_upstream_says_of_a_call_that_failed_is_in_the_log(serve: Serve, peer: Peer, lines: list[str]) -> None:
    def refuses(query: dns.message.Message, context: Any) -> dns.message.Message:
        if "large" in query.question[0].to_text():
            return answer(query, *[f"TXT {'x' * 250}"] * 300)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you: é")
        raise AssertionError

    server = serve(asking(peer(refuses)))
    assert code(server.ask("a.org.")) == "SERVFAIL"
    assert any("a.org. A: read grpc" in line and "gRPC status 7: not you: é" in line for line in lines), lines
    assert code(server.ask("large.org.", "TXT", tcp=True)) == "SERVFAIL"
    assert any("large.org. TXT: read grpc" in line for line in lines), lines


def test_an_upstream_that_is_replaced_under_load_costs_no_query(serve: Serve, peer: Peer) -> None:
    up = peer(lambda query, context: answer(query, "A 192.0.2.9"))
    server = serve(asking(up))

    def ask(number: int) -> object:
        reply = server.ask(f"x{number}.org.", timeout=8)
        return None if code(reply) == "NOERROR" else reply.to_text()

    with under_load(ask) as some_more:
        for _ in range(2):
            with some_more():
                pass
            old, up.server = up.server, up.begin()
            old.stop(5).wait(20)  # its listener closes at once; calls end by themselves
