"""What it costs to tell clients apart and to look names up on a list: mixes with and without `tenants` and `blocklist`.

    python -m benchmarks.clients      prints a table

The cluster has 5,000 Pods, and the client is one of them. The list has 1,000,000 names. Servers are measured in turn, a
few times, and the median of the differences counts.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.files import wait
from benchmarks.harness import dnsperf, host
from benchmarks.mixes import NAMESPACES, cluster, questions
from kdns.testing import ApiServer
from kdns.testing.objects import pod

PODS: Final = 5_000
NAMES: Final = 1_000_000
RUNS: Final = 3
SECONDS: Final = 1.5
MIXES: Final = ("hit", "names", "outside", "miss")
HIT: Final = b"\0\0\1\0\0\1\0\0\0\0\0\0\2s0\2n0\3svc\7cluster\5local\0\0\1\0\1"


def main() -> None:
    """Prints the table."""
    print("\n".join(host()), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "list").write_text("".join(f"n{i}.ads{i % 977}.example.org\n" for i in range(NAMES)))
        options = {
            "": "",
            "tenants": "tenants cluster.local {\n isolate\n unknown deny\n }",
            "blocklist": f"blocklist {{\n file {folder / 'list'}\n }}",
        }
        api = ApiServer()
        to = peers.upstream(folder)
        try:
            api.put(*cluster(), pod("n0/client", "127.0.0.1"))
            api.put(*(pod(f"n{i % NAMESPACES}/p{i}", f"10.244.{i >> 8}.{i & 255}") for i in range(PODS)))
            files = questions(folder)
            compiled = peers.COMPILED.is_dir() and "interpreted" not in sys.argv
            servers = {
                what: peers.kdns(folder, api.url, to.port, compiled=compiled, more=more)
                for what, more in options.items()
            }
            try:
                for server in servers.values():
                    wait(server.port, HIT)
                _print(servers, files)
            finally:
                for server in servers.values():
                    server.stop()
        finally:
            to.stop()
            api.close()


def _print(servers: dict[str, peers.Server], files: dict[str, Path]) -> None:
    print("| mix | without | with tenants | with blocklist |\n|---|---|---|---|")
    for mix in MIXES:
        costs: dict[str, list[float]] = {what: [] for what in servers}
        for _ in range(RUNS):
            for what, server in servers.items():
                costs[what].append(dnsperf(server, files[mix], seconds=SECONDS, warm=0.3).cost)
        more = [
            statistics.median(each - plain for each, plain in zip(costs[what], costs[""], strict=True))
            for what in ("tenants", "blocklist")
        ]
        print(f"| {mix} | {statistics.median(costs['']):.2f} us | {more[0]:+.2f} us | {more[1]:+.2f} us |", flush=True)
    sizes = ", ".join(f"{what or 'without'} {server.resident():.0f}" for what, server in servers.items())
    print(f"\nMiB: {sizes}")


if __name__ == "__main__":
    main()
