"""The plugin `status`: what is counted for the page, and how it is served."""

import base64
import hashlib
import ipaddress
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Final

from kdns import __version__, faults, metrics
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import to_text
from kdns.kube.workload import workload
from kdns.metrics import REGISTRY, TIME_BUCKETS
from kdns.net.http import Response
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.endpoint import HttpEndpoint, bound_hosts
from kdns.plugin.providers import ClientNames, HasUpstreams
from kdns.plugin.runtime import Crew, Runtime
from kdns.plugins.status import merge
from kdns.plugins.status.ledger import MINUTE, Failure, Ledger
from kdns.plugins.status.outages import OF_ANSWERS, below, outages
from kdns.plugins.status.shared import Shared, as_json
from kdns.timeslice import TimeSlice

DEFAULT: Final = ("127.0.0.1", 8053)
SHOWN: Final = 50  # of each table: more than fit on the page, for its search
ERROR_TEXT: Final = 200  # characters of each
# Samples of the history that come with the numbers: a page that asks every few seconds, or once a minute while nobody
# looks at it, needs no more, and asks for the whole history (95 KB) once a minute.
RECENT: Final = MINUTE + 3
# Only the script that the page comes with may run on it.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_BAD: Final = frozenset((iana.SERVFAIL, iana.REFUSED, iana.NOTIMP, iana.FORMERR))
SERIES: Final = {
    "requests": "coredns_dns_requests_total", "cache_hits": "coredns_cache_hits_total",
    "cache_misses": "coredns_cache_misses_total",
    "cache_entries": "coredns_cache_entries", "data_age": "kdns_kubernetes_data_age_seconds",
    "objects": "kdns_kubernetes_objects",
    "healed": "kdns_kubernetes_healed_total", "upstream_failures": "coredns_proxy_healthcheck_failures_total",
}  # fmt: skip
_BY_KIND: Final = frozenset(("data_age", "objects", "healed"))  # a row for each kind; of others the sum


@dataclass(frozen=True, slots=True)
class Config:
    """Where the page is, and by which names besides addresses and localhost."""

    host: str
    port: int
    names: frozenset[str] = frozenset()


