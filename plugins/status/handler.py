"""The plugin `status`: what is counted for the page, and how it is served."""

import asyncio
import json
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any, ClassVar, Final

from kdns import __version__, faults, metrics
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import to_text
from kdns.metrics import REGISTRY, TIME_BUCKETS
from kdns.net.http import Response
from kdns.plugin import Outcome, Plugin, Request, readers
from kdns.plugin.endpoint import HttpEndpoint
from kdns.plugin.runtime import Runtime
from kdns.plugins.status.topk import TopK

DEFAULT: Final = ("127.0.0.1", 8053)
SHOWN: Final = 10  # of each table
FADE: Final = 300.0  # seconds after which counts are halved
# Only what the page itself holds may run on it.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
SERIES: Final = {
    "requests": "coredns_dns_requests_total", "cache_hits": "coredns_cache_hits_total", "cache_misses": "coredns_cache_misses_total",
    "cache_entries": "coredns_cache_entries", "data_age": "kdns_kubernetes_data_age_seconds", "objects": "kdns_kubernetes_objects",
    "healed": "kdns_kubernetes_healed_total", "upstream_failures": "coredns_proxy_healthcheck_failures_total",
}  # fmt: skip


class Status(Plugin):
    """Counts names, clients and denials, and serves the page."""

    name: ClassVar[str] = "status"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[str, int]]:
        directive = readers.once(directives)
        readers.no_block(directive)
        return [readers.http_address(directive, DEFAULT)]

    def __init__(self, config: tuple[str, int]) -> None:
        super().__init__(config)
        self.host, self.port = config
        self.names, self.clients, self.denied = TopK(), TopK(), TopK()
        self.rcodes: dict[int, int] = {}
        self.times = [0] * (len(TIME_BUCKETS) + 1)
        self.queries = 0
        self.began = time.monotonic()
        self.server: HttpEndpoint | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def http(self) -> tuple[str, int, str]:
        """Where it serves."""
        return self.host, self.port, ""

    async def start(self, runtime: Runtime) -> None:
        self.server = await HttpEndpoint.open(runtime, self.http)
        self.server.add("/", self.page)
        self.server.add("/status.json", self.data)
        self.task = asyncio.create_task(faults.supervise("plugin/status", self._fade), name="status")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.server is not None:
            await self.server.close()
            self.server = None

    async def _fade(self) -> None:
        while True:
            await asyncio.sleep(FADE)
            for top in (self.names, self.clients, self.denied):
                top.fade()

    def observe(self, request: Request, outcome: Outcome) -> None:
        if request.depth:
            return
        self.queries += 1
        rcode = outcome.rcode
        self.rcodes[rcode] = self.rcodes.get(rcode, 0) + 1
        took = time.monotonic() - request.now
        place = 0
        while place < len(TIME_BUCKETS) and took > TIME_BUCKETS[place]:
            place += 1
        self.times[place] += 1
        name = request.asked.name
        self.names.add(name)
        self.clients.add(request.client[0])
        if rcode == iana.NXDOMAIN and type(outcome) is Answer:
            # A search list's waste shows in what stands behind the first label.
            self.denied.add(name[name[0] + 1 :] if name[0] else name)

    async def page(self) -> Response:
        """The page itself."""
        text = resources.files(__package__).joinpath("page.html").read_bytes()
        return Response(200, text.replace(b"{policy}", _POLICY.encode()), "text/html; charset=utf-8")

    async def data(self) -> Response:
        """What the page shows."""
        return Response(200, json.dumps(self.state()).encode(), "application/json")

    def state(self) -> dict[str, Any]:
        """All numbers: counters since the start, so that whoever asks twice knows the rate."""
        faults.call_each("the refresh of a metric", metrics.REFRESH)
        return {
            "version": __version__,
            "uptime_seconds": round(time.monotonic() - self.began, 3),
            "queries": self.queries,
            "rcodes": {iana.rcode_text(code) if code >= 0 else "dropped": count for code, count in sorted(self.rcodes.items())},
            "latency_seconds": {"bounds": list(TIME_BUCKETS), "counts": self.times},
            "series": {short: _values(name) for short, name in SERIES.items()},
            "upstreams": _upstreams(),
            "names": [[to_text(key), count] for key, count in self.names.top(SHOWN) if isinstance(key, bytes)],
            "clients": [[str(key), count] for key, count in self.clients.top(SHOWN)],
            "denied": [[to_text(key), count] for key, count in self.denied.top(SHOWN) if isinstance(key, bytes)],
        }


def _values(name: str) -> list[list[Any]]:
    family = REGISTRY.get(name)
    if family is None:
        return []
    return [[dict(zip(family.labels, labels, strict=True)), slot[0]] for labels, slot in family.slots.items()]


def _upstreams() -> list[list[Any]]:
    """Of each upstream: answers, and their mean time in ms."""
    family = REGISTRY.get("coredns_proxy_request_duration_seconds")
    found: dict[str, list[float]] = {}
    for labels, slot in family.slots.items() if family is not None else ():
        known = found.setdefault(labels[1], [0.0, 0.0])
        known[0] += sum(slot[1:])
        known[1] += slot[0]
    return [[to, count, total / count * 1e3 if count else 0.0] for to, (count, total) in sorted(found.items())]
