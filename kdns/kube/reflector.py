"""A reflector: lists one kind of object, watches it, and keeps the cluster's state equal to the API's.

Theory of operation. `run` goes round: list (unless a resourceVersion is known), then watch from there. A list is a
diff: objects whose resourceVersion is as before are not touched, the others are applied one by one, and what the list
no longer has is removed when its last page has been read; so a name never blinks. A watch that ends is taken up where
it ended; 410, by status or as an ERROR event, means that the API has forgotten where that was: a new list. Errors wait
0.8 s, doubled up to 30, with jitter, so that many replicas do not come back at once.

Pages of 500 decode in 2 ms; what is decoded is applied in slices, others run in between. A watch's lines are cut here,
out of chunks as they come: one object may be larger than any reader's line limit.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Generic, Protocol, TypeVar

import aiohttp
import msgspec
from msgspec import Raw as RawBytes
from msgspec import Struct, field

from kdns import log
from kdns.kube.cluster import Cluster
from kdns.kube.hold import hold
from kdns.kube.objects import NAMESPACE, POD, RAW, SERVICE, SLICE, BadObject, Object, Raw, RawMeta
from kdns.metrics import Counter

PATHS: Final = {
    NAMESPACE: "/api/v1/namespaces",
    SERVICE: "/api/v1/services",
    SLICE: "/apis/discovery.k8s.io/v1/endpointslices",
    POD: "/api/v1/pods",
}
PAGE: Final = 500  # objects; 2 ms to decode
SLICE_SIZE: Final = 100  # objects applied before others run: 1 ms
MAX_LINE: Final = 8 << 20  # octets of one watch event; etcd's limit for an object is 1.5 MiB
BACKOFF: Final = (0.8, 30.0)  # seconds: first and last (client-go's)
WATCH: Final = (300, 600)  # seconds the API is asked to keep a watch open
QUICK: Final = 1.0  # a watch that ended sooner than this waits like an error
REPEAT: Final = 30.0  # seconds before the same error is logged again
LIST_READ: Final = 60.0
WATCH_READ: Final = 700.0  # a watch ends by itself after 600; a dead peer is found by keepalive long before

EVENTS = Counter("kdns_kubernetes_events_total", "Watch events by kind and type.", ("kind", "type"))
LISTS = Counter("kdns_kubernetes_lists_total", "Complete lists by kind.", ("kind",))
QUARANTINED = Counter("kdns_kubernetes_quarantined_total", "Objects that could not be read.", ("kind",))
ERRORS = Counter("kdns_kubernetes_errors_total", "Requests to the API that failed, by kind.", ("kind",))

_log = log.plugin("kubernetes")
T = TypeVar("T")


class ApiError(Exception):
    """The API refused or broke off; `after` are seconds it asks to wait."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.after = after


class Expired(ApiError):
    """410: the resourceVersion or continue token is too old."""


class Unauthorized(ApiError):
    """401: the credentials are not, or no longer, accepted."""


