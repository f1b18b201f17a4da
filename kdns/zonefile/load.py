"""From a zone's file to a Zone: at once where it is small, by a child process where reading it would hold the loop.

The child (`python -m kdns.zonefile.load PATH ORIGIN`) reads the file (`-`: records that the parent sends), puts its
names into canonical order and writes them in small pieces; what is left to do here is to make objects of them, a piece
in a third of a millisecond, others running in between.
"""

import asyncio
import gc
import marshal
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any, Final, NamedTuple, NoReturn

from kdns import files
from kdns.child import Child, running
from kdns.dns.name import from_text, to_text
from kdns.store.zone import Zone
from kdns.store.zone_builder import BadZone, ZoneBuilder, zone_of
from kdns.store.zone_node import arranged
from kdns.store.zone_proofs import NsecProofs
from kdns.timeslice import TimeSlice, emptied
from kdns.zonefile.errors import Problem, ZoneFileError
from kdns.zonefile.reader import MAX_OCTETS, MasterFile, Seen

INLINE: Final = 32 << 10  # octets; some 1,000 records, which take 5 ms
PIECE: Final = 200  # names and RRsets in a piece: a third of a millisecond
SORTED_HERE: Final = 2000  # names of a transfer that are sorted at once: 3 ms
MAX_PIECE: Final = 64 << 20  # octets: a name's records at most, of all types
_BUFFER: Final = 1 << 20  # octets that wait to be read: then the child waits
READING: Final = 60.0  # seconds for the octets of a file: a file system that needs longer hangs
CHILD_TIMEOUT: Final = 600.0  # seconds; ten million records take some 100

_MORE: Final = re.compile(rb"^\s*\$(?:INCLUDE|GENERATE)", re.IGNORECASE | re.MULTILINE)


class Loaded(NamedTuple):
    """A zone, the files it was read from, and what was odd about them."""

    zone: Zone
    seen: list[Seen]
    warnings: list[Problem]


class BrokenZone(Exception):
    """A zone that cannot be made of its file; `seen` are the files that were looked at."""

    def __init__(self, message: str, seen: list[Seen], problems: list[Problem]) -> None:
        super().__init__(message)
        self.seen = seen
        self.problems = problems


def read(path: str, origin: bytes) -> Loaded:
    """Reads a zone here and now. Raises BrokenZone, or OSError where the file cannot be read."""
    source = MasterFile(origin)
    source.read(path)
    return _finished(source, path)


def _finished(source: MasterFile, path: str) -> Loaded:
    try:
        zone = zone_of(source.origin, arranged(source.origin, source.finish()))
    except ZoneFileError as error:
        raise BrokenZone(str(error), source.seen, error.problems) from None
    except BadZone as error:
        problem = Problem(path, 1, 1, str(error))
        raise BrokenZone(str(problem), source.seen, [problem]) from None
    return Loaded(zone, source.seen, source.warnings)


def _small(path: str) -> files.Content | None:
    """What a file says, if reading it takes no longer than the loop may be held. In a thread. Raises OSError."""
    content = files.read_through(path, MAX_OCTETS, INLINE)
    # What a small file includes or generates may be large.
    return None if content.data is None or _MORE.search(content.data) else content


def _taken(path: str, origin: bytes, content: files.Content) -> Loaded:
    source = MasterFile(origin)
    source.take(path, content)
    return _finished(source, path)


