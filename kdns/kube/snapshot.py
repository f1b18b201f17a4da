"""A snapshot: the state in a file, for a start while the API is down.

    b"kdns snapshot 1\\n", SHA-256 of what follows (32 octets), then parts, each behind its length (4 octets): a head
    (identity, wall clock, synced), and lists of a kind with (key, resourceVersion, object).

Laws: a file is replaced whole, never written in place, so a crash leaves the old one. What is damaged, of another
configuration or too old is ignored with a line: a snapshot only helps. Encoding and decoding go in slices; the file is
written by a thread, which only waits for the disk.
"""

import asyncio
import hashlib
import itertools
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import msgspec

from kdns import files
from kdns.kube.objects import TYPES, Object
from kdns.kube.source import State

MAGIC: Final = b"kdns snapshot 1\n"
PART: Final = 200  # objects in a part: 1 ms to encode or decode, also of slices with a hundred endpoints each
MAX_SIZE: Final = 1 << 30  # octets: nothing we wrote is larger
# Seconds for the octets of a file: a start does not wait longer for what only helps, and a disk that needs longer
# hangs.
READING: Final = 30.0
WRITING: Final = 60.0

_encoder: Final = msgspec.msgpack.Encoder()
_head: Final = msgspec.msgpack.Decoder(tuple[str, float])
_kind: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_parts: Final[dict[str, Any]] = {
    kind: msgspec.msgpack.Decoder(list[tuple[str, str, cls]])  # type: ignore[valid-type]
    for kind, cls in TYPES.items()
}


class BadSnapshot(ValueError):
    """A file that is not a snapshot of this configuration; the text says why."""


async def write(path: str, identity: str, cluster: State, known: dict[str, dict[str, str]]) -> int:
    """Saves a cluster's state; `known` are resourceVersions by kind and key. Gives the octets. Raises OSError."""
    parts = [_framed(_encoder.encode((identity, time.time())))]
    for kind, versions in known.items():
        objects = ((key, versions.get(key, ""), obj) for key, obj in cluster.objects(kind))
        while rows := list(itertools.islice(objects, PART)):
            parts.append(_framed(_encoder.encode((kind, rows))))
            await asyncio.sleep(0)
    return await files.waiting(f"writing {path}", partial(_replace, path, parts), WRITING)


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _replace(path: str, parts: list[bytes]) -> int:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    files.replace(path, [MAGIC + digest.digest(), *parts], 0o600)  # only for its owner: it names the whole cluster
    return len(MAGIC) + 32 + sum(len(part) for part in parts)


async def read(path: str, identity: str, max_age: float, cluster: State) -> tuple[dict[str, dict[str, str]], float]:
    """Applies a snapshot to an empty cluster; gives resourceVersions by kind and key, and its age in seconds.

    Raises BadSnapshot or OSError; then nothing has been applied.
    """
    parts = await files.waiting(f"reading {path}", partial(_parts_of, path), READING)
    try:
        owner, written = _head.decode(next(parts))
    except (StopIteration, msgspec.DecodeError):
        raise BadSnapshot("it has no head") from None
    if owner != identity:
        raise BadSnapshot("it is of another cluster or configuration")
    age = max(time.time() - written, 0.0)
    if max_age and age > max_age:
        raise BadSnapshot(f"it is {age:.0f} s old, at most {max_age:.0f} are allowed")
    rows: list[tuple[str, list[tuple[str, str, Object]]]] = []
    for part in parts:
        try:
            kind, raw = _kind.decode(part)
            rows.append((kind, _parts[kind].decode(raw)))
        except (KeyError, msgspec.DecodeError) as error:
            raise BadSnapshot(f"a part cannot be read: {error}") from None
        await asyncio.sleep(0)
    known: dict[str, dict[str, str]] = {}
    for kind, found in rows:
        versions = known.setdefault(kind, {})
        for key, version, obj in found:
            versions[key] = version
            cluster.apply(kind, key, obj)
        await asyncio.sleep(0)
    return known, age


def _parts_of(path: str) -> Iterator[bytes]:
    """The parts of a file whose checksum is right. Raises BadSnapshot or OSError."""
    files.check_regular(path)
    with open(path, "rb") as file:
        data = file.read(MAX_SIZE)
    start = len(MAGIC) + 32
    if not data.startswith(MAGIC) or len(data) < start:
        raise BadSnapshot("it is not a snapshot")
    body = memoryview(data)[start:]
    if hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise BadSnapshot("its checksum is wrong")
    parts = []
    at = 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        parts.append(bytes(body[at + 4 : at + 4 + size]))
        at += 4 + size
    return iter(parts)
