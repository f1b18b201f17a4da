"""What a query costs over each transport: a hit, kdns beside CoreDNS in the same run.

    python -m benchmarks.transports [TRANSPORT...]     prints a table

One process of each server has a block for every transport. Plain DNS and TLS are asked by dnsperf (which over HTTPS
loses all but one of the answers that come in one TLS record), HTTPS and gRPC by h2load, which posts the same request
over and over, QUIC and HTTP/3 by benchmarks.quicload. `in flight` is of each connection. CPU (utime + stime) is the
server's alone, divided by the answers; all in turn, RUNS times, the median counts.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import trustme

from benchmarks import peers
from benchmarks.harness import CLIENT_CORE, HERE, HZ, RUNS, SECONDS, Server, dnsperf, host
from kdns.dns import grpc
from kdns.testing import free_port

NAME: Final = "s0.n0.svc.cluster.local"
SCHEMES: Final = ("dns", "tls", "https", "grpc", "quic", "https3")


class Row(NamedTuple):
    """A line of the table. `bar`: what kdns may cost as a part of CoreDNS's cost, 0 for none."""

    name: str
    scheme: str
    connections: int
    in_flight: int
    bar: float = 0.0


ROWS: Final = (
    Row("UDP", "dns", 4, 25),
    Row("TLS, pipelined", "tls", 10, 10, 0.6),
    Row("HTTPS (HTTP/2)", "https", 4, 25, 1.0),
    Row("gRPC", "grpc", 4, 25, 1.0),
    Row("QUIC, one query at a time", "quic", 1, 1),
    Row("QUIC", "quic", 4, 10),
    Row("HTTPS (HTTP/3), one query at a time", "https3", 1, 1),
    Row("HTTPS (HTTP/3)", "https3", 4, 10),
)


class Ways(Server):
    """A server with a block for every transport; `ports` by scheme."""

    ports: dict[str, int]

    def at(self, scheme: str) -> "Ways":
        """Itself, to be asked over a scheme."""
        self.port = self.ports[scheme]
        return self


def begin(folder: Path, name: str, words: list[str]) -> Ways:
    """Starts a server."""
    ports = {scheme: free_port() for scheme in SCHEMES}
    text = ""
    for scheme, port in ports.items():
        tls = "" if scheme == "dns" else f" tls {folder}/tls.crt {folder}/tls.key\n"
        hosts = f" hosts {{\n 10.96.0.1 {NAME}\n ttl 30\n }}\n"
        text += f"{scheme}://.:{port} {{\n bind 127.0.0.1\n{tls} errors\n{hosts}}}\n"
    path = folder / f"Corefile.{name}"
    path.write_text(text)
    made = Ways(name, *words, "-conf", str(path), port=0, cwd=folder)
    made.ports = ports
    return made


def kdns(folder: Path, *, compiled: bool) -> Ways:
    """A kdns: the compiled package, or the checkout's."""
    where = peers.COMPILED if compiled else HERE.parent
    words = ["env", f"PYTHONPATH={where}", sys.executable, "-m", "kdns"]
    return begin(folder, "kdns compiled" if compiled else "kdns", words)


def by_dnsperf(*options: str) -> Callable[[Ways, Row, Path], float]:
    """Asks with dnsperf."""

    def ask(server: Ways, row: Row, folder: Path) -> float:
        most = str(row.connections * row.in_flight)
        return dnsperf(server, folder / "hit", *options, "-c", str(row.connections), "-q", most, warm=0.3).cost

    return ask


def _cost(server: Ways, words: list[str], answers: Callable[[str], int]) -> float:
    """Runs a client; microseconds of CPU a query."""
    before = server.ticks()
    done = subprocess.run(
        ["taskset", "-c", CLIENT_CORE, *words], capture_output=True, text=True, timeout=SECONDS + 60, cwd=HERE.parent
    )
    used = server.ticks() - before
    count = answers(done.stdout)
    return used / HZ * 1e6 / count if count else float("nan")


