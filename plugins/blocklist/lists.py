"""The lists of a `blocklist`: files that are followed, and the tables that are made of them."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from kdns import child, faults, log, namelist, tables, watchfile
from kdns.child import ChildFailed
from kdns.metrics import MAX, Counter, Gauge
from kdns.namelist import BadList, Builder, Hit, Request, Table
from kdns.plugins.blocklist.config import Config, File
from kdns.printable import printable

# Octets: some 10,000 lines, which take 50 ms in turns; a child process costs as much to begin.
INLINE: Final = 256 << 10
CHILD_TIMEOUT: Final = 120.0  # seconds; one million lines take ten
COREFILE: Final = "Corefile"  # the list of names that stand in it
_WILD: Final = b"\1*"

ENTRIES: Final = Gauge("kdns_blocklist_entries", "The names of a list.", ("list",), across=MAX)
RELOADED: Final = Gauge(
    "kdns_blocklist_reload_timestamp_seconds", "The timestamp of the last change of a list.", ("list",), across=MAX
)
ERRORS: Final = Counter("kdns_blocklist_reload_errors_total", "How often a list could not be read.", ("list",))

_log = log.plugin("blocklist")


class Lists:
    """The tables, in the order in which they are asked. `changed` is called when one was replaced."""

    def __init__(self, config: Config, path: Callable[[str], str], changed: Callable[[], None]) -> None:
        self.exact = config.exact
        self.reload = config.reload
        self.changed = changed
        self.files: dict[str, File] = {path(file.path): file for file in config.files}
        self.tables: dict[str, Table] = {}
        # What is asked of a name: (list, table), those of allowed names first.
        self.allowing: tuple[tuple[str, Table], ...] = ()
        self.blocking: tuple[tuple[str, Table], ...] = ()
        self.own_allowed = _inline(config.allowed, False)
        self.own = _inline(config.names, config.exact)
        paths = tuple(self.files)
        # What it calls must not hold this: that would be a cycle.
        self.follower = watchfile.Follower("lists", lambda: paths, most=namelist.MAX_FILE, keep=INLINE)
        self.found: list[watchfile.Change] = []
        self.task: asyncio.Task[None] | None = None
        self._order()

    def look(self) -> None:
        """Reads what is small. Waits."""
        self.found = self.follower.look()

    def problems(self) -> list[str]:
        """Why files could not be read when they were looked at first."""
        return [_problem(change) for change in self.found if change.error is not None]

    async def start(self) -> None:
        """Makes the tables of what was found, and follows the files."""
        found, self.found = self.found, []
        for change in found:
            if change.error is not None:
                ERRORS.slot(change.path)[0] += 1
        await self._take([change for change in found if change.error is None])
        ENTRIES.slot(COREFILE)[0] = self.own.count
        if self.reload and self.files:
            follow = partial(self.follower.follow, self.reload, self._take)
            self.task = asyncio.create_task(faults.supervise("plugin/blocklist", follow), name="blocklist")

    def stop(self) -> None:
        """Follows no more."""
        if self.task is not None:
            self.task.cancel()
            self.task = None

    def allowed(self, name: bytes, starts: Sequence[int]) -> bool:
        """True if a name is on a list of those that pass."""
        return any(table.find(name, starts) is not None for _, table in self.allowing)

    def find(self, name: bytes, starts: Sequence[int]) -> tuple[str, Hit] | None:
        """The list that says something of a name, and what."""
        for source, table in self.blocking:
            hit = table.find(name, starts)
            if hit is not None:
                return source, hit
        return None

    def _order(self) -> None:
        for allows in (True, False):
            own = self.own_allowed if allows else self.own
            tables = [(COREFILE, own)]
            tables += [
                (path, self.tables[path])
                for path, file in self.files.items()
                if file.allows == allows and path in self.tables
            ]
            chosen = tuple((source, table) for source, table in tables if table.count)
            if allows:
                self.allowing = chosen
            else:
                self.blocking = chosen

    async def _take(self, found: Sequence[watchfile.Change]) -> None:
        """Takes new states of files. What cannot be read keeps what there is."""
        for change in found:
            path = change.path
            if change.error is not None:
                ERRORS.slot(path)[0] += 1
                _log.warning(_problem(change))
                continue
            try:
                made = await self._made(path, self.files[path], change.data)
            except (ChildFailed, BadList) as error:
                ERRORS.slot(path)[0] += 1
                text = str(error)
                place, _, rest = text.removeprefix("line ").partition(": ")
                where = f"{path}:{place}: {rest}" if text.startswith("line ") else f"{path}: {text}"
                _log.warning(printable(f"{where}; what was read before is kept"))
                continue
            before = self.tables.get(path)
            self.tables[path] = made
            self._order()
            self.changed()
            self._say(path, made, before)
            ENTRIES.slot(path)[0] = made.count
            if change.seen is not None:
                RELOADED.slot(path)[0] = change.seen.changed / 1e9

    def _say(self, path: str, made: Table, before: Table | None) -> None:
        report = made.report
        if report.bad:
            lines = "1 line is" if report.bad == 1 else f"{report.bad} lines are"
            text = f"{path}:{report.first}: {lines} not understood and left out, the first of them: {report.text!r}"
            _log.warning(printable(text))
        if report.ignored:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(report.ignored.items()))
            _log.warning(f"{printable(path)}: entries that do not count here are left out: {kinds}")
        if not made.count:
            _log.warning(f"{printable(path)}: there are no names in it" + (", as there were" if before else ""))

    async def _made(self, path: str, file: File, data: bytes | None) -> Table:
        """The table of a file's text; a child process reads what is large, and policy zones."""
        given = Request(file.format, self.exact)
        if data is None or file.format == "rpz" or (file.format == "auto" and namelist.format_of(data) == "rpz"):
            encoded = msgspec.msgpack.encode(given)
            made = await child.output("kdns.namelist", path, given=encoded, timeout=CHILD_TIMEOUT)
            return Table(made)
        builder = Builder(given)
        return Table(await tables.in_turns(builder, builder.read(data)))


def _problem(change: watchfile.Change) -> str:
    error = change.error
    assert error is not None
    return printable(f"{change.path}: {error.strerror or error}; what was read before is kept")


def _inline(names: Sequence[bytes], exact: bool) -> Table:
    """The table of names in the Corefile."""
    entries = []
    for name in names:
        if name.startswith(_WILD):
            entries.append((name[2:], namelist.NOTHING, namelist.LISTED))
        else:
            entries.append((name, namelist.LISTED, namelist.NOTHING if exact else namelist.LISTED))
    return namelist.table(entries)
