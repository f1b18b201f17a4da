"""The counts of one page, for as long as its address is served: a reload replaces the plugin, and keeps this."""

import asyncio
import time
from collections import deque
from typing import Final, NamedTuple, final

from kdns import faults
from kdns.dns import iana
from kdns.metrics import TIME_BUCKETS
from kdns.plugins.status.history import FINE, History, Totals
from kdns.plugins.status.topk import TopK

ERRORS: Final = 50  # errors kept
FADE: Final = 300.0  # seconds after which counts are halved
MINUTE: Final = 60 // FINE  # samples of a minute


class Failure(NamedTuple):
    """A query that failed: when (seconds since the epoch), what was asked and by whom, and why."""

    at: int
    name: str
    type: str
    client: str
    error: str


@final
class Ledger:
    """Counters, tops, errors and history. Bounded, whatever is asked."""

    def __init__(self) -> None:
        self.names, self.clients, self.denied, self.wasted = TopK(), TopK(), TopK(), TopK()
        self.rcodes: dict[int, int] = {}
        self.times = [0] * (len(TIME_BUCKETS) + 1)
        self.queries = self.failures = 0
        self.history = History(TIME_BUCKETS)
        self.errors: deque[Failure] = deque(maxlen=ERRORS)
        self.began = time.monotonic()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to sample and to fade."""
        self.tasks = [
            asyncio.create_task(faults.supervise("plugin/status", loop), name="status")
            for loop in (self._fade, self._sample)
        ]

    async def stop(self) -> None:
        """Ends that."""
        for task in self.tasks:
            task.cancel()
        self.tasks.clear()

    async def _fade(self) -> None:
        while True:
            await asyncio.sleep(FADE)
            for top in (self.names, self.clients, self.denied, self.wasted):
                top.fade()

    async def _sample(self) -> None:
        while True:
            self.sample(time.monotonic(), time.time())
            await asyncio.sleep(FINE)

    def sample(self, now: float, wall: float) -> None:
        """Takes the counts into the history."""
        denials = self.rcodes.get(iana.NXDOMAIN, 0)
        self.history.add(now, wall, Totals(self.queries, self.failures, denials, tuple(self.times)))

    def failing(self) -> float:
        """The part of the last minute's answers that failed."""
        last = list(self.history.fine)[-MINUTE:]
        asked = sum(each.queries for each in last)
        return sum(each.failures for each in last) / asked if asked else 0.0
