"""prometheus - counts queries and serves all metrics.

`GET /metrics` on ADDRESS gives every metric of the process in Prometheus' text format. Blocks that name the same
address share it.

## Syntax

    prometheus [ADDRESS]

* ADDRESS is where to listen; default `localhost:9153`.

## Examples

~~~ corefile
.:1053 {
    prometheus 127.0.0.1:19153
    whoami
}
~~~

## Metrics

* `coredns_build_info{version,revision,goversion}` - 1, with the versions of kdns and Python.
* `coredns_dns_requests_total{server,zone,view,proto,family,type}` - queries.
* `coredns_dns_request_duration_seconds{server,zone,view}` - time from arrival to outcome.
* `coredns_dns_request_size_bytes{server,zone,view,proto}` and `coredns_dns_response_size_bytes{server,zone,view,proto}`.
* `coredns_dns_do_requests_total{server,zone,view}` - queries with the DO bit.
* `coredns_dns_responses_total{server,zone,view,rcode,plugin}` - replies by response code.
* `coredns_panics_total{}` - exceptions in plugins.
* `coredns_plugin_enabled{server,zone,view,name}` - 1 for each plugin in the path of queries.
"""

import asyncio
import platform
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest

from kdns import __version__, log, metrics
from kdns.address import host_port
from kdns.corefile import Directive
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.metrics import TIME_BUCKETS, Counter, Gauge, Histogram, Slot
from kdns.net.http import HttpServer, Response
from kdns.pipeline import Outcome, Plugin, Request, setup
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.plugin import ListenerOptions, overrides
from kdns.pipeline.runtime import Runtime

DEFAULT: Final = ("localhost", 9153)
SIZE_BUCKETS: Final = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3)
_COUNTED_TYPES: Final = frozenset((
    iana.A, iana.AAAA, iana.CNAME, iana.DNSKEY, iana.DS, iana.MX, iana.NS, iana.NSEC, 50, iana.PTR, iana.RRSIG, iana.SOA,
    iana.SRV, iana.TXT, iana.HTTPS, iana.SVCB, iana.IXFR, iana.AXFR, iana.ANY,
))  # fmt: skip

BUILD: Final = Gauge(
    "coredns_build_info", "A metric with a constant '1' value labeled by version, revision, and goversion.",
    ("version", "revision", "goversion"),
)  # fmt: skip
REQUESTS: Final = Counter(
    "coredns_dns_requests_total", "Counter of DNS requests made per zone, protocol and family.",
    ("server", "zone", "view", "proto", "family", "type"),
)  # fmt: skip
DURATION: Final = Histogram(
    "coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.", TIME_BUCKETS,
    ("server", "zone", "view"),
)  # fmt: skip
REQUEST_SIZE: Final = Histogram(
    "coredns_dns_request_size_bytes",
    "Size of the EDNS0 UDP buffer in bytes (64K for TCP) per zone and protocol.",
    SIZE_BUCKETS,
    ("server", "zone", "view", "proto"),
)
RESPONSE_SIZE: Final = Histogram(
    "coredns_dns_response_size_bytes", "Size of the returned response in bytes.", SIZE_BUCKETS,
    ("server", "zone", "view", "proto"),
)  # fmt: skip
DO: Final = Counter(
    "coredns_dns_do_requests_total", "Counter of DNS requests with DO bit set per zone.", ("server", "zone", "view")
)
RESPONSES: Final = Counter(
    "coredns_dns_responses_total", "Counter of response status codes.", ("server", "zone", "view", "rcode", "plugin")
)
ENABLED: Final = Gauge(
    "coredns_plugin_enabled", "A metric that indicates whether a plugin is enabled on per server and zone basis.",
    ("server", "zone", "view", "name"),
)  # fmt: skip
LOG_DROPPED: Final = Gauge("kdns_log_dropped_lines", "Log lines lost to a slow reader.", read=lambda: float(log.dropped()))

# Entries of a tally: as many different pairs of sizes as a busy row has in a minute; then it is poured out.
MAX_TALLY: Final = 4096
_DROPPED: Final = 0xFFFF  # stands for the code of a query without a reply
_FIRST: Final = TIME_BUCKETS[0]
_REPEATED: Final = 0.000002  # seconds a repeated reply takes between reading and sending, measured

_log = log.plugin("prometheus")


