"""The API as a source: a reflector and a healer for each kind of object, and a snapshot of what they know.

Laws: a task that dies is said aloud and started again, never silently gone. How old the state may be is known, counted,
and told to who serves it. A snapshot is written when something changed, at most every SAVE seconds, and when the source
stops.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

from kdns import log
from kdns.kube import snapshot
from kdns.kube.access import ApiConfig
from kdns.kube.api import Client
from kdns.kube.objects import HEADLESS, IMPORT, NAMESPACE, OWNER, POD, POLICY, SERVICE, SLICE, Raw, RawSlice
from kdns.kube.reflector import Reflector
from kdns.kube.resync import Resync
from kdns.kube.snapshot import BadSnapshot
from kdns.kube.source import State, WatchScope
from kdns.metrics import MAX, REFRESH, Counter, Gauge, Histogram
from kdns.timeslice import emptied

SAVE: Final = 30.0  # seconds between two snapshots, at least
TICK: Final = 1.0  # seconds between two looks at the age of the state
# Seconds without a watch after which answers are called stale: longer than the longest wait between two tries.
STALE_AFTER: Final = 60.0
_PHASES: Final = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"

AGE: Final = Gauge(
    "kdns_kubernetes_data_age_seconds",
    "Seconds since the state was known to be the API's; 0 while it is watched.",
    ("kind",),
    across=MAX,
)
SAVED: Final = Counter("kdns_kubernetes_snapshots_total", "Snapshots written, by outcome.", ("outcome",))
RESTARTS: Final = Counter(
    "kdns_kubernetes_reflector_restarts_total", "Tasks that failed and were started again.", ("kind",)
)
PROGRAMMING: Final = Histogram(
    "coredns_kubernetes_dns_programming_duration_seconds",
    "Histogram of the time (in seconds) it took to program a dns instance.",
    tuple(0.001 * 2**n for n in range(20)),
    ("service_kind",),
)

_log = log.plugin("kubernetes")


S = TypeVar("S", bound=State)


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """The file that the state is saved in, and how old (seconds; 0: any age) it may be to be read."""

    path: str
    max_age: float = 0.0


class ApiSource(Generic[S]):
    """Keeps a cluster's state as the API has it."""

    def __init__(self, config: ApiConfig, wanted: WatchScope, cluster: S, file: SnapshotFile | None = None) -> None:
        self.cluster = cluster
        self.on_sync: list[Callable[[], None]] = []
        self.client = Client(config)
        self.file = file
        self.identity = repr((config, wanted))
        kinds = [NAMESPACE, SERVICE]
        kinds += [SLICE] * wanted.slices + [POD] * wanted.pods + [IMPORT] * wanted.imports
        kinds += [POLICY] * wanted.policies
        self.reflectors = [
            Reflector(
                kind, self.client, cluster, _params(kind, wanted), wanted.project,
                listed=self._listed, applied=self._programmed if kind == SLICE else None, optional=kind == IMPORT,
            )
            for kind in kinds
        ]  # fmt: skip
        self.tasks: list[asyncio.Task[None]] = []
        self.saving: asyncio.Task[None] | None = None
        self.saved = 0  # changes of the state that the snapshot has
        self.restored = False

    async def start(self) -> None:
        """Reads the snapshot, and begins to list and watch; what there is comes later (`on_sync`)."""
        if self.file is not None:
            await self._restore(self.file)
        for reflector in self.reflectors:
            self._begin(f"reflector of {reflector.kind}", reflector.kind, reflector.run, reflector.invalidate)
            self._begin(f"healer of {reflector.kind}", reflector.kind, Resync(reflector).run)
        self._begin("look after the state's age", "", self._look_after)
        REFRESH.append(self._refresh)

    def _begin(
        self,
        what: str,
        kind: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        again: Callable[[], None] = lambda: None,
    ) -> None:
        self.tasks.append(asyncio.create_task(self._supervise(what, kind, work, again), name=what))

    async def stop(self) -> None:
        """Ends watching, and saves what is known."""
        if self._refresh in REFRESH:
            REFRESH.remove(self._refresh)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.saving is not None:
            await asyncio.gather(self.saving, return_exceptions=True)
            self.saving = None
        await self.client.close()
        if self.file is not None and self.dirty and self.cluster.synced:
            await self.save()
        # What holds this source goes, so that reference counting frees it; what is large goes in turns.
        self.tasks.clear()
        for reflector in self.reflectors:
            reflector.heard.clear()
            await emptied(reflector.known)
        self.reflectors.clear()
        await self.cluster.close()

    async def _supervise(
        self, what: str, kind: str, work: Callable[[], Coroutine[Any, Any, None]], again: Callable[[], None]
    ) -> None:
        """A task that fails for a reason nobody thought of is said aloud and started again, never silently gone."""
        while True:
            try:
                await work()
            except Exception as error:
                RESTARTS.slot(kind)[0] += 1
                _log.error(f"the {what} failed: {type(error).__name__}: {error}; restarting it")
                again()
                await asyncio.sleep(1)

    def _listed(self) -> None:
        if all(reflector.synced for reflector in self.reflectors):
            self.saved = -1  # it is a new one, whether anything changed or not
            self.restored = False
            self._weigh()
            if not self.cluster.synced:
                self.cluster.set_synced()
            for call in self.on_sync:
                call()
            self.on_sync.clear()

    # Age.

    def age(self) -> float:
        """Seconds since all of the state was known to be the API's."""
        return max(reflector.age() for reflector in self.reflectors)

    def listed(self) -> bool:
        """True if everything has been listed since the start."""
        return all(reflector.synced for reflector in self.reflectors)

    async def _look_after(self) -> None:
        saved = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            self._weigh()
            if self.dirty and self.file is not None and self.cluster.synced and time.monotonic() - saved >= SAVE:
                saved = time.monotonic()
                self.saving = asyncio.create_task(self.save(), name="save a snapshot")
                await asyncio.shield(self.saving)  # `stop` lets it end: half of one is none

    def _weigh(self) -> None:
        self.cluster.set_stale(self.cluster.synced and (self.restored or self.age() > STALE_AFTER))

    def _refresh(self) -> None:
        for reflector in self.reflectors:
            AGE.slot(reflector.kind)[0] = reflector.age()

    # The snapshot.

    @property
    def dirty(self) -> bool:
        """Whether the state is another one than the snapshot's."""
        return self.saved != self.cluster.changes

    async def _restore(self, file: SnapshotFile) -> None:
        try:
            known, age = await snapshot.read(file.path, self.identity, file.max_age, self.cluster)
        except FileNotFoundError:
            return
        except (BadSnapshot, OSError) as error:
            _log.warning(f"snapshot {file.path} is ignored: {error}")
            return
        for reflector in self.reflectors:
            reflector.known = known.get(reflector.kind, {})
            reflector.current_at = time.monotonic() - age
        self.restored = True
        self.saved = self.cluster.changes
        self.cluster.set_synced()
        self._weigh()
        count = sum(len(versions) for versions in known.values())
        _log.info(
            f"serving {count} objects of the snapshot {file.path}, {age:.0f} s old, until the API has been listed"
        )

    async def save(self) -> None:
        """Writes the snapshot; a failure is said and counted, and the next change tries again."""
        assert self.file is not None
        before, self.saved = self.saved, self.cluster.changes
        try:
            known = {reflector.kind: reflector.known for reflector in self.reflectors}
            await snapshot.write(self.file.path, self.identity, self.cluster, known)
            SAVED.slot("written")[0] += 1
        except OSError as error:
            self.saved = before
            SAVED.slot("failed")[0] += 1
            _log.error(f"snapshot {self.file.path} cannot be written: {error.strerror or error}")

    # Programming latency.

    def _programmed(self, raw: Raw) -> None:
        """Counts the time from what changed endpoints to here (SIG Scalability's DNS programming latency)."""
        if not isinstance(raw, RawSlice) or raw.metadata.annotations is None:
            return
        text = raw.metadata.annotations.changed
        owner = (raw.metadata.labels or {}).get(OWNER)
        service_kind = self.cluster.service_kind(f"{raw.metadata.namespace}/{owner}")
        if not text or not service_kind:
            return
        with contextlib.suppress(ValueError):
            took = time.time() - datetime.fromisoformat(text).timestamp()
            kind = "headless_with_selector" if service_kind == HEADLESS else "cluster_ip"
            PROGRAMMING.observe(PROGRAMMING.slot(kind), took)


def _params(kind: str, wanted: WatchScope) -> dict[str, str]:
    params = {}
    selector = wanted.namespace_labels if kind in (NAMESPACE, IMPORT) else wanted.labels
    if selector.terms and kind != POLICY:
        params["labelSelector"] = selector.text
    if kind == POD:
        params["fieldSelector"] = _PHASES
    return params
