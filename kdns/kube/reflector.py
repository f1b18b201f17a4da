"""A reflector: brings all objects of one kind, watches them, and keeps the cluster's state equal to the API's.

Theory of operation. `run` goes round: bring everything (unless it is known from where to watch), then watch from there.
Everything comes as a streamed list, a watch that begins with what there is (KEP-3157), or in pages where the API does
not offer that. Either way it is a diff: objects whose resourceVersion is as before are not touched, the others are
applied one by one, and what is not there any more is removed at the end; so a name never blinks and nothing stands
twice.

A watch that ends is taken up where it ended. 410, by status or as an ERROR event, means that the API has forgotten
where that was. A resourceVersion of the collection below ours means that its history is another one (etcd restored from
a backup): what is known of versions is then worth nothing, and everything is brought anew. Only a list can say so: one
API server of several that is behind for a moment ("Too large resource version") is asked again. Errors wait 0.8 s,
doubled up to 30, with jitter, so that many replicas do not come back at once.

A page decodes in some 2 ms; what is decoded is applied in slices, others run in between.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import aiohttp
import msgspec

from kdns import log
from kdns.kube import decode
from kdns.kube.decode import Unreadable, lines
from kdns.kube.objects import IMPORT, NAMESPACE, POD, POLICY, SERVICE, SLICE, BadObject, Object, Raw, RawMeta, Slices
from kdns.kube.paging import (
    LIST_READ,
    ApiError,
    Client,
    Expired,
    Pages,
    ResourceVersionRegressed,
    TooLarge,
    Unauthorized,
    body,
)
from kdns.kube.pause_gc import pause_gc
from kdns.kube.source import State
from kdns.metrics import Counter
from kdns.timeslice import TimeSlice

PATHS: Final = {
    NAMESPACE: "/api/v1/namespaces",
    SERVICE: "/api/v1/services",
    SLICE: "/apis/discovery.k8s.io/v1/endpointslices",
    POD: "/api/v1/pods",
    IMPORT: "/apis/multicluster.x-k8s.io/v1beta1/serviceimports",
    POLICY: "/apis/networking.k8s.io/v1/networkpolicies",
}
# Where a kind is found on older clusters.
OLDER_PATHS: Final = {IMPORT: "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"}
# Objects of a page, so that one decodes in some 2 ms: a slice holds up to a hundred endpoints and more.
PAGE: Final = {NAMESPACE: 500, SERVICE: 500, SLICE: 30, POD: 200, IMPORT: 500, POLICY: 200}
MAX_PAGE: Final = 8000  # where continue tokens expire before a list is through, pages grow up to this
BACKOFF: Final = (0.8, 30.0)  # seconds: first and last (client-go's)
# While nobody answers at all tries are no further apart than this (seconds): a connection that is refused costs the API
# nothing, and what changed meanwhile shows that much sooner once it is back.
UNANSWERED: Final = 5.0
WATCH: Final = (300, 600)  # seconds the API is asked to keep a watch open
QUICK: Final = 1.0  # a watch that ended sooner than this waits like an error
REPEAT: Final = 30.0  # seconds before the same error is logged again
WATCH_READ: Final = 700.0  # a watch ends by itself after 600; a dead peer is found by keepalive long before
# Answers that mean "this API does not stream lists": the parameter is unknown, forbidden, or the feature is off.
NO_STREAMS: Final = frozenset((400, 403, 404, 405, 422))

EVENTS = Counter("kdns_kubernetes_events_total", "Watch events by kind and type.", ("kind", "type"))
LISTS = Counter("kdns_kubernetes_lists_total", "Complete lists by kind.", ("kind",))
REJECTED = Counter("kdns_kubernetes_quarantined_total", "Objects that could not be read.", ("kind",))
ERRORS = Counter("kdns_kubernetes_errors_total", "Requests to the API that failed, by kind.", ("kind",))

_log = log.plugin("kubernetes")


class Reflector:
    """Reflects one kind into a cluster. `synced` once everything has been brought; `listed` is called then.

    `applied` is called for each object that an event changed. `known` may be filled from a snapshot: then what is the
    same is not applied again. `optional`: where the API does not have the kind, there are no such objects.
    """

    def __init__(
        self,
        kind: str,
        client: Client,
        cluster: State,
        params: dict[str, str],
        project: Callable[[Raw], Object | None],
        *,
        listed: Callable[[], None] = lambda: None,
        applied: Callable[[Raw], None] | None = None,
        optional: bool = False,
    ) -> None:
        self.kind = kind
        self.path = PATHS[kind]
        self.client = client
        self.cluster = cluster
        self.params = params
        self.project = project
        self.listed = listed
        self.applied = applied
        self.optional = optional
        self.version: str | None = None
        self.synced = False
        self.known: dict[str, str] = {}  # key -> resourceVersion
        self.heard: list[Callable[[str, str], None]] = []  # who wants to know of events: key, resourceVersion
        self.complained: set[str] = set()
        self.streams = True
        self.page = PAGE[kind]
        self.backoff = BACKOFF[0]
        self.unanswered = False  # the last request had no answer
        self.broken = False  # the last watch ended before its time
        self.watching = False
        self.current_at = 0.0  # monotonic seconds when the state was last known to be the API's
        self.said = ""
        self.said_at = 0.0

    def age(self) -> float:
        """Seconds since the state was known to be the API's: 0 while a watch is open."""
        if self.watching or not self.current_at:
            return 0.0
        return time.monotonic() - self.current_at

    def invalidate(self) -> None:
        """The next round brings everything anew."""
        self.version = None

    async def run(self) -> None:
        """Lists and watches until cancelled."""
        while True:
            began = time.monotonic()
            after = 0.0
            try:
                await self._round()
                if time.monotonic() - began >= QUICK:
                    self.backoff = BACKOFF[0]
                    continue
            except Expired:
                self.version = None
                if self.backoff == BACKOFF[0]:
                    self.backoff *= 2  # the first time at once; an API that always says so is not asked in a loop
                    continue
            except ResourceVersionRegressed as error:
                _log.warning(f"{self.kind}: {error}; relisting everything")
                self.version = None
                self.known = dict.fromkeys(self.known, "")
                if self.backoff == BACKOFF[0]:
                    self.backoff *= 2  # as above
                    continue
            except Unauthorized as error:
                self._failed(error)
                await self._renew()
            except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
                self._failed(error)
                await self._renew()  # the authority may have been replaced
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
                self._failed(error)
                after = getattr(error, "after", 0.0)
                before, self.unanswered = (
                    self.unanswered,
                    isinstance(error, OSError | aiohttp.ClientConnectionError),
                )
                if before and not self.unanswered:
                    self.backoff = BACKOFF[0]  # it is coming back: what it says while it starts soon changes
            finally:
                if self.watching:
                    self.watching = False
                    self.current_at = time.monotonic()
            await asyncio.sleep(max(after, self.backoff * random.uniform(1.0, 1.5)))
            self.backoff = min(self.backoff * 2, UNANSWERED if self.unanswered else BACKOFF[1])

    async def _round(self) -> None:
        if self.version is None:
            if self.streams:
                try:
                    await self._watch(stream=True)
                    return
                except ApiError as error:
                    if error.code not in NO_STREAMS:
                        raise
                    self.streams = False
            if not await self._list():
                return
        elif self.broken:
            await self._compare()
        await self._watch()

    async def _renew(self) -> None:
        try:
            await self.client.renew(force=True)
        except ApiError as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        ERRORS.slot(self.kind)[0] += 1
        what = "watch" if self.version is not None else "list"
        cut = isinstance(error, aiohttp.ClientPayloadError)
        text = (
            f"Failed to {what} {self.kind}: {'the connection was cut' if cut else str(error) or type(error).__name__}"
        )
        now = time.monotonic()
        if text != self.said or now - self.said_at >= REPEAT:
            self.said, self.said_at = text, now
            _log.error(text)

    # Lists.

    def pages(self) -> Pages:
        """The pages of a consistent list, from now."""
        return Pages(self.client, self.kind, self.path, self.params, self.page)

    async def _list(self) -> bool:
        """Brings everything in pages; False where the API does not have the kind at all."""
        pages = self.pages()
        slice_ = TimeSlice()
        try:
            with pause_gc(), self._diff() as unseen:
                while True:
                    for raw in await pages.next():
                        self._put(raw, unseen)
                        await slice_.pause()
                    if pages.over:
                        break
                await self._remove_all(unseen)
        except Expired:
            self.page = min(self.page * 4, MAX_PAGE)  # fewer pages are through sooner
            raise
        except TooLarge:
            self.page = max(self.page // 4, 1)
            raise
        except ApiError as error:
            if error.code != 404 or not self.optional:
                raise
            if self.path != OLDER_PATHS.get(self.kind, self.path):
                self.path = OLDER_PATHS[self.kind]
                return False
            self._done()
            await asyncio.sleep(WATCH[0])  # it may be installed later
            return False
        self.version = pages.version
        self._done()
        return True

    @contextmanager
    def _diff(self) -> Iterator[dict[str, str]]:
        """The objects known before a list: entries leave it one by one as their objects come, so nothing is copied at
        once.

        What is left of it where the list breaks off stays known.
        """
        unseen, self.known = self.known, {}
        try:
            yield unseen
        finally:
            for key, version in unseen.items():
                self.known.setdefault(key, version)

    async def _remove_all(self, unseen: dict[str, str]) -> None:
        """Removes what did not come."""
        slice_ = TimeSlice()
        for key in list(unseen):
            del unseen[key]
            self.remove(key)
            await slice_.pause()

    def _done(self) -> None:
        """Everything is here."""
        LISTS.slot(self.kind)[0] += 1
        self.backoff = BACKOFF[0]
        self.current_at = time.monotonic()
        if not self.synced:
            self.synced = True
            self.listed()

    async def _compare(self) -> None:
        """Asks for the collection's resourceVersion. Raises ResourceVersionRegressed if it is below ours."""
        async with self.client.get(self.path, {**self.params, "limit": "1"}, LIST_READ) as response:
            meta, _ = decode.page(self.kind, await body(response))
        theirs, ours = meta.resource_version, self.version or ""
        if theirs.isdecimal() and ours.isdecimal() and int(theirs) < int(ours):
            raise ResourceVersionRegressed(f"the API's resourceVersion {theirs} is below {ours}, which it had before")
        self.broken = False

    # Watches.

    async def _watch(self, stream: bool = False) -> None:
        """Watches until the API ends it. `stream`: it begins with everything there is."""
        asked = random.randint(*WATCH)
        params = {**self.params, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(asked)}
        if stream:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "resourceVersion": ""}
        else:
            assert self.version is not None
            params["resourceVersion"] = self.version
        began = time.monotonic()
        self.broken = True
        async with self.client.get(self.path, params, WATCH_READ) as response:
            source = lines(response.content.iter_any())
            if stream:
                await self._initial_events(source)
            self.watching = True
            slice_ = TimeSlice()
            async for line in source:
                if line is None:
                    self._skipped()
                    return
                self._event(line)
                await slice_.pause()
        # Where it ended in its time, the API is the one we know.
        self.broken = time.monotonic() - began < asked - 1

    async def _initial_events(self, source: AsyncIterator[bytes | None]) -> None:
        """The part of a streamed list that says what there is: up to the bookmark that ends it."""
        slice_ = TimeSlice()
        with pause_gc(), self._diff() as unseen:
            async for line in source:
                if line is None:
                    self.streams = False  # a page holds an object of any size
                    raise ApiError(f"a {self.kind} over {decode.MAX_LINE >> 20} MiB is too large for a stream")
                kind, raw = decode.event(line)
                if kind == "BOOKMARK":
                    version, over = decode.bookmark(raw)
                    if over:
                        await self._remove_all(unseen)
                        self.version = version
                        self._done()
                        return
                elif kind == "ERROR":
                    self._refused(raw)
                else:
                    self._put(decode.one(self.kind, raw), unseen)
                await slice_.pause()
        raise ApiError("the API ended a streamed list before it was complete")

    def _skipped(self) -> None:
        """An event was too long to be read: only a list can say what it was."""
        _log.warning(f"a watch event of {self.kind} over {decode.MAX_LINE >> 20} MiB was skipped; listing again")
        REJECTED.slot(self.kind)[0] += 1
        self.version = None

    def _refused(self, raw: bytes) -> None:
        """An ERROR event. Raises what it stands for."""
        code, message = decode.status(raw)
        if code == 410:
            raise Expired(message)
        raise ApiError(f"{code} {message}", code=code)

    def _event(self, line: bytes) -> None:
        kind, raw = decode.event(line)
        EVENTS.slot(self.kind, kind if kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR") else "other")[
            0
        ] += 1
        if kind == "ERROR":
            self._refused(raw)
        if kind == "BOOKMARK":
            self.version = decode.bookmark(raw)[0] or self.version
            return
        obj = decode.one(self.kind, raw)
        meta = obj.meta if isinstance(obj, Unreadable) else obj.metadata
        key = f"{meta.namespace}/{meta.name}"
        if kind == "DELETED":
            self.remove(key)
        elif kind in ("ADDED", "MODIFIED"):
            if isinstance(obj, Unreadable):
                self.reject(obj.meta, f"rejected: {obj.why}")
            elif self.apply(key, obj) and self.applied is not None:
                self.applied(obj)
        self.version = meta.resource_version or self.version
        for call in self.heard:
            call(key, meta.resource_version if kind != "DELETED" else "")

    # Objects.

    def reject(self, meta: RawMeta, why: str) -> None:
        """Quarantine: the object, of which all or a part is not served, is named once and counted; the rest is
        served.
        """
        key = f"{meta.namespace}/{meta.name}"
        if key not in self.complained and len(self.complained) < 1000:
            self.complained.add(key)
            REJECTED.slot(self.kind)[0] += 1
            _log.warning(f"{self.kind} {key} {why}")

    def _put(self, raw: Raw | Unreadable, unseen: dict[str, str]) -> None:
        """One object of a list; `unseen` are the known ones that have not come yet."""
        meta = raw.meta if isinstance(raw, Unreadable) else raw.metadata
        key = f"{meta.namespace}/{meta.name}"
        known = unseen.pop(key, None)
        if known is not None:
            self.known[key] = known
        if isinstance(raw, Unreadable):
            self.reject(raw.meta, f"rejected: {raw.why}")
        elif not meta.resource_version or known != meta.resource_version:
            self.apply(key, raw)

    def apply(self, key: str, raw: Raw) -> bool:
        """Brings one object into the state; says whether anything is different now."""
        try:
            obj = self.project(raw)
        except BadObject as error:
            self.reject(raw.metadata, f"rejected: {error}")
            return False
        if isinstance(obj, Slices) and obj.left_out:
            self.reject(raw.metadata, f"has an {obj.left_out}")
        else:
            self.complained.discard(key)
        self.known[key] = raw.metadata.resource_version
        return self.cluster.apply(self.kind, key, obj)

    def remove(self, key: str) -> None:
        """Takes one object out of the state."""
        self.known.pop(key, None)
        self.complained.discard(key)
        self.cluster.apply(self.kind, key, None)
