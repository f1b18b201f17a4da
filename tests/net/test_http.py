"""HTTP listeners: whatever others do with their connections, a probe gets its answer, and every connection comes to an
end.
"""

import asyncio
import http.client
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import faults
from kdns.net.certificates import Identity, TlsFiles
from kdns.net.http import HttpServer, Response
from kdns.net.http_connections import CLOSED, Limits
from kdns.testing import eventually
from kdns.testing.loop import LoopThread
from tests.securepeers import Authority

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = b"x" * (8 << 20)
HERE, OTHER = "127.0.0.1", "127.0.0.2"


class Listener:
    """An HttpServer in a thread of its own, with /health, and /large, which is 8 MiB."""

    def __init__(self, tls: ssl.SSLContext | None = None, **limits: Any) -> None:
        self.thread = LoopThread()
        identity = Identity(TlsFiles("", ""), lambda: tls) if tls is not None else None
        self.server = HttpServer(HERE, 0, tls=identity, limits=Limits(**limits))
        self.server.add("/health", self.health)
        self.server.add("/large", self.large)
        self.thread.run(self.server.start())
        self.port = self.server.port
        self.sockets: list[socket.socket] = []

    async def health(self) -> Response:
        return Response()

    async def large(self) -> Response:
        return Response(200, LARGE)

    def connect(self, source: str = HERE, data: bytes = b"") -> socket.socket:
        """A connection that is kept until the end, with `data` sent."""
        sock = socket.create_connection((HERE, self.port), timeout=10, source_address=(source, 0))
        self.sockets.append(sock)
        if data:
            sock.sendall(data)
        return sock

    def probe(self, source: str = HERE) -> bytes:
        """What a probe gets, as a kubelet asks: on a connection of its own."""
        with socket.create_connection((HERE, self.port), timeout=10, source_address=(source, 0)) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return sock.makefile("rb").read()

    def answers(self) -> bool:
        """Whether a probe gets in, from an address that holds connections and from another one."""
        return all(self.probe(source).startswith(b"HTTP/1.1 200 OK\r\n") for source in (HERE, OTHER))

    def held(self) -> int:
        """Connections that the server holds."""
        connections = self.server.connections
        return len(connections.open) if connections is not None else 0

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.thread.run(self.server.stop())
        self.thread.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def start(**options: Any) -> Listener:
        made.append(Listener(**options))
        return made[-1]

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))
    yield start
    for each in made:
        each.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def closed(sock: socket.socket) -> bool:
    """Whether the other side has closed; what it sent before is read."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


# Those who take all connections.


@pytest.mark.parametrize("count", [100, 10_000])
def test_a_hundred_idle_connections_reset_the_probe(listen: Callable[..., Listener], count: int) -> None:
    listener = listen()
    for number in range(count):
        sock = listener.connect(data=GET if number % 100 == 0 else b"")
        if number % 100 == 0:
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        if number % 1000 == 99:
            assert listener.answers()
    assert listener.answers()
    assert listener.held() <= 33  # an address's share, and the probe


def test_connections_of_many_addresses_kept_the_probe_out(listen: Callable[..., Listener]) -> None:
    listener = listen(connections=64, per_address=8)
    for number in range(256):
        listener.connect(f"127.0.1.{number % 64}", GET)
    assert listener.answers() and listener.held() <= 65


def test_a_listener_that_is_being_flooded_answers_the_probe(listen: Callable[..., Listener]) -> None:
    listener = listen()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with socket.create_connection((HERE, listener.port), timeout=10) as sock, socket.socket() as silent:
                sock.sendall(GET[:7])
                silent.connect((HERE, listener.port))

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert all(listener.answers() for _ in range(20))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_idle_give_way_before_those_who_send_and_those_who_are_answered(listen: Callable[..., Listener]) -> None:
    release = threading.Event()

    async def slow() -> Response:
        while not release.is_set():
            await asyncio.sleep(0.01)
        return Response()

    listener = listen(per_address=4)
    listener.server.add("/slow", slow)
    asked = listener.connect(data=GET.replace(b"health", b"slow"))
    sends = listener.connect(data=GET[:9])
    idle = [listener.connect(data=GET) for _ in range(2)]
    assert all(sock.recv(1000) for sock in idle)

    def states() -> list[int]:
        connections = listener.server.connections
        return sorted(each.rank[0] for each in connections.open) if connections is not None else []

    # A reply is read a little before the connection that carried it is idle.
    eventually(lambda: len(states()) == 4 and states()[1] < states()[2] < states()[3])
    before = [listener.connect(), listener.connect()]
    eventually(lambda: all(map(closed, idle)))
    for _ in range(2):
        listener.connect()
    eventually(lambda: all(map(closed, before)))
    sends.sendall(GET[9:])
    assert sends.recv(1000).startswith(b"HTTP/1.1 200")
    release.set()
    assert asked.recv(1000).startswith(b"HTTP/1.1 200")


# Those who come to no end.


def test_a_head_that_trickles_held_a_connection(listen: Callable[..., Listener]) -> None:
    listener = listen(wait=1.0)
    trickles = [listener.connect(f"127.0.1.{n % 16}", GET[:-4]) for n in range(300)]
    assert listener.answers()
    end = time.monotonic() + 20
    while trickles and time.monotonic() < end:
        for sock in list(trickles):
            try:
                sock.sendall(b"\r\nA: b")
            except OSError:
                trickles.remove(sock)
        time.sleep(0.05)
    assert not trickles and listener.answers()


@pytest.mark.parametrize("length", [b"Content-Length: 1000000000000", b"Transfer-Encoding: chunked"])
def test_a_body_that_never_ends_held_a_connection(listen: Callable[..., Listener], length: bytes) -> None:
    listener = listen()
    sock = listener.connect(data=GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\n" + length + b"\r\n\r\n"))
    assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    before = _dropped(listener, "size")
    with pytest.raises(OSError):
        for _ in range(100_000):
            sock.sendall(chunk)
    assert listener.answers() and _dropped(listener, "size") == before + 1
    # One that has not begun ends too.
    sock = listener.connect(data=GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\n" + length + b"\r\n\r\n"))
    eventually(lambda: closed(sock))


def test_a_head_without_end_is_not_kept(listen: Callable[..., Listener]) -> None:
    listener = listen()
    for data in (b"GET /", GET[:-2] + b"A: ", GET[:-2]):
        sock = listener.connect(data=data)
        with pytest.raises(OSError):
            for number in range(100_000):
                sock.sendall(b"x" * 1000 if data != GET[:-2] else b"a%d: b\r\n" % number)
    assert listener.answers()


def test_a_client_that_does_not_read_held_its_connection_and_the_reply(listen: Callable[..., Listener]) -> None:
    listener = listen(answer=1.0)
    mute = [listener.connect(data=GET.replace(b"health", b"large") * 10) for _ in range(8)]
    assert listener.answers()
    eventually(lambda: listener.held() == 0)
    assert _dropped(listener, "time") >= 8
    eventually(lambda: all(map(closed, mute)))


def test_a_route_that_comes_to_no_end_ends_with_its_time(listen: Callable[..., Listener]) -> None:
    ended: list[str] = []

    async def endless() -> Response:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")
        return Response()

    listener = listen(answer=0.5)
    listener.server.add("/endless", endless)
    sock = listener.connect(data=GET.replace(b"health", b"endless"))
    assert sock.recv(1000) == b""
    eventually(lambda: ended)
    assert listener.answers()


def test_a_handshake_that_does_not_end_was_counted_nowhere(listen: Callable[..., Listener], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listener = listen(tls=authority.context("probe.lab"), wait=1.0, per_address=8)
    begun = [listener.connect(data=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") for _ in range(100)]
    assert listener.held() <= 8
    context = ssl.create_default_context(cafile=str(authority.path))
    with (
        socket.create_connection((HERE, listener.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="probe.lab") as sock,
    ):
        sock.sendall(GET)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    eventually(lambda: all(map(closed, begun)))
    eventually(lambda: listener.held() == 0)


# One message is one message, whoever counts.


@pytest.mark.parametrize("field", [
    b"Transfer-Encoding: chunked\r\nContent-Length: 4", b"Content-Length: 4\r\nContent-Length: 5",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity", b"Content-Length: +4", b"Content-Length : 4",
    b"Transfer-Encoding:\x0bchunked",
])  # fmt: skip
def test_a_request_that_two_readers_would_end_at_two_places_ends_the_connection(
    listen: Callable[..., Listener], field: bytes
) -> None:
    listener = listen()
    sock = listener.connect(data=GET[:-2] + field + b"\r\n\r\n0\r\n\r\n" + GET)
    sock.settimeout(10)
    found = sock.makefile("rb").read()
    assert found.count(b"HTTP/1.") == 1 and b" 400 " in found.split(b"\r\n")[0]


def test_a_chunked_body_of_a_get_was_read_as_the_next_request(listen: Callable[..., Listener]) -> None:
    listener = listen()
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GET), GET)
    sock = listener.connect(data=GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    sock.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert sock.makefile("rb").read().count(b"HTTP/1.1 200 OK") == 2


# A route's own fault, and the end.


def test_what_a_route_raises_is_a_500_a_line_and_a_count(listen: Callable[..., Listener], lines: list[str]) -> None:
    async def fails() -> Response:
        raise RuntimeError("boom")

    listener = listen()
    listener.server.add("/fails", fails)
    before = faults.ERRORS.slot()[0]
    connection = http.client.HTTPConnection(HERE, listener.port, timeout=10)
    for path, status in (("/fails", 500), ("/health", 200)):  # the connection goes on
        connection.request("GET", path)
        reply = connection.getresponse()
        assert reply.status == status and b"boom" not in reply.read()
    connection.close()
    assert faults.ERRORS.slot()[0] == before + 1
    assert [line for line in lines if "[ERROR]" in line and "RuntimeError: boom" in line and "HTTP listener" in line]


def test_a_listener_that_stops_closes_every_connection(listen: Callable[..., Listener]) -> None:
    listener = listen()
    held = [listener.connect(data=data) for data in (b"", GET[:5], GET, GET.replace(b"health", b"large"))]
    eventually(lambda: listener.held() == 4)
    listener.thread.run(listener.server.stop())
    eventually(lambda: all(map(closed, held)))
    with pytest.raises(OSError):
        listener.connect()


def test_a_tls_listener_that_stops_closes_every_connection(listen: Callable[..., Listener], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listener = listen(tls=authority.context("probe.lab"))
    held = [listener.connect(), listener.connect(data=b"\x16\x03\x01\x02\x00\x01")]
    context = ssl.create_default_context(cafile=str(authority.path))
    with context.wrap_socket(listener.connect(), server_hostname="probe.lab") as sock:
        eventually(lambda: listener.held() == 3)
        listener.thread.run(listener.server.stop())
        eventually(lambda: all(map(closed, held)))
        assert sock.recv(1) == b""


# Whatever octets come.

_REQUESTS = (
    GET, b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"GET /large HTTP/1.0\r\n\r\n", GET * 40,
    b"POST /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET,
    b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"GET http://a/health HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip
_PIECES = st.sampled_from((
    b"", b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b"\xff", b"Content-Length: 99999999999999999999",
    b"HTTP/1.1", b"%", b"[::",
    b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\n", b"0\r\n\r\n", b"x" * 9000, GET,
))  # fmt: skip


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A request with some octets replaced, put in, left out or cut off."""
    found = draw(st.sampled_from(_REQUESTS))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(found))), draw(st.integers(0, 8))
        found = found[:at] + draw(_PIECES | st.binary(max_size=8)) + found[at + length :]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=200) | _mutated(), st.integers(0, 3)), min_size=1, max_size=12))
def _whatever_comes(listener: Listener, sent: list[tuple[bytes, int]]) -> None:
    for data, how in sent:
        sock = listener.connect()
        try:
            cut = len(data) // 2 if how & 1 else 0
            sock.sendall(data[:cut])
            sock.sendall(data[cut:])
            if how & 2:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed for what it has sent
    assert listener.answers()
    eventually(lambda: all(map(closed, listener.sockets)))
    eventually(lambda: listener.held() == 0)
    for sock in listener.sockets:
        sock.close()
    listener.sockets.clear()
    assert listener.server.server is not None
    eventually(lambda: not listener.server.server.connections)  # type: ignore[union-attr]


def test_no_octets_kill_the_listener_or_leak_a_connection(listen: Callable[..., Listener], lines: list[str]) -> None:
    before = faults.ERRORS.slot()[0]
    listener = listen(wait=0.2, answer=5.0)
    _whatever_comes(listener)
    assert faults.ERRORS.slot()[0] == before and not [line for line in lines if "[ERROR]" in line]


def _dropped(listener: Listener, limit: str) -> float:
    return CLOSED.slot(f"{HERE}:{listener.port}", limit)[0]
