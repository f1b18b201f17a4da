"""What the benchmarks share: pinned processes, their CPU, dnsperf, and what machine this is."""

import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

from kdns import __version__

HERE = Path(__file__).resolve().parent
SECONDS = float(os.environ.get("BENCH_SECONDS", "4"))
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
SERVER_CORE, CLIENT_CORE = "0", "1"
HZ = os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """One dnsperf run: microseconds of CPU a query, queries a second, average and worst latency in ms, queries lost."""

    cost: float
    rate: float
    average: float
    worst: float
    lost: int


class Server:
    """A process pinned to the servers' core."""

    def __init__(self, name: str, *words: str, port: int, cores: str = SERVER_CORE, cwd: Path | None = None) -> None:
        self.name = name
        self.port = port
        self.process = subprocess.Popen(
            ["taskset", "-c", cores, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=cwd
        )

    def processes(self) -> list[int]:
        """Itself and all that it has started (`multisocket`)."""
        return _family(self.process.pid)

    def ticks(self) -> int:
        every = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.processes()]
        return sum(int(fields[11]) + int(fields[12]) for fields in every)

    def proportional(self) -> list[float]:
        """PSS of each process, MiB."""
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes()]
        return [int(found[1]) / 1024 for text in texts if (found := re.search(r"Pss:\s+(\d+) kB", text))]

    def resident(self) -> float:
        """MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else 0.0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _family(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for each in tasks for word in each.read_text().split()]
    return [pid, *(each for child in children for each in _family(child))]


def dnsperf(
    server: Server,
    queries: Path,
    *options: str,
    rate: int = 0,
    seconds: float = SECONDS,
    cores: str = CLIENT_CORE,
    warm: float = 1,
) -> Measured:
    """Runs dnsperf against a server: `warm` seconds first, then the measurement."""

    def run(length: float) -> str:
        words = ["taskset", "-c", cores, "dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", str(queries)]
        words += ["-l", f"{length:g}", "-q", "100", *options]
        if "-c" not in options:
            words += ["-c", "4"]
        if rate:
            words += ["-Q", str(rate)]
        return subprocess.run(words, capture_output=True, text=True, timeout=length + 30, check=False).stdout

    if warm:
        run(warm)
    before = server.ticks()
    text = run(seconds)
    used = server.ticks() - before

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        return float(found[1]) if found else 0.0

    done = number(r"Queries completed:\s+(\d+)")
    worst = number(r"Average Latency.*max ([0-9.]+)")
    average = number(r"Average Latency \(s\):\s+([0-9.]+)")
    lost = int(number(r"Queries lost:\s+(\d+)"))
    cost = used / HZ * 1e6 / done if done else float("nan")
    return Measured(cost, number(r"Queries per second:\s+([0-9.]+)"), average * 1e3, worst * 1e3, lost)


def version(command: str, *words: str) -> str:
    """The first line that a program prints of its version."""
    if shutil.which(command) is None:
        return f"{command}: not on PATH"
    done = subprocess.run([command, *words], capture_output=True, text=True, timeout=10, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return f"{command}: {lines[0].strip()}" if lines else command


def host() -> list[str]:
    """The machine and the versions of what is measured."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return [
        f"host: {os.cpu_count()} x {cpu[1] if cpu else platform.machine()}, Linux {platform.release()}",
        f"kdns {__version__}, {platform.python_implementation()} {platform.python_version()}",
        version("dnsperf", "-h").replace("dnsperf: ", "", 1),
        version("knotd", "--version"),
        version("unbound", "-V"),
        version("dnsmasq", "--version"),
        version("coredns", "-version"),
    ]
