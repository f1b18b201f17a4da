"""The plugin `forward` in the query path: which queries are forwarded, and which of them share an upstream query."""

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Sequence
from typing import ClassVar, Final

from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.deadlines import Deadlines
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.name import is_within
from kdns.dns.query import Question
from kdns.metrics import Counter
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request
from kdns.plugin.base import BlockInfo, ListenerOptions
from kdns.plugin.providers import BoundsSize, UpstreamState
from kdns.plugin.runtime import Runtime
from kdns.plugins.forward import config as _config
from kdns.plugins.forward.addresses import addresses, trust
from kdns.plugins.forward.attempt import LIMIT, ForwardAttempt, is_empty, too_many_forms
from kdns.plugins.forward.config import Config
from kdns.upstream.upstream import Address, Trust, Upstream

BAND: Final = 0.01  # seconds; upstreams whose times differ by less count as equally near
# Forms of one question (RD, CD, DO, transport, options that the configuration sends) that are asked upstream at the
# same time. RFC 5452, section 5: each is one more chance for who guesses replies blindly. There are 8 without options
# over one transport.
MAX_VARIANTS: Final = 8
# And that wait until one of those is answered: enough where a client's network or address goes upstream, and each is
# looked through for every query of that question.
MAX_QUEUED: Final = 56
MAX_FLIGHTS: Final = 20_000  # different questions in flight

REJECTS: Final = Counter(
    "coredns_forward_max_concurrent_rejects_total",
    "Counter of the number of queries rejected because the concurrent queries were at maximum.",
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
        self.contexts: dict[str, Trust] = {}
        self.upstreams: list[Upstream] = []
        self.deadlines = Deadlines()
        self.first = 0
        self.concurrent = 0
        # A question -> its forms in flight. At most MAX_VARIANTS of them have begun, and the others wait; among those,
        # the ones without options stand before the ones with them.
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
                self.contexts[transport] = trust([block.path(path) for path in config.tls], transport)
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
        """The current state of each upstream."""
        now = time.monotonic()
        out = []
        for each in self.upstreams:
            state = "down" if each.down() else "failing" if each.failing else "up" if each.answered else "unused"
            since = now - (each.failing or each.up or now)
            answered = now - (each.answered or now)
            error = "it sends queries back to this server" if each.refused else each.error
            age = now - (each.error_at or now)
            rtt = each.rtt if state == "up" else 0.0
            out.append(UpstreamState(each.to, self.config.zone, state, since, answered, error, age, rtt))
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
        opt = self.opt(request)
        query = pack_query(0, question, rd=request.rd, cd=request.cd, ad=True, opt=opt)
        proto = "udp" if config.prefer_udp else request.transport
        variants = self.flights.get(question.wire)
        client = b"" if opt in self.opts else _network(request)
        if variants is not None:
            for running in variants:
                if running.query == query and running.proto == proto:
                    COALESCED.slot()[0] += 1
                    request.slots[self.position] = running
                    if not running.begun:
                        self._shared(running, client, variants)
                    return running.flight
            if client and not _may_wait(variants, client):
                return too_many_forms()
        if self.concurrent >= MAX_FLIGHTS:
            return RcodeOnly(iana.SERVFAIL, "too many questions in flight")
        self.concurrent += 1
        running = ForwardAttempt(self, request, query, proto, client)
        if variants is None:
            self.flights[question.wire] = [running]
            running.begin()
        else:
            # The forms without options are few, and are most clients': who asks with ever new options is not before
            # them.
            at = len(variants)
            if not client:
                at = next((i for i, each in enumerate(variants) if each.client and not each.begun), at)
            variants.insert(at, running)
            if _turn(variants) is running:
                running.begin()
            else:
                self.deadlines.add(LIMIT, running.give_up_waiting)
        request.slots[self.position] = running
        return running.flight

    def _shared(self, waiting: ForwardAttempt, client: bytes, variants: list[ForwardAttempt]) -> None:
        """Another client asks what waits: it counts among the forms of the one that has fewer."""
        clients = [each.client for each in variants]
        if clients.count(client) < clients.count(waiting.client):
            waiting.client = client
            self._go_on(variants)

    def _go_on(self, variants: list[ForwardAttempt]) -> None:
        """Begins what waits and whose turn has come."""
        while (following := _turn(variants)) is not None:
            # In a turn of the loop of its own: where all fail at once, they would stand on each other.
            following.begun = True
            asyncio.get_running_loop().call_soon(following.begin_late)

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
        # `rewrite` may have passed it on already.
        if subnet is not None and (edns.SUBNET, subnet) not in edns.options(options):
            options += edns.option(edns.SUBNET, subnet)
        return edns.opt(self.size, do, options) if options else self.opts[do]

    def order(self) -> list[Upstream]:
        """The upstreams in the order that the policy asks them."""
        upstreams = self.upstreams
        if len(upstreams) == 1 or self.config.policy == "sequential":
            return upstreams
        if self.config.policy == "round_robin":
            self.first = (self.first + 1) % len(upstreams)
            first = upstreams[self.first]
            return [first, *(upstream for upstream in upstreams if upstream is not first)]
        # By time of answer, in steps of BAND, so that near ones share the load; who is not known yet is tried first.
        return sorted(upstreams, key=lambda upstream: (int(upstream.rtt / BAND), random.random()))

    def on_done(self, done: ForwardAttempt, outcome: Outcome | None) -> None:
        """A flight is over."""
        self.concurrent -= 1
        key = done.question.wire
        variants = self.flights[key]
        variants.remove(done)
        if not variants:
            del self.flights[key]
        else:
            self._go_on(variants)
        done.flight.resolve(outcome)

    def moves_on(self, question: Question, reply: Answer) -> bool:
        """True if the next plugin is asked in this reply's place."""
        config = self.config
        if not self.has_next:
            return False
        return reply.rcode in config.next_rcodes or (
            config.next_on_nodata and reply.rcode == iana.NOERROR and is_empty(reply)
        )

    @property
    def passes_subnet(self) -> bool:
        """True if a client's ECS option goes upstream."""
        return self.config.client_subnet


# The shares of clients in the forms of one question. A client that asks with ever new options has no more forms asked
# than places are free, nor more waiting: alone it gets half of them, and who comes next half of what is left. So a few
# places are free for others, whatever one client does.


def _turn(variants: list[ForwardAttempt]) -> ForwardAttempt | None:
    """The form that is asked next, of the client that has the fewest asked; None where there is no room for it."""
    asked = [each.client for each in variants if each.begun]
    free = MAX_VARIANTS - len(asked)
    if free <= 0 or len(asked) == len(variants):
        return None
    found, least = None, free
    for each in variants:
        if not each.begun:
            share = asked.count(each.client) if each.client else 0
            if share < least:
                found, least = each, share
    return found


def _may_wait(variants: list[ForwardAttempt], client: bytes) -> bool:
    """True if one more form of a client may wait for its turn, or need not."""
    waiting = [each.client for each in variants if each.client and not each.begun]
    if waiting.count(client) < MAX_QUEUED - len(waiting):
        return True
    asked = [each.client for each in variants if each.begun]
    return asked.count(client) < MAX_VARIANTS - len(asked)


def _network(request: Request) -> bytes:
    """Whose form of a question this is: an IPv4 address, or an IPv6 network of 64 bits, all of which one host has."""
    host: str = request._client[0]
    if ":" not in host:
        return host.encode()
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8]
