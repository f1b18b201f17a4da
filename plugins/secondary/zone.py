"""A zone of a secondary: its version, its timers, and how it is fetched.

Laws: what a primary sent is used whole or not at all; another version takes the old one's place at once; nothing that a
primary says or leaves unsaid ends the following. Timers are the SOA's (RFC 1035, section 3.3.13), each at least a
second; a NOTIFY only makes the next look come at once, however many come. A copy on the disk (kdns.zonefile.keep) is
never waited for, but at the start.
"""

import asyncio
import contextlib
import ipaddress
import ssl
import time
from collections.abc import Callable
from random import random
from typing import Final

from kdns import faults, log
from kdns.dns import tsig
from kdns.dns.errors import FormatError
from kdns.dns.name import to_text
from kdns.plugin.zones import INVALID_DATA, NOT_READY
from kdns.plugins.secondary.client import Primary, Unchanged
from kdns.plugins.secondary.primaries import HostName, Place, Primaries, hosts
from kdns.store.catalog import BadCatalog
from kdns.store.zone import Zone
from kdns.store.zone_builder import BadZone
from kdns.store.zone_transfer import BadTransfer
from kdns.zonefile import keep
from kdns.zonefile.history import History, changes_of, released

FIRST_RETRY: Final = 0.25  # seconds before the first transfer is tried again, doubled each time (CoreDNS's)
LAST_RETRY: Final = 10.0
LEAST: Final = 1.0  # seconds: a timer of the SOA that is shorter
MOST: Final = 2_419_200.0  # seconds, four weeks: one that is longer (BIND's max-refresh-time)
APART: Final = 0.2  # seconds between two looks at the primaries, however many NOTIFYs come
KEEPING: Final = 10.0  # seconds at least between two copies that are written
JITTER: Final = 5.0  # seconds at most, and a tenth of the timer: secondaries that began together do not ask together

_log = log.plugin("secondary")


