"""`make bench`: what a query costs, beside a C program that only receives and sends, in the same run.

Method. The server is pinned to core 0, dnsperf to core 1; CPU is utime + stime of the server's process over the run,
divided by the queries answered. Figures are ratios to the floor (benchmarks/floor/floor.c) measured right before, as
absolute ones do not hold on shared machines: RUNS times, the median counts. Both builds of kdns (the compiled one after
`make compiled`) and the peers that are on PATH answer the same names. Results go to benchmarks/results.md.

    python -m benchmarks.run [MIX...]     only the mixes whose names hold one of these words; nothing is written
    python -m benchmarks.run several      only `multisocket 2` beside one process; nothing is written
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import bigzone, outside, peers, transports, zones
from benchmarks.harness import CLIENT_CORE, HERE, RUNS, SECONDS, SERVER_CORE, Server, dnsperf, host
from benchmarks.mixes import MIXES, Mix, cluster, questions
from kdns.testing import ApiServer

OUTSIDE_KNOT = "knot"  # it forwards nothing


def per_query(folder: Path, files: dict[str, Path], api: str, to: int, mixes: list[Mix]) -> list[str]:
    """The main table: ratios to the floor."""
    base = peers.floor()
    servers = [*peers.builds(folder, api, to), *peers.others(folder, api, to)]
    time.sleep(8)
    lines = [
        f"| mix | bar | {' | '.join(server.name for server in servers)} |",
        "|---|---|" + "---|" * len(servers),
    ]
    print("\n".join(lines), flush=True)
    try:
        for mix in mixes:
            ratios: dict[str, list[float]] = {}
            costs: dict[str, list[float]] = {}
            asked = [server for server in servers if not (mix.outside and server.name == OUTSIDE_KNOT)]
            for run in range(RUNS):
                cost = dnsperf(base, files["hit"]).cost
                for server in asked:
                    found = dnsperf(server, files[mix.file], *mix.options, warm=0 if run else mix.warm).cost
                    ratios.setdefault(server.name, []).append(found / cost)
                    costs.setdefault(server.name, []).append(found)
            lines.append(row(mix, servers, ratios, costs))
            print(lines[-1], flush=True)
    finally:
        for server in (base, *servers):
            server.stop()
    return lines


def row(mix: Mix, servers: list[Server], ratios: dict[str, list[float]], costs: dict[str, list[float]]) -> str:
    """A line of the table."""
    cells = [
        f"{statistics.median(ratios[server.name]):.2f}x ({statistics.median(costs[server.name]):.1f} µs)"
        if server.name in ratios
        else ""
        for server in servers
    ]
    bar = f"{mix.bar:g}x" + (f" ({mix.interpreted:g}x)" if mix.interpreted else "")
    return f"| {mix.name} | {bar} | {' | '.join(cells)} |"


def at_rates(folder: Path, files: dict[str, Path], api: str, to: int) -> list[str]:
    """Cost and latency at fixed rates, pinned, and latency unpinned on all cores."""
    lines = ["| load | server | CPU a query | to the floor | average | worst | lost |", "|---|---|---|---|---|---|---|"]
    every = peers.every_core()
    for cores, client, where in ((SERVER_CORE, CLIENT_CORE, "pinned"), (every, every, "unpinned, all cores")):
        compiled = peers.COMPILED.is_dir()
        servers = [peers.floor(), peers.kdns(folder, api, to, compiled=compiled, cores=cores)]
        if shutil.which("coredns"):
            servers.append(peers.coredns(folder, api, to))
        time.sleep(6)
        try:
            for rate in (2_000, 10_000):
                costs: dict[str, float] = {}
                for server in servers:
                    found = dnsperf(server, files["hit"], rate=rate, cores=client)
                    costs[server.name] = found.cost
                    if server.name == "floor":
                        continue
                    lines.append(
                        f"| {rate:,} q/s, {where} | {server.name} | {found.cost:.1f} µs | "
                        f"{found.cost / costs['floor']:.2f}x |"
                        f" {found.average:.3f} ms | {found.worst:.2f} ms | {found.lost} |"
                    )
                    print(lines[-1], flush=True)
        finally:
            for server in servers:
                server.stop()
    return lines


def several(folder: Path, files: dict[str, Path], api: str, to: int) -> list[str]:
    """`multisocket 2` beside one process and CoreDNS, nobody pinned; and what its processes hold.

    The ratios are to as many processes of the floor: what it costs a machine that two processes and the client share
    its cores is in both.
    """
    every = peers.every_core()
    compiled = peers.COMPILED.is_dir()
    two = {"more": "multisocket 2", "cores": every}
    servers = {
        "kdns": peers.kdns(folder, api, to, compiled=compiled, cores=every),
        "kdns, multisocket 2": peers.kdns(folder, api, to, compiled=compiled, **two),
    }
    if shutil.which("coredns"):
        servers["coredns"] = peers.coredns(folder, api, to, cores=every, processors=2)
        servers["coredns, multisocket 2"] = peers.coredns(folder, api, to, processors=2, **two)
    bases = {"floor": peers.floor(1, every), "floor, 2 processes": peers.floor(2, every)}
    time.sleep(8)
    lines = [
        "| mix | load | server | CPU a query | of the floor | answers a second | average | worst | lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    options = ("-c", "20", "-T", "2")
    try:
        for mix in ("hit", "names", "nx"):
            for rate in (10_000, 0):
                load = f"{rate:,} q/s" if rate else "all it takes"
                costs: dict[str, float] = {}
                for name, server in (*bases.items(), *servers.items()):
                    found = dnsperf(server, files[mix], *options, rate=rate, cores=every)
                    costs[name] = found.cost
                    base = "floor, 2 processes" if name.endswith("multisocket 2") else "floor"
                    ratio = found.cost / costs[name if name in bases else base]
                    lines.append(
                        f"| {mix} | {load} | {name} | {found.cost:.1f} µs | {ratio:.2f}x | {found.rate:,.0f} |"
                        f" {found.average:.3f} ms | {found.worst:.2f} ms | {found.lost} |"
                    )
                    print(lines[-1], flush=True)
        lines.append("")
        for name, server in servers.items():
            held = server.proportional()
            lines.append(f"{name}: {sum(held):.0f} MiB PSS ({' + '.join(f'{each:.0f}' for each in held)})")
            print(lines[-1], flush=True)
    finally:
        for server in (*servers.values(), *bases.values()):
            server.stop()
    return lines


def memory(folder: Path, files: dict[str, Path], api: str, to: int) -> list[str]:
    """Resident memory with 10,000 Services through the API, after the sync and after all of their names were asked
    for.
    """
    server = peers.kdns(folder, api, to, compiled=peers.COMPILED.is_dir())
    try:
        time.sleep(6)
        idle = server.resident()
        dnsperf(server, files["names"])
        line = (
            f"10,000 Services through the API: {idle:.0f} MiB after the sync, {server.resident():.0f} MiB after all "
            f"were asked for"
        )
        print(line, flush=True)
        return [line]
    finally:
        server.stop()


def main(words: list[str]) -> int:
    """Measures, prints, and writes results.md."""
    missing = [tool for tool in ("dnsperf", "cc", "knotd") if shutil.which(tool) is None]
    if missing:
        print(f"make bench needs {', '.join(missing)}, and may not install them here", file=sys.stderr)
        return 1
    subprocess.run(["cc", "-O2", "-o", str(HERE / "floor" / "floor"), str(HERE / "floor" / "floor.c")], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        api = ApiServer()
        to = peers.upstream(folder)
        try:
            api.put(*cluster())
            files = questions(folder)
            if words == ["several"]:
                several(folder, files, api.url, to.port)
                return 0
            mixes = [mix for mix in MIXES if not words or any(word in (mix.name, mix.file) for word in words)]
            main_table = per_query(folder, files, api.url, to.port, mixes)
            if words:
                return 0
            method = (
                f"- method: server on core {SERVER_CORE}, dnsperf on core {CLIENT_CORE}; CPU (utime + stime) a query, "
                f"no rate limit,"
                f" 100 in flight, {SECONDS:g} s; ratio to the floor in the same run, median of {RUNS}; kubeadm's whole "
                f"plugin"
                " list, prometheus counting; bars of the interpreted build in brackets"
            )
            parts = [
                ["# Results of `make bench`", "", *(f"- {line}" for line in host()), method],
                main_table,
                ["## At fixed rates", "", *at_rates(folder, files, api.url, to.port)],
                ["## Several processes", "", *several(folder, files, api.url, to.port)],
                ["## Outside names with `searchpath`", "", *outside.mixes(folder, files, api.url, to.port)],
                ["## Transports", "", *transports.table(folder, [])],
                ["## Zone files", "", *zones.table(folder, []), "", *bigzone.table(folder)],
                ["## Memory", "", *memory(folder, files, api.url, to.port), *outside.memory(folder, api.url, to.port)],
            ]
        finally:
            to.stop()
            api.close()
    (HERE / "results.md").write_text("\n\n".join("\n".join(part) for part in parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
