"""chaos - answers questions of class CH about the server.

TXT records for `version.bind`, `version.server`, `authors.bind`, `hostname.bind` and `id.server`.

## Syntax

    chaos [VERSION] [AUTHORS...]

* VERSION is what the server calls itself. Default: kdns and its version. AUTHORS are returned in random order.

## Examples

~~~ corefile
.:1053 {
    chaos kdns-test info@example.org
    whoami
}
~~~
"""

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns import __version__
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import from_text
from kdns.dns.rrset import RRset
from kdns.plugin import ALWAYS, Plugin, Request, readers
from kdns.plugin.base import ListenerOptions

_VERSION: Final = frozenset((from_text("version.bind."), from_text("version.server.")))
_AUTHORS: Final = from_text("authors.bind.")
_HOST: Final = frozenset((from_text("hostname.bind."), from_text("id.server.")))
MAX_STRING: Final = 255  # octets of one TXT string (RFC 1035, section 3.3)


@dataclass(frozen=True, slots=True)
class Config:
    """The server's version and authors; strings of at most 255 octets."""

    version: bytes
    authors: tuple[bytes, ...]


class Chaos(Plugin):
    """Handles class CH."""

    name: ClassVar[str] = "chaos"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.no_block(directive)
        words = [word.encode()[:MAX_STRING] for word in directive.words()]
        return [Config(words[0] if words else f"kdns-{__version__}".encode(), tuple(words[1:]))]

    def listener(self) -> ListenerOptions:
        return ListenerOptions(any_class=True)

    def handle(self, request: Request) -> Answer | None:
        question = request.question
        if question.cls != iana.CH or question.type != iana.TXT:
            return None
        name = question.name
        if name in _VERSION:
            strings = [self.config.version]
        elif name == _AUTHORS and self.config.authors:
            request.once()  # in another order each time
            strings = random.sample(self.config.authors, len(self.config.authors))
        elif name in _HOST:
            strings = [socket.gethostname().encode()[:MAX_STRING]]
        else:
            return None
        found = RRset(name, iana.TXT, 0, tuple(rdata.txt(string) for string in strings), iana.CH)
        return Answer(iana.NOERROR, 0, (found,), local=True, validity=ALWAYS)
