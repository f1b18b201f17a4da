"""siit - translates addresses between IPv4 and IPv6 for networks that use stateless translation (RFC 7757, RFC 6052).

A question for AAAA of a name that has only A, or for A of one that has only AAAA, is answered with the other family's
addresses, translated as the network's translator does it.

## Syntax

    siit {
        ipv6_prefix PREFIX
        eam IPV4/LENGTH IPV6/LENGTH
    }

* `ipv6_prefix` is where IPv4 addresses are embedded (RFC 6052): 32, 40, 48, 56, 64 or 96 bits. Default: 64:ff9b::/96.
* `eam` maps a range of IPv4 addresses to one of IPv6 addresses (RFC 7757, section 3); may be given several times. The
  longest that matches counts. The bits after an IPv4 prefix directly follow the IPv6 prefix, which must leave room for
  them.

AAAA is made from A by the maps, else by the prefix; A is made from AAAA by the maps only, and an address that no map
covers is left out. Existing records of the requested family are never changed. The TTL is at most that of the denial.

## Examples

~~~ corefile
.:1053 {
    siit {
        eam 192.0.2.0/24 2001:db8:aaaa::/120
    }
    forward . 127.0.0.1:5301
}
~~~

## Metrics

* `coredns_siit_requests_translated_total{server}` - questions answered with translated addresses.
"""

import ipaddress
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, NamedTuple

from kdns.corefile import Directive, ServerBlock, Token
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.translation import PREFIX, embed
from kdns.metrics import Counter, Slot
from kdns.plugin import ALWAYS, Outcome, Plugin, Request, readers, then
from kdns.plugin.base import Meter

MAX_TTL: Final = 600  # seconds, where the denial says nothing

TRANSLATED: Final = Counter(
    "coredns_siit_requests_translated_total", "Counter of DNS requests translated by siit.", ("server",)
)


class Map(NamedTuple):
    """An explicit address map: the two prefixes as numbers, and their lengths in bits."""

    ipv4: int
    bits4: int
    ipv6: int
    bits6: int

    def to_ipv6(self, address: int) -> int | None:
        """The IPv6 address that stands for an IPv4 one; None where it is not in the map (RFC 7757, section 3.3.1)."""
        rest = 32 - self.bits4
        if address >> rest != self.ipv4 >> rest:
            return None
        return self.ipv6 | (address & (1 << rest) - 1) << (128 - self.bits6 - rest)

    def to_ipv4(self, address: int) -> int | None:
        """The IPv4 address that an IPv6 one stands for; None where it is not in the map (section 3.3.2)."""
        rest = 32 - self.bits4
        if address >> (128 - self.bits6) != self.ipv6 >> (128 - self.bits6):
            return None
        return self.ipv4 | (address >> (128 - self.bits6 - rest)) & (1 << rest) - 1


@dataclass(frozen=True, slots=True)
class Config:
    """The prefix and the maps."""

    prefix: ipaddress.IPv6Network = PREFIX
    maps: tuple[Map, ...] = ()


class Siit(Plugin):
    """Handles A and AAAA by asking below, and then perhaps for the other family."""

    name: ClassVar[str] = "siit"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        prefix, maps = PREFIX, []
        for line in directive.body or ():
            readers.no_block(line)
            if line.name.text == "ipv6_prefix":
                prefix = readers.translation_prefix(readers.one(line, "a prefix"))
            elif line.name.text == "eam":
                readers.arguments(line, 2, 2, "an IPv4 and an IPv6 prefix")
                maps.append(_map(*line.args))
            else:
                raise readers.unknown(line, ("ipv6_prefix", "eam"))
        return [Config(prefix, tuple(maps))]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.by_ipv4 = sorted(config.maps, key=lambda each: -each.bits4)
        self.by_ipv6 = sorted(config.maps, key=lambda each: -each.bits6)

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if question.type not in (iana.A, iana.AAAA) or question.cls != iana.IN or request.depth:
            return None
        if question.type == iana.A and not self.config.maps:
            return None
        found: Outcome | Awaitable[Outcome | None] = then(request.below(self, question), partial(self._first, request))
        return found

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        slot: Slot | None = request.slots[self.position]
        if slot is None:
            return None

        def translated(asked: int, said: int) -> None:
            slot[0] += 1

        return translated

    def _first(self, request: Request, outcome: Outcome) -> Outcome | Awaitable[Outcome | None]:
        """What the question came to as it was asked."""
        asked = request.question.type
        if (
            type(outcome) is not Answer
            or outcome.rcode == iana.NXDOMAIN
            or any(rrset.type == asked for rrset in outcome.answer)
        ):
            return outcome
        ttls = [rrset.ttl for rrset in outcome.authority if rrset.type == iana.SOA]
        limit = min(ttls) if ttls else MAX_TTL
        other = iana.A if asked == iana.AAAA else iana.AAAA
        lookup = request.lookup(request.question.name, other)
        found: Outcome | Awaitable[Outcome | None] = then(lookup, partial(self._second, request, outcome, limit))
        return found

    def _second(self, request: Request, before: Answer, limit: int, outcome: Outcome) -> Outcome:
        """What the question for the other family came to; the first answer stands where nothing of it can be
        translated.
        """
        if type(outcome) is not Answer:
            return before
        asked = request.question.type
        made = []
        any_made = False
        for rrset in outcome.answer:
            if rrset.type == asked or rrset.type not in (iana.A, iana.AAAA):
                made.append(rrset)
                continue
            addresses = [address for data in rrset.rdatas if (address := self._translated(data)) is not None]
            if addresses:
                any_made = True
                made.append(
                    rrset._replace(type=asked, ttl=min(rrset.ttl, limit), rdatas=tuple(dict.fromkeys(addresses)))
                )
        if not any_made:
            return before
        slot = TRANSLATED.slot(request.server.label)
        slot[0] += 1
        request.slots[self.position] = slot
        return Answer(iana.NOERROR, outcome.flags & iana.TC | iana.RA, made, local=True, validity=ALWAYS)

    def _translated(self, data: bytes) -> bytes | None:
        value = int.from_bytes(data, "big")
        if len(data) == 4:
            for each in self.by_ipv4:
                found = each.to_ipv6(value)
                if found is not None:
                    return found.to_bytes(16, "big")
            return embed(self.config.prefix, data)
        for each in self.by_ipv6:
            found = each.to_ipv4(value)
            if found is not None:
                return found.to_bytes(4, "big")
        return None


def _map(first: Token, second: Token) -> Map:
    try:
        ipv4 = ipaddress.IPv4Network(first.text)
    except ValueError as error:
        raise readers.fail(
            first, f'expected an IPv4 prefix such as 192.0.2.0/24, found "{first.text}" ({error})'
        ) from None
    try:
        ipv6 = ipaddress.IPv6Network(second.text)
    except ValueError as error:
        raise readers.fail(
            second, f'expected an IPv6 prefix such as 2001:db8::/120, found "{second.text}" ({error})'
        ) from None
    if ipv6.prefixlen + 32 - ipv4.prefixlen > 128:
        raise readers.fail(second, f"{ipv6} is too small for {ipv4} (RFC 7757, section 3.2)")
    return Map(int(ipv4.network_address), ipv4.prefixlen, int(ipv6.network_address), ipv6.prefixlen)
