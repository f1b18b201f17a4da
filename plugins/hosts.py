"""hosts - answers from a file such as /etc/hosts.

A, AAAA and PTR for the names and addresses of the file and of lines in the Corefile.

## Syntax

    hosts [FILE [ZONES...]] {
        [INLINE]
        ttl SECONDS
        no_reverse
        reload DURATION
        fallthrough [ZONES...]
        fallthrough_unsupported
    }

* FILE is the hosts file; default /etc/hosts. It is read again when it has changed; a missing one is waited for, and one
  that vanishes keeps what was read. It may have 128 MiB; a child process reads a large one.
* ZONES are the zones it answers for; the block's if there are none.
* INLINE lines are like the file's: `ADDRESS NAME...`. `*.NAME` stands for names one label below NAME.
* `ttl` is the TTL of answers. Default: 3600.
* `no_reverse` disables PTR records.
* `reload` is how often FILE is looked at. Default: 5s, 0 never.
* `fallthrough` passes queries for unknown names to the next plugin. Without it they get SERVFAIL.
* `fallthrough_unsupported` passes queries for other types than A, AAAA and PTR to the next plugin, for known names.

## Examples

~~~ corefile
.:1053 {
    hosts {
        192.0.2.7 printer.example.org
        ttl 60
        fallthrough
    }
    whoami
}
~~~

## Metrics

* `coredns_hosts_entries{hostsfile}` - entries of file and lines.
* `coredns_hosts_reload_timestamp_seconds{}` - when the file last changed.
"""

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final

import msgspec

from kdns import child, faults, log, tables, watchfile
from kdns.child import ChildFailed
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer, Validity
from kdns.dns.name import closest, parent
from kdns.dns.reverse import address_of
from kdns.dns.rrset import RRset
from kdns.hostsfile import MAX_FILE, Builder, Table, lines_of
from kdns.hostsfile import Request as TableRequest
from kdns.metrics import MAX, Gauge
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.readers import Fallthrough
from kdns.plugin.runtime import Runtime

DEFAULT_FILE: Final = "/etc/hosts"
DEFAULT_TTL: Final = 3600
DEFAULT_RELOAD: Final = 5.0
INLINE: Final = 256 << 10  # octets: some 8,000 lines, which take 50 ms in turns; a child process costs as much to begin
CHILD_TIMEOUT: Final = 120.0  # seconds; one million lines take ten

ENTRIES: Final = Gauge(
    "coredns_hosts_entries", "The combined number of entries in hosts and Corefile.", ("hostsfile",), across=MAX
)
RELOADED: Final = Gauge(
    "coredns_hosts_reload_timestamp_seconds", "The timestamp of the last reload of hosts file.", across=MAX
)

_log = log.plugin("hosts")
_OPTIONS: Final = ("ttl", "no_reverse", "reload", "fallthrough", "fallthrough_unsupported")


@dataclass(frozen=True, slots=True)
class Config:
    """What the directive says; `inline` are lines as they stand, TTL and durations in seconds."""

    path: str
    zones: tuple[bytes, ...]
    inline: tuple[str, ...] = ()
    ttl: int = DEFAULT_TTL
    reload: float = DEFAULT_RELOAD
    reverse: bool = True
    fallthrough: Fallthrough = field(default_factory=Fallthrough)
    unsupported: bool = False


