"""prometheus - counts queries and serves all metrics.

`GET /metrics` on ADDRESS returns all metrics of the process in Prometheus' text format. Blocks that name the same
address share one server.

## Syntax

    prometheus [ADDRESS] {
        runtime_metrics
        tls FILE
    }

* ADDRESS is where to listen; default `localhost:9153`.
* `runtime_metrics` has no effect: the metrics of Python and of the process are always served.
* `tls`: a web configuration file as Prometheus' exporters have it (YAML). Of `tls_server_config`: `cert_file`,
  `key_file`, `client_auth_type` (`NoClientCert`, `VerifyClientCertIfGiven`, `RequireAndVerifyClientCert`),
  `client_ca_file`, `min_version`, `max_version`, `cipher_suites`, `prefer_server_cipher_suites`; of
  `http_server_config`: `headers`; and `basic_auth_users` (bcrypt hashes by name; `pip install 'kdns[auth]'`).
  Certificates are read again when their files change.

## Examples

~~~ corefile
.:1053 {
    prometheus 127.0.0.1:19153
    whoami
}
~~~

## Metrics

* `coredns_build_info{version,revision,goversion}` - 1, with the versions of kdns and Python.
* `kdns_build_info{version,build,python}` - 1, with the build: `compiled` or `interpreted`.
* `coredns_dns_requests_total{server,zone,view,proto,family,type}` - queries.
* `coredns_dns_request_duration_seconds{server,zone,view}` - time from arrival to outcome.
* `coredns_dns_request_size_bytes{server,zone,view,proto}` and
  `coredns_dns_response_size_bytes{server,zone,view,proto}`.
* `coredns_dns_do_requests_total{server,zone,view}` - queries with the DO bit.
* `coredns_dns_responses_total{server,zone,view,rcode,plugin}` - replies by response code.
* `coredns_panics_total{}` - exceptions in plugins.
* `coredns_plugin_enabled{server,zone,view,name}` - 1 for each plugin in the path of queries.
"""

import platform
from bisect import bisect_left
from collections import Counter as Multiset
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import ClassVar, Final

from kdns import __version__, log, metrics, version
from kdns.address import host_port
from kdns.corefile import Directive, ServerBlock
from kdns.dns.answer import Answer
from kdns.metrics import TIME_BUCKETS
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo, ListenerOptions, Meter
from kdns.plugin.endpoint import HttpEndpoint
from kdns.plugin.runtime import Runtime
from kdns.plugins.prometheus import webconfig
from kdns.plugins.prometheus.exposition import Exposition
from kdns.plugins.prometheus.rows import (
    BUILD,
    BY_SERVER,
    COUNTED_TYPES,
    ENABLED,
    FIRST_BUCKET,
    NO_REPLY,
    OWN_BUILD,
    QuerySeries,
    dropped,
)  # fmt: skip

DEFAULT: Final = ("localhost", 9153)
# How many configurations have a plugin enabled: during a reload the old and the new both do.
_enabled: Final[Multiset[tuple[str, ...]]] = Multiset()
_OF_WORKERS: Final = "metrics of workers"
_log = log.plugin("prometheus")


@dataclass(frozen=True, slots=True)
class Config:
    """Where metrics are served, and the web configuration file ("": plain HTTP)."""

    host: str
    port: int
    web: str = ""


