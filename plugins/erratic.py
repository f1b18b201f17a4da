"""erratic - answers badly on purpose: a test aid for clients.

## Syntax

    erratic {
        drop [N]
        truncate [N]
        delay [N [DURATION]]
        large
    }

* `drop` drops every Nth query. Default: 2; 0 never. Where only `delay` or `truncate` is given, nothing is dropped.
* `truncate` sets TC in every Nth reply, whose records stay. Default: 2.
* `delay` lets every Nth reply wait. Default: 2 and 100ms.
* `large` gives 30 addresses for A.

A is answered 192.0.2.53, AAAA 2001:db8::53, AXFR over TCP a small zone, whose last SOA is missing where it is
truncated; everything else is SERVFAIL. Queries are counted from the first; it is ready only between the third and the
fifth.

## Examples

~~~ corefile
example.org:1053 {
    erratic {
        drop 3
        delay 3 50ms
    }
}
~~~
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns.corefile import Directive, Line, ServerBlock
from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import ROOT, from_text
from kdns.dns.rrset import RRset
from kdns.plugin import DROP, Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.outcome import Transfer

EVERY: Final = 2
DELAY: Final = 0.1  # seconds
LARGE: Final = 30  # addresses
_A: Final = bytes((192, 0, 2, 53))
_AAAA: Final = bytes.fromhex("20010db8000000000000000000000053")
_OPTIONS: Final = ("drop", "truncate", "delay", "large")


@dataclass(frozen=True, slots=True)
class Config:
    """Every how many queries something happens (0: never); the delay in seconds."""

    drop: int = EVERY
    truncate: int = 0
    delay: int = 0
    seconds: float = DELAY
    large: bool = False


class Erratic(Plugin):
    """Answers by the count of queries; never pure, so nothing of it is repeated."""

    name: ClassVar[str] = "erratic"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = directives[-1]
        readers.arguments(directive, 0, 0)
        found: dict[str, int] = {}
        seconds, large = DELAY, False
        for line in directive.body or ():
            readers.no_block(line)
            name = line.name.text
            if name == "large":
                readers.arguments(line, 0, 0)
                large = True
            elif name in ("drop", "truncate", "delay"):
                readers.arguments(line, 0, 2 if name == "delay" else 1)
                found[name] = _every(line)
                if len(line.args) == 2:
                    seconds = readers.seconds(line.args[1])
            else:
                raise readers.unknown(line, _OPTIONS)
        # What is said of delay or truncation takes the default drop away.
        drop = found.get("drop", 0 if "delay" in found or "truncate" in found else EVERY)
        return [Config(drop, found.get("truncate", 0), found.get("delay", 0), seconds, large)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.count = 0

    def is_ready(self) -> bool:
        """True if it says that it can serve: between the third and the fifth query."""
        return 3 <= self.count < 5

    def search_path(self, host: str) -> list[bytes]:
        """A search list for `autopath @erratic`."""
        return [from_text("a.example.org."), from_text("b.example.org."), ROOT]

    def search_problem(self) -> str:
        """It always has one."""
        return ""

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None]:
        config, count = self.config, self.count
        self.count += 1
        if config.drop and not count % config.drop:
            return DROP
        truncated = bool(config.truncate) and not count % config.truncate
        outcome = self._outcome(request, truncated)
        if config.delay and not count % config.delay:
            return _later(config.seconds, outcome)
        return outcome

    def _outcome(self, request: Request, truncated: bool) -> Outcome:
        name, qtype = request.question.name, request.question.type
        flags = iana.AA | (iana.TC if truncated else 0)
        if qtype == iana.A:
            thirty = tuple([_A[:3] + bytes((53 + i,)) for i in range(LARGE)]) if self.config.large else (_A,)
            return Answer(iana.NOERROR, flags, (RRset(name, iana.A, 0, thirty),), local=True)
        if qtype == iana.AAAA:
            return Answer(iana.NOERROR, flags, (RRset(name, iana.AAAA, 0, (_AAAA,)),), local=True)
        if qtype == iana.AXFR and request.transport == "tcp":
            soa = RRset(name, iana.SOA, 0, (rdata.soa(name, name, 2018050825, 7200, 3600, 1209600, 3600),))
            hosts = [bytes((3,)) + host + name for host in (b"ns1", b"ns2") if len(name) < 250]
            servers = RRset(name, iana.NS, 0, tuple(hosts))
            addresses = [RRset(host, iana.AAAA, 0, (_AAAA,)) for host in hosts]
            records = (soa, servers, *addresses) if truncated or not hosts else (soa, servers, *addresses, soa)
            return Transfer(iter([records]))
        return RcodeOnly(iana.SERVFAIL)


async def _later(seconds: float, outcome: Outcome) -> Outcome:
    await asyncio.sleep(seconds)
    return outcome


def _every(line: Line) -> int:
    return readers.integer(line.args[0], 0, 1_000_000) if line.args else EVERY