class Hosts(Plugin):
    """Answers from a table of names and addresses."""

    name: ClassVar[str] = "hosts"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        path = directive.args[0].text if directive.args else DEFAULT_FILE
        found: dict[str, object] = {}
        inline: list[str] = []
        for line in directive.body or ():
            readers.no_block(line)
            name = line.name.text
            if name == "fallthrough":
                found["fallthrough"] = Fallthrough.parse(line)
            elif name == "fallthrough_unsupported":
                readers.arguments(line, 0, 0)
                found["unsupported"] = True
            elif name == "no_reverse":
                readers.arguments(line, 0, 0)
                found["reverse"] = False
            elif name == "ttl":
                found["ttl"] = readers.integer(readers.one(line, "a TTL in seconds"), 1, 65535)
            elif name == "reload":
                found["reload"] = readers.seconds(readers.one(line, "a duration"))
            elif "fallthrough" not in found and line.args:
                inline.append(" ".join((name, *line.words())))
            else:
                raise readers.unknown(line, _OPTIONS)
        config = Config(path, readers.zone_names(directive.args[1:], block), tuple(inline), **found)  # type: ignore[arg-type]
        if config.unsupported and config.fallthrough.zones is None:
            raise readers.fail(directive, "fallthrough_unsupported needs fallthrough")
        return [config]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.path = config.path
        self.found: list[watchfile.Change] = []
        self.table = Table(b"".join(Builder(TableRequest((), (), False)).parts()))
        self.built = False  # whether the table is that of a file or of the Corefile's lines
        self.validity = Validity()  # of all that the table says
        self.limit: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL
        self.task: asyncio.Task[None] | None = None
        self.follower = _following(config.path)

    # Life.

    def load(self, block: BlockInfo) -> None:
        self.limit = block.ttl_limit
        self.path = block.path(self.config.path)
        self.follower = _following(self.path)
        self.found = self.follower.look()

    async def start(self, runtime: Runtime) -> None:
        found, self.found = self.found, []
        await self._take(found)
        if not self.built:
            self._use(await self._built(b""))  # no file yet: the Corefile's lines
        if self.config.reload:
            follow = partial(self.follower.follow, self.config.reload, self._take)
            self.task = asyncio.create_task(faults.supervise("plugin/hosts", follow), name="hosts")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None

    async def _take(self, found: Sequence[watchfile.Change]) -> None:
        """Takes a new state of the file. What cannot be read keeps what there is."""
        for change in found:
            if change.error is not None:
                _log.warning(f"{self.path}: {change.error.strerror or change.error}; what was read before is kept")
                continue
            try:
                table = await self._built(change.data)
            except ChildFailed as error:
                _log.warning(f"{self.path}: {error}; what was read before is kept")
                continue
            self._use(table)
            if change.seen is not None:
                RELOADED.slot()[0] = change.seen.changed / 1e9

    async def _built(self, data: bytes | None) -> Table:
        """The table of a file's text and the Corefile's lines; a child process reads what is too large to be kept."""
        config = self.config
        given = TableRequest(config.zones, config.inline, config.reverse)
        if data is None:
            encoded = msgspec.msgpack.encode(given)
            return Table(await child.output("kdns.hostsfile", self.path, given=encoded, timeout=CHILD_TIMEOUT))
        builder = Builder(given)
        return Table(await tables.in_turns(builder, builder.read(lines_of(io.BytesIO(data)))))

    def _use(self, table: Table) -> None:
        self.table = table
        self.built = True
        self.validity.end()
        self.validity = Validity()
        ENTRIES.slot(self.config.path)[0] = table.count

    # Queries.

    def handle(self, request: Request) -> Outcome | None:
        question = request.question
        name, qtype = question.name, question.type
        if question.cls != iana.IN and question.cls != iana.ANY:
            return None
        config = self.config
        request.depends_on(self.validity)
        if qtype == iana.PTR:
            address = address_of(name)
            names = self.table.names(address) if address is not None else []
            return self._answer(name, iana.PTR, names) if names else None
        if closest(name, config.zones) is None:
            return None
        # The addresses of a name, or, of each family that it has none of, of the wildcard one label above.
        own = self.table.addresses(name)
        wild = self.table.addresses(b"\x01*" + parent(name)) if not (own[0] and own[1]) else own
        v4, v6 = own[0] or wild[0], own[1] or wild[1]
        found = v4 if qtype == iana.A else v6 if qtype == iana.AAAA else []
        if found:
            return self._answer(name, qtype, found)
        if v4 or v6:
            if config.unsupported and qtype not in (iana.A, iana.AAAA) and config.fallthrough.falls_through(name):
                return None
            return Answer(iana.NOERROR, iana.AA, local=True, validity=ALWAYS)
        if config.fallthrough.falls_through(name):
            return None
        return RcodeOnly(iana.SERVFAIL)

    def _answer(self, name: bytes, rtype: int, rdatas: Sequence[bytes]) -> Answer:
        rrset = RRset(name, rtype, min(self.config.ttl, self.limit(name, False)), tuple(rdatas))
        return Answer(iana.NOERROR, iana.AA, (rrset,), local=True, validity=ALWAYS)


def _following(path: str) -> watchfile.Follower:
    # What it calls must not hold the plugin: that would be a cycle.
    return watchfile.Follower(path, lambda: (path,), most=MAX_FILE, keep=INLINE)
