"""secondary - serves zones that it has from their primaries.

Zones are transferred (AXFR, then IXFR: RFC 5936, RFC 1995), kept in memory and kept up to date: a NOTIFY of a primary
(RFC 1996) or the SOA's timers have their serial compared, and a newer version fetched.

## Syntax

    secondary [ZONES...] {
        transfer from ADDRESS...
        tsig KEY [ALGORITHM]
        catalog [MEMBERS...]
        fallthrough [ZONES...]
    }

* ZONES are the zones it has; the block's if there are none. May be given several times.
* `transfer from` are the primaries: IP addresses, with a port (default 53). They are asked in order. Required.
* `tsig` signs what is asked of them and wants their answers signed, by a key of the plugin `tsig` in this block.
  ALGORITHM: hmac-sha256 (the default), another hmac-sha, hmac-md5.
* `catalog` says that ZONES are catalogs (RFC 9432): the zones that they list are had from the same primaries too, come
  and go with them; MEMBERS are those that may be, and what is below them. A catalog that is broken changes nothing.
* `fallthrough` passes names that are not in the zone on to the next plugin.

Until the first transfer a zone is SERVFAIL, and so it is once no primary has answered for as long as the SOA's expire
says; both with an extended error. A failed transfer changes nothing; it is tried again by the SOA's retry, the first
one after 250ms to 10s.

## Examples

~~~ corefile
example.org:1053 {
    secondary {
        transfer from 192.0.2.1 192.0.2.2:5353
    }
    errors
}
~~~
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

from kdns import faults, log
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.corefile.errors import Position
from kdns.dns import iana, tsig
from kdns.dns.errors import FormatError
from kdns.dns.name import closest, to_text
from kdns.plugin import Outcome, RcodeOnly, Request, readers, zones
from kdns.plugin.base import BlockInfo, overrides
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import KeyRing, Notifies
from kdns.plugin.readers import Fallthrough
from kdns.plugin.runtime import Runtime
from kdns.plugins.secondary.zone import SecondaryZone, same_host
from kdns.store.catalog import members

_OPTIONS: Final = ("transfer", "tsig", "catalog", "fallthrough")
_log = log.plugin("secondary")


@dataclass(frozen=True, slots=True)
class Config:
    """One directive: zones as wire names, primaries as (address, port), the key's name and algorithm as wire names."""

    zones: tuple[bytes, ...]
    primaries: tuple[tuple[str, int], ...]
    at: Position
    key: bytes = b""
    algorithm: bytes = tsig.SHA256
    fallthrough: Fallthrough = field(default_factory=Fallthrough)
    catalog: tuple[bytes, ...] | None = None  # what its members may be; None: it is no catalog


class _Held(NamedTuple):
    """A member of a catalog: the catalog, the label that stands for it there, and the key that its zone is held by."""

    catalog: bytes
    label: bytes
    key: Hashable


