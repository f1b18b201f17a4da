"""forward - sends queries on to upstream servers.

## Syntax

    forward FROM TO... {
        except NAMES...
        force_tcp
        prefer_udp
        max_fails N
        max_connect_attempts N
        health_check DURATION [no_rec] [domain NAME]
        expire DURATION
        max_age DURATION
        max_idle_conns N
        read_timeout DURATION
        tls [CA] | [CERT KEY] | [CERT KEY CA]
        tls_servername NAME
        policy random|round_robin|sequential
        max_concurrent N
        next RCODE...
        next_on_nodata
        failover RCODE...
        failfast_all_unhealthy_upstreams
        source_address ADDRESS
        source_ports fresh
        resolver ADDRESS...
    }

* FROM is the zone whose names are sent on; TO are up to 15 upstreams: `IP[:PORT]`, `dns://IP[:PORT]`,
  `tls://IP[%SERVERNAME][:PORT]`, a file like /etc/resolv.conf (its nameserver lines), or a host name, which is looked
  up when the server is loaded.
* `except`: names below these go on to the next plugin.
* `force_tcp` asks over TCP always, `prefer_udp` over UDP also for clients that came over TCP. A truncated reply is
  asked for again over TCP, by the same upstream, in any case.
* `max_fails`: failed probes after which an upstream counts as down; 0 never. Default 2. Probes go out every
  `health_check` (0.5s) once a query has failed; `no_rec` without RD, `domain` for another name than the root.
* `max_connect_attempts`: tries for one query; default twice the number of upstreams.
* `read_timeout`: how long an upstream is waited for. Default 2s; a query takes at most 5s.
* `expire` (10s), `max_age` (no end), `max_idle_conns` (no limit): when kept TCP connections are closed.
* `tls`, `tls_servername`: certificates, and the name to verify, for `tls://` upstreams.
* `policy`: in which order upstreams are asked. `random` (default) prefers those that answer sooner, by chance among
  those that are alike, and asks a second one when the first is late; `round_robin` and `sequential` keep their order and
  move on by failure only.
* `max_concurrent`: more queries in flight are answered REFUSED.
* `next`, `next_on_nodata`: replies with these codes, or without data, go on to the next `forward` of the block.
* `failover`: replies with these codes go on to the next upstream.
* `failfast_all_unhealthy_upstreams`: SERVFAIL at once while all upstreams are down, instead of one try.
* `source_address`: the local address of queries. `source_ports fresh` (kdns only): a new port for each query.
* `resolver`: servers that look up host names in TO.

Questions that are alike and in flight are asked once. Of a client's EDNS, DO goes on; options do not.

## Examples

~~~ corefile
.:1053 {
    forward . 127.0.0.1:5301 127.0.0.1:5302 {
        max_concurrent 1000
        policy sequential
    }
}
~~~

## Metrics

* `coredns_forward_healthcheck_broken_total{}` - queries that met only upstreams that are down.
* `coredns_forward_max_concurrent_rejects_total{}`.
* `coredns_proxy_request_duration_seconds{proxy_name,to,rcode}`, `coredns_proxy_healthcheck_failures_total{proxy_name,to}`,
  `coredns_proxy_conn_cache_hits_total{proxy_name,to,proto}`, `coredns_proxy_conn_cache_misses_total{proxy_name,to,proto}`.
* `kdns_upstream_junk_total{to}`, `kdns_forward_coalesced_total{}`, `kdns_forward_hedged_total{}`.
"""

import asyncio
import ipaddress
import os
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from kdns.corefile import CorefileError, Directive, Line, Position, Token
from kdns.corefile.keys import plugin_zones
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.name import is_within
from kdns.metrics import Counter
from kdns.pipeline import Bare, Outcome, Pending, Plugin, Request, setup
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.plugin import ListenerOptions
from kdns.pipeline.runtime import Runtime
from kdns.upstream.deadlines import Deadlines
from kdns.upstream.exchange import Result
from kdns.upstream.upstream import PORTS, Address, Options, Upstream

