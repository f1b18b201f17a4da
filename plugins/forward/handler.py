"""The plugin `forward` in the query path, and one question's way through its upstreams."""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import ClassVar, Final

from kdns import faults
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.deadlines import Deadlines
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.name import is_within
from kdns.dns.query import Question
from kdns.metrics import Counter
from kdns.plugin import Outcome, Pending, Plugin, RcodeOnly, Request
from kdns.plugin.base import BlockInfo, ListenerOptions
from kdns.plugin.providers import BoundsSize, UpstreamState
from kdns.plugin.runtime import Runtime
from kdns.plugins.forward import config as _config
from kdns.plugins.forward.addresses import addresses, tls_context
from kdns.plugins.forward.config import Config
from kdns.upstream.exchange import Result, UpstreamError
from kdns.upstream.upstream import Address, Upstream

# Seconds for one query, all tries together: what comes of it is there before a stub resolver's five are over.
LIMIT: Final = 4.8
BAND: Final = 0.01  # seconds; upstreams whose times differ by less count as equally near
# Forms of one question (RD, CD, DO, transport, options that the configuration sends) that are asked upstream at the
# same time. RFC 5452, section 5: each is one more chance for who guesses replies blindly. There are 8 without options
# over one transport.
MAX_VARIANTS: Final = 8
# And that wait until one of those is answered: enough where a client's network or address goes upstream, and each is
# looked through for every query of that question.
MAX_QUEUED: Final = 56
# A second upstream is asked when the first is this late: three times its usual, within bounds. The first waits on.
HEDGE_SOONEST: Final = 0.02  # seconds
HEDGE_LATEST: Final = 0.5
MAX_FLIGHTS: Final = 20_000  # different questions in flight
_NETWORK_ERROR: Final = edns.extended_error(23)  # Network Error: RFC 8914, section 4.24
_TOO_MANY: Final = edns.extended_error(
    0, b"too many forms of this question are in flight"
)  # Other: RFC 8914, section 4.1

BROKEN: Final = Counter(
    "coredns_forward_healthcheck_broken_total", "Counter of the number of complete failures of the healthchecks."
)
REJECTS: Final = Counter(
    "coredns_forward_max_concurrent_rejects_total",
    "Counter of the number of queries rejected because the concurrent queries were at maximum.",
)
HEDGED: Final = Counter("kdns_forward_hedged_total", "Queries that a second upstream was asked for as well.")
VARIANTS_REFUSED: Final = Counter(
    "kdns_forward_variants_refused_total",
    "Queries answered SERVFAIL because too many forms of their question were in flight.",
)
COALESCED: Final = Counter("kdns_forward_coalesced_total", "Queries that shared another's upstream query.")


