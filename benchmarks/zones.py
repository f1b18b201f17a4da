"""Answers from zone files beside the floor in C, Knot, NSD and CoreDNS; and what signing a zone takes.

    python -m benchmarks.zones [MIX...]     only the mixes whose names hold one of these words; nothing is written

A zone of NAMES names, plain and signed (NSEC, by kdns itself, where BIND's dnssec-keygen is on PATH). CoreDNS has the
plugin `file`. Method and bars as in benchmarks.run, of which it is a part.
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.harness import HERE, RUNS, Server, dnsperf
from benchmarks.mixes import UNIQUE, Mix
from kdns.dns.name import from_text
from kdns.testing import free_port
from kdns.zonefile.signing import Job

NAMES: Final = int(os.environ.get("BENCH_NAMES", "100000"))
PLAIN, SIGNED = "example.org", "signed.example"
MIXES: Final = (
    Mix("zone file: A hit", "hit", (), 2.4),
    Mix("... 9,000 names", "names", (), 3.2),
    Mix("wildcard, unique", "wild", (), 8.0),
    Mix("NODATA", "nodata", (), 2.4),
    Mix("NXDOMAIN, unique", "nx", (), 8.0),
    Mix("signed: A hit with DO", "s-hit", ("-D",), 2.4),
    Mix("signed: NODATA with DO", "s-nodata", ("-D",), 2.4),
    Mix("signed: NXDOMAIN with DO, unique", "s-nx", ("-D",), 16.0),
)


def records(names: int) -> str:
    """A zone's file."""
    return "$TTL 300\n@ SOA ns hostmaster 1 3600 300 86400 60\n@ NS ns\nns A 192.0.2.1\n*.wild A 192.0.2.2\n" + "".join(
        f"h{i} A 10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}\n" for i in range(names)
    )


def questions(folder: Path) -> dict[str, Path]:
    """The files of questions by name."""
    chance = random.Random(2)
    order = [chance.randrange(NAMES) for _ in range(9_000)]
    texts = {
        "hit": [f"h7.{PLAIN} A"],
        "names": [f"h{i}.{PLAIN} A" for i in order],
        "wild": [f"x{i}.wild.{PLAIN} A" for i in range(UNIQUE)],
        "nodata": [f"h7.{PLAIN} AAAA"],
        "nx": [f"x{i}.{PLAIN} A" for i in range(UNIQUE)],
        "s-hit": [f"h7.{SIGNED} A"],
        "s-nodata": [f"h7.{SIGNED} AAAA"],
        "s-nx": [f"x{i}.{SIGNED} A" for i in range(UNIQUE)],
    }
    out = {}
    for name, lines in texts.items():
        out[name] = folder / f"zone-{name}.txt"
        out[name].write_text("\n".join(lines) + "\n")
    return out


