"""The last steps that led to a zone's version: what IXFR tells (RFC 1995), bounded."""

import asyncio
import marshal
from collections.abc import Iterable, Iterator
from typing import Final, final

from kdns.dns.rrset import RRset
from kdns.store.zone import Zone
from kdns.store.zone_diff import Change, differences
from kdns.timeslice import TimeSlice, emptied

STEPS: Final = 16  # versions that an IXFR can begin with
MAX_CHANGES: Final = 100_000  # records of all steps; some 20 MiB
RELEASE: Final = 1.0  # seconds between two looks whether anybody still reads an old version


@final
class Changes:
    """What differs between two versions; `len` is the number of records.

    It is packed: 100,000 records as objects would hold the loop for 40 ms when they are let go.
    """

    __slots__ = ("count", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0

    def add(self, changes: Iterable[Change]) -> None:
        """Adds some, as many as may be packed at once."""
        packed = []
        for change in changes:
            packed.append([None if rrset is None else tuple(rrset) for rrset in change])
            self.count += sum([len(rrset.rdatas) for rrset in change if rrset is not None])
        if packed:
            self.pieces.append(marshal.dumps(packed))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Change]:
        for piece in self.pieces:
            for pair in marshal.loads(piece):
                yield Change(*[None if rrset is None else RRset(*rrset) for rrset in pair])


@final
class Step:
    """From a version to the next: the SOAs of both, and what changed beside them."""

    __slots__ = ("changes", "new", "old")

    def __init__(self, old: RRset, new: RRset, changes: Changes) -> None:
        self.old = old
        self.new = new
        self.changes = changes

    @property
    def count(self) -> int:
        """Records that change."""
        return len(self.changes)


@final
class History:
    """The steps, oldest first; each begins where the one before ends."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, old: Zone, new: Zone, changes: Changes | None) -> None:
        """Adds a step; None where too much changed, or nothing that a serial tells: then no steps lead here."""
        if changes is None or old.serial == new.serial:
            self.steps.clear()
            return
        self.steps.append(Step(old.soa, new.soa, changes))
        while len(self.steps) > STEPS or sum(step.count for step in self.steps) > MAX_CHANGES:
            del self.steps[0]

    def since(self, serial: int) -> list[Step] | None:
        """The steps that lead from a serial to now; None where they are not known."""
        for i, step in enumerate(self.steps):
            if int.from_bytes(step.old.rdatas[0][-20:-16], "big") == serial:
                return self.steps[i:]
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
            if len(out) > MAX_CHANGES:
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
