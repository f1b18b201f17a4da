"""family - spares clusters without IPv6 the AAAA queries.

Resolvers ask for A and AAAA of every name. If Pods have no IPv6, AAAA records of outside names are useless, yet they
are half of all upstream queries. `family` answers these queries itself: no data, never NXDOMAIN. Names of the cluster
and of `hosts`, and A records, are not affected. Not part of CoreDNS; off unless configured.

## Syntax

    family {
        ipv6 auto|on|off
    }

* `off` hides IPv6; `on` does not; `auto` (default) hides it only while the cluster has no Service or EndpointSlice with
  an IPv6 address, and this machine no global one.

`ipv6hint` is removed from HTTPS and SVCB records too (RFC 9460, section 7.3).

## Examples

~~~ corefile
.:1053 {
    family {
        ipv6 off
    }
    forward . 127.0.0.1:5301
}
~~~

## Metrics

* `kdns_family_hidden_total{}` - AAAA queries that were not sent on.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata, wire
from kdns.dns.answer import Answer
from kdns.dns.errors import FormatError
from kdns.dns.rrset import RRset
from kdns.metrics import Counter
from kdns.net.interfaces import addresses
from kdns.plugin import ALWAYS, Plugin, Request, readers
from kdns.plugin.base import BlockInfo, Meter
from kdns.plugin.providers import ClusterFamilies

TTL: Final = 60  # seconds that a denial is kept by clients: a cluster that gets IPv6 shows soon
LOOK: Final = 60.0  # seconds between looks at this machine's addresses
# A denial of ours is for names of anybody: the root's SOA stands for all (RFC 2308, section 3).
_SOA: Final = rdata.soa(b"\0", b"\0", 1, rdata.REFRESH, rdata.RETRY, rdata.EXPIRE, TTL)

HIDDEN: Final = Counter("kdns_family_hidden_total", "AAAA queries that were not sent on.")


class Family(Plugin):
    """Handles AAAA queries that nobody of ours answers."""

    name: ClassVar[str] = "family"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[str]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        mode = "auto"
        for line in directive.body or ():
            if line.name.text != "ipv6":
                raise readers.unknown(line, ("ipv6",))
            mode = readers.choice(line, ("auto", "on", "off"))
        return [mode]

    def __init__(self, config: str) -> None:
        super().__init__(config)
        self.clusters: list[ClusterFamilies] = []
        self.looked = -LOOK
        self.global_here = False

    def wire(self, block: BlockInfo) -> None:
        self.clusters = block.all(ClusterFamilies)

    def hides(self, request: Request) -> bool:
        """True if IPv6 is hidden. With `auto` that may change, so it is asked for anew each second."""
        if self.config != "auto":
            return bool(self.config == "off")
        now = request.now
        request.expires(now + 1.0)
        if any(cluster.has_ipv6() for cluster in self.clusters):
            return False
        if now - self.looked >= LOOK:
            self.looked = now
            self.global_here = any(_is_global(found.packed) for found in addresses())
        return not self.global_here

    def handle(self, request: Request) -> Answer | None:
        question = request.question
        if question.type != iana.AAAA or question.cls != iana.IN or not self.hides(request):
            return None
        HIDDEN.slot()[0] += 1
        return Answer(iana.NOERROR, iana.RA, (), (RRset(b"\0", iana.SOA, TTL, (_SOA,)),), local=True, validity=ALWAYS)

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        return _hidden if answer.local and request.question.type == iana.AAAA else None

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        if request.question.type not in (iana.HTTPS, iana.SVCB) or not self.hides(request):
            return answer
        section = tuple(
            rrset._replace(rdatas=tuple(without_hint(data) for data in rrset.rdatas))
            if rrset.type in (iana.HTTPS, iana.SVCB)
            else rrset
            for rrset in answer.answer
        )
        return answer if section == answer.answer else answer.replace(answer=section, validity=answer.validity)


def _hidden(asked: int, said: int) -> None:
    HIDDEN.slot()[0] += 1


def without_hint(data: bytes) -> bytes:
    """An SVCB's rdata without its `ipv6hint` (key 6); as it is where it cannot be read."""
    try:
        start = wire.skip_name(data, 2)
    except FormatError:
        return data
    out = [data[:start]]
    off = start
    while off + 4 <= len(data):
        stop = off + 4 + (data[off + 2] << 8 | data[off + 3])
        if stop > len(data):
            return data
        if data[off : off + 2] != b"\0\x06":
            out.append(data[off:stop])
        off = stop
    return b"".join(out) if off == len(data) else data


def _is_global(packed: bytes) -> bool:
    """True if an address is IPv6 of global scope: neither loopback, link-local nor unique local (RFC 4193)."""
    return len(packed) == 16 and packed[0] & 0xE0 == 0x20
