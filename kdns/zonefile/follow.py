"""A zone file that is served: read, followed, and replaced whole by its next version.

Laws: what is broken or gone keeps the last good version, and one line says what is wrong with it; a new version is put
in the old one's place at once, which ends what was rendered from the old one; a file is read when it has looked the
same twice, so that one half written is not taken for a short one.

One object stands for a file and a zone however many configurations use it, so a reload of the Corefile reads no zone
again.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from kdns import log
from kdns.dns.name import to_text
from kdns.store.zone import Zone
from kdns.timeslice import emptied
from kdns.zonefile.history import History, changes_of, released
from kdns.zonefile.load import BrokenZone, Loaded, read_beside, read_paced
from kdns.zonefile.reader import Seen, look_at

SETTLE: Final = 0.1  # seconds a file must look the same before it is read

Changed = Callable[["ZoneFile"], None]


class ZoneFile:
    """A zone's file, its current version, and the last steps that led to it. `plugin` is the name its log lines begin
    with.
    """

    def __init__(self, path: str, origin: bytes, plugin: str) -> None:
        self.path = path
        self.origin = origin
        self.log = log.plugin(plugin)
        self.zone: Zone | None = None
        self.history = History()
        self.seen: list[Seen] = [Seen(path, None)]
        self.by_mtime = False  # whether a version with the same serial is taken
        self.on_change: list[Changed] = []
        self.complaint = ""
        self.looking = False
        self.releases: set[asyncio.Task[None]] = set()

    # Reading.

    def load(self) -> None:
        """Reads the file for the first time; may run in a thread. Raises BrokenZone or OSError."""
        if self.zone is None:
            self._use(read_paced(self.path, self.origin))

    def changed(self) -> bool:
        """Whether any of the zone's files looks otherwise than when it was read."""
        return any(look_at(each.path) != each.look for each in self.seen)

    def _looks(self) -> list[tuple[int, int, int] | None]:
        return [look_at(each.path) for each in self.seen]

    async def look(self) -> bool:
        """Reads the file if it has changed; says whether there is another version."""
        if self.looking:
            return False
        self.looking = True
        try:
            # In a thread: a file system that hangs holds nobody.
            if self.zone is not None and not await asyncio.to_thread(self.changed):
                return False
            return await self._read()
        finally:
            self.looking = False

    async def _read(self) -> bool:
        if self.zone is not None:
            before = await asyncio.to_thread(self._looks)
            await asyncio.sleep(SETTLE)
            if before != await asyncio.to_thread(self._looks):
                return False  # it is being written
        kept = "; the last good version is served" if self.zone is not None else ""
        try:
            loaded = await read_beside(self.path, self.origin)
        except BrokenZone as error:
            self._complain(f"Parsing zone {self._name}: {error}{kept}")
            if self.zone is not None:
                self.seen = error.seen or self.seen
            return False
        except OSError as error:
            self._complain(f'Failed to open zone {self._name} in "{self.path}": {error.strerror or error}{kept}')
            return False
        self.complaint = ""
        old = self.zone
        if old is None:
            self._use(loaded)
            self._say(loaded)
            return True
        changes = await changes_of(old, loaded.zone)
        if loaded.zone.serial == old.serial and loaded.zone.soa == old.soa and changes is not None and not changes:
            self.seen = loaded.seen  # touched, not edited
            await emptied(loaded.zone.nodes)
            return False
        if loaded.zone.serial == old.serial and not self.by_mtime:
            self.seen = loaded.seen
            self.log.warning(
                f'zone {self._name}: "{self.path}" has changed, but its SOA serial is still {old.serial}: it is not '
                f"taken. "
                "Raise the serial, or say reload_by_mtime"
            )
            await emptied(loaded.zone.nodes)
            return False
        if (loaded.zone.serial - old.serial) & 0xFFFFFFFF >= 1 << 31:
            self.log.warning(
                f"zone {self._name}: serial {loaded.zone.serial} is older than {old.serial} (RFC 1982): secondaries "
                f"will not take it"
            )
        self.history.add(old, loaded.zone, changes)
        self._use(loaded)
        self._say(loaded)
        self._release(old)
        return True

    def _use(self, loaded: Loaded) -> None:
        for problem in loaded.warnings:
            self.log.warning(str(problem))
        old, self.zone = self.zone, loaded.zone
        self.seen = loaded.seen
        if old is not None:
            old.validity.end()
        for call in list(self.on_change):
            call(self)

    def _say(self, loaded: Loaded) -> None:
        self.log.info(f'Successfully reloaded zone {self._name} in "{self.path}" with {loaded.zone.serial} SOA serial')

    def _release(self, old: Zone) -> None:
        task = asyncio.get_running_loop().create_task(released(old), name="an old zone")
        self.releases.add(task)
        task.add_done_callback(self.releases.discard)

    def _complain(self, text: str) -> None:
        if text != self.complaint:
            self.complaint = text
            self.log.warning(text)

    @property
    def _name(self) -> str:
        return f'"{to_text(self.origin)}"'


_files: Final[WeakValueDictionary[tuple[str, bytes, str], ZoneFile]] = WeakValueDictionary()


def zone_file(path: str, origin: bytes, plugin: str) -> ZoneFile:
    """The object that stands for a file and a zone; the same one while anybody uses it."""
    key = (path, origin, plugin)
    known = _files.get(key)
    if known is None:
        known = _files[key] = ZoneFile(path, origin, plugin)
    return known


async def written(path: str) -> None:
    """Looks at once at a file that this process has just written, whoever serves it."""
    where = os.path.realpath(path)
    for file in [file for file in _files.values() if os.path.realpath(file.path) == where]:
        await file.look()
