"""Objects from YAML: files and folders, several documents a file, `kind: List` as `kubectl get -o yaml` prints it.

Laws: a file that cannot be read or parsed keeps its last good state, and one line says which line of which file; an
object that cannot be served is rejected and named, the rest of its file is served; only changed files are read again.
A namespace exists if it has an object or anything in it: a dump of Services alone is enough to serve them.

Files are followed by looking at them (identity, size, time of change), as a ConfigMap's files are links that are
swapped; a file is read once it looks the same twice, so that one half written is not taken for a small one. Parsing
YAML holds the loop 1 ms for some 6 KiB; so once we serve, a file over INLINE octets is parsed in a child process, and
its objects are applied in slices.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from kdns import faults, log
from kdns.kube.cluster import Cluster
from kdns.kube.objects import (
    IMPORT,
    NAMESPACE,
    POD,
    POLICY,
    RAW,
    SLICE,
    BadObject,
    Namespace,
    Object,
    Slices,
    from_mapping,
)
from kdns.kube.source import WatchScope

# Looked at this often (seconds): a change is read when it looks the same twice, and so served within 100 ms. With many
# files less often, so that looking takes at most one hundredth of the time.
POLL: Final = 0.025
EMPTY: Final = (
    1_000_000_000  # nanoseconds for which a file that has become empty is taken for one that is being written
)
INLINE: Final = 32 << 10  # octets; 32 KiB of YAML take some 5 ms
MAX_FILE: Final = 256 << 20  # octets; a dump of a 5,000-node cluster has some 100 MB
CHILD_TIMEOUT: Final = 120.0
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_SLICE: Final = 50  # objects applied before others run

_log = log.plugin("kubernetes")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BrokenManifest(ValueError):
    """A file that is no YAML, or holds no objects; the text begins with file and line."""


class Found(NamedTuple):
    """An object of a file: kind, `namespace/name`, its mapping, and the line it begins on."""

    kind: str
    mapping: dict[str, Any]
    line: int


class _LinedLoader(_Loader):  # type: ignore[misc]
    """Loads mappings; those that look like objects carry the line they begin on, under a key no object has."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made: dict[Any, Any] = super().construct_mapping(node, deep=True)
        if "kind" in made:
            made["\0line"] = node.start_mark.line + 1
        return made


def _construct_map(loader: Any, node: Any) -> Any:
    return loader.construct_mapping(node)


_LinedLoader.add_constructor("tag:yaml.org,2002:map", _construct_map)


class _PlacingLoader(_LinedLoader):
    """Says where a value stands that its constructor chokes on; slower, so only for a file that is known to be
    broken.
    """

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception:
            what = str(node.tag).removeprefix("tag:yaml.org,2002:")
            raise yaml.constructor.ConstructorError(None, None, f"a value is no {what}", node.start_mark) from None


def parse(text: str, path: str) -> tuple[list[Found], list[str]]:
    """The objects of a file that kdns serves, and a line for each that is none. Raises BrokenManifest."""
    try:
        return _parsed(text, path, _LinedLoader)
    except BrokenManifest:
        raise
    except Exception:
        # PyYAML's constructors raise whatever they meet: KeyError for `!!bool maybe`, IndexError for `!!int ""`.
        return _parsed(text, path, _PlacingLoader)


