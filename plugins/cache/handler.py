"""The plugin `cache` in the query path: entries, hits, and how they are kept fresh."""

import math
from collections.abc import Awaitable, Sequence
from typing import ClassVar, Final, final

from kdns.corefile import Directive
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.name import closest, is_within
from kdns.metrics import Counter, Gauge, Slot
from kdns.pipeline import Outcome, Pending, Plugin, Request, setup, then
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.outcome import adopt
from kdns.pipeline.protocols import Forwards
from kdns.pipeline.runtime import Runtime
from kdns.plugins.cache import config as _config
from kdns.plugins.cache.classify import chain_only, classify, lifetime
from kdns.plugins.cache.config import Config
from kdns.upstream.deadlines import Deadlines

ENTRY_OCTETS: Final = 4096  # on the average; a usual answer has 100 to 500
MAX_RECORDS: Final = 100  # of one answer; a larger one is passed on and not kept
_LABELS: Final = ("server", "zones", "view")
_TYPED: Final = ("server", "type", "zones", "view")
ENTRIES: Final = Gauge("coredns_cache_entries", "The number of elements in the cache.", _TYPED)
REQUESTS: Final = Counter("coredns_cache_requests_total", "The count of cache requests.", _LABELS)
HITS: Final = Counter("coredns_cache_hits_total", "The count of cache hits.", _TYPED)
MISSES: Final = Counter("coredns_cache_misses_total", "The count of cache misses.", _LABELS)
EVICTIONS: Final = Counter("coredns_cache_evictions_total", "The count of cache evictions.", _TYPED)
PREFETCHES: Final = Counter(
    "coredns_cache_prefetch_total", "The number of times the cache has prefetched a cached item.", _LABELS
)
DROPS: Final = Counter(
    "coredns_cache_drops_total", "The number responses that are not cached, because the reply is malformed.", _LABELS
)
STALE: Final = Counter("coredns_cache_served_stale_total", "The number of requests served from stale cache entries.", _LABELS)


@final
class Entry:
    """A kept answer. Times are monotonic seconds; `ttl` is what it was kept with."""

    __slots__ = ("aged", "answer", "asked", "checked", "expires", "fresh", "hits", "left", "octets", "ttl")

    def __init__(self, answer: Answer, now: float, ttl: float) -> None:
        self.answer = answer
        self.octets = len(answer.name) + answer.size_of_body
        self.expires = now + ttl
        self.ttl = ttl
        self.left = -1
        self.aged = answer
        self.hits = 0
        self.asked = now
        self.fresh = False  # a refresh is under way
        self.checked = -1e9  # when a refresh failed last


class _Meters:
    def __init__(self, server: str, zones: str, view: str) -> None:
        plain = (server, zones, view)
        self.requests: Slot = REQUESTS.slot(*plain)
        self.misses: Slot = MISSES.slot(*plain)
        self.prefetches: Slot = PREFETCHES.slot(*plain)
        self.drops: Slot = DROPS.slot(*plain)
        self.stale: Slot = STALE.slot(*plain)
        self.hits = {kind: HITS.slot(server, kind, zones, view) for kind in ("success", "denial")}
        self.evictions = {kind: EVICTIONS.slot(server, kind, zones, view) for kind in ("success", "denial")}
        self.entries = {kind: ENTRIES.slot(server, kind, zones, view) for kind in ("success", "denial")}


