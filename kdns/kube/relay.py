"""The state of a cluster on its way to other processes: one process watches the API, several serve.

Laws: a change reaches every follower, the newest state of each object and no older one after it; what waits for a
follower is bounded, however slow it is: objects wait by key, and beyond LIMIT of them the whole state is sent anew,
which removes what is no longer there; a follower that begins late gets the whole state too.

Theory of operation. `Relay` takes the place of `Cluster` in the process that watches. It holds every object encoded, as
it will be sent, which takes a tenth of what `Cluster` takes. A `Follower` knows which objects its process does not have
yet, and gives them in frames when there is room. `RelayedSource` is the source in the process that serves.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, final

import msgspec

from kdns.kube.cluster import Cluster
from kdns.kube.objects import IMPORT, NAMESPACE, POD, POLICY, SERVICE, SLICE, TYPES, Object
from kdns.timeslice import emptied

# Objects of a frame: some 1 ms to apply, slices of a hundred endpoints too.
FRAME: Final = 50
# Objects that may wait for a follower by key. Beyond, all of them are sent: that is about as much work.
LIMIT: Final = 20_000
# Seconds that a source waits for the state of another process when it starts: 170,000 objects take one or two.
TIMEOUT: Final = 30.0

KINDS: Final = (NAMESPACE, SERVICE, IMPORT, SLICE, POD, POLICY)
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final[dict[str, Callable[[bytes], Any]]] = {
    kind: msgspec.msgpack.Decoder(cls).decode for kind, cls in TYPES.items()
}
# kind, key, encoded object (None: it has gone)
Row = tuple[str, str, bytes | None]
# What happens, and rows: BEGIN and END stand around a whole state; STATE has (synced, stale) in place of rows.
Frame = tuple[str, list[Any]]
BEGIN: Final = "begin"
ROWS: Final = "rows"
END: Final = "end"
STATE: Final = "state"


@final
class Relay:
    """Encoded objects by kind and key. It has what sources ask of a Cluster (`kdns.kube.source.State`)."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, bytes]] = {kind: {} for kind in KINDS}
        self.followers: list[Follower] = []
        self.synced = False
        self.stale = False
        self.changes = 0

    def apply(self, kind: str, key: str, obj: Object | None) -> bool:
        """Sets an object, or removes it (None). Says whether anything is different now."""
        table = self.tables[kind]
        if obj is None:
            if table.pop(key, None) is None:
                return False
        else:
            data = _encode(obj)
            if table.get(key) == data:
                return False
            table[key] = data
        self.changes += 1
        for follower in self.followers:
            follower.changed(kind, key)
        return True

    def set_synced(self) -> None:
        """All that there was at the start is here."""
        if not self.synced:
            self.synced = True
            self._tell()

    def set_stale(self, stale: bool) -> None:
        """Says whether the state may be older than what the API has."""
        if stale != self.stale:
            self.stale = stale
            self._tell()

    def _tell(self) -> None:
        for follower in self.followers:
            follower.state_changed()

    def objects(self, kind: str) -> Iterator[tuple[str, Object]]:
        """What is held of a kind. Changes meanwhile may or may not be in it."""
        table = self.tables[kind]
        for key in list(table):
            data = table.get(key)
            if data is not None:
                yield key, _decode[kind](data)

    def service_kind(self, key: str) -> str:
        """What kind of Service this is; empty where there is none."""
        data = self.tables[SERVICE].get(key)
        return _decode[SERVICE](data).kind if data is not None else ""

    async def close(self) -> None:
        """Lets go of all."""
        self.followers.clear()
        await emptied(*self.tables.values())