def _parsed(text: str, path: str, loader: Any) -> tuple[list[Found], list[str]]:
    found: list[Found] = []
    rejected: list[str] = []
    try:
        for document in yaml.load_all(text, Loader=loader):
            for item in _items(document):
                if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
                    rejected.append(f"{path}: a document is no Kubernetes object (it has no kind)")
                    continue
                line = item.pop("\0line", 1)
                if item["kind"] in RAW:
                    found.append(Found(item["kind"], item, line))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise BrokenManifest(f"{path}:{line}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError as error:
        raise BrokenManifest(f"{path}:1: {error}") from None
    return found, rejected


def _items(document: Any) -> Iterator[Any]:
    if document is None:
        return
    if isinstance(document, dict) and isinstance(document.get("items"), list):
        listed = str(document.get("kind", ""))
        kind = listed.removesuffix("List")
        for item in document["items"]:
            # The items of a ServiceList carry no kind of their own.
            if isinstance(item, dict) and kind and "kind" not in item:
                item["kind"] = kind
            yield item
    else:
        yield document


def files_of(paths: tuple[str, ...]) -> Iterator[str]:
    """The files that paths come to: a folder's manifests, at any depth, but what begins with a dot; any other path
    itself.
    """
    for path in paths:
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if name.endswith(_SUFFIXES) and not name.startswith("."):
                        yield os.path.join(folder, name)
        else:
            yield path


class ManifestSource:
    """Follows files and folders. Everything is read before `start` returns."""

    def __init__(self, paths: tuple[str, ...], wanted: WatchScope, cluster: Cluster) -> None:
        self.paths = paths
        self.wanted = wanted
        self.cluster = cluster
        self.on_sync: list[Callable[[], None]] = []
        self.task: asyncio.Task[None] | None = None
        # What each file looked like (inode, size, time of change) when it was read, and at the last look.
        self.signatures: dict[str, tuple[int, int, int]] = {}
        self.seen: dict[str, tuple[int, int, int]] = {}
        # What each file brought: (kind, key) -> object.
        self.files: dict[str, dict[tuple[str, str], Object]] = {}
        self.complaints: dict[str, str] = {}

    def listed(self) -> bool:
        """Whether all files have been read once."""
        return self.cluster.synced

    async def start(self) -> None:
        """Reads everything once, then follows. Raises OSError for a path that does not exist."""
        for path in self.paths:
            if not os.path.exists(path):
                raise FileNotFoundError(2, "no such file or folder", path)
        self._changed()
        for path in self._changed():
            self._take(path, self._read(path))
        self.cluster.set_synced()
        for call in self.on_sync:
            call()
        self.task = asyncio.create_task(faults.supervise("following the manifests", self._follow), name="manifests")

    async def stop(self) -> None:
        """Ends following."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None
        await self.cluster.close()

    # Files.

    def _changed(self) -> list[str]:
        """The files that are new, changed or gone, and were so at the last look too: nobody is still writing them."""
        now: dict[str, tuple[int, int, int]] = {}
        for path in files_of(self.paths):
            try:
                stat = os.stat(path)
            except OSError:
                continue
            known = self.signatures.get(path)
            if known is not None and known[1] and not stat.st_size and time.time_ns() - stat.st_mtime_ns < EMPTY:
                now[path] = known  # it is being written again, by somebody who is slow
            else:
                now[path] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        before, self.seen = self.seen, now
        settled = [path for path in {*now, *self.signatures} if now.get(path) == before.get(path)]
        changed = sorted(path for path in settled if now.get(path) != self.signatures.get(path))
        for path in changed:
            if path in now:
                self.signatures[path] = now[path]
            else:
                del self.signatures[path]
        return changed

    def _read(self, path: str) -> list[Found] | None:
        """The objects of a file; empty if it is gone, None if it is broken (the last good state stays)."""
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(MAX_FILE + 1)
            if len(text) > MAX_FILE:
                raise BrokenManifest(f"{path}: over {MAX_FILE >> 20} MiB")
            return self._good(path, *parse(text, path))
        except FileNotFoundError:
            return self._vanished(path)
        except (OSError, UnicodeDecodeError, BrokenManifest) as error:
            return self._broken(path, str(error) if isinstance(error, BrokenManifest) else f"{path}: {error}")

    def _good(self, path: str, found: list[Found], rejected: list[str]) -> list[Found]:
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

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                began = loop.time()
                changed = self._changed()
                took = loop.time() - began
                for path in changed:
                    large = self.signatures.get(path, (0, 0, 0))[1] > INLINE
                    found = await self._read_in_child(path) if large else self._read(path)
                    for _ in self._apply(path, found):
                        await asyncio.sleep(0)
            except Exception as error:  # a mistake of ours must not end the following
                _log.error(f"following manifests: {type(error).__name__}: {error}")
                took = 1.0
            await asyncio.sleep(max(POLL, took * 100))

    async def _read_in_child(self, path: str) -> list[Found] | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kdns.kube.manifests", path, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(process.communicate(), CHILD_TIMEOUT)
        except TimeoutError:
            return self._broken(path, f"{path}: reading it took over {CHILD_TIMEOUT:g} s")
        finally:
            if process.returncode is None:  # too slow, or nobody wants to know any more
                process.kill()
                await process.communicate()
        if process.returncode:
            lines = err.decode(errors="replace").strip().splitlines() or ["it cannot be read"]
            return self._broken(path, lines[-1])
        found: list[Found] = []
        for i, line in enumerate(out.splitlines()):
            found.append(_found.decode(line))
            if i % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        return self._good(path, found, [])

    # Objects.

    def _take(self, path: str, found: list[Found] | None) -> None:
        for _ in self._apply(path, found):
            pass

    def _apply(self, path: str, found: list[Found] | None) -> Iterator[None]:
        """Brings the state to what a file holds now, as a diff; yields where others may run."""
        if found is None:
            return
        new: dict[tuple[str, str], Object] = {}
        bad = False
        for i, (kind, mapping, line) in enumerate(found):
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
            if i % _SLICE == _SLICE - 1:
                yield
        if not bad and path in self.complaints and "rejected" in self.complaints[path]:
            del self.complaints[path]
        old = self.files.get(path, {})
        self.files[path] = new
        # Namespaces first, and gone last: a moved object never blinks.
        for i, (kind, key) in enumerate(sorted(new, key=lambda each: each[0] != NAMESPACE)):
            self.cluster.apply(kind, key, self._best(kind, key, new[(kind, key)]))
            if i % _SLICE == _SLICE - 1:
                yield
        for kind, key in old.keys() - new.keys():
            self.cluster.apply(kind, key, self._elsewhere(kind, key))
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


_found: Final = msgspec.json.Decoder(Found)


def _child(path: str) -> int:
    """Prints the objects of a file, one JSON line each; a line on stderr and 1 where it is broken."""
    try:
        with open(path, encoding="utf-8") as file:
            found, _ = parse(file.read(MAX_FILE), path)
    except BrokenManifest as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 1
    encoder = msgspec.json.Encoder(enc_hook=str)
    for item in found:
        # Only what is served, so that the parent need not look at a dump's managedFields.
        raw = msgspec.to_builtins(_struct_or_mapping(item))
        sys.stdout.buffer.write(encoder.encode(item._replace(mapping=raw)) + b"\n")
    return 0


def _struct_or_mapping(found: Found) -> Any:
    """The object as its struct reads it, or, where that fails, as it came: the parent then says why."""
    try:
        return from_mapping(found.kind, found.mapping)
    except BadObject:
        return found.mapping


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
