"""A zone of a secondary: its version, its timers, and how it is fetched.

Laws: what a primary sent is used whole or not at all; another version takes the old one's place at once; nothing that a
primary says or leaves unsaid ends the following. Timers are the SOA's (RFC 1035, section 3.3.13), each at least a
second; a NOTIFY only makes the next look come at once, however many come.
"""

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable
from random import random
from typing import Final

from kdns import faults, log
from kdns.address import host_port
from kdns.dns import tsig
from kdns.dns.errors import FormatError
from kdns.dns.name import to_text
from kdns.plugin.zones import INVALID_DATA, NOT_READY
from kdns.plugins.secondary.client import Primary, Unchanged
from kdns.store.catalog import BadCatalog
from kdns.store.zone import Zone
from kdns.store.zone_builder import BadZone
from kdns.store.zone_transfer import BadTransfer
from kdns.zonefile.history import History, changes_of, released

FIRST_RETRY: Final = 0.25  # seconds before the first transfer is tried again, doubled each time (CoreDNS's)
LAST_RETRY: Final = 10.0
LEAST: Final = 1.0  # seconds: a timer of the SOA that is shorter
MOST: Final = 2_419_200.0  # seconds, four weeks: one that is longer (BIND's max-refresh-time)
APART: Final = 0.2  # seconds between two looks at the primaries, however many NOTIFYs come
JITTER: Final = 5.0  # seconds at most, and a tenth of the timer: secondaries that began together do not ask together

_log = log.plugin("secondary")


class SecondaryZone:
    """A zone that is fetched from its primaries. A resource: started once, shared by the configurations that have
    it.
    """

    def __init__(
        self,
        origin: bytes,
        primaries: tuple[tuple[str, int], ...],
        key: tsig.Key | None,
        accepts: Callable[[Zone], object] | None = None,
    ) -> None:
        """`accepts` raises BadCatalog for a version that may not be used."""
        self.origin = origin
        self.primaries = primaries
        self.key = key
        self.accepts = accepts
        self.current: Zone | None = None
        self.history = History()
        self.expired = False
        self.checked = 0.0  # when a primary was last heard, in monotonic seconds
        self.on_change: list[Callable[[SecondaryZone], None]] = []
        self.woken: asyncio.Event | None = None
        self.task: asyncio.Task[None] | None = None
        self.releases: set[asyncio.Task[None]] = set()

    @property
    def zone(self) -> Zone | None:
        """What is served."""
        return None if self.expired else self.current

    @property
    def failure(self) -> tuple[int, str]:
        """Why nothing is."""
        if self.expired:
            return INVALID_DATA, f"zone {to_text(self.origin)} is expired"
        return NOT_READY, f"zone {to_text(self.origin)} is not transferred yet"

    async def start(self) -> None:
        """Begins to follow."""
        self.woken = asyncio.Event()
        self.task = asyncio.create_task(faults.supervise("plugin/secondary", self._follow), name="secondary")

    async def stop(self) -> None:
        """Ends following."""
        tasks = [*self.releases, *([self.task] if self.task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.task = None

    def wake(self) -> None:
        """A primary says that there is something new."""
        if self.woken is not None:
            self.woken.set()

    # Following.

    async def _follow(self) -> None:
        assert self.woken is not None
        delay = FIRST_RETRY
        while True:
            self.woken.clear()
            good = await self._fetch()
            now = time.monotonic()
            if good:
                self.checked = now
                if self.expired:
                    self.expired = False
                    _log.info(f"Zone {self._name} is served again")
                delay = FIRST_RETRY
            zone = self.current
            if zone is None:
                wait, delay = delay, min(delay * 2, LAST_RETRY)
            else:
                refresh, retry, expire = [
                    min(max(float(int.from_bytes(zone.soa.rdatas[0][i : i + 4], "big")), LEAST), MOST)
                    for i in (-16, -12, -8)
                ]
                wait = refresh if good else retry
                wait += random() * min(JITTER, wait / 10)
                left = self.checked + expire - now
                if not self.expired:
                    if left <= 0:
                        self._expire(zone)
                    else:
                        wait = min(wait, left)
            await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        assert self.woken is not None
        await asyncio.sleep(min(APART, seconds))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.woken.wait(), seconds)

    def _expire(self, zone: Zone) -> None:
        self.expired = True
        zone.validity.end()
        _log.error(f"Zone {self._name} is expired: no primary has answered for as long as its SOA allows")

    async def _fetch(self) -> bool:
        """Has the zone brought up to date by the first primary that can; says whether one could."""
        for where in self.primaries:
            primary = Primary(self.origin, where, self.key)
            try:
                zone = await primary.newer(self.current)
                if self.accepts is not None:
                    self.accepts(zone)
            except Unchanged:
                return True
            except (
                OSError,
                TimeoutError,
                EOFError,
                FormatError,
                BadTransfer,
                BadZone,
                BadCatalog,
                tsig.Refused,
            ) as error:
                why = str(error) or type(error).__name__
                _log.warning(f"Failed to transfer {self._name} from {host_port(*where)}: {why}")
                continue
            await self._use(zone, where, primary.how)
            return True
        return False

    async def _use(self, zone: Zone, where: tuple[str, int], how: str) -> None:
        old = self.current
        if old is not None:
            self.history.add(old, zone, await changes_of(old, zone))
        self.current = zone
        if old is not None:
            old.validity.end()
            task = asyncio.create_task(released(old), name="an old zone")
            self.releases.add(task)
            task.add_done_callback(self.releases.discard)
        _log.info(
            f"Transferred: {self._name} from {host_port(*where)} by {how}, serial {zone.serial}, {zone.count} records"
        )
        for call in list(self.on_change):
            call(self)

    @property
    def _name(self) -> str:
        return to_text(self.origin)


def same_host(one: str, other: str) -> bool:
    """Whether two texts are one address, whatever their form (`::ffff:192.0.2.1`, a zone's id)."""
    try:
        parsed = [ipaddress.ip_address(text.partition("%")[0]) for text in (one, other)]
    except ValueError:
        return False
    plain = [getattr(each, "ipv4_mapped", None) or each for each in parsed]
    return bool(plain[0] == plain[1])
