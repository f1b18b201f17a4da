"""A zone file that is served: read, followed, and replaced whole by its next version.

Laws: what is broken or gone keeps the last good version, and one line says what is wrong with it; a new version is put
in the old one's place at once, which ends what was rendered from the old one. kdns.watchfile follows the zone's file
and all that it includes.

One object stands for a file and a zone however many configurations use it, so a reload of the Corefile reads no zone
again.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from kdns import log, watchfile
from kdns.dns.name import to_text
from kdns.store.zone import Zone
from kdns.zonefile.history import History, changes_of, released
from kdns.zonefile.load import BrokenZone, Loaded, read_beside, read_paced
from kdns.zonefile.reader import MAX_OCTETS, Seen

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
        self.seen: list[Seen] = []
        # The follower must not hold this object: that would be a cycle.
        self.paths = paths = [path]
        self.follower = watchfile.Follower(f"zone file {path}", lambda: tuple(paths), most=MAX_OCTETS, keep=0)
        self.by_mtime = False  # whether a version with the same serial is taken
        self.on_change: list[Changed] = []
        self.complaint = ""
        self.due = False  # whether it is read at the next look whatever it looks like: it was not read to the end
        self.looking = False
        self.taking = threading.Lock()  # held for moments: a first version may come in a thread
        self.untold = False  # whether it did, and is to be told of on the loop
        self.releases: set[asyncio.Task[None]] = set()

    # Reading.

    def load(self) -> None:
        """Reads the file for the first time; may run in a thread. Raises BrokenZone or OSError."""
        if self.zone is None:
            self._take(read_paced(self.path, self.origin), first=True)

    async def look(self) -> bool:
        """Reads the file if it has changed; says whether there is another version."""
        if self.looking:
            return False
        self.looking = True
        try:
            if self.untold:
                self._tell()
            if self.zone is not None and not self.due:
                changes = await self.follower.changes()
                hangs = [change.error for change in changes if isinstance(change.error, TimeoutError)]
                if hangs:
                    self._complain(f"{hangs[0].strerror}; the last good version of zone {self._name} is served")
                if len(hangs) == len(changes):
                    return False
            self.due = True  # until it was: whoever reads it may be given up on the way
            return await self._read()
        finally:
            self.looking = False

    async def _read(self) -> bool:
        kept = "; the last good version is served" if self.zone is not None else ""
        try:
            loaded = await read_beside(self.path, self.origin)
        except BrokenZone as error:
            self._complain(f"Parsing zone {self._name}: {error}{kept}")
            if self.zone is not None and error.seen:
                self._saw(error.seen)
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
            self._saw(loaded.seen)  # touched, not edited
            await released(loaded.zone)
            return False
        if loaded.zone.serial == old.serial and not self.by_mtime:
            self._saw(loaded.seen)
            self.log.warning(
                f'zone {self._name}: "{self.path}" has changed, but its SOA serial is still {old.serial}: it is not '
                f"taken. "
                "Raise the serial, or say reload_by_mtime"
            )
            await released(loaded.zone)
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
        self._take(loaded)
        self._tell()

    def _take(self, loaded: Loaded, *, first: bool = False) -> None:
        """Serves a version. `first`: only where there is none."""
        for problem in loaded.warnings:
            self.log.warning(str(problem))
        with self.taking:
            old = self.zone
            if first and old is not None:
                return
            self._saw(loaded.seen)
            self.zone = loaded.zone
            self.untold = first and bool(self.on_change)
        if old is not None:
            old.validity.end()

    def _tell(self) -> None:
        self.untold = False
        for call in list(self.on_change):
            call(self)

    def _saw(self, seen: list[Seen]) -> None:
        """Follows these files from what they said when they were read."""
        self.due = False
        self.seen = seen
        self.paths[:] = [each.path for each in seen]
        self.follower.resume(seen)

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
_finding: Final = threading.Lock()  # held for moments: a configuration is loaded in a thread, while another is served


def zone_file(path: str, origin: bytes, plugin: str) -> ZoneFile:
    """The object that stands for a file and a zone; the same one while anybody uses it."""
    key = (path, origin, plugin)
    with _finding:
        known = _files.get(key)
        if known is None:
            known = _files[key] = ZoneFile(path, origin, plugin)
        return known


async def written(path: str) -> None:
    """Looks at once at a file that this process has just written, whoever serves it."""
    where = os.path.realpath(path)
    for file in [file for file in _files.values() if os.path.realpath(file.path) == where]:
        await file.look()
