"""Files are read where waiting holds nobody, and for no longer than a time limit.

A file may be one that never ends or never begins: a FIFO that nobody writes to, a file of a network that does not
answer. So `waiting` runs what may wait in a thread of its own few, and gives up on it after some seconds: what the
thread then still waits for is not begun a second time, so threads do not add up, and none of them keeps the process
from ending. Threads only wait (and hash, which Python does beside its lock); work on what was read is done in turns or
in a child process.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar, cast
from weakref import WeakValueDictionary

T = TypeVar("T")

TIMEOUT: Final = 5.0  # seconds for a look at files, and for a pipe's writer: a file system that needs longer hangs
MAX_THREADS: Final = 16  # each may be lost to a file system that hangs; looks at other files then wait for the rest
MAX_PEM: Final = 4 << 20  # octets of certificates or a key; all the authorities that a system trusts have some 250 KB
_PIECE: Final = 1 << 20  # octets read at once


class Seen(NamedTuple):
    """What tells one state of a file from another; links are followed, so a link that is swapped is another file."""

    device: int
    inode: int
    size: int
    changed: int  # nanoseconds
    touched: int  # nanoseconds: the last change of anything, also of who may read it


class Content(NamedTuple):
    """What was read: the octets (None where there are more than were to be kept), their digest, and the file's
    state.
    """

    data: bytes | None
    digest: bytes
    seen: Seen


def look(path: str) -> Seen:
    """The state of a file or folder. Raises OSError."""
    return _seen(os.stat(path))


def _seen(found: os.stat_result) -> Seen:
    return Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def read(path: str, most: int, timeout: float = TIMEOUT) -> bytes:
    """A file's octets, at most `most`. Raises OSError; TimeoutError for a pipe that does not end within `timeout`
    seconds.
    """
    data = read_through(path, most, most, timeout).data
    assert data is not None
    return data


class NotRegular(OSError):
    """A pipe, a device, a socket or a folder in a file's place."""


def check_regular(path: str) -> None:
    """For a file that something is to open which would wait for a pipe's writer for ever. Raises OSError; NotRegular
    where it is not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegular(errno.EINVAL, "it is not a regular file", path)


def read_regular(path: str, most: int) -> bytes:
    """The octets of a regular file, at most `most`. Raises OSError; NotRegular as `check_regular`."""
    check_regular(path)
    return read(path, most)


def check_pem(paths: Iterable[str]) -> None:
    """For files of certificates and keys that OpenSSL is to open: it says nothing of their names, and never gives up.
    Raises OSError.
    """
    for path in paths:
        read_regular(path, MAX_PEM)


def read_text(path: str, most: int, timeout: float = TIMEOUT) -> str:
    """A file's text; octets that are not UTF-8 are replaced. Raises OSError."""
    return read(path, most, timeout).decode(errors="replace")


def replace(path: str, parts: Iterable[bytes], mode: int) -> None:
    """Puts a file of these octets and this mode in the place of another: whoever reads it finds one of the two, whole.

    It is on the disk when this returns. Raises OSError, and what making the parts raises; then what was there is as it
    was.
    """
    partial = f"{path}.{os.getpid()}.new"
    with changing(path):
        try:
            with open(partial, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise


def changing(path: str) -> threading.Lock:
    """Held by the thread that replaces or removes a file: who gave it up and who comes next would meet there."""
    with _guard:
        found = _changing.get(path)
        if found is None:
            found = _changing[path] = threading.Lock()
        return found


_guard: Final = threading.Lock()
_changing: Final[WeakValueDictionary[str, threading.Lock]] = WeakValueDictionary()


def sync_folder(path: str) -> None:
    """Makes a file's entry in its folder last. Raises OSError."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_through(path: str, most: int, keep: int, timeout: float = TIMEOUT) -> Content:
    """Reads a file to its end; of one with more than `keep` octets the data is not kept.

    Raises OSError, also for a folder and for a file of over `most` octets; NotRegular for a device that gives octets
    (/dev/zero gives as many as there are) and is no terminal.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # or a FIFO would wait for its writer here
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        regular = stat.S_ISREG(found.st_mode)
        device = stat.S_ISBLK(found.st_mode) or (stat.S_ISCHR(found.st_mode) and not os.isatty(handle))
        if regular and found.st_size > most:
            raise _too_large(path, most)
        digest = hashlib.blake2b()
        pieces: list[bytes] = []
        size = 0
        end = monotonic() + timeout
        while True:
            if not regular:
                _await_octets(handle, path, end, timeout)
            piece = os.read(handle, _PIECE)
            if not piece:
                break
            if device:
                raise NotRegular(errno.EINVAL, "it is a device and not a file", path)
            size += len(piece)
            if size > most:
                raise _too_large(path, most)
            digest.update(piece)
            if size <= keep:
                pieces.append(piece)
            else:
                pieces.clear()
        return Content(b"".join(pieces) if size <= keep else None, digest.digest(), _seen(found))
    finally:
        os.close(handle)


def _too_large(path: str, most: int) -> OSError:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} octets"
    return OSError(errno.EFBIG, f"it is larger than {size}", path)


