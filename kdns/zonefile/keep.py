"""A copy of a zone on the disk, written while others are served, and known for whole when it is read.

Laws: whoever reads the file finds one version, whole, also after a crash; a file that was changed or cut since is not
read. The last line is the digest of all that stands before it. The time of the file's last change is when the zone was
last known to be up to date.

A small zone is written out here, in turns, and a thread waits for the disk. A large one goes in pieces to a child
(`python -m kdns.zonefile.keep PATH`), which writes the lines: that costs the loop a fifth.
"""

import asyncio
import contextlib
import gc
import hashlib
import marshal
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import IO, Any, Final

from kdns import child, files
from kdns.child import ChildFailed
from kdns.dns.name import to_text
from kdns.dns.rrset import RRset
from kdns.store.zone import Zone
from kdns.timeslice import TimeSlice
from kdns.zonefile.load import BrokenZone, read_beside
from kdns.zonefile.types import lines

HERE: Final = 1000  # records that are written out here: 10 ms, in turns
PIECE: Final = 100  # RRsets that the child is handed at once: a tenth of a millisecond
WRITING: Final = 600.0  # seconds; ten million records take some 100
READING: Final = 60.0  # seconds for a file's octets, and for its seal
_SEAL: Final = b"; sha256 "
_LAST: Final = len(_SEAL) + 64 + 1  # octets of the last line
_OCTETS: Final = 1 << 20  # of a file read at once
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
_LONG: Final = 200  # letters of a file's name, which may have 255 in all


class BadCopy(Exception):
    """A file that is not a whole copy; the text says why."""


def path_of(folder: str, origin: bytes) -> str:
    """Where a zone's copy lies in a folder. A zone's name may hold what a file's may not."""
    name = "".join([each if each in _PLAIN else f"%{ord(each):02X}" for each in to_text(origin)])
    if len(name) > _LONG:
        name = hashlib.sha256(origin).hexdigest() + "."
    return os.path.join(folder, f"db.{name}copy")


# Writing.


async def keep(path: str, zone: Zone) -> None:
    """Writes a zone's copy. Raises OSError; then the copy before is there still."""
    zone.readers += 1  # it is not taken apart meanwhile
    try:
        if zone.count > HERE:
            try:
                await child.output("kdns.zonefile.keep", path, given=partial(_feed, zone), timeout=WRITING)
            except ChildFailed as error:
                raise OSError(str(error)) from None
            return
        turn = TimeSlice()
        parts = []
        for rrset in zone.rrsets():
            parts += _text(rrset)
            await turn.pause()
    finally:
        zone.readers -= 1
    given_up = threading.Event()
    try:
        await files.waiting(f"writing {path}", partial(_put, path, _unless(given_up, parts)), WRITING)
    except BaseException:
        given_up.set()
        raise


def _text(rrset: RRset) -> list[bytes]:
    return [line.encode() + b"\n" for line in lines(rrset)]


def _unless(given_up: threading.Event, parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts, until nobody wants them any more."""
    for part in parts:
        if given_up.is_set():
            raise TimeoutError
        yield part


def _put(path: str, parts: Iterable[bytes]) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    files.replace(path, _sealed(parts), 0o644)


def _sealed(parts: Iterable[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        yield part
    yield _SEAL + digest.hexdigest().encode() + b"\n"


async def _feed(zone: Zone, stdin: asyncio.StreamWriter) -> None:
    turn = TimeSlice()
    piece: list[tuple[Any, ...]] = []
    for rrset in zone.rrsets():
        piece.append(tuple(rrset))
        if len(piece) >= PIECE:
            stdin.write(_packed(piece))
            piece = []
            await stdin.drain()
            await turn.pause()
    # An empty piece is the end: without it we have died on the way, and nothing is written.
    stdin.write(_packed(piece) + _packed([]) if piece else _packed([]))


def _packed(piece: list[tuple[Any, ...]]) -> bytes:
    packed = marshal.dumps(piece)
    return len(packed).to_bytes(4, "big") + packed


def _given(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of what the parent sends. Raises EOFError where it breaks off."""
    while True:
        head = stream.read(4)
        if len(head) < 4:
            raise EOFError
        piece = marshal.loads(stream.read(int.from_bytes(head, "big")))
        if not piece:
            return
        for each in piece:
            yield from _text(RRset(*each))


def _main(path: str) -> int:
    try:
        _put(path, _given(sys.stdin.buffer))
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    except EOFError:
        return 1
    return 0


# Reading.


async def kept(path: str, origin: bytes) -> tuple[Zone, float]:
    """The zone of a copy, and for how many seconds nobody has confirmed it. Raises OSError or BadCopy."""
    changed = await files.waiting(f"checking {path}", partial(_check, path), READING)
    try:
        loaded = await read_beside(path, origin)
    except BrokenZone as error:
        raise BadCopy(str(error)) from None
    return loaded.zone, max(time.time() - changed, 0.0)


def _check(path: str) -> float:
    """When a whole copy was confirmed, as Unix time. Raises OSError or BadCopy."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        left = found.st_size - _LAST
        digest = hashlib.sha256()
        while left > 0:
            part = file.read(min(left, _OCTETS))
            if not part:
                break
            digest.update(part)
            left -= len(part)
        if file.read() != _SEAL + digest.hexdigest().encode() + b"\n":
            raise BadCopy("it is not whole: its last line does not fit the rest")
    return found.st_mtime


async def confirm(path: str) -> None:
    """Says that a copy is up to date. Raises OSError."""
    await files.waiting(f"touching {path}", partial(os.utime, path))


async def remove(path: str) -> None:
    """Removes a copy, if there is one, also where its writing was given up and ends after all. Raises OSError."""

    def unlink() -> None:
        with files.changing(path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    await files.waiting(f"removing {path}", unlink)


if __name__ == "__main__":
    gc.disable()
    raise SystemExit(_main(sys.argv[1]))
