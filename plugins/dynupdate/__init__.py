"""dynupdate - serves a zone that clients may change.

Takes DNS updates (RFC 2136) that are signed (RFC 8945): from `nsupdate`, from cert-manager's and lego's RFC 2136
solvers, from external-dns.

## Syntax

    dynupdate [ZONE] {
        file DBFILE
        database PATH
        allow KEY NAME TYPE...
        max_records N
        max_bytes N
        max_update_records N
    }

* ZONE is the zone; the block's only one if there is none.
* `file` is the master file that the zone begins as. Required. Once the database is there it is not read any more.
* `database` is where the zone is kept: a master file, and `PATH.journal` beside it. Required.
* `allow` lets updates that KEY signs change records of these types at NAME: a name, `@` for the zone's apex, or `*` for
  all of the zone. TYPE `ANY` is to delete all at a name; `*` alone is everything. KEY is a key of the plugin `tsig` in
  this block. At least one is required.
* `max_records` and `max_bytes` are what the zone may have; an update that makes it larger is REFUSED. Default: 10000
  and 8388608. `max_update_records` is for the prerequisites and updates of one message. Default: 1024.

An update is on the disk before it is acknowledged; a crash loses none and leaves none half done. Every change raises
the serial, tells secondaries (with `transfer`), and can be had by IXFR. At a clean stop the journal is put into the
database, which may then be edited by hand, but for its first line. One server at a time uses a database; with
`multisocket` it is an error.

Updates are taken over UDP, TCP and TLS; over HTTP and gRPC the reply is NOTIMP. So it is for DNSSEC's own types, and a
signed zone is an error: kdns does not sign what it changes. At most 256 updates wait, 128 of one key; one more gets
SERVFAIL with an extended error, and other clients do not notice.

## Examples

~~~ corefile
example.org:1053 {
    tsig {
        secret update.example.org. c2VjcmV0IG9mIHRoaXMgZXhhbXBsZQ==
        require_opcode UPDATE
    }
    dynupdate {
        file db.example.org
        database example.org.zone
        allow update.example.org. * A AAAA CNAME TXT
    }
}
~~~
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from kdns import files
from kdns.corefile import CorefileError, Directive, Line, ServerBlock
from kdns.corefile.errors import Position
from kdns.dns import edns, iana
from kdns.dns.name import is_within, to_text
from kdns.plugin import Outcome, RcodeOnly, Request, readers, zones
from kdns.plugin.base import BlockInfo
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import KeyRing, KnowsSigner, Notifies, Processes
from kdns.plugin.readers import Fallthrough
from kdns.plugin.runtime import Runtime
from kdns.plugins.dynupdate.draft import NOT_TAKEN, Limits, Permission
from kdns.plugins.dynupdate.zone import BadStore, DynamicZone
from kdns.store.zone import Zone
from kdns.zonefile.load import BrokenZone, read_paced

UPDATE: Final = 5  # the opcode
NOTAUTH: Final = 9
MAX_UPDATE_RECORDS: Final = 6000  # a message has room for no more
_OPTIONS: Final = ("file", "database", "allow", "max_records", "max_bytes", "max_update_records")
_PROHIBITED: Final = edns.extended_error(edns.PROHIBITED)
_NOTHING: Final = Fallthrough()


@dataclass(frozen=True, slots=True)
class Config:
    """One directive."""

    zone: bytes
    file: str
    file_at: Position
    database: str
    at: Position
    allowed: tuple[Permission, ...]
    limits: Limits


class Dynupdate(zones.ServesZones):
    """Answers from zones that clients change, and changes them."""

    name: ClassVar[str] = "dynupdate"
    pure = True
    meets_updates = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Config, ...]]:
        made: list[Config] = []
        for directive in directives:
            config = _config(directive, block)
            if any(config.zone == other.zone for other in made):
                raise readers.fail(directive, f"dynupdate has the zone {to_text(config.zone)} twice")
            made.append(config)
        return [tuple(made)]

    def __init__(self, config: tuple[Config, ...]) -> None:
        super().__init__(config)
        self.configs: dict[bytes, Config] = {each.zone: each for each in config}
        self.paths: dict[bytes, str] = {}
        self.seeds: dict[bytes, Zone | None] = {}
        self.served: dict[bytes, DynamicZone] = {}
        self.held: list[tuple[str, bytes, str]] = []
        self.signers: list[KnowsSigner] = []
        self.notifiers: list[Notifies] = []
        self.runtime: Runtime | None = None

    # Life.

    def load(self, block: BlockInfo) -> None:
        for origin, config in self.configs.items():
            self.paths[origin] = block.path(config.database)
            self.seeds[origin] = self._seed(config, block)

    def _seed(self, config: Config, block: BlockInfo) -> Zone | None:
        """What the zone begins as; None where it has begun."""
        try:
            files.check_regular(self.paths[config.zone])
            with open(self.paths[config.zone], "rb"):
                return None
        except FileNotFoundError:
            pass
        except OSError as error:
            text = f"{self.paths[config.zone]}: {error.strerror}"
            raise CorefileError(config.at, f"dynupdate: {text}") from None
        path = block.path(config.file)
        try:
            zone = read_paced(path, config.zone).zone
        except (BrokenZone, OSError) as error:
            text = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise CorefileError(config.file_at, f"dynupdate: zone {to_text(config.zone)}: {text}") from None
        if zone.proofs is not None or zone.apex.rrset(48) is not None:
            raise CorefileError(
                config.file_at, f"dynupdate: {path} is signed: kdns does not sign what updates change in it"
            )
        return zone

    def wire(self, block: BlockInfo) -> None:
        self.signers = block.all(KnowsSigner)
        self.notifiers = block.all(Notifies)
        rings = block.all(KeyRing)
        several = any(found.processes > 1 for found in block.anywhere(Processes))
        for config in self.configs.values():
            if several:
                raise CorefileError(
                    config.at,
                    "dynupdate: with multisocket each process would change a zone of its own: use one process",
                )
            for permission in config.allowed:
                if all(ring.tsig_key(permission.key) is None for ring in rings):
                    raise CorefileError(config.at, f"dynupdate: the block's tsig has no key {to_text(permission.key)}")

    async def start(self, runtime: Runtime) -> None:
        self.runtime = runtime
        for origin, config in self.configs.items():
            held = ("dynupdate", origin, self.paths[origin])
            path, seed = self.paths[origin], self.seeds[origin]
            try:
                zone = await runtime.acquire(held, lambda o=origin, p=path, s=seed: DynamicZone(o, p, s))  # type: ignore[misc]
            except BadStore as error:
                raise CorefileError(config.at, f"dynupdate: {error}") from None
            self.held.append(held)
            self.served[origin] = zone
            zone.on_change.append(self._changed)
        self.seeds.clear()

    async def stop(self) -> None:
        for zone in self.served.values():
            zone.on_change.remove(self._changed)
        self.served = {}
        held, self.held = self.held, []
        for each in held:
            assert self.runtime is not None
            await self.runtime.release(each)
        self.notifiers = []
        self.signers = []

    def _changed(self, zone: DynamicZone) -> None:
        for each in self.notifiers:
            each.notify(zone.origin)

    # Queries and updates.

    @property
    def update_limit(self) -> int:
        """The most records that any of its zones takes."""
        return max([config.limits.update_records for config in self.configs.values()])

    def handle(self, request: Request) -> Outcome | Pending | None:
        if request.opcode == UPDATE:
            return self._update(request)
        question = request.question
        if question.cls != iana.IN and question.cls != iana.ANY:
            return None
        served = zones.find(question.name, question.type, self.served)
        return None if served is None else zones.respond(request, served, _NOTHING)

    def _update(self, request: Request) -> Outcome | Pending:
        zone = request.question
        if zone.type != iana.SOA or zone.cls != iana.IN:
            return RcodeOnly(iana.FORMERR)  # RFC 2136, section 3.1.1
        served = self.served.get(zone.name)
        if served is None:
            return RcodeOnly(NOTAUTH)  # section 3.1.2
        config = self.configs[zone.name]
        key = next((key for signer in self.signers if (key := signer.signer(request))), b"")
        allowed = [each for each in config.allowed if each.key == key]
        data = request.wire
        records = int.from_bytes(data[6:8], "big") + int.from_bytes(data[8:10], "big")
        if not key or not allowed or records > config.limits.update_records:
            return RcodeOnly(iana.REFUSED, options=_PROHIBITED)
        return served.submit(data, request.question_end, key, allowed, config.limits)

    # Transfers.

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones that may be had whole."""
        return tuple(self.configs)