class Forward(Plugin):
    """Sends on the names of one zone."""

    name: ClassVar[str] = "forward"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return [_config.parse(directive) for directive in directives]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.addresses: list[Address] = []
        self.contexts: dict[str, ssl.SSLContext] = {}
        self.upstreams: list[Upstream] = []
        self.deadlines = Deadlines()
        self.turn = 0
        self.concurrent = 0
        # A question -> its forms in flight, in the order they came: the first MAX_VARIANTS are asked, the others wait.
        self.flights: dict[bytes, list[ForwardAttempt]] = {}
        self.has_next = False
        self.opts = (edns.PLAIN, edns.WITH_DO)
        self.size = edns.UDP_SIZE

    def listener(self) -> ListenerOptions:
        return ListenerOptions(any_class=True)

    # Life.

    def load(self, block: BlockInfo) -> None:
        config = self.config
        self.addresses = addresses(config, block)
        transports = {where.transport for where in self.addresses if where.transport != "dns"} or (
            {"tls"} if config.tls else set()
        )
        try:
            for transport in transports:
                self.contexts[transport] = tls_context([block.path(path) for path in config.tls], transport)
        except OSError as error:
            raise CorefileError(config.at, f"plugin/forward: tls {' '.join(config.tls)}: {error}") from None

    def warnings(self) -> Sequence[str]:
        return self.config.warnings

    def wire(self, block: BlockInfo) -> None:
        at = block.plugins.index(self)
        self.has_next = at + 1 < len(block.plugins) and type(block.plugins[at + 1]) is Forward
        bounds = block.all(BoundsSize)
        self.size = min([edns.UDP_SIZE, *(plugin.udp_size for plugin in bounds)])
        self.opts = (edns.opt(self.size), edns.opt(self.size, do=True))

    async def start(self, runtime: Runtime) -> None:
        self.upstreams = [
            Upstream(where, self.config.options, self.name, self.deadlines, self.contexts.get(where.transport))
            for where in self.addresses
        ]

    async def stop(self) -> None:
        for upstream in self.upstreams:
            await upstream.close()

    def upstream_states(self) -> list[UpstreamState]:
        """How each of the upstreams is now."""
        now = time.monotonic()
        out = []
        for each in self.upstreams:
            state = "down" if each.down() else "failing" if each.failing else "up" if each.answered else "unused"
            since = now - (each.failing or each.answered or now)
            error = (
                "it sends queries back to this server"
                if each.refused
                else each.error
                if state in ("down", "failing")
                else ""
            )
            out.append(
                UpstreamState(each.to, self.config.zone, state, since, error, each.rtt if state == "up" else 0.0)
            )
        return out

    def forwarded_zones(self) -> tuple[bytes, ...]:
        """The zones at which its treatment of names changes."""
        return (self.config.zone, *self.config.excepted)

    # Queries.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        name = question.name
        config = self.config
        if config.zone != b"\0" and not is_within(name, config.zone):
            return None
        if config.excepted and name != config.zone and any(is_within(name, zone) for zone in config.excepted):
            return None
        if config.max_concurrent and self.concurrent >= config.max_concurrent:
            REJECTS.slot()[0] += 1
            return RcodeOnly(iana.REFUSED, f"concurrent queries exceeded maximum {config.max_concurrent}")
        query = pack_query(0, question, rd=request.rd, cd=request.cd, ad=True, opt=self.opt(request))
        proto = "udp" if config.prefer_udp else request.transport
        variants = self.flights.get(question.wire)
        if variants is not None:
            for running in variants:
                if running.query == query and running.proto == proto:
                    COALESCED.slot()[0] += 1
                    request.slots[self.position] = running
                    return running.flight
            if len(variants) >= MAX_VARIANTS + MAX_QUEUED:
                VARIANTS_REFUSED.slot()[0] += 1
                return RcodeOnly(iana.SERVFAIL, "too many forms of this question are in flight", _TOO_MANY)
        if self.concurrent >= MAX_FLIGHTS:
            return RcodeOnly(iana.SERVFAIL, "too many questions in flight")
        self.concurrent += 1
        running = ForwardAttempt(self, request, query, proto)
        if variants is None:
            self.flights[question.wire] = [running]
            running.begin()
        else:
            variants.append(running)
            if len(variants) <= MAX_VARIANTS:
                running.begin()
            else:
                self.deadlines.add(LIMIT, running.tire)
        request.slots[self.position] = running
        return running.flight

    def label(self, request: Request, name: str) -> str | None:
        """`forward/upstream`: which upstream answered."""
        if name != "forward/upstream":
            return None
        running: ForwardAttempt | None = request.slots[self.position]
        return running.answered if running is not None else ""

    def opt(self, request: Request) -> bytes:
        """The OPT that goes upstream: our size, the client's DO; options only if the configuration wants them.

        A client without EDNS gets what fits of the answer. AD is asked for always (RFC 6840, section 5.7): who asks
        decides only what the reply shows, and not what comes, which is for all.
        """
        sent = request.edns
        options = request.added
        do = sent is not None and sent.do
        subnet = request.option(edns.SUBNET) if sent is not None and self.config.client_subnet else None
        if subnet is not None:
            options += edns.option(edns.SUBNET, subnet)
        return edns.opt(self.size, do, options) if options else self.opts[do]

    def order(self) -> list[Upstream]:
        """The upstreams in the order that the policy asks them."""
        upstreams = self.upstreams
        if len(upstreams) == 1 or self.config.policy == "sequential":
            return upstreams
        if self.config.policy == "round_robin":
            self.turn = (self.turn + 1) % len(upstreams)
            first = upstreams[self.turn]
            return [first, *(upstream for upstream in upstreams if upstream is not first)]
        # By time of answer, in steps of BAND, so that near ones share the load; who is not known yet is tried first.
        return sorted(upstreams, key=lambda upstream: (int(upstream.rtt / BAND), random.random()))

    def landed(self, done: "ForwardAttempt", outcome: Outcome | None) -> None:
        """A flight is over."""
        self.concurrent -= 1
        key = done.question.wire
        variants = self.flights[key]
        variants.remove(done)
        if not variants:
            del self.flights[key]
        elif len(variants) >= MAX_VARIANTS:
            # The next one is asked in a turn of its own: where all fail at once, they would stand on each other.
            following = variants[MAX_VARIANTS - 1]
            if not following.begun:
                following.begun = True
                asyncio.get_running_loop().call_soon(following.begin_late)
        done.flight.resolve(outcome)

    def moves_on(self, question: Question, reply: Answer) -> bool:
        """Whether the next plugin is asked in this reply's place."""
        config = self.config
        if not self.has_next:
            return False
        return reply.rcode in config.next_rcodes or (
            config.next_on_nodata and reply.rcode == iana.NOERROR and _empty(reply)
        )

    @property
    def passes_subnet(self) -> bool:
        """Whether a client's ECS option goes upstream."""
        return self.config.client_subnet