def files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The zones' files, and what signing one took: its time, and the most memory of the child that does it."""
    out = {PLAIN: folder / "db.plain"}
    out[PLAIN].write_text(records(NAMES))
    keygen = shutil.which("dnssec-keygen")
    if keygen is None:
        return out, []
    words = [keygen, "-q", "-a", "ECDSAP256SHA256", "-f", "KSK", "-K", str(folder), SIGNED]
    key = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    job = Job(str(out[PLAIN]), from_text(SIGNED), (str(folder / key),), str(folder / "db.signed"), int(time.time()))
    began = time.monotonic()
    # The job's child, with a look at the most that it held.
    program = (
        "import resource, sys; from kdns.zonefile import signing; done = signing.run(signing.Job(*eval(sys.argv[1])));"
        "print(done.error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    said = subprocess.run([sys.executable, "-c", program, repr(tuple(job))], check=True, capture_output=True, text=True)
    seconds = time.monotonic() - began
    out[SIGNED] = Path(job.target)
    held = int(said.stdout.split()[-1]) >> 10
    line = f"Signing {NAMES:,} names (ECDSAP256SHA256, one key, NSEC) takes a child {seconds:.1f} s and {held:,} MiB."
    return out, [line]


def kdns(folder: Path, zones: dict[str, Path], compiled: bool, options: str = "") -> Server:
    """kdns: the checkout's, or the compiled package. `options` are those of `file`."""
    port = free_port()
    lines = "\n ".join(f"file {path} {zone}{options}" for zone, path in zones.items())
    corefile = folder / f"Corefile.{port}"
    corefile.write_text(f".:{port} {{\n bind 127.0.0.1\n errors\n prometheus 127.0.0.1:{free_port()}\n {lines}\n}}\n")
    name, where = ("kdns compiled", peers.COMPILED) if compiled else ("kdns", HERE.parent)
    words = ["env", f"PYTHONPATH={where}", sys.executable, "-m", "kdns", "-conf", str(corefile)]
    return Server(name, *words, port=port, cwd=folder)


def coredns(folder: Path, zones: dict[str, Path], options: str = "") -> Server:
    """CoreDNS. `options` are those of `file`."""
    port = free_port()
    blocks = "".join(
        f"{zone}:{port} {{\n bind 127.0.0.1\n errors\n prometheus 127.0.0.1:{free_port()}\n file {path}{options}\n}}\n"
        for zone, path in zones.items()
    )
    (folder / "Corefile.zones").write_text(blocks)
    words = ["env", "GOMAXPROCS=1", "coredns", "-conf", str(folder / "Corefile.zones")]
    return Server("coredns", *words, port=port)


def knot(folder: Path, zones: dict[str, Path]) -> Server:
    port = free_port()
    (folder / "zones.conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}/zk\n  udp-workers: 1\n  tcp-workers: 1\n"
        f"database:\n  storage: {folder}/zk-db\ntemplate:\n  - id: default\n    semantic-checks: off\n"
        f"    zonefile-sync: -1\nzone:\n"
        + "".join(f"  - domain: {zone}\n    file: {path}\n" for zone, path in zones.items())
    )
    (folder / "zk").mkdir(exist_ok=True)
    return Server("knot", "knotd", "-c", str(folder / "zones.conf"), port=port)


def nsd(folder: Path, zones: dict[str, Path]) -> Server:
    port = free_port()
    (folder / "nsd.conf").write_text(
        f'server:\n ip-address: 127.0.0.1@{port}\n username: ""\n zonesdir: "{folder}"\n'
        f' pidfile: "{folder}/nsd.pid"\n xfrdfile: "{folder}/xfrd.state"\n zonelistfile: "{folder}/zone.list"\n'
        f' xfrdir: "{folder}"\n database: ""\n server-count: 1\n rrl-ratelimit: 0\n rrl-whitelist-ratelimit: 0\n'
        "remote-control:\n control-enable: no\n"
        + "".join(f'zone:\n name: "{zone}"\n zonefile: "{path}"\n' for zone, path in zones.items())
    )
    return Server("nsd", "nsd", "-d", "-c", str(folder / "nsd.conf"), port=port)


def makers(folder: Path, zones: dict[str, Path], options: str = "") -> list[Callable[[], Server]]:
    """What starts each of those that are here. `options` are those of `file`."""
    out: list[Callable[[], Server]] = [partial(kdns, folder, zones, False, options)]
    if peers.COMPILED.is_dir():
        out.insert(0, partial(kdns, folder, zones, True, options))
    if shutil.which("coredns"):
        out.append(partial(coredns, folder, zones, options))
    return out + [partial(make, folder, zones) for name, make in (("knotd", knot), ("nsd", nsd)) if shutil.which(name)]


def table(folder: Path, wanted: list[str]) -> list[str]:
    """What queries cost, as a ratio to the floor; the CPU of a query in brackets."""
    zones, lines = files(folder)
    asked = questions(folder)
    base = peers.floor()
    every = [make() for make in makers(folder, zones)]
    time.sleep(5 + NAMES / 10_000)
    out = [f"| mix | bar | {' | '.join(each.name for each in every)} |", "|---" * (2 + len(every)) + "|"]
    print("\n".join(out), flush=True)
    try:
        for mix in MIXES:
            if (wanted and not any(word in mix.name for word in wanted)) or (mix.file[0] == "s" and len(zones) == 1):
                continue
            costs: dict[str, list[tuple[float, float]]] = {each.name: [] for each in every}
            for _ in range(RUNS):
                floor = dnsperf(base, asked["hit"]).cost
                for each in every:
                    cost = dnsperf(each, asked[mix.file], *mix.options).cost
                    costs[each.name].append((cost / floor, cost))
            medians = [[statistics.median(part) for part in zip(*found, strict=True)] for found in costs.values()]
            cells = [f"{ratio:.2f}x ({cost:.1f} µs)" for ratio, cost in medians]
            out.append(f"| {mix.name} | {mix.bar:g}x | {' | '.join(cells)} |")
            print(out[-1], flush=True)
    finally:
        for each in (base, *every):
            each.stop()
    return [*out, "", *lines]


def main(words: list[str]) -> None:
    """Prints the table."""
    subprocess.run(["cc", "-O2", "-o", str(HERE / "floor" / "floor"), str(HERE / "floor" / "floor.c")], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        print(table(folder, words)[-1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
