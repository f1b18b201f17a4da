"""One HTTP session with the API, and what an answer's status means.

Address and credentials come from kdns.kube.access. Requests go over aiohttp, objects are decoded by msgspec.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from kdns import __version__, files, hostnames, log
from kdns.keepalive import keep_alive
from kdns.kube import execplugin
from kdns.kube.access import Access, ApiConfig
from kdns.kube.paging import ApiError, Expired, Unauthorized
from kdns.metrics import Counter, Histogram

CONNECT: Final = 10.0  # seconds to reach the API
# Seconds for reading credentials: an exec plugin may have to ask a provider, and what takes longer hangs.
CREDENTIALS: Final = 30.0
TOKEN_AGE: Final = 60.0  # seconds a token is used before its file is read again; the kubelet rotates it hourly
# Keepalive probes that find a dead peer in 30 seconds: a watch may be silent for a minute.
KEEPALIVE: Final = (15, 5, 3)  # seconds idle, seconds between two, and how many
USER_TIMEOUT: Final = 30.0  # seconds that what is sent may stand unacknowledged
MAX_RETRY_AFTER: Final = 60.0  # seconds of a Retry-After that are waited
# What is read of an error's body: its text is for the log.
ERROR_OCTETS: Final = 300
ERROR_TIME: Final = 5.0  # seconds

# client-go's series, under the names that CoreDNS gives them.
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
REQUESTS: Final = Counter(
    "coredns_kubernetes_rest_client_requests_total",
    "Number of HTTP requests, partitioned by status code, method, and host.",
    ("code", "method", "host"),
)
DURATION: Final = Histogram(
    "coredns_kubernetes_rest_client_request_duration_seconds",
    "Request latency in seconds. Broken down by verb and host.",
    _SECONDS,
    ("verb", "host"),
)
# kdns limits nothing: it makes one list and one watch a kind. The series is there because dashboards show it.
LIMITER: Final = Histogram(
    "coredns_kubernetes_rest_client_rate_limiter_duration_seconds",
    "Client side rate limiter latency in seconds. Broken down by verb and host.",
    _SECONDS,
    ("verb", "host"),
)

_log = log.plugin("kubernetes")


def _headers_and_proxy(access: Access) -> dict[str, Any]:
    """The headers of a request, and how its proxy is asked."""
    if access.proxy is None:
        return {"headers": access.headers}
    if access.tls is None:  # the proxy reads the request itself
        return {"headers": access.headers | access.proxy.headers, "proxy": access.proxy.url}
    return {"headers": access.headers, "proxy": access.proxy.url, "proxy_headers": access.proxy.headers}


class _Resolver(AbstractResolver):
    """Looks up the API's name where waiting does not keep the process from ending."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await hostnames.look_up(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=family, proto=proto, flags=numeric)
            for family, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Holds nothing."""


class Client:
    """An HTTP session to one API server."""

    def __init__(self, config: ApiConfig) -> None:
        self.config = config
        self.session: aiohttp.ClientSession | None = None
        self.access: Access | None = None
        self.read_at = 0.0
        self.lock = asyncio.Lock()

    async def close(self) -> None:
        """Closes the session."""
        if self.session is not None:
            await self.session.close()
            self.session = None

    async def renew(self, *, force: bool = False) -> None:
        """Reads the credentials again when they are old, or at once (`force`: they were refused)."""
        async with self.lock:
            now = time.monotonic()
            if self.access is not None and now - self.read_at < (1.0 if force else TOKEN_AGE):
                return
            try:
                with execplugin.running() as plugin:
                    read = partial(plugin.run, self.config.access)
                    access = await files.waiting(self.config.reading, read, CREDENTIALS)
            except (ValueError, OSError, ssl.SSLError) as error:
                if self.access is None:
                    raise ApiError(f"credentials: {error}") from None
                _log.warning(f"credentials cannot be read again, the old ones are used: {error}")
                self.read_at = now
                return
            old, self.access, self.read_at = self.access, access, now
            if self.session is None or old is None or old.url != access.url or force:
                await self.close()
                connector = aiohttp.TCPConnector(
                    ssl=access.tls if access.tls is not None else True,
                    limit=32,
                    ttl_dns_cache=30,
                    resolver=_Resolver(),
                )
                self.session = aiohttp.ClientSession(
                    connector=connector,
                    headers={"User-Agent": f"kdns/{__version__}", "Accept": "application/json"},
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
                    skip_auto_headers=("Content-Type",),
                )

    @contextlib.asynccontextmanager
    async def get(
        self,
        path: str,
        params: dict[str, str],
        read: float | None,
        *,
        method: str = "GET",
        body: dict[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a GET (or another method, with a body as JSON), its status good. Raises ApiError and what
        aiohttp raises.
        """
        await self.renew()
        assert self.session is not None and self.access is not None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=read)
        began = time.monotonic()
        host = self.access.url.partition("://")[2]
        try:
            url = self.access.url + path
            request = await self.session.request(
                method, url, params=params, json=body, timeout=timeout, **_headers_and_proxy(self.access)
            )
        except (aiohttp.ClientError, OSError, TimeoutError):
            REQUESTS.slot("<error>", method, host)[0] += 1
            raise
        async with request as response:
            REQUESTS.slot(str(response.status), method, host)[0] += 1
            LIMITER.observe(LIMITER.slot(method, host), 0.0)
            DURATION.observe(DURATION.slot(method, host), time.monotonic() - began)
            if response.status not in (200, 201):
                text = await _beginning(response, ERROR_OCTETS, ERROR_TIME)
                if response.status == 410:
                    raise Expired(text)
                if response.status == 401:
                    raise Unauthorized(f"401 Unauthorized: {text}")
                # Seconds, as the API sends it (RFC 9110, section 10.2.3); at most what a backoff may be.
                after = response.headers.get("Retry-After", "")
                wait = min(float(after), MAX_RETRY_AFTER) if after.isdecimal() else 0.0
                raise ApiError(f"{response.status} {response.reason}: {text}", wait, response.status)
            if response.connection is not None and response.connection.transport is not None:
                keep_alive(response.connection.transport, *KEEPALIVE, USER_TIMEOUT)
            yield response

    async def websocket(
        self, path: str, params: dict[str, str], protocol: str, most: int
    ) -> aiohttp.ClientWebSocketResponse:
        """An open WebSocket, whose messages have at most so many octets. Raises ApiError and what aiohttp raises."""
        await self.renew()
        assert self.session is not None and self.access is not None
        try:
            made: aiohttp.ClientWebSocketResponse = await self.session.ws_connect(
                self.access.url + path, params=params, protocols=(protocol,), max_msg_size=most,
                **_headers_and_proxy(self.access),
            )  # fmt: skip
            return made
        except aiohttp.WSServerHandshakeError as error:
            raise ApiError(f"{error.status} {error.message}", code=error.status) from None


async def _beginning(response: aiohttp.ClientResponse, octets: int, seconds: float) -> str:
    """The first octets of a body, or what of them comes in some seconds, as text."""
    found = b""
    try:
        async with asyncio.timeout(seconds):
            while len(found) < octets and (chunk := await response.content.read(octets - len(found))):
                found += chunk
    except (aiohttp.ClientError, TimeoutError):
        pass
    return found.decode(errors="replace")