def _config(directive: Directive, block: ServerBlock) -> Config:
    readers.arguments(directive, 0, 1, "a zone")
    named = readers.zone_names(directive.args, block)
    if len(named) != 1:
        raise readers.fail(directive, "dynupdate serves one zone: name it, as the block has several")
    zone = named[0]
    file = database = None
    allowed: list[Permission] = []
    limits = Limits()
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "file":
            file = readers.one(line, "a file")
        elif name == "database":
            database = readers.one(line, "a file")
        elif name == "allow":
            allowed.append(_permission(line, zone))
        elif name == "max_records":
            limits = replace(limits, records=readers.integer(readers.one(line, "a number"), 1))
        elif name == "max_bytes":
            limits = replace(limits, octets=readers.integer(readers.one(line, "a number"), 1))
        elif name == "max_update_records":
            number = readers.integer(readers.one(line, "a number"), 1, MAX_UPDATE_RECORDS)
            limits = replace(limits, update_records=number)
        else:
            raise readers.unknown(line, _OPTIONS)
    if file is None or database is None:
        raise readers.fail(
            directive, "dynupdate needs `file`, what the zone begins as, and `database`, where it is kept"
        )
    if not allowed:
        raise readers.fail(directive, "dynupdate needs `allow KEY NAME TYPE...`: who may change what")
    return Config(zone, file.text, file.at, database.text, database.at, tuple(allowed), limits)


def _permission(line: Line, zone: bytes) -> Permission:
    readers.arguments(line, 3, None, "a key, a name and types")
    key, name, *words = line.args
    if name.text == "*":
        where = b""
    elif name.text == "@":
        where = zone
    else:
        where = readers.name(name)
        if not is_within(where, zone):
            raise readers.fail(name, f"{name.text} is not in the zone {to_text(zone)}")
    if any(word.text == "*" for word in words):
        if len(words) > 1:
            raise readers.fail(line, "`*` stands for all types: it stands alone")
        return Permission(readers.name(key), where, None)
    types = set()
    for word in words:
        number = iana.type_number(word.text)
        if number is None or number in NOT_TAKEN:
            raise readers.fail(word, f'"{word.text}" is not a type that updates may change')
        types.add(number)
    return Permission(readers.name(key), where, frozenset(types))
