"""cache - keeps answers for a while.

Answers that kdns itself owns (kubernetes, hosts) are never kept: a change of theirs shows at once, also in a zone
that is cached.

## Syntax

    cache [TTL] [ZONES...] {
        success CAPACITY [TTL] [MINTTL]
        denial CAPACITY [TTL] [MINTTL]
        prefetch AMOUNT [DURATION [PERCENTAGE%]]
        serve_stale [DURATION [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]]
        serve_stale_policy prefer_positive
        servfail DURATION
        disable success|denial [ZONES...]
        keepttl
        nxdomain_cut
    }

* TTL is the most an answer is kept, in seconds. Default: 3600 for answers, 1800 for denials.
* `success`, `denial`: how many are kept (default 9984), for how long at most and at least (MINTTL, default 5).
* `prefetch`: names asked AMOUNT times with no gap over DURATION (1m) are asked for again when less than PERCENTAGE
  (10%) of their time is left.
* `serve_stale`: expired answers are served for DURATION (1h) more. `immediate` (default) serves first and asks then;
  `verify` asks first, for at most TIMEOUT. TTL is the TTL of such answers (0); RECHECK is how long a failed try is not
  repeated.
* `serve_stale_policy prefer_positive`: an answer, also a stale one, goes before a denial of the same question.
* `servfail`: how long a SERVFAIL of an upstream is kept. Default 5s, at most 5m, 0 not at all.
* `disable`: no answers, or no denials, are kept for these zones.
* `keepttl`: answers keep the TTL they came with.
* `nxdomain_cut` (kdns only): a name that does not exist has nothing below it (RFC 8020), so names below one that is kept as
  such are denied without asking. Only below the zones of no server block, and where one `forward` answers them all.

Beside CAPACITY, each of the two keeps at most 4 KiB an entry on the average. Of an answer only the records of the
question's own chain are kept, and the SOA of a denial.

The negative TTL is the SOA's TTL or its MINIMUM, whichever is less (RFC 2308, section 5).

## Examples

~~~ corefile
.:1053 {
    cache 30 {
        disable success cluster.local
        disable denial cluster.local
    }
    whoami
}
~~~

## Metrics

* `coredns_cache_entries{server,type,zones,view}`, `coredns_cache_requests_total{server,zones,view}`,
  `coredns_cache_hits_total{server,type,zones,view}`, `coredns_cache_misses_total{server,zones,view}`,
  `coredns_cache_evictions_total{server,type,zones,view}`, `coredns_cache_prefetch_total{server,zones,view}`,
  `coredns_cache_drops_total{server,zones,view}`, `coredns_cache_served_stale_total{server,zones,view}`.
"""

import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, final

from kdns.corefile import Directive, Line, Token
from kdns.corefile.keys import plugin_zones
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import closest, is_within
from kdns.metrics import Counter, Gauge, Slot
from kdns.pipeline import Outcome, Pending, Plugin, Request, setup, then
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.outcome import adopt
from kdns.pipeline.protocols import Forwards
from kdns.pipeline.runtime import Runtime
from kdns.upstream.deadlines import Deadlines

CAPACITY: Final = 9984
MAX_TTL: Final = 3600
MAX_DENIAL_TTL: Final = 1800
MIN_TTL: Final = 5
ENTRY_OCTETS: Final = 4096  # on the average; a usual answer has 100 to 500
MAX_RECORDS: Final = 100  # of one answer; a larger one is passed on and not kept
SERVFAIL: Final = 5.0
MAX_SERVFAIL: Final = 300.0

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


@dataclass(frozen=True, slots=True)
class Limits:
    """One of the two caches: entries, and the most and least seconds an entry lives."""

    capacity: int = CAPACITY
    most: int = MAX_TTL
    least: int = MIN_TTL


