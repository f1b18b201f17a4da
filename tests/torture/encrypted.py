"""Attacks on the encrypted transports, all on the loopback network: `python -m tests.torture.encrypted [WORD...]`, some
three minutes a server; with words only the attacks whose names hold one.

What is asked each time: is a polite client over UDP served as when nobody attacks, is another client of the transport
served, and does memory come back. Beside CoreDNS where it is on PATH. The server has the first core, the attackers, at
the lowest priority, and the clients the second. It ends with 1 where kdns misses one of BARS.
"""

import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import trustme

from kdns.testing import free_port
from tests.torture.processes import Polite, Process, Served, coredns_words, kdns_words, many_files

SERVER_CORE, CLIENT_CORE = "0", "1"
SECONDS = 6.0
RATE = 300.0  # queries a second of the polite client
SCHEMES = ("tls", "https", "quic")
NAMES = 100
BLOCK = """SCHEME://.:{port} {
    bind 127.0.0.1
    errors
    TLS
    hosts HOSTS {
        fallthrough
    }
    cache 30
    forward . 127.0.0.1:MUTE
}
"""
# What kdns must hold. Milliseconds that the polite client's p99 may be longer than when nobody attacks: no step of ours
# takes over five, and the attackers' core is the client's too.
LONGER = 5.0
SHARE = 0.999
GROWN = 10.0  # MiB that stay
SETTLES = 20.0  # seconds until connections that nobody uses are closed, and some to spare
AMPLIFIED = 3.0  # octets sent to an address that is not validated, to one received (RFC 9000, section 8.1)


class Scene(NamedTuple):
    """An attack: its name, how attackers has it, what it goes to."""

    name: str
    attack: str
    scheme: str


SCENES: Final = (
    Scene("quiet", "busy", "tls"),
    Scene("10,000 half-open handshakes", "half-open", "tls"),
    Scene("slow handshakes", "slow", "tls"),
    Scene("renegotiation", "renegotiation", "tls"),
    Scene("TLS 1.3: keys that change without end", "keys", "tls"),
    Scene("HTTP/2: rapid reset", "resets", "https"),
    Scene("HTTP/2: CONTINUATION without end", "continuations", "https"),
    Scene("HTTP/2: SETTINGS", "settings", "https"),
    Scene("HTTP/2: PING", "pings", "https"),
    Scene("HTTP/2: huge fields", "large-fields", "https"),
    Scene("HTTP/1.1: huge heads", "large-heads", "https"),
    Scene("HTTP/2: bodies of 64 KiB", "bodies", "https"),
    Scene("QUIC: beginnings from others' addresses", "beginnings", "quic"),
    Scene("QUIC: stalled streams", "stalled-streams", "quic"),
)


