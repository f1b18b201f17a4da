"""The journal of a zone's updates: a file that only grows until the zone's own file holds what is in it.

Laws: what `append` has returned for is on the disk. A frame counts whole or not at all. What is broken elsewhere than
at the end is damage and is never passed over.

Theory of operation. A frame is a mark, its length, a CRC-32, and its content: a number that goes up by one, and names
with all the records that each has from then on, so that a frame read twice does no harm. The zone's file says in its
first line up to which number it holds them; only later frames are read into it. So the file may be renamed into its
place first and the journal emptied after, and a crash between the two changes nothing. A frame that was cut by a crash
was never acknowledged, and nothing follows it: it is cut off.
"""

import contextlib
import errno
import fcntl
import os
import threading
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from kdns import files

MARK: Final = b"\xd2kdU"
_HEAD: Final = 12  # octets: mark, length, CRC-32
MAX_FRAME: Final = 256 << 20  # octets; a batch of updates of whole large names has some
_READ: Final = 1 << 30  # octets of a journal, at most; it is emptied long before

# Names and their records from now on: (type, TTL, rdatas) each.
Content = list[tuple[bytes, list[tuple[int, int, tuple[bytes, ...]]]]]


class Damaged(Exception):
    """A journal that was changed by something else than a crash."""


class Frame(NamedTuple):
    """What one write held."""

    number: int
    names: Content


class Journal:
    """The open file. Its methods but `close` wait for the disk: they are called in threads, one at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = -1
        self.size = 0
        self.guard = threading.Lock()  # held for moments: over what follows, and over closing the file
        self.used = False
        self.closed = False

    def open(self) -> list[Frame]:
        """Opens it, for us alone, and reads what it holds. Raises OSError or Damaged."""
        with self._using():
            return self._open()

    def _open(self) -> list[Frame]:
        with contextlib.suppress(FileNotFoundError):
            files.check_regular(self.path)
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = os.pread(self.file, _READ, 0)
            while len(data) < os.fstat(self.file).st_size:
                more = os.pread(self.file, _READ, len(data))
                if not more:
                    break
                data += more
            frames = []
            end = 0
            for frame, behind in _frames(data):
                frames.append(frame)
                end = behind
            if end < len(data):
                if _follows(data, end):
                    raise Damaged(f"{self.path}: damaged at octet {end}, and more follows: restore it from a backup")
                os.ftruncate(self.file, end)
                os.fsync(self.file)
            files.sync_folder(self.path)
            self.size = end
            os.lseek(self.file, end, os.SEEK_SET)
        except BaseException:
            self.close()
            raise
        return frames

    def append(self, frame: bytes) -> None:
        """Writes a frame to the disk. Raises OSError: then nothing of it may be believed, and `empty` must come
        next.
        """
        with self._using():
            _write_all(self.file, frame)
            os.fdatasync(self.file)
            self.size += len(frame)

    def empty(self) -> None:
        """Begins anew, once the zone's file holds all. Raises OSError."""
        with self._using():
            os.ftruncate(self.file, 0)
            os.lseek(self.file, 0, os.SEEK_SET)
            os.fsync(self.file)
            self.size = 0

    def close(self) -> None:
        """Lets go of the file: now, or as soon as what still waits for the disk has ended. Its number may not become
        another file's before.
        """
        with self.guard:
            self.closed = True
            if not self.used:
                self._release()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self.guard:
            if self.closed:
                raise OSError(errno.EBADF, "the journal is closed", self.path)
            self.used = True
        try:
            yield
        finally:
            self._unused()

    def _unused(self) -> None:
        with self.guard:
            self.used = False
            if self.closed:  # meanwhile
                self._release()

    def _release(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def packed(number: int, names: Content) -> bytes:
    """A frame's octets."""
    out = [number.to_bytes(8, "big")]
    for owner, sets in names:
        out += (owner, len(sets).to_bytes(2, "big"))
        for rtype, ttl, rdatas in sets:
            out.append(rtype.to_bytes(2, "big") + ttl.to_bytes(4, "big") + len(rdatas).to_bytes(4, "big"))
            for data in rdatas:
                out += (len(data).to_bytes(2, "big"), data)
    content = b"".join(out)
    return MARK + len(content).to_bytes(4, "big") + zlib.crc32(content).to_bytes(4, "big") + content


def _content(data: bytes, at: int) -> bytes | None:
    """The content of the frame that begins there; None where none whole does."""
    if data[at : at + 4] != MARK:
        return None
    size = int.from_bytes(data[at + 4 : at + 8], "big")
    content = data[at + _HEAD : at + _HEAD + size]
    if size > MAX_FRAME or len(content) != size or zlib.crc32(content).to_bytes(4, "big") != data[at + 8 : at + 12]:
        return None
    return content


def _frames(data: bytes) -> Iterator[tuple[Frame, int]]:
    at = 0
    while (content := _content(data, at)) is not None:
        at += _HEAD + len(content)
        yield _read(content), at


def _read(content: bytes) -> Frame:
    """A content whose checksum is right."""
    names: Content = []
    at = 8
    while at < len(content):
        end = at
        while content[end]:
            end += content[end] + 1
        owner = content[at : end + 1]
        at = end + 3
        sets = []
        for _ in range(int.from_bytes(content[end + 1 : at], "big")):
            rtype, ttl = int.from_bytes(content[at : at + 2], "big"), int.from_bytes(content[at + 2 : at + 6], "big")
            count = int.from_bytes(content[at + 6 : at + 10], "big")
            at += 10
            rdatas = []
            for _ in range(count):
                size = int.from_bytes(content[at : at + 2], "big")
                rdatas.append(content[at + 2 : at + 2 + size])
                at += 2 + size
            sets.append((rtype, ttl, tuple(rdatas)))
        names.append((owner, sets))
    return Frame(int.from_bytes(content[:8], "big"), names)


def _follows(data: bytes, at: int) -> bool:
    """Whether a whole frame stands anywhere behind a broken one."""
    while (at := data.find(MARK, at + 1)) >= 0:
        if _content(data, at) is not None:
            return True
    return False


def _write_all(file: int, data: bytes) -> None:
    """Writes all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
