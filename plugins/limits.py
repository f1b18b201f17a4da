"""limits - how much one client may take: queries a second, queries in flight, TCP connections.

Without it one client can take at most half of the queries that may wait for an upstream, and half of the TCP
connections. When there is no room for another connection, the client that holds most connections loses one, an idle one
if possible.

## Syntax

    limits {
        qps RATE [BURST]
        slip N
        prefix IPV4 IPV6
        inflight N
        connections N [ALL]
        exempt NETWORK...
    }

* `qps` limits the queries a second of one client. Off by default: behind SNAT or a NodeLocal DNSCache a whole node or
  cluster is one client, and only you know how much it may ask. BURST is the number of queries that a client may send at
  once after a silence; default RATE. A Pod that starts looks up some dozens of names, each in every search domain and
  for two types, so a limit below 100 is noticeable. Queries over the limit get no answer over UDP, and REFUSED over
  TCP. UDP and TCP are counted separately.
* `slip` answers every Nth query over the limit with an empty reply that has TC set (over UDP, as in Response Rate
  Limiting): a real client then asks again over TCP. 1 answers all, 2 every other one. Default 0, none: such a reply
  costs as much as an answer from memory.
* `prefix` is the length of the prefix that counts as one client for `qps`; default 32 128, each address: in a cluster
  an IPv4 address is a Pod, and a node's Pods share a /64. For clients outside the cluster use 24 56: a site is given a
  /56 or a /64, and controls all addresses in it.
* `inflight` is the number of queries of one address that may wait for an upstream; further ones get SERVFAIL at once.
  Default 10000, half of all: a silent upstream holds each for some five seconds.
* `connections` is the number of TCP connections of one address, default half of ALL; beyond it an idle connection of
  the same address is closed. ALL is the number for all clients, default 16384: two for the NodeLocal DNSCache of each
  of 5,000 nodes, with room to spare; at most a quarter of the files that the process may open (`ulimit -n`), as
  upstreams, the API server and probes need files too.
* `exempt` lists addresses and networks of clients without limits: `qps`, `inflight` and `connections` do not apply to
  them, and their connections are never closed for others. Name NodeLocal DNSCaches and other resolvers here.

The limits apply to the listener, so to all server blocks on the same address and port; the last block that sets one
counts. A query is counted before it is parsed, also if its reply is in memory. A query over the limit is in no other
metric or log.

## What it can do and what not

The source address of a UDP datagram can be forged.

* A sender that uses another address for each query is a new client each time: no per-client limit stops it. The bounds
  for all clients still hold. Let the network drop packets that leave a Pod with an address other than the Pod's (many
  CNI plugins do).
* A sender that forges your address uses up your allowance over UDP. Over TCP the handshake proves an address, and it
  has a separate allowance: with `slip` you still get answers over TCP. That is its purpose.
* The table of clients is bounded: 16,384 addresses, some 8 MiB. When it is full, the clients with the fewest recent
  queries are removed first; a client that returns starts with its whole BURST.

## Examples

~~~ corefile
.:1053 {
    limits {
        qps 1000 2000
        slip 2
        inflight 500
        connections 200
        exempt 10.0.0.53 fd00:53::/64
    }
    whoami
}
~~~

## Metrics

* `kdns_limits_queries_total{server,what}` - queries over the limit of `qps`, by what was done with them: `dropped`,
  `truncated`, `refused`.
* `kdns_limits_clients{server}` - addresses in the table.
* Those of the limits that hold with or without it: `kdns_pending_refused_total{server,reason}` (`client`: `inflight`),
  `kdns_tcp_connections_refused_total{server}`, `kdns_tcp_connections_displaced_total{server}`.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, ClassVar, Final

from kdns.corefile import Directive, Line, ServerBlock
from kdns.metrics import Counter, Gauge
from kdns.plugin import Plugin, readers
from kdns.plugin.base import DENIED, IGNORED, PASS, SHORTENED, Gate, ListenerOptions

# Octets of a listener's table, and of an address in it: its text, its bucket with two times, places in two tables.
MAX_OCTETS: Final = 8 << 20
CLIENT_OCTETS: Final = 512
MAX_CLIENTS: Final = MAX_OCTETS // CLIENT_OCTETS
LOOKS: Final = 4  # addresses looked at for one to evict: more costs a flood of new addresses more than it is worth
MOST: Final = 1_000_000  # of any number: more is a slip of the finger

_OPTIONS: Final = ("qps", "slip", "prefix", "inflight", "connections", "exempt")
_FORGOTTEN: Final = 0.0  # a time at which a bucket is full

OVER: Final = Counter(
    "kdns_limits_queries_total", "Queries over a client's limit, by what was done with them.", ("server", "what")
)
CLIENTS: Final = Gauge("kdns_limits_clients", "Client addresses whose queries are counted.", ("server",))

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Config:
    """The limits; 0 is none, or the listener's own. `qps` and `burst` are of a prefix, `inflight` and `connections` of
    an address.
    """

    qps: int = 0
    burst: int = 0
    slip: int = 0
    prefix4: int = 32
    prefix6: int = 128
    inflight: int = 0
    connections: int = 0
    all_connections: int = 0
    exempt: tuple[Network, ...] = ()

    def exempts(self, host: str) -> bool:
        """True if an address, as text, is exempt."""
        return _within(_address(host), self.exempt)


class Limits(Plugin):
    """Asks its listener to judge each query, and for other bounds."""

    name: ClassVar[str] = "limits"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        if not directive.body:
            raise readers.fail(directive, f"limits needs at least one of {', '.join(_OPTIONS)}")
        found: dict[str, Any] = {}
        for line in directive.body:
            readers.no_block(line)
            if line.name.text not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
            if line.name.text in found and line.name.text != "exempt":
                raise readers.fail(line, f"{line.name.text} stands twice")
            _read(line, found)
        found.pop("prefix", None)
        if "slip" in found and "qps" not in found:
            raise readers.fail(directive, "slip is about queries over the limit of qps: set that too")
        return [Config(**found)]

    def listener(self) -> ListenerOptions:
        config: Config = self.config
        return ListenerOptions(
            connections=config.all_connections,
            client_connections=config.connections,
            client_waiting=config.inflight,
            exempt=config.exempts if config.exempt else None,
            gate=self.gate if config.qps else None,
        )

    def limits_told(self) -> Sequence[str]:
        config: Config = self.config
        out = []
        if config.qps:
            client = "an address" if (config.prefix4, config.prefix6) == (32, 128) else "a client's network"
            said = f"queries a second of {client}: {config.qps}, at once {config.burst}"
            out.append(said + (f"; one in {config.slip} of those over it is answered with TC" if config.slip else ""))
        if config.exempt:
            out.append(f"clients without limits: {' '.join(str(network) for network in config.exempt)}")
        return out

    def gate(self, label: str) -> Gate:
        """The judge of a listener's queries."""
        return Limiter(self.config, label)


