"""nsid - tells clients which server answered (RFC 5001).

The reply to a query with the NSID option carries DATA.

## Syntax

    nsid [DATA...]

* DATA is any text. Default: the host name.

## Examples

~~~ corefile
.:1053 {
    nsid replica 1
    whoami
}
~~~
"""

import socket
from collections.abc import Sequence
from typing import ClassVar

from kdns.corefile import Directive, ServerBlock
from kdns.dns import edns
from kdns.dns.answer import Answer
from kdns.plugin import Plugin, Request, readers


class Nsid(Plugin):
    """Finishes answers to those who ask for it."""

    name: ClassVar[str] = "nsid"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[bytes]:
        directive = readers.once(directives)
        readers.no_block(directive)
        text = " ".join(directive.words()) or socket.gethostname()
        data = text.encode()
        if len(data) > edns.MAX_CONFIGURED:
            raise readers.fail(directive, f"an option of {len(data)} octets, at most {edns.MAX_CONFIGURED} are allowed")
        return [edns.option(edns.NSID, data)]

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        if not request.has_option(edns.NSID):
            return answer
        return answer.replace(options=answer.options + self.config, validity=answer.validity)
