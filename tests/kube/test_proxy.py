"""The API behind a proxy: which one is asked, by the rules of Go's httpproxy and client-go, and that it works."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from kdns.kube.proxy import env_proxy, is_direct, usable_proxy
from kdns.testing import ApiServer, LoopThread, Server, code, data, eventually
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve

PROXY_NAMES = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_NAMES:
        monkeypatch.delenv(name, raising=False)


class Proxy:
    """An HTTP proxy: CONNECT, and requests with a whole URL. It takes each host for this machine, whatever its name."""

    def __init__(self, user: str = "") -> None:
        self.asked: list[str] = []
        self.wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self.thread = LoopThread()

        async def listen() -> asyncio.Server:
            return await asyncio.start_server(self.serve, "127.0.0.1", 0)

        self.server = self.thread.run(listen())
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError),
            contextlib.closing(writer),
        ):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *fields = head.split("\r\n")
            method, target, _ = first.split(" ")
            self.asked.append(f"{method} {target.partition('?')[0]}")
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            if self.wanted and headers.get("proxy-authorization") != self.wanted:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if method == "CONNECT":
                port, onward = int(target.rpartition(":")[2]), b""
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                host, _, path = target.removeprefix("http://").partition("/")
                port, onward = int(host.rpartition(":")[2]), head.replace(target, f"/{path}", 1).encode()
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(their_writer):
                their_writer.write(onward)
                await asyncio.gather(copy(reader, their_writer), copy(their_reader, writer))

    def close(self) -> None:
        self.thread.call(self.server.close)
        self.thread.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while octets := await reader.read(65536):
            writer.write(octets)
            await writer.drain()
    writer.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    found = Proxy()
    yield found
    found.close()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[ApiServer, Path]]:
    """An API over TLS whose name nobody can look up, and its authority's file."""
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("api.kdns.test").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ApiServer(tls=context)
    server.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    yield server, tmp_path / "ca.pem"
    server.close()


def kubeconfig(folder: Path, url: str, ca: Path | None = None, proxy_url: str = "") -> str:
    cluster: dict[str, Any] = {"server": url}
    if ca is not None:
        cluster["certificate-authority"] = str(ca)
    if proxy_url:
        cluster["proxy-url"] = proxy_url
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
    }))  # fmt: skip
    return str(path)


def serving(serve: Serve, source: str) -> Server:
    return serve(".:{port} {\n bind 127.0.0.1\n kubernetes cluster.local {\n " + source + "\n }\n}\n")


def served(serve: Serve, source: str) -> None:
    server = serving(serve, source)
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"])