@dataclass(frozen=True, slots=True)
class Config:
    """What the directive says. Durations are seconds; 0 turns `prefetch`, `stale` and `servfail` off."""

    zones: tuple[bytes, ...]
    zones_text: str
    success: Limits = field(default_factory=Limits)
    denial: Limits = field(default_factory=lambda: Limits(most=MAX_DENIAL_TTL))
    prefetch: int = 0
    prefetch_gap: float = 60.0
    prefetch_part: float = 0.1
    stale: float = 0.0
    verify: bool = False
    verify_timeout: float = 0.0
    stale_ttl: int = 0
    recheck: float = 0.0
    prefer_positive: bool = False
    servfail: float = SERVFAIL
    no_success: tuple[bytes, ...] = ()
    no_denial: tuple[bytes, ...] = ()
    keepttl: bool = False
    cut: bool = False


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
        return [_parse(setup.once(directives), block)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        # Keys are name, type and class as in a question, with a last octet for DO and CD.
        self.success: dict[bytes, Entry] = {}
        self.denial: dict[bytes, Entry] = {}
        self.octets = {"success": 0, "denial": 0}
        # Names that do not exist, whatever the type: wire name -> its entry.
        self.cuts: dict[bytes, Entry] = {}
        self.block_zones: tuple[bytes, ...] = ()
        self.meters: dict[str, _Meters] = {}
        self.block: Block | None = None
        self.everything = config.zones == (b"\0",)
        self.deadlines = Deadlines()

    def wire(self, block: Block) -> None:
        self.block = block
        forwards = block.all(Forwards)  # type: ignore[type-abstract]
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
        key = _key(request)
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
        return self._keep(request, _key(request), answer)

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


def classify(qtype: int, name: bytes, answer: Answer) -> str:
    """Where an answer is kept: success, denial, servfail, or none."""
    if answer.flags & iana.TC or qtype in (iana.AXFR, iana.IXFR):
        return "none"
    if answer.rcode in (iana.SERVFAIL, iana.NOTIMP):
        return "servfail"
    if answer.rcode not in (iana.NOERROR, iana.NXDOMAIN):
        return "none"
    has_soa = any(rrset.type == iana.SOA for rrset in answer.authority)
    if answer.rcode == iana.NXDOMAIN:
        # RFC 2308, section 5: without an SOA a denial has no time to live.
        return "denial" if has_soa else "none"
    if not answer.answer:
        if has_soa:
            return "denial"
        return "success" if not answer.authority or answer.authority[0].type == iana.NS else "none"
    if reaches(qtype, name, answer):
        return "success"
    return "denial" if has_soa else "none"


def reaches(qtype: int, name: bytes, answer: Answer) -> bool:
    """Whether the answer section leads from the name to records of the type, perhaps over CNAMEs."""
    owners = {name}
    for rrset in answer.answer:
        owner = rrset.owner.lower()
        if owner not in owners:
            continue
        if rrset.type == qtype or qtype == iana.ANY:
            return True
        if rrset.type == iana.CNAME:
            owners.add(rrset.rdatas[0].lower())
    # In any order: a chain may be given from its end.
    return any(rrset.type == qtype and rrset.owner.lower() in owners for rrset in answer.answer)


def chain_only(name: bytes, answer: Answer) -> Answer:
    """An answer without records that the question's chain does not own: they could poison other names (RFC 5452).

    What stays: the chain of CNAMEs and DNAMEs and its end, signatures of both, the SOA and NSEC records of a denial, the NS
    of a delegation.
    """
    owners = {name}
    for _ in answer.answer:
        before = len(owners)
        for rrset in answer.answer:
            if rrset.type == iana.CNAME and rrset.owner.lower() in owners:
                owners.add(rrset.rdatas[0].lower())
        if len(owners) == before:
            break
    kept = tuple(
        rrset
        for rrset in answer.answer
        if rrset.owner.lower() in owners
        or (rrset.type in (iana.DNAME, iana.RRSIG) and any(is_within(o, rrset.owner.lower()) for o in owners))
    )
    authority = tuple(
        rrset
        for rrset in answer.authority
        if not kept or answer.rcode == iana.NXDOMAIN or rrset.type == iana.SOA or rrset.type in _PROOFS
        if any(is_within(owner, rrset.owner.lower()) for owner in owners) or rrset.type in _PROOFS
    )
    if kept == answer.answer and authority == answer.authority and not answer.additional:
        return answer
    return answer.replace(answer=kept, authority=authority, additional=())


def lifetime(answer: Answer) -> int:
    """Seconds an answer may be kept: the least TTL in it, for a denial the SOA's MINIMUM too; 5 where there is none."""
    ttls = [rrset.ttl for section in answer.sections for rrset in section]
    if not answer.answer or answer.rcode == iana.NXDOMAIN:
        ttls += [rdata.soa_minimum(rrset.rdatas[0]) for rrset in answer.authority if rrset.type == iana.SOA]
    delegation = not answer.answer and any(rrset.type == iana.NS for rrset in answer.authority)
    return MIN_TTL if not ttls or delegation else min(ttls)


# Reading the directive.

_PROOFS: Final = frozenset((iana.NSEC, 50, iana.RRSIG))
_OPTIONS: Final = (
    "nxdomain_cut",
    "success",
    "denial",
    "prefetch",
    "serve_stale",
    "serve_stale_policy",
    "servfail",
    "disable",
    "keepttl",
)


def _parse(directive: Directive, block: BlockKeys) -> Config:
    words = list(directive.args)
    success, denial = Limits(), Limits(most=MAX_DENIAL_TTL)
    if words and words[0].text.lstrip("+-").isdecimal():
        ttl = setup.integer(words.pop(0), 1)
        success, denial = replace(success, most=ttl), replace(denial, most=ttl)
    texts = setup.zones(words, block)
    config = Config(setup.wire_zones(texts), ",".join(texts), success, denial)
    for line in directive.body or ():
        config = _option(line, config)
    if config.prefer_positive and not config.stale:
        raise setup.fail(directive, "serve_stale_policy needs serve_stale")
    return config


def _option(line: Line, config: Config) -> Config:
    name = line.name.text
    if name in ("success", "denial"):
        limits = _limits(line, config.success if name == "success" else config.denial)
        return replace(config, success=limits) if name == "success" else replace(config, denial=limits)
    if name == "prefetch":
        return _prefetch(line, config)
    if name == "serve_stale":
        return _serve_stale(line, config)
    if name == "serve_stale_policy":
        word = setup.one(line, "prefer_positive")
        if word.text != "prefer_positive":
            raise setup.fail(word, f'expected prefer_positive, found "{word.text}"')
        return replace(config, prefer_positive=True)
    if name == "servfail":
        word = setup.one(line, "a duration")
        value = setup.seconds(word)
        if value > MAX_SERVFAIL:
            raise setup.fail(word, "caching SERVFAIL responses over 5 minutes is not permitted (RFC 2308, section 7.1)")
        return replace(config, servfail=value)
    if name == "disable":
        setup.arguments(line, 1, None, "success or denial")
        kind = line.args[0]
        if kind.text not in ("success", "denial"):
            raise setup.fail(kind, f'expected success or denial, found "{kind.text}"')
        zones = setup.wire_zones(plugin_zones(list(line.args[1:]))) if len(line.args) > 1 else (b"\0",)
        return replace(config, no_success=zones) if kind.text == "success" else replace(config, no_denial=zones)
    if name == "keepttl":
        setup.arguments(line, 0, 0)
        return replace(config, keepttl=True)
    if name == "nxdomain_cut":
        setup.arguments(line, 0, 0)
        return replace(config, cut=True)
    raise setup.unknown(line, _OPTIONS)


def _limits(line: Line, limits: Limits) -> Limits:
    setup.arguments(line, 1, None, "CAPACITY [TTL [MINTTL]]")
    limits = replace(limits, capacity=max(setup.integer(line.args[0], 0), 1))
    if len(line.args) > 1:
        limits = replace(limits, most=setup.integer(line.args[1], 1))
    if len(line.args) > 2:
        limits = replace(limits, least=setup.integer(line.args[2], 0))
    return limits


def _prefetch(line: Line, config: Config) -> Config:
    setup.arguments(line, 1, 3, "AMOUNT [DURATION [PERCENTAGE%]]")
    config = replace(config, prefetch=setup.integer(line.args[0], 0))
    if len(line.args) > 1:
        config = replace(config, prefetch_gap=setup.seconds(line.args[1]))
    if len(line.args) > 2:
        word = line.args[2]
        if not word.text.endswith("%"):
            raise setup.fail(word, f'expected a percentage such as 10%, found "{word.text}"')
        part = setup.integer(word._replace(text=word.text[:-1]), 10, 90)
        config = replace(config, prefetch_part=part / 100)
    return config


def _serve_stale(line: Line, config: Config) -> Config:
    setup.arguments(line, 0, 5)
    words = list(line.args)
    config = replace(config, stale=setup.seconds(words.pop(0)) if words else 3600.0)
    mode = words.pop(0) if words else None
    if mode is not None and mode.text not in ("immediate", "verify"):
        raise setup.fail(mode, f'expected immediate or verify, found "{mode.text}"')
    if mode is not None and mode.text == "verify":
        config = replace(config, verify=True, verify_timeout=setup.seconds(words.pop(0)) if words else 0.0)
    if words:
        config = replace(config, stale_ttl=_whole(words.pop(0)))
    if words:
        word = words.pop(0)
        recheck = setup.seconds(word)
        if recheck > MAX_SERVFAIL:
            raise setup.fail(word, "RECHECK is at most 5m")
        config = replace(config, recheck=recheck)
    if words:
        raise setup.fail(words[0], f'unexpected argument "{words[0].text}"')
    return config


def _whole(word: Token) -> int:
    value = setup.seconds(word)
    if value != int(value):
        raise setup.fail(word, f'expected whole seconds, found "{word.text}"')
    return int(value)
