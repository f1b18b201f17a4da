r"""auto - serves the zones whose master files lie in a folder.

## Syntax

    auto [ZONES...] {
        directory DIR [REGEX TEMPLATE]
        reload DURATION
        reload_by_mtime
    }

* ZONES are the zones it answers for, and those below them; the block's if there are none. Files of other zones are left
  alone.
* `directory` is the folder; it is searched at any depth, in order of names; links to files are followed, links to
  folders are not, and what begins with two dots is passed over (a mounted ConfigMap holds its files twice). REGEX (RE2)
  is searched in a file's name, TEMPLATE says which zone such a file holds: `{1}` is the first group. Default:
  `db\.(.*)` and `{1}`, so `db.example.org` holds example.org. Of several files for a zone the first one counts.
  Required.
* `reload` is how often the folder and its files are looked at. Default: 1m, 0 never.
* `reload_by_mtime` also takes a version of a file whose SOA serial did not change.

What a file says is served as the plugin `file` serves it. A file that is broken is named in a warning and left out;
once it was served, its last good version stays.

## Examples

~~~ corefile
.:1053 {
    auto example.org {
        directory zones
        reload 30s
    }
    whoami
}
~~~
"""

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from kdns import faults, files, log
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.errors import BadName
from kdns.dns.name import closest, from_text, to_text
from kdns.plugin import Outcome, RcodeOnly, Request, readers, zones
from kdns.plugin.base import BlockInfo, overrides
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import Notifies
from kdns.plugin.readers import Fallthrough
from kdns.plugin.runtime import Runtime
from kdns.regex import compile_regex
from kdns.store.zone import Zone
from kdns.timeslice import TimeSlice
from kdns.zonefile.follow import ZoneFile, zone_file
from kdns.zonefile.history import History
from kdns.zonefile.load import BrokenZone

DEFAULT_RELOAD: Final = 60.0
MAX_FILES: Final = 100_000  # in the folder; a look at so many takes half a second, in turns
LOOKING: Final = 30.0  # seconds for a look; a file system that needs longer hangs
MAX_REGEX: Final = 10_000  # characters (CoreDNS's)

_OPTIONS: Final = ("directory", "reload", "reload_by_mtime", "upstream")
_PLACE: Final = re.compile(r"\{([0-9]+|[A-Za-z_][A-Za-z0-9_]*)\}")
_log = log.plugin("auto")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of the directive; `pattern` is a compiled expression, `reload` in seconds."""

    zones: tuple[bytes, ...]
    directory: str
    pattern: Any
    template: str
    reload: float = DEFAULT_RELOAD
    by_mtime: bool = False


class _Served:
    """A zone that a file of the folder holds."""

    def __init__(self, file: ZoneFile) -> None:
        self.file = file

    @property
    def zone(self) -> Zone | None:
        return self.file.zone

    @property
    def history(self) -> History:
        return self.file.history

    @property
    def failure(self) -> tuple[int, str]:
        return zones.NOT_READY, f"zone {to_text(self.file.origin)} is not loaded"


class Auto(zones.ServesZones):
    """Answers from the master files of a folder."""

    name: ClassVar[str] = "auto"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return [_config(directives[-1], block)]  # as CoreDNS: the last one counts

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.directory = config.directory
        self.served: dict[bytes, _Served] = {}
        self.known = zones.Known()
        self.complaints: set[str] = set()
        self.last = False
        self.notifiers: list[Notifies] = []
        self.task: asyncio.Task[None] | None = None

    # Life.

    def load(self, block: BlockInfo) -> None:
        self.directory = block.path(self.config.directory)
        for origin, path in self._found().items():
            file = zone_file(path, origin, self.name)
            try:
                file.load()
            except (BrokenZone, OSError) as error:
                self._complain(f"Parse zone `{to_text(origin)}': {error}")
                continue
            self.served[origin] = _Served(file)

    def wire(self, block: BlockInfo) -> None:
        self.notifiers = block.all(Notifies)
        self.last = not any(overrides(plugin, "handle") for plugin in block.plugins[self.position + 1 :])

    async def start(self, runtime: Runtime) -> None:
        for served in self.served.values():
            served.file.by_mtime = self.config.by_mtime
            served.file.on_change.append(self._changed)
        if self.config.reload:
            self.task = asyncio.create_task(faults.supervise("plugin/auto", self._follow), name="auto")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
        for served in self.served.values():
            self._leave(served)
        self.notifiers = []

    def _leave(self, served: _Served) -> None:
        if self._changed in served.file.on_change:
            served.file.on_change.remove(self._changed)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload)
            await self.look()

    async def look(self) -> None:
        """Takes in new files, lets go of those that have gone, and reads again what has changed."""
        try:
            found = await files.waiting(f"looking at folder {self.directory}", self._found, LOOKING)
        except OSError as error:
            self._complain(f"{error.strerror or error}; its zones stay as they are")
            return
        for origin in [origin for origin in self.served if origin not in found]:
            _log.info(f"Deleting zone `{to_text(origin)}'")
            gone = self.served.pop(origin)
            self._leave(gone)
            self.known.changed()
            if gone.zone is not None:
                gone.zone.validity.end()
        timeslice = TimeSlice()
        for origin, path in found.items():
            await timeslice.pause()
            served = self.served.get(origin)
            if served is not None and served.file.path == path:
                await served.file.look()
                continue
            file = zone_file(path, origin, self.name)
            file.by_mtime = self.config.by_mtime
            await file.look()
            if file.zone is None or origin in self.served:
                continue
            _log.info(f"Inserting zone `{to_text(origin)}' from: {path}")
            self.served[origin] = _Served(file)
            file.on_change.append(self._changed)
            self.known.changed()
            self._changed(file)

    def _found(self) -> dict[bytes, str]:
        """The zones that the folder's files hold, and which file each."""
        out: dict[bytes, str] = {}
        if not os.path.isdir(self.directory):
            self._complain(f"Directory does not exist: {self.directory}")
            return out
        for path in _files(self.directory):
            origin = _origin(self.config, os.path.basename(path))
            if origin is None or closest(origin, self.config.zones) is None:
                continue
            if origin in out:
                self._complain(
                    f"Multiple zone files match origin {to_text(origin)!r}: using {out[origin]!r} instead of {path!r}"
                )
                continue
            out[origin] = path
        return out

    def _complain(self, text: str) -> None:
        if text not in self.complaints and len(self.complaints) < 1000:
            self.complaints.add(text)
            _log.warning(text)

    # Queries.

    def handle(self, request: Request) -> Outcome | Pending | None:
        question = request.question
        if question.cls != iana.IN and question.cls != iana.ANY:
            return None
        if closest(question.name, self.config.zones) is None:
            return None
        request.depends_on(self.known.validity)
        served = zones.find(question.name, question.type, self.served)
        if served is None:
            return RcodeOnly(iana.REFUSED) if self.last else None
        return zones.respond(request, served, _NEVER)

    def _changed(self, file: ZoneFile) -> None:
        for each in self.notifiers:
            each.notify(file.origin)


