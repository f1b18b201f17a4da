"""The page of several workers (`multisocket`) as that of one server. Pure.

Counts are added, and so are the tables of names and clients; an upstream is shown as the worker sees it that has most
to complain of; samples of the history are added from the newest back, because each worker samples at its own seconds.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from kdns.metrics import MAX, REGISTRY, SUM

_TABLES: Final = ("names", "clients", "denied", "wasted")
_WORST: Final = ("down", "failing", "up", "unused")
State = dict[str, Any]
Samples = list[list[Any]]


def states(found: Sequence[State], names: dict[str, str], own: dict[str, list[list[Any]]], shown: int) -> State:
    """One state of several (at least one). `names` are the metrics of the series, `own` the series of this process;
    `shown` how many lines a table has at most. `outages` is left to whoever knows the whole.
    """
    first = found[0]
    ups: dict[tuple[str, str], State] = {}
    for state in found:
        for each in state["upstreams"]:
            key = each["zone"], each["to"]
            if key not in ups or _WORST.index(each["state"]) < _WORST.index(ups[key]["state"]):
                ups[key] = each
    return {
        **first,
        "uptime_seconds": max(state["uptime_seconds"] for state in found),
        "queries": sum(state["queries"] for state in found),
        "failures": sum(state["failures"] for state in found),
        "rcodes": _added([state["rcodes"] for state in found]),
        "latency_seconds": {
            "bounds": first["latency_seconds"]["bounds"],
            "counts": [sum(counts) for counts in zip(*(s["latency_seconds"]["counts"] for s in found), strict=True)],
        },
        "series": {
            short: _series(name, [*(state["series"][short] for state in found), own[short]])
            for short, name in names.items()
        },
        "recent": _samples([state["recent"] for state in found]),
        "upstreams": list(ups.values()),
        "errors": sorted((each for state in found for each in state["errors"]), key=lambda each: -each["at"])[:shown],
        **{table: _top([state[table] for state in found], shown) for table in _TABLES},
    }


def histories(found: Sequence[dict[str, Samples]]) -> dict[str, Samples]:
    """One history of several: `fine` and `coarse`, samples as `status.history.Sample` has them."""
    return {ring: _samples([each[ring] for each in found]) for ring in ("fine", "coarse")}


def failing(fine: Samples, count: int) -> float:
    """The part of the answers in the last `count` samples that failed."""
    last = fine[-count:]
    asked = sum(sample[1] for sample in last)
    return sum(sample[2] for sample in last) / asked if asked else 0.0


def _samples(rings: Sequence[Samples]) -> Samples:
    out: Samples = []
    for back in range(1, max(map(len, rings), default=0) + 1):
        some = [ring[-back] for ring in rings if len(ring) >= back]
        rates = [round(sum(values), 2) for values in zip(*(sample[1:4] for sample in some), strict=True)]
        out.append([max(sample[0] for sample in some), *rates, max(sample[4] for sample in some)])
    out.reverse()
    return out


def _added(found: Sequence[dict[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for each in found:
        for key, count in each.items():
            out[key] = out.get(key, 0) + count
    return out


def _top(tables: Sequence[list[list[Any]]], shown: int) -> list[list[Any]]:
    counts = _added([dict(table) for table in tables])
    return [[name, count] for name, count in sorted(counts.items(), key=lambda item: -item[1])[:shown]]


def _series(name: str, found: Sequence[list[list[Any]]]) -> list[list[Any]]:
    across = REGISTRY[name].across if name in REGISTRY else SUM
    join: Callable[[float, float], float] = max if across == MAX else min if across != SUM else float.__add__
    out: dict[tuple[tuple[str, str], ...], float] = {}
    for rows in found:
        for labels, value in rows:
            key = tuple(labels.items())
            out[key] = join(out[key], float(value)) if key in out else float(value)
    return [[dict(key), value] for key, value in out.items()]
