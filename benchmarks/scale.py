"""A large cluster: how soon it is served, what it takes, and what a relist and churn do to answers meanwhile.

    make bench-scale
    python -m benchmarks.scale workers     only what workers of `multisocket` take; nothing is written

kdns on core 0; the API server (benchmarks/bigapi.py), dnsperf and the probe on core 1. The probe asks 500 times a
second and takes each answer's time itself: the percentiles are its, dnsperf only makes the load.
"""

import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from benchmarks.harness import CLIENT_CORE, HERE, Server, host
from kdns.testing import free_port

SERVICES, ENDPOINTS, PODS = 10_000, 150_000, 150_000
COREFILE = """
.:{port} {{
    errors
    {more}
    ready 127.0.0.1:{ready}
    kubernetes cluster.local in-addr.arpa {{
        endpoint http://127.0.0.1:{api}
        pods {pods}
        ttl 30
    }}
    prometheus 127.0.0.1:{metrics}
    cache 30
    loadbalance
}}
"""


def get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def peak(server: Server) -> float:
    """The most resident memory since `forget_peak`, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def forget_peak(server: Server) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


class Probe:
    """Asks for names in turn, 500 times a second, in a process's thread of its own; keeps how long each answer took."""

    def __init__(self, port: int, names: list[str]) -> None:
        self.port = port
        self.queries = [self._query(name) for name in names]
        self.times: list[float] = []
        self.lags: list[float] = []
        self.lost = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    @staticmethod
    def _query(name: str) -> bytes:
        labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
        return b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\0\0\1\0\1"

    def _run(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", self.port))
        sock.settimeout(1)
        i = 0
        while not self.stop.is_set():
            i += 1
            began = time.monotonic()
            try:
                sock.send((i & 0xFFFF).to_bytes(2, "big") + self.queries[i % len(self.queries)])
                reply = sock.recv(4096)
            except OSError:
                self.lost += 1
                continue
            ended = time.monotonic()
            self.times.append(ended - began)
            if reply[7] and reply[-4] == 12:  # an address that says when it was sent
                self.lags.append(((int(ended * 1000) & 0xFFFFFF) - int.from_bytes(reply[-3:], "big")) / 1000)
            time.sleep(max(0.002 - (time.monotonic() - began), 0))
        sock.close()

    def end(self) -> dict[str, float]:
        """Percentiles in ms, and what was lost."""
        self.stop.set()
        self.thread.join()
        ordered = sorted(self.times)
        at = {p: ordered[min(int(len(ordered) * p / 100), len(ordered) - 1)] * 1e3 for p in (50, 99, 99.9)}
        return {
            "p50": at[50],
            "p99": at[99],
            "p99.9": at[99.9],
            "max": ordered[-1] * 1e3,
            "lost": self.lost,
            "n": len(ordered),
        }


def start(folder: Path, pods: bool, streams: bool, more: str = "") -> tuple[Server, Server, dict[str, int], float]:
    """An API server and a kdns that has synced; its ports, and the seconds from its start until it was ready. `more`: a
    line of its Corefile.
    """
    ports = {name: free_port() for name in ("port", "ready", "api", "metrics")}
    words = [str(word) for word in (ports["api"], SERVICES, ENDPOINTS, PODS if pods else 0, int(streams))]
    api = Server("api", sys.executable, "-m", "benchmarks.bigapi", *words, port=ports["api"], cores=CLIENT_CORE)
    while not get(ports["api"], "/api/v1/namespaces?limit=1"):
        time.sleep(0.2)
    path = folder / "Corefile"
    path.write_text(COREFILE.format(**ports, more=more, pods="verified" if pods else "insecure"))
    began = time.monotonic()
    server = Server("kdns", sys.executable, "-m", "kdns", "-conf", str(path), port=ports["port"])
    while get(ports["ready"], "/ready") != "OK":
        time.sleep(0.01)
    return api, server, ports, time.monotonic() - began


def shown(found: dict[str, float]) -> str:
    return f"{found['p50']:.2f} | {found['p99']:.2f} | {found['p99.9']:.2f} | {found['max']:.2f} | {found['lost']:.0f}"


def load(folder: Path, ports: dict[str, int], rate: int, seconds: float) -> "subprocess.Popen[str]":
    names = folder / "names"
    names.write_text("".join(f"s{i}.n{i % 50}.svc.cluster.local A\n" for i in range(0, SERVICES, 7)))
    words = ["taskset", "-c", CLIENT_CORE, "dnsperf", "-s", "127.0.0.1", "-p", str(ports["port"]), "-d", str(names)]
    words += ["-l", f"{seconds:g}", "-Q", str(rate), "-c", "4", "-q", "1000"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def gc_longest(ports: dict[str, int]) -> float:
    found = re.search(r"^kdns_gc_pass_longest_seconds ([0-9.e-]+)", get(ports["metrics"], "/metrics"), re.M)
    return float(found[1]) * 1e3 if found else float("nan")


def one(folder: Path, pods: bool, streams: bool) -> list[str]:
    """One cluster: start, relist under load, churn under load."""
    what = f"{'streamed' if streams else 'in pages'}{', pods verified' if pods else ''}"
    api, server, ports, ready = start(folder, pods, streams)
    try:
        time.sleep(1)
        steady = server.resident()
        names = [f"s{i}.n{i % 50}.svc.cluster.local" for i in range(0, 5000, 13)]
        forget_peak(server)
        probe = Probe(ports["port"], names)
        running = load(folder, ports, 2000, 8)
        time.sleep(1)
        get(ports["api"], "/expire")
        running.wait()
        relist = probe.end()
        lines = [f"| {what} | {ready:.2f} s | {steady:.0f} MiB | {peak(server) / steady:.2f}x | {shown(relist)} |"]
        print(lines[-1], flush=True)
        if streams and not pods:
            probe = Probe(ports["port"], [f"churn{i}.n1.svc.cluster.local" for i in range(100)])
            running = load(folder, ports, 20_000, 10)
            time.sleep(1)
            get(ports["api"], "/churn?rate=1000&seconds=8")
            out = running.communicate()[0]
            churn = probe.end()
            lags = sorted(lag for lag in probe.lags if lag >= 0)
            rate = re.search(r"Queries per second:\s+([0-9.]+)", out)
            lost = re.search(r"Queries lost:\s+(\d+)", out)
            line = (
                f"1,000 changes a second under {float(rate[1]) if rate else 0:,.0f} q/s: p50, p99, p99.9, max (ms), "
                f"lost: {shown(churn)}"
            )
            line += f"; of the load {lost[1] if lost else '?'} lost; longest collection {gc_longest(ports):.1f} ms"
            print(line, flush=True)
            lines += [
                line,
                f"(each Service changes 10 times a second; the age of answers is {lags[len(lags) // 2] * 1e3:.0f} ms "
                f"median)",
            ]
        if streams and pods:
            lines += warm(folder, server, api, ports)
        return lines
    finally:
        server.stop()
        api.stop()


def workers(folder: Path) -> list[str]:
    """What each worker more of `multisocket` takes, beside a single process."""
    held: dict[int, list[float]] = {}
    for count in (1, 2, 3):
        api, server, _, _ = start(folder, False, True, f"multisocket {count}")
        try:
            time.sleep(5)  # until what a worker needs once only is given back
            held[count] = server.proportional()
        finally:
            server.stop()
            api.stop()
    single, two, beyond = sum(held[1]), sum(held[2]), sum(held[3]) - sum(held[2])
    line = (
        f"`multisocket 2`: {two:.0f} MiB PSS ({' + '.join(f'{each:.0f}' for each in held[2])}), a single process "
        f"{single:.0f}; a third worker takes {beyond:.0f} more, {beyond / single:.0%} of a single process (bar: 60 %)"
    )
    print(line, flush=True)
    return [line]


def warm(folder: Path, server: Server, api: Server, ports: dict[str, int]) -> list[str]:
    """A start from a snapshot while the API is down: seconds until the first right answer."""
    server.stop()
    path = folder / "Corefile"
    path.write_text(path.read_text().replace("ttl 30", f"ttl 30\n        snapshot {folder}/snapshot"))
    words = (sys.executable, "-m", "kdns", "-conf", str(path))
    first = Server("kdns", *words, port=ports["port"])
    while get(ports["ready"], "/ready") != "OK":
        time.sleep(0.01)
    time.sleep(1)
    first.process.terminate()
    first.process.wait(20)
    api.process.kill()
    size = (folder / "snapshot").stat().st_size / 1e6
    began = time.monotonic()
    second = Server("kdns", *words, port=ports["port"])
    query = Probe._query("s1.n1.svc.cluster.local")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", ports["port"]))
        sock.settimeout(0.02)
        while True:
            try:
                sock.send(b"\0\1" + query)
                if sock.recv(512)[7]:
                    break
            except OSError:
                time.sleep(0.01)
    took = time.monotonic() - began
    second.stop()
    line = f"Start from a snapshot of {size:.0f} MB (Pods too) while the API is down: first answer after {took:.2f} s"
    print(line, flush=True)
    return [line]


def main() -> int:
    """Measures, prints, and writes scale.md."""
    title = f"{SERVICES:,} Services, {ENDPOINTS:,} endpoints"
    head = [f"# Results of `make bench-scale`: {title}", "", *(f"- {line}" for line in host()[:3]),
            "- method: kdns on core 0; API server, dnsperf and the probe on core 1; latency in ms as a probe of 500 "
            "q/s sees it",
            "  (probe and load share a core, so its worst are theirs too); relist under 2,000 q/s", ""]  # fmt: skip
    table = [
        "| list | ready | resident | peak in a relist | p50 | p99 | p99.9 | max | lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1:] == ["workers"]:
            workers(Path(name))
            return 0
        for pods, streams in ((False, True), (False, False), (True, True)):
            row, *more = one(Path(name), pods, streams)
            table.append(row)
            notes += more
        notes += ["", *workers(Path(name))]
    (HERE / "scale.md").write_text("\n".join([*head, *table, "", *notes]) + "\n")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(HERE.parent))
    assert platform.system() == "Linux"
    sys.exit(main())
