"""One question on its way through the upstreams of `forward`: tries, a second upstream for a late one, and the end.

Law: an attempt always ends, with one outcome, at the latest after LIMIT. A fault here ends its own question alone.
"""

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from kdns import faults
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.metrics import Counter
from kdns.plugin import Outcome, Pending, RcodeOnly, Request
from kdns.upstream.exchange import Result, UpstreamError
from kdns.upstream.upstream import Upstream

if TYPE_CHECKING:
    from kdns.plugins.forward.handler import Forward

# Seconds for one query, all tries together: what comes of it is there before a stub resolver's five are over.
LIMIT: Final = 4.8
# A second upstream is asked when the first is this late: three times its usual, within bounds. The first waits on.
HEDGE_SOONEST: Final = 0.02  # seconds
HEDGE_LATEST: Final = 0.5
_NETWORK_ERROR: Final = edns.extended_error(edns.NETWORK_ERROR)
_TOO_MANY: Final = edns.extended_error(edns.OTHER_ERROR, b"too many forms of this question are in flight")

BROKEN: Final = Counter(
    "coredns_forward_healthcheck_broken_total", "Counter of the number of complete failures of the healthchecks."
)
HEDGED: Final = Counter("kdns_forward_hedged_total", "Queries that a second upstream was asked for as well.")
VARIANTS_REFUSED: Final = Counter(
    "kdns_forward_variants_refused_total",
    "Queries answered SERVFAIL because too many forms of their question were in flight.",
)


class ForwardAttempt:
    """One question on its way through the upstreams."""

    __slots__ = (
        "answered", "attempts", "begun", "client", "end", "flight", "forward", "hedge", "last", "left", "list", "over",
        "passed", "pos", "proto", "query", "question", "subnet", "waiting",
    )  # fmt: skip

    def __init__(self, forward: "Forward", request: Request, query: bytes, proto: str, client: bytes = b"") -> None:
        """`client`: whose form of the question it is; empty where it is everybody's."""
        self.forward = forward
        self.client = client
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
            self.fail(error)

    def begin_late(self) -> None:
        """Asks the first upstream, after a wait for other forms of the question."""
        if not self.over:
            self.last = asyncio.get_running_loop().call_later(self.end - time.monotonic(), self.expire, self.list[0])
            self.begin()

    def give_up_waiting(self) -> None:
        """Its turn has not come."""
        if not self.begun and not self.over:
            self.finish(too_many_forms())

    def fail(self, error: Exception) -> None:
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
                self.fail(error)

    def ask(self, upstream: Upstream) -> None:
        self.left -= 1
        self.attempts += 1
        self.waiting += 1
        left = LIMIT if self.attempts == 1 else self.end - time.monotonic()
        if self.last is None and left < upstream.options.timeout:
            self.last = asyncio.get_running_loop().call_later(left, self.expire, upstream)
        upstream.exchange(self.query, self.question, self.proto, partial(self.on_result, upstream))

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
        self.forward.on_done(self, outcome)

    def on_result(self, upstream: Upstream, result: Result) -> None:
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
            self.fail(error)

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
        if result.rcode == iana.NOERROR and not result.flags & (iana.AA | iana.RA) and is_empty(result):
            # Resolvers take this for a lame referral and give the name up; we are the recursion they see.
            result = result.replace(flags=result.flags | iana.RA)
        if result.options and not self.subnet:
            result = _without_subnet(result)
        self.finish(result)


def too_many_forms() -> RcodeOnly:
    """The failure of a query whose question is in flight in too many forms already. Counted."""
    VARIANTS_REFUSED.slot()[0] += 1
    return RcodeOnly(iana.SERVFAIL, "too many forms of this question are in flight", _TOO_MANY)


def _failure(text: str) -> RcodeOnly:
    return RcodeOnly(iana.SERVFAIL, UpstreamError(text), _NETWORK_ERROR)


def _without_subnet(answer: Answer) -> Answer:
    """An ECS option in a reply belongs to clients that sent one and had it passed on (RFC 7871, section 7.2.2)."""
    kept = b"".join(edns.option(code, data) for code, data in edns.options(answer.options) if code != edns.SUBNET)
    return answer if kept == answer.options else answer.replace(options=kept)


def is_empty(answer: Answer) -> bool:
    """True if an answer has no record in its answer section."""
    return answer.body.counts[0] == 0 if answer.body is not None else not answer.answer
