"""dns64 - gives IPv6 clients addresses for names that have only IPv4 addresses (RFC 6147).

When a name has no AAAA record, kdns asks for A and embeds each address in a prefix that a NAT64 gateway translates.

## Syntax

    dns64 [PREFIX]

    dns64 {
        prefix PREFIX
        translate_all
        allow_ipv4
    }

* PREFIX has 32, 40, 48, 56, 64 or 96 bits (RFC 6052, section 2.2). Default: 64:ff9b::/96.
* `translate_all` translates even if there are AAAA records. `allow_ipv4` translates for clients that ask over IPv4 too.

## Examples

~~~ corefile
.:1053 {
    dns64 {
        prefix 2001:db8:64::/96
        allow_ipv4
    }
    forward . 127.0.0.1:5301
}
~~~

## Metrics

* `coredns_dns64_requests_translated_total{server}` - questions answered with translated addresses.
"""

import ipaddress
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.translation import PREFIX, embed
from kdns.metrics import Counter, Slot
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, readers, then
from kdns.plugin.base import Meter

MAX_TTL: Final = 600  # seconds, where the AAAA's denial says nothing (RFC 6147, section 5.1.7)

TRANSLATED: Final = Counter(
    "coredns_dns64_requests_translated_total", "Counter of DNS requests translated by dns64.", ("server",)
)


@dataclass(frozen=True, slots=True)
class Config:
    """The prefix, and for whom and what."""

    prefix: ipaddress.IPv6Network = PREFIX
    translate_all: bool = False
    allow_ipv4: bool = False


class Dns64(Plugin):
    """Handles AAAA by asking below, and then perhaps for A."""

    name: ClassVar[str] = "dns64"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = directives[-1]
        readers.arguments(directive, 0, 1)
        config = Config(readers.translation_prefix(directive.args[0])) if directive.args else Config()
        for line in directive.body or ():
            if line.name.text == "prefix":
                config = replace(config, prefix=readers.translation_prefix(readers.one(line, "a prefix")))
            elif line.name.text == "translate_all":
                readers.arguments(line, 0, 0)
                config = replace(config, translate_all=True)
            elif line.name.text == "allow_ipv4":
                readers.arguments(line, 0, 0)
                config = replace(config, allow_ipv4=True)
            else:
                raise readers.unknown(line, ("prefix", "translate_all", "allow_ipv4"))
        return [config]

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if question.type != iana.AAAA or question.cls != iana.IN or request.depth:
            return None
        if request.family != 6 and not self.config.allow_ipv4:
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
        """What the question for AAAA came to."""
        if type(outcome) is not Answer or outcome.rcode == iana.NXDOMAIN:
            return outcome
        if not self.config.translate_all and any(rrset.type == iana.AAAA for rrset in outcome.answer):
            return outcome
        ttls = [rrset.ttl for rrset in outcome.authority if rrset.type == iana.SOA]
        limit = min(ttls) if ttls else MAX_TTL
        lookup = request.lookup(request.question.name, iana.A)
        found: Outcome | Awaitable[Outcome | None] = then(lookup, partial(self._second, request, limit))
        return found

    def _second(self, request: Request, limit: int, outcome: Outcome) -> Outcome:
        """What the question for A came to."""
        if type(outcome) is not Answer:
            return RcodeOnly(iana.SERVFAIL, "dns64: the name's A cannot be looked up")
        slot = TRANSLATED.slot(request.server.label)
        slot[0] += 1
        request.slots[self.position] = slot
        answer = tuple(
            rrset._replace(
                type=iana.AAAA,
                ttl=min(rrset.ttl, limit),
                rdatas=tuple(embed(self.config.prefix, data) for data in rrset.rdatas),
            )
            if rrset.type == iana.A
            else rrset
            for rrset in outcome.answer
        )
        # RA, as a translated answer is recursion's; an empty one would else read as a lame referral.
        flags = outcome.flags & iana.TC | iana.RA
        # The question for AAAA has shown that the name exists, so it is not denied if that for A says otherwise.
        rcode = iana.NOERROR if outcome.rcode == iana.NXDOMAIN else outcome.rcode
        return Answer(rcode, flags, answer, outcome.authority, outcome.additional, validity=ALWAYS)
