"""From the API's octets to raw objects: pages of lists, watch events, and the lines that events come in.

What cannot be read is the caller's to reject: one bad object costs only itself.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Raw as RawBytes
from msgspec import Struct, field

from kdns.kube.objects import RAW, Raw, RawMeta

MAX_LINE: Final = 8 << 20  # octets of one watch event; etcd's limit for an object is 1.5 MiB
INITIAL_END: Final = "k8s.io/initial-events-end"  # the annotation of the bookmark that ends a streamed list (KEP-3157)
T = TypeVar("T")


class ListMeta(Struct, rename={"resource_version": "resourceVersion", "go_on": "continue"}):
    """A page's metadata."""

    resource_version: str = ""
    go_on: str = ""


class _List(Struct, Generic[T]):
    metadata: ListMeta = field(default_factory=ListMeta)
    items: list[T] | None = None


class _Event(Struct):
    type: str
    object: RawBytes


class _Status(Struct):
    code: int = 0
    message: str = ""


class _BookmarkMeta(Struct, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Bookmark(Struct):
    metadata: _BookmarkMeta = field(default_factory=_BookmarkMeta)


class _Named(Struct):
    metadata: RawMeta = field(default_factory=RawMeta)


class Unreadable(NamedTuple):
    """An object that is not of its kind: what can be said of it, and why."""

    meta: RawMeta
    why: str


_events: Final = msgspec.json.Decoder(_Event)
_statuses: Final = msgspec.json.Decoder(_Status)
_bookmarks: Final = msgspec.json.Decoder(_Bookmark)
_named: Final = msgspec.json.Decoder(_Named)
_raw_lists: Final = msgspec.json.Decoder(_List[RawBytes])
_lists: Final[dict[str, Any]] = {kind: msgspec.json.Decoder(_List[cls]) for kind, cls in RAW.items()}  # type: ignore[valid-type]
_objects: Final[dict[str, Any]] = {kind: msgspec.json.Decoder(cls) for kind, cls in RAW.items()}


def _decode(decoder: Any, raw: bytes | str) -> Any:
    """The result of a decoder. Raises msgspec.DecodeError, also for octets that are not UTF-8 and for what is nested
    too deep.
    """
    try:
        return decoder.decode(raw)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.ValidationError(str(error)) from None


def page(kind: str, body: bytes) -> tuple[ListMeta, list[Raw | Unreadable]]:
    """A page of a list. Raises msgspec.DecodeError where it is not a list at all."""
    try:
        found = _decode(_lists[kind], body)
        return found.metadata, found.items or []
    except msgspec.ValidationError:
        raw = _decode(_raw_lists, body)
        return raw.metadata, [one(kind, bytes(item)) for item in raw.items or ()]


def one(kind: str, raw: bytes) -> Raw | Unreadable:
    """One object."""
    try:
        found: Raw = _decode(_objects[kind], raw)
        return found
    except msgspec.ValidationError as error:
        try:
            meta = _decode(_named, raw.decode(errors="replace")).metadata
        except msgspec.DecodeError:
            meta = RawMeta()
        return Unreadable(meta, str(error))


def event(line: bytes) -> tuple[str, bytes]:
    """An event's type, and its object's octets. Raises msgspec.DecodeError."""
    found = _decode(_events, line)
    return found.type, bytes(found.object)


def status(raw: bytes) -> tuple[int, str]:
    """A Status's code and message; zero and nothing where there are none."""
    try:
        found = _decode(_statuses, raw)
    except msgspec.DecodeError:
        return 0, ""
    return found.code, found.message


def bookmark(raw: bytes) -> tuple[str, bool]:
    """A bookmark's resourceVersion, and whether it ends a streamed list."""
    meta = _decode(_bookmarks, raw).metadata
    return meta.resource_version, (meta.annotations or {}).get(INITIAL_END) == "true"


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes | None]:
    """The lines in a stream of chunks; None for one over MAX_LINE octets, which is skipped."""
    parts: list[bytes] = []
    size = 0
    skipping = False
    async for chunk in chunks:
        begin = 0
        while (end := chunk.find(b"\n", begin)) >= 0:
            piece = chunk[begin:end]
            begin = end + 1
            if skipping:
                skipping = False
                yield None
            elif parts or piece:
                parts.append(piece)
                yield b"".join(parts)
            parts, size = [], 0
        rest = chunk[begin:]
        size += len(rest)
        if size > MAX_LINE:
            skipping = True
            parts = []
        elif rest and not skipping:
            parts.append(rest)
