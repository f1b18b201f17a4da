"""acl - allows or refuses queries by client address and query type.

It sees the name after `rewrite` changed it, and it runs before the cache.

## Syntax

    acl [ZONES...] {
        allow|block|filter|drop [type QTYPE...] [net SOURCE...]
    }

* ZONES are the zones it applies to. Default: the block's zones.
* `allow` lets the query pass; `block` answers REFUSED; `filter` answers without records; `drop` does not answer.
* `type` lists query types and `net` lists client addresses or networks. `*` (the default) matches all.

The first matching line of a directive applies. If none matches, the next directive is tried; if no directive matches,
the query passes. Clients that use EDNS are told the reason (RFC 8914: Blocked, Filtered).

## Examples

~~~ corefile
.:1053 {
    acl example.org {
        allow net 10.0.0.0/8 127.0.0.0/8
        block type AXFR ANY
        filter type AAAA
        drop net 192.0.2.0/24
    }
    whoami
}
~~~

## Metrics

* `coredns_acl_blocked_requests_total{server,zone,view}`, `coredns_acl_filtered_requests_total{server,zone,view}`,
  `coredns_acl_dropped_requests_total{server,zone,view}`, `coredns_acl_allowed_requests_total{server,view}`.
"""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from kdns.corefile import Directive, Line, ServerBlock, Token
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.name import closest, to_text
from kdns.metrics import Counter
from kdns.plugin import DROP, Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo, Meter

ACTIONS: Final = ("allow", "block", "filter", "drop")
_UPDATE: Final = 5  # the opcode (RFC 2136)
_BLOCKED: Final = edns.extended_error(edns.BLOCKED)
_FILTERED: Final = edns.extended_error(edns.FILTERED)
# Clients whose packed address is remembered; a replica serves a few thousand Pods.
MAX_CLIENTS: Final = 4096

_LABELS: Final = ("server", "zone", "view")
BLOCKED: Final = Counter("coredns_acl_blocked_requests_total", "Counter of DNS requests being blocked.", _LABELS)
FILTERED: Final = Counter("coredns_acl_filtered_requests_total", "Counter of DNS requests being filtered.", _LABELS)
DROPPED: Final = Counter("coredns_acl_dropped_requests_total", "Counter of DNS requests being dropped.", _LABELS)
ALLOWED: Final = Counter(
    "coredns_acl_allowed_requests_total", "Counter of DNS requests being allowed.", ("server", "view")
)

# A network: octets of the address (4 or 16), bits to shift away, and what must then be left.
Network = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line. `types` and `networks` are None where all fit."""

    action: str
    types: frozenset[int] | None
    networks: tuple[Network, ...] | None

    def fits(self, qtype: int, client: Callable[[], tuple[int, int]]) -> bool:
        """True if a query type and a client (octets, address as a number) fit. The client is looked at only for a
        `net`.
        """
        if self.types is not None and qtype not in self.types:
            return False
        if self.networks is None:
            return True
        octets, number = client()
        return any(size == octets and number >> shift == prefix for size, shift, prefix in self.networks)


@dataclass(frozen=True, slots=True)
class Config:
    """Directives in order: zones and rules."""

    policies: tuple[tuple[tuple[bytes, ...], tuple[Rule, ...]], ...]


class Acl(Plugin):
    """Handles what may not be asked."""

    name: ClassVar[str] = "acl"
    meets_updates = True
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return [
            Config(
                tuple(
                    (readers.zone_names(d.args, block), tuple(_rule(line) for line in d.body or ())) for d in directives
                )
            )
        ]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.clients: dict[str, tuple[int, int]] = {}
        self.view = ""

    def wire(self, block: BlockInfo) -> None:
        self.view = block.view

    def handle(self, request: Request) -> Outcome | None:
        name, qtype = request.question.name, request.question.type
        client = partial(self._client, request)
        for zones, rules in self.config.policies:
            zone = closest(name, zones)
            if zone is None:
                continue
            for rule in rules:
                if rule.fits(qtype, client):
                    if rule.action == "allow":
                        break
                    return self._refuse(request, rule.action, zone)
            else:
                continue
            break
        ALLOWED.slot(request.server.label, self.view)[0] += 1
        return None

    def _refuse(self, request: Request, action: str, zone: bytes) -> Outcome:
        labels = (request.server.label, to_text(zone), self.view)
        if action == "block" or (action == "filter" and request.opcode == _UPDATE):  # NOERROR would say that it is done
            BLOCKED.slot(*labels)[0] += 1
            return RcodeOnly(iana.REFUSED, options=_BLOCKED)
        if action == "filter":
            FILTERED.slot(*labels)[0] += 1
            # RA, as an empty answer with neither AA nor RA reads as a lame referral.
            return Answer(iana.NOERROR, iana.RA, local=True, options=_FILTERED)
        DROPPED.slot(*labels)[0] += 1
        return DROP

    def meter(self, request: Request, answer: Answer) -> Meter:
        slot = ALLOWED.slot(request.server.label, self.view)

        def allowed(asked: int, said: int) -> None:
            slot[0] += 1

        return allowed

    def _client(self, request: Request) -> tuple[int, int]:
        host = request.client[0]
        known = self.clients.get(host)
        if known is not None:
            return known
        address = ipaddress.ip_address(host.partition("%")[0])
        if len(self.clients) >= MAX_CLIENTS:
            self.clients.clear()
        made = self.clients[host] = (address.max_prefixlen // 8, int(address))
        return made


def _rule(line: Line) -> Rule:
    action = line.name.text.lower()
    if action not in ACTIONS:
        raise readers.unknown(line, ACTIONS)
    types: set[int] = set()
    networks: list[Network] = []
    every_type = every_net = True
    section: Token | None = None
    filled = True
    for word in line.args:
        text = word.text.lower()
        if text in ("type", "net"):
            if not filled and section is not None:
                raise readers.fail(section, f"nothing follows {section.text}")
            section, filled = word, False
            if text == "type":
                every_type = False
            else:
                every_net = False
            continue
        if section is None:
            raise readers.fail(word, f'expected type or net, found "{word.text}"')
        filled = True
        if section.text.lower() == "type":
            every_type = _type(word, types) or every_type
        else:
            every_net = _network(word, networks) or every_net
    if not filled and section is not None:
        raise readers.fail(section, f"nothing follows {section.text}")
    return Rule(action, None if every_type else frozenset(types), None if every_net else tuple(networks))


def _type(word: Token, types: set[int]) -> bool:
    """Adds a type; True for `*`."""
    if word.text == "*":
        return True
    number = iana.TYPES.get(word.text) or (iana.type_number(word.text) if word.text.startswith("TYPE") else None)
    if number is None:
        raise readers.fail(word, f'"{word.text}" is not a query type (upper case, such as AAAA)')
    types.add(number)
    return False


def _network(word: Token, networks: list[Network]) -> bool:
    """Adds a network; True for `*`."""
    if word.text == "*":
        return True
    network = readers.network(word)
    shift = network.max_prefixlen - network.prefixlen
    networks.append((network.max_prefixlen // 8, shift, int(network.network_address) >> shift))
    return False
