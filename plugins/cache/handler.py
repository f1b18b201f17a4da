"""The plugin `cache` in the query path: what is served from it, what is stored, and how entries are kept fresh."""

import math
from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import ClassVar, Final, final

from kdns.corefile import Directive, ServerBlock
from kdns.deadlines import Deadlines
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.name import closest, is_within
from kdns.metrics import Counter, Gauge, Slot
from kdns.plugin import Outcome, Pending, Plugin, RcodeOnly, Request, readers, then
from kdns.plugin.base import BlockInfo, Meter
from kdns.plugin.outcome import ensure_pending
from kdns.plugin.providers import Forwards
from kdns.plugin.runtime import Runtime
from kdns.plugins.cache import config as _config
from kdns.plugins.cache.classify import judge
from kdns.plugins.cache.config import Config
from kdns.plugins.cache.table import CacheEntry, Table
from kdns.timeslice import emptied
from kdns.upstream.exchange import UpstreamError

MAX_RECORDS: Final = 100  # of one answer; a larger one is passed on and not stored
# Seconds for which nobody is asked again after no upstream had a reply: RFC 9520, section 3.2, wants one at least, and
# more would keep names away from clients after the upstreams are back.
UNREACHED: Final = 1.0
_CACHED_ERROR: Final = edns.extended_error(edns.CACHED_ERROR)
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
STALE: Final = Counter(
    "coredns_cache_served_stale_total", "The number of requests served from stale cache entries.", _LABELS
)


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


@final
class RepeatedHits:
    """Counts hits that are given without asking the plugin; with `prefetch` (`gap` in seconds) also for its entry."""

    def __init__(self, meters: _Meters, kind: str, entry: CacheEntry, gap: float) -> None:
        self.requests = meters.requests
        self.hits = meters.hits[kind]
        self.entry = entry
        self.gap = gap

    def count(self, asked: int, said: int) -> None:
        """Counts one more."""
        self.requests[0] += 1
        self.hits[0] += 1
        if self.gap:
            self.entry.count_hit(monotonic(), self.gap)


