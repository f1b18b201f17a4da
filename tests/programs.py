"""Other people's servers in tests: BIND, NSD, Knot, unbound, stubby, dnsdist, haproxy, each a process of its own.

A program that ends fails the test at once, and whatever fails says what the program wrote. One whose port somebody took
between our choice and its start is started again on another port.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdns.testing import free_port

PATIENCE = 60.0  # seconds for what a busy machine does in one
STARTS = 5  # a port that is taken twice in a row is rare, five times it is a fault
_TAKEN = re.compile(rb"address (is )?(already )?in use", re.IGNORECASE)


def find(program: str) -> str | None:
    """A program's path; servers stand where a user's PATH does not lead."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test by name where a program is missing."""
    return pytest.mark.skipif(find(program) is None, reason=f"{program} is not installed")


class Program:
    """A program that runs, and serves on `port`; what it writes goes to the file `output`."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
        self.process = process
        self.port = port
        self.output = output

    def said(self) -> str:
        """What it has written."""
        return self.output.read_text(errors="replace")

    def until(self, check: Callable[[], Any], timeout: float = PATIENCE, step: float = 0.05) -> Any:
        """Waits until a check gives something true, and gives that.

        Raises AssertionError with what the program wrote after `timeout` seconds, and at once where it has ended.
        """
        end = time.monotonic() + timeout
        while not (found := check()):
            code = self.process.poll()
            assert code is None, f"{self.process.args!r} ended with code {code}: {self.said()[-4000:]}"
            assert time.monotonic() < end, f"still not true after {timeout} s: {check}; {self.said()[-4000:]}"
            time.sleep(step)
        return found

    def hang_up(self) -> None:
        """Has it read its configuration and its zones again (SIGHUP)."""
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Ends it at once, with all that it was about."""
        self.process.kill()
        self.process.wait()

    def _taken(self) -> bool:
        return _TAKEN.search(self.output.read_bytes()) is not None

    def _listens(self) -> bool:
        """Waits until it listens; False where its port is taken."""
        try:
            self.until(lambda: self._taken() or self._has_port())  # BIND goes on without its port, the others end
        except AssertionError:
            if not self._taken():
                raise
        return not self._taken()

    def _has_port(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return self._owns_port()
        return False

    def _owns_port(self) -> bool:
        """Whether it is the one who listens; True where the system does not say whose a socket is."""
        mine = f"0100007F:{self.port:04X}", f"00000000:{self.port:04X}"
        try:
            table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
            listening = {f"socket:[{row[9]}]" for row in table if row[1] in mine and row[3] == "0A"}
            return any(os.readlink(each) in listening for each in Path(f"/proc/{self.process.pid}/fd").iterdir())
        except PermissionError:
            return True  # it has changed its user
        except FileNotFoundError:
            return not Path("/proc/net/tcp").exists()  # it has ended, or the system has no such files


@contextlib.contextmanager
def running(folder: Path, words: Callable[[int], list[str]]) -> Iterator[Program]:
    """A program that listens on a free port of the loopback (TCP; most have UDP then, too) until the block ends.

    `words` is given the port, prepares what the program needs, and gives its command; it is called again for each port
    that turns out to be taken. The program runs in `folder`, which is made, and writes to the file `output` there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(STARTS):
        port = free_port()
        with _process(words(port), folder) as process:
            program = Program(process, port, folder / "output")
            if program._listens():
                yield program
                return
    raise AssertionError(f"{STARTS} ports in a row were taken: {program.said()[-4000:]}")


@contextlib.contextmanager
def _process(words: list[str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    found = find(words[0])
    assert found is not None, f"{words[0]} is not installed"
    with (
        open(folder / "output", "wb") as output,
        subprocess.Popen(
            [found, *words[1:]], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
