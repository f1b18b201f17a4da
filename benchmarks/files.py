"""Large files while others are served: a hosts file and a list of 1,000,000 lines read again, and a Corefile of 2,000
blocks.

    python -m benchmarks.files      prints a table; `make bench-files`

A thousand questions a second are asked all the while: the worst reply time says how long the loop was held.
"""

import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Server, host
from kdns.testing import free_port

LINES = int(os.environ.get("BENCH_LINES", "1000000"))
BLOCKS = int(os.environ.get("BENCH_BLOCKS", "2000"))
LIMIT = 120.0  # seconds for anything
STILL = struct.pack("!6H", 0, 0x0100, 1, 0, 0, 0) + b"\5still\3org\0\0\1\0\1"
NEW = struct.pack("!6H", 0, 0x0100, 1, 0, 0, 0) + b"\3new\3org\0\0\1\0\1"


class Waited(NamedTuple):
    """Reply times in ms, the questions lost, and after how many seconds the new name was there."""

    p50: float
    p999: float
    worst: float
    lost: int
    after: float


def lines(count: int, new: str) -> str:
    """A hosts file: one address and two names a line, and one more line at its end."""
    some = "".join(f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255} h{i}.example.org h{i}\n" for i in range(count))
    return some + f"192.0.2.1 still.org\n{new}"


def blocks(port: int, count: int, new: str) -> str:
    """A Corefile of many blocks."""
    some = "".join(
        f"z{i}.example.org:{port} {{\n bind 127.0.0.1\n errors\n cache 30\n forward . 127.0.0.1:9\n}}\n"
        for i in range(count)
    )
    known = f"hosts /nowhere {{\n 192.0.2.1 still.org {new}\n fallthrough\n }}"
    return f".:{port} {{\n bind 127.0.0.1\n reload 2s 0s\n {known}\n whoami\n}}\n{some}"


