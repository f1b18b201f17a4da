"""file - serves zones from master files.

Answers as the authority of zones whose records stand in files (RFC 1035, section 5): wildcards, delegations, DNAME,
signed zones (NSEC and NSEC3) as they are.

## Syntax

    file DBFILE [ZONES...] {
        reload DURATION
        reload_by_mtime
        fallthrough [ZONES...]
    }

* DBFILE is the master file; a relative path begins at `root`. It may hold $ORIGIN, $TTL, $INCLUDE and $GENERATE.
* ZONES are the zones it is read for; the block's if there are none. The directive may be given several times; of two
  for one zone the later counts.
* `reload` is how often the file is looked at. A version whose SOA serial differs takes the place of the old one.
  Default: 1m, 0 never.
* `reload_by_mtime` also takes a version with the same serial. Without it a file that was edited and kept its serial is
  named in a warning and not taken, since secondaries would never see it.
* `fallthrough` passes names that are not in the zone on to the next plugin.

A file that is broken at the start is an error; one that is missing is waited for (an error with `reload 0`), and its
zone is SERVFAIL until it is there. A file that breaks later keeps its last good version. `kdns zone FILE` checks one by
hand.

A CNAME that leads out of the zone is looked up by the whole server, and its records are added.

## Examples

~~~ corefile
example.org:1053 {
    file db.example.org {
        reload 30s
    }
    errors
}
~~~
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from kdns import faults, log
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.corefile.errors import Position
from kdns.dns import iana
from kdns.dns.name import to_text
from kdns.plugin import Outcome, RcodeOnly, Request, readers, zones
from kdns.plugin.base import BlockInfo, overrides
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import Notifies
from kdns.plugin.readers import Fallthrough
from kdns.plugin.runtime import Runtime
from kdns.store.zone import Zone
from kdns.zonefile.follow import ZoneFile, zone_file
from kdns.zonefile.history import History
from kdns.zonefile.load import BrokenZone

DEFAULT_RELOAD: Final = 60.0
RETRY: Final = 10.0  # seconds between looks for a file that is not there yet

_OPTIONS: Final = ("reload", "reload_by_mtime", "fallthrough", "upstream")
_log = log.plugin("file")


@dataclass(frozen=True, slots=True)
class Config:
    """One directive: a file, its zones as wire names, seconds between looks."""

    path: str
    zones: tuple[bytes, ...]
    at: Position
    reload: float = DEFAULT_RELOAD
    by_mtime: bool = False
    fallthrough: Fallthrough = field(default_factory=Fallthrough)


class _Served:
    """A zone and how it is configured."""

    def __init__(self, file: ZoneFile, config: Config) -> None:
        self.file = file
        self.config = config

    @property
    def zone(self) -> Zone | None:
        return self.file.zone

    @property
    def history(self) -> History:
        return self.file.history

    @property
    def failure(self) -> tuple[int, str]:
        return zones.NOT_READY, f"zone {to_text(self.file.origin)} is not loaded"


class File(zones.ServesZones):
    """Answers from master files."""

    name: ClassVar[str] = "file"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Config, ...]]:
        return [tuple(_config(directive, block) for directive in directives)]

    def __init__(self, config: tuple[Config, ...]) -> None:
        super().__init__(config)
        self.config: tuple[Config, ...] = config
        self.served: dict[bytes, _Served] = {}
        self.last = False
        self.notifiers: list[Notifies] = []
        self.tasks: list[asyncio.Task[None]] = []

    # Life.

    def load(self, block: BlockInfo) -> None:
        for config in self.config:
            path = block.path(config.path)
            for origin in config.zones:
                self.served[origin] = _Served(zone_file(path, origin, "file"), config)
        for origin, served in self.served.items():
            config = served.config
            try:
                served.file.load()
            except BrokenZone as error:
                raise CorefileError(config.at, f"file: zone {to_text(origin)}: {error}") from None
            except OSError as error:
                text = f"{served.file.path}: {error.strerror or error}"
                if not config.reload:
                    raise CorefileError(config.at, f"file: zone {to_text(origin)}: {text}") from None
                _log.warning(
                    f"Failed to open {text}: trying again in {readers.duration_text(min(config.reload, RETRY))}"
                )

    def wire(self, block: BlockInfo) -> None:
        self.notifiers = block.all(Notifies)
        self.last = not any(overrides(plugin, "handle") for plugin in block.plugins[self.position + 1 :])

    async def start(self, runtime: Runtime) -> None:
        for served in self.served.values():
            served.file.by_mtime = served.config.by_mtime
            served.file.on_change.append(self._changed)
            if served.config.reload:
                follow = faults.supervise("plugin/file", lambda served=served: _follow(served))  # type: ignore[misc]
                self.tasks.append(asyncio.create_task(follow, name="file"))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        for served in self.served.values():
            if self._changed in served.file.on_change:
                served.file.on_change.remove(self._changed)
        self.notifiers = []

    # Queries.

    def handle(self, request: Request) -> Outcome | Pending | None:
        question = request.question
        if question.cls != iana.IN and question.cls != iana.ANY:
            return None
        served = zones.find(question.name, question.type, self.served)
        if served is None:
            # An authority that is asked for what it has not, and has nobody to ask (RFC 1035, section 4.1.1).
            return RcodeOnly(iana.REFUSED) if self.last else None
        return zones.respond(request, served, served.config.fallthrough)

    def _changed(self, file: ZoneFile) -> None:
        for each in self.notifiers:
            each.notify(file.origin)


async def _follow(served: _Served) -> None:
    config = served.config
    while True:
        await served.file.look()
        await asyncio.sleep(config.reload if served.zone is not None else min(config.reload, RETRY))


def _config(directive: Directive, block: ServerBlock) -> Config:
    readers.arguments(directive, 1, None, "a file")
    reload, by_mtime, fallthrough = DEFAULT_RELOAD, False, Fallthrough()
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "reload":
            reload = readers.seconds(readers.one(line, "a duration"))
        elif name == "reload_by_mtime":
            readers.arguments(line, 0, 0)
            by_mtime = True
        elif name == "fallthrough":
            fallthrough = Fallthrough.parse(line)
        elif name != "upstream":  # CoreDNS takes it and does nothing
            raise readers.unknown(line, _OPTIONS)
    path = directive.args[0]
    return Config(path.text, readers.zone_names(directive.args[1:], block), path.at, reload, by_mtime, fallthrough)
