"""The metrics of all workers of `multisocket` as those of one process.

Laws: a counter never falls: what a worker had counted when it was last asked stays when it dies or hangs. A gauge is of
the workers that answer.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final, final

from kdns import faults, metrics
from kdns.metrics import Family, Merged, Row
from kdns.plugin.runtime import Crew
from kdns.plugins.prometheus import process

_SLOTS: Final = 500
# What of a process is summed over all; the rest is the same for each of them, or of the oldest.
_SUMMED: Final = (
    "process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes", "process_virtual_memory_bytes",
)  # fmt: skip
_CPU: Final = "process_cpu_seconds_total"


@final
class WorkerMetrics:
    """What was last heard of each worker."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[int, list[Row]]] = {}  # by number: process id and rows
        self.past = Merged()  # counters and histograms of those that have ended
        self.processes: dict[int, process.OfProcess] = {}
        self.cpu: dict[int, float] = {}

    async def merged(self, crew: Crew) -> list[Family]:
        """All families of this process and of the workers, as they are from now on."""
        pids = crew.pids()
        said: dict[int, Any] = await crew.ask("metrics")
        for number, (pid, rows) in list(self.last.items()):
            if pids.get(number) != pid:
                del self.last[number]
                for row in rows:
                    if row[0] != "gauge":
                        self.past.add(row)
        total = Merged()
        for number, rows in said.items():
            if isinstance(rows, list) and number in pids:
                self.last[number] = pids[number], rows
                await _add(total, rows)
            elif number in self.last:
                await _add(total, [row for row in self.last[number][1] if row[0] != "gauge"])
        for family in self.past.families.values():
            total.add(_row(family))
        faults.call_each("the refresh of a metric", metrics.REFRESH)
        await _add(total, metrics.dump(_SLOTS))
        return list(total.families.values())

    def process(self, pids: dict[int, int]) -> bytes:
        """The metrics of the processes, as of one."""
        found = [process.own()]
        for pid in pids.values():
            reader = self.processes.get(pid)
            if reader is None:
                reader = self.processes[pid] = process.OfProcess(pid)
            values = reader.values()
            if values:
                found.append(values)
                self.cpu[pid] = values.get(_CPU, 0.0)
        total = {name: sum(values.get(name, 0.0) for values in found) for name in _SUMMED}
        gone = self.cpu.keys() - set(pids.values())
        total[_CPU] += sum(self.cpu[pid] for pid in gone)
        for pid in self.processes.keys() - set(pids.values()):
            del self.processes[pid]
        return process.text_of(total)


async def _add(total: Merged, rows: Iterable[Row]) -> None:
    for row in rows:
        total.add(row)
        await asyncio.sleep(0)


def _row(family: Family) -> Row:
    bounds = family.bounds if isinstance(family, metrics.Histogram) else ()
    return family.kind, family.name, family.help, family.labels, bounds, family.across, list(family.slots.items())
