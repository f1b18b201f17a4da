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
  that vanishes keeps what was read.
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
import ipaddress
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from kdns import faults, log
from kdns.address import unmapped
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer, Validity
from kdns.dns.errors import BadName
from kdns.dns.name import closest, from_text, parent
from kdns.dns.reverse import name_of
from kdns.dns.rrset import RRset
from kdns.metrics import Gauge
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.readers import Fallthrough
from kdns.plugin.runtime import Runtime
from kdns.store.trie import Store
from kdns.turns import emptied

DEFAULT_FILE: Final = "/etc/hosts"
DEFAULT_TTL: Final = 3600
DEFAULT_RELOAD: Final = 5.0
MAX_FILE: Final = 64 << 20  # octets; block lists have some 5 MB

ENTRIES: Final = Gauge("coredns_hosts_entries", "The combined number of entries in hosts and Corefile.", ("hostsfile",))
RELOADED: Final = Gauge("coredns_hosts_reload_timestamp_seconds", "The timestamp of the last reload of hosts file.")

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
        self.seen: tuple[int, int] | None = None
        self.lines: list[str] = []
        self.complaint = ""
        self.store = Store()
        self.validity = Validity()  # of all that the store says
        self.limit: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL
        self.task: asyncio.Task[None] | None = None

    # Life.

    def load(self, block: BlockInfo) -> None:
        self.limit = block.ttl_limit
        self.path = block.path(self.config.path)
        self._look()
        self._build()

    async def start(self, runtime: Runtime) -> None:
        if self.config.reload:
            self.task = asyncio.create_task(faults.supervise("plugin/hosts", self._follow), name="hosts")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
        await emptied(self.store)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload)
            if await asyncio.to_thread(self._look):
                await self._rebuild()

    def _look(self) -> bool:
        """Reads the file if it has changed; says whether there are new lines. What cannot be read keeps what there
        is.
        """
        try:
            stat = os.stat(self.path)
            seen = (stat.st_mtime_ns, stat.st_size)
            if seen == self.seen:
                return False
            with open(self.path, encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_FILE)
        except OSError as error:
            self._complain(f"{self.path}: {error.strerror or error}; what was read before is kept")
            return False
        self.seen = seen
        self.complaint = ""
        self.lines = text.splitlines()
        RELOADED.slot()[0] = stat.st_mtime
        return True

    def _complain(self, text: str) -> None:
        if text != self.complaint:
            self.complaint = text
            _log.warning(text)

    def _build(self) -> None:
        store = Store()
        for _ in self._fill(store):
            pass
        self._use(store)

    async def _rebuild(self) -> None:
        store = Store()
        for _ in self._fill(store):
            await asyncio.sleep(0)
        old = self.store
        self._use(store)
        await emptied(old)

    def _use(self, store: Store) -> None:
        self.store = store
        self.validity.end()
        self.validity = Validity()

    def _fill(self, store: Store) -> Iterable[None]:
        """Puts the file's lines and then the Corefile's into a store; yields where others may run."""
        config = self.config
        names: dict[tuple[bytes, int], list[bytes]] = {}
        pointers: dict[bytes, list[bytes]] = {}
        count = 0
        for number, line in enumerate((*self.lines, *config.inline)):
            if number % 500 == 499:
                yield
            address, hosts = read_line(line)
            if address is None:
                continue
            rtype = iana.A if len(address) == 4 else iana.AAAA
            for host in hosts:
                if closest(host, config.zones) is None:
                    continue
                names.setdefault((host, rtype), []).append(address)
                if host.startswith(b"\x01*"):
                    continue
                count += 1  # as CoreDNS counts: names and reverse names, wildcards not
                if config.reverse:
                    pointers.setdefault(address, []).append(host)
                    count += 1
        for number, ((host, rtype), addresses) in enumerate(names.items()):
            store.put(RRset(host, rtype, min(config.ttl, self.limit(host, False)), tuple(dict.fromkeys(addresses))))
            if number % 200 == 199:
                yield
        for address, hosts in pointers.items():
            owner = name_of(address)
            store.put(RRset(owner, iana.PTR, min(config.ttl, self.limit(owner, False)), tuple(dict.fromkeys(hosts))))
        ENTRIES.slot(config.path)[0] = count

    # Queries.

    def handle(self, request: Request) -> Outcome | None:
        question = request.question
        name, qtype = question.name, question.type
        if question.cls != iana.IN and question.cls != iana.ANY:
            return None
        config = self.config
        request.depends_on(self.validity)
        if qtype == iana.PTR:
            node = self.store.get(name)
            pointer = node.rrset(iana.PTR) if node is not None else None
            return None if pointer is None else Answer(iana.NOERROR, iana.AA, (pointer,), local=True, validity=ALWAYS)
        if closest(name, config.zones) is None:
            return None
        found = self._rrset(name, qtype)
        if found is not None:
            return Answer(iana.NOERROR, iana.AA, (found,), local=True, validity=ALWAYS)
        if any(self._rrset(name, family) is not None for family in (iana.A, iana.AAAA)):
            if config.unsupported and qtype not in (iana.A, iana.AAAA) and config.fallthrough.falls_through(name):
                return None
            return Answer(iana.NOERROR, iana.AA, local=True, validity=ALWAYS)
        if config.fallthrough.falls_through(name):
            return None
        return RcodeOnly(iana.SERVFAIL)

    def _rrset(self, name: bytes, qtype: int) -> RRset | None:
        """The addresses of a name, or of the wildcard one label above, under the name asked."""
        if qtype not in (iana.A, iana.AAAA):
            return None
        for owner in (name, b"\x01*" + parent(name)):
            node = self.store.get(owner)
            found = node.rrset(qtype) if node is not None else None
            if found is not None:
                return found._replace(owner=name)
        return None


def read_line(line: str) -> tuple[bytes | None, list[bytes]]:
    """The packed address and the names of a line; (None, []) for a comment or what cannot be read."""
    words = line.partition("#")[0].split()
    if len(words) < 2:
        return None, []
    try:
        address = unmapped(ipaddress.ip_address(words[0].partition("%")[0]).packed)
    except ValueError:
        return None, []
    names = []
    for word in words[1:]:
        try:
            names.append(from_text(word).lower())
        except BadName:
            continue
    return address, names