def read_paced(path: str, origin: bytes) -> Loaded:
    """Reads a zone in a thread that may not hold the others: a large one by a child. Raises as `read` does."""
    content = _small(path)
    if content is not None:
        return _taken(path, origin, content)
    builder = ZoneBuilder(origin)
    with subprocess.Popen(_command(path, origin), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while head := child.stdout.read(4):
            last = _take(builder, child.stdout.read(int.from_bytes(head, "big")), path)
            if last is not None:
                return last
            time.sleep(0)  # gives the interpreter to a thread that waits for it
    _died(path)


async def read_beside(path: str, origin: bytes) -> Loaded:
    """Reads a zone while others run: a large one by a child. Raises as `read` does."""
    content = await files.waiting(f"reading {path}", partial(_small, path), READING)
    if content is not None:
        return _taken(path, origin, content)
    builder = ZoneBuilder(origin)
    async with running(*_command(path, origin), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        try:
            async with asyncio.timeout(CHILD_TIMEOUT):
                return await _pieces(child, builder, path)
        except TimeoutError:
            await _dropped(builder)
            raise BrokenZone(f"{path}: reading it took over {CHILD_TIMEOUT:g} s", [], []) from None
        except BrokenZone:
            await _dropped(builder)
            raise


async def build_beside(origin: bytes, names: Mapping[bytes, Mapping[int, Sequence[Any]]]) -> Zone:
    """A zone of records that came by a transfer, while others run: of many by a child, which sorts them. Raises
    BadZone.
    """
    if len(names) <= SORTED_HERE:
        return zone_of(origin, arranged(origin, names))
    builder = ZoneBuilder(origin)
    async with running(*_command("-", origin), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        fed = asyncio.create_task(_feed(child, names))
        try:
            async with asyncio.timeout(CHILD_TIMEOUT):
                return (await _pieces(child, builder, to_text(origin))).zone
        except (TimeoutError, BrokenZone) as error:
            await _dropped(builder)
            raise BadZone(str(error) or "putting the zone together took too long") from None
        finally:
            fed.cancel()
            await asyncio.gather(fed, return_exceptions=True)


async def _feed(child: Child, names: Mapping[bytes, Mapping[int, Sequence[Any]]]) -> None:
    """Sends names to the child."""
    stdin = await child.writer()
    timeslice = TimeSlice()
    piece: dict[bytes, Any] = {}
    for name, sets in names.items():
        piece[name] = sets
        if len(piece) >= PIECE:
            packed = marshal.dumps(piece)
            stdin.write(len(packed).to_bytes(4, "big") + packed)
            piece = {}
            await stdin.drain()
            await timeslice.pause()
    packed = marshal.dumps(piece)
    stdin.write(len(packed).to_bytes(4, "big") + packed)
    await stdin.drain()
    stdin.close()


async def _pieces(child: Child, builder: ZoneBuilder, path: str) -> Loaded:
    stdout = await child.reader(child.process.stdout, _BUFFER)
    timeslice = TimeSlice()
    try:
        while True:
            size = int.from_bytes(await stdout.readexactly(4), "big")
            last = _take(builder, await stdout.readexactly(min(size, MAX_PIECE)), path)
            if last is not None:
                return last
            await timeslice.pause()
    except asyncio.IncompleteReadError:
        _died(path)


async def _dropped(builder: ZoneBuilder) -> None:
    """Lets go, in turns, of a zone that is not finished: its child may have been killed at the last name."""
    await emptied(builder.nodes, builder.hashed, NsecProofs(builder.origin, builder.chain, builder.nsec))


def _died(path: str) -> NoReturn:
    raise BrokenZone(f"{path}: the process that read it has died", [], [])


def _command(path: str, origin: bytes) -> list[str]:
    return [sys.executable, "-m", "kdns.zonefile.load", path, to_text(origin)]


def _take(builder: ZoneBuilder, piece: bytes, path: str) -> Loaded | None:
    """Adds a piece; at the last one gives the zone. Raises BrokenZone or OSError."""
    kind, content, seen, problems = marshal.loads(piece)
    if kind == "names":
        for bare in content:
            builder.add(bare)
        return None
    read = [Seen(path, None if look is None else files.Seen(*look), digest) for path, look, digest in seen]
    noted = [Problem(*each) for each in problems]
    if kind == "missing":
        raise OSError(*content)
    if kind == "broken":
        raise BrokenZone(content, read, noted)
    try:
        return Loaded(builder.finish(), read, noted)
    except BadZone as error:
        problem = Problem(path, 1, 1, str(error))
        raise BrokenZone(str(problem), read, [problem]) from None


def _said(path: str, origin: bytes) -> Iterator[tuple[str, Any, list[Any], list[Any]]]:
    """What the child says."""
    source = MasterFile(origin)
    try:
        if path == "-":
            names = arranged(origin, _given(sys.stdin.buffer))
        else:
            source.read(path)
            names = arranged(origin, source.finish())
    except ZoneFileError as error:
        yield "broken", str(error), _bare(source.seen), [tuple(each) for each in error.problems]
        return
    except OSError as error:
        yield "missing", (error.errno, error.strerror, path), [], []
        return
    begin = size = 0
    for i, (_, sets) in enumerate(names):
        size += 1 + len(sets)
        if size >= PIECE:
            yield "names", names[begin : i + 1], [], []
            begin, size = i + 1, 0
    yield "names", names[begin:], [], []
    yield "end", None, _bare(source.seen), [tuple(each) for each in source.warnings]


def _bare(seen: list[Seen]) -> list[Any]:
    """Files that were read, as marshal knows them."""
    return [(path, None if look is None else tuple(look), digest) for path, look, digest in seen]


def _given(stream: IO[bytes]) -> dict[bytes, Any]:
    """What the parent sends."""
    names: dict[bytes, Any] = {}
    while head := stream.read(4):
        names.update(marshal.loads(stream.read(int.from_bytes(head, "big"))))
    return names


def _write(out: IO[bytes], path: str, origin: bytes) -> None:
    for said in _said(path, origin):
        piece = marshal.dumps(said)
        out.write(len(piece).to_bytes(4, "big") + piece)
    out.flush()


if __name__ == "__main__":
    gc.disable()
    _write(sys.stdout.buffer, sys.argv[1], from_text(sys.argv[2]).lower())
