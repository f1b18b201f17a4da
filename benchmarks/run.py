"""`make bench`: what a query costs, beside a C program that only receives and sends, in the same run.

Method. The server is pinned to core 0, dnsperf to core 1; CPU is utime + stime of the server's process over the run,
divided by the queries answered. Figures are ratios to the floor (benchmarks/floor/floor.c) measured right before, as
absolute ones do not hold on shared machines: RUNS times, the median counts. Peers that are on PATH (knotd, unbound,
coredns) answer the same names. Results go to benchmarks/results.md.
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import outside
from benchmarks.harness import CLIENT_CORE, HERE, RUNS, SECONDS, SERVER_CORE, Server, dnsperf, host
from tests.apiserver import ApiServer
from tests.objects import endpoint, endpointslice, namespace, service
from tests.running import free_port

COREFILE = """
.:{port} {
    errors
    health 127.0.0.1:{health} {
       lameduck 5s
    }
    ready 127.0.0.1:{ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
       {source}
    }
    prometheus 127.0.0.1:{metrics}
    forward . 127.0.0.1:{upstream} {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""
# What is measured: name, the query file, dnsperf's options, the bar as a ratio to the floor, CoreDNS 1.14.7's ratio.
CASES = (
    ("cluster A hit", "a", (), 2.2, 3.1),
    ("SRV", "srv", (), 2.4, 3.9),
    ("PTR", "ptr", (), 2.4, 3.3),
    ("unique NXDOMAIN", "nx", (), 2.6, 6.9),
    ("TCP hit, 10 pipelining connections", "a", ("-m", "tcp", "-c", "10"), 1.3, 2.4),
)


def query_files(folder: Path) -> dict[str, Path]:
    """The questions of each case."""
    chance = random.Random(1)
    texts = {
        "a": "web.shop.svc.cluster.local A\n",
        "srv": "_http._tcp.web.shop.svc.cluster.local SRV\n",
        "ptr": "5.1.96.10.in-addr.arpa PTR\n",
        "nx": "".join(f"x{i}y{chance.randrange(10**6)}.shop.svc.cluster.local A\n" for i in range(300_000)),
    }
    out = {}
    for name, text in texts.items():
        out[name] = folder / name
        out[name].write_text(text)
    return out


def corefile(folder: Path, source: str) -> tuple[Path, int]:
    """kubeadm's whole plugin list on free ports."""
    port = free_port()
    text = COREFILE.replace("{source}", source).replace("{port}", str(port))
    for word in ("health", "ready", "metrics", "upstream"):
        text = text.replace(f"{{{word}}}", str(free_port()))
    path = folder / f"Corefile.{port}"
    path.write_text(text)
    return path, port


def kdns(folder: Path, source: str, cores: str = SERVER_CORE) -> Server:
    """A kdns with kubeadm's Corefile."""
    path, port = corefile(folder, source)
    return Server("kdns", sys.executable, "-m", "kdns", "-conf", str(path), port=port, cores=cores)


def peers(folder: Path, api: ApiServer) -> list[Server]:
    """The peers that are on PATH, answering the same names."""
    out = []
    zone = (
        "cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30\n"
        "web.shop.svc.cluster.local. 30 A 10.96.1.5\n"
        "_http._tcp.web.shop.svc.cluster.local. 30 SRV 0 100 80 web.shop.svc.cluster.local.\n"
    )
    soa = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"
    reverse = f"10.in-addr.arpa. 30 SOA {soa}\n5.1.96.10.in-addr.arpa. 30 PTR web.shop.svc.cluster.local.\n"
    if shutil.which("knotd"):
        port = free_port()
        (folder / "cluster.zone").write_text(zone)
        (folder / "reverse.zone").write_text(reverse)
        (folder / "knot.conf").write_text(
            f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n"
            f"database:\n  storage: {folder}/knot-db\ntemplate:\n  - id: default\n    storage: {folder}\n    zonefile-sync: -1\n"
            "zone:\n  - domain: cluster.local\n    file: cluster.zone\n  - domain: 10.in-addr.arpa\n    file: reverse.zone\n"
        )
        out.append(Server("knot", "knotd", "-c", str(folder / "knot.conf"), port=port))
    if shutil.which("unbound"):
        port = free_port()
        data = "".join(f'  local-data: "{line}"\n' for line in (zone + reverse).splitlines())
        (folder / "unbound.conf").write_text(
            f'server:\n  interface: 127.0.0.1@{port}\n  do-daemonize: no\n  username: ""\n  chroot: ""\n  directory: "{folder}"\n'
            f'  pidfile: "{folder}/unbound.pid"\n  use-syslog: no\n  num-threads: 1\n  incoming-num-tcp: 100\n'
            '  local-zone: "cluster.local." static\n  local-zone: "10.in-addr.arpa." static\n' + data
        )
        out.append(Server("unbound", "unbound", "-d", "-c", str(folder / "unbound.conf"), port=port))
    if shutil.which("coredns"):
        path, port = corefile(folder, f"endpoint {api.url}")
        out.append(Server("coredns", "env", "GOMAXPROCS=1", "coredns", "-conf", str(path), port=port))
    return out


def per_query(folder: Path, sample: str, api: ApiServer) -> list[str]:
    """The main table: ratios to the floor."""
    files = query_files(folder)
    floor_port = free_port()
    servers = [
        Server("floor", str(HERE / "floor" / "floor"), "127.0.0.1", str(floor_port), port=floor_port),
        kdns(folder, sample),
    ]
    servers += peers(folder, api)
    time.sleep(3)
    lines = [
        f"| case | bar | {' | '.join(server.name for server in servers[1:])} | CoreDNS 1.14.7, stated |",
        "|---|---|" + "---|" * len(servers),
    ]
    try:
        for name, file, options, bar, stated in CASES:
            ratios: dict[str, list[float]] = {}
            costs: dict[str, list[float]] = {}
            for _ in range(RUNS):
                base = dnsperf(servers[0], files[file]).cost
                for server in servers[1:]:
                    cost = dnsperf(server, files[file], *options).cost
                    ratios.setdefault(server.name, []).append(cost / base)
                    costs.setdefault(server.name, []).append(cost)
            cells = [
                f"{statistics.median(ratios[server.name]):.2f}x ({statistics.median(costs[server.name]):.1f} µs)"
                for server in servers[1:]
            ]
            lines.append(f"| {name} | {bar}x | {' | '.join(cells)} | {stated}x |")
            print(lines[-1], flush=True)
    finally:
        for server in servers:
            server.stop()
    return lines


def at_rates(folder: Path, sample: str) -> list[str]:
    """Cost and latency at fixed rates, pinned, and latency unpinned on all cores."""
    files = query_files(folder)
    every = f"0-{(os.cpu_count() or 1) - 1}"
    lines = ["| load | CPU a query | average | worst | lost |", "|---|---|---|---|---|"]
    for cores, client, where in ((SERVER_CORE, CLIENT_CORE, "pinned"), (every, every, "unpinned, all cores")):
        server = kdns(folder, sample, cores)
        time.sleep(2)
        try:
            for rate in (2_000, 10_000):
                found = dnsperf(server, files["a"], rate=rate, cores=client)
                lines.append(
                    f"| {rate:,} q/s, {where} | {found.cost:.1f} µs | {found.average:.3f} ms | {found.worst:.2f} ms | {found.lost} |"
                )
                print(lines[-1], flush=True)
        finally:
            server.stop()
    return lines


def memory(folder: Path) -> list[str]:
    """Resident memory with 1,000 Services and 5,000 endpoints through the API."""
    api = ApiServer()
    try:
        objects: list[dict[str, Any]] = [namespace(f"n{i}") for i in range(10)]
        for i in range(1000):
            objects.append(service(f"n{i % 10}/s{i}", f"10.96.{i // 250}.{i % 250}"))
            ends = [endpoint(f"10.{200 + j}.{i // 250}.{i % 250}", pod=f"s{i}-{j}") for j in range(5)]
            objects.append(endpointslice(f"n{i % 10}/s{i}-x", f"s{i}", *ends))
        api.put(*objects)
        server = kdns(folder, f"endpoint {api.url}")
        try:
            time.sleep(4)
            names = folder / "memory"
            names.write_text("".join(f"s{i}.n{i % 10}.svc.cluster.local A\n" for i in range(1000)))
            idle = server.resident()
            dnsperf(server, names)
            line = f"1,000 Services, 5,000 endpoints through the API: {idle:.0f} MiB after the sync,"
            line += f" {server.resident():.0f} MiB after load (bar: 90)"
            print(line, flush=True)
            return [line]
        finally:
            server.stop()
    finally:
        api.close()


def main() -> int:
    """Measures, prints, and writes results.md."""
    if shutil.which("dnsperf") is None or shutil.which("cc") is None:
        print("make bench needs dnsperf and a C compiler, and may not install them here", file=sys.stderr)
        return 1
    subprocess.run(["cc", "-O2", "-o", str(HERE / "floor" / "floor"), str(HERE / "floor" / "floor.c")], check=True)
    sample = f"manifests {HERE.parent / 'kdns' / 'cli' / 'sample' / 'cluster.yaml'}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        api = ApiServer()
        try:
            api.put(
                namespace("shop"), service("shop/web", "10.96.1.5"), endpointslice("shop/web-1", "web", endpoint("10.244.1.10"))
            )
            method = (
                f"- method: server on core {SERVER_CORE}, dnsperf on core {CLIENT_CORE}; CPU (utime + stime) a query, no rate limit,"
                f" 100 in flight, {SECONDS:g} s; ratio to the floor in the same run, median of {RUNS}; kubeadm's whole plugin"
                " list, prometheus counting"
            )
            parts = [
                ["# Results of `make bench`", "", *(f"- {line}" for line in host()), method],
                per_query(folder, sample, api),
                ["## At fixed rates", "", *at_rates(folder, sample)],
                ["## Outside names", "", *outside.measure(folder)],
                ["## Memory", "", *memory(folder), *outside.memory(folder)],
            ]
        finally:
            api.close()
    (HERE / "results.md").write_text("\n\n".join("\n".join(part) for part in parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
