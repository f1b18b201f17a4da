"""Runs a command of kdns without what a start of Python costs: half a second of CPU, most of it for imports.

The forker is a process, one for each process of pytest. It has imported what the commands use and has run none of it.
For each command it forks, and the fork goes on as `python -m kdns` does, up to the end of its interpreter.

Laws:
- A command finds its words, folder, environment, standard streams and signals as a process of its own would, and ends
  as one: its exit code, output that is still in a buffer, threads that it waits for, what complains when it is
  destroyed. Only what modules hold is not destroyed one by one: that costs twice what most commands do.
- The forker has one thread, and no file beside its own: what it imports starts nothing.
- What differs: modules are there that a command would import when it needs them, and what a module takes by chance when
  it is imported is the same for all commands. A test of imports, of memory, of a closed stream, of what Python reads in
  its environment, and a test of a server have a process of their own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LONGEST = 1 << 16  # bytes of a request: less than what a socket's buffer holds


class Forker:
    """The forker, as the tests see it. All its commands have the environment that it is given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._one = threading.Lock()
        self._asks, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            words = [sys.executable, "-m", "tests.forker", str(asked.fileno())]
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(words, stdin=null, stdout=null, pass_fds=[asked.fileno()], env=environ)

    def run(
        self, words: tuple[str, ...], given: bytes | None, cwd: Path | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """What subprocess.run gives for `python -m kdns WORDS` where it captures the output. Without `given` the
        standard input is the null device.
        """
        with contextlib.ExitStack() as stack, self._one:
            pool = stack.enter_context(ThreadPoolExecutor(3))
            null = stack.enter_context(open(os.devnull, "rb"))
            (stdin, writes), (says, stdout), (complains, stderr) = os.pipe(), os.pipe(), os.pipe()
            pool.submit(_write, writes, given or b"")
            output = [pool.submit(_read, each) for each in (says, complains)]
            try:
                request = json.dumps([str(cwd or Path.cwd()), *words]).encode()
                assert len(request) <= LONGEST
                socket.send_fds(self._asks, [request], [null.fileno() if given is None else stdin, stdout, stderr])
            finally:
                for each in (stdin, stdout, stderr):
                    os.close(each)
            pid = self._told()
            try:
                status = self._told(timeout)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._told()
                raise subprocess.TimeoutExpired(words, timeout) from None
            code = os.waitstatus_to_exitcode(status)
            return subprocess.CompletedProcess(words, code, *(each.result() for each in output))

    def commands(self) -> list[int]:
        """The commands that run: one, or none."""
        pid = self._process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        """Ends the forker."""
        self._asks.close()
        self._process.wait()

    def _told(self, timeout: float | None = None) -> int:
        self._asks.settimeout(timeout)
        told = self._asks.recv(LONGEST)
        assert told, "the forker has ended"
        return int(told)


def _read(number: int) -> bytes:
    with open(number, "rb") as file:
        return file.read()


def _write(number: int, text: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(number, "wb") as file:
        file.write(text)


def _import_all() -> None:
    """Imports all of kdns but what is for tests and what is a program."""
    for each in pkgutil.walk_packages(importlib.import_module("kdns").__path__, "kdns."):
        if not each.name.startswith("kdns.testing") and not each.name.endswith("__main__"):
            importlib.import_module(each.name)


def _forked(asked: socket.socket) -> list[str]:
    """Forks for each request. Gives the forks their words, and the forker none once it is asked no more."""
    with asked:
        while True:
            request, files, _, _ = socket.recv_fds(asked, LONGEST, 3)
            if not request:
                return []
            if not (pid := os.fork()):
                break
            for each in files:
                os.close(each)
            asked.send(str(pid).encode())
            asked.send(str(os.waitpid(pid, 0)[1]).encode())
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    folder, *words = json.loads(request)
    os.chdir(folder)
    return [folder, *words]


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