class Secondary(zones.ServesZones):
    """Answers from zones of its primaries."""

    name: ClassVar[str] = "secondary"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Config, ...]]:
        return [tuple(_config(directive, block) for directive in directives)]

    def __init__(self, config: tuple[Config, ...]) -> None:
        super().__init__(config)
        self.config: tuple[Config, ...] = config
        self.settings: dict[bytes, Config] = {origin: each for each in config for origin in each.zones}
        self.keys: dict[bytes, tsig.Key] = {}
        self.served: dict[bytes, SecondaryZone] = {}
        self.held: list[Hashable] = []
        self.members: dict[bytes, _Held] = {}
        self.known = zones.Known()
        self.syncing = asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()
        self.notifiers: list[Notifies] = []
        self.runtime: Runtime | None = None
        self.last = False
        self.strangers = 0

    # Life.

    def wire(self, block: BlockInfo) -> None:
        self.last = not any(overrides(plugin, "handle") for plugin in block.plugins[self.position + 1 :])
        self.notifiers = block.all(Notifies)
        for config in self.config:
            if config.key:
                secret = next(
                    (found for ring in block.all(KeyRing) if (found := ring.tsig_key(config.key)) is not None), None
                )
                if secret is None:
                    raise CorefileError(config.at, f"secondary: the block's tsig has no key {to_text(config.key)}")
                self.keys[config.key] = tsig.Key(config.key, secret, config.algorithm)

    async def start(self, runtime: Runtime) -> None:
        self.runtime = runtime
        if runtime.link is not None:
            runtime.link.listen("secondary", self._told)
        for origin, config in self.settings.items():
            key = self.keys.get(config.key)
            accepts = members if config.catalog is not None else None
            held = ("secondary", origin, config.primaries, key, accepts)
            await self._hold(held, lambda o=origin, c=config, k=key, a=accepts: SecondaryZone(o, c.primaries, k, a))  # type: ignore[misc]
            self.held.append(held)
        for origin, config in self.settings.items():
            if config.catalog is not None and self.served[origin].current is not None:
                await self._sync(origin)

    async def _hold(self, held: Hashable, make: Callable[[], SecondaryZone]) -> None:
        assert self.runtime is not None
        zone = await self.runtime.acquire(held, make)
        self.served[zone.origin] = zone
        zone.on_change.append(self._changed)

    async def stop(self) -> None:
        if self.runtime is not None and self.runtime.link is not None:
            self.runtime.link.ignore("secondary", self._told)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for zone in self.served.values():
            if self._changed in zone.on_change:
                zone.on_change.remove(self._changed)
        held, self.held = [*self.held, *(member.key for member in self.members.values())], []
        self.members.clear()
        for each in held:
            assert self.runtime is not None
            await self.runtime.release(each)
        self.notifiers = []

    def _changed(self, zone: SecondaryZone) -> None:
        for each in self.notifiers:
            each.notify(zone.origin)
        config = self.settings.get(zone.origin)
        if config is not None and config.catalog is not None:
            task = asyncio.create_task(faults.attempt("plugin/secondary", self._sync(zone.origin)), name="catalog")
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    # Catalogs (RFC 9432, section 5).

    async def _sync(self, catalog: bytes) -> None:
        """Brings the members to what a catalog lists now."""
        async with self.syncing:
            zone = self.served[catalog].current
            limit = self.settings[catalog].catalog
            if zone is None or limit is None:
                return
            listed = {
                name: each for name, each in members(zone).items() if not limit or closest(name, limit) is not None
            }
            for name in [name for name, held in self.members.items() if held.catalog == catalog and name not in listed]:
                await self._drop(name)
                _log.info(f"Removed catalog member zone {to_text(name)}")
            for name, member in listed.items():
                held = self.members.get(name)
                if held is None:
                    if name in self.served:
                        _log.warning(f"Skipping catalog member zone {to_text(name)}: it is already served")
                        continue
                    await self._take(name, catalog, member.label)
                    _log.info(f"Added catalog member zone {to_text(name)}")
                elif held.catalog != catalog and self._moves_to(held.catalog, name) != catalog:
                    _log.warning(
                        f"Skipping catalog member zone {to_text(name)}: another catalog lists it, and does not give it "
                        f"away"
                    )
                elif held.label != member.label:
                    await self._drop(name)
                    await self._take(name, catalog, member.label)
                    _log.info(f"Reset catalog member zone {to_text(name)}")
                elif held.catalog != catalog:
                    self.members[name] = held._replace(catalog=catalog)
                    self.served[name].primaries = self.settings[catalog].primaries
                    _log.info(f"Migrated catalog member zone {to_text(name)}")

    def _moves_to(self, catalog: bytes, name: bytes) -> bytes:
        zone = self.served[catalog].current
        member = members(zone).get(name) if zone is not None else None
        return member.moves_to if member is not None else b""

    async def _take(self, name: bytes, catalog: bytes, label: bytes) -> None:
        config = self.settings[catalog]
        key = self.keys.get(config.key)
        held = ("secondary", name, config.primaries, key, label)
        await self._hold(held, lambda: SecondaryZone(name, config.primaries, key))
        self.members[name] = _Held(catalog, label, held)
        self.known.changed()

    async def _drop(self, name: bytes) -> None:
        zone = self.served.pop(name)
        zone.on_change.remove(self._changed)
        held = self.members.pop(name)
        if zone.current is not None:
            zone.current.validity.end()
        self.known.changed()
        assert self.runtime is not None
        await self.runtime.release(held.key)

    def _setting(self, origin: bytes) -> Config:
        held = self.members.get(origin)
        return self.settings[origin if held is None else held.catalog]

    # Queries.

    def handle(self, request: Request) -> Outcome | Pending | None:
        question = request.question
        if question.cls != iana.IN and question.cls != iana.ANY:
            return None
        request.depends_on(self.known.validity)
        served = zones.find(question.name, question.type, self.served)
        if served is None:
            return RcodeOnly(iana.REFUSED) if self.last else None
        return zones.respond(request, served, self._setting(served.origin).fallthrough)

    def notified(self, request: Request) -> int | None:
        """Takes a NOTIFY for one of its zones from one of its primaries."""
        served = self.served.get(request.question.name)
        if served is None:
            return None
        host = str(request.client[0])
        if not any(same_host(host, primary) for primary, _ in served.primaries) or request.question.type != iana.SOA:
            self.strangers += 1
            if self.strangers == 1:
                _log.warning(f"notify of {to_text(served.origin)} from {host}, which is no primary of it: refused")
            return iana.REFUSED
        if served.key is not None and request.may_be_signed:
            try:
                found = tsig.find(request.wire)
                if found is not None:
                    if found.name != served.key.name:
                        return tsig.NOTAUTH
                    tsig.check(request.wire, found, served.key, time.time())
                    signer = tsig.Signer(served.key, found.mac)
                    request.seal = lambda message: signer.sign(message, time.time())
            except (FormatError, tsig.Refused):
                return tsig.NOTAUTH
        served.wake()
        if self.runtime is not None and self.runtime.link is not None:
            self.runtime.link.tell("secondary", served.origin)  # it came to one of several workers
        return iana.NOERROR

    def _told(self, origin: bytes) -> None:
        """Another worker got a NOTIFY that will do."""
        served = self.served.get(origin)
        if served is not None:
            served.wake()

    # Transfers.

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones that may be had whole."""
        return (*self.settings, *self.members)


def _config(directive: Directive, block: ServerBlock) -> Config:
    primaries: list[tuple[str, int]] = []
    key, algorithm, fallthrough = b"", tsig.SHA256, Fallthrough()
    catalog: tuple[bytes, ...] | None = None
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "transfer":
            readers.arguments(line, 2, None, "`from` and addresses")
            if line.args[0].text != "from":
                raise readers.fail(
                    line.args[0],
                    f'expected `from`, found "{line.args[0].text}"; who may have the zone says the plugin transfer',
                )
            primaries += [readers.ip_port(word, 53) for word in line.args[1:]]
        elif name == "tsig":
            readers.arguments(line, 1, 2, "a key's name")
            key = readers.name(line.args[0])
            if len(line.args) == 2:
                algorithm = readers.tsig_algorithm(line.args[1])
        elif name == "fallthrough":
            fallthrough = Fallthrough.parse(line)
        elif name == "catalog":
            # Several lines add up; one without names stands for all.
            named = tuple([readers.name(word) for word in line.args])
            catalog = () if not named or catalog == () else (*(catalog or ()), *named)
        else:
            raise readers.unknown(line, _OPTIONS)
    if not primaries:
        raise readers.fail(directive, "secondary needs `transfer from`: the addresses of the zone's primaries")
    names = readers.zone_names(directive.args, block)
    return Config(names, tuple(dict.fromkeys(primaries)), directive.at, key, algorithm, fallthrough, catalog)
