"""Files are followed by looking at them.

A file has changed when its device, inode, size or time of change has, and then what it says: a file that was only
touched, or written again with the same octets, has not. Links are followed, so a ConfigMap's files (links into a folder
`..data`, itself a link that the kubelet swaps) are other files after a swap. Notices of the kernel are not used: they
do not come from other machines' writes on a network file system, and a swapped link takes its watch with it.

A change is taken once the file looks the same twice, so that one half written is not taken for a small one; a file that
has become empty is being written until it has been so for a second. A file that changed just before it was read is read
once more: a second change within the clock's grain would look the same. Looks run in a waiting thread, with a time
limit: a file system that hangs stops nothing but the following of its files, and is said once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from kdns import files
from kdns.files import Seen

SETTLE: Final = 0.025  # seconds between two looks at a file that has changed
LOOKS: Final = 40  # looks at files that go on changing, before they are left for the next time
EMPTY: Final = (
    1_000_000_000  # nanoseconds for which a file that has become empty is taken for one that is being written
)
GRAIN: Final = 2_000_000_000  # nanoseconds: no file system's clock is coarser (FAT's is 2 s)
READING: Final = 30.0  # seconds for reading what has changed


class Change(NamedTuple):
    """A file that is new, says something else, or cannot be read (`error`). `data` is None where it is larger than
    was asked for.
    """

    path: str
    data: bytes | None
    seen: Seen | None
    error: OSError | None


class _Known:
    __slots__ = ("digest", "error", "state", "young")

    def __init__(self) -> None:
        self.state: Seen | str = ""  # as at the last look; text: why it could not be looked at
        self.digest = b""
        self.error = ""
        self.young = False  # it changed just before it was read


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
        self.took = 0.0  # seconds of the last look

    def look(self) -> list[Change]:
        """What has changed since the last look, as it is at this moment. Waits."""
        now = self._states()
        return self._read({path: now.get(path, _GONE) for path in self._differing(now)})

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
        began = time.monotonic()
        now = await files.waiting(what, self._states)
        self.took = time.monotonic() - began
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
                todo = {path: now.get(path, _GONE) for path in settled}
                return await files.waiting(f"reading {self.what}", partial(self._read, todo), READING)
            differing = self._differing(now)
        return []

    async def follow(self, interval: float, act: Callable[[Sequence[Change]], Awaitable[None]]) -> None:
        """Looks every `interval` seconds, and less often where looking would take over a hundredth of the time."""
        while True:
            await asyncio.sleep(max(interval, self.took * 100))
            found = await self.changes()
            if found:
                await act(found)

    # In a thread, but for `_differing`.

    def _states(self) -> dict[str, Seen | str]:
        out: dict[str, Seen | str] = {}
        for path in self.paths():
            try:
                out[path] = files.look(path)
            except OSError as error:
                out[path] = error.strerror or str(error)
        return out

    def _differing(self, now: dict[str, Seen | str]) -> list[str]:
        out = []
        known = self.known
        ripe = time.time_ns() - GRAIN
        for path, state in now.items():
            before = known.get(path)
            if (
                before is None
                or before.state != state
                or (before.young and isinstance(state, Seen) and state.changed < ripe)
            ):
                out.append(path)
        if len(known) + len(out) > len(now):
            out += [path for path in known if path not in now]
        return sorted(out)

    def _half_written(self, path: str, now: dict[str, Seen | str]) -> bool:
        state = now.get(path)
        known = self.known.get(path)
        if (
            not isinstance(state, Seen)
            or state.size
            or known is None
            or not isinstance(known.state, Seen)
            or not known.state.size
        ):
            return False
        return time.time_ns() - state.changed < EMPTY

    def _read(self, paths: dict[str, Seen | str]) -> list[Change]:
        out = []
        for path, state in paths.items():
            known = self.known.setdefault(path, _Known())
            try:
                if isinstance(state, str):
                    raise FileNotFoundError(2, state, path)
                found = files.read_through(path, self.most, self.keep)
            except OSError as error:
                text = error.strerror or str(error)
                if state is _GONE:
                    del self.known[path]
                else:
                    known.state = text  # so a file that can be looked at but not read is tried again
                    known.young = False
                if known.error != text:
                    known.error = text
                    out.append(Change(path, None, None, error))
                continue
            known.state = found.seen
            known.young = time.time_ns() - found.seen.changed < GRAIN
            if known.error or known.digest != found.digest:
                known.error = ""
                known.digest = found.digest
                out.append(Change(path, found.data, found.seen, None))
        return out


_GONE: Final = "no such file any more"
