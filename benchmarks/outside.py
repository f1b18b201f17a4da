"""Outside names: what a cached one, a forwarded one, and a Pod's whole search list cost; and the cache's memory.

The upstream is a knotd on the clients' core that answers any name below example.net, and denies any below nx.test. The mixes
are what a Pod's resolver asks with `ndots:5` and the cluster's three search domains, A and AAAA for each candidate: eight
queries for an outside name. With `searchpath` the first two are answered, and the resolver asks no more. CoreDNS's total is
made of the costs a query that are stated for it (see CASES), where it is not on PATH to be measured.
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import CLIENT_CORE, HERE, RUNS, Server, dnsperf
from tests.running import free_port

# CoreDNS 1.14.7's ratios to the floor: a cached outside name, a forwarded one, a denial of a cluster name.
STATED_HIT, STATED_MISS, STATED_DENIAL = 3.5, 10.0, 6.9
NAMES = 1000
SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "")

COREFILE = """
.:{port} {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
       manifests {sample}
    }
    prometheus 127.0.0.1:{metrics}
    {more}
    forward . 127.0.0.1:{upstream} {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    loadbalance
}
"""


def upstream(folder: Path) -> Server:
    """A knotd that answers everything below example.net and nothing below nx.test."""
    port = free_port()
    soa = "@ 60 SOA ns hostmaster 1 7200 1800 86400 60\n@ 60 NS ns\nns 60 A 192.0.2.53\n"
    (folder / "example.net.zone").write_text("$ORIGIN example.net.\n" + soa + "* 60 A 192.0.2.1\n* 60 AAAA 2001:db8::1\n")
    (folder / "nx.test.zone").write_text("$ORIGIN nx.test.\n" + soa)
    (folder / "upstream.conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}/up\n  udp-workers: 1\n  tcp-workers: 1\n"
        f"database:\n  storage: {folder}/up-db\ntemplate:\n  - id: default\n    storage: {folder}\n    zonefile-sync: -1\n"
        "zone:\n  - domain: example.net\n    file: example.net.zone\n  - domain: nx.test\n    file: nx.test.zone\n"
    )
    (folder / "up").mkdir(exist_ok=True)
    return Server("upstream", "knotd", "-c", str(folder / "upstream.conf"), port=port, cores=CLIENT_CORE)


def kdns(folder: Path, to: Server, more: str = "") -> Server:
    """A kdns with kubeadm's plugins that forwards to the upstream."""
    port = free_port()
    text = COREFILE.replace("{sample}", str(HERE.parent / "kdns" / "cli" / "sample" / "cluster.yaml")).replace("{more}", more)
    for word, number in (("port", port), ("metrics", free_port()), ("upstream", to.port)):
        text = text.replace(f"{{{word}}}", str(number))
    path = folder / f"Corefile.{port}"
    path.write_text(text)
    return Server("kdns", sys.executable, "-m", "kdns", "-conf", str(path), port=port)


