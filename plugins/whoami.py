"""whoami - returns the address of the client.

The answer section is empty. The additional section holds the client's address (A or AAAA) and an SRV record `_udp.NAME`
or `_tcp.NAME` with its port. A server without a Corefile runs this plugin.

## Syntax

    whoami

## Examples

~~~ corefile
example.org:1053 {
    whoami
}
~~~
"""

import ipaddress
from collections.abc import Sequence
from typing import ClassVar

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import MAX_NAME
from kdns.dns.rrset import RRset
from kdns.plugin import Plugin, Request, readers


class Whoami(Plugin):
    """Answers every query with the client's address and port."""

    name: ClassVar[str] = "whoami"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[None]:
        readers.bare(readers.once(directives))
        return [None]

    def handle(self, request: Request) -> Answer:
        question = request.question
        address = ipaddress.ip_address(request.client[0].partition("%")[0]).packed
        rtype = iana.A if len(address) == 4 else iana.AAAA
        extra = [RRset(question.name, rtype, 0, (address,), question.cls)]
        owner = (b"\x04_tcp" if request.transport == "tcp" else b"\x04_udp") + question.name
        if len(owner) <= MAX_NAME:
            extra.append(RRset(owner, iana.SRV, 0, (rdata.srv(0, 0, request.client[1], b"\0"),), question.cls))
        return Answer(iana.NOERROR, iana.AA, additional=extra, local=True)
