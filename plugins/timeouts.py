"""timeouts - limits how long TCP connections may be idle, and how many queries they may carry.

## Syntax

    timeouts {
        read DURATION
        write DURATION
        idle DURATION
        maxtcpqueries N
    }

* `read` is the time for the first query of a connection, default 3s; `idle` the time between queries, default 11s.
  `write` is accepted for compatibility with CoreDNS and has no effect: kdns stops reading from a client that does not
  read its replies, and the connection then counts as idle. A number without a unit means seconds. Range: 1s to 24h.
* `maxtcpqueries` closes a connection after N queries. Default: -1 (never).

The limits apply to the listener, so to all server blocks on the same address and port. If several blocks set them, the
last one counts.

## Examples

~~~ corefile
.:1053 {
    timeouts {
        read 5s
        idle 30s
    }
    whoami
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions

LEAST: Final = 1.0
MOST: Final = 86400.0
_OPTIONS: Final = ("read", "write", "idle", "maxtcpqueries")


class Timeouts(Plugin):
    """Asks its listener for other deadlines."""

    name: ClassVar[str] = "timeouts"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[ListenerOptions]:
        directive = directives[-1]
        readers.arguments(directive, 0, 0)
        found: dict[str, float] = {}
        for line in directive.body or ():
            name = line.name.text
            if name not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
            word = readers.one(line, "a number of queries" if name == "maxtcpqueries" else "a duration")
            if name == "maxtcpqueries":
                count = readers.integer(word, -1)
                if count == 0:
                    raise readers.fail(word, "0 is out of range: expected -1 or at least 1")
                found["max_queries"] = count
                continue
            value = readers.seconds(word, LEAST, bare=True)
            if value > MOST:
                raise readers.fail(word, f'the duration "{word.text}" is out of range: expected at most 24h')
            if name != "write":
                found[name] = value
        if directive.body is None:
            raise readers.fail(directive, f"timeouts needs at least one of {', '.join(_OPTIONS)}")
        return [ListenerOptions(**found)]  # type: ignore[arg-type]

    def listener(self) -> ListenerOptions:
        options: ListenerOptions = self.config
        return options