LIMIT: Final = 5.0  # seconds for one query, all tries together (CoreDNS's, and a stub resolver's patience)
MAX_UPSTREAMS: Final = 15
BAND: Final = 0.01  # seconds; upstreams whose times differ by less count as equally near
# A second upstream is asked when the first is this late: three times its usual, within bounds. The first waits on.
HEDGE: Final = (0.02, 0.5)
MAX_FLIGHTS: Final = 20_000  # different questions in flight

BROKEN: Final = Counter(
    "coredns_forward_healthcheck_broken_total", "Counter of the number of complete failures of the healthchecks."
)
REJECTS: Final = Counter(
    "coredns_forward_max_concurrent_rejects_total",
    "Counter of the number of queries rejected because the concurrent queries were at maximum.",
)
HEDGED: Final = Counter("kdns_forward_hedged_total", "Queries that a second upstream was asked for as well.")
COALESCED: Final = Counter("kdns_forward_coalesced_total", "Queries that shared another's upstream query.")

_OPTIONS: Final = (
    "except", "max_fails", "max_connect_attempts", "health_check", "expire", "max_age", "max_idle_conns", "read_timeout",
    "force_tcp", "prefer_udp", "tls", "tls_servername", "doh_method", "policy", "max_concurrent", "next", "failover",
    "next_on_nodata", "failfast_all_unhealthy_upstreams", "source_address", "source_ports", "resolver",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """One directive. `targets` are words as written; `tls` the paths given; counts of 0 mean no limit."""

    zone: bytes
    targets: tuple[Token, ...]
    at: Position
    excepted: tuple[bytes, ...] = ()
    options: Options = field(default_factory=Options)
    prefer_udp: bool = False
    tls: tuple[str, ...] = ()
    policy: str = "random"
    max_concurrent: int = 0
    attempts: int | None = None
    next_rcodes: frozenset[int] = frozenset()
    next_on_nodata: bool = False
    failover: frozenset[int] = frozenset()
    failfast: bool = False
    resolver: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Forward(Plugin):
    """Sends on the names of one zone."""

    name: ClassVar[str] = "forward"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        return [_parse(directive) for directive in directives]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.addresses: list[Address] = []
        self.context: ssl.SSLContext | None = None
        self.upstreams: list[Upstream] = []
        self.deadlines = Deadlines()
        self.turn = 0
        self.concurrent = 0
        self.flights: dict[bytes, Pending] = {}
        self.has_next = False

    def listener(self) -> ListenerOptions:
        return ListenerOptions(any_class=True)

    # Life.

    def load(self, block: Block) -> None:
        config = self.config
        self.addresses = _addresses(config, block)
        if config.tls or any(where.transport == "tls" for where in self.addresses):
            try:
                self.context = _context([block.path(path) for path in config.tls])
            except (OSError, ssl.SSLError) as error:
                raise CorefileError(config.at, f"plugin/forward: tls {' '.join(config.tls)}: {error}") from None

    def wire(self, block: Block) -> None:
        at = block.plugins.index(self)
        self.has_next = at + 1 < len(block.plugins) and isinstance(block.plugins[at + 1], Forward)

    async def start(self, runtime: Runtime) -> None:
        BROKEN.slot()
        REJECTS.slot()
        self.upstreams = [
            Upstream(where, self.config.options, self.name, self.deadlines, self.context) for where in self.addresses
        ]

    async def stop(self) -> None:
        for upstream in self.upstreams:
            await upstream.close()

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
            return Bare(iana.REFUSED, f"concurrent queries exceeded maximum {config.max_concurrent}")
        opt = b"" if request.edns is None else edns.opt(size=request.edns.limit, do=request.edns.do)
        query = pack_query(0, question, rd=request.rd, cd=request.cd, ad=request.ad, opt=opt)
        proto = "udp" if config.prefer_udp else request.proto
        key = query + proto.encode()
        flight = self.flights.get(key)
        if flight is not None:
            COALESCED.slot()[0] += 1
            return flight
        if len(self.flights) >= MAX_FLIGHTS:
            return Bare(iana.SERVFAIL, "too many questions in flight")
        flight = self.flights[key] = Pending()
        self.concurrent += 1
        _Try(self, request, query, proto, key, flight).next()
        return flight

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

    def landed(self, key: bytes, flight: Pending, outcome: Outcome | None) -> None:
        """A flight is over."""
        self.concurrent -= 1
        self.flights.pop(key, None)
        flight.resolve(outcome)


class _Try:
    """One question on its way through the upstreams."""

    __slots__ = (
        "attempts", "end", "flight", "forward", "hedge", "key", "left", "list", "over", "pos", "proto", "query", "question",
        "swept", "waiting",
    )  # fmt: skip

    def __init__(self, forward: Forward, request: Request, query: bytes, proto: str, key: bytes, flight: Pending) -> None:
        self.forward = forward
        self.question = request.question
        self.query = query
        self.proto = proto
        self.key = key
        self.flight = flight
        self.list = forward.order()
        self.pos = 0
        self.attempts = 0
        self.swept = 0  # upstreams whose reply was one of `failover`
        self.waiting = 0  # upstreams that have been asked and have not answered
        self.over = False
        self.hedge: asyncio.TimerHandle | None = None
        most = forward.config.attempts
        self.left = 2 * len(self.list) if most is None else most or 1_000_000
        self.end = time.monotonic() + LIMIT

    def next(self, error: str = "no healthy proxies") -> None:
        """Asks the next upstream, or gives up with the last error."""
        upstream = self.choose()
        if upstream is not None:
            self.ask(upstream)
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
        self.finish(Bare(iana.SERVFAIL, error))

    def choose(self) -> Upstream | None:
        """The next upstream that is not down; None where no try is left or all are."""
        count = len(self.list)
        if self.left <= 0 or time.monotonic() >= self.end:
            return None
        for _ in range(count):
            upstream = self.list[self.pos % count]
            self.pos += 1
            if not upstream.down():
                return upstream
        return None

    def prepare(self, upstream: Upstream) -> None:
        """Sets when a second upstream is asked: once for a query, and only where the policy keeps no order."""
        if self.forward.config.policy == "random" and len(self.list) > 1 and self.attempts == 1 and not self.over:
            late = min(max(3 * upstream.rtt, HEDGE[0]), HEDGE[1]) if upstream.rtt else HEDGE[1]
            self.hedge = asyncio.get_running_loop().call_later(late, self.ask_another)

    def ask_another(self) -> None:
        """The first is late: asks a second one beside it."""
        self.hedge = None
        if not self.over and self.waiting:
            upstream = self.choose()
            if upstream is not None:
                HEDGED.slot()[0] += 1
                self.ask(upstream)

    def ask(self, upstream: Upstream) -> None:
        self.left -= 1
        self.attempts += 1
        self.waiting += 1
        upstream.exchange(self.query, self.question, self.proto, self.came)

    def finish(self, outcome: Outcome | None) -> None:
        """The question is answered; what still comes is late."""
        self.over = True
        if self.hedge is not None:
            self.hedge.cancel()
            self.hedge = None
        self.forward.landed(self.key, self.flight, outcome)

    def came(self, result: Result) -> None:
        self.waiting -= 1
        if self.over:
            return
        if type(result) is not Answer:
            self.next(str(result))
            return
        config = self.forward.config
        if result.rcode in config.failover and self.swept + 1 < len(self.list):
            self.swept += 1
            upstream = self.list[self.pos % len(self.list)]
            self.pos += 1
            self.ask(upstream)
            return
        if self.forward.has_next and (
            result.rcode in config.next_rcodes or (config.next_on_nodata and result.rcode == iana.NOERROR and _empty(result))
        ):
            self.finish(None)
            return
        if result.rcode == iana.NOERROR and not result.flags & (iana.AA | iana.RA) and _empty(result):
            # Resolvers take this for a lame referral and give the name up; we are the recursion they see.
            result = result.replace(flags=result.flags | iana.RA)
        self.finish(result)


def _empty(answer: Answer) -> bool:
    return answer.body.counts[0] == 0 if answer.body is not None else not answer.answer


# Reading the directive.


def _parse(directive: Directive) -> Config:
    if len(directive.args) < 2:
        raise setup.fail(directive, "expected FROM TO... after forward")
    zones = plugin_zones([directive.args[0]])
    warnings = []
    if not zones:
        raise setup.fail(directive.args[0], f'"{directive.args[0].text}" is no zone')
    if len(zones) > 1:
        warnings.append(
            f"Unsupported CIDR notation: '{directive.args[0].text}' expands to multiple zones. Using only '{zones[0]}'."
        )
    targets = directive.args[1:]
    if len(targets) > MAX_UPSTREAMS:
        raise setup.fail(targets[MAX_UPSTREAMS], f"more than {MAX_UPSTREAMS} TOs configured: {len(targets)}")
    found: dict[str, object] = {}
    options: dict[str, object] = {}
    for line in directive.body or ():
        setup.no_block(line)
        _option(line, found, options)
    made = Options(**options)  # type: ignore[arg-type]
    if made.max_age and made.max_age < made.expire:
        raise setup.fail(directive, "max_age must not be less than expire")
    if made.server_name and any("%" in word.text and word.text.startswith("tls://") for word in targets):
        raise setup.fail(directive, "tls_servername and a server name behind % cannot both be set")
    zone = setup.wire_zones(zones[:1])
    return Config(zone[0], targets, directive.at, options=made, warnings=tuple(warnings), **found)  # type: ignore[arg-type]


def _option(line: Line, found: dict[str, object], options: dict[str, object]) -> None:
    name = line.name.text
    if name == "except":
        setup.arguments(line, 1, None, "names")
        found["excepted"] = (*found.get("excepted", ()), *setup.wire_zones(plugin_zones(list(line.args))))  # type: ignore[misc]
    elif name in ("force_tcp", "prefer_udp", "next_on_nodata", "failfast_all_unhealthy_upstreams"):
        setup.arguments(line, 0, 0)
        if name == "force_tcp":
            options[name] = True
        else:
            found["failfast" if name.startswith("failfast") else name] = True
    elif name in ("max_fails", "max_idle_conns", "max_concurrent", "max_connect_attempts"):
        number = setup.integer(setup.one(line), 0, 0xFFFFFFFF)
        if name in ("max_fails", "max_idle_conns"):
            options[name.removesuffix("_conns")] = number
        else:
            found["attempts" if name == "max_connect_attempts" else name] = number
    elif name in ("expire", "max_age"):
        options[name] = setup.seconds(setup.one(line, "a duration"))
    elif name == "read_timeout":
        options["timeout"] = setup.seconds(setup.one(line, "a duration"), 0.001)
    elif name == "health_check":
        _health_check(line, options)
    elif name == "tls":
        found["tls"] = tuple(setup.arguments(line, 0, 3))
    elif name == "tls_servername":
        options["server_name"] = setup.one(line, "a name").text
    elif name == "policy":
        word = setup.one(line, "random, round_robin or sequential")
        if word.text not in ("random", "round_robin", "sequential"):
            raise setup.fail(word, f'expected random, round_robin or sequential, found "{word.text}"')
        found["policy"] = word.text
    elif name in ("next", "failover"):
        found["next_rcodes" if name == "next" else name] = _rcodes(line)
    elif name == "source_address":
        options["source"] = _address(setup.one(line, "an address"))
    elif name == "source_ports":
        word = setup.one(line, "fresh")
        if word.text != "fresh":
            raise setup.fail(word, f'expected fresh, found "{word.text}"')
        options["fresh_ports"] = True
    elif name == "resolver":
        setup.arguments(line, 1, None, "addresses")
        found["resolver"] = tuple(line.words())
    elif name == "doh_method":
        raise setup.fail(line, "DNS over HTTPS upstream is known from CoreDNS, but this version of kdns does not have it yet")
    else:
        raise setup.unknown(line, _OPTIONS)


def _health_check(line: Line, options: dict[str, object]) -> None:
    setup.arguments(line, 1, 4, "DURATION [no_rec] [domain NAME]")
    options["interval"] = setup.seconds(line.args[0])
    rest = list(line.args[1:])
    while rest:
        word = rest.pop(0)
        if word.text == "no_rec":
            options["probe_rd"] = False
        elif word.text == "domain" and rest:
            options["probe_name"] = setup.name(rest.pop(0))
        else:
            raise setup.fail(word, f'expected no_rec or domain NAME, found "{word.text}"')


def _rcodes(line: Line) -> frozenset[int]:
    setup.arguments(line, 1, None, "response codes such as NXDOMAIN")
    out = set()
    for word in line.args:
        number = iana.rcode_number(word.text)
        if number is None:
            raise setup.fail(word, f'"{word.text}" is no response code')
        if number == iana.NOERROR and line.name.text == "failover":
            raise setup.fail(word, "NOERROR cannot be used in failover")
        out.add(number)
    return frozenset(out)


def _address(word: Token) -> str:
    try:
        return str(ipaddress.ip_address(word.text))
    except ValueError:
        raise setup.fail(word, f'expected an IP address, found "{word.text}"') from None


# Addresses.


def _addresses(config: Config, block: Block) -> list[Address]:
    """The upstreams' addresses, without repeats. Reads resolv.conf files and looks host names up. Raises CorefileError."""
    out: dict[tuple[str, str, int], Address] = {}
    for word in config.targets:
        for where in _target(word, config, block):
            out.setdefault((where.transport, where.host, where.port), where)
    if not out:
        raise setup.fail(config.targets[0], "no valid upstream addresses found")
    return list(out.values())


def _target(word: Token, config: Config, block: Block) -> list[Address]:
    text = word.text
    transport = "dns"
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme == "https":
            raise setup.fail(word, "DNS over HTTPS upstream is known from CoreDNS, but this version of kdns does not have it yet")
        if scheme not in PORTS:
            raise setup.fail(word, f'unknown scheme "{scheme}": expected dns:// or tls://')
        transport, text = scheme, rest
    host, port = _host_and_port(text, PORTS[transport])
    server_name = ""
    if transport == "tls" and "%" in host:
        host, _, server_name = host.partition("%")
    bare, _, zone = host.partition("%")
    try:
        ipaddress.ip_address(bare)
        return [Address(transport, host if zone else bare, port, server_name)]
    except ValueError:
        pass
    if not separator:
        path = block.path(text)
        if os.path.isfile(path):
            return [Address("dns", host, 53) for host in _nameservers(path, word)]
        if "/" in text:
            raise setup.fail(word, f'"{text}" is neither an address nor a file that can be read')
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise setup.fail(word, f'"{text}" is no address and no file, and it cannot be resolved: {error}') from None
    return [Address(transport, str(entry[4][0]), port, server_name or (host if transport == "tls" else "")) for entry in found]


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, int(port[1:]) if port[1:].isdecimal() else default
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        if port.isdecimal() and int(port) <= 65535:
            return host, int(port)
    return text, default


def _nameservers(path: str, word: Token) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise setup.fail(word, f"{path}: {error.strerror or error}") from None
    out = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            host = words[1].partition("%")[0]
            try:
                out.append(str(ipaddress.ip_address(host)))
            except ValueError:
                continue
    return out


def _context(paths: list[str]) -> ssl.SSLContext:
    """The TLS context of `tls` arguments: [CA], [CERT KEY] or [CERT KEY CA]."""
    ca = paths[-1] if len(paths) in (1, 3) else None
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if len(paths) >= 2:
        context.load_cert_chain(paths[0], paths[1])
    return context
