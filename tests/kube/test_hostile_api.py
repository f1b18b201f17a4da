"""An API, or what stands before it, whose answers have no end, are bombs, or are not text; and one that is behind."""

import asyncio
import contextlib
import functools
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from kdns.kube import api as api_module
from kdns.kube import decode, paging, reflector
from kdns.kube.decode import Unreadable
from kdns.kube.objects import SERVICE
from kdns.kube.paging import ApiError, Pages, TooLarge
from kdns.testing import ApiServer, LoopThread, Server, code, data, eventually
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve

COREFILE = ".:{port} {\n bind 127.0.0.1\n kubernetes cluster.local {\n endpoint URL\n }\n}\n"
MB = 1 << 20
Body = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def raw() -> Iterator[Callable[[str, Body], str]]:
    """Starts an HTTP server that says a head and a body; gives its URL."""
    thread = LoopThread()
    servers: list[asyncio.Server] = []

    def start(head: str, body: Body) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(f"HTTP/1.1 {head}\r\nContent-Type: application/json\r\n\r\n".encode())
                await body(writer)
            writer.close()

        async def listen() -> asyncio.Server:
            return await asyncio.start_server(serve, "127.0.0.1", 0)

        servers.append(thread.run(listen()))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        thread.call(server.close)
    thread.close()


async def endless(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)
        await writer.drain()


