"""Counters that cost a list store, and their exposition.

`family.slot(*labels)` gives a list that the owner keeps and adds to: `slot[0] += 1`. prometheus-client sees the
values only when they are scraped, through one collector; its own `labels().inc()` costs over a microsecond.

A histogram's slot holds the sum first, then one count for each bucket (not cumulated), the last for +Inf.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

Slot = list[float]
Slots = Sequence[tuple[tuple[str, ...], Slot]]

# 0.25 ms to 8.2 s, each twice the one before: CoreDNS's plugin.TimeBuckets.
TIME_BUCKETS: Final = tuple(0.00025 * 2**n for n in range(16))
SLIM_TIME_BUCKETS: Final = tuple(0.00025 * 10**n for n in range(5))
# Lines of the exposition made in one go: some 1.5 ms, at 16 µs a line. 40 zones have 1,300 lines in one family.
SLICE: Final = 100
# A family's label sets are bounded: what a client or a cluster can name must not grow memory without end.
MAX_SLOTS: Final = 20_000
SUM: Final = "sum"
MAX: Final = "max"
MIN: Final = "min"


class Family:
    """One metric: its name, help, labels, and a slot for each set of label values."""

    kind = "counter"
    across = SUM

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self.slots: dict[tuple[str, ...], Slot] = {}
        REGISTRY[name] = self

    def width(self) -> int:
        return 1

    def slot(self, *values: str) -> Slot:
        """The slot of these label values, made when first asked for."""
        known = self.slots.get(values)
        if known is None:
            if len(values) != len(self.labels):
                raise ValueError(f"{self.name} has the labels {self.labels}, not {values}")
            known = [0.0] * self.width()
            if len(self.slots) < MAX_SLOTS:
                self.slots[values] = known
        return known

    def remove(self, *values: str) -> None:
        """Forgets a set of label values."""
        self.slots.pop(values, None)

    def samples(self) -> int:
        """Lines of the exposition for each slot."""
        return 1

    def collect(self, slots: Slots) -> Metric:
        """Some of the family's slots as prometheus-client knows them."""
        metric = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for values, slot in slots:
            metric.add_metric(values, slot[0])
        return metric


class Counter(Family):
    """What only grows. `name` ends in `_total`. Without labels it is shown from the start, as 0: a rise can then be
    seen.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        if not labels:
            self.slot()


class Gauge(Family):
    """What goes up and down. `read` gives the value of a family without labels when it is scraped."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        read: Callable[[], float] | None = None,
        *,
        across: str = SUM,
    ) -> None:
        """`across`: what it comes to over several processes: SUM, MAX or MIN of what each of them has."""
        super().__init__(name, help, labels)
        self.read = read
        self.across = across

    def collect(self, slots: Slots) -> Metric:
        metric = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        if self.read is not None:
            metric.add_metric((), self.read())
        for values, slot in slots:
            metric.add_metric(values, slot[0])
        return metric


class Histogram(Family):
    """Observations in buckets; `bounds` are upper bounds, inclusive."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.bounds = tuple(bounds)
        super().__init__(name, help, labels)

    def width(self) -> int:
        return len(self.bounds) + 2

    def observe(self, slot: Slot, value: float) -> None:
        """Adds one observation to a slot of this family."""
        slot[0] += value
        slot[1 + bisect_left(self.bounds, value)] += 1

    def samples(self) -> int:
        return len(self.bounds) + 3

    def collect(self, slots: Slots) -> Metric:
        metric = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        names = [*(_bound(bound) for bound in self.bounds), "+Inf"]
        for values, slot in slots:
            total = 0.0
            buckets = []
            for name, count in zip(names, slot[1:], strict=True):
                total += count
                buckets.append((name, total))
            metric.add_metric(values, buckets=buckets, sum_value=slot[0])
        return metric


def _bound(value: float) -> str:
    return f"{value:g}" if value < 1e5 else repr(value)


REGISTRY: Final[dict[str, Family]] = {}
# Called before a scrape, to bring gauges up to date.
REFRESH: Final[list[Callable[[], None]]] = []


class _One:
    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric


# A family and some of its slots for other processes: kind, name, help, labels, bounds, what it comes to over several,
# and the slots.
Row = tuple[str, str, str, tuple[str, ...], tuple[float, ...], str, list[tuple[tuple[str, ...], Slot]]]


def dump(step: int) -> Iterator[Row]:
    """All families with their slots, at most `step` slots at a time. REFRESH is to be called before."""
    for family in list(REGISTRY.values()):
        slots = list(family.slots.items())
        if isinstance(family, Gauge) and family.read is not None:
            slots.append(((), [family.read()]))
        bounds = family.bounds if isinstance(family, Histogram) else ()
        for at in range(0, len(slots), step):
            some = slots[at : at + step]
            yield family.kind, family.name, family.help, family.labels, bounds, family.across, some


@final
class Merged:
    """The families of several processes as one: each slot is the sum, or what else the family says."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}

    def add(self, row: Row) -> None:
        """Takes a row of one process in."""
        kind, name, help, labels, bounds, across, slots = row
        family = self.families.get(name)
        if family is None:
            family = self.families[name] = _family(kind, name, help, labels, bounds, across)
        across = family.across
        for key, slot in slots:
            values = tuple(key)
            known = family.slots.get(values)
            if known is None:
                family.slots[values] = list(slot)
            elif across == SUM:
                family.slots[values] = [one + other for one, other in zip(known, slot, strict=True)]
            else:
                family.slots[values] = list(max(known, slot) if across == MAX else min(known, slot))


def _family(kind: str, name: str, help: str, labels: Sequence[str], bounds: Sequence[float], across: str) -> "Family":
    """A family that is in no registry."""
    known = REGISTRY.get(name)
    made: Family
    if kind == "histogram":
        made = Histogram(name, help, bounds, labels)
    elif kind == "gauge":
        made = Gauge(name, help, labels, across=across)
    else:
        made = Family(name, help, labels)
    if known is not None:
        REGISTRY[name] = known
    else:
        REGISTRY.pop(name)
    return made


def families(of: Iterable[Family] | None = None) -> Iterator[bytes]:
    """The text exposition in slices of a family each, of SLICE lines at most, so that the caller can let others run in
    between. Of these families, or of all of this process: then REFRESH is to be called before.
    """
    for family in list(REGISTRY.values() if of is None else of):
        slots = list(family.slots.items())
        if not slots and not (isinstance(family, Gauge) and family.read is not None):
            continue
        step = max(SLICE // family.samples(), 1)
        for at in range(0, len(slots) or 1, step):
            text = generate_latest(_One(family.collect(slots[at : at + step])))
            # The two lines before a family's samples, HELP and TYPE, stand once.
            yield text.split(b"\n", 2)[2] if at else text
