"""secondary - serves zones that it has from their primaries.

Zones are transferred (AXFR, then IXFR: RFC 5936, RFC 1995), kept in memory and kept up to date: a NOTIFY of a primary
(RFC 1996) or the SOA's timers have their serial compared, and a newer version fetched.

## Syntax

    secondary [ZONES...] {
        transfer from PRIMARY...
        tls [CA] | [CERT KEY] | [CERT KEY CA]
        tls_servername NAME
        resolver ADDRESS...
        tsig KEY [ALGORITHM]
        catalog [MEMBERS...]
        directory DIR
        fallthrough [ZONES...]
    }

* ZONES are the zones it has; the block's if there are none. May be given several times.
* `transfer from` are the primaries, which are asked in order. Required. `IP[:PORT]` is asked over TCP, port 53;
  `tls://IP[%SERVERNAME][:PORT]` over TLS 1.3, port 853 (RFC 9103): its certificate must be valid for SERVERNAME, else
  for the address, and no primary is asked unencrypted that is to be asked over TLS. A host name may stand in place of
  an address (kdns only): it is looked up when the zone is looked at, at most once a minute, and all its addresses are
  asked in order.
* `tls`: whom to trust (CA; default: whom this machine trusts), and what to show. `tls_servername`: the name in the
  certificates of all primaries that have no SERVERNAME.
* `resolver`: servers, as IP or IP:PORT, that are asked in order for host names; without it this machine's own are.
* `tsig` signs what is asked of them and wants their answers signed, by a key of the plugin `tsig` in this block.
  ALGORITHM: hmac-sha256 (the default), another hmac-sha, hmac-md5.
* `catalog` says that ZONES are catalogs (RFC 9432): the zones that they list are had from the same primaries too, come
  and go with them; MEMBERS are those that may be, and what is below them. A catalog that is broken changes nothing.
* `directory` (kdns only) keeps a copy of each zone in DIR as `db.<zone>copy`: at the next start the zone is served from
  it at once, until its expire has passed since a primary was last heard (the time of the file's last change). The copy
  is written whole, some seconds after a change at the latest. A copy that was cut or changed is not used, and a line
  says so.
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
import ssl
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

from kdns import faults, log
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.dns import iana, tsig
from kdns.dns.errors import FormatError
from kdns.dns.name import closest, to_text
from kdns.plugin import Outcome, RcodeOnly, Request, zones
from kdns.plugin.base import BlockInfo, overrides
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import KeyRing, Notifies
from kdns.plugin.runtime import Runtime
from kdns.plugins.secondary import config as _config
from kdns.plugins.secondary.config import Config
from kdns.plugins.secondary.zone import SecondaryZone
from kdns.store.catalog import members
from kdns.store.zone import Zone
from kdns.upstream.context import tls_context
from kdns.zonefile.keep import path_of

_log = log.plugin("secondary")


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
        return [tuple(_config.parse(directive, block) for directive in directives)]

    def __init__(self, config: tuple[Config, ...]) -> None:
        super().__init__(config)
        self.config: tuple[Config, ...] = config
        self.settings: dict[bytes, Config] = {origin: each for each in config for origin in each.zones}
        self.keys: dict[bytes, tsig.Key] = {}
        self.contexts: dict[tuple[str, ...], ssl.SSLContext] = {}  # by the files of `tls`
        self.folders: dict[str, str] = {"": ""}  # as written, and where they are
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

    def load(self, block: BlockInfo) -> None:
        for config in self.config:
            if any(place.secure for place in config.primaries.places):
                tls = config.primaries.tls
                try:
                    # RFC 9103, section 7: TLS 1.3, and the protocol `dot`.
                    made = tls_context([block.path(path) for path in tls], ["dot"], ssl.TLSVersion.TLSv1_3)
                except OSError as error:
                    why = error.strerror or error
                    raise CorefileError(config.at, f"secondary: tls {' '.join(tls)}: {why}") from None
                self.contexts[tls] = made
            if config.directory:
                self.folders[config.directory] = block.path(config.directory)

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
            accepts = members if config.catalog is not None else None
            held = ("secondary", origin, *self._how(config), accepts)
            await self._hold(held, origin, config, accepts)
            self.held.append(held)
        for origin, config in self.settings.items():
            if config.catalog is not None and self.served[origin].current is not None:
                await self._sync(origin)

    def _how(self, config: Config) -> tuple[Hashable, ...]:
        """What a zone is followed by: one that is followed in the same way goes on over a reload."""
        return config.primaries, self.keys.get(config.key), self.folders[config.directory]

    async def _hold(
        self, held: Hashable, origin: bytes, config: Config, accepts: Callable[[Zone], object] | None = None
    ) -> None:
        assert self.runtime is not None
        link = self.runtime.link
        folder = self.folders[config.directory]
        copy = path_of(folder, origin) if folder else ""
        # Of several workers the first writes the copy for all.
        make = partial(SecondaryZone, origin, accepts, copy, link is None or link.number == 1)
        zone = await self.runtime.acquire(held, lambda: self._given(make(), config))
        self._given(zone, config)  # a reload may have brought other certificates
        self.served[zone.origin] = zone
        zone.on_change.append(self._changed)

    def _given(self, zone: SecondaryZone, config: Config) -> SecondaryZone:
        """A zone that is followed by a directive from now on."""
        zone.follow(config.primaries, self.keys.get(config.key), self.contexts.get(config.primaries.tls))
        return zone

    async def stop(self) -> None:
        if self.runtime is not None and self.runtime.link is not None:
            self.runtime.link.ignore("secondary", self._told)
        # First: a change that comes meanwhile would take zones that nobody gives back.
        for zone in self.served.values():
            if self._changed in zone.on_change:
                zone.on_change.remove(self._changed)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
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
            task = asyncio.create_task(
                faults.attempt("plugin/secondary", partial(self._sync, zone.origin)), name="catalog"
            )
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
                    self._given(self.served[name], self.settings[catalog])
                    _log.info(f"Migrated catalog member zone {to_text(name)}")

    def _moves_to(self, catalog: bytes, name: bytes) -> bytes:
        zone = self.served[catalog].current
        member = members(zone).get(name) if zone is not None else None
        return member.moves_to if member is not None else b""

    async def _take(self, name: bytes, catalog: bytes, label: bytes) -> None:
        config = self.settings[catalog]
        held = ("secondary", name, *self._how(config), label)
        await self._hold(held, name, config)
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
        await zone.forget()  # RFC 9432, section 5.4: nothing of a zone that is removed stays

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
        if not served.has_primary(host) or request.question.type != iana.SOA:
            self.strangers += 1
            if self.strangers == 1:
                _log.warning(f"notify of {to_text(served.origin)} from {host}, which is not a primary of it: refused")
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