@functools.cache
def bomb(size: int) -> bytes:
    squeeze = zlib.compressobj(9, wbits=31)
    return b"".join([*(squeeze.compress(bytes(MB)) for _ in range(size // MB)), squeeze.flush()])


async def explosive(writer: asyncio.StreamWriter) -> None:
    writer.write(bomb(128 * MB))
    await writer.drain()


def first_page(url: str) -> tuple[Exception, float, int]:
    """What asking for a page raises, the seconds that took, and the most octets it held."""

    bomb(128 * MB)  # made before anything is measured

    async def ask() -> tuple[Exception, float, int]:
        client = api_module.Client(api_module.ApiConfig(endpoint=url))
        began = time.monotonic()
        tracemalloc.start()
        try:
            await Pages(client, SERVICE, "/api/v1/services", {}, 500).next()
        except Exception as error:
            return error, time.monotonic() - began, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            await client.close()
        raise AssertionError("it was taken")

    return asyncio.run(ask())


@pytest.mark.parametrize(("head", "body"), [
    ("500 Internal Server Error", endless),
    ("403 Forbidden\r\nContent-Encoding: gzip", explosive),
    ("429 Too Many Requests\r\nContent-Encoding: deflate", explosive),
])  # fmt: skip
def test_the_body_of_an_error_was_read_whatever_its_length(
    raw: Callable[[str, Body], str], head: str, body: Body
) -> None:
    error, took, held = first_page(raw(head, body))
    assert isinstance(error, ApiError | api_module.aiohttp.ClientError) and took < 30 and held < 24 * MB
    assert len(str(error)) < 500


def test_the_body_of_an_error_that_trickles_is_not_waited_for(
    raw: Callable[[str, Body], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "ERROR_TIME", 0.5)
    error, took, _ = first_page(raw("503 Service Unavailable\r\nRetry-After: 7", trickle))
    assert isinstance(error, ApiError) and error.code == 503 and error.after == 7 and took < 30


@pytest.mark.parametrize(("head", "body"), [("200 OK", endless), ("200 OK\r\nContent-Encoding: gzip", explosive)])
def test_a_page_was_read_whatever_its_length(
    raw: Callable[[str, Body], str], head: str, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_PAGE", 2 * MB)
    error, took, held = first_page(raw(head, body))
    assert isinstance(error, TooLarge) and took < 30 and held < 24 * MB


def test_a_page_that_trickles_ends(raw: Callable[[str, Body], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_TIME", 0.2)
    error, took, _ = first_page(raw("200 OK", trickle))
    assert isinstance(error, TimeoutError) and took < 30


def test_objects_that_make_too_large_a_page_come_in_smaller_ones(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "MAX_PAGE", MB)
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 0.1))
    api.streams = False
    large = [service(f"n1/x{i}", f"10.0.1.{i}") for i in range(20)]
    for each in large:
        each["metadata"]["annotations"] = {"large": "x" * 100_000}
    api.put(namespace("n1"), *large)
    server = serve(COREFILE.replace("URL", api.url))
    eventually(lambda: a(server, "x19.n1") == ["10.0.1.19"])


# Octets that are not text.


def a(server: Server, name: str) -> list[str] | str:
    reply = server.ask(f"{name}.svc.cluster.local.")
    return data(reply) if reply.answer else code(reply)


GOOD = b'{"metadata":{"name":"good","namespace":"n1","resourceVersion":"1"},"spec":{"clusterIP":"10.0.0.1"}}'


@pytest.mark.parametrize("bad", [
    b'{"metadata":{"name":"bad","namespace":"n1","resourceVersion":"2"},"spec":{"clusterIP":"10.0.0.2\xff"}}',
    b'{"metadata":{"name":"bad","namespace":"n1","resourceVersion":"2","labels":{"x":"\xc3("}},"spec":{}}',
    b'{"metadata":{"name":"bad","namespace":"n1","resourceVersion":"2"},"spec":{"type":"\xed\xa0\x80"}}',
])  # fmt: skip
def test_one_octet_that_is_no_text_cost_all_names_of_the_cluster(bad: bytes) -> None:
    body = b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":[' + GOOD + b"," + bad + b"]}"
    meta, found = decode.page(SERVICE, body)
    assert meta.resource_version == "5" and len(found) == 2
    good, unreadable = found
    assert not isinstance(good, Unreadable) and good.metadata.name == "good"
    assert isinstance(unreadable, Unreadable) and unreadable.meta.name == "bad" and "utf-8" in unreadable.why


@pytest.mark.parametrize("octets", [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"[" * 100_000, b"\x00", b"\xff\xfe{\x00"])
@pytest.mark.parametrize("where", [
    b"%s", b'{"kind":"%s"}', b'{"metadata":{"continue":"%s"}}', b'{"items":[%s]}',
    b'{"items":[{"metadata":{"name":"%s"}}]}',
    b'{"type":"%s","object":{}}', b'{"type":"ADDED","object":%s}', b'{"metadata":{"annotations":{"%s":"%s"}}}',
    b'{"message":"%s"}',
])  # fmt: skip
def test_what_cannot_be_decoded_is_said_by_one_kind_of_exception(octets: bytes, where: bytes) -> None:
    body = where.replace(b"%s", octets)
    for read in (lambda: decode.page(SERVICE, body), lambda: decode.event(body), lambda: decode.bookmark(body)):
        with contextlib.suppress(decode.msgspec.DecodeError):
            read()
    with contextlib.suppress(decode.msgspec.DecodeError):
        decode.one(SERVICE, body)
    decode.status(body)


def test_an_event_that_is_no_text_sets_its_object_aside(serve: Serve, api: ApiServer, lines: list[str]) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = serve(COREFILE.replace("URL", api.url))
    eventually(lambda: a(server, "web.n1") == ["10.0.0.1"])
    bad = b'{"metadata":{"name":"bad","namespace":"n1","resourceVersion":"102"},"spec":{"clusterIP":"10.0.0.2\xff"}}'
    api.send_raw("services", b'{"type":"ADDED","object":' + bad + b"}\n")
    eventually(lambda: any("Service n1/bad rejected" in line or "services n1/bad rejected" in line for line in lines))
    api.put(service("n1/new", "10.0.0.3"))
    eventually(lambda: a(server, "new.n1") == ["10.0.0.3"])
    assert a(server, "web.n1") == ["10.0.0.1"]
    assert not any("cannot" in line or "Failed" in line for line in lines)


# One API server of several is behind.


def test_an_api_server_that_was_behind_was_taken_for_another_history(
    serve: Serve, api: ApiServer, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(reflector, "BACKOFF", (0.02, 0.1))
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    server = serve(COREFILE.replace("URL", api.url))
    eventually(lambda: a(server, "web.n1") == ["10.0.0.1"])
    before = len(everything(api))
    api.behind = 6
    began = time.monotonic()
    api.close_watches()
    eventually(lambda: not api.behind)
    api.put(service("n1/new", "10.0.0.3"))
    eventually(lambda: a(server, "new.n1") == ["10.0.0.3"])
    assert time.monotonic() - began > 1.9  # three kinds, told twice each to come back in a second
    assert len(everything(api)) == before and not any("relisting everything" in line for line in lines)
    assert any("Too large resource version" in line for line in lines)


def everything(api: ApiServer) -> list[str]:
    """The requests for all objects of a kind."""
    return [
        path
        for path in api.requests
        if "sendInitialEvents" in path or ("watch" not in path and "limit=1&" not in f"{path}&")
    ]