class Prometheus(Plugin):
    """Counts every outcome."""

    name: ClassVar[str] = "prometheus"
    central = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        host, port = readers.http_address(directive, DEFAULT)
        web = ""
        for line in directive.body or ():
            if line.name.text == "runtime_metrics":
                readers.arguments(line, 0, 0)  # Go's runtime; Python's are always there
            elif line.name.text == "tls":
                web = readers.one(line, "a web configuration file").text
            else:
                raise readers.unknown(line, ("runtime_metrics", "tls"))
        return [Config(host, port, web)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rows: dict[tuple[object, ...], QuerySeries] = {}
        self.block: BlockInfo | None = None
        self.web = webconfig.WebConfig()
        self.web_path = config.web
        self.one_zone = ""
        self.next = ""
        self.server: HttpEndpoint | None = None
        self.runtime: Runtime | None = None  # whose exposition it shares
        self.exposition = Exposition()
        self.enabled: list[tuple[str, str, str, str]] = []

    def load(self, block: BlockInfo) -> None:
        if self.config.web:
            self.web_path = block.path(self.config.web)
            self.web = webconfig.read(self.web_path)

    def listener(self) -> ListenerOptions:
        return ListenerOptions(dropped=dropped)

    def wire(self, block: BlockInfo) -> None:
        self.block = block
        self.one_zone = block.zone_text(block.zones[0]) if len(block.zones) == 1 else ""
        names = block.query_plugins()
        # The plugin right behind this one, whatever answers: CoreDNS's label holds that.
        at = names.index(self.name)
        self.next = names[at + 1] if at + 1 < len(names) else ""
        zone = block.parsed.zones[0]
        hosts = block.hosts or ("",)
        for key in block.parsed.keys:
            for host in hosts:
                server = f"{key.scheme}://{host_port(host, key.port)}"
                self.enabled += [(server, zone, block.view, name) for name in names]

    @property
    def http(self) -> tuple[str, int, str]:
        """Where it serves, and by which web configuration."""
        return self.config.host, self.config.port, self.web_path

    async def start(self, runtime: Runtime) -> None:
        BUILD.slot(__version__, "", f"python{platform.python_version()}")[0] = 1
        OWN_BUILD.slot(__version__, version.build(), platform.python_version())[0] = 1
        for labels in self.enabled:
            _enabled[labels] += 1
            ENABLED.slot(*labels)[0] = 1
        metrics.REFRESH.append(self.flush)
        try:
            web = self.web
            guard = web.users.allows if web.users is not None else None
            self.server = await HttpEndpoint.open(
                runtime, self.http, web.digest, tls=web.identity, headers=web.headers, guard=guard
            )
        except OSError as error:
            # As in CoreDNS, not fatal: names matter more than counts.
            _log.error(f"Failed to start metrics handler: {error}")
            return
        if runtime.crew is not None:
            self.exposition = await runtime.acquire(_OF_WORKERS, partial(Exposition, runtime.crew))
            self.runtime = runtime
        self.server.add("/metrics", self.exposition.respond)

    async def stop(self) -> None:
        self.flush()
        if self.flush in metrics.REFRESH:
            metrics.REFRESH.remove(self.flush)
        for labels in self.enabled:
            _enabled[labels] -= 1
            if not _enabled[labels]:
                del _enabled[labels]
                ENABLED.remove(*labels)
        if self.server is not None:
            await self.server.close()
            self.server = None
        if self.runtime is not None:
            await self.runtime.release(_OF_WORKERS)
            self.runtime = None

    def observe(self, request: Request, outcome: Outcome) -> None:
        if request.depth:
            return
        row = self._row(request)
        took = monotonic() - request.now
        slot = row.duration
        slot[0] += took
        slot[1 if took <= FIRST_BUCKET else bisect_left(TIME_BUCKETS, took) + 1] += 1
        if request.edns is not None and request.edns.do:
            row.do[0] += 1
        asked, end = request.size, request.question_end
        if type(outcome) is Answer:
            body = outcome.body
            if body is None:
                body = outcome.rendered(request.asked.name)
            size = end + len(body.data)
            row.count(asked << 32 | (size if size < 0xFFFF else 0xFFFF) << 16 | outcome.rcode)
        elif outcome.rcode < 0:
            row.count(asked << 32 | NO_REPLY)
        elif type(outcome) is RcodeOnly and not outcome.written:
            row.count(asked << 32 | end << 16 | outcome.rcode | BY_SERVER)
        else:
            row.count(asked << 32 | end << 16 | outcome.rcode)

    def meter(self, request: Request, answer: Answer) -> Meter:
        return self._row(request).repeater(answer.rcode, request.edns is not None and request.edns.do)

    def flush(self) -> None:
        """Before a scrape: brings all pending counts into the slots."""
        for row in self.rows.values():
            row.flush()

    def _row(self, request: Request) -> QuerySeries:
        """The row that a query is counted in. There are as many as zones, transports and counted types allow."""
        qtype = request.question.type
        zone = self.one_zone
        if not zone:
            assert self.block is not None
            zone = self.block.zone_text(request.question.name)
        # Types that are counted as `other` share a row: there are 65,536 of them to ask for.
        key = (request.server, request.transport, request.family, qtype if qtype in COUNTED_TYPES else -1, zone)
        row = self.rows.get(key)
        if row is None:
            assert self.block is not None
            family = "1" if request.family == 4 else "2"
            row = QuerySeries(request.server.label, zone, self.block.view, request.transport, family, qtype, self.next)
            self.rows[key] = row
        return row
