"""BIND, Knot and NSD as secondaries of a zone that updates change: they have each change by IXFR, signed, and the same
zone in the end whenever kdns is killed.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.tsigkeyring
import dns.update
import pytest

from kdns.testing import eventually, free_port
from tests.zones import peers
from tests.zones.test_transfers import KEYS, SECRET, bind, knot, serial, whole

COUNT = 3000
ZONE = "$TTL 300\n@ SOA ns hostmaster 1 3600 1 86400 60\n@ NS ns\nns A 192.0.2.1\n" + "".join(
    f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(COUNT)
)
WHOLE = 60_000  # octets that the zone has on the wire, at least
SIGNED = {"keyring": KEYS, "keyname": "key.example."}


def nsd(folder: Path, port: int, *, master: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "nsd.conf").write_text(
        f'server:\n ip-address: 127.0.0.1@{port}\n username: ""\n zonesdir: "{folder}"\n pidfile: "{folder}/nsd.pid"\n'
        f' xfrdfile: "{folder}/xfrd.state"\n zonelistfile: "{folder}/zone.list"\n xfrdir: "{folder}"\n database: ""\n'
        " server-count: 1\n verbosity: 2\n xfrd-reload-timeout: 0\nremote-control:\n control-enable: no\n"
        f"key:\n name: key.example.\n algorithm: hmac-sha256\n secret: {SECRET}\n"
        f'zone:\n name: example.org\n zonefile: "{folder}/example.org"\n'
        f" request-xfr: 127.0.0.1@{master} key.example.\n allow-notify: 127.0.0.1 key.example.\n"
        " provide-xfr: 127.0.0.1 key.example.\n max-retry-time: 1\n min-retry-time: 1\n max-refresh-time: 2\n"
    )
    program = peers.find("nsd")
    assert program
    return [program, "-d", "-c", str(folder / "nsd.conf")]


SECONDARIES: dict[str, Callable[..., list[str]]] = {"knot": knot, "bind": bind, "nsd": nsd}


class Relay:
    """Stands before a server's port and counts what comes back over TCP; `more` is called with each count."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.octets = 0
        self.more: Callable[[int], None] = lambda octets: None
        self.port = free_port()
        self.tcp = socket.create_server(("127.0.0.1", self.port))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        for run in (self._accept, self._datagrams):
            threading.Thread(target=run, daemon=True).start()

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self.udp.recvfrom(65535)
                with (
                    contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
                ):  # fmt: skip
                    out.settimeout(1)
                    out.connect(("127.0.0.1", self.to))
                    out.send(data)
                    self.udp.sendto(out.recv(65535), peer)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.tcp.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.to), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if back:
                    self.octets += len(data)
                    self.more(self.octets)
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            if back:
                each.close()

    def close(self) -> None:
        """Ends it."""
        for each in (self.tcp, self.udp):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Primary:
    """kdns in a process of its own, with a zone that updates change."""

    def __init__(self, folder: Path, notified: int) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "seed").write_text(ZONE)
        (folder / "Corefile").write_text(
            f"example.org:{self.port} {{\n bind 127.0.0.1\n tsig {{\n secret key.example. {SECRET}\n"
            f" require AXFR IXFR\n }}\n transfer {{\n to * 127.0.0.1:{notified}\n tsig key.example.\n }}\n"
            f" dynupdate {{\n file {folder}/seed\n database {folder}/db\n allow key.example. * *\n }}\n}}\n"
        )
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Runs it, until it answers."""
        with open(self.folder / "kdns.log", "ab") as output:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "kdns", "-conf", str(self.folder / "Corefile")], stdout=output, stderr=output
            )
        eventually(lambda: serial(self.port) > 0, step=0.05)

    def kill(self) -> None:
        """Kills it."""
        if self.running is not None:
            self.running.send_signal(signal.SIGKILL)
            self.running.wait()
            self.running = None

    def update(self, *changes: tuple[str, str]) -> bool:
        """Adds a text at names, or, where it is empty, deletes them; says whether that was acknowledged."""
        made = dns.update.UpdateMessage("example.org.", keyring=KEYS, keyname="key.example.")
        for name, text in changes:
            if text:
                made.replace(name, 60, "TXT", text)
            else:
                made.delete(name)
        try:
            return dns.query.tcp(made, "127.0.0.1", port=self.port, timeout=2).rcode() == dns.rcode.NOERROR
        except (OSError, EOFError, dns.exception.DNSException):
            return False


@pytest.fixture(params=list(SECONDARIES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Primary, Relay, int, list[str]]]:
    """A primary, the relay before it, the secondary's port, and the words of its command."""
    peer = request.param
    if not peers.find(peers.PROGRAMS[peer]):
        pytest.skip(f"{peers.PROGRAMS[peer]} is not installed")
    port = free_port()
    primary = Primary(tmp_path, port)
    relay = Relay(primary.port)
    yield primary, relay, port, SECONDARIES[peer](tmp_path / peer, port, master=relay.port)
    primary.kill()
    relay.close()


