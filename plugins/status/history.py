"""Twenty-four hours of a server in two rings of fixed size: every 5 seconds for an hour, every minute for a day. Pure.

A sample is what was counted between two moments. 720 + 1440 samples of some 80 octets: 170 KiB, however long the server
runs.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, final

FINE: Final = 5  # seconds of a sample of the last hour
COARSE: Final = 60  # seconds of a sample of the last day
_FINE_KEPT: Final = 3600 // FINE
_COARSE_KEPT: Final = 86_400 // COARSE


class Totals(NamedTuple):
    """What has been counted since the start. `times` are counts by bucket, the last beyond all bounds."""

    queries: int
    failures: int
    denials: int
    times: tuple[int, ...]


class Sample(NamedTuple):
    """One interval: its end (seconds since the epoch), rates a second, and the 99th percentile of answers' times in
    seconds.
    """

    at: int
    queries: float
    failures: float
    denials: float
    slow: float


@final
class History:
    """Samples of the last hour and of the last day."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.fine: deque[Sample] = deque(maxlen=_FINE_KEPT)
        self.coarse: deque[Sample] = deque(maxlen=_COARSE_KEPT)
        self._fine_from: tuple[float, Totals] | None = None
        self._coarse_from: tuple[float, Totals] | None = None

    def add(self, now: float, wall: float, totals: Totals) -> None:
        """Takes what is counted at `now` (monotonic seconds; `wall`: since the epoch)."""
        self._fine_from = self._into(self.fine, FINE, self._fine_from, now, wall, totals)
        self._coarse_from = self._into(self.coarse, COARSE, self._coarse_from, now, wall, totals)

    def _into(
        self,
        ring: deque[Sample],
        width: int,
        since: tuple[float, Totals] | None,
        now: float,
        wall: float,
        totals: Totals,
    ) -> tuple[float, Totals]:
        if since is None:
            return now, totals
        began, before = since
        seconds = now - began
        if seconds < width - FINE / 2:  # the clock that asks is not exact
            return since
        queries, failures, denials = (
            round((new - old) / seconds, 2) for new, old in zip(totals[:3], before[:3], strict=True)
        )
        counts = [new - old for new, old in zip(totals.times, before.times, strict=True)]
        ring.append(Sample(int(wall), queries, failures, denials, quantile(self.bounds, counts, 0.99)))
        return now, totals


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float:
    """The bound below which this part of all counts lies; 0 where nothing was counted, twice the last bound beyond
    all.
    """
    total = sum(counts)
    seen = 0
    for at, count in enumerate(counts):
        seen += count
        if total and seen >= total * part:
            return bounds[at] if at < len(bounds) else bounds[-1] * 2
    return 0.0