def peers(folder: Path, to: Server) -> Iterator[Server]:
    """Forwarding caches that are on PATH."""
    if shutil.which("unbound"):
        port = free_port()
        (folder / "forward.conf").write_text(
            f'server:\n  interface: 127.0.0.1@{port}\n  do-daemonize: no\n  username: ""\n  chroot: ""\n  directory: "{folder}"\n'
            f'  pidfile: "{folder}/forward.pid"\n  use-syslog: no\n  num-threads: 1\n  module-config: "iterator"\n'
            '  do-not-query-localhost: no\n  local-zone: "test." nodefault\n'
            f'forward-zone:\n  name: "."\n  forward-addr: 127.0.0.1@{to.port}\n'
        )
        yield Server("unbound", "unbound", "-d", "-c", str(folder / "forward.conf"), port=port)
    if shutil.which("dnsmasq"):
        port = free_port()
        words = ["dnsmasq", "-k", "-C", "/dev/null", f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces"]
        words += ["--no-resolv", "--no-hosts", f"--server=127.0.0.1#{to.port}", "--cache-size=10000", "--dns-forward-max=1000"]
        yield Server("dnsmasq", *words, "--user=root", "--pid-file=", port=port)
    if shutil.which("coredns"):
        port = free_port()
        (folder / "Corefile.forward").write_text(f".:{port} {{\n errors\n forward . 127.0.0.1:{to.port}\n cache 30\n loop\n}}\n")
        yield Server("coredns", "env", "GOMAXPROCS=1", "coredns", "-conf", str(folder / "Corefile.forward"), port=port)


def measure(folder: Path) -> list[str]:
    """The table of outside names, and the one of Pods' mixes."""
    if shutil.which("knotd") is None:
        return ["not measured: knotd, the upstream, is not on PATH"]
    to = upstream(folder)
    port = free_port()
    floor = Server("floor", str(HERE / "floor" / "floor"), "127.0.0.1", str(port), port=port)
    servers = [kdns(folder, to), *peers(folder, to)]
    hits, misses = folder / "hits", folder / "misses"
    hits.write_text("www.example.net A\n")
    misses.write_text("".join(f"m{i}.example.net A\n" for i in range(400_000)))
    lines = [f"| case | bar | {' | '.join(server.name for server in servers)} | CoreDNS 1.14.7, stated |"]
    lines.append("|---|---|" + "---|" * (len(servers) + 1))
    try:
        time.sleep(3)
        for name, file, bar, stated in (
            ("cached outside name", hits, 2.3, STATED_HIT),
            ("forwarded miss", misses, 7.5, STATED_MISS),
        ):
            ratios: dict[str, list[float]] = {}
            for _ in range(RUNS):
                base = dnsperf(floor, hits).cost
                for server in servers:
                    ratios.setdefault(server.name, []).append(dnsperf(server, file, warm=0 if file is misses else 1).cost / base)
            cells = " | ".join(f"{statistics.median(ratios[server.name]):.2f}x" for server in servers)
            lines.append(f"| {name} | {bar}x | {cells} | {stated}x |")
            print(lines[-1], flush=True)
        for server in servers:
            server.stop()
        lines += ["", *mixes(folder, floor, to)]
    finally:
        for server in (*servers, floor, to):
            server.stop()
    return lines


def mixes(folder: Path, floor: Server, to: Server) -> list[str]:
    """CPU for whole names, as Pods ask for them, in floors (the floor's CPU for one query)."""
    lines = ["CPU of one name with its whole search list, in floors:", ""]
    lines += ["| mix | queries | kdns with searchpath | CoreDNS, from stated costs | part | bar |", "|---|---|---|---|---|---|"]
    hits = folder / "hits"
    for what, zone, suffixes, bar in (
        ("outside names", "example.net", SEARCH[:1], 1 / 4),
        ("names that do not exist", "nx.test", SEARCH, 1 / 2),
    ):
        for share, new in (("all new", 1.0), ("nine in ten cached", 0.1), ("all cached", 0.0)):
            stated = 6 * STATED_DENIAL + 2 * (new * STATED_MISS + (1 - new) * STATED_HIT)
            costs = []
            for _ in range(RUNS):
                base = dnsperf(floor, hits).cost
                server = kdns(folder, to, "searchpath")
                time.sleep(2)
                file = folder / "mix"
                # Enough names for the whole run where there are new ones; those that are not new are one of NAMES.
                names = [f"n{i}" if i % 10 < new * 10 else f"p{i % NAMES}" for i in range(NAMES * (40 if new else 1))]
                asked = [f"{name}.{zone}.{suffix} {kind}" for name in names for suffix in suffixes for kind in ("A", "AAAA")]
                file.write_text("\n".join(asked) + "\n")
                found = dnsperf(server, file, "-n", "1", warm=0, seconds=60) if new else dnsperf(server, file)
                server.stop()
                costs.append(found.cost * len(asked) / len(names) / base)
            cost = statistics.median(costs)
            queries = 2 * len(suffixes)
            lines.append(f"| {what}, {share} | {queries} | {cost:.1f} | {stated:.1f} | {cost / stated:.2f} | {bar:.2f} |")
            print(lines[-1], flush=True)
    return lines


def memory(folder: Path) -> list[str]:
    """Resident memory while a million distinct names go through a full cache."""
    if shutil.which("knotd") is None:
        return []
    count = int(os.environ.get("BENCH_NAMES", "1000000"))
    to = upstream(folder)
    server = kdns(folder, to)
    sizes = []
    try:
        time.sleep(3)
        for part in range(10):
            file = folder / "names"
            file.write_text("".join(f"n{i}.example.net A\n" for i in range(part * count // 10, (part + 1) * count // 10)))
            dnsperf(server, file, "-n", "1", warm=0, seconds=120)
            sizes.append(server.resident())
            print(f"{(part + 1) * count // 10:,} names: {sizes[-1]:.0f} MiB", flush=True)
    finally:
        server.stop()
        to.stop()
    line = f"{count:,} distinct names through a cache of 10,000: {sizes[0]:.0f} MiB after the first tenth,"
    return ["", f"{line} {max(sizes[1:]):.0f} MiB at most after that, {sizes[-1]:.0f} MiB at the end"]