def ask(port: int, question: bytes, timeout: float = 1.0) -> bytes:
    """The reply; empty where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(question)
            return sock.recv(4096)
        except OSError:
            return b""


def answered(reply: bytes) -> bool:
    return len(reply) > 12 and reply[6:8] == b"\0\1"


def wait(port: int, question: bytes) -> None:
    """Waits until a question has an answer. Raises TimeoutError."""
    end = time.monotonic() + LIMIT
    while not answered(ask(port, question)):
        if time.monotonic() > end:
            raise TimeoutError("no answer")
        time.sleep(0.05)


def watch(port: int) -> Waited:
    """Asks for a name that stays, a thousand times a second, until a new one is there and for two seconds more."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    sock.settimeout(0.001)
    began = time.monotonic()
    sent: dict[int, float] = {}
    times: list[float] = []
    after = 0.0
    number = 0
    due = began
    while not after or time.monotonic() < began + after + 2:
        now = time.monotonic()
        if now > began + LIMIT:
            break
        if now >= due:
            number = number + 1 & 0xFFFF
            question = NEW if number % 50 == 0 else STILL
            sent[number] = now
            sock.send(struct.pack("!H", number) + question[2:])
            due = now + 0.001
        try:
            reply = sock.recv(4096)
        except OSError:
            continue
        then = sent.pop(int.from_bytes(reply[:2], "big"), None)
        if then is not None:
            times.append(time.monotonic() - then)
        if reply[12:16] == b"\3new" and answered(reply) and not after:
            after = time.monotonic() - began
    sock.close()
    times.sort()
    return Waited(times[len(times) // 2] * 1e3, times[int(len(times) * 0.999)] * 1e3, times[-1] * 1e3, len(sent), after)


def kdns(corefile: Path, port: int) -> Server:
    return Server("kdns", sys.executable, "-m", "kdns", "-conf", str(corefile), port=port)


def coredns(corefile: Path, port: int) -> Server:
    return Server("coredns", "coredns", "-conf", str(corefile), port=port)


def renewed(path: Path, text: str, port: int) -> Waited:
    """What clients see while a file is replaced, and read again."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)
    return watch(port)


def hosts_table(folder: Path) -> list[str]:
    """Memory and stalls with a large hosts file."""
    out = ["| server | lines | ready | MiB | MiB after | new after | p50 | p99.9 | worst | lost |", "|---" * 10 + "|"]
    for make in (kdns, coredns) if shutil.which("coredns") else (kdns,):
        path = folder / "hosts"
        path.write_text(lines(LINES, ""))
        port = free_port()
        corefile = folder / "Corefile"
        corefile.write_text(
            f".:{port} {{\n bind 127.0.0.1\n hosts {path} {{\n reload 1s\n fallthrough\n }}\n whoami\n}}\n"
        )
        began = time.monotonic()
        server = make(corefile, port)
        try:
            wait(port, STILL)
            ready = time.monotonic() - began
            time.sleep(3)
            before = server.resident()
            found = renewed(path, lines(LINES, "192.0.2.2 new.org\n"), port)
            out.append(
                f"| {server.name} | {LINES:,} | {ready:.1f} s | {before:.0f} | {server.resident():.0f} | "
                f"{found.after:.1f} s "
                f"| {found.p50:.2f} ms | {found.p999:.2f} ms | {found.worst:.1f} ms | {found.lost} |"
            )
        finally:
            server.stop()
    return out


def list_table(folder: Path) -> list[str]:
    """Memory and stalls with a large list of blocked names."""
    out = [
        "| names | ready | MiB without | MiB | MiB after | new after | p50 | p99.9 | worst | lost |",
        "|---" * 10 + "|",
    ]
    path = folder / "list"
    names = "".join(f"h{i}.ads{i % 977}.example.org\n" for i in range(LINES)) + "still.org\n"
    path.write_text("still.org\n")
    port = free_port()
    corefile = folder / "Corefile"
    corefile.write_text(
        f".:{port} {{\n bind 127.0.0.1\n blocklist {{\n file {path}\n reload 1s\n action address 192.0.2.1\n }}\n"
        " whoami\n}\n"
    )
    server = kdns(corefile, port)
    try:
        wait(port, STILL)
        without = server.resident()
    finally:
        server.stop()
    path.write_text(names)
    began = time.monotonic()
    server = kdns(corefile, port)
    try:
        wait(port, STILL)
        ready = time.monotonic() - began
        time.sleep(3)
        before = server.resident()
        found = renewed(path, names + "new.org\n", port)
        out.append(
            f"| {LINES:,} | {ready:.1f} s | {without:.0f} | {before:.0f} | {server.resident():.0f} "
            f"| {found.after:.1f} s | {found.p50:.2f} ms | {found.p999:.2f} ms | {found.worst:.1f} ms | {found.lost} |"
        )
    finally:
        server.stop()
    return out


def blocks_table(folder: Path) -> list[str]:
    """Stalls while a large Corefile is read again."""
    out = ["| server | blocks | ready | new after | p50 | p99.9 | worst | lost |", "|---" * 8 + "|"]
    for make in (kdns, coredns) if shutil.which("coredns") else (kdns,):
        port = free_port()
        corefile = folder / "Corefile"
        corefile.write_text(blocks(port, BLOCKS, ""))
        began = time.monotonic()
        server = make(corefile, port)
        try:
            wait(port, STILL)
            ready = time.monotonic() - began
            time.sleep(2)
            corefile.write_text(blocks(port, BLOCKS, "new.org"))
            server.process.send_signal(signal.SIGUSR1)
            found = watch(port)
            out.append(
                f"| {server.name} | {BLOCKS:,} | {ready:.1f} s | {found.after:.1f} s | {found.p50:.2f} ms "
                f"| {found.p999:.2f} ms | {found.worst:.1f} ms | {found.lost} |"
            )
        finally:
            server.stop()
    return out


def main() -> None:
    """Prints the tables."""
    print("\n".join(host()), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(list_table(Path(name))), end="\n\n", flush=True)
        print("\n".join(hosts_table(Path(name))), end="\n\n", flush=True)
        print("\n".join(blocks_table(Path(name))), flush=True)


if __name__ == "__main__":
    main()