_NEVER: Final = Fallthrough()


def _files(folder: str) -> Iterator[str]:
    """The files below a folder, in order of names; a folder that is a link is entered only if it is the first."""
    left = MAX_FILES
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".."))
        for name in sorted(names):
            left -= 1
            if left < 0:
                return
            if not name.startswith(".."):
                yield os.path.join(where, name)


def _origin(config: Config, name: str) -> bytes | None:
    """The zone that a file of this name holds, by the template; None where it holds none."""
    found = config.pattern.search(name)
    if found is None:
        return None

    def group(place: "re.Match[str]") -> str:
        try:
            key = place[1]
            return str(found.group(int(key) if key.isdecimal() else key) or "")
        except (IndexError, KeyError):
            return place[0]

    text = _PLACE.sub(group, config.template)
    try:
        return from_text(text).lower() if text else None
    except BadName:
        return None


def _config(directive: Directive, block: ServerBlock) -> Config:
    directory, pattern, template = "", compile_regex(r"db\.(.*)"), "{1}"
    reload, by_mtime = DEFAULT_RELOAD, False
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "directory":
            readers.arguments(line, 1, 3, "a folder")
            directory = line.args[0].text
            if len(line.args) == 2:
                raise readers.fail(
                    line.args[1], "directory: REGEX needs a TEMPLATE that says which zone a file holds, such as {1}"
                )
            if len(line.args) == 3:
                if len(line.args[1].text) > MAX_REGEX:
                    raise readers.fail(line.args[1], f"a regular expression of more than {MAX_REGEX} characters")
                pattern = readers.regex(line.args[1])
                template = line.args[2].text
                if not pattern.groups:
                    raise readers.fail(line.args[1], "directory: REGEX needs a group, such as db\\.(.*)")
        elif name == "reload":
            reload = readers.seconds(readers.one(line, "a duration"))
        elif name == "reload_by_mtime":
            readers.arguments(line, 0, 0)
            by_mtime = True
        elif name != "upstream":  # CoreDNS takes it and does nothing
            raise readers.unknown(line, _OPTIONS)
    if not directory:
        raise readers.fail(directive, "auto needs `directory`: the folder where the zone files lie")
    return Config(readers.zone_names(directive.args, block), directory, pattern, template, reload, by_mtime)