@dataclass(frozen=True, slots=True)
class Config:
    """Where metrics are served."""

    host: str
    port: int


class _Row:
    """The slots that a query of one listener, zone, transport, family and type adds to."""

    __slots__ = ("do", "duration", "labels", "plugin", "request_size", "requests", "response_size", "responses", "tally")

    def __init__(self, server: str, zone: str, view: str, proto: str, family: str, qtype: int, plugin: str) -> None:
        text = iana.type_text(qtype) if qtype in _COUNTED_TYPES else "other"
        self.labels = (server, zone, view)
        self.plugin = plugin
        self.requests: Slot = REQUESTS.slot(server, zone, view, proto, family, text)
        self.duration: Slot = DURATION.slot(server, zone, view)
        self.request_size: Slot = REQUEST_SIZE.slot(server, zone, view, proto)
        self.response_size: Slot = RESPONSE_SIZE.slot(server, zone, view, proto)
        self.do: Slot = DO.slot(server, zone, view)
        self.responses: dict[int, Slot] = {}
        # Queries by sizes and code, not yet in the slots: request octets << 32 | response octets << 16 | rcode.
        self.tally: dict[int, int] = {}

    def pour(self) -> None:
        """Brings the tally into the slots."""
        tally, self.tally = self.tally, {}
        for key, count in tally.items():
            asked, said, rcode = key >> 32, key >> 16 & 0xFFFF, key & 0xFFFF
            self.requests[0] += count
            _add(self.request_size, asked, count)
            if rcode == _DROPPED:
                continue
            _add(self.response_size, said, count)
            responses = self.responses.get(rcode)
            if responses is None:
                responses = self.response(rcode)
            responses[0] += count

    def response(self, rcode: int) -> Slot:
        """The slot of a response code, made when it is first met."""
        made = self.responses[rcode] = RESPONSES.slot(*self.labels, iana.rcode_text(rcode), self.plugin)
        return made


