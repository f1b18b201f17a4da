"""Runs a command of kdns without what a start of Python costs: half a second of CPU, most of it for imports.

The forker is a process, one for each process of pytest. It has imported what the commands use and has run none of it.
For each command it forks, and the fork goes on as `python -m kdns` does, up to the end of its interpreter.

Laws:
- A command finds its words, folder, environment, standard streams and signals as a process of its own would, and ends
  as one: its exit code, output that is still in a buffer, threads that it waits for, what complains when it is
  destroyed. Only what modules hold is not destroyed one by one: that costs twice what most commands do.
- The forker has one thread, and no file beside its own: what it imports starts nothing.
- What differs: modules are there that a command would import when it needs them, and what a module takes by chance when
  it is imported is the same for all commands. A test of imports, of memory, of a closed stream or of what Python reads
  in its environment has a process of its own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONUNBUFFERED": "1"}
ENV.pop("KUBERNETES_SERVICE_HOST", None)
LONGEST = 1 << 16  # bytes of a request: less than what a socket's buffer holds
Output = tuple[bytes, bytes]


class Command:
    """A command that runs, with what the tests need of subprocess.Popen. Its streams are pipes."""

    def __init__(self, words: tuple[str, ...], life: socket.socket, stdin: int, stdout: int, stderr: int) -> None:
        self.args = words
        self.stdin, self.stdout, self.stderr = open(stdin, "wb"), open(stdout, "rb"), open(stderr, "rb")  # noqa: SIM115
        self.returncode: int | None = None
        self._life = life
        told = life.recv(16)
        assert told, "the forker has ended"
        self.pid = int(told)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._life.settimeout(timeout)
            try:
                told = self._life.recv(16)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._life.close()
            assert told, "the forker has ended"
            self.returncode = os.waitstatus_to_exitcode(int(told))
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: bytes = b"", timeout: float | None = None) -> Output:
        """What it says and complains of until it ends. After `timeout` it is killed, which raises
        subprocess.TimeoutExpired.
        """
        if self.stdout.closed:
            return b"", b""
        with self.stdout, self.stderr, ThreadPoolExecutor(3) as pool:
            pool.submit(_write, self.stdin, given)
            said, complained = pool.submit(self.stdout.read), pool.submit(self.stderr.read)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                self.wait()
                raise
            return said.result(), complained.result()


def _write(file: BinaryIO, text: bytes) -> None:
    if not file.closed:
        with contextlib.suppress(BrokenPipeError), file:
            file.write(text)


class Forker:
    """The forker, as the tests see it. All its commands have the environment that it is given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._asks, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            words = [sys.executable, "-m", "tests.forker", str(asked.fileno())]
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(
                words, stdin=null, stdout=null, pass_fds=[asked.fileno()], env=environ, cwd=ROOT
            )

    def start(self, words: tuple[str, ...], cwd: Path | None, *, stdin: bool = False) -> Command:
        """Starts `python -m kdns WORDS`. Its standard input is the null device, where `stdin` is not set."""
        life, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (given, writes), (says, stdout), (complains, stderr) = os.pipe(), os.pipe(), os.pipe()
        request = json.dumps([str(cwd or Path.cwd()), *words]).encode()
        assert len(request) <= LONGEST
        with end, open(os.devnull, "rb") as null:
            socket.send_fds(self._asks, [request], [given if stdin else null.fileno(), stdout, stderr, end.fileno()])
        for each in (given, stdout, stderr):
            os.close(each)
        return Command(words, life, writes, says, complains)

    def run(
        self, words: tuple[str, ...], given: bytes | None, cwd: Path | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """What subprocess.run gives where it captures the output."""
        command = self.start(words, cwd, stdin=given is not None)
        output = command.communicate(given or b"", timeout)
        return subprocess.CompletedProcess(words, command.wait(), *output)

    def commands(self) -> list[int]:
        """The commands that run."""
        pid = self._process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        """Ends the forker."""
        self._asks.close()
        self._process.wait()


@cache
def forker() -> Forker:
    """The forker of this process of pytest; conftest ends it."""
    return Forker({**ENV, "PYTHONPATH": str(ROOT)})


def _import_all() -> None:
    """Imports the commands and the plugins, with all that they import at once. What only some servers need, such as
    several processes, is for those to import: the series that they count are on no other server's page.
    """
    for name in ("kdns.cli", "kdns.plugins"):
        for each in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(each.name)


def _forked(asked: socket.socket) -> list[str]:
    """Forks for each request. Gives a fork its folder and its words, and the forker nothing when it is to end."""
    running: dict[int, tuple[int, int]] = {}  # by the descriptor of a process: its id, and where its end is told
    while True:
        ready, _, _ = select.select([asked, *running], [], [])
        for each in ready:
            if each is not asked:
                pid, life = running.pop(each)
                _tell(life, os.waitpid(pid, 0)[1])
                os.close(life)
                os.close(each)
        if asked not in ready:
            continue
        request, files, _, _ = socket.recv_fds(asked, LONGEST, 4)
        if not request:
            for pid, _ in running.values():
                os.kill(pid, signal.SIGKILL)
            return []
        if not (pid := os.fork()):
            break
        running[os.pidfd_open(pid)] = pid, files[3]
        _tell(files[3], pid)
        for number in files[:3]:
            os.close(number)
    asked.detach()
    for number in range(3):
        os.dup2(files[number], number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    folder, *words = json.loads(request)
    os.chdir(folder)
    return [folder, *words]


def _tell(life: int, number: int) -> None:
    with contextlib.suppress(OSError):  # a test that has failed asks no more
        os.write(life, str(number).encode())


def _end(code: list[int]) -> None:
    """Ends the process as the interpreter does, which has waited for all threads."""
    gc.collect()
    for each in (sys.stdout, sys.stderr):
        if each is not None:
            each.flush()
    os._exit(code[0])


def _main() -> None:
    _import_all()
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1
    if not (found := _forked(socket.socket(fileno=int(sys.argv[1])))):
        return
    sys.path[0], *sys.argv[1:] = found
    code = [1]  # that of an error which nobody caught
    atexit.register(_end, code)  # the first to be registered is the last to be called
    try:
        runpy.run_module("kdns", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    _main()
