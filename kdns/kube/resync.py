"""Healing: a list now and then finds what the watch has lost, mends it and counts it.

Theory of operation. Every 10 to 15 minutes the collection is listed beside the open watch. What the list has newer than
we know, or we have and the list of a later moment does not, is repaired at once; and it was lost unless the watch
brings it after all within GRACE seconds. Versions are compared as numbers, which the API promises since 1.35 (KEP-5504)
and etcd has always kept; where they are none, nothing is repaired except by a new list.
"""

import asyncio
import random
from typing import Final

from kdns import log
from kdns.kube.decode import Unreadable
from kdns.kube.paging import ApiError
from kdns.kube.pause_gc import pause_gc
from kdns.kube.reflector import Reflector
from kdns.metrics import Counter
from kdns.timeslice import TimeSlice

INTERVAL: Final = (600.0, 900.0)  # seconds between two: rare enough to cost nothing, often enough to matter
GRACE: Final = 5.0  # seconds an event may be under way

REPAIRED = Counter(
    "kdns_kubernetes_healed_total", "Objects that were not as the API has them, without an event.", ("kind",)
)
_log = log.plugin("kubernetes")


class Resync:
    """Heals one reflector's state."""

    def __init__(self, reflector: Reflector) -> None:
        self.reflector = reflector
        self.repaired: dict[str, str] = {}  # key -> resourceVersion, "" for what was removed
        # Keys that the watch removed since the list began; None while there is none.
        self.removed: set[str] | None = None
        reflector.heard.append(self._heard)

    async def run(self) -> None:
        """Heals until cancelled. What fails is tried at the next turn."""
        while True:
            await asyncio.sleep(random.uniform(*INTERVAL))
            try:
                await self.heal()
            except Exception as error:  # the reflector says what is wrong with the API
                _log.debug(f"resync of {self.reflector.kind}: {type(error).__name__}: {error}")

    def _heard(self, key: str, version: str) -> None:
        """The watch brought something: then it was not lost."""
        self.repaired.pop(key, None)
        if not version and self.removed is not None:
            self.removed.add(key)

    async def heal(self) -> int:
        """One list and its diff; gives how many objects had been lost. Raises what a list raises."""
        reflector = self.reflector
        if not reflector.watching:
            return 0
        self.repaired.clear()
        removed: set[str] = set()
        self.removed = removed
        try:
            await self._diff(removed)
        finally:
            self.removed = None
        await asyncio.sleep(GRACE)
        lost, self.repaired = self.repaired, {}
        if lost:
            REPAIRED.slot(reflector.kind)[0] += len(lost)
            some = ", ".join(sorted(lost)[:5])
            _log.warning(f"repaired {len(lost)} of {reflector.kind} that the watch had missed: {some}")
        return len(lost)

    async def _diff(self, removed: set[str]) -> None:
        """Lists, and mends what is not as listed. Ends where the reflector lists anew itself: that is newer, and
        meanwhile it does not know what it has.
        """
        reflector = self.reflector
        pages = reflector.pages()
        table = reflector.known
        missing = set(table)
        slice_ = TimeSlice()
        with pause_gc():
            while not pages.over:
                for raw in await pages.next():
                    await slice_.pause()
                    if reflector.known is not table:
                        return
                    if isinstance(raw, Unreadable):
                        missing.discard(f"{raw.meta.namespace}/{raw.meta.name}")
                        continue
                    key = f"{raw.metadata.namespace}/{raw.metadata.name}"
                    missing.discard(key)
                    version = raw.metadata.resource_version
                    known = table.get(key)
                    if known != version and key not in removed and _newer(version, known) and reflector.apply(key, raw):
                        self.repaired[key] = version
            if not pages.version.isdecimal():
                raise ApiError(f"resourceVersion {pages.version!r} is not a number")
            for key in missing:
                if reflector.known is not table:
                    return
                # What the watch has brought since the list began is newer, or removed already.
                known = table.get(key)
                if known is not None and not _newer(known, pages.version):
                    reflector.remove(key)
                    self.repaired[key] = ""
                await slice_.pause()


def _newer(version: str, than: str | None) -> bool:
    if than is None or than == "":
        return True
    return version.isdecimal() and than.isdecimal() and int(version) > int(than)
