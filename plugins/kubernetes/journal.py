"""The versions of a cluster's zones, where `transfer` gives them to secondaries: serials, steps (RFC 1995), NOTIFY.

Laws: a version is never changed once it had a serial, so a transfer gives what the serial stands for, whatever changes
meanwhile. The steps between two versions are exactly what differs. Nothing is done while nothing changes, nothing at
all where no `transfer` serves the zone, and no work holds the loop for more than a slice.

Theory of operation. The journal watches the cluster beside the index. A change only notes the Service's name; at the
next full second all of them together become a version, if any record is another one: so many changes are one step, one
serial and one NOTIFY, the serial is the second it was made in, and replicas whose clocks agree make nearly the same
versions. A version is a table of immutable states, one for each Service, whose objects the cluster has made anyway; a
transfer reads a copy of the table. What differs is found state by state in slices, packed, and put into a
`kdns.zonefile.history.History` of each zone.

Where very much has changed at once (a relist with another API server, a restored backup) the steps are dropped instead:
secondaries then get the zone whole, which is about as much.

Replicas watch for themselves, so the same serial of two may stand for versions that differ by a change. Therefore
`transfer` gives steps only to those that had their version from this process (`NumbersVersions`).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar, final

from kdns import faults
from kdns.dns.rrset import RRset
from kdns.kube.cluster import ServiceState
from kdns.plugins.kubernetes.index import Index, Zone, wire_key
from kdns.store.zone_diff import Change
from kdns.timeslice import TimeSlice, emptied
from kdns.zonefile.history import Changes, History, Step

# Seconds between two versions, at least: then serials, which count versions, never run ahead of the clock they begin
# with, and a process that starts anew has a later one.
PERIOD: Final = 1.0
# Versions that an IXFR can begin with: a secondary that asks every quarter of an hour finds its own, whatever changes.
# A version of one small change takes 1 KB. What bounds records and octets is the History's.
VERSIONS: Final = 1000
# Services that a version compares: as many as change in a second of a large rollout. More are a relist, and comparing
# them would take longer than the second.
MAX_SERVICES: Final = 2000
MAX_COMPARED: Final = 50_000  # records that a version compares: a tenth of a second, in slices
_CHUNK: Final = 500  # records that are packed, and unpacked by a transfer, at once: a third of a millisecond

_serials: Final[dict[tuple[bytes, ...], int]] = {}  # the last serial of each set of zones in this process

S = TypeVar("S")


class Contents(Protocol[S]):
    """What a plugin makes of Services in its zones. All is as in the state given, but for `state`, `soa` and `head`."""

    def state(self, entry: ServiceState) -> S | None:
        """A Service as it is now, immutable; None where it has no records."""

    def soa(self, zone: Zone) -> RRset:
        """The SOA of the present version."""

    def head(self, zone: Zone, table: Mapping[bytes, S]) -> list[RRset]:
        """What there is beside the SOA and the Services' records."""

    def rrsets(self, zone: Zone, key: bytes, state: S) -> Iterator[RRset]:
        """A Service's records, the same record once."""

    def sides(
        self, zone: Zone, key: bytes, old: S | None, new: S | None
    ) -> tuple[Iterator[RRset], Iterator[RRset], Iterator[RRset]]:
        """Records of the old state, of the new one, and those that are of both though they stand in one of these. An
        RRset without records may stand wherever there has been work.
        """


