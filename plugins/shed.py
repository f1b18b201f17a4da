"""shed - drops the queries that have waited longest where more come than can be answered.

Queries over UDP wait in the socket's receive buffer, first come first served. Under overload the buffer is full: each
query is then answered late, and those that come are lost. With `shed`, what has waited for longer than AGE is dropped
unread, so that the queries that come next are answered at once. A dropped query gets no reply; its client asks again,
as a rule another server.

## Syntax

    shed [AGE]

* AGE is a duration from 10ms to 1s (kdns only; CoreDNS takes no argument). Default: 100ms.

Queries are dropped only where it helps: a pause of the process or a short burst loses no query, as all that waits can
be answered soon. Queries must have been older than AGE for half a second without interruption. From then on, each new
backlog is dropped as soon as it is that old, until there was none for two seconds.

Queries that wait for an upstream have a table of 20,000 places. Where it is full, a new query gets the place of the one
that has waited longest if that has waited for over 5 seconds, as its client has given up. Without `shed` the new query
gets SERVFAIL.

TCP is not affected: a connection that is not read makes its client wait. The server block may have keys of plain DNS
only. It applies to the listener, so to all server blocks on the same address and port; the last AGE counts.

Without `shed` too, kdns drops queries over UDP that have waited for over a second, when that has gone on for half a
second.

## Examples

~~~ corefile
.:1053 {
    shed
    forward . 127.0.0.1:5301
}
~~~

Answer late rather than not at all, up to half a second:

~~~ corefile
.:1053 {
    shed 500ms
    whoami
}
~~~

## Metrics

* `coredns_shed_dropped_total{server,reason}` - queries that were dropped: `query`, unread, from the receive buffer;
  `waiting`, from the table of those that wait for an upstream.

While queries are dropped, a warning says so and how many, at most once in ten seconds.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import ClassVar, Final

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.metrics import Counter
from kdns.net.udp import Shedding
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions

# Seconds. Ten times what a query takes that a near upstream answers, and a fraction of any client's patience. Where the
# processor is shared by quota (CFS), a process stands still for up to 100 ms.
AGE: Final = 0.1
LEAST: Final = 0.01
MOST: Final = 1.0  # what a listener does by itself
QUIET: Final = 10.0  # seconds between two lines

DROPPED: Final = Counter(
    "coredns_shed_dropped_total", "Queries dropped under overload, by reason.", ("server", "reason")
)
_log: Final = log.plugin("shed")


class Shed(Plugin):
    """Asks its listener to drop what has waited for longer than an age."""

    name: ClassVar[str] = "shed"

    def __init__(self, config: float, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(config)
        self.clock = clock
        self.unsaid = 0  # queries dropped since the last line
        self.said_at = -QUIET

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[float]:
        directive = readers.once(directives)
        readers.no_block(directive)
        readers.arguments(directive, 0, 1, "a duration")
        for key in block.keys:
            if key.scheme != "dns":
                raise readers.fail(
                    directive, f"shed is for plain DNS over UDP, and this server block has the key {key}: move that out"
                )
        if not directive.args:
            return [AGE]
        age = readers.seconds(directive.args[0], LEAST)
        if age > MOST:
            raise readers.fail(directive.args[0], f'"{directive.args[0].text}" is out of range: expected at most 1s')
        return [age]

    def listener(self) -> ListenerOptions:
        return ListenerOptions(shed=Shedding(self.config, self.dropped))

    def dropped(self, server: str, reason: str, count: int) -> None:
        """Counts queries that a listener dropped, and says so once in a while."""
        DROPPED.slot(server, reason)[0] += count
        self.unsaid += count
        now = self.clock()
        if now - self.said_at >= QUIET:
            self.said_at = now
            queries = "1 query was" if self.unsaid == 1 else f"{self.unsaid} queries were"
            _log.warning(f"{server}: more comes than can be answered; {queries} dropped since the last such line")
            self.unsaid = 0