def _await_octets(handle: int, path: str, end: float, timeout: float) -> None:
    """Waits until a pipe or device has something, or has ended."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    left = end - monotonic()
    if not poll.poll(max(left, 0) * 1000):
        late = f"did not end within {timeout:g} s" if timeout else "had nothing to read"
        raise TimeoutError(errno.ETIMEDOUT, f"it is a pipe or a device, and {late}", path)


# Waiting.


class _Job:
    __slots__ = ("begun", "call", "future", "hangs", "loop", "what")

    def __init__(self, what: str, call: Callable[[], Any]) -> None:
        self.what = what
        self.call = call
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.begun = False
        self.hangs = False

    def finish(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Threads:
    """A few threads, begun when they are needed. They end with the process."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: deque[_Job] = deque()
        self.hanging: set[str] = set()
        self.idle = 0
        self.count = 0

    def add(self, job: _Job) -> None:
        with self.changed:
            self.jobs.append(job)
            if self.idle < len(self.jobs) and self.count < MAX_THREADS:
                self.count += 1
                threading.Thread(target=self._work, name="files", daemon=True).start()
            self.changed.notify()

    def give_up(self, job: _Job) -> None:
        """Nobody waits for a job any more; what it names is not begun again while it lasts."""
        with self.changed:
            if job in self.jobs:
                self.jobs.remove(job)
            elif job.begun:
                job.hangs = True
                self.hanging.add(job.what)

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self.jobs:
                    self.idle += 1
                    self.changed.wait()
                    self.idle -= 1
                job = self.jobs.popleft()
                job.begun = True
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.call()
            except BaseException as caught:
                error = caught
            with self.changed:
                job.begun = False
                if job.hangs:
                    self.hanging.discard(job.what)
            with contextlib.suppress(RuntimeError):  # its loop has ended
                job.loop.call_soon_threadsafe(job.finish, result, error)
            del job, result, error


_threads: Final = _Threads()


def waiting_here(what: str, call: Callable[[], T], timeout: float = TIMEOUT) -> T:
    """As `waiting`, where there is no loop yet: the caller waits, and the handlers of its signals run meanwhile.

    Nothing is left of the thread unless it hangs.
    """
    came: list[tuple[T | None, BaseException | None]] = []

    def work() -> None:
        try:
            came.append((call(), None))
        except BaseException as caught:
            came.append((None, caught))

    thread = threading.Thread(target=work, name="files", daemon=True)
    thread.start()
    thread.join(timeout)
    if not came:
        raise TimeoutError(errno.ETIMEDOUT, f"{what} took over {timeout:g} s and was given up")
    result, error = came[0]
    if error is not None:
        raise error
    return cast(T, result)


async def waiting(what: str, call: Callable[[], T], timeout: float | None = TIMEOUT) -> T:
    """What a call gives that may wait, made in a thread. Raises what it raises, TimeoutError after `timeout` seconds
    (None: it may take as long as it likes).

    `what` says in a few words what is done; while an earlier call of that name hangs, it is not made again.
    """
    if what in _threads.hanging:
        raise TimeoutError(errno.ETIMEDOUT, f"{what} hangs and has not ended yet")
    job = _Job(what, call)
    _threads.add(job)
    try:
        done, _ = await asyncio.wait((job.future,), timeout=timeout)
    except asyncio.CancelledError:
        job.future.cancel()
        _threads.give_up(job)
        raise
    if not done:
        _threads.give_up(job)
        if not job.future.done():
            job.future.cancel()
            raise TimeoutError(errno.ETIMEDOUT, f"{what} took over {timeout:g} s and was given up")
    found: T = job.future.result()
    return found
