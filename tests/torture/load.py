"""Clients of every bad kind, all on the loopback network: `python -m tests.torture.load [--quick]`, some four minutes a
server.

What is asked each time: is a polite client served as before, does memory come back, is all over when it is over. Beside
CoreDNS where it is on PATH. It ends with 1 where kdns misses one of BARS. The machine should have nothing else to do.
"""

import contextlib
import re
import select
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.torture.processes import Polite, Process, coredns_words, framed, kdns_words, many_files, question

QUICK = "--quick" in sys.argv
SCALE = 10 if QUICK else 1
NAMES = 100
COREFILE = """.:{port} {
    bind 127.0.0.1
    errors
    hosts HOSTS {
        fallthrough
    }
    cache 30
    forward . 127.0.0.1:MUTE
}
"""
# What kdns must hold: seconds until it is as before, the polite client's share, and MiB that stay.
RECOVERED = 1.0
SHARE_IN_QUIET = 0.99
GROWN = 10.0

Row = dict[str, str]
missed: list[str] = []


def bar(server: Process, what: str, holds: bool) -> str:
    """A mark for the table."""
    if not holds and server.name == "kdns":
        missed.append(what)
    return "" if holds else "  <-- missed"


def recovered(server: Process) -> float:
    """Seconds until ten queries in a row are answered within 50 ms each."""
    began = time.monotonic()
    row = 0
    while row < 10 and time.monotonic() - began < 30:
        row = row + 1 if server.answers(0.05) else 0
    return time.monotonic() - began


def dnsperf(server: Process, folder: Path, seconds: float, *options: str) -> tuple[float, float]:
    """Queries sent and answered a second."""
    names = folder / "queries"
    names.write_text("".join(f"n{i}.example.org A\n" for i in range(NAMES)))
    words = ["dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", str(names), "-l", f"{seconds:g}", *options]
    out = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, check=False).stdout
    sent = re.search(r"Queries sent:\s+(\d+)", out)
    done = re.search(r"Queries completed:\s+(\d+)", out)
    return (int(sent[1]) / seconds if sent else 0.0), (int(done[1]) / seconds if done else 0.0)


def quiet(server: Process, folder: Path) -> str:
    """Nothing but the polite client."""
    return str(Polite(server.port, 3 / SCALE + 0.5).end())


def flood(server: Process, folder: Path) -> str:
    """Five times the queries that it can answer, open-loop."""
    seconds = 10 / SCALE
    _, capacity = dnsperf(server, folder, 2, "-q", "200", "-c", "8")
    polite = Polite(server.port, seconds)
    sent, done = dnsperf(server, folder, seconds, "-q", "65000", "-c", "16", "-t", "0.2", "-Q", str(int(capacity * 5)))
    served = polite.end()
    back = recovered(server)
    return (
        f"capacity {capacity:,.0f}/s, sent {sent:,.0f}/s, answered {done:,.0f}/s; polite: {served}; recovered in "
        f"{back:.2f} s" + bar(server, "recovery from a flood", back <= RECOVERED)
    )


def connect(server: Process, count: int, hosts: int = 4) -> list[socket.socket]:
    """Connections from some addresses of the loopback network; those that came about."""
    made = []
    for i in range(count):
        sock = socket.socket()
        sock.settimeout(2)
        try:
            sock.bind((f"127.0.1.{1 + i % hosts}", 0))
            sock.connect(("127.0.0.1", server.port))
        except OSError:
            sock.close()
            continue
        made.append(sock)
    return made


