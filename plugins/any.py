"""any - answers queries of type ANY with one record, as RFC 8482 asks.

The answer is always HINFO "ANY obsoleted" "See RFC 8482".

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

    def handle(self, request: Request) -> Answer | None:
        question = request.question
        if question.type != iana.ANY:
            return None
        return Answer(
            iana.NOERROR,
            0,
            (RRset(question.name, iana.HINFO, TTL, (_RDATA,), question.cls),),
            local=True,
            validity=ALWAYS,
        )
