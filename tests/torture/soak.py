"""Mixed traffic for so many minutes: `python -m tests.torture.soak MINUTES`.

A cluster of 500 Services of which 50 change each second, a reload every ten seconds, cluster names, names that do not
exist, outside names and TCP all the while. Memory must not grow after the first five minutes (or the first half), files
and tasks not at all. It ends with 1 where one does. The tasks are counted inside by a plugin that the Corefile names as
a file.
"""

import contextlib
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from kdns.testing import ApiServer
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.torture.processes import Process, kdns_words, many_files

SERVICES = 500
CHANGES = 50  # a second
RELOAD = 10.0  # seconds
LOOK = 5.0  # seconds between two looks at memory
SETTLED = 300.0  # seconds after which memory must stay
SLOPE = 0.1  # MiB a minute
COUNTER = '''"""tasks - says how many tasks there are."""

import asyncio

from kdns.plugin import Plugin
from kdns.plugin.records import answered


class Tasks(Plugin):
    name = "tasks"
    before = "forward"

    def handle(self, request):
        if request.name == "tasks.soak.":
            return answered(f"tasks.soak. 0 TXT {len(asyncio.all_tasks())}")
        return None
'''
COREFILE = """.:{port} {
    bind 127.0.0.1
    errors
    plugin tasks.py
    hosts HOSTS {
        fallthrough
    }
    kubernetes cluster.local in-addr.arpa {
        endpoint URL
        ttl TTL
        fallthrough in-addr.arpa
    }
    limits {
        qps 1000000
        connections 5000
    }
    cache 30
    forward . 127.0.0.1:UPSTREAM
}
"""
UPSTREAM = """.:{port} {
    bind 127.0.0.1
    template IN A {
        answer "{{ .Name }} 5 IN A 192.0.2.1"
    }
    template IN ANY {
        rcode NXDOMAIN
    }
}
"""


def slope(points: list[tuple[float, float]]) -> float:
    """The least-squares slope of (seconds, MiB), in MiB a minute."""
    count = len(points)
    if count < 2:
        return 0.0
    x_mean, y_mean = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return 60 * sum((x - x_mean) * (y - y_mean) for x, y in points) / spread


def changed(number: int) -> dict[str, object]:
    """The Service at this place, with another address each time."""
    return service(f"n1/s{number % SERVICES}", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")


def churn(api: ApiServer, stop: threading.Event) -> None:
    """Changes CHANGES Services a second."""
    began = time.monotonic()
    for number in itertools.count():
        api.put(changed(number))
        if stop.wait(max(0.0, began + number / CHANGES - time.monotonic())):
            return
        if number % 500 == 499:
            api.log[:-100] = []  # the history is ours, not what is measured


def traffic(server: Process, folder: Path, stop: threading.Event) -> None:
    """dnsperf over UDP and TCP, again and again."""
    lines = []
    for i in range(3000):
        lines += [
            f"s{i % SERVICES}.n1.svc.cluster.local A",
            f"s{i % SERVICES}.n1.svc.cluster.local AAAA",
            f"n{i % 100}.example.org A",
        ]
        lines += [f"x{i}.n1.svc.cluster.local A", f"o{i}.outside.example A", f"{i % 250}.0.0.10.in-addr.arpa PTR"]
    (folder / "queries").write_text("\n".join(lines) + "\n")
    base = ["dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", str(folder / "queries"), "-l", "20"]
    while not stop.is_set():
        running = [
            subprocess.Popen([*base, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for more in (["-Q", "1500"], ["-m", "tcp", "-Q", "150", "-c", "20"])
        ]
        for each in running:
            each.wait()


def tasks(server: Process) -> int:
    """Tasks in the server; -1 where it did not say."""
    with contextlib.suppress(dns.exception.DNSException, OSError):
        reply = dns.query.udp(dns.message.make_query("tasks.soak.", "TXT"), "127.0.0.1", port=server.port, timeout=2)
        return int(str(reply.answer[0][0]).strip('"'))
    return -1


def main() -> int:
    """Prints a line a minute and the slope; 1 where something grew."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    many_files()
    api = ApiServer()
    api.put(namespace("n1"), *(changed(i) for i in range(SERVICES)))
    api.put(*(endpointslice(f"n1/s{i}-1", f"s{i}", endpoint(f"10.99.{i >> 8}.{i & 255}")) for i in range(SERVICES)))
    stop = threading.Event()
    points: list[tuple[float, float]] = []
    files: list[int] = []
    counts: list[int] = []
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        (folder / "tasks.py").write_text(COUNTER)
        (folder / "hosts").write_text("".join(f"192.0.2.{i} n{i}.example.org\n" for i in range(100)))
        upstream = stack.enter_context(Process("upstream", UPSTREAM, folder, *kdns_words()))
        text = (
            COREFILE.replace("URL", api.url)
            .replace("UPSTREAM", str(upstream.port))
            .replace("HOSTS", str(folder / "hosts"))
        )
        server = stack.enter_context(Process("kdns", text.replace("TTL", "30"), folder, *kdns_words()))
        workers = [
            threading.Thread(target=churn, args=(api, stop)),
            threading.Thread(target=traffic, args=(server, folder, stop)),
        ]
        for worker in workers:
            worker.start()
        began = time.monotonic()
        reloads = 0
        try:
            while (now := time.monotonic() - began) < minutes * 60:
                if now >= (reloads + 1) * RELOAD:
                    reloads += 1
                    server.write(text.replace("TTL", str(20 + reloads % 10)))
                    server.reload()
                time.sleep(LOOK)
                points.append((time.monotonic() - began, server.resident()))
                files.append(server.files())
                counts.append(tasks(server))
                if len(points) % 12 == 0:
                    print(
                        f"{points[-1][0] / 60:5.1f} min: {points[-1][1]:.1f} MiB, {files[-1]} files, {counts[-1]} "
                        f"tasks, {reloads} reloads",
                        flush=True,
                    )
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        lines = (folder / "kdns.log").read_text(errors="replace")
        failed = lines.count("Restart failed") + lines.count("Internal error") + lines.count("panic")
        done = lines.count("Reloading complete")
    api.close()
    since = min(SETTLED, points[-1][0] / 2)
    settled = [point for point in points if point[0] >= since]
    half = len(files) // 2
    grown = slope(settled)
    said = [count for count in counts if count >= 0]
    print(
        f"{minutes:g} minutes, {done} reloads of {reloads}: {grown:+.3f} MiB a minute after {since:.0f} s "
        f"({settled[0][1]:.1f} to "
        f"{settled[-1][1]:.1f} MiB); files {min(files[:half])}-{max(files[:half])}, later "
        f"{min(files[half:])}-{max(files[half:])}; tasks "
        f"{min(said)}-{max(said)}, at the end {said[-1]}; {failed} errors of its own"
    )
    bad = (
        grown > SLOPE
        or failed
        or done < reloads - 1
        or min(files[half:]) > max(files[:half])
        or said[-1] > 2 * max(said[0], 10)
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
