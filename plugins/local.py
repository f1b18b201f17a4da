"""local - answers queries for localhost itself, so that they never leave the machine (RFC 6761, section 6.3; RFC 6303).

It answers for `localhost.` and names below it, for `localhost.ANYTHING` (which search lists produce), and for the
reverse zones of 0/8, 127/8 and 255/8.

## Syntax

    local {
        localhost_prefix on|off
    }

* `localhost_prefix off` leaves `localhost.ANYTHING` to other plugins.

## Examples

~~~ corefile
.:1053 {
    local
    forward . 127.0.0.1:5301
}
~~~

## Metrics

* `coredns_local_localhost_requests_total{}` - queries for names below localhost and `localhost.ANYTHING`.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import closest, from_text, is_within
from kdns.dns.rrset import RRset
from kdns.metrics import Counter
from kdns.plugin import ALWAYS, Plugin, Request, readers
from kdns.plugin.base import Meter

TTL: Final = 604800  # seconds; CoreDNS's
LOCALHOST: Final = from_text("localhost.")
REVERSE: Final = tuple(from_text(f"{octet}.in-addr.arpa.") for octet in (0, 127, 255))
LOOPBACK: Final = from_text("1.0.0.127.in-addr.arpa.")
_SOA: Final = rdata.soa(LOCALHOST, from_text("root.localhost."), 1, 0, 0, 0, TTL)
_ADDRESSES: Final = {iana.A: b"\x7f\0\0\1", iana.AAAA: b"\0" * 15 + b"\1"}

COUNT: Final = Counter("coredns_local_localhost_requests_total", "Counter of localhost.<domain> requests.")


class Local(Plugin):
    """Handles local names."""

    name: ClassVar[str] = "local"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[bool]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        prefix = True
        for line in directive.body or ():
            if line.name.text != "localhost_prefix":
                raise readers.unknown(line, ("localhost_prefix",))
            prefix = readers.choice(line, ("on", "off")) == "on"
        return [prefix]

    def handle(self, request: Request) -> Answer | None:
        question = request.question
        name, qtype = question.name, question.type
        if name == LOCALHOST:
            return self._zone(LOCALHOST, qtype, _ADDRESSES.get(qtype))
        if self._is_local(name):
            COUNT.slot()[0] += 1
            address = _ADDRESSES.get(qtype)
            if address is not None:
                return _answer(RRset(name, qtype, TTL, (address,)))
            return _empty(name)
        zone = closest(name, REVERSE)
        if zone is None:
            return None
        if name == LOOPBACK:
            return _answer(RRset(name, iana.PTR, TTL, (LOCALHOST,))) if qtype == iana.PTR else _empty(zone)
        if name == zone:
            return self._zone(zone, qtype, None)
        return _empty(zone, iana.NXDOMAIN)

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        name = request.question.name
        return _count if name != LOCALHOST and self._is_local(name) else None

    def _is_local(self, name: bytes) -> bool:
        return is_within(name, LOCALHOST) or (self.config and name.startswith(b"\x09localhost"))

    def _zone(self, zone: bytes, qtype: int, address: bytes | None) -> Answer:
        if address is not None:
            return _answer(RRset(zone, qtype, TTL, (address,)))
        if qtype == iana.SOA:
            return _answer(RRset(zone, iana.SOA, TTL, (_SOA,)))
        if qtype == iana.NS:
            return _answer(RRset(zone, iana.NS, TTL, (LOCALHOST,)))
        return _empty(zone)


def _count(asked: int, said: int) -> None:
    COUNT.slot()[0] += 1


def _answer(rrset: RRset) -> Answer:
    return Answer(iana.NOERROR, iana.AA, (rrset,), local=True, validity=ALWAYS)


def _empty(zone: bytes, rcode: int = iana.NOERROR) -> Answer:
    return Answer(rcode, iana.AA, (), (RRset(zone, iana.SOA, TTL, (_SOA,)),), local=True, validity=ALWAYS)
