"""More queries than can be answered: how many replies come while their clients wait, with `shed` and without.

    python -m benchmarks.overload      prints a table; `make bench-overload`, some two minutes

Each server makes answers on one core, behind rules that no name matches: dnsperf on the other core could not ask five
times as much if an answer cost nothing. It is asked that much by clients that wait for a tenth of a second, and by
clients that wait for one. What counts is the replies within that time, as a share of what it can answer. Beside CoreDNS
where it is on PATH.
"""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import CLIENT_CORE, SECONDS, Server, host
from kdns.testing import free_port

OVERLOAD = 5
PATIENCES = (0.1, 1.0)  # seconds that clients wait
NAMES = 200_000  # asked for in turn: more than anybody keeps
RULES = 40  # that cost time
QUESTION = b"AB\1\0\0\1\0\0\0\0\0\0\2n1\7example\3org\0\0\1\0\1"


def corefile(port: int, shed: bool) -> str:
    """A server block that makes answers."""
    line = " shed\n" if shed else ""
    rules = "".join(f" rewrite stop name regex ^(.*)-{i}[.]example[.]net[.]$ {{1}}.example.org\n" for i in range(RULES))
    answer = ' template IN A {\n  answer "{{ .Name }} 60 IN A 192.0.2.1"\n }\n'
    return f".:{port} {{\n bind 127.0.0.1\n{line}{rules}{answer}}}\n"


def answers(port: int) -> bool:
    """Whether it answers within 50 ms."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        try:
            sock.connect(("127.0.0.1", port))
            sock.send(QUESTION)
            return len(sock.recv(512)) > 12
        except OSError:
            return False


def asked(port: int, queries: Path, *options: str) -> tuple[float, float]:
    """Queries sent and answered a second."""
    words = ["taskset", "-c", CLIENT_CORE, "dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(queries), "-l"]
    done = subprocess.run(
        [*words, f"{SECONDS:g}", *options], capture_output=True, text=True, timeout=SECONDS + 60, check=False
    )
    sent = re.search(r"Queries sent:\s+(\d+)", done.stdout)
    back = re.search(r"Queries completed:\s+(\d+)", done.stdout)
    return (int(sent[1]) / SECONDS if sent else 0.0), (int(back[1]) / SECONDS if back else 0.0)


def row(name: str, words: list[str], shed: bool, folder: Path) -> str:
    """A line of the table."""
    port = free_port()
    path = folder / "Corefile"
    path.write_text(corefile(port, shed))
    queries = folder / "queries"
    queries.write_text("".join(f"n{i}.example.org A\n" for i in range(NAMES)))
    server = Server(name, *words, "-conf", str(path), port=port)
    try:
        end = time.monotonic() + 30
        while not answers(port):
            if time.monotonic() > end:
                return f"{name:24} does not serve"
            time.sleep(0.1)
        _, most = asked(port, queries, "-q", "200", "-c", "8")
        told = [f"{name:24} {most:8,.0f}/s"]
        for patience in PATIENCES:
            while not answers(port):
                time.sleep(0.1)
            rate = str(int(most * OVERLOAD))
            sent, done = asked(port, queries, "-q", "65000", "-c", "16", "-t", str(patience), "-Q", rate)
            told.append(f"{sent / most:4.1f}x asked, {done / most:5.1%} within {patience:g} s")
        return "; ".join(told)
    finally:
        server.stop()


def main() -> int:
    """Prints the table."""
    print("\n".join(host()))
    kdns = [sys.executable, "-m", "kdns"]
    servers = [("kdns", kdns, False), ("kdns with shed", kdns, True)]
    coredns = shutil.which("coredns")
    if coredns is not None:
        servers += [("coredns", [coredns], False), ("coredns with shed", [coredns], True)]
    with tempfile.TemporaryDirectory() as made:
        for name, words, shed in servers:
            print(row(name, words, shed, Path(made)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
