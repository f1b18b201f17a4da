"""A zone that clients change: its version in memory, its file, its journal, and the queue of updates.

Laws: no update is acknowledged before it is on the disk; what waits is bounded, in all and for each key; queries never
wait for updates. Updates that come together are stored by one write (a sync takes milliseconds, whatever it syncs);
where that fails, all of them are told so, for what one saw another may have made. A write that hangs has failed; until
it ends nothing else touches the journal, and the next update begins with the zone's file written anew.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, NamedTuple, TypeVar

from kdns import faults, files, log
from kdns.dns import edns, iana
from kdns.dns.errors import FormatError
from kdns.dns.name import to_text
from kdns.plugin.outcome import Outcome, Pending, RcodeOnly
from kdns.plugin.zones import NOT_READY
from kdns.plugins.dynupdate.draft import Draft, Limits, Permission, Refusal, Sets, size_of
from kdns.plugins.dynupdate.journal import Damaged, Frame, Journal, packed
from kdns.plugins.dynupdate.message import Update, read
from kdns.store.zone import Zone
from kdns.store.zone_builder import BadZone, ZoneBuilder
from kdns.store.zone_diff import of_name
from kdns.store.zone_transfer import changed
from kdns.timeslice import TimeSlice
from kdns.zonefile.history import Changes, History, released
from kdns.zonefile.load import READING, BrokenZone, read_beside
from kdns.zonefile.write import WRITING, save

T = TypeVar("T")

QUEUE: Final = 256  # updates that wait; at 64 KB each 16 MB, and a second or so of work
OF_KEY: Final = 128  # of one key, so that no client takes all places
BATCH: Final = 64  # updates of one write
LATE: Final = 10.0  # seconds: an update that waited longer is not done, for its client was told SERVFAIL (after 12)
# Octets of the journal at which it is put into the zone's file; twice the zone's, if that is more.
FOLD: Final = 1 << 20
_HEAD: Final = "kdns dynupdate"

_log = log.plugin("dynupdate")


class BadStore(Exception):
    """Files that cannot be used, and what to do."""


class _Waiting(NamedTuple):
    data: bytes
    end: int
    key: bytes
    allowed: list[Permission]
    limits: Limits
    at: float
    pending: Pending


class DynamicZone:
    """A zone and its store. A resource: started once, shared by the configurations that have it."""

    def __init__(self, origin: bytes, path: str, seed: Zone | None) -> None:
        """`seed` is what the zone begins as where there is no file of its own yet."""
        self.origin = origin
        self.path = path
        self.seed = seed
        self.journal = Journal(path + ".journal")
        self.current: Zone | None = None
        self.records = 0
        self.octets = 0
        self.number = 0  # of the last frame
        self.broken = False  # a write has failed: nobody knows what the journal holds
        self.history = History()
        self.on_change: list[Callable[[DynamicZone], None]] = []
        self.queue: deque[_Waiting] = deque()
        self.of_key: dict[bytes, int] = {}
        self.woken = asyncio.Event()
        self.stopping = False
        self.task: asyncio.Task[None] | None = None
        self.releases: set[asyncio.Task[None]] = set()

    @property
    def zone(self) -> Zone | None:
        """What is served."""
        return self.current

    @property
    def failure(self) -> tuple[int, str]:
        """Why nothing is."""
        return NOT_READY, f"zone {to_text(self.origin)} is not loaded"

    # Life.

    async def start(self) -> None:
        """Reads the zone's file and journal. Raises BadStore."""
        try:
            frames = await self._in_thread(self.journal.open)
        except BlockingIOError:
            raise BadStore(f"{self.journal.path}: another server uses it") from None
        except (OSError, Damaged) as error:
            self.journal.close()
            raise BadStore(_text(error, self.journal.path)) from None
        except asyncio.CancelledError:
            self.journal.close()
            raise
        try:
            await self._read(frames)
        except BaseException:
            self.journal.close()
            raise
        self.task = asyncio.create_task(faults.supervise("plugin/dynupdate", self._work), name="dynupdate")

    async def _read(self, frames: list[Frame]) -> None:
        try:
            self.number = await files.waiting(f"reading {self.path}", self._number, READING)
        except FileNotFoundError:
            if frames:
                raise BadStore(
                    f"{self.journal.path} holds updates, but {self.path} is gone: restore it, or remove the journal"
                ) from None
            if self.seed is None:
                raise BadStore(f"{self.path} is gone") from None
            await self._begin(self.seed)
            return
        except OSError as error:
            raise BadStore(_text(error, self.path)) from None
        try:
            self.current = (await read_beside(self.path, self.origin)).zone
        except (OSError, BrokenZone) as error:
            raise BadStore(_text(error, self.path)) from None
        await self._measure()
        names: dict[bytes, Sets] = {}
        for frame in frames:
            if frame.number > self.number:
                self.number = frame.number
                for owner, sets in frame.names:
                    names[owner] = {rtype: (ttl, rdatas) for rtype, ttl, rdatas in sets}
        if names:
            try:
                self.current = await _with(self.current, names)
            except BadZone as error:
                raise BadStore(_text(error, self.journal.path)) from None
            await self._measure()

    async def _begin(self, seed: Zone) -> None:
        self.current = seed
        await self._measure()
        try:
            await save(self.path, seed, self._head())
        except OSError as error:
            raise BadStore(_text(error, self.path)) from None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """What a method of the journal gives. While one hangs none is begun: they would meet in the file. Raises
        OSError.
        """
        return await files.waiting(f"using the journal {self.journal.path}", call, WRITING)

    def _number(self) -> int:
        """Up to which frame the zone's file has them. Raises OSError, BadStore."""
        files.check_regular(self.path)
        with open(self.path, encoding="utf-8", errors="replace") as file:
            head = file.readline(1024).rstrip("\n")
        words = head.removeprefix("; ").removeprefix(_HEAD).split()
        if not head.startswith(f"; {_HEAD} ") or len(words) != 2 or not words[1].isdigit():
            raise BadStore(f"{self.path}: not written by dynupdate: it must not be a file that something else writes")
        if words[0] != to_text(self.origin):
            raise BadStore(f"{self.path}: holds the zone {words[0]}, not {to_text(self.origin)}")
        return int(words[1])

    def _head(self) -> str:
        return f"{_HEAD} {to_text(self.origin)} {self.number}"

    async def _measure(self) -> None:
        assert self.current is not None
        turn = TimeSlice()
        records = octets = 0
        for i, (name, node) in enumerate(self.current.nodes.items()):
            more = size_of(name, {rrset.type: (rrset.ttl, rrset.rdatas) for rrset in node.rrsets})
            records += more[0]
            octets += more[1]
            if i % 64 == 63:
                await turn.pause()
        self.records, self.octets = records, octets

    async def stop(self) -> None:
        """Ends what is being stored, refuses what waits, and puts the journal into the zone's file."""
        self.stopping = True
        self.woken.set()
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)
        while self.queue:
            self._take().pending.resolve(_failed("the server is stopped"))
        for task in self.releases:
            task.cancel()
        await asyncio.gather(*self.releases, return_exceptions=True)
        if self.journal.size or self.broken:
            await self._try_fold()
        self.journal.close()

    # Updates.

    def submit(self, data: bytes, end: int, key: bytes, allowed: list[Permission], limits: Limits) -> Outcome | Pending:
        """Takes the update of a message whose zone section ends at `end`."""
        if self.stopping:
            return _failed("the server is stopped")
        if len(self.queue) >= QUEUE or self.of_key.get(key, 0) >= OF_KEY:
            return _failed("too many updates wait")
        pending = Pending()
        self.queue.append(_Waiting(data, end, key, allowed, limits, monotonic(), pending))
        self.of_key[key] = self.of_key.get(key, 0) + 1
        self.woken.set()
        return pending

    def _take(self) -> _Waiting:
        waiting = self.queue.popleft()
        left = self.of_key[waiting.key] - 1
        if left:
            self.of_key[waiting.key] = left
        else:
            del self.of_key[waiting.key]
        return waiting

    async def _work(self) -> None:
        while not self.stopping:
            await self.woken.wait()
            self.woken.clear()
            while self.queue and not self.stopping:
                batch = [self._take() for _ in range(min(BATCH, len(self.queue)))]
                outcomes: list[Outcome] = []
                try:
                    outcomes = await self._do(batch)
                finally:
                    for i, waiting in enumerate(batch):
                        waiting.pending.resolve(outcomes[i] if outcomes else _failed("the update has failed"))
                if self.journal.size > max(FOLD, 2 * self.octets):
                    await self._try_fold()

    async def _do(self, batch: list[_Waiting]) -> list[Outcome]:
        """The outcomes of updates that came together."""
        assert self.current is not None
        draft = Draft(self.current, self.records, self.octets)
        names: dict[bytes, Sets] = {}
        outcomes: list[Outcome] = []
        turn = TimeSlice()
        for waiting in batch:
            if monotonic() - waiting.at > LATE:
                outcomes.append(_failed("the update waited too long"))
                continue
            update = Update([], [])
            try:
                for _ in read(waiting.data, waiting.end, update):
                    await turn.pause()
                for _ in draft.apply(update, waiting.allowed, waiting.limits, names):
                    await turn.pause()
                outcomes.append(RcodeOnly(iana.NOERROR))
            except FormatError:
                outcomes.append(RcodeOnly(iana.FORMERR))
            except Refusal as error:
                options = (
                    edns.extended_error(edns.PROHIBITED, str(error).encode()) if error.rcode == iana.REFUSED else b""
                )
                outcomes.append(RcodeOnly(error.rcode, options=options))
            await turn.pause()
        if names:
            try:
                await self._commit(draft, names)
            except (OSError, BadZone) as error:
                _log.error(f"Failed to store an update of zone {to_text(self.origin)}: {_text(error, self.path)}")
                return [_failed("the update could not be stored")] * len(batch)
        return outcomes

    async def _commit(self, draft: Draft, names: dict[bytes, Sets]) -> None:
        """Stores names, then serves them. Raises OSError."""
        old = self.current
        assert old is not None
        if self.broken:
            await self._fold()
        zone = await _with(old, names)
        self.number += 1
        content = [
            (name, [(rtype, ttl, rdatas) for rtype, (ttl, rdatas) in sets.items()]) for name, sets in names.items()
        ]
        try:
            await self._in_thread(partial(self.journal.append, packed(self.number, content)))
        except OSError:
            self.broken = True
            raise
        self.current = zone
        self.records, self.octets = draft.records, draft.octets
        changes = Changes()
        changes.add(change for name in names for change in of_name(old.nodes.get(name), zone.nodes.get(name)))
        self.history.add(old, zone, changes)
        old.validity.end()
        task = asyncio.create_task(released(old), name="an old zone")
        self.releases.add(task)
        task.add_done_callback(self.releases.discard)
        for call in list(self.on_change):
            call(self)

    async def _fold(self) -> None:
        """Writes the zone's file, and begins the journal anew. Raises OSError."""
        assert self.current is not None
        await save(self.path, self.current, self._head())
        await self._in_thread(self.journal.empty)
        self.broken = False

    async def _try_fold(self) -> None:
        try:
            await self._fold()
        except OSError as error:
            _log.error(f"Failed to write {self.path}: {error.strerror or error}; the journal goes on holding updates")


async def _with(zone: Zone, names: dict[bytes, Sets]) -> Zone:
    """A zone with names changed, made in turns. Raises BadZone."""
    builder = ZoneBuilder(zone.origin)
    turn = TimeSlice()
    lists = {name: {rtype: [ttl, *rdatas] for rtype, (ttl, rdatas) in sets.items()} for name, sets in names.items()}
    for _ in changed(zone, lists, builder):
        await turn.pause()
    return builder.finish()


def _failed(why: str) -> RcodeOnly:
    return RcodeOnly(iana.SERVFAIL, why, edns.extended_error(edns.OTHER_ERROR, why.encode()))


def _text(error: Exception, path: str) -> str:
    return f"{path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
