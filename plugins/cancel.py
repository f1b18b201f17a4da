"""cancel - ends queries that take too long.

A query that no plugin has answered within TIMEOUT is dropped without a reply, since its client has given up.

## Syntax

    cancel [TIMEOUT]

* TIMEOUT is a duration. Default: 5001ms, one millisecond longer than a stub resolver waits.

## Examples

~~~ corefile
.:1053 {
    cancel 3s
    forward . 127.0.0.1:5301
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, Request, readers

TIMEOUT: Final = 5.001


class Cancel(Plugin):
    """Sets how long a query may wait."""

    name: ClassVar[str] = "cancel"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[float]:
        directive = directives[-1]
        readers.no_block(directive)
        readers.arguments(directive, 0, 1)
        return [readers.seconds(directive.args[0], 0.001) if directive.args else TIMEOUT]

    def handle(self, request: Request) -> None:
        request.timeout = self.config