def by_quicload(server: Ways, row: Row, folder: Path) -> float:
    """Asks with benchmarks.quicload."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.quicload",
        "doq" if row.scheme == "quic" else "h3",
        str(server.port),
        NAME,
    ]
    words += [f"{SECONDS:g}", str(row.connections), str(row.in_flight)]
    return _cost(server, words, lambda text: int((text or "0").split()[0]))


def by_h2load(server: Ways, row: Row, folder: Path) -> float:
    """Asks with h2load."""
    words = ["h2load", "-D", f"{SECONDS:g}", "-c", str(row.connections), "-m", str(row.in_flight)]
    if row.scheme == "grpc":
        words += ["-d", str(folder / "call"), "-H", f"content-type: {grpc.TYPE.decode()}", "-H", "te: trailers"]
        path = grpc.PATH.decode()
    else:
        words += ["-d", str(folder / "query"), "-H", "content-type: application/dns-message"]
        path = "/dns-query"
    words += [f"https://127.0.0.1:{server.port}{path}"]

    def answers(text: str) -> int:
        found = re.search(r"status codes: (\d+) 2xx", text)
        return int(found[1]) if found else 0

    return _cost(server, words, answers)


CLIENTS: Final[dict[str, Callable[[Ways, Row, Path], float]]] = {
    "dns": by_dnsperf(),
    "tls": by_dnsperf("-m", "dot"),
    "https": by_h2load,
    "grpc": by_h2load,
    "quic": by_quicload,
    "https3": by_quicload,
}


def table(folder: Path, only: list[str]) -> list[str]:
    """The lines of the table; `only` these transports, all where there is none."""
    made = trustme.CA().issue_cert("127.0.0.1", NAME)
    made.private_key_pem.write_to_path(str(folder / "tls.key"))
    made.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    (folder / "hit").write_text(f"{NAME} A\n")
    labels = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
    query = b"\0\0\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    (folder / "query").write_bytes(query)
    (folder / "call").write_bytes(grpc.packed(query))
    servers = [kdns(folder, compiled=True)] if peers.COMPILED.is_dir() else []
    servers.append(kdns(folder, compiled=False))
    if shutil.which("coredns"):
        servers.append(begin(folder, "coredns", ["env", "GOMAXPROCS=1", "coredns"]))
    lines = [f"| transport | connections x in flight | bar | {' | '.join(server.name for server in servers)} |"]
    lines.append("|---|---|---|" + "---|" * len(servers))
    print("\n".join(lines), flush=True)
    time.sleep(4)
    try:
        for row in ROWS:
            if (only and row.scheme not in only) or (
                row.scheme in ("https", "grpc") and shutil.which("h2load") is None
            ):
                continue
            costs: dict[str, list[float]] = {server.name: [] for server in servers}
            for _ in range(RUNS):
                for server in servers:
                    costs[server.name].append(CLIENTS[row.scheme](server.at(row.scheme), row, folder))
            lines.append(_line(row, {name: statistics.median(every) for name, every in costs.items()}))
            print(lines[-1], flush=True)
    finally:
        for server in servers:
            server.stop()
    return lines


def _line(row: Row, costs: dict[str, float]) -> str:
    theirs = costs.get("coredns", 0.0)
    cells = [
        f"{cost:.1f} µs" + (f" ({cost / theirs:.2f})" if theirs and name != "coredns" else "")
        for name, cost in costs.items()
    ]
    bar = f"{row.bar:.1f}" if row.bar else ""
    return f"| {row.name} | {row.connections} x {row.in_flight} | {bar} | {' | '.join(cells)} |"


def main(words: list[str]) -> None:
    """Prints the table."""
    print("\n".join(f"- {line}" for line in host()), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        table(folder, words)


if __name__ == "__main__":
    main(sys.argv[1:])
