"""Outside names: what a Pod's whole search list costs, and the cache's memory.

The mixes are what a Pod's resolver asks with `ndots:5` and the cluster's three search domains, A and AAAA for each
candidate: eight queries for an outside name. With `searchpath` the first two are answered, and the resolver asks no
more.
"""

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.harness import RUNS, Server, dnsperf

NAMES: Final = 1000
SEARCH: Final = ("n0.svc.cluster.local", "svc.cluster.local", "cluster.local", "")


def mixes(folder: Path, files: dict[str, Path], api: str, to: int) -> list[str]:
    """CPU for whole names, as Pods ask for them, in floors (the floor's CPU for one query): kdns's two queries,
    CoreDNS's eight.
    """
    with_coredns = shutil.which("coredns") is not None
    lines = ["CPU of one name with its whole search list, in floors:", ""]
    lines += ["| mix | kdns with searchpath | CoreDNS | part | bar |", "|---|---|---|---|---|"]
    base = peers.floor()
    time.sleep(1)
    try:
        for what, zone, bar in (("outside names", "example.net", 1 / 4), ("names that do not exist", "nx.test", 1 / 2)):
            for share, new in (("all new", 1.0), ("nine in ten cached", 0.1), ("all cached", 0.0)):
                costs: dict[str, list[float]] = {"kdns": [], "coredns": []}
                for _ in range(RUNS):
                    floor = dnsperf(base, files["hit"]).cost
                    ours = SEARCH[:1] if zone == "example.net" else SEARCH
                    server = peers.kdns(folder, api, to, compiled=peers.COMPILED.is_dir(), more="searchpath")
                    costs["kdns"].append(_cost(folder, server, zone, ours, new) / floor)
                    if with_coredns:
                        costs["coredns"].append(
                            _cost(folder, peers.coredns(folder, api, to), zone, SEARCH, new) / floor
                        )
                cost = statistics.median(costs["kdns"])
                theirs = statistics.median(costs["coredns"]) if with_coredns else float("nan")
                lines.append(f"| {what}, {share} | {cost:.1f} | {theirs:.1f} | {cost / theirs:.2f} | {bar:.2f} |")
                print(lines[-1], flush=True)
    finally:
        base.stop()
    return lines


def _cost(folder: Path, server: Server, zone: str, suffixes: tuple[str, ...], new: float) -> float:
    """Microseconds of CPU a name."""
    time.sleep(5)
    try:
        # Enough names for the whole run where there are new ones; those that are not new are one of NAMES.
        names = [f"n{i}" if i % 10 < new * 10 else f"p{i % NAMES}" for i in range(NAMES * (40 if new else 1))]
        asked = [
            f"{name}.{zone}.{suffix}".rstrip(".") + f" {kind}"
            for name in names
            for suffix in suffixes
            for kind in ("A", "AAAA")
        ]
        file = folder / "search-list"
        file.write_text("\n".join(asked) + "\n")
        found = dnsperf(server, file, "-n", "1", warm=0, seconds=60) if new else dnsperf(server, file)
        return found.cost * len(asked) / len(names)
    finally:
        server.stop()


def memory(folder: Path, api: str, to: int) -> list[str]:
    """Resident memory while a million distinct names go through a full cache."""
    count = int(os.environ.get("BENCH_NAMES", "1000000"))
    server = peers.kdns(folder, api, to, compiled=peers.COMPILED.is_dir())
    sizes = []
    try:
        time.sleep(5)
        for part in range(10):
            file = folder / "names"
            file.write_text(
                "".join(f"n{i}.example.net A\n" for i in range(part * count // 10, (part + 1) * count // 10))
            )
            dnsperf(server, file, "-n", "1", warm=0, seconds=120)
            sizes.append(server.resident())
            print(f"{(part + 1) * count // 10:,} names: {sizes[-1]:.0f} MiB", flush=True)
    finally:
        server.stop()
    line = f"{count:,} distinct names through a cache of 10,000: {sizes[0]:.0f} MiB after the first tenth,"
    return ["", f"{line} {max(sizes[1:]):.0f} MiB at most after that, {sizes[-1]:.0f} MiB at the end"]
