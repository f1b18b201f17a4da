"""Files are followed by looking at them.

A file has changed when its device, inode, size or time of change has, and then what it says: a file that was only
touched, or written again with the same octets, has not. Links are followed, so a ConfigMap's files (links into a folder
`..data`, itself a link that the kubelet swaps) are other files after a swap. Notices of the kernel are not used: they
do not come from other machines' writes on a network file system, and a swapped link takes its watch with it.

A change is taken once the file looks the same twice, so that one half written is not taken for a small one; a file that
has become empty is being written until it has been so for a second. A file that changed just before it was read is read
once more: a second change within the clock's grain would look the same. Looks run in a waiting thread, with a time
limit: a file system that hangs stops nothing but the following of its files, and is said once. A pipe is waited for
when it is read for the first time, not when it is followed: the other files would wait with it.

Law: what is known of a file changes on the loop alone, together with the change that is given out. A look that was
given up and ends after all changes nothing, so its change is found again; so is one that nobody could act upon.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from kdns import files
from kdns.files import Seen

SETTLE: Final = 0.025  # seconds between two looks at a file that has changed
LOOKS: Final = 40  # looks at files that go on changing, before they are left for the next time
EMPTY: Final = 1_000_000_000  # nanoseconds for which a file that has become empty is being written
GRAIN: Final = 2_000_000_000  # nanoseconds: no file system's clock is coarser (FAT's is 2 s)
READING: Final = 30.0  # seconds for reading what has changed
RETRY: Final = 10_000_000_000  # nanoseconds until a file that could not be read, and looks the same, is tried again
_TOLD: Final = "told"  # the error of a file that its reader could not read, and has said so


class Change(NamedTuple):
    """A file that is new, says something else, or cannot be read (`error`). `data` is None where it is larger than
    was asked for.
    """

    path: str
    data: bytes | None
    seen: Seen | None
    error: OSError | None


class Missing(NamedTuple):
    """Why a file could not be looked at."""

    errno: int
    text: str


class _Known(NamedTuple):
    """What is known of a file: how it looked and what it said when it was read, and why it could not be.

    `again` is when it is read once more though it looks the same (monotonic nanoseconds; 0: never).
    """

    state: Seen | Missing | None
    digest: bytes = b""
    error: str = ""
    again: int = 0


# A file's new state (None: it is not followed any more), and what is told of it.
_Result = tuple[str, _Known | None, Change | None]


class Follower:
    """Follows the files that `paths` names at each look (it may wait: it runs in a thread).

    A change's data is kept up to `keep` octets; a file of over `most` octets is an error. `what` names them in errors.
    """

    def __init__(self, what: str, paths: Callable[[], Iterable[str]], *, most: int, keep: int) -> None:
        self.what = what
        self.paths = paths
        self.most = most
        self.keep = keep
        self.known: dict[str, _Known] = {}
        self.hangs = ""
        self.took = 0.0  # seconds of processor time of the last look

    def look(self) -> list[Change]:
        """What has changed since the last look, as it is at this moment. Waits, for a pipe too."""
        now = self._states()
        return self._noted(self._read({path: now.get(path) for path in self._differing(now)}, True))

    def resume(self, read: Iterable[tuple[str, Seen | None, bytes]]) -> None:
        """Goes on from what was read elsewhere: path, how it looked then (None: it could not be read), its digest."""
        self.known = {
            path: _Known(None, error=_TOLD) if seen is None else _Known(seen, digest, again=_again(seen))
            for path, seen, digest in read
        }

    async def changes(self) -> list[Change]:
        """What has changed since the last look, and is settled."""
        try:
            found = await self._changes()
        except TimeoutError as error:
            text = str(error.strerror or error)
            if self.hangs:
                return []
            self.hangs = text
            return [Change(self.what, None, None, error)]
        self.hangs = ""
        return found

    async def _changes(self) -> list[Change]:
        what = f"looking at {self.what}"
        now, self.took = await files.waiting(what, self._timed_states)
        differing = self._differing(now)
        for _ in range(LOOKS):
            if not differing:
                return []
            await asyncio.sleep(SETTLE)
            before, now = now, await files.waiting(what, self._states)
            settled = [
                path for path in differing if before.get(path) == now.get(path) and not self._half_written(path, now)
            ]
            if settled:
                todo = {path: now.get(path) for path in settled}
                read = await files.waiting(f"reading {self.what}", partial(self._read, todo, False), READING)
                return self._noted(read)
            differing = self._differing(now)
        return []

    async def follow(self, interval: float, act: Callable[[Sequence[Change]], Awaitable[None]]) -> None:
        """Looks every `interval` seconds, and less often where looking would take over a hundredth of the processor's
        time. (What passes meanwhile says nothing: on a busy machine one look would put off the next for half a minute.)
        """
        while True:
            await asyncio.sleep(max(interval, self.took * 100))
            found = await self.changes()
            if found:
                try:
                    await act(found)
                except Exception:
                    self.forget(found)
                    raise

    def forget(self, found: Iterable[Change]) -> None:
        """Has these changes found again at the next look."""
        for change in found:
            if change.path != self.what or not isinstance(change.error, TimeoutError):  # that is of all files
                self.known[change.path] = _Known(None)

    def _differing(self, now: dict[str, Seen | Missing]) -> list[str]:
        out = []
        known = self.known
        clock = time.monotonic_ns()
        for path, state in now.items():
            before = known.get(path)
            if before is None or before.state != state or 0 < before.again < clock:
                out.append(path)
        if len(known) + len(out) > len(now):
            out += [path for path in known if path not in now]
        return sorted(out)

    def _half_written(self, path: str, now: dict[str, Seen | Missing]) -> bool:
        state = now.get(path)
        if not isinstance(state, Seen) or state.size:
            return False
        known = self.known.get(path)
        if known is None or not isinstance(known.state, Seen) or not known.state.size:
            return False
        return time.time_ns() - state.changed < EMPTY

    def _noted(self, read: list[_Result]) -> list[Change]:
        out = []
        for path, known, change in read:
            if known is None:
                del self.known[path]
            else:
                self.known[path] = known
            if change is not None:
                out.append(change)
        return out

    # In a thread: these change nothing.

    def _timed_states(self) -> tuple[dict[str, Seen | Missing], float]:
        began = time.thread_time()
        return self._states(), time.thread_time() - began

    def _states(self) -> dict[str, Seen | Missing]:
        out: dict[str, Seen | Missing] = {}
        for path in self.paths():
            try:
                out[path] = files.look(path)
            except OSError as error:
                out[path] = Missing(error.errno or errno.EIO, error.strerror or str(error))
        return out

    def _read(self, paths: dict[str, Seen | Missing | None], waits: bool) -> list[_Result]:
        return [self._read_one(path, state, waits) for path, state in paths.items()]

    def _read_one(self, path: str, state: Seen | Missing | None, waits: bool) -> _Result:
        known = self.known.get(path, _Known(None))
        if state is None:
            if known.error:
                return path, None, None
            return path, None, Change(path, None, None, FileNotFoundError(errno.ENOENT, "no such file any more", path))
        try:
            if isinstance(state, Missing):
                raise OSError(state.errno, state.text, path)
            if waits:
                found = files.read_through(path, self.most, self.keep)
            else:
                found = files.read_through(path, self.most, self.keep, timeout=0)
        except OSError as error:
            text = error.strerror or str(error)
            again = time.monotonic_ns() + RETRY if isinstance(state, Seen) else 0
            told = known.error in (text, _TOLD)
            return path, _Known(state, known.digest, text, again), None if told else Change(path, None, None, error)
        same = not known.error and known.digest == found.digest
        change = None if same else Change(path, found.data, found.seen, None)
        return path, _Known(found.seen, found.digest, "", _again(found.seen)), change


def _again(seen: Seen) -> int:
    """When a file that has just been read is read once more."""
    young = abs(time.time_ns() - seen.changed) < GRAIN  # one that says it is of tomorrow would be young until then
    return time.monotonic_ns() + GRAIN if young else 0
