"""What the long runs share: servers as processes of their own, what they take, and a polite client that says how it was
served.
"""

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from kdns.testing import free_port

POLITE_RATE = 100.0  # queries a second of a polite client
PATIENCE = 1.0  # seconds that it waits for an answer


def question(name: str, qid: int = 0x4142) -> bytes:
    """The octets of a query for an A. Made by hand: a sender of 5,000 a second has no time for a library."""
    labels = b"".join(bytes((len(label),)) + label for label in name.rstrip(".").encode().split(b"."))
    return qid.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


def framed(*messages: bytes) -> bytes:
    """Messages as they are sent over TCP."""
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def many_files() -> int:
    """Lets this process (and its children) open as many files as it may; how many those are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Served(NamedTuple):
    """How a polite client fared: queries, the share of them answered, and milliseconds of those."""

    asked: int
    share: float
    median: float
    p99: float
    worst: float

    def __str__(self) -> str:
        return f"{self.share:6.1%} answered, p50 {self.median:.1f} ms, p99 {self.p99:.1f} ms"


class Process:
    """A DNS server, started in a folder with a Corefile; ended with the `with` block."""

    def __init__(self, name: str, corefile: str, folder: Path, *words: str) -> None:
        self.name = name
        self.port = free_port()
        self.path = folder / f"Corefile.{name}"
        self.write(corefile)
        self.log = (folder / f"{name}.log").open("wb")
        # In the folder a stand-alone server would find other files than we mean; kdns itself is found where we found
        # it.
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            [*words, "-conf", str(self.path)], stdout=self.log, stderr=self.log, cwd=folder, env=environ
        )
        end = time.monotonic() + 30
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} does not serve: {(folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def write(self, corefile: str) -> None:
        """The Corefile, `{port}` in it being ours."""
        self.path.write_text(corefile.replace("{port}", str(self.port)))

    def reload(self) -> None:
        """Has the Corefile read again."""
        self.process.send_signal(signal.SIGUSR1)

    def answers(self, timeout: float = 0.2) -> bool:
        """Whether it answers anything now."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            try:
                sock.connect(("127.0.0.1", self.port))
                sock.send(question("n1.example.org."))
                return len(sock.recv(512)) > 12
            except OSError:
                return False

    def status(self, key: str) -> int:
        """A number of /proc/PID/status: VmRSS and others in kB."""
        found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)
        return int(found[1]) if found else 0

    def resident(self) -> float:
        """MiB."""
        return self.status("VmRSS") / 1024

    def forget_peak(self) -> None:
        """From now on `peak` begins anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        """The most MiB that were resident."""
        return self.status("VmHWM") / 1024

    def cpu(self) -> tuple[float, float]:
        """Seconds of CPU, in the process and in the kernel for it."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / ticks, int(fields[12]) / ticks

    def files(self) -> int:
        """Open files."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        self.log.close()


class Polite:
    """A client in a process of its own that asks `rate` times a second, for so many seconds or until `end`."""

    def __init__(self, port: int, seconds: float, *, host: str = "127.0.0.9", rate: float = POLITE_RATE) -> None:
        words = [sys.executable, "-m", "tests.torture.processes", str(port), str(seconds), host, str(rate)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begun(self) -> None:
        """Waits until it asks."""
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self) -> Served:
        """How it was served."""
        out, _ = self.process.communicate(timeout=120)
        return Served(*json.loads(out.splitlines()[-1]))


def ask_politely(port: int, seconds: float, host: str, rate: float) -> Served:
    """Asks at a steady rate, whether or not there was an answer: a pause of the server is seen in full."""
    times: list[float] = []
    waiting: dict[int, float] = {}
    asked = 0
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        while (now := time.monotonic()) < began + seconds or (waiting and now < began + seconds + PATIENCE):
            due = began + asked / rate
            if due <= now < began + seconds:
                asked += 1
                waiting[asked & 0xFFFF] = now
                with contextlib.suppress(OSError):
                    sock.send(question(f"n{asked % 100}.example.org.", asked & 0xFFFF))
                continue
            select.select((sock,), (), (), max(due - now, 0.0) if due < began + seconds else 0.05)
            with contextlib.suppress(OSError):
                while True:
                    sent = waiting.pop(int.from_bytes(sock.recv(4096)[:2], "big"), None)
                    if sent is not None and (took := time.monotonic() - sent) < PATIENCE:
                        times.append(took * 1e3)
    times.sort()
    if not times:
        return Served(asked, 0.0, 0.0, 0.0, 0.0)
    return Served(asked, len(times) / asked, times[len(times) // 2], times[int(len(times) * 0.99)], times[-1])


def kdns_words() -> list[str]:
    """How kdns is started."""
    return [sys.executable, "-m", "kdns"]


def coredns_words() -> list[str] | None:
    """How CoreDNS is started, if there is one on PATH."""
    found = shutil.which("coredns")
    return [found] if found else None


if __name__ == "__main__":
    print("asks", flush=True)
    print(json.dumps(ask_politely(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], float(sys.argv[4]))))