class ForwardAttempt:
    """One question on its way through the upstreams."""

    __slots__ = (
        "answered", "attempts", "begun", "end", "flight", "forward", "hedge", "last", "left", "list", "over", "passed",
        "pos",
        "proto", "query", "question", "subnet", "waiting",
    )  # fmt: skip

    def __init__(self, forward: Forward, request: Request, query: bytes, proto: str) -> None:
        self.forward = forward
        self.question = request.question
        self.query = query
        self.proto = proto
        self.flight = Pending()
        self.answered = ""  # by which upstream
        # Whether the client's own subnet was sent: then it gets the answer's scope.
        self.subnet = forward.config.client_subnet and request.has_option(edns.SUBNET)
        self.list = forward.order()
        self.pos = 0
        self.attempts = 0
        self.passed: tuple[Upstream, ...] = ()  # whose reply was one of `failover`
        self.waiting = 0  # upstreams that have been asked and have not answered
        self.begun = False
        self.over = False
        self.hedge: asyncio.TimerHandle | None = None
        self.last: asyncio.TimerHandle | None = None
        most = forward.config.attempts
        self.left = 2 * len(self.list) if most is None else most or 1_000_000
        self.end = request.now + LIMIT

    def begin(self) -> None:
        """Asks the first upstream."""
        self.begun = True
        try:
            self.next()
        except Exception as error:
            self.broke(error)

    def begin_late(self) -> None:
        """Asks the first upstream, after a wait for other forms of the question."""
        if not self.over:
            self.last = asyncio.get_running_loop().call_later(self.end - time.monotonic(), self.expire, self.list[0])
            self.begin()

    def tire(self) -> None:
        """Its turn has not come."""
        if not self.begun and not self.over:
            VARIANTS_REFUSED.slot()[0] += 1
            self.finish(RcodeOnly(iana.SERVFAIL, "too many forms of this question are in flight", _TOO_MANY))

    def broke(self, error: Exception) -> None:
        """A fault of ours ends this question: left in flight, it would hold all who ask it from then on."""
        faults.report("plugin/forward", error)
        if not self.over:
            self.finish(RcodeOnly(iana.SERVFAIL, error))

    def next(self, error: str = "no healthy proxies") -> None:
        """Asks the next upstream, or gives up with the last error."""
        upstream = self.choose()
        if upstream is not None:
            self.ask(upstream)
            if len(self.list) > 1:
                self.prepare(upstream)
            return
        if self.waiting:
            return  # a hedged one may still answer
        forward = self.forward
        if self.left > 0 and time.monotonic() < self.end:
            # All are down. One try at random may show that the probes are wrong.
            BROKEN.slot()[0] += 1
            usable = [upstream for upstream in self.list if not upstream.refused]
            if not forward.config.failfast and not self.attempts and usable:
                self.left = 1
                self.ask(random.choice(usable))
                return
        self.finish(_failure(error))

    def choose(self) -> Upstream | None:
        """The next upstream that is not down; None where no try is left or all are."""
        count = len(self.list)
        if self.left <= 0 or (self.attempts and time.monotonic() >= self.end):
            return None
        for _ in range(count):
            upstream = self.list[self.pos % count]
            self.pos += 1
            if not upstream.down():
                return upstream
        return None

    def another(self, upstream: Upstream) -> Upstream | None:
        """Who is asked where a reply goes on to the next: nobody who is down, or whose reply it was that went on."""
        self.passed += (upstream,)
        count = len(self.list)
        if len(self.passed) >= count or time.monotonic() >= self.end:
            return None
        for _ in range(count):
            following = self.list[self.pos % count]
            self.pos += 1
            if following not in self.passed and not following.down():
                return following
        return None

    def prepare(self, upstream: Upstream) -> None:
        """Sets when a second upstream is asked: once for a query, and only where the policy keeps no order."""
        if self.forward.config.policy == "random" and len(self.list) > 1 and self.attempts == 1 and not self.over:
            late = min(max(3 * upstream.rtt, HEDGE_SOONEST), HEDGE_LATEST) if upstream.rtt else HEDGE_LATEST
            self.hedge = asyncio.get_running_loop().call_later(late, self.ask_another)

    def ask_another(self) -> None:
        """The first is late: asks a second one beside it."""
        self.hedge = None
        if not self.over and self.waiting:
            try:
                upstream = self.choose()
                if upstream is not None:
                    HEDGED.slot()[0] += 1
                    self.ask(upstream)
            except Exception as error:
                self.broke(error)

    def ask(self, upstream: Upstream) -> None:
        self.left -= 1
        self.attempts += 1
        self.waiting += 1
        left = LIMIT if self.attempts == 1 else self.end - time.monotonic()
        if self.last is None and left < upstream.options.timeout:
            self.last = asyncio.get_running_loop().call_later(left, self.expire, upstream)
        upstream.exchange(self.query, self.question, self.proto, partial(self.came, upstream))

    def expire(self, upstream: Upstream) -> None:
        """The time for all tries is over."""
        if not self.over:
            self.finish(_failure(f"read ->{upstream.to}: i/o timeout"))

    def finish(self, outcome: Outcome | None) -> None:
        """The question is answered; what still comes is late."""
        self.over = True
        if self.hedge is not None:
            self.hedge.cancel()
            self.hedge = None
        if self.last is not None:
            self.last.cancel()
        self.forward.landed(self, outcome)

    def came(self, upstream: Upstream, result: Result) -> None:
        self.waiting -= 1
        if self.over:
            return
        self.answered = upstream.to
        try:
            if type(result) is Answer:
                self.judge(upstream, result)
            else:
                self.next(str(result))
        except Exception as error:
            self.broke(error)

    def judge(self, upstream: Upstream, result: Answer) -> None:
        """A reply: passed on, to the next upstream, or to the next `forward`."""
        config = self.forward.config
        if result.rcode in config.failover:
            following = self.another(upstream)
            if following is not None:
                self.ask(following)
                return
        if self.forward.moves_on(self.question, result):
            self.finish(None)
            return
        if result.rcode == iana.NOERROR and not result.flags & (iana.AA | iana.RA) and _empty(result):
            # Resolvers take this for a lame referral and give the name up; we are the recursion they see.
            result = result.replace(flags=result.flags | iana.RA)
        if result.options and not self.subnet:
            result = _without_subnet(result)
        self.finish(result)


def _failure(text: str) -> RcodeOnly:
    return RcodeOnly(iana.SERVFAIL, UpstreamError(text), _NETWORK_ERROR)


def _without_subnet(answer: Answer) -> Answer:
    """An ECS option in a reply belongs to clients that sent one and had it passed on (RFC 7871, section 7.2.2)."""
    kept = b"".join(edns.option(code, data) for code, data in edns.options(answer.options) if code != edns.SUBNET)
    return answer if kept == answer.options else answer.replace(options=kept)


def _empty(answer: Answer) -> bool:
    return answer.body.counts[0] == 0 if answer.body is not None else not answer.answer
