"""DNS over HTTPS by HTTP/3 (RFC 8484, RFC 9114): requests, answers, and clients that mean it badly."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import pytest
from aioquic.asyncio import connect
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic import events

from kdns.metrics import REGISTRY
from kdns.testing import Server, data
from tests.fixtures import Serve, Start
from tests.quicpeers import Client, configuration, until
from tests.securepeers import HOSTS, NAME, Site

MESSAGE = b"application/dns-message"
QUERY = dns.message.make_query("a.example.org.", "A", id=0).to_wire()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class Browser(Client):
    """A client of HTTP/3. `fields` and `bodies` are the answers by stream."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.http = H3Connection(self._quic)
        self.fields: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}

    def quic_event_received(self, event: events.QuicEvent) -> None:
        super().quic_event_received(event)
        for each in self.http.handle_event(event):
            if isinstance(each, HeadersReceived):
                self.fields[each.stream_id] = dict(each.headers)
            elif isinstance(each, DataReceived):
                self.bodies[each.stream_id] = self.bodies.get(each.stream_id, b"") + each.data

    def ask(
        self, method: bytes, path: bytes, body: bytes | None = None, content: bytes = MESSAGE, end: bool = True
    ) -> int:
        """Sends a request; gives its stream."""
        stream = self._quic.get_next_available_stream_id()
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", NAME.encode()), (b":path", path)]
        if body is not None:
            head.append((b"content-type", content))
        self.http.send_headers(stream, head, end_stream=body is None and end)
        if body is not None:
            self.http.send_data(stream, body, end_stream=end)
        self.transmit()
        return stream


@contextlib.asynccontextmanager
async def browser(server: Server, site: Site, **options: Any) -> AsyncIterator[Browser]:
    made = configuration(site.authority.path, "h3", **options)
    async with connect("127.0.0.1", server.port, configuration=made, create_protocol=Browser) as protocol:
        assert isinstance(protocol, Browser)
        yield protocol