def tcp_served(server: Process) -> float:
    """Milliseconds for a new client's query over TCP; -1 for none."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=3, source_address=("127.0.0.10", 0)) as sock:
            sock.sendall(framed(question("n1.example.org.")))
            return (time.monotonic() - began) * 1e3 if len(sock.recv(512)) > 12 else -1.0
    except OSError:
        return -1.0


def still_open(socks: list[socket.socket]) -> int:
    """How many the other side has not closed."""
    if not socks:
        return 0
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    closed = 0
    by_number = {sock.fileno(): sock for sock in socks}
    for number, _ in poll.poll(0):
        with contextlib.suppress(BlockingIOError):
            by_number[number].setblocking(False)
            try:
                closed += not by_number[number].recv(65536)
            except ConnectionError:
                closed += 1
    return len(socks) - closed


def slowloris(server: Process, folder: Path) -> str:
    """Connections that send an octet now and then."""
    socks = connect(server, 500)
    polite = Polite(server.port, 12 / SCALE)
    octets = framed(question("n1.example.org."))
    tcp = []
    end = time.monotonic() + 12 / SCALE
    at = 0
    while time.monotonic() < end:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(octets[at % 20 : at % 20 + 1])
        at += 1
        tcp.append(tcp_served(server))
        time.sleep(0.4)
    left = still_open(socks)
    for sock in socks:
        sock.close()
    return (
        f"{len(socks)} connections, {left} left at the end; a new one: {max(tcp):.1f} ms at worst; polite: "
        f"{polite.end()}" + bar(server, "slowloris", (left == 0 or QUICK) and min(tcp) >= 0)
    )


def idle(server: Process, folder: Path) -> str:
    """Connections that say nothing."""
    count = 10_000 // SCALE
    before = server.resident()
    polite = Polite(server.port, 8 / SCALE + 1)
    socks = connect(server, count, hosts=3)
    opened = still_open(socks)
    tcp = tcp_served(server)
    grown = server.resident() - before
    served = polite.end()
    for sock in socks:
        sock.close()
    return (
        f"{len(socks)} connections, {opened} open; a new one: {tcp:.1f} ms; +{grown:.1f} MiB; polite: {served}"
        + bar(server, "idle connections", tcp >= 0 and served.share >= SHARE_IN_QUIET)
    )


def deaf(server: Process, folder: Path) -> str:
    """Clients that ask and never read."""
    before = server.resident()
    polite = Polite(server.port, 6 / SCALE + 1)
    socks = connect(server, 10)
    payload = framed(*(question(f"n{i % NAMES}.example.org.", i) for i in range(1000)))
    sent = 0
    end = time.monotonic() + 6 / SCALE
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
    while time.monotonic() < end:
        for sock in socks:
            with contextlib.suppress(OSError):
                sent += sock.send(payload)
        time.sleep(0.002)
    grown = server.resident() - before
    served = polite.end()
    for sock in socks:
        sock.close()
    return f"10 clients, {sent / 2**20:.1f} MiB taken from them; +{grown:.1f} MiB; polite: {served}" + bar(
        server, "clients that never read", grown < GROWN and served.share >= SHARE_IN_QUIET
    )


def greedy(server: Process, folder: Path) -> str:
    """As many queries as one connection carries."""
    count = 1_000_000 // SCALE
    before = server.resident()
    began = time.monotonic()
    limit = 60.0 / SCALE
    polite = Polite(server.port, 8 / SCALE)
    batch = framed(*(question(f"n{i % NAMES}.example.org.", i) for i in range(2000)))
    waiting = memoryview(b"")
    left = count // 2000
    got = bytearray()
    answered = 0
    with socket.create_connection(("127.0.0.1", server.port)) as sock, selectors.DefaultSelector() as ready:
        sock.setblocking(False)
        ready.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while answered < count // 2000 * 2000 and time.monotonic() - began < limit:
            if not waiting and left:
                waiting, left = memoryview(batch), left - 1
            for _, event in ready.select(1):
                if event & selectors.EVENT_READ:
                    part = sock.recv(1 << 18)
                    if not part:
                        limit = 0
                        break
                    got += part
                    off = 0
                    while off + 2 <= len(got) and off + 2 + (got[off] << 8 | got[off + 1]) <= len(got):
                        off += 2 + (got[off] << 8 | got[off + 1])
                        answered += 1
                    del got[:off]
                if event & selectors.EVENT_WRITE and waiting:
                    waiting = waiting[sock.send(waiting) :]
            if not waiting and not left:
                ready.modify(sock, selectors.EVENT_READ)
    took = time.monotonic() - began
    grown = server.resident() - before
    return f"{answered:,} answers in {took:.1f} s; +{grown:.1f} MiB; polite: {polite.end()}" + bar(
        server, "many queries on one connection", answered == count // 2000 * 2000 and grown < GROWN
    )


def mute(server: Process, folder: Path) -> str:
    """Names of others, whose upstream says nothing."""
    count = 100_000 // SCALE
    with contextlib.ExitStack() as stack:
        socks = []
        for i in range(8):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((f"127.0.2.{1 + i}", 0))
            sock.setblocking(False)
            sock.connect(("127.0.0.1", server.port))
            socks.append(sock)
        # The cache keeps that a name could not be had, for a second: its table is full from then on, which is its size
        # and no leak.
        outside(socks, "y", 12_000)
        listen(socks, 8)
        before = server.resident()
        polite = Polite(server.port, 20 / SCALE)
        outside(socks, "x", count)
        peak = server.resident() - before
        served = polite.end()
        listen(socks, 12)
        after = server.resident() - before
    return f"{count:,} names; +{peak:.1f} MiB, after it +{after:.1f} MiB; polite: {served}" + bar(
        server, "a mute upstream", after <= GROWN and served.share >= SHARE_IN_QUIET
    )


def outside(socks: list[socket.socket], label: str, count: int) -> None:
    """Asks for so many names that nobody asked for before, 5,000 a second."""
    began = time.monotonic()
    for i in range(count):
        with contextlib.suppress(OSError):
            socks[i & 7].send(question(f"{label}{i}.outside.example.", i & 0xFFFF))
        if i % 50 == 49:
            time.sleep(max(0.0, began + i / 5000 - time.monotonic()))


def listen(socks: list[socket.socket], seconds: float) -> None:
    """Takes what comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for sock in socks:
            with contextlib.suppress(OSError):
                while sock.recv(512):
                    pass
        time.sleep(0.1)