class Cache(Plugin):
    """Keeps what comes from below.

    AD is stored as it came: who is shown it is decided for each reply (Request.shows_ad). What comes of a question
    without RD is what an upstream happens to know: it may be empty, is given to nobody else, and takes no entry's
    place. Such a question is answered from what is stored like any other. The client's own bit counts, and not what
    `header` makes of it for upstreams: that is the same for all.
    """

    name: ClassVar[str] = "cache"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return [_config.parse(readers.once(directives), block)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        # Keys are name, type and class as in a question, an octet for DO and CD, and EDNS options that went upstream.
        self.success = Table("success")
        self.denial = Table("denial")
        # Names that do not exist, whatever the type: wire name and the key's part behind the question -> its entry.
        self.cuts: dict[bytes, CacheEntry] = {}
        self.block_zones: tuple[bytes, ...] = ()
        self.subnets = False  # whether a client's ECS option goes upstream, so that answers depend on it
        self.meters: dict[str, _Meters] = {}
        self.block: BlockInfo | None = None
        self.everything = config.zones == (b"\0",)
        self.deadlines = Deadlines()

    def wire(self, block: BlockInfo) -> None:
        self.block = block
        forwards = block.all(Forwards)
        self.subnets = any(plugin.passes_subnet for plugin in forwards)
        if self.config.cut:  # no other option looks at them, and a thousand blocks have a million together
            self.block_zones = (
                *block.every_zone(),
                *(zone for plugin in forwards for zone in plugin.forwarded_zones()),
            )

    def ttl_limit(self, name: bytes, denial: bool) -> int:
        """Local answers, which are never stored here, get no longer a TTL than stored ones."""
        config = self.config
        disabled = config.no_denial if denial else config.no_success
        if closest(name, config.zones) is None or closest(name, disabled) is not None:
            return iana.MAX_TTL
        return config.denial.most if denial else config.success.most

    async def start(self, runtime: Runtime) -> None:
        self.view = self.block.view if self.block is not None else ""

    async def stop(self) -> None:
        await emptied(self.success.entries, self.denial.entries, self.cuts)

    # Queries.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if not self.everything and closest(question.name, self.config.zones) is None:
            return None
        meters = self.meters.get(request.server.label) or self._meters(request.server.label)
        meters.requests[0] += 1
        key = self._key(request)
        now = request.now
        entry = self.denial.entries.get(key)
        kind = "denial"
        if entry is None or entry.expires <= now or self.config.prefer_positive or entry.answer.rcode == iana.SERVFAIL:
            positive = self.success.entries.get(key)
            if positive is not None and (
                positive.expires > now or entry is None or entry.expires <= now or self._prefers(positive, now)
            ):
                entry, kind = positive, "success"
        if entry is None:
            denied = self._below_a_cut(request, key) if self.cuts else None
            if denied is not None:
                meters.hits["denial"][0] += 1
                return denied
            meters.misses[0] += 1
            return None
        left = entry.expires - now
        if left > 0:
            meters.hits[kind][0] += 1
            request.slots[self.position] = (meters, kind, entry)
            if self.config.prefetch and request.client_rd:
                self._count(request, entry, key, left, meters)
                # From then on each query must be seen here.
                request.expires(entry.expires - math.ceil(self.config.prefetch_part * entry.ttl))
            return self._serve(request, entry, int(entry.ttl) if self.config.keepttl else max(int(left), 1))
        if left + self.config.stale > 0 and request.client_rd:
            return self._stale(request, entry, key, kind, meters)
        meters.misses[0] += 1
        return None

    def _below_a_cut(self, request: Request, key: bytes) -> Answer | None:
        """NXDOMAIN for a name below one that does not exist (RFC 8020, section 2).

        What proves the upper name's denial proves the lower one's: a record that covers the one covers the other.
        """
        name = request.question.name
        form = key[len(request.question.wire) :]
        for start in request.question.starts[1:-1]:
            entry = self.cuts.get(name[start:] + form)
            if entry is not None:
                left = int(entry.expires - request.now)
                if left <= 0:
                    del self.cuts[name[start:] + form]
                    continue
                authority = [rrset._replace(ttl=left) for rrset in entry.answer.authority]
                return Answer(iana.NXDOMAIN, entry.answer.flags & iana.RA, (), authority)
        return None

    def _prefers(self, positive: CacheEntry, now: float) -> bool:
        return self.config.prefer_positive and positive.expires + self.config.stale > now

    def _serve(self, request: Request, entry: CacheEntry, ttl: int) -> Answer:
        """The entry's answer with this TTL, rendered once a second at most."""
        if entry.left != ttl:
            entry.left = ttl
            answer = entry.answer
            body = answer.rendered(answer.name or request.question.name)
            # A stale answer, or an error, is given once; whether it still is to be is for the next query to find out.
            lasting = ttl > 0 and request.now < entry.expires and answer.rcode != iana.SERVFAIL
            entry.aged = answer.with_body(body.with_ttl(ttl), answer.flags, entry.validity if lasting else None)
        return entry.aged

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        hit = request.slots[self.position]
        if hit is None:
            return None
        meters, kind, entry = hit
        return RepeatedHits(meters, kind, entry, self.config.prefetch_gap if self.config.prefetch else 0.0).count

    def _count(self, request: Request, entry: CacheEntry, key: bytes, left: float, meters: _Meters) -> None:
        config = self.config
        entry.count_hit(request.now, config.prefetch_gap)
        if entry.hits >= config.prefetch and left <= math.ceil(config.prefetch_part * entry.ttl) and not entry.fresh:
            meters.prefetches[0] += 1
            self._refresh(request, entry, key)

    def _stale(
        self, request: Request, entry: CacheEntry, key: bytes, kind: str, meters: _Meters
    ) -> Outcome | Awaitable[Outcome | None] | None:
        config = self.config
        # As in CoreDNS: with `keepttl` a TTL stays beyond its end, where stale answers have none of their own.
        ttl = int(entry.ttl) if config.keepttl and not config.stale_ttl else config.stale_ttl
        rests = config.recheck and request.now - entry.checked < config.recheck
        if not config.verify or rests:
            meters.hits[kind][0] += 1
            meters.stale[0] += 1
            if not entry.fresh and not rests:
                meters.prefetches[0] += 1
                self._refresh(request, entry, key)
            return self._serve(request, entry, ttl)
        pending = self._refresh(request, entry, key)
        result = Pending()

        def on_done(outcome: object) -> None:
            if result.done:
                return
            if deadline is not None:
                deadline.cancel()
            if type(outcome) is Answer and _replaces(outcome):
                result.resolve(outcome)
            else:
                meters.stale[0] += 1
                result.resolve(self._serve(request, entry, ttl))

        deadline = self.deadlines.add(config.verify_timeout, lambda: on_done(None)) if config.verify_timeout else None
        pending.add(on_done)
        return result

    def _refresh(self, request: Request, entry: CacheEntry, key: bytes) -> Pending:
        """Asks again below, and keeps what comes; one at a time for an entry."""
        entry.fresh = True

        def on_result(outcome: Outcome) -> Outcome:
            entry.fresh = False
            if type(outcome) is Answer and _replaces(outcome):
                return self._store(request, key, outcome)
            entry.checked = request.now
            return outcome

        found = then(request.below(self, request.question), on_result)
        if type(found) is not Pending:
            done = Pending()
            done.resolve(found)
            return done
        request.detach(found)
        return ensure_pending(found)

    # Answers.

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        if answer.local or (not self.everything and closest(request.question.name, self.config.zones) is None):
            return answer
        return self._store(request, self._key(request), answer)

    def on_failure(self, request: Request, failure: Outcome) -> None:
        """Stores upstream failures for a moment, so that repeated questions do not go upstream again (RFC 9520)."""
        config = self.config
        if type(failure) is not RcodeOnly or not isinstance(failure.error, UpstreamError) or not config.servfail:
            return
        if not request.client_rd:
            return
        name = request.question.name
        if closest(name, config.zones) is None or closest(name, config.no_denial) is not None:
            return
        key = self._key(request)
        known = self.denial.entries.get(key)
        now = monotonic()  # the request's is from before the wait
        if known is None or known.expires <= now:
            answer = Answer(iana.SERVFAIL, 0, options=_CACHED_ERROR, name=name)
            entry = CacheEntry(answer, now, min(UNREACHED, config.servfail))
            self._put(request, key, entry, self.denial, config.denial.capacity)

    def _store(self, request: Request, key: bytes, answer: Answer) -> Answer:
        """Stores an answer if it may be stored; returns it as it is served now, with the TTL of its entry."""
        config = self.config
        question = request.question
        kind, lifetime, stored, uniform = judge(question.type, question.name, answer)
        if kind == "none":
            return answer
        positive = kind == "success"
        limits = config.success if positive else config.denial
        if kind == "servfail":
            if not config.servfail:
                return answer
            ttl = config.servfail
        else:
            ttl = float(min(max(lifetime, limits.least), limits.most))
        summary = stored.summary
        answer = stored
        body = answer.rendered(question.name)
        whole = int(ttl)
        if uniform and whole == lifetime:
            served = answer
        else:
            served = answer.with_body(body.with_ttl(whole), answer.flags)
            served.summary = summary
        disabled = config.no_success if positive else config.no_denial
        if (disabled and closest(question.name, disabled) is not None) or ttl <= 0 or len(body.ends) > MAX_RECORDS:
            return served
        if not request.client_rd:
            return served
        flags = answer.flags & ~iana.AA  # not authoritative: these are others' data (RFC 1035, section 4.1.1)
        stored = Answer(answer.rcode, flags, options=answer.options, name=answer.name, body=body)
        entry = CacheEntry(stored, request.now, ttl)
        entry.validity.ages = not config.keepttl
        mine, other = (self.success, self.denial) if positive else (self.denial, self.success)
        if other.entries and (positive or (kind == "denial" and not config.prefer_positive)):
            other.remove(key)
        self._put(request, key, entry, mine, limits.capacity)
        if config.cut:
            # Behind a CNAME it is the target that does not exist, not the name that was asked (RFC 6604, section 3).
            denied = answer.rcode == iana.NXDOMAIN and not body.counts[0]
            self._note_cut(question.name, key[len(question.wire) :], denied, entry, limits.capacity)
        return served

    def _put(self, request: Request, key: bytes, entry: CacheEntry, table: Table, capacity: int) -> None:
        meters = self.meters.get(request.server.label) or self._meters(request.server.label)
        evicted = table.put(key, entry, capacity)
        if evicted:
            meters.evictions[table.label][0] += evicted
        meters.entries["success"][0] = len(self.success.entries)
        meters.entries["denial"][0] = len(self.denial.entries)

    def _note_cut(self, name: bytes, form: bytes, denied: bool, entry: CacheEntry, capacity: int) -> None:
        if denied and self._may_cut(name):
            if len(self.cuts) >= capacity:
                self.cuts.clear()
            self.cuts[name + form] = entry
        elif self.cuts:
            self.cuts.pop(name + form, None)

    def _may_cut(self, name: bytes) -> bool:
        """True if names below may be denied too: not where any block's zone is at or below the name."""
        return name != b"\0" and not any(is_within(zone, name) for zone in self.block_zones)

    def _key(self, request: Request) -> bytes:
        """All that an answer may depend on: the question, DO, CD, and options that go upstream."""
        key = _key(request)
        if request.added:
            key += request.added
        if self.subnets:
            subnet = request.option(edns.SUBNET)
            if subnet is not None:
                key += edns.option(edns.SUBNET, subnet)
        return key

    def _meters(self, server: str) -> _Meters:
        made = self.meters[server] = _Meters(server, self.config.zones_text, self.block.view if self.block else "")
        return made


# The last octet of a key, by CD (bit 1) and DO (bit 0).
_BITS: Final = (b"\0", b"\1", b"\2", b"\3")


def _key(request: Request) -> bytes:
    return request.question.wire + _BITS[request.reply_flags & 2 | (request.edns is not None and request.edns.do)]


def _replaces(answer: Answer) -> bool:
    """True if a fresh reply may take a stale entry's place."""
    return answer.rcode in (iana.NOERROR, iana.NXDOMAIN) and not answer.flags & iana.TC