class Client(Protocol):
    """What a reflector asks with."""

    def get(
        self, path: str, params: dict[str, str], read: float | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...

    async def renew(self, *, force: bool = False) -> None: ...


class _ListMeta(Struct, rename={"resource_version": "resourceVersion", "go_on": "continue"}):
    resource_version: str = ""
    go_on: str = ""


class _List(Struct, Generic[T]):
    metadata: _ListMeta = field(default_factory=_ListMeta)
    items: list[T] | None = None


class _Event(Struct):
    type: str
    object: RawBytes


class _Status(Struct):
    code: int = 0
    message: str = ""


class _Bookmark(Struct):
    metadata: RawMeta = field(default_factory=RawMeta)


_events: Final = msgspec.json.Decoder(_Event)
_statuses: Final = msgspec.json.Decoder(_Status)
_bookmarks: Final = msgspec.json.Decoder(_Bookmark)
_raw_lists: Final = msgspec.json.Decoder(_List[RawBytes])
_lists: Final[dict[str, Any]] = {kind: msgspec.json.Decoder(_List[cls]) for kind, cls in RAW.items()}  # type: ignore[valid-type]
_objects: Final[dict[str, Any]] = {kind: msgspec.json.Decoder(cls) for kind, cls in RAW.items()}


class Reflector:
    """Reflects one kind into a cluster. `synced` once a list has been applied whole; `listed` is called then."""

    def __init__(
        self,
        kind: str,
        client: Client,
        cluster: Cluster,
        params: dict[str, str],
        trim: Callable[[Raw], Object | None],
        *,
        listed: Callable[[], None] = lambda: None,
    ) -> None:
        self.kind = kind
        self.client = client
        self.cluster = cluster
        self.params = params
        self.trim = trim
        self.listed = listed
        self.version: str | None = None
        self.synced = False
        self.known: dict[str, str] = {}  # key -> resourceVersion
        self.complained: set[str] = set()
        self.backoff = BACKOFF[0]
        self.said = ""
        self.said_at = 0.0

    async def run(self) -> None:
        """Lists and watches until cancelled."""
        while True:
            began = time.monotonic()
            after = 0.0
            try:
                if self.version is None:
                    await self._list()
                await self._watch()
                if time.monotonic() - began >= QUICK:
                    self.backoff = BACKOFF[0]
                    continue
            except Expired:
                self.version = None
                if self.backoff == BACKOFF[0]:
                    self.backoff *= 2  # the first time at once; an API that always says so is not asked in a loop
                    continue
            except Unauthorized as error:
                self._failed(error)
                await self._renew()
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
                self._failed(error)
                after = getattr(error, "after", 0.0)
            await asyncio.sleep(max(after, self.backoff * random.uniform(1.0, 1.5)))
            self.backoff = min(self.backoff * 2, BACKOFF[1])

    async def _renew(self) -> None:
        try:
            await self.client.renew(force=True)
        except ApiError as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        ERRORS.slot(self.kind)[0] += 1
        what = "watch" if self.version is not None else "list"
        text = f"Failed to {what} {self.kind}: {str(error) or type(error).__name__}"
        now = time.monotonic()
        if text != self.said or now - self.said_at >= REPEAT:
            self.said, self.said_at = text, now
            _log.error(text)

    # Lists.

    async def _list(self) -> None:
        seen: set[str] = set()
        token = ""
        with hold():
            while True:
                params = {**self.params, "limit": str(PAGE)}
                if token:
                    params["continue"] = token
                async with self.client.get(PATHS[self.kind], params, LIST_READ) as response:
                    body = await response.read()
                page, objects = self._decode(body)
                del body
                for i, raw in enumerate(objects):
                    self._put(raw, seen)
                    if i % SLICE_SIZE == SLICE_SIZE - 1:
                        await asyncio.sleep(0)
                token = page.go_on
                if not token:
                    break
            for i, key in enumerate(self.known.keys() - seen):
                self._remove(key)
                if i % SLICE_SIZE == SLICE_SIZE - 1:
                    await asyncio.sleep(0)
        self.version = page.resource_version
        LISTS.slot(self.kind)[0] += 1
        self.backoff = BACKOFF[0]
        if not self.synced:
            self.synced = True
            self.listed()

    def _decode(self, body: bytes) -> tuple[_ListMeta, list[Raw]]:
        """A page's objects; one that cannot be read is set aside, and costs only itself."""
        try:
            page = _lists[self.kind].decode(body)
            return page.metadata, page.items or []
        except msgspec.ValidationError:
            raw = _raw_lists.decode(body)
            objects = [found for item in raw.items or () if (found := self._object(bytes(item))) is not None]
            return raw.metadata, objects

    def _object(self, raw: bytes) -> Raw | None:
        try:
            found: Raw = _objects[self.kind].decode(raw)
            return found
        except msgspec.ValidationError as error:
            try:
                meta = _bookmarks.decode(raw).metadata
            except msgspec.DecodeError:
                meta = RawMeta()
            self._set_aside(meta, str(error))
            return None

    def _set_aside(self, meta: RawMeta, why: str) -> None:
        key = f"{meta.namespace}/{meta.name}"
        if key not in self.complained and len(self.complained) < 1000:
            self.complained.add(key)
            QUARANTINED.slot(self.kind)[0] += 1
            _log.warning(f"{self.kind} {key} set aside: {why}")

    # Objects.

    def _put(self, raw: Raw, seen: set[str] | None = None) -> None:
        meta = raw.metadata
        key = f"{meta.namespace}/{meta.name}"
        if seen is not None:
            seen.add(key)
            if meta.resource_version and self.known.get(key) == meta.resource_version:
                return
        try:
            obj = self.trim(raw)
        except BadObject as error:
            self._set_aside(meta, str(error))
            return
        self.complained.discard(key)
        self.known[key] = meta.resource_version
        self.cluster.apply(self.kind, key, obj)

    def _remove(self, key: str) -> None:
        self.known.pop(key, None)
        self.complained.discard(key)
        self.cluster.apply(self.kind, key, None)

    # Watches.

    async def _watch(self) -> None:
        assert self.version is not None
        params = {
            **self.params,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.version,
            "timeoutSeconds": str(random.randint(*WATCH)),
        }
        async with self.client.get(PATHS[self.kind], params, WATCH_READ) as response:
            count = 0
            async for line in lines(response.content.iter_any()):
                if line is None:
                    # It is lost: only a list can say what it was.
                    _log.warning(f"a watch event of {self.kind} over {MAX_LINE >> 20} MiB was skipped; listing again")
                    QUARANTINED.slot(self.kind)[0] += 1
                    self.version = None
                    return
                self._event(line)
                count += 1
                if count % SLICE_SIZE == 0:
                    await asyncio.sleep(0)

    def _event(self, line: bytes) -> None:
        event = _events.decode(line)
        kind = event.type
        EVENTS.slot(self.kind, kind if kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR") else "other")[0] += 1
        raw = bytes(event.object)
        if kind == "ERROR":
            status = _statuses.decode(raw)
            if status.code == 410:
                raise Expired(status.message)
            raise ApiError(f"{status.code} {status.message}")
        if kind == "BOOKMARK":
            self.version = _bookmarks.decode(raw).metadata.resource_version or self.version
            return
        obj = self._object(raw)
        meta = obj.metadata if obj is not None else _bookmarks.decode(raw).metadata
        if kind == "DELETED":
            self._remove(f"{meta.namespace}/{meta.name}")
        elif obj is not None and kind in ("ADDED", "MODIFIED"):
            self._put(obj)
        self.version = meta.resource_version or self.version


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