class Cache(Plugin):
    """Keeps what comes from below."""

    name: ClassVar[str] = "cache"
    looks_aside = True
    finishes_own = False

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        return [_config.parse(setup.once(directives), block)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        # Keys are name, type and class as in a question, an octet for DO and CD, and EDNS options that went upstream.
        self.success: dict[bytes, Entry] = {}
        self.denial: dict[bytes, Entry] = {}
        self.octets = {"success": 0, "denial": 0}
        # Names that do not exist, whatever the type: wire name -> its entry.
        self.cuts: dict[bytes, Entry] = {}
        self.block_zones: tuple[bytes, ...] = ()
        self.subnets = False  # whether a client's ECS option goes upstream, so that answers depend on it
        self.meters: dict[str, _Meters] = {}
        self.block: Block | None = None
        self.everything = config.zones == (b"\0",)
        self.deadlines = Deadlines()

    def wire(self, block: Block) -> None:
        self.block = block
        forwards = block.all(Forwards)  # type: ignore[type-abstract]
        self.subnets = any(plugin.passes_subnet for plugin in forwards)
        self.block_zones = (*block.every_zone(), *(zone for plugin in forwards for zone in plugin.forwarded_zones()))

    async def start(self, runtime: Runtime) -> None:
        self.view = self.block.view if self.block is not None else ""

    # Queries.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if not self.everything and closest(question.name, self.config.zones) is None:
            return None
        meters = self.meters.get(request.server.label) or self._meters(request.server.label)
        meters.requests[0] += 1
        key = self._key(request)
        now = request.now
        entry = self.denial.get(key)
        kind = "denial"
        if entry is None or entry.expires <= now or self.config.prefer_positive or entry.answer.rcode == iana.SERVFAIL:
            positive = self.success.get(key)
            if positive is not None and (
                positive.expires > now or entry is None or entry.expires <= now or self._keeps(positive, now)
            ):
                entry, kind = positive, "success"
        if entry is None:
            denied = self._below_a_cut(request) if self.cuts else None
            if denied is not None:
                meters.hits["denial"][0] += 1
                return denied
            meters.misses[0] += 1
            return None
        left = entry.expires - now
        if left > 0:
            meters.hits[kind][0] += 1
            if self.config.prefetch:
                self._count(request, entry, key, left, meters)
            return self._serve(request, entry, max(int(left), 1))
        if left + self.config.stale > 0:
            return self._stale(request, entry, key, kind, meters)
        meters.misses[0] += 1
        return None

    def _below_a_cut(self, request: Request) -> Answer | None:
        """NXDOMAIN for a name below one that does not exist (RFC 8020, section 2)."""
        name = request.question.name
        for start in request.question.starts[1:-1]:
            entry = self.cuts.get(name[start:])
            if entry is not None:
                left = int(entry.expires - request.now)
                if left <= 0:
                    del self.cuts[name[start:]]
                    continue
                soa = [rrset._replace(ttl=left) for rrset in entry.answer.authority if rrset.type == iana.SOA]
                return Answer(iana.NXDOMAIN, entry.answer.flags & iana.RA, (), soa)
        return None

    def _keeps(self, positive: Entry, now: float) -> bool:
        return self.config.prefer_positive and positive.expires + self.config.stale > now

    def _serve(self, request: Request, entry: Entry, ttl: int) -> Answer:
        """The entry's answer with this TTL, rendered once a second at most."""
        if entry.left != ttl:
            entry.left = ttl
            answer = entry.answer
            body = answer.rendered(answer.name or request.question.name)
            shown = body if self.config.keepttl and ttl else body.with_ttl(ttl)
            entry.aged = answer.with_body(shown, answer.flags)
        answer = entry.aged
        # RFC 6840, section 5.7: AD only for those who say that they understand it.
        if answer.flags & iana.AD and not (request.ad or (request.edns is not None and request.edns.do)):
            return answer.replace(flags=answer.flags & ~iana.AD)
        return answer

    def _count(self, request: Request, entry: Entry, key: bytes, left: float, meters: _Meters) -> None:
        config = self.config
        entry.hits = 1 if request.now - entry.asked > config.prefetch_gap else entry.hits + 1
        entry.asked = request.now
        if entry.hits >= config.prefetch and left <= math.ceil(config.prefetch_part * entry.ttl) and not entry.fresh:
            meters.prefetches[0] += 1
            self._refresh(request, entry, key)

    def _stale(
        self, request: Request, entry: Entry, key: bytes, kind: str, meters: _Meters
    ) -> Outcome | Awaitable[Outcome | None] | None:
        config = self.config
        rests = config.recheck and request.now - entry.checked < config.recheck
        if not config.verify or rests:
            meters.hits[kind][0] += 1
            meters.stale[0] += 1
            if not entry.fresh and not rests:
                meters.prefetches[0] += 1
                self._refresh(request, entry, key)
            return self._serve(request, entry, config.stale_ttl)
        pending = self._refresh(request, entry, key)
        result = Pending()

        def settle(outcome: object) -> None:
            if type(outcome) is Answer and _replaces(outcome):
                result.resolve(outcome)
            else:
                meters.stale[0] += 1
                result.resolve(self._serve(request, entry, config.stale_ttl))

        if config.verify_timeout:
            self.deadlines.add(config.verify_timeout, lambda: settle(None))
        pending.add(settle)
        return result

    def _refresh(self, request: Request, entry: Entry, key: bytes) -> Pending:
        """Asks again below, and keeps what comes; one at a time for an entry."""
        entry.fresh = True

        def came(outcome: Outcome) -> Outcome:
            entry.fresh = False
            if type(outcome) is Answer and _replaces(outcome):
                return self._keep(request, key, outcome)
            entry.checked = request.now
            return outcome

        found = then(request.rest(self, request.question), came)
        if type(found) is not Pending:
            done = Pending()
            done.resolve(found)
            return done
        request.server.detach(found)
        return adopt(found)

    # Answers.

    def finish(self, request: Request, answer: Answer) -> Answer:
        if answer.own or (not self.everything and closest(request.question.name, self.config.zones) is None):
            return answer
        return self._keep(request, self._key(request), answer)

    def _keep(self, request: Request, key: bytes, answer: Answer) -> Answer:
        """Keeps an answer if it may be kept; gives it as it is served now, with the TTL it is kept with."""
        config = self.config
        question = request.question
        kind = classify(question.type, question.name, answer)
        if kind == "none":
            return answer
        positive = kind == "success"
        table, limits = (self.success, config.success) if positive else (self.denial, config.denial)
        if kind == "servfail":
            if not config.servfail:
                return answer
            ttl = config.servfail
        else:
            ttl = min(max(lifetime(answer), limits.least), limits.most)
        answer = chain_only(question.name, answer)
        body = answer.rendered(question.name)
        flags = answer.flags & ~iana.AA  # not authoritative: these are others' data (RFC 1035, section 4.1.1)
        shown = body if config.keepttl else body.with_ttl(int(ttl))
        served = answer.with_body(shown, answer.flags)
        disabled = config.no_success if positive else config.no_denial
        if (disabled and closest(question.name, disabled) is not None) or ttl <= 0 or len(body.ends) > MAX_RECORDS:
            return served
        meters = self.meters.get(request.server.label) or self._meters(request.server.label)
        entry = Entry(answer.with_body(body, flags), request.now, ttl)
        label = "success" if positive else "denial"
        old = self._drop(label, table, key)
        if old is not None:
            entry.hits = old.hits
        while table and (len(table) >= limits.capacity or self.octets[label] > limits.capacity * ENTRY_OCTETS):
            self._drop(label, table, next(iter(table)))  # the one that was kept first
            meters.evictions[label][0] += 1
        table[key] = entry
        self.octets[label] += entry.octets
        if positive:
            self._drop("denial", self.denial, key)
        elif kind == "denial" and not config.prefer_positive:
            self._drop("success", self.success, key)
        if config.cut and answer.rcode == iana.NXDOMAIN and self._may_cut(question.name):
            if len(self.cuts) >= limits.capacity:
                self.cuts.clear()
            self.cuts[question.name] = entry
        elif self.cuts:
            self.cuts.pop(question.name, None)
        meters.entries["success"][0] = len(self.success)
        meters.entries["denial"][0] = len(self.denial)
        return served

    def _drop(self, label: str, table: dict[bytes, Entry], key: bytes) -> Entry | None:
        entry = table.pop(key, None)
        if entry is not None:
            self.octets[label] -= entry.octets
        return entry

    def _may_cut(self, name: bytes) -> bool:
        """Whether names below may be denied too: not where any block's zone is at or below the name."""
        return name != b"\0" and not any(is_within(zone, name) for zone in self.block_zones)

    def _key(self, request: Request) -> bytes:
        """All that an answer may depend on: the question, DO, CD, and options that go upstream."""
        key = _key(request)
        if request.added:
            key += request.added
        if self.subnets and request.edns is not None and request.edns.options:
            options = edns.options(request.edns.options)
            key += b"".join(edns.option(code, data) for code, data in options if code == edns.SUBNET)
        return key

    def _meters(self, server: str) -> _Meters:
        made = self.meters[server] = _Meters(server, self.config.zones_text, self.block.view if self.block else "")
        return made


def _key(request: Request) -> bytes:
    question = request.question
    bits = (request.shape & 2) | (1 if request.edns is not None and request.edns.do else 0)
    return b"%b%c%c%c%c%c" % (
        question.name, question.type >> 8, question.type & 255, question.cls >> 8, question.cls & 255, bits,
    )  # fmt: skip


def _replaces(answer: Answer) -> bool:
    """Whether a fresh reply may take a stale entry's place."""
    return answer.rcode in (iana.NOERROR, iana.NXDOMAIN) and not answer.flags & iana.TC