def the_same(primary: Primary, port: int) -> bool:
    return serial(port) == serial(primary.port) and whole(port, **SIGNED) == whole(primary.port, **SIGNED)


def test_each_update_comes_to_a_peer_by_ixfr(pair: tuple[Primary, Relay, int, list[str]], tmp_path: Path) -> None:
    primary, relay, port, words = pair
    primary.start()
    with peers.process(words, tmp_path):
        eventually(lambda: serial(port) == 1, timeout=30, step=0.05)
        eventually(lambda: relay.octets > WHOLE)
        before = relay.octets
        for i in range(5):
            assert primary.update((f"new{i}", f"text {i}"), (f"h{i}", "") if i % 2 else (f"h{i}", "more"))
            eventually(lambda number=i + 2: serial(port) == number, timeout=30, step=0.02)
        assert relay.octets - before < 10_000, (tmp_path / "output").read_text(errors="replace")[-2000:]
        assert the_same(primary, port)


def test_updates_by_nsupdate_in_a_row_come_to_a_peer_by_ixfr(
    pair: tuple[Primary, Relay, int, list[str]], tmp_path: Path
) -> None:
    nsupdate = shutil.which("nsupdate")
    if nsupdate is None:
        pytest.skip("nsupdate is not installed")
    primary, relay, port, words = pair
    primary.start()
    with peers.process(words, tmp_path):
        eventually(lambda: serial(port) == 1, timeout=30, step=0.05)
        before = relay.octets
        said = f"server 127.0.0.1 {primary.port}\nkey hmac-sha256:key.example. {SECRET}\nzone example.org\n" + "".join(
            f"update add n{i}.example.org 60 A 192.0.2.{i}\nsend\n" for i in range(1, 13)
        )
        done = subprocess.run([nsupdate], input=said, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        eventually(lambda: serial(port) == 13, timeout=30, step=0.05)
        assert relay.octets - before < 20_000 and the_same(primary, port)


def test_a_primary_that_is_killed_in_a_transfer_and_between_updates_loses_no_peer(
    pair: tuple[Primary, Relay, int, list[str]], tmp_path: Path
) -> None:
    primary, relay, port, words = pair
    primary.start()
    killed = threading.Event()

    def half(octets: int) -> None:
        if octets > WHOLE // 2 and not killed.is_set():
            killed.set()
            assert primary.running is not None
            os.kill(primary.running.pid, signal.SIGKILL)
            raise OSError  # what is on its way is lost, too

    relay.more = half
    chance = random.Random(5)
    with peers.process(words, tmp_path):
        assert killed.wait(30)
        primary.kill()
        assert serial(port) == -1  # half a zone is none
        for turn in range(3):
            primary.start()
            eventually(lambda: serial(port) >= 1, timeout=60, step=0.05)
            end = time.monotonic() + 0.2 + chance.random() * 0.3
            i = 0
            while time.monotonic() < end or i < 4:
                i += 1
                primary.update((f"t{turn}-{i}", "x" * 100), (f"h{turn * 500 + i}", ""))
            primary.kill()
        primary.start()
        assert primary.update(("last", "x"))
        eventually(lambda: serial(port) == serial(primary.port) > 10, timeout=60, step=0.1)
        assert the_same(primary, port)