@final
class Follower:
    """What one other process does not have yet. `wake` is set while there is anything."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.pending: dict[tuple[str, str], None] = {}
        self.sweep: Iterator[tuple[str, str]] | None = None
        self.begun = False
        self.told = False  # whether it knows if the state is synced and stale
        self.sweeps = 0
        self.wake = asyncio.Event()
        relay.followers.append(self)
        self._anew()

    def close(self) -> None:
        """Follows no more."""
        if self in self.relay.followers:
            self.relay.followers.remove(self)

    def changed(self, kind: str, key: str) -> None:
        """An object came, changed or went."""
        self.pending[kind, key] = None
        if len(self.pending) > LIMIT:
            self._anew()
        self.wake.set()

    def state_changed(self) -> None:
        """The relay is synced, or stale, or not any more."""
        self.told = False
        self.wake.set()

    def _anew(self) -> None:
        self.pending.clear()
        tables = self.relay.tables
        self.sweep = iter([(kind, key) for kind in KINDS for key in tables[kind]])
        self.begun = False
        self.told = False
        self.sweeps += 1
        self.wake.set()

    def next(self) -> Frame | None:
        """The next frame to send; None where the other process has all."""
        if self.sweep is not None:
            if not self.begun:
                self.begun = True
                return BEGIN, []
            rows = self._rows(self.sweep)
            if rows:
                return ROWS, rows
            self.sweep = None
            return END, []
        if self.pending:
            keys = []
            for place in self.pending:
                keys.append(place)
                if len(keys) == FRAME:
                    break
            for place in keys:
                del self.pending[place]
            return ROWS, self._rows(iter(keys))
        if not self.told:
            self.told = True
            return STATE, [self.relay.synced, self.relay.stale]
        self.wake.clear()
        return None

    def _rows(self, places: Iterator[tuple[str, str]]) -> list[Row]:
        tables = self.relay.tables
        rows: list[Row] = []
        for kind, key in places:
            rows.append((kind, key, tables[kind].get(key)))
            if len(rows) == FRAME:
                break
        return rows


class Feed(Protocol):
    """The way from the process that watches."""

    def follow(self, name: str, receive: Callable[[str, list[Any]], Awaitable[None]]) -> None:
        """Calls `receive` with all frames of this relay from now on."""

    def unfollow(self, name: str) -> None:
        """Ends that."""


@final
class RelayedSource:
    """Keeps a cluster's state as another process has it."""

    def __init__(self, name: str, feed: Feed, cluster: Cluster) -> None:
        self.name = name
        self.feed = feed
        self.cluster = cluster
        self.on_sync: list[Callable[[], None]] = []
        self.seen: set[tuple[str, str]] | None = None  # during a whole state: what is in it
        self.told = asyncio.Event()

    def listed(self) -> bool:
        """Whether everything has been listed since the start."""
        return self.cluster.synced

    async def start(self) -> None:
        """Follows, and waits until what the other process has is here: who answers only then never denies what there
        is. That is not much while the other process waits for the API itself.
        """
        self.feed.follow(self.name, self.receive)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT):
                    await self.told.wait()
        except BaseException:
            self.feed.unfollow(self.name)
            raise

    async def stop(self) -> None:
        """Ends that."""
        self.feed.unfollow(self.name)
        await self.cluster.close()

    async def receive(self, what: str, rows: list[Any]) -> None:
        """Applies a frame."""
        cluster = self.cluster
        if what == ROWS:
            seen = self.seen
            for kind, key, data in rows:
                cluster.apply(kind, key, _decode[kind](data) if data is not None else None)
                if seen is not None:
                    seen.add((kind, key))
        elif what == BEGIN:
            self.seen = set()
        elif what == END:
            seen, self.seen = self.seen or set(), None
            if cluster.synced:
                for kind in KINDS:
                    for at, (key, _) in enumerate(cluster.objects(kind)):
                        if (kind, key) not in seen:
                            cluster.apply(kind, key, None)
                        if at % FRAME == FRAME - 1:
                            await asyncio.sleep(0)
        else:
            synced, stale = rows
            if synced and not cluster.synced:
                cluster.set_synced()
                for call in self.on_sync:
                    call()
                self.on_sync.clear()
            cluster.set_stale(stale)
            self.told.set()