SCENES: dict[str, Callable[[Process, Path], str]] = {
    "quiet": quiet, "flood at five times capacity": flood, "slowloris": slowloris, "idle connections": idle,
    "clients that never read": deaf, "many queries on one connection": greedy, "names of a mute upstream": mute,
}  # fmt: skip


def main() -> int:
    """Prints a table; 1 where kdns missed a bar."""
    files = many_files()
    if files < 25_000:
        print(f"only {files} files may be opened: fewer connections come about than are meant (ulimit -n)")
    words = {"kdns": kdns_words()}
    coredns = coredns_words()
    if coredns is not None:
        words["coredns"] = coredns
    else:
        print("no coredns on PATH: kdns alone")
    rows: dict[str, Row] = {scene: {} for scene in SCENES}
    with tempfile.TemporaryDirectory() as made, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        folder = Path(made)
        silent.bind(("127.0.0.1", 0))
        (folder / "hosts").write_text("".join(f"192.0.2.{i} n{i}.example.org\n" for i in range(NAMES)))
        text = COREFILE.replace("HOSTS", str(folder / "hosts")).replace("MUTE", str(silent.getsockname()[1]))
        for name, how in words.items():
            for scene, play in SCENES.items():
                # A server of its own each time: what one leaves behind is not the next one's.
                with Process(name, text, folder, *how) as server:
                    mine, kernel = server.cpu()
                    said = play(server, folder)
                    after = server.cpu()
                    rows[scene][name] = f"{said}; CPU {after[0] - mine:.1f}+{after[1] - kernel:.1f} s"
                    lines = (folder / f"{name}.log").read_text(errors="replace")
                    wrong = len(re.findall(r"Internal error|panic|Traceback", lines))
                    if wrong:
                        rows[scene][name] += f"; {wrong} errors of its own" + bar(server, f"errors in {scene}", False)
                print(f"{scene} / {name}: {rows[scene][name]}", flush=True)
    print()
    for scene, row in rows.items():
        print(scene)
        for name, said in row.items():
            print(f"  {name:8} {said}")
    if missed:
        print(f"\nkdns missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