class Status(Plugin):
    """Counts names, clients and denials, keeps the history, and serves the page."""

    name: ClassVar[str] = "status"
    central = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        names: set[str] = set()
        for line in directive.body or ():
            if line.name.text != "hosts":
                raise readers.unknown(line, ("hosts",))
            readers.no_block(line)
            names |= {word.lower().rstrip(".") for word in readers.arguments(line, 1, None, "names")}
        return [Config(*readers.http_address(directive, DEFAULT), frozenset(names))]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.ledger = Ledger()
        self.forwards: list[tuple[HasUpstreams, tuple[bytes, ...]]] = []  # with the zones of their blocks
        self.pods: list[ClientNames] = []
        self.serves: list[dict[str, Any]] = []
        self.server: HttpEndpoint | None = None
        self.runtime: Runtime | None = None
        self.began = 0.0  # seconds since the epoch: since when this configuration runs
        self.shared = Shared()
        self.shared_past = Shared()

    @property
    def http(self) -> tuple[str, int, str]:
        """The address that it serves on."""
        return self.config.host, self.config.port, ""

    def wire(self, block: BlockInfo) -> None:
        self.forwards = [(each, found.zones) for found in block.every_block() for each in found.all(HasUpstreams)]
        self.pods = block.anywhere(ClientNames)
        self.serves = [
            {"keys": [str(key) for key in each.parsed.keys], "plugins": [plugin.name for plugin in each.plugins]}
            for each in block.every_block()
        ]

    async def start(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.began = time.time()
        if runtime.crew is None:
            self.ledger = await runtime.acquire(self._key, Ledger)
        self.server = await HttpEndpoint.open(runtime, self.http)
        for path, route in (("/", self.page), ("/status.json", self.data), ("/history.json", self.past)):
            self.server.add(path, route, self.is_served)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close()
            self.server = None
        if self.runtime is not None:
            if self.runtime.crew is None:
                await self.runtime.release(self._key)
            self.runtime = None

    @property
    def _key(self) -> tuple[str, str, int]:
        return ("status", self.config.host, self.config.port)

    def is_served(self, host: str) -> bool:
        """True if a Host field (RFC 9110, section 7.2) is an address, localhost, or a name that the Corefile has."""
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if not name or name == "localhost" or name.rstrip(".") in self.config.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def observe(self, request: Request, outcome: Outcome) -> None:
        if request.depth:
            return
        ledger = self.ledger
        ledger.queries += 1
        rcode = outcome.rcode
        ledger.rcodes[rcode] = ledger.rcodes.get(rcode, 0) + 1
        took = time.monotonic() - request.now
        place = 0
        while place < len(TIME_BUCKETS) and took > TIME_BUCKETS[place]:
            place += 1
        ledger.times[place] += 1
        name = request.asked.name
        client = request.client[0]
        ledger.names.add(name)
        ledger.clients.add(client)
        if rcode == iana.NXDOMAIN and type(outcome) is Answer:
            # A search list's waste shows in what stands behind the first label, and in who sends it.
            ledger.denied.add(name[name[0] + 1 :] if name[0] else name)
            ledger.wasted.add(self._workload(client))
        elif rcode in _BAD or rcode < 0:
            ledger.failures += 1
            why = str(outcome.error or "") if type(outcome) is RcodeOnly else ""
            text = (iana.rcode_text(rcode) if rcode >= 0 else "dropped") + (f": {why}" if why else "")
            asked = to_text(name), iana.type_text(request.asked.type)
            ledger.errors.append(Failure(int(time.time()), *asked, self._who(client), text[:ERROR_TEXT]))

    async def page(self) -> Response:
        """The page itself."""
        return Response(200, _page(), "text/html; charset=utf-8")

    async def data(self) -> Response:
        """What the page shows."""
        return await self.shared.get(self._data)

    async def past(self) -> Response:
        """The history: two lists of samples, as History has them."""
        return await self.shared_past.get(self._past)

    async def _data(self) -> Response:
        crew = self.runtime.crew if self.runtime is not None else None
        return await as_json(await (self.state() if crew is None else self._state_of(crew)))

    async def _past(self) -> Response:
        crew = self.runtime.crew if self.runtime is not None else None
        if crew is not None:
            return await as_json(merge.histories(await self._from(crew, "/history.json")))
        return await as_json({"fine": list(self.ledger.history.fine), "coarse": list(self.ledger.history.coarse)})

    async def _from(self, crew: Crew, path: str) -> list[Any]:
        """What the workers that answer have at a path."""
        host = bound_hosts(self.config.host)[0]
        said = await crew.ask("route", host, self.config.port, path)
        return [json.loads(each[1]) for each in said.values() if each is not None and each[0] == 200]

    async def _state_of(self, crew: Crew) -> dict[str, Any]:
        """All numbers of all workers."""
        states = await self._from(crew, "/status.json")
        if not states:
            return await self.state()
        faults.call_each("the refresh of a metric", metrics.REFRESH)
        own = {short: _values(short) for short in SERIES}
        merged = merge.states(states, SERIES, own, SHOWN)
        part = merge.failing(merged["recent"], MINUTE)
        said = [text for state in states for text in state["outages"] if not text.endswith(OF_ANSWERS)]
        said += outages(own["data_age"], part, (), self._refused())
        return {**merged, "failing_part": round(part, 4), "outages": list(dict.fromkeys(said))}

    async def state(self) -> dict[str, Any]:
        """All numbers: counters since the start, so that whoever asks twice knows the rate. Made in slices."""
        faults.call_each("the refresh of a metric", metrics.REFRESH)
        slice_ = TimeSlice()
        ledger = self.ledger
        counted: dict[str, Any] = {
            "version": __version__,
            "host": socket.gethostname(),
            "uptime_seconds": round(time.monotonic() - ledger.began, 3),
            "serves": self.serves,
            "configuration": self._configuration(),
            "configuration_began": round(self.began),
            "queries": ledger.queries,
            "failures": ledger.failures,
            "failing_part": round(ledger.failing(), 4),
            "rcodes": {
                iana.rcode_text(code) if code >= 0 else "dropped": count
                for code, count in sorted(ledger.rcodes.items())
            },
            "latency_seconds": {"bounds": list(TIME_BUCKETS), "counts": list(ledger.times)},
            "series": {short: _values(short) for short in SERIES},
            "recent": list(ledger.history.fine)[-RECENT:],
            "errors": [each._asdict() for each in reversed(ledger.errors)],
        }
        names, clients, denied, wasted = (
            top.top(SHOWN) for top in (ledger.names, ledger.clients, ledger.denied, ledger.wasted)
        )
        groups = []
        for plugin, zones in self.forwards:
            groups.append([(each, below(each.zone, zones)) for each in plugin.upstream_states()])
            await slice_.pause()
        upstreams = []
        for group in groups:
            upstreams += [{**each._asdict(), "zone": where} for each, where in group]
            await slice_.pause()
        said = outages(counted["series"]["data_age"], ledger.failing(), groups, self._refused())
        state = {**counted, "outages": said, "upstreams": upstreams}
        for table, rows, text in (("names", names, _text), ("denied", denied, _text), ("clients", clients, self._who)):
            state[table] = shown = []
            for key, count in rows:
                shown.append([text(key), count])
                await slice_.pause()
        state["wasted"] = [[str(key), count] for key, count in wasted]
        return state

    def _refused(self) -> str:
        return self.runtime.refused if self.runtime is not None else ""

    def _configuration(self) -> str:
        """The beginning of the Corefile's hash, as the log and `coredns_reload_version_info` have it."""
        text = self.runtime.loaded if self.runtime is not None else ""
        return hashlib.sha512(text.encode()).hexdigest()[:12]

    def _pod(self, client: str) -> str:
        """`NAMESPACE/POD` of the Pod that is known to have an address, or nothing."""
        return next((found for plugin in self.pods if (found := plugin.client_name(client))), "")

    def _who(self, host: object) -> str:
        """A client's Pod and its address, or that alone."""
        client = str(host)
        pod = self._pod(client)
        return f"{pod} ({client})" if pod else client

    def _workload(self, client: str) -> str:
        """`NAMESPACE/WORKLOAD` of a client, or its address.

        Worked out while counting, not when shown: of a thousand Pods none is among those that ask most, though their
        Deployment may be.
        """
        pod = self._pod(client)
        return workload(pod) if pod else client


def _text(name: object) -> str:
    assert isinstance(name, bytes)
    return to_text(name)


@cache
def _page() -> bytes:
    text = resources.files(__package__).joinpath("page.html").read_bytes()
    script = text.partition(b'<script type="module">')[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest())
    return text.replace(b"{policy}", _POLICY.encode().replace(b"{hash}", digest))


def _values(short: str) -> list[list[Any]]:
    family = REGISTRY.get(SERIES[short])
    if family is None:
        return []
    if short not in _BY_KIND:  # a row for each server, zone and type would be thousands
        return [[{}, sum(slot[0] for slot in family.slots.values())]] if family.slots else []
    return [[dict(zip(family.labels, labels, strict=True)), slot[0]] for labels, slot in family.slots.items()]
