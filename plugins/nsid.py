"""nsid - says which server answered (RFC 5001).

A query with the NSID option gets DATA back in its reply.

## Syntax

    nsid [DATA...]

* DATA is any text; default is the host's name.

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
from typing import ClassVar, Final

from kdns.corefile import Directive
from kdns.dns import edns
from kdns.dns.answer import Answer
from kdns.pipeline import Plugin, Request, setup
from kdns.pipeline.block import BlockKeys

CODE: Final = 3


class Nsid(Plugin):
    """Finishes answers to those who ask for it."""

    name: ClassVar[str] = "nsid"
    client_dependent = False
    finishes_denials = False

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[bytes]:
        directive = setup.once(directives)
        setup.no_block(directive)
        text = " ".join(directive.words()) or socket.gethostname()
        return [edns.option(CODE, text.encode())]

    def finish(self, request: Request, answer: Answer) -> Answer:
        asked = request.edns
        if asked is None or not asked.options or not any(code == CODE for code, _ in edns.options(asked.options)):
            return answer
        return answer.replace(options=answer.options + self.config)
