"""bufsize - limits the size of UDP replies.

## Syntax

    bufsize [SIZE]

* SIZE is the maximum size of a UDP reply in octets, and the size that upstreams are told; 512 to 4096, of which all
  above 1232 counts as 1232. Default: 1232. A client that asks for less gets less.

## Examples

~~~ corefile
.:1053 {
    bufsize 1100
    whoami
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar

from kdns.corefile import Directive, ServerBlock
from kdns.dns.edns import UDP_SIZE
from kdns.plugin import Plugin, Request, readers


class Bufsize(Plugin):
    """Lowers the size in a query's OPT."""

    name: ClassVar[str] = "bufsize"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[int]:
        for directive in directives:
            readers.arguments(directive, 0, 1)
            readers.no_block(directive)
        first = directives[0]
        return [readers.integer(first.args[0], 512, 4096) if first.args else UDP_SIZE]

    @property
    def udp_size(self) -> int:
        """What upstreams are told at most."""
        return int(self.config)

    def handle(self, request: Request) -> None:
        edns = request.edns
        if edns is not None and edns.size > self.config:
            request.edns = edns.with_size(self.config)