def play(server: Server, site: Site, script: Callable[[Browser], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def inside() -> None:
        async with browser(server, site, **options) as peer:
            await script(peer)

    asyncio.run(inside())


def statuses(server: Server) -> dict[str, float]:
    label = f"https3://127.0.0.1:{server.port}"
    slots = REGISTRY["coredns_dns_https3_responses_total"].slots
    return {key[1]: slot[0] for key, slot in slots.items() if key[0] == label}


def get(wire: bytes) -> bytes:
    return b"/dns-query?dns=" + base64.urlsafe_b64encode(wire).rstrip(b"=")


@pytest.mark.parametrize("post", [True, False])
def test_dnspython_asks_over_http3(serve: Serve, site: Site, post: bool) -> None:
    server = serve(site.block(scheme="https3"))
    query = dns.message.make_query("a.example.org.", "A")

    async def ask() -> dns.message.Message:
        return await dns.asyncquery.https(
            query, f"https://{NAME}/dns-query", port=server.port, bootstrap_address="127.0.0.1", timeout=10,
            verify=str(site.authority.path), http_version=dns.asyncquery.HTTPVersion.H3, post=post,
        )  # fmt: skip

    assert data(asyncio.run(ask())) == ["192.0.2.1"]
    assert statuses(server) == {"200": 1}


def test_answers_say_how_long_they_are_fresh(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https3"))

    async def script(peer: Browser) -> None:
        streams = [peer.ask(b"GET", get(QUERY)), peer.ask(b"POST", b"/dns-query", QUERY)]
        await until(lambda: set(streams) <= peer.ended)
        for stream in streams:
            fields = peer.fields[stream]
            assert fields[b":status"] == b"200" and fields[b"content-type"] == MESSAGE
            assert fields[b"cache-control"] == b"max-age=3600"
            assert fields[b"content-length"] == str(len(peer.bodies[stream])).encode()
            assert data(dns.message.from_wire(peer.bodies[stream])) == ["192.0.2.1"]

    play(server, site, script)


@pytest.mark.parametrize(
    ("method", "path", "body", "content", "status"),
    [
        (b"GET", b"/", None, b"", b"404"),
        (b"GET", b"/dns-query", None, b"", b"400"),
        (b"GET", b"/dns-query?dns=***", None, b"", b"400"),
        (b"DELETE", b"/dns-query", None, b"", b"405"),
        (b"POST", b"/dns-query", QUERY, b"text/plain", b"415"),
        (b"POST", b"/dns-query", b"short", MESSAGE, b"400"),
        (b"POST", b"/dns-query", bytes(65_536), MESSAGE, b"413"),
        (b"POST", b"/dns-query", bytes(200_000), MESSAGE, b"413"),
    ],
)
def test_what_is_no_query_has_the_status_that_it_has_over_http2(
    serve: Serve, site: Site, method: bytes, path: bytes, body: bytes | None, content: bytes, status: bytes
) -> None:
    server = serve(site.block(scheme="https3"))

    async def script(peer: Browser) -> None:
        stream = peer.ask(method, path, body, content)
        await until(lambda: stream in peer.fields)
        assert peer.fields[stream][b":status"] == status
        stream = peer.ask(b"GET", get(QUERY))
        await until(lambda: stream in peer.ended)
        assert peer.fields[stream][b":status"] == b"200"

    play(server, site, script)


def test_a_whole_reply_of_many_packets_and_of_many_streams(serve: Serve, site: Site, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("".join(f"192.0.{i >> 8}.{i & 255} big.example.org\n" for i in range(3000)))
    server = serve(site.block(scheme="https3").replace("/nowhere", str(tmp_path / "hosts")))
    query = dns.message.make_query("big.example.org.", "A", id=0).to_wire()

    async def script(peer: Browser) -> None:
        streams = [peer.ask(b"POST", b"/dns-query", query) for _ in range(20)]
        await until(lambda: set(streams) <= peer.ended)
        assert all(len(dns.message.from_wire(peer.bodies[each]).answer[0]) == 3000 for each in streams)

    play(server, site, script)


def test_a_proxy_that_is_trusted_names_the_client(serve: Serve, site: Site) -> None:
    block = site.block("https3 {\n trusted_proxies 127.0.0.0/8\n max_streams 7\n }", scheme="https3")
    server = serve(block.replace(HOSTS, ""))

    async def script(peer: Browser) -> None:
        assert peer._quic._remote_max_streams_bidi == 7
        stream = peer._quic.get_next_available_stream_id()
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", get(QUERY))]
        # Each proxy may add a field of its own; of several one was looked at.
        proxies = [(b"x-forwarded-for", each) for each in (b"192.0.2.77", b"127.0.0.8, 127.0.0.9", b"127.0.0.7")]
        peer.http.send_headers(stream, [*head, *proxies], end_stream=True)
        peer.transmit()
        await until(lambda: stream in peer.ended)
        assert b"\xc0\0\2\x4d" in peer.bodies[stream]  # whoami
        assert peer.fields[stream][b"date"].endswith(b" GMT")

    play(server, site, script)


def test_a_stalled_request_ends_alone(serve: Serve, site: Site) -> None:
    server = serve(site.block("timeouts {\n read 1s\n }", scheme="https3"))

    async def script(peer: Browser) -> None:
        good = peer.ask(b"GET", get(QUERY))  # a connection without any would be closed itself
        await until(lambda: good in peer.ended)
        stalled = peer.ask(b"POST", b"/dns-query", QUERY[:5], end=False)
        await until(lambda: peer.reset.get(stalled) == 0x10C)
        good = peer.ask(b"GET", get(QUERY))
        await until(lambda: good in peer.ended)

    play(server, site, script)


def test_fields_without_end_are_reset_and_not_kept(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https3"))

    async def script(peer: Browser) -> None:
        stream = peer.send(b"\1\x80\x10\0\0" + bytes(300_000), end=False)
        await until(lambda: peer.reset.get(stream) == 0x107)
        good = peer.ask(b"GET", get(QUERY))
        await until(lambda: good in peer.ended)

    play(server, site, script)


@pytest.mark.parametrize(
    "octets", [b"\0\4\x80\x10\0\0" + bytes(100_000), b"\2" + bytes(100_000), b"\x21" + bytes(100_000)],
    ids=["settings", "table", "unknown"],
)  # fmt: skip
def test_octets_beside_requests_are_bounded(serve: Serve, site: Site, octets: bytes) -> None:
    server = serve(site.block(scheme="https3"))

    async def script(peer: Browser) -> None:
        peer.send(octets, end=False, stream=peer._quic.get_next_available_stream_id(is_unidirectional=True))
        await until(lambda: peer.closed is not None)
        assert peer.closed >= 0x100

    play(server, site, script)


def test_a_query_without_a_reply_is_500_and_a_shutdown_answers_what_was_asked(
    serve: Serve, site: Site, upstream: Start
) -> None:
    up = upstream(lambda query, proto: dns.message.make_response(query))
    server = serve(site.block(f"forward org {up.address}", scheme="https3").replace(HOSTS, ""))

    async def script(peer: Browser) -> None:
        stream = peer.ask(b"GET", get(QUERY))
        await until(lambda: stream in peer.ended)
        await asyncio.to_thread(server.thread.run, server.server.stop(drain=1))
        await until(lambda: peer.closed is not None)
        assert peer.closed == 0x100

    play(server, site, script)


def test_requests_that_are_reset_leave_nothing_behind(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="https3"))

    async def script(peer: Browser) -> None:
        await until(lambda: next(iter(server.server.listeners.values())).tcp[0].connections)
        for _ in range(5):
            streams = [peer.ask(b"POST", b"/dns-query", QUERY[:5], end=False) for _ in range(40)]
            await until(lambda: len(connection(server).application.requests) >= 40)
            for stream in streams:
                peer._quic.reset_stream(stream, 0x10C)
            peer.transmit()
            await until(lambda streams=streams: set(streams) <= set(peer.reset))
        good = peer.ask(b"GET", get(QUERY))
        await until(lambda: good in peer.ended)
        spoken = connection(server).application
        assert not spoken.requests and not spoken.received and not spoken.ended
        assert len(spoken.frames._stream) <= 8  # those of both sides' settings and tables

    play(server, site, script)


def test_requests_that_are_reset_at_once_count_until_they_are_answered(
    serve: Serve, site: Site, upstream: Start
) -> None:
    up = upstream(lambda query, proto: None)
    forward = f"forward org {up.address} {{\n prefer_udp\n }}"
    block = site.block("https3 {\n max_streams 10\n }", forward, scheme="https3")
    server = serve(block.replace(HOSTS, ""))

    async def script(peer: Browser) -> None:
        most = 0
        for i in range(50):
            stream = peer.ask(b"GET", get(dns.message.make_query(f"x{i}.org.", "A", id=0).to_wire()))
            peer._quic.reset_stream(stream, 0x10C)
            peer._quic.stop_stream(stream, 0x10C)
            peer.transmit()
            await until(lambda stream=stream: stream in peer.reset)
            most = max(most, connection(server).pending)
        assert most == 10
        await until(lambda: not connection(server).pending)
        spoken = connection(server).application
        assert not spoken.requests and len(spoken.frames._stream) <= 8
        stream = peer.ask(b"GET", get(dns.message.make_query("example.net.", "A", id=0).to_wire()))
        await until(lambda: stream in peer.ended)

    play(server, site, script)


def connection(server: Server) -> Any:
    """The server's side of the only connection."""
    return next(iter(next(iter(server.server.listeners.values())).tcp[0].connections))


def test_answers_that_nobody_takes_are_bounded(serve: Serve, site: Site, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("".join(f"192.0.{i >> 8}.{i & 255} big.example.org\n" for i in range(3000)))
    server = serve(site.block(scheme="https3").replace("/nowhere", str(tmp_path / "hosts")))
    query = dns.message.make_query("big.example.org.", "A", id=0).to_wire()

    async def script(peer: Browser) -> None:
        streams = [peer.ask(b"POST", b"/dns-query", query) for _ in range(100)]
        await until(lambda: len(streams) - len(peer.reset) <= (1 << 20) // 48_000)
        assert set(peer.reset.values()) == {0x107}

    play(server, site, script, max_stream_data=5_000)
