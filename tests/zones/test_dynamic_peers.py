"""BIND, Knot and NSD as secondaries of a zone that updates change: they have each change by IXFR, signed, and the same
zone in the end whenever kdns is killed.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update
import pytest

from kdns.testing import free_port
from tests import programs
from tests.programs import Program
from tests.zones.peers import PROGRAMS
from tests.zones.relay import Relay
from tests.zones.test_transfers import whole
from tests.zones.xfrpeers import COMMANDS, KEYS, SECRET, serial, urged

COUNT = 3000
ZONE = "$TTL 300\n@ SOA ns hostmaster 1 3600 1 86400 60\n@ NS ns\nns A 192.0.2.1\n" + "".join(
    f"h{i} A 10.0.{i >> 8}.{i & 255}\n" for i in range(COUNT)
)
WHOLE = 60_000  # octets that the zone has on the wire, at least
SIGNED = {"keyring": KEYS, "keyname": "key.example."}


class Primary:
    """kdns in a process of its own, with a zone that updates change; it tells `notified`, a port of the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.running: Program | None = None
        (folder / "seed").write_text(ZONE)

    def start(self, notified: int) -> None:
        """Runs it, until it answers."""
        (self.folder / "Corefile").write_text(
            f"example.org:{self.port} {{\n bind 127.0.0.1\n tsig {{\n secret key.example. {SECRET}\n"
            f" require AXFR IXFR\n }}\n transfer {{\n to * 127.0.0.1:{notified}\n tsig key.example.\n }}\n"
            f" dynupdate {{\n file {self.folder}/seed\n database {self.folder}/db\n allow key.example. * *\n }}\n}}\n"
        )
        log = self.folder / "kdns.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "kdns", "-conf", str(self.folder / "Corefile")], stdout=output, stderr=output
            )
        self.running = Program(process, self.port, log)
        self.running.until(lambda: serial(self.port) > 0)

    def kill(self) -> None:
        """Kills it."""
        if self.running is not None:
            self.running.kill()
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


class Pair(NamedTuple):
    """A primary, the relay before it, and a secondary that runs."""

    primary: Primary
    relay: Relay
    program: Program

    @property
    def port(self) -> int:
        """The secondary's."""
        return self.program.port

    def said(self) -> str:
        """What both have written."""
        assert self.primary.running is not None
        return f"{self.program.said()[-2000:]}\n{self.primary.running.said()[-2000:]}"

    def the_same(self) -> bool:
        """Whether both have the same zone."""
        theirs, ours = whole(self.port, **SIGNED), whole(self.primary.port, **SIGNED)
        return serial(self.port) == serial(self.primary.port) and theirs == ours


@contextlib.contextmanager
def pair(
    peer: str, folder: Path, more: Callable[[Primary, int], None] = lambda primary, octets: None
) -> Iterator[Pair]:
    """Starts a primary and a secondary; `more` is called as Relay's, with the primary."""
    primary = Primary(folder)
    relay = Relay(primary.port)
    relay.more = lambda octets: more(primary, octets)

    def words(port: int) -> list[str]:
        primary.kill()
        primary.start(port)
        return COMMANDS[peer](folder / peer, port, master=relay.port)

    try:
        with programs.running(folder / peer, words) as program:
            yield Pair(primary, relay, program)
    finally:
        primary.kill()
        relay.close()


SECONDARIES = [pytest.param(peer, marks=programs.needs(program)) for peer, program in PROGRAMS.items()]


@pytest.mark.parametrize("peer", SECONDARIES)
def test_each_update_comes_to_a_peer_by_ixfr(peer: str, tmp_path: Path) -> None:
    with pair(peer, tmp_path) as both:
        urged(both.program, lambda: serial(both.port) == 1)
        both.program.until(lambda: both.relay.octets > WHOLE)
        before = both.relay.octets
        for i in range(5):
            assert both.primary.update((f"new{i}", f"text {i}"), (f"h{i}", "") if i % 2 else (f"h{i}", "more"))
            both.program.until(lambda number=i + 2: serial(both.port) == number, step=0.02)
        assert both.relay.octets - before < 10_000, both.said()
        assert both.the_same(), both.said()


@pytest.mark.parametrize("peer", SECONDARIES)
def test_updates_by_nsupdate_in_a_row_come_to_a_peer_by_ixfr(peer: str, tmp_path: Path) -> None:
    nsupdate = shutil.which("nsupdate")
    if nsupdate is None:
        pytest.skip("nsupdate is not installed")
    with pair(peer, tmp_path) as both:
        urged(both.program, lambda: serial(both.port) == 1)
        before = both.relay.octets
        said = (
            f"server 127.0.0.1 {both.primary.port}\nkey hmac-sha256:key.example. {SECRET}\nzone example.org\n"
        ) + "".join(f"update add n{i}.example.org 60 A 192.0.2.{i}\nsend\n" for i in range(1, 13))
        done = subprocess.run([nsupdate], input=said, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        both.program.until(lambda: serial(both.port) == 13)
        assert both.relay.octets - before < 20_000 and both.the_same(), both.said()


@pytest.mark.parametrize("peer", SECONDARIES)
def test_a_primary_that_is_killed_in_a_transfer_and_between_updates_loses_no_peer(peer: str, tmp_path: Path) -> None:
    killed = threading.Event()

    def half(primary: Primary, octets: int) -> None:
        if octets > WHOLE // 2 and not killed.is_set():
            killed.set()
            assert primary.running is not None
            os.kill(primary.running.process.pid, signal.SIGKILL)
            raise OSError  # what is on its way is lost, too

    chance = random.Random(5)
    with pair(peer, tmp_path, half) as both:
        primary = both.primary
        urged(both.program, killed.is_set)
        primary.kill()
        assert serial(both.port) == -1, both.program.said()  # half a zone is none
        for turn in range(3):
            primary.start(both.port)
            urged(both.program, lambda: serial(both.port) >= 1)
            end = time.monotonic() + 0.2 + chance.random() * 0.3
            i = 0
            while time.monotonic() < end or i < 4:
                i += 1
                primary.update((f"t{turn}-{i}", "x" * 100), (f"h{turn * 500 + i}", ""))
            primary.kill()
        primary.start(both.port)
        assert primary.update(("last", "x"))
        urged(both.program, lambda: serial(both.port) == serial(primary.port) > 10)
        assert both.the_same(), both.said()