def test_the_proxy_of_a_kubeconfig_was_ignored_in_silence(
    serve: Serve, proxy: Proxy, secure: tuple[ApiServer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts whatever the environment says: as client-go."""
    api, ca = secure
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    url = f"https://api.kdns.test:{api.port}"
    served(serve, f"kubeconfig {kubeconfig(tmp_path, url, ca, f'http://127.0.0.1:{proxy.port}')}")
    assert set(proxy.asked) == {f"CONNECT api.kdns.test:{api.port}"}


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("source", ["kubeconfig", "endpoint"])
def test_the_environments_proxy_is_used_for_an_api_over_tls(
    serve: Serve,
    proxy: Proxy,
    secure: tuple[ApiServer, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    source: str,
) -> None:
    api, ca = secure
    monkeypatch.setenv(name, f"127.0.0.1:{proxy.port}")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    url = f"https://api.kdns.test:{api.port}"
    if source == "kubeconfig":
        served(serve, f"kubeconfig {kubeconfig(tmp_path, url, ca)}")
    else:
        client = trustme.CA().issue_cert("client.kdns.test")
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        client.cert_chain_pems[0].write_to_path(str(cert))
        client.private_key_pem.write_to_path(str(key))
        served(serve, f"endpoint {url}\n tls {cert} {key} {ca}")
    assert set(proxy.asked) == {f"CONNECT api.kdns.test:{api.port}"}


def test_the_environments_proxy_is_used_for_an_api_without_tls(
    serve: Serve, proxy: Proxy, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    served(serve, f"endpoint http://api.kdns.test:{api.port}")
    assert f"GET http://api.kdns.test:{api.port}/api/v1/services" in proxy.asked


def test_no_proxy_and_this_machine_are_asked_directly(
    serve: Serve, proxy: Proxy, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    served(serve, f"endpoint {api.url}")
    served(serve, f"kubeconfig {kubeconfig(tmp_path, api.url)}")
    assert not proxy.asked


@pytest.mark.parametrize("tls", [True, False])
def test_a_proxys_user_is_shown_to_it_and_to_nobody_else(
    serve: Serve, secure: tuple[ApiServer, Path], api: ApiServer, tmp_path: Path, lines: list[str], tls: bool
) -> None:
    api.put(namespace("n1"), service("n1/web", "10.0.0.1"))
    behind, ca = secure if tls else (api, None)
    guarded = Proxy("me:pass%word")
    try:
        url = f"http{'s' * tls}://api.kdns.test:{behind.port}"
        served(serve, f"kubeconfig {kubeconfig(tmp_path, url, ca, f'http://me:pass%25word@127.0.0.1:{guarded.port}')}")
        refused = serving(
            serve, f"kubeconfig {kubeconfig(tmp_path, url, ca, f'http://me:wrong@127.0.0.1:{guarded.port}')}"
        )
        eventually(lambda: any("407" in line for line in lines))
        assert code(refused.ask("web.n1.svc.cluster.local.")) == "SERVFAIL"
    finally:
        guarded.close()
    assert not any("wrong" in line or "word" in line for line in lines)


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "ftp://127.0.0.1", "http://"])
def test_a_proxy_that_cannot_be_used_is_said(serve: Serve, tmp_path: Path, lines: list[str], url: str) -> None:
    serving(serve, f"kubeconfig {kubeconfig(tmp_path, 'https://api.kdns.test', None, url)}")
    eventually(lambda: any("proxy-url: " in line for line in lines))


# The rules, as golang.org/x/net/http/httpproxy documents them.


@pytest.mark.parametrize(("no_proxy", "direct", "proxied"), [
    ("", ["localhost:80", "127.0.0.1:80", "127.9.9.9:443", "[::1]:443"],
        ["api.example.org:443", "10.0.0.1:443", "localhost.org:80"]),
    ("*", ["api.example.org:443", "10.0.0.1:443"], []),
    ("example.org", ["example.org:443", "api.example.org:80"], ["badexample.org:443", "example.org.net:443"]),
    (".example.org", ["api.example.org:443"], ["example.org:443", "badexample.org:443"]),
    ("*.example.org", ["api.example.org:443"], ["example.org:443"]),
    ("example.org:6443", ["example.org:6443", "a.example.org:6443"], ["example.org:443"]),
    ("10.96.0.1", ["10.96.0.1:443"], ["10.96.0.2:443", "10.96.0.10:443"]),
    ("10.96.0.1:443", ["10.96.0.1:443"], ["10.96.0.1:6443"]),
    ("10.96.0.0/12", ["10.96.0.1:443", "10.111.255.255:1"], ["10.112.0.1:443", "example.org:443"]),
    ("fd00::/8,2001:db8::1", ["[fd00::1]:443", "[2001:db8::1]:443"], ["[2001:db8::2]:443", "10.0.0.1:80"]),
    ("[2001:db8::1]:443", ["[2001:db8::1]:443"], ["[2001:db8::1]:6443"]),
    (" , Example.ORG ,,:80,[]:80", ["example.org:443"], ["other.org:80"]),
    ("10.0.0.0/99,/,a/b", [], ["10.0.0.1:443", "a:80"]),
])  # fmt: skip
def test_no_proxy_is_read_as_go_does(no_proxy: str, direct: list[str], proxied: list[str]) -> None:
    for where in direct + proxied:
        host, _, port = where.rpartition(":")
        assert is_direct(host.strip("[]"), port, no_proxy) == (where in direct), where


def test_the_proxy_goes_by_the_urls_scheme() -> None:
    both = {
        "HTTP_PROXY": "plain:1",
        "HTTPS_PROXY": "https://secure:2",
        "https_proxy": "http://never:3",
        "ALL_PROXY": "http://never:4",
    }
    assert env_proxy("http://api.example.org", both) == ("http://plain:1", {})
    assert env_proxy("https://api.example.org", both) == ("https://secure:2", {})
    assert env_proxy("https://api.example.org", {"https_proxy": "http://lower:3"}) == ("http://lower:3", {})
    assert env_proxy("https://api.example.org:6443", {**both, "no_proxy": "example.org:6443"}) is None
    assert env_proxy("https://api.example.org", {**both, "NO_PROXY": "example.org:443"}) is None
    assert env_proxy("http://api.example.org", {"HTTPS_PROXY": "http://p"}) is env_proxy("", both) is None
    with pytest.raises(ValueError, match=r"HTTPS_PROXY: .*socks5"):
        env_proxy("https://api.example.org", {"HTTPS_PROXY": "socks5://p:1"})
    assert usable_proxy("x", "proxy.example.org:3128") == ("http://proxy.example.org:3128", {})
    for user in ("me", "me:", "me:p%40ss"):
        url, headers = usable_proxy("x", f"http://{user}@[fd00::1]:3128")
        shown = user.replace("%40", "@") + ("" if ":" in user else ":")
        assert url == "http://[fd00::1]:3128" and base64.b64decode(headers["Proxy-Authorization"][6:]).decode() == shown