class SecondaryZone:
    """A zone that is fetched from its primaries. A resource: started once, shared by the configurations that have
    it.
    """

    def __init__(
        self, origin: bytes, accepts: Callable[[Zone], object] | None = None, copy: str = "", writes: bool = True
    ) -> None:
        """`accepts` raises BadCatalog for a version that may not be used; `copy` is the file of its copy, which is
        written here if `writes`.
        """
        self.origin = origin
        self.accepts = accepts
        self.copy = copy
        self.writes = writes
        self.primaries = Primaries(())
        self.names: dict[str, HostName] = {}
        self.key: tsig.Key | None = None
        self.context: ssl.SSLContext | None = None
        self.current: Zone | None = None
        self.history = History()
        self.expired = False
        self.checked = 0.0  # when a primary was last heard, in monotonic seconds
        self.unkept = False  # whether the copy is older than the zone
        self.complaint = ""  # about the copy
        self.keeper: asyncio.Task[None] | None = None
        self.on_change: list[Callable[[SecondaryZone], None]] = []
        self.woken: asyncio.Event | None = None
        self.task: asyncio.Task[None] | None = None
        self.releases: set[asyncio.Task[None]] = set()

    def follow(self, primaries: Primaries, key: tsig.Key | None, context: ssl.SSLContext | None) -> None:
        """Says where it comes from, from the next look on. `context` is for primaries that are asked over TLS."""
        if primaries != self.primaries:
            self.primaries = primaries
            self.names = primaries.names()
        self.key = key
        self.context = context

    def has_primary(self, host: str) -> bool:
        """Whether an address is that of a primary."""
        return any(same_host(host, each) for each in hosts(self.primaries, self.names))

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
        """Begins to follow, from the copy where there is one."""
        self.woken = asyncio.Event()
        if self.copy:
            await self._restore()
        self.task = asyncio.create_task(faults.supervise("plugin/secondary", self._follow), name="secondary")

    async def stop(self) -> None:
        """Ends following."""
        tasks = [*self.releases, *(task for task in (self.task, self.keeper) if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.task = self.keeper = None

    def wake(self) -> None:
        """A primary says that there is something new."""
        if self.woken is not None:
            self.woken.set()

    # The copy.

    async def _restore(self) -> None:
        """Serves what the copy holds. A primary decides over it, at once."""
        try:
            zone, age = await keep.kept(self.copy, self.origin)
            if self.accepts is not None:
                self.accepts(zone)
        except FileNotFoundError:
            return
        except (OSError, keep.BadCopy, BadCatalog) as error:
            why = getattr(error, "strerror", None) or error
            _log.warning(f"The copy of {self._name} in {self.copy} is not used: {why}; the zone is transferred anew")
            return
        self.current = zone
        self.checked = time.monotonic() - age
        _log.info(f"Read {self._name} from {self.copy}, serial {zone.serial}, confirmed {age:.0f} s ago")
        if age >= _timers(zone)[2]:
            self._expire(zone)

    def _keep(self) -> None:
        """Has the copy written, some time."""
        if self.copy and self.writes:
            self.unkept = True
            if self.keeper is None or self.keeper.done():
                self.keeper = asyncio.create_task(faults.attempt("plugin/secondary", self._write), name="keep a zone")

    async def _write(self) -> None:
        while self.unkept and self.current is not None:
            zone = self.current
            self.unkept = False
            try:
                await keep.keep(self.copy, zone)
                self.complaint = ""
            except OSError as error:
                self._complain(error)
                self.unkept = True
                return
            await asyncio.sleep(KEEPING)

    async def _confirm(self) -> None:
        """A primary has said that the zone is up to date."""
        if not self.copy or not self.writes:
            return
        if self.keeper is not None and not self.keeper.done():
            return
        if self.unkept:
            self._keep()
            return
        try:
            await keep.confirm(self.copy)
        except FileNotFoundError:
            self._keep()
        except OSError as error:
            self._complain(error)

    async def forget(self) -> None:
        """Removes the copy of a zone that nobody has any more."""
        if self.copy and self.writes:
            try:
                await keep.remove(self.copy)
            except OSError as error:
                self._complain(error)

    def _complain(self, error: OSError) -> None:
        why = str(error.strerror or error) or type(error).__name__
        if why != self.complaint:
            self.complaint = why
            _log.error(f"The copy of {self._name} in {self.copy} cannot be written: {why}")

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
                refresh, retry, expire = _timers(zone)
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
            async with asyncio.timeout(seconds):
                await self.woken.wait()

    def _expire(self, zone: Zone) -> None:
        self.expired = True
        zone.validity.end()
        _log.error(f"Zone {self._name} is expired: no primary has answered for as long as its SOA allows")

    async def _fetch(self) -> bool:
        """Has the zone brought up to date by the first primary that can; says whether one could."""
        names = self.names  # those of these places, whatever it follows meanwhile
        for place in self.primaries.places:
            name = names.get(place.host)
            try:
                addresses = (place.host,) if name is None else await name.look()
            except OSError as error:
                self._failed(place, error)
                continue
            for address in addresses:
                at = place._replace(host=address, server_name=place.server_name or place.host)
                if await self._ask(at):
                    return True
        return False

    async def _ask(self, place: Place) -> bool:
        """Has the zone brought up to date by a primary; says whether it could."""
        primary = Primary(self.origin, place, self.key, self.context)
        try:
            zone = await primary.newer(self.current)
            if self.accepts is not None:
                self.accepts(zone)
        except Unchanged:
            await self._confirm()
            return True
        except (OSError, EOFError, FormatError, BadTransfer, BadZone, BadCatalog, tsig.Refused) as error:
            self._failed(place, error)
            return False
        await self._use(zone, place, primary.how)
        return True

    def _failed(self, place: Place, error: Exception) -> None:
        if isinstance(error, ssl.SSLCertVerificationError):
            why = f"its certificate is not accepted: {error.verify_message}"
        elif isinstance(error, ssl.SSLError):
            why = f"TLS: {str(error.reason or error).lower().replace('_', ' ')}"
        else:
            why = str(error) or type(error).__name__
        _log.warning(f"Failed to transfer {self._name} from {place}: {why}")

    async def _use(self, zone: Zone, place: Place, how: str) -> None:
        old = self.current
        if old is not None:
            self.history.add(old, zone, await changes_of(old, zone))
        self.current = zone
        if old is not None:
            old.validity.end()
            task = asyncio.create_task(released(old), name="an old zone")
            self.releases.add(task)
            task.add_done_callback(self.releases.discard)
        _log.info(f"Transferred: {self._name} from {place} by {how}, serial {zone.serial}, {zone.count} records")
        self._keep()
        for call in list(self.on_change):
            call(self)

    @property
    def _name(self) -> str:
        return to_text(self.origin)


def _timers(zone: Zone) -> list[float]:
    """The SOA's refresh, retry and expire in seconds, within bounds."""
    soa = zone.soa.rdatas[0]
    return [min(max(float(int.from_bytes(soa[i : i + 4], "big")), LEAST), MOST) for i in (-16, -12, -8)]


def same_host(one: str, other: str) -> bool:
    """Whether two texts are one address, whatever their form (`::ffff:192.0.2.1`, a zone's id)."""
    try:
        parsed = [ipaddress.ip_address(text.partition("%")[0]) for text in (one, other)]
    except ValueError:
        return False
    plain = [getattr(each, "ipv4_mapped", None) or each for each in parsed]
    return bool(plain[0] == plain[1])