@final
class Journal(Generic[S]):
    """The versions of some zones of an index. A watcher of the cluster.

    `told` is called with a zone's name when it has another version.
    """

    def __init__(
        self, index: Index, contents: Contents[S], zones: Sequence[Zone], told: Callable[[bytes], None]
    ) -> None:
        self.index = index
        self.contents = contents
        self.zones = tuple(zones)
        self.names = tuple([zone.name for zone in zones])
        self.told = told
        self.ready = False
        # The present version.
        self.serial = 0
        self.table: dict[bytes, S] = {}
        self.heads: dict[bytes, list[RRset]] = {}
        self.soas: dict[bytes, RRset] = {}
        self.histories = {zone.name: History(VERSIONS) for zone in self.zones}
        # What may be otherwise in the next one.
        self.dirty: set[bytes] = set()
        self.exposed: set[bytes] = set()  # the namespaces that are served in the present one
        self.touched = False
        self.beginning = False  # whether the first version is being made by `start`
        self.task: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Begins to watch; the first version is there if the cluster is synced, else it comes when it is."""
        self.index.cluster.watchers.append(self)
        if self.index.cluster.synced:
            self.beginning = True
            await self._begin()
            self.beginning = False
            if self.touched:
                self._touch()

    async def stop(self) -> None:
        """Ends that."""
        if self in self.index.cluster.watchers:
            self.index.cluster.watchers.remove(self)
        self.told = lambda zone: None
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
        self.ready = False
        await emptied(self.table)

    # Changes.

    def entry_changed(self, entry: ServiceState, addresses: list[bytes]) -> None:
        """A Service or its endpoints changed."""
        if not entry.imported and (key := wire_key(entry)):
            self.dirty.add(key)
            self._touch()

    def namespace_changed(self, name: str) -> None:
        """A namespace came or went."""
        self._touch()

    def pods_changed(self) -> None:
        """Pods have no records here."""

    def freshness_changed(self) -> None:
        """All was listed for the first time."""
        self._touch()

    def _touch(self) -> None:
        self.touched = True
        if self.task is None and self.index.cluster.synced and not self.beginning:
            self.task = asyncio.create_task(faults.supervise("plugin/kubernetes", self._follow), name="zone-versions")

    async def _follow(self) -> None:
        while self.touched:
            if not self.ready:
                await self._begin()
                self._tell(self.names)
                continue
            await asyncio.sleep(PERIOD - self.index.wall() % PERIOD)
            self._tell(await self._version())
        self.task = None

    def _tell(self, zones: Sequence[bytes]) -> None:
        for zone in zones:
            self.told(zone)

    # Versions.

    async def _begin(self) -> None:
        """Makes the first version."""
        index = self.index
        self.touched = False
        self.dirty.clear()
        self.exposed = set(index.exposed)
        timeslice = TimeSlice()
        for key in list(index.entries):
            self._set(self.table, key, self._state(key))
            await timeslice.pause()
        # Whatever was before a reload, it was another version.
        self.serial = _serials.get(self.names, 0)
        self._number({zone.name: self.contents.head(zone, self.table) for zone in self.zones})
        self.ready = True

    def _state(self, key: bytes) -> S | None:
        """A Service as it is now."""
        entry = self.index.entries.get(key)
        return self.contents.state(entry) if entry is not None else None

    @staticmethod
    def _set(table: dict[bytes, S], key: bytes, state: S | None) -> None:
        if state is None:
            table.pop(key, None)
        else:
            table[key] = state

    def _number(self, heads: dict[bytes, list[RRset]]) -> None:
        """Gives a version its serial: it is the present one now."""
        self.serial = max(int(self.index.wall()), self.serial + 1, self.index.serial)
        _serials[self.names] = max(self.serial, _serials.get(self.names, 0))
        self.heads = heads
        self.index.publish(self.zones, self.serial)
        self.soas = {zone.name: self.contents.soa(zone) for zone in self.zones}

    async def _version(self) -> list[bytes]:
        """Makes a version of what has changed; gives the zones that it changes."""
        self.touched = False
        dirty, self.dirty = self.dirty, set()
        try:
            await self._add_moved(dirty)
            if len(dirty) <= MAX_SERVICES:
                found = await self._compared(dirty)
                if found is not None:
                    return self._put(*found)
            return await self._replaced(dirty)
        except BaseException:
            self.dirty |= dirty
            self.touched = True
            raise

    async def _add_moved(self, dirty: set[bytes]) -> None:
        """Adds the Services of namespaces that came or went."""
        exposed = set(self.index.exposed)
        moved = exposed ^ self.exposed
        if moved:
            timeslice = TimeSlice()
            for table in (self.index.entries, self.table):
                for key in list(table):
                    if key[key[0] + 1 :] in moved:
                        dirty.add(key)
                    await timeslice.pause()
            self.exposed = exposed

    async def _compared(self, dirty: set[bytes]) -> tuple[dict[bytes, S | None], dict[bytes, Changes]] | None:
        """The states that are others now, and what that changes in each zone; None: it is too much to be found out."""
        states: dict[bytes, S | None] = {}
        changes = {zone.name: Changes() for zone in self.zones}
        timeslice = TimeSlice()
        left = MAX_COMPARED
        for key in dirty:
            old = self.table.get(key)
            new = self._state(key)
            if old != new:
                states[key] = new
                for zone in self.zones:
                    left = await self._differences(self.contents.sides(zone, key, old, new), changes[zone.name], left)
                    if left < 0:
                        return None
            await timeslice.pause()
        return states, changes

    async def _differences(self, sides: tuple[Iterator[RRset], ...], out: Changes, left: int) -> int:
        """Adds what differs between a Service's states; gives how many records may still be compared."""
        timeslice = TimeSlice()
        found: list[dict[RRset, dict[bytes, None]]] = []
        for side in sides:
            sets: dict[RRset, dict[bytes, None]] = {}
            for rrset in side:
                sets.setdefault(rrset._replace(rdatas=()), {}).update(dict.fromkeys(rrset.rdatas))
                left -= len(rrset.rdatas)
                if left < 0:
                    return left
                await timeslice.pause()
            found.append(sets)
        before, after, kept = found
        nothing: dict[bytes, None] = {}
        for bare in {**before, **after}:
            had, has, both = before.get(bare, nothing), after.get(bare, nothing), kept.get(bare, nothing)
            for change in _changes(bare, had, has, both):
                out.add([change])
            await timeslice.pause()
        return left

    def _put(self, states: dict[bytes, S | None], changes: dict[bytes, Changes]) -> list[bytes]:
        """Makes the present version of what was found to differ from the one before."""
        for key, state in states.items():
            self._set(self.table, key, state)
        heads = {}
        for zone in self.zones:
            head = heads[zone.name] = self.contents.head(zone, self.table)
            before, after = _bare(self.heads[zone.name]), _bare(head)
            for bare in {**before, **after}:
                changes[zone.name].add(_changes(bare, before.get(bare, {}), after.get(bare, {}), {}))
        changed = [zone.name for zone in self.zones if len(changes[zone.name])]
        if changed:
            olds = self.soas
            self._number(heads)
            for zone in self.zones:
                step = Step(olds[zone.name], self.soas[zone.name], changes[zone.name])
                self.histories[zone.name].append(step)
        return changed

    async def _replaced(self, dirty: set[bytes]) -> list[bytes]:
        """Makes a version without finding out what differs: no steps lead to it."""
        table = self.table.copy()
        timeslice = TimeSlice()
        for key in dirty:
            self._set(table, key, self._state(key))
            await timeslice.pause()
        self.table, old = table, self.table
        for history in self.histories.values():
            history.append(None)
        self._number({zone.name: self.contents.head(zone, table) for zone in self.zones})
        await emptied(old)
        return list(self.names)

    # Transfers.

    def whole(self, name: bytes) -> Iterator[RRset] | None:
        """All records of a zone's present version, the SOA first; None where there is none yet."""
        zone = next((zone for zone in self.zones if zone.name == name), None)
        if zone is None or not self.ready:
            return None
        return self._whole(zone, [self.soas[name], *self.heads[name]], self.table.copy())

    def _whole(self, zone: Zone, first: list[RRset], table: dict[bytes, S]) -> Iterator[RRset]:
        yield from first
        for key, state in table.items():
            yield from self.contents.rrsets(zone, key, state)

    def since(self, zone: bytes, serial: int) -> list[Step] | None:
        """The steps from a version of a zone to the present one; None where they are not known."""
        history = self.histories.get(zone)
        return history.since(serial) if history is not None else None


def _bare(rrsets: list[RRset]) -> dict[RRset, dict[bytes, None]]:
    """The records of RRsets, by all that they have in common."""
    out: dict[RRset, dict[bytes, None]] = {}
    for rrset in rrsets:
        out.setdefault(rrset._replace(rdatas=()), {}).update(dict.fromkeys(rrset.rdatas))
    return out


def _changes(bare: RRset, had: dict[bytes, None], has: dict[bytes, None], both: dict[bytes, None]) -> Iterator[Change]:
    """What goes and comes, in pieces."""
    gone = tuple([data for data in had if data not in has and data not in both])
    come = tuple([data for data in has if data not in had and data not in both])
    for i in range(0, max(len(gone), len(come)), _CHUNK):
        parts = [bare._replace(rdatas=datas[i : i + _CHUNK]) if len(datas) > i else None for datas in (gone, come)]
        yield Change(parts[0], parts[1])