class Prometheus(Plugin):
    """Settles every outcome into counters."""

    name: ClassVar[str] = "prometheus"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        directive = setup.once(directives)
        host, port = setup.http_address(directive, DEFAULT)
        for line in directive.body or ():
            if line.name.text == "runtime_metrics":
                setup.arguments(line, 0, 0)  # Go's runtime; Python's are always there
            elif line.name.text == "tls":
                raise setup.fail(line, "prometheus over TLS is known from CoreDNS, but this version of kdns does not have it yet")
            else:
                raise setup.unknown(line, ("runtime_metrics", "tls"))
        return [Config(host, port)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rows: dict[tuple[object, ...], _Row] = {}
        self.block: Block | None = None
        self.one_zone = ""
        self.next = ""
        self.runtime: Runtime | None = None
        self.server: HttpServer | None = None
        self.enabled: list[tuple[str, str, str, str]] = []
        self.touched: list[_Row] = []

    def listener(self) -> ListenerOptions:
        return ListenerOptions(dropped=_dropped)

    def wire(self, block: Block) -> None:
        self.block = block
        self.one_zone = block.zone_text(block.zones[0]) if len(block.zones) == 1 else ""
        names = [p.name for p in block.plugins if any(overrides(p, hook) for hook in ("handle", "finish", "settle"))]
        # The plugin right behind this one, whatever answers: that is what the original's label holds.
        at = names.index(self.name)
        self.next = names[at + 1] if at + 1 < len(names) else ""
        zone = block.keys.zones[0]
        hosts = block.hosts or ("",)
        for key in block.keys.keys:
            for host in hosts:
                server = f"{key.scheme}://{host_port(host, key.port)}"
                self.enabled += [(server, zone, block.view, name) for name in names]

    async def start(self, runtime: Runtime) -> None:
        BUILD.slot(__version__, "", f"python{platform.python_version()}")[0] = 1
        for labels in self.enabled:
            ENABLED.slot(*labels)[0] = 1
        metrics.REFRESH.append(self.pour)
        config = self.config
        try:
            self.server = await runtime.acquire(("http", config.host, config.port), partial(HttpServer, config.host, config.port))
        except OSError as error:
            # As in CoreDNS, not fatal: names matter more than counts.
            _log.error(f"Failed to start metrics handler: {error}")
            return
        self.runtime = runtime
        self.server.add("/metrics", expose)

    async def stop(self) -> None:
        self.pour()
        if self.pour in metrics.REFRESH:
            metrics.REFRESH.remove(self.pour)
        for labels in self.enabled:
            ENABLED.remove(*labels)
        if self.server is not None and self.runtime is not None:
            self.server.remove("/metrics", expose)
            await self.runtime.release(("http", self.config.host, self.config.port))
            self.server = None

    def settle(self, request: Request, outcome: Outcome) -> None:
        if request.depth:
            return
        question = request.question
        key = (request.server, request.proto, len(request.peer), question.type)
        row = self.rows.get(key) or self._row(request, key)
        took = monotonic() - request.now
        slot = row.duration
        slot[0] += took
        slot[1 if took <= _FIRST else bisect_left(TIME_BUCKETS, took) + 1] += 1
        if request.edns is not None and request.edns.do:
            row.do[0] += 1
        if type(outcome) is Answer:
            body = outcome.body
            if body is None:
                body = outcome.rendered(request.asked.name)
            size = request.end + len(body.data)
            code = len(request.data) << 32 | (size if size < 0xFFFF else 0xFFFF) << 16 | outcome.rcode
        elif outcome.rcode < 0:
            code = len(request.data) << 32 | _DROPPED
        else:
            code = len(request.data) << 32 | request.end << 16 | outcome.rcode
        tally = row.tally
        if code in tally:
            tally[code] += 1
        else:
            self._new(row, code)

    def _new(self, row: _Row, code: int) -> None:
        if len(row.tally) >= MAX_TALLY:
            row.pour()
        row.tally[code] = 1
        if row not in self.touched:
            self.touched.append(row)

    def pour(self) -> None:
        """Before a scrape: brings all tallies into the slots."""
        touched, self.touched = self.touched, []
        for row in touched:
            row.pour()

    def repeat(self, request: Request, answer: Answer) -> Callable[[int, int], None] | None:
        key = (request.server, request.proto, len(request.peer), request.question.type)
        row = self.rows.get(key)
        if row is None:
            return None
        rcode = answer.rcode
        duration = row.duration
        do = request.edns is not None and request.edns.do

        def again(asked: int, said: int) -> None:
            code = asked << 32 | said << 16 | rcode
            tally = row.tally
            if code in tally:
                tally[code] += 1
            else:
                self._new(row, code)
            # A repeated reply takes a few microseconds: the first bucket, and a fixed sum, without asking the clock.
            duration[0] += _REPEATED
            duration[1] += 1
            if do:
                row.do[0] += 1

        return again

    def _row(self, request: Request, key: tuple[object, ...]) -> _Row:
        """The row of a request that `key` does not lead to yet. As many as zones, transports and counted types allow."""
        assert self.block is not None
        zone = self.one_zone or self.block.zone_text(request.question.name)
        qtype = request.question.type
        # Types that are counted as `other` share a row: there are 65,536 of them to ask for.
        full = (*key[:3], qtype if qtype in _COUNTED_TYPES else -1, zone)
        row = self.rows.get(full)
        if row is None:
            family = "2" if len(request.peer) == 4 else "1"
            row = _Row(request.server.label, zone, self.block.view, request.proto, family, qtype, self.next)
            self.rows[full] = row
        if self.one_zone and qtype in _COUNTED_TYPES:
            self.rows[key] = row
        return row


def _add(slot: Slot, size: int, count: int) -> None:
    slot[0] += size * count
    slot[bisect_left(SIZE_BUCKETS, size) + 1] += count


def _dropped(request: Request, outcome: Outcome) -> None:
    """A query that no block answers: counted with the zone `dropped`, as the original does."""
    family = "2" if len(request.peer) == 4 else "1"
    row = _Row(request.server.label, "dropped", "", request.proto, family, request.question.type, "")
    row.requests[0] += 1
    DURATION.observe(row.duration, monotonic() - request.now)
    REQUEST_SIZE.observe(row.request_size, len(request.data))
    RESPONSE_SIZE.observe(row.response_size, request.end)
    row.response(outcome.rcode)[0] += 1


_process: Final = CollectorRegistry()
ProcessCollector(registry=_process)
PlatformCollector(registry=_process)


async def expose() -> Response:
    """All metrics, one family a turn of the loop."""
    parts = []
    for text in metrics.families():
        parts.append(text)
        await asyncio.sleep(0)
    parts.append(generate_latest(_process))
    return Response(200, b"".join(parts), "text/plain; version=0.0.4; charset=utf-8")
