"""A process that does nothing but fork others, at any time, from a state in which forking is safe.

Laws: it is forked before there is any loop, thread or connection, and never has one, so what it forks begins clean; it
ends when its owner does. It says of each process that it has ended, and how.

Theory of operation. A worker that has died is replaced while the server runs; a process with a running loop and threads
cannot be forked, and a process started anew has to import everything again: half a second of CPU, and a copy of its own
of what all workers could share. So there is this one: everything is imported and frozen (`gc.freeze`) before it is
forked, and its children share those pages as long as nobody writes to them.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, final

import msgspec

_MESSAGE: Final = 256  # octets, of a message between the two
# What a forked process runs, with its number and its end of a socket pair; it gives the exit code.
Work = Callable[[int, socket.socket], int]


@final
class ForkServer:
    """The owner's side. `ended` is called with the process id and the exit status (as os.waitpid has it) of each
    process that has ended, `gone` when the fork server itself has.
    """

    def __init__(self, work: Work) -> None:
        """Forks it. To be called before there are loops and threads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                ours.close()
                code = _serve(theirs, work)
            finally:
                os._exit(code)
        theirs.close()
        ours.setblocking(False)
        self.sock = ours
        self.ended: Callable[[int, int], None] = lambda pid, status: None
        self.gone: Callable[[], None] = lambda: None
        self._made: list[asyncio.Future[int]] = []

    def listen(self) -> None:
        """Begins to hear what it says; to be called in a loop."""
        asyncio.get_running_loop().add_reader(self.sock, self._heard)

    async def fork(self, number: int) -> tuple[int, socket.socket]:
        """A new process: its id, and our end of the socket pair to it. Raises OSError."""
        ours, theirs = socket.socketpair()
        made: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self.sock, [msgspec.msgpack.encode(number)], [theirs.fileno()])
            self._made.append(made)
            pid = await made
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return pid, ours

    def close(self) -> None:
        """Ends it; the processes it has forked end by themselves when the other end of their pair is closed."""
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()
        os.waitpid(self.pid, 0)

    def _heard(self) -> None:
        while True:
            try:
                data = self.sock.recv(_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self.sock)
                for made in self._made:
                    if not made.done():
                        made.set_exception(OSError("the process that forks workers has ended"))
                self._made.clear()
                self.gone()
                return
            what, pid, status = msgspec.msgpack.decode(data)
            if what == "ended":
                self.ended(pid, status)
            elif self._made:
                made = self._made.pop(0)
                if made.done():
                    continue
                if pid:
                    made.set_result(pid)
                else:
                    made.set_exception(OSError(status, os.strerror(status)))


def name_process(name: str) -> None:
    """Names this process for whoever lists processes; at most 15 octets (proc_pid_comm(5))."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def _serve(sock: socket.socket, work: Work) -> int:
    """The fork server's life, until its owner's end closes."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    name_process("kdns forks")
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([sock.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(sock)
        if sock.fileno() in ready:
            data, fds, _, _ = socket.recv_fds(sock, _MESSAGE, 1)
            if not data:
                return 0
            number = msgspec.msgpack.decode(data)
            try:
                pid = os.fork()
            except OSError as error:
                os.close(fds[0])
                sock.send(msgspec.msgpack.encode(("forked", 0, error.errno or 0)))
                continue
            if not pid:
                signal.set_wakeup_fd(-1)
                for each in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                    signal.signal(each, signal.SIG_DFL)
                sock.close()
                os.close(wake)
                os.close(waker)
                return work(number, socket.socket(fileno=fds[0]))
            os.close(fds[0])
            sock.send(msgspec.msgpack.encode(("forked", pid, 0)))


def _reap(sock: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        try:
            sock.send(msgspec.msgpack.encode(("ended", pid, status)))
        except OSError:
            return  # nobody is left to hear it
