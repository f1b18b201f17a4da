"""Objects from files and folders of YAML, followed while we serve.

Laws: a file that cannot be read or parsed keeps its last good state, and one line says which line of which file; an
object that cannot be served is rejected and named, the rest of its file is served; only changed files are read again.
A namespace exists if it has an object or anything in it: a dump of Services alone is enough to serve them. What is in
one file and then in another never blinks: of several files that change, all that is new is applied before anything
goes.

A file over INLINE octets is parsed in a child process, and its objects are applied in slices.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from kdns import child, faults, files, log, watchfile
from kdns.child import ChildFailed
from kdns.kube.cluster import Cluster
from kdns.kube.manifest_file import MAX_FILE, BrokenManifest, Found, decode, files_of, parse
from kdns.kube.objects import IMPORT, NAMESPACE, POD, POLICY, SLICE, BadObject, Namespace, Object, Slices, from_mapping
from kdns.kube.source import WatchScope
from kdns.timeslice import TimeSlice

# Looked at this often (seconds): a change is read when it looks the same twice, 25 ms later: served within 100 ms.
# A look takes half a millisecond, most of it the way to a waiting thread and back.
POLL: Final = 0.05
INLINE: Final = 32 << 10  # octets; 32 KiB of YAML take some 5 ms
CHILD_TIMEOUT: Final = 120.0

_log = log.plugin("kubernetes")


class ManifestSource:
    """Follows files and folders. Everything is read before `start` returns."""

    def __init__(self, paths: tuple[str, ...], wanted: WatchScope, cluster: Cluster) -> None:
        self.paths = paths
        self.wanted = wanted
        self.cluster = cluster
        self.on_sync: list[Callable[[], None]] = []
        self.task: asyncio.Task[None] | None = None
        # What it calls must not hold the source: that would be a cycle.
        self.follower = watchfile.Follower(
            f"the manifests {' '.join(paths)}", partial(files_of, paths), most=MAX_FILE, keep=INLINE
        )
        # What each file brought: (kind, key) -> object.
        self.files: dict[str, dict[tuple[str, str], Object]] = {}
        self.gone: list[tuple[str, str]] = []  # what files that were read hold no more, until it is taken out
        self.complaints: dict[str, str] = {}

    def listed(self) -> bool:
        """Whether all files have been read once."""
        return self.cluster.synced

    async def start(self) -> None:
        """Reads everything once, then follows. Raises OSError for a path that does not exist."""
        await self._take(await files.waiting(f"reading {self.follower.what}", self._first, watchfile.READING))
        self.cluster.set_synced()
        for call in self.on_sync:
            call()
        follow = partial(self.follower.follow, POLL, self._take)
        self.task = asyncio.create_task(faults.supervise("following the manifests", follow), name="manifests")

    async def stop(self) -> None:
        """Ends following."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
        await self.cluster.close()

    # Files.

    def _first(self) -> list[watchfile.Change]:
        for path in self.paths:
            if not os.path.exists(path):
                raise FileNotFoundError(2, "no such file or folder", path)
        return self.follower.look()

    async def _take(self, changes: Sequence[watchfile.Change]) -> None:
        """Takes files as they are now."""
        pause = TimeSlice().pause
        for change in changes:
            found = await self._read(change)
            if found is not None:
                for _ in self._apply(change.path, found):
                    await pause()
        while self.gone:
            kind, key = self.gone.pop()
            self.cluster.apply(kind, key, self._elsewhere(kind, key))
            await pause()

    async def _read(self, change: watchfile.Change) -> list[Found] | None:
        """The objects of a file; empty if it is gone, None if it is broken (the last good state stays)."""
        path = change.path
        rejected: list[str] = []
        if change.error is not None:
            if isinstance(change.error, FileNotFoundError):
                return self._vanished(path)
            return self._broken(path, f"{path}: {change.error.strerror or change.error}")
        try:
            if change.data is None:
                found = await _parsed_by_child(path)
            else:
                found, rejected = parse(change.data.decode(), path)
        except ChildFailed as error:
            text = str(error)
            return self._broken(path, text if text.startswith(path) else f"{path}: {text}")
        except BrokenManifest as error:
            return self._broken(path, str(error))
        except UnicodeDecodeError as error:
            return self._broken(path, f"{path}: {error}")
        if rejected:
            self._complain(path, rejected[0])
        elif self.complaints.pop(path, None) is not None:
            _log.info(f"{path} can be read again")
        return found

    def _broken(self, path: str, text: str) -> list[Found] | None:
        self._complain(path, text + " (the last good state of this file is kept)" * (path in self.files))
        return None

    def _vanished(self, path: str) -> list[Found] | None:
        if path in self.paths:
            # Named by itself: an editor may be about to put it back. A file of a folder is simply gone.
            self._complain(path, f"{path}: the file is gone, its last good state is kept")
            return None
        return []

    def _complain(self, path: str, text: str) -> None:
        if self.complaints.get(path) != text:
            self.complaints[path] = text
            _log.error(text)

    # Objects.

    def _apply(self, path: str, found: list[Found]) -> Iterator[None]:
        """Applies what a file holds now, yields where others may run; adds to `gone` what it holds no more."""
        new: dict[tuple[str, str], Object] = {}
        bad = False
        for kind, mapping, line in found:
            yield
            try:
                key, obj = self._object(kind, mapping)
            except BadObject as error:
                bad = True
                self._complain(path, f"{path}:{line}: {kind} rejected: {error}")
                continue
            if isinstance(obj, Slices) and obj.left_out:
                bad = True
                self._complain(path, f"{path}:{line}: {obj.left_out}")
            if obj is not None:
                new[(kind, key)] = obj
                namespace = key.partition("/")[0]
                if kind != NAMESPACE and not self.wanted.namespace_labels.terms:
                    new.setdefault((NAMESPACE, f"/{namespace}"), Namespace(namespace))  # without any label
        if not bad and path in self.complaints and "rejected" in self.complaints[path]:
            del self.complaints[path]
        old = self.files.get(path, {})
        self.files[path] = new
        for kind, key in sorted(new, key=lambda each: each[0] != NAMESPACE):  # namespaces first
            self.cluster.apply(kind, key, self._best(kind, key, new[(kind, key)]))
            yield
        self.gone += old.keys() - new.keys()
        if not new:
            self.files.pop(path, None)

    def _elsewhere(self, kind: str, key: str) -> Object | None:
        """The same object as another file has it."""
        for objects in self.files.values():
            if (kind, key) in objects:
                return self._best(kind, key, objects[(kind, key)])
        return None

    def _best(self, kind: str, key: str, obj: Object) -> Object:
        """An object of a file; for a namespace that only follows from what is in it, the one that another file
        describes.
        """
        if kind != NAMESPACE or not self.wanted.detail.namespace_labels or obj[1]:
            return obj
        found = (objects.get((kind, key)) for objects in self.files.values())
        return next((each for each in found if each is not None and each[1]), obj)

    def _object(self, kind: str, mapping: dict[str, Any]) -> tuple[str, Object | None]:
        raw = from_mapping(kind, mapping)
        meta = raw.metadata
        wanted = self.wanted
        if kind == NAMESPACE:
            obj = wanted.project(raw) if wanted.namespace_labels.matches(meta.labels) else None
            return f"/{meta.name}", obj
        meta.namespace = meta.namespace or "default"
        key = f"{meta.namespace}/{meta.name}"
        unwanted = {POD: not wanted.pods, SLICE: not wanted.slices, IMPORT: not wanted.imports}.get(
            kind, kind == POLICY and not wanted.policies
        )
        if unwanted or not wanted.labels.matches(meta.labels):
            return key, None
        return key, wanted.project(raw)


async def _parsed_by_child(path: str) -> list[Found]:
    """The objects of a large file. Raises ChildFailed."""
    out = await child.output("kdns.kube.manifest_file", path, timeout=CHILD_TIMEOUT)
    found: list[Found] = []
    pause = TimeSlice().pause
    at = 0
    while (end := out.find(b"\n", at)) >= 0:
        found.append(decode(memoryview(out)[at:end]))
        at = end + 1
        await pause()
    return found