class Bucket:
    """What is known of a prefix: when its allowance will be whole again, over UDP and TCP, and its queries over the
    limit.

    A token bucket kept as one time (the generic cell rate algorithm): a query moves it on by 1/RATE seconds, and may
    come as long as it is not more than BURST/RATE ahead of now. `hosts` are its addresses in the table.
    """

    __slots__ = ("hosts", "key", "over", "tcp", "udp")

    def __init__(self, key: Address | None) -> None:
        self.key = key
        self.hosts = 0
        self.over = 0
        self.udp = _FORGOTTEN
        self.tcp = _FORGOTTEN


_EXEMPT: Final = Bucket(None)


class Limiter:
    """Judges the queries of one listener."""

    def __init__(self, config: Config, label: str, clock: Callable[[], float] = monotonic) -> None:
        self.config = config
        self.clock = clock
        self.step = 1.0 / config.qps
        # Half a query more, as sums of steps are not exact.
        self.ahead = (config.burst - 0.5) * self.step
        self.slip = config.slip
        self.hosts: OrderedDict[str, Bucket] = OrderedDict()  # in the order in which they came, or were last looked at
        self.prefixes: dict[Address, Bucket] = {}
        self.dropped = OVER.slot(label, "dropped")
        self.truncated = OVER.slot(label, "truncated")
        self.refused = OVER.slot(label, "refused")
        self.clients = CLIENTS.slot(label)
        self.clients[0] = 0

    def __call__(self, client: tuple[Any, ...], tcp: bool) -> int:
        """The verdict on a query of a client; counts it."""
        now = self.clock()
        bucket = self.hosts.get(client[0])
        if bucket is None:
            bucket = self._admit(client[0], now)
        if bucket is _EXEMPT:
            return PASS
        due = bucket.tcp if tcp else bucket.udp
        if due < now:
            due = now
        if due - now <= self.ahead:
            if tcp:
                bucket.tcp = due + self.step
            else:
                bucket.udp = due + self.step
            return PASS
        if tcp:
            self.refused[0] += 1
            return DENIED
        bucket.over += 1
        if self.slip and bucket.over % self.slip == 0:
            self.truncated[0] += 1
            return SHORTENED
        self.dropped[0] += 1
        return IGNORED

    def _admit(self, host: str, now: float) -> Bucket:
        """Puts an address into the table, in the place of another where it is full."""
        if len(self.hosts) >= MAX_CLIENTS:
            self._evict(now)
        address = _address(host)
        if _within(address, self.config.exempt):
            bucket = _EXEMPT
        else:
            key = self._prefix(address)
            found = self.prefixes.get(key)
            bucket = self.prefixes[key] = Bucket(key) if found is None else found
            bucket.hosts += 1
        self.hosts[host] = bucket
        self.clients[0] = len(self.hosts)
        return bucket

    def _evict(self, now: float) -> None:
        """Takes an address out: one whose allowance is whole, if there is one among the first few, so that nothing is
        lost.
        """
        hosts = self.hosts
        for _ in range(LOOKS):
            host, bucket = next(iter(hosts.items()))
            if bucket.udp <= now and bucket.tcp <= now:
                break
            hosts.move_to_end(host)
        host, bucket = hosts.popitem(last=False)
        if bucket.key is not None:
            bucket.hosts -= 1
            if not bucket.hosts:
                del self.prefixes[bucket.key]

    def _prefix(self, address: Address) -> Address:
        length = self.config.prefix4 if address.version == 4 else self.config.prefix6
        shift = address.max_prefixlen - length
        return type(address)(int(address) >> shift << shift)


def _address(host: str) -> Address:
    return ipaddress.ip_address(host.partition("%")[0])


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _read(line: Line, found: dict[str, Any]) -> None:
    """Adds what an option says."""
    name = line.name.text
    if name == "exempt":
        readers.arguments(line, 1, what="an address or a network")
        found[name] = found.get(name, ()) + tuple([readers.network(word) for word in line.args])
    elif name == "prefix":
        readers.arguments(line, 2, 2, "the lengths of an IPv4 and an IPv6 prefix")
        found["prefix"] = None
        found["prefix4"] = readers.integer(line.args[0], 8, 32)
        found["prefix6"] = readers.integer(line.args[1], 16, 128)
    elif name == "qps":
        readers.arguments(line, 1, 2, "queries a second")
        found[name] = readers.integer(line.args[0], 1, MOST)
        found["burst"] = readers.integer(line.args[-1], 1, MOST)
    elif name == "connections":
        readers.arguments(line, 1, 2, "a number of connections")
        found[name] = readers.integer(line.args[0], 1, MOST)
        if len(line.args) == 2:
            found["all_connections"] = readers.integer(line.args[1], found[name], MOST)
    else:
        found[name] = readers.integer(readers.one(line, "a number of queries"), 1, MOST)