class Attackers:
    """A process of attackers, ready to begin."""

    def __init__(self, attack: str, port: int) -> None:
        words = ["nice", "-n", "19", sys.executable, "-m", "tests.torture.attackers", attack, str(port), f"{SECONDS:g}"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{attack}: no attackers")

    def begin(self) -> None:
        """Lets them loose."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, int]:
        """What came of it."""
        out, _ = self.process.communicate(timeout=60)
        found: dict[str, int] = json.loads(out.splitlines()[-1])
        return found


class Outcome(NamedTuple):
    """What came of an attack on a server: the polite client, MiB before, at most and after, what attackers counted, and
    milliseconds for a new client of the same transport (-1: not served).
    """

    served: Served
    before: float
    most: float
    after: float
    counted: dict[str, int]
    other: float

    def __str__(self) -> str:
        counted = ", ".join(f"{count:,} {what}" for what, count in self.counted.items())
        return (
            f"{self.served}, worst {self.served.worst:.1f} ms; MiB {self.before:.0f}, {self.most:.0f}, {self.after:.0f}"
            f"; a new client {self.other:.0f} ms; {counted or 'nothing counted'}"
        )


def start(name: str, words: list[str], folder: Path, mute: int) -> tuple[Process, dict[str, int]]:
    """A server for plain DNS and all that is attacked; its ports by scheme."""
    ports = {scheme: free_port() for scheme in SCHEMES}
    text = BLOCK.replace("HOSTS", str(folder / "hosts")).replace("MUTE", str(mute))
    pair = f"tls {folder}/tls.crt {folder}/tls.key"
    blocks = [text.replace("SCHEME", "dns").replace("TLS", "")]
    for scheme, port in ports.items():
        blocks.append(text.replace("SCHEME", scheme).replace("TLS", pair).replace("{port}", str(port)))
    pinned = ["taskset", "-c", SERVER_CORE, "env", "GOMAXPROCS=1", *words]
    return Process(name, "".join(blocks), folder, *pinned), ports


def asks(scheme: str, port: int) -> float:
    """Milliseconds for a new client's query, kdig's start with it; -1 for no answer."""
    began = time.monotonic()
    words = ["kdig", f"+{scheme}", "@127.0.0.1", "-p", str(port), "+time=3", "+retry=0", "+short", "n1.example.org"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    return (time.monotonic() - began) * 1e3 if "192.0.2." in done.stdout else -1.0


def settled(server: Process, before: float) -> float:
    """MiB once it holds no more than before, or not after SETTLES."""
    end = time.monotonic() + SETTLES
    while (held := server.resident()) > before + GROWN and time.monotonic() < end:
        time.sleep(0.2)
    return held


def play(server: Process, ports: dict[str, int], scene: Scene) -> Outcome:
    """One attack."""
    for scheme, port in ports.items():
        for _ in range(3):  # what comes in with the first client of each transport stays
            asks(scheme, port)
    attackers = Attackers(scene.attack, ports[scene.scheme])
    before = server.resident()
    server.forget_peak()
    polite = Polite(server.port, SECONDS, rate=RATE)
    polite.begun()
    attackers.begin()
    time.sleep(SECONDS / 2)
    other = asks(scene.scheme, ports[scene.scheme])
    served = polite.end()
    counted = attackers.end()
    most = server.peak()
    return Outcome(served, before, most, settled(server, before), counted, other)


def judged(found: Outcome, quiet: Outcome) -> list[str]:
    """What kdns misses."""
    missed = []
    if found.served.p99 > quiet.served.p99 + LONGER:
        missed.append(f"p99 {found.served.p99:.1f} ms, quiet {quiet.served.p99:.1f} ms")
    if found.served.share < SHARE:
        missed.append(f"{1 - found.served.share:.2%} lost")
    if found.after > found.before + GROWN:
        missed.append(f"+{found.after - found.before:.0f} MiB stay")
    if found.other < 0:
        missed.append("a new client was not served")
    if found.counted.get("most for one", 0) > 100 * AMPLIFIED:
        missed.append(f"{found.counted['most for one'] / 100:.1f} octets for one")
    return missed


def main(words: list[str]) -> int:
    """Prints a table; 1 where kdns missed a bar."""
    missing = [tool for tool in ("kdig", "openssl", "taskset") if shutil.which(tool) is None]
    if missing:
        print(f"needs {', '.join(missing)}")
        return 1
    if many_files() < 11_000:
        print(f"only {many_files()} files may be opened: fewer connections come about than are meant (ulimit -n)")
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {int(CLIENT_CORE)})
    servers = {"kdns": kdns_words()}
    coredns = coredns_words()
    if coredns is not None:
        servers["coredns"] = coredns
    else:
        print("no coredns on PATH: kdns alone")
    scenes = [scene for scene in SCENES if not words or scene is SCENES[0] or any(word in scene.name for word in words)]
    missed = []
    table = ["| attack | server | answered | p50 | p99 | worst | MiB before, at most, after | a new client |"]
    table.append("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as made, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        folder = Path(made)
        mute.bind(("127.0.0.1", 0))
        (folder / "hosts").write_text("".join(f"192.0.2.{i} n{i}.example.org\n" for i in range(NAMES)))
        pair = trustme.CA().issue_cert("dns.example.net")
        pair.private_key_pem.write_to_path(str(folder / "tls.key"))
        pair.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
        quiet: dict[str, Outcome] = {}
        for scene in scenes:
            for name, how in servers.items():
                # A server of its own each time: what one attack leaves behind is not the next one's.
                server, ports = start(name, how, folder, mute.getsockname()[1])
                with server:
                    found = play(server, ports, scene)
                quiet.setdefault(name, found)
                wrong = judged(found, quiet[name])
                errors = len(re.findall(r"Internal error|panic|Traceback", (folder / f"{name}.log").read_text()))
                if errors:
                    wrong.append(f"{errors} errors of its own")
                print(f"{scene.name} / {name}: {found}{'  <-- ' + ', '.join(wrong) if wrong else ''}", flush=True)
                if name == "kdns":
                    missed += [f"{scene.name}: {each}" for each in wrong]
                table.append(row(scene, name, found))
                drain(mute)
    print("\n" + "\n".join(table))
    if missed:
        print("\nkdns missed:\n" + "\n".join(missed))
    return 1 if missed else 0


def row(scene: Scene, name: str, found: Outcome) -> str:
    """A line of the table."""
    served = found.served
    other = f"{found.other:.0f} ms" if found.other >= 0 else "none"
    return (
        f"| {scene.name} | {name} | {served.share:.1%} | {served.median:.2f} ms | {served.p99:.2f} ms | "
        f"{served.worst:.1f} ms | {found.before:.0f}, {found.most:.0f}, {found.after:.0f} | {other} |"
    )


def drain(mute: socket.socket) -> None:
    """Forgets what the mute upstream was asked."""
    with contextlib.suppress(OSError):
        while select.select((mute,), (), (), 0)[0]:
            mute.recv(4096)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
