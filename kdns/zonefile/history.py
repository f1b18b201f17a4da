"""The last steps that led to a zone's version: what IXFR tells (RFC 1995), bounded."""

import asyncio
import marshal
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, final

from kdns.dns.rrset import RRset
from kdns.store.zone import Zone
from kdns.store.zone_diff import Change, differences
from kdns.timeslice import TimeSlice, emptied

STEPS: Final = 16  # versions that an IXFR can begin with
MAX_CHANGES: Final = 100_000  # records of all steps; some 20 MiB
MAX_OCTETS: Final = 64 << 20  # of all steps, as they are packed: records may have 64 KiB each
RELEASE: Final = 1.0  # seconds between two looks whether anybody still reads an old version


@final
class Changes:
    """What differs between two versions; `len` is the number of records.

    It is packed: 100,000 records as objects would hold the loop for 40 ms when they are let go.
    """

    __slots__ = ("count", "octets", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0
        self.octets = 0

    def add(self, changes: Iterable[Change]) -> None:
        """Adds some, as many as may be packed at once."""
        packed = []
        for change in changes:
            packed.append([None if rrset is None else tuple(rrset) for rrset in change])
            self.count += sum([len(rrset.rdatas) for rrset in change if rrset is not None])
        if packed:
            piece = marshal.dumps(packed)
            self.octets += len(piece)
            self.pieces.append(piece)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Change]:
        for piece in self.pieces:
            for pair in marshal.loads(piece):
                yield Change(*[None if rrset is None else RRset(*rrset) for rrset in pair])


@final
class Step:
    """From a version to the next: the SOAs of both, and what changed beside them."""

    __slots__ = ("changes", "new", "old", "serial")

    def __init__(self, old: RRset, new: RRset, changes: Changes) -> None:
        self.old = old
        self.new = new
        self.changes = changes
        self.serial = int.from_bytes(old.rdatas[0][-20:-16], "big")

    @property
    def count(self) -> int:
        """Records that change."""
        return len(self.changes)


@final
class History:
    """The steps, oldest first; each begins where the one before ends. Bounded: the oldest steps go first.

    `versions` are the steps held at most.
    """

    def __init__(self, versions: int = STEPS) -> None:
        self.versions = versions
        self.steps: deque[Step] = deque()
        self.count = 0
        self.octets = 0

    def add(self, old: Zone, new: Zone, changes: Changes | None) -> None:
        """Adds a step; None where too much changed, or nothing that a serial tells: then no steps lead here."""
        self.append(None if changes is None or old.serial == new.serial else Step(old.soa, new.soa, changes))

    def append(self, step: Step | None) -> None:
        """Adds a step; None: what leads to the present version is not known."""
        if step is None:
            self.steps.clear()
            self.count = self.octets = 0
            return
        self.steps.append(step)
        self.count += step.count
        self.octets += step.changes.octets
        while len(self.steps) > self.versions or self.count > MAX_CHANGES or self.octets > MAX_OCTETS:
            gone = self.steps.popleft()
            self.count -= gone.count
            self.octets -= gone.changes.octets

    def since(self, serial: int) -> list[Step] | None:
        """The steps that lead from a serial to now; None where they are not known."""
        for i, step in enumerate(self.steps):
            if step.serial == serial:
                return list(islice(self.steps, i, None))
        return None


async def changes_of(old: Zone, new: Zone) -> Changes | None:
    """What differs, found in turns; None where it is more than a history may hold."""
    out = Changes()
    piece: list[Change] = []
    timeslice = TimeSlice()
    for i, changes in enumerate(differences(old, new)):
        piece += changes
        if i % 64 == 63:
            out.add(piece)
            piece.clear()
            if len(out) > MAX_CHANGES or out.octets > MAX_OCTETS:
                return None
            await timeslice.pause()
    out.add(piece)
    return out


async def released(zone: Zone) -> None:
    """Lets go of a version that nobody serves any more, in turns, once nobody reads it."""
    while zone.readers:
        await asyncio.sleep(RELEASE)
    await emptied(zone.nodes, zone.hashed)
    if zone.proofs is not None:
        await emptied(zone.proofs)  # hold the last names, and their nodes
