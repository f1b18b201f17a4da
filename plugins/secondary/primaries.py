"""Where a zone's primaries are: addresses, or names that are looked up again and again.

Laws: a look-up waits in a thread, with a time limit, and holds nobody but the zones that want this name; all zones that
name a host share one look-up; one that fails leaves the addresses that were known.
"""

import asyncio
import time
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from kdns import files, log
from kdns.address import host_port, is_address
from kdns.upstream.lookup import look_up

# Seconds until a name is looked up again, when its zone is looked at next: the system does not tell TTLs.
FRESH: Final = 60.0
AGAIN: Final = 5.0  # after a failure
TIMEOUT: Final = 10.0  # seconds for a look-up: two tries of 5 seconds, as resolv.conf(5) has them

_log = log.plugin("secondary")


class Place(NamedTuple):
    """A primary: an address or a host name, and a port; `secure`: over TLS, whose certificate must have `server_name`
    (empty: the host).
    """

    host: str
    port: int
    secure: bool = False
    server_name: str = ""

    def __str__(self) -> str:
        return f"{'tls://' if self.secure else ''}{host_port(self.host, self.port)}"


class Primaries(NamedTuple):
    """The primaries of zones, in the order that they are asked; who is asked for their names (nobody: the system's
    resolver); the files of `tls`.
    """

    places: tuple[Place, ...]
    resolvers: tuple[tuple[str, int], ...] = ()
    tls: tuple[str, ...] = ()

    def names(self) -> dict[str, "HostName"]:
        """The names among them, to be looked up. Needs a running loop."""
        return {
            place.host: _host_name(place.host, self.resolvers) for place in self.places if not is_address(place.host)
        }


class HostName:
    """A host name and the addresses that it led to last."""

    def __init__(self, host: str, resolvers: tuple[tuple[str, int], ...]) -> None:
        self.host = host
        self.resolvers = resolvers
        self.addresses: tuple[str, ...] = ()
        self.error = ""
        self.due = 0.0  # when it is looked up again, in monotonic seconds
        self.lock = asyncio.Lock()

    async def look(self) -> tuple[str, ...]:
        """Its addresses. Raises OSError where none is known."""
        async with self.lock:
            if time.monotonic() >= self.due:
                await self._look()
        if not self.addresses:
            raise OSError(f"{self.host} cannot be resolved: {self.error}")
        return self.addresses

    async def _look(self) -> None:
        try:
            found = await files.waiting(f"looking up {self.host}", partial(look_up, self.host, self.resolvers), TIMEOUT)
        except OSError as error:
            why = str(error.strerror or error)
            if why != self.error and self.addresses:
                _log.warning(f"{self.host} cannot be resolved: {why}; the addresses that it had are used")
            self.error = why
            self.due = time.monotonic() + AGAIN
        else:
            self.addresses, self.error = tuple(found), ""
            self.due = time.monotonic() + FRESH


_names: Final[WeakValueDictionary[Hashable, HostName]] = WeakValueDictionary()


def _host_name(host: str, resolvers: tuple[tuple[str, int], ...]) -> HostName:
    """The object that stands for a name; the same one while anybody on this loop uses it."""
    key = (asyncio.get_running_loop(), host, resolvers)
    known = _names.get(key)
    if known is None:
        known = _names[key] = HostName(host, resolvers)
    return known


def hosts(primaries: Primaries, names: dict[str, HostName]) -> Iterable[str]:
    """The addresses of all primaries, as far as they are known."""
    for place in primaries.places:
        name = names.get(place.host)
        yield from (place.host,) if name is None else name.addresses
