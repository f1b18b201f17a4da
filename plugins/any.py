"""any - answers queries of type ANY with one record, as RFC 8482 asks.

The answer is HINFO "ANY obsoleted" "See RFC 8482". Where the block has signed answers (`dnssec`) or zone files, a query
with the DO bit goes on to them: a validating resolver would take a record without a signature for a forgery.

## Syntax

    any

## Examples

~~~ corefile
.:1053 {
    any
    whoami
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.rrset import RRset
from kdns.plugin import ALWAYS, Plugin, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.zones import ServesZones

TTL: Final = 8482  # seconds; CoreDNS's play on the RFC's number
_RDATA: Final = rdata.txt(b"ANY obsoleted", b"See RFC 8482")


class Any(Plugin):
    """Handles ANY."""

    name: ClassVar[str] = "any"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[None]:
        readers.bare(readers.once(directives))
        return [None]

    def __init__(self, config: None) -> None:
        super().__init__(config)
        self.signs = False

    def wire(self, block: BlockInfo) -> None:
        self.signs = any(plugin.name == "dnssec" or isinstance(plugin, ServesZones) for plugin in block.plugins)

    def handle(self, request: Request) -> Answer | None:
        question = request.question
        if question.type != iana.ANY:
            return None
        if self.signs and request.edns is not None and request.edns.do:
            return None  # RFC 8482, section 4.2: in a signed zone the record would need a signature
        return Answer(
            iana.NOERROR,
            0,
            (RRset(question.name, iana.HINFO, TTL, (_RDATA,), question.cls),),
            local=True,
            validity=ALWAYS,
        )
