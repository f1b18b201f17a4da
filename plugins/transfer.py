"""transfer - sends whole zones to other name servers.

## Syntax

    transfer [ZONES...] {
        to ADDRESS...
        source ADDRESS
        tsig KEY [ALGORITHM]
    }

* ZONES are the zones that may be transferred; the block's if there are none. May be given several times; the longest
  zone that fits counts.
* `to` says to whom: `*` is everybody, else IP addresses, with the port that NOTIFY goes to (default 53). Required.
* `source` is the local address of NOTIFY.
* `tsig` signs NOTIFY with a key of the plugin `tsig` in this block. ALGORITHM: hmac-sha256 (the default), another
  hmac-sha, hmac-md5.

AXFR and IXFR (RFC 5936, RFC 1995) are answered over TCP and TLS (RFC 9103), from the plugins that have the zone whole:
`kubernetes` and `k8s_external`, `file`, `auto`, `secondary` and `dynupdate`. An IXFR from a serial that is not older
than ours gets our SOA; one from a version whose steps to the present one are known gets those; any other gets the whole
zone. Over UDP, and for others than `to` names, the answer is REFUSED. Those that `to` names by address are notified at
start and of every new version (RFC 1996), with `tsig` signed.

The zones of `kubernetes` have at most one version a second, so however much changes in it is one NOTIFY and one step.
The last 1000 are kept, up to 100,000 records; where more than 2000 Services change at once, secondaries get the whole
zone. Versions are those of one process: a secondary that had the zone from another replica, or before a reload or a
restart, gets it whole once. Serials are seconds since 1970. The zones of `k8s_external` keep no steps and are notified
of at start alone: secondaries follow them by the SOA's refresh.

## Examples

~~~ corefile
.:1053 {
    transfer cluster.local {
        to *
    }
    kubernetes cluster.local {
        manifests cluster.yaml
    }
}
~~~
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from kdns import faults, log
from kdns.address import host_port
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.corefile.errors import Position
from kdns.dns import iana, tsig, wire
from kdns.dns.errors import FormatError
from kdns.dns.name import closest, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.outcome import Transfer
from kdns.plugin.providers import KeyRing, NumbersVersions, StepSource, TransferSource, ZoneStep
from kdns.plugin.runtime import Runtime
from kdns.upstream import oneshot
from kdns.upstream.exchange import UpstreamError

# Octets of records in one message, at most: a turn of the loop makes one, and 16 KB take a millisecond.
MESSAGE: Final = 16_384
MAX_LENGTH: Final = 60_000  # of one RRset in a message; a longer one goes on in the next
MAX_GIVEN: Final = 10_000  # versions that clients have from us: the last ones of each, some 1 MB
TRIES: Final = 3  # of a NOTIFY
TIMEOUT: Final = 2.0  # seconds for each
_NOTIFY: Final = 4 << 11  # the opcode (RFC 1996, section 3)

_log = log.plugin("transfer")


@dataclass(frozen=True, slots=True)
class Rule:
    """One directive: zones as wire names; who may have them (None: everybody); where NOTIFY goes, from where, signed
    with what key.
    """

    zones: tuple[bytes, ...]
    allowed: frozenset[str] | None
    notified: tuple[tuple[str, int], ...] = ()
    source: str = ""
    key: bytes = b""
    algorithm: bytes = tsig.SHA256
    at: Position | None = None


class TransferPlugin(Plugin):
    """Answers AXFR and IXFR."""

    name: ClassVar[str] = "transfer"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Rule, ...]]:
        return [tuple(_rule(directive, block) for directive in directives)]

    def __init__(self, config: tuple[Rule, ...]) -> None:
        super().__init__(config)
        self.rules = config
        self.sources: list[TransferSource] = []
        self.keys: dict[bytes, tsig.Key] = {}
        # NOTIFYs on their way, by zone and address; and those that a newer version has overtaken meanwhile.
        self.tasks: dict[tuple[bytes, tuple[str, int]], asyncio.Task[None]] = {}
        self.again: set[tuple[bytes, tuple[str, int]]] = set()
        self.serving = False
        # The versions that were given, by zone, client and serial, of sources that number them themselves.
        self.given: dict[tuple[bytes, str, int], None] = {}

    def wire(self, block: BlockInfo) -> None:
        self.sources = block.all(TransferSource)
        for rule in self.rules:
            if rule.key:
                secret = next(
                    (found for ring in block.all(KeyRing) if (found := ring.tsig_key(rule.key)) is not None), None
                )
                if secret is None:
                    raise CorefileError(rule.at, f"transfer: the block's tsig has no key {to_text(rule.key)}")
                self.keys[rule.key] = tsig.Key(rule.key, secret, rule.algorithm)

    async def start(self, runtime: Runtime) -> None:
        # A secondary comes at once: before the sockets are open it would find nobody, and stay away for half a minute.
        runtime.on_serving.append(self._notify_all)

    def _notify_all(self) -> None:
        self.serving = True
        for zone in dict.fromkeys(zone for source in self.sources for zone in source.transfer_zones()):
            self.notify(zone)

    async def stop(self) -> None:
        self.serving = False
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.tasks.clear()
        self.sources = []

    def transfers(self, zone: bytes) -> bool:
        """True if there is a rule for a zone."""
        return self._rule(zone) is not None

    def notify(self, zone: bytes) -> None:
        """Tells those that are named by address of a new version; of several while one is told, once more."""
        rule = self._rule(zone)
        if rule is None or not self.serving:
            return
        for where in rule.notified:
            if (zone, where) in self.tasks:
                self.again.add((zone, where))
                continue
            work = faults.attempt("plugin/transfer", partial(self._notify, zone, where, rule))
            self.tasks[zone, where] = asyncio.create_task(work, name="notify")

    async def _notify(self, zone: bytes, where: tuple[str, int], rule: Rule) -> None:
        try:
            await _notify(zone, where, rule.source, self.keys.get(rule.key))
            while (zone, where) in self.again:
                self.again.discard((zone, where))
                await _notify(zone, where, rule.source, self.keys.get(rule.key))
        finally:
            self.tasks.pop((zone, where), None)

    def handle(self, request: Request) -> Outcome | None:
        question = request.question
        if question.type not in (iana.AXFR, iana.IXFR) or question.cls != iana.IN:
            return None
        if request.transport == "udp":
            return RcodeOnly(iana.REFUSED)  # RFC 5936, section 4.2
        rule = self._rule(question.name)
        if rule is None:
            return None
        if rule.allowed is not None and str(request.client[0]).partition("%")[0] not in rule.allowed:
            return RcodeOnly(iana.REFUSED)
        for source in self.sources:
            if question.name in source.transfer_zones():
                return self._answer(request, source)
        return None

    def _rule(self, name: bytes) -> Rule | None:
        """The rule of the longest zone that a name is in."""
        zone = closest(name, [zone for rule in self.rules for zone in rule.zones])
        return next((rule for rule in self.rules if zone in rule.zones), None) if zone is not None else None

    def _answer(self, request: Request, source: TransferSource) -> Outcome:
        serial: int | None = None
        if request.question.type == iana.IXFR:
            serial = _serial(request)
            if serial is None:
                return RcodeOnly(iana.FORMERR)  # RFC 1995, section 3: the client's SOA is missing
        records = source.transfer(request.question.name)
        if records is None:
            return RcodeOnly(iana.SERVFAIL, "the zone is not loaded yet")
        soa = next(records)
        ours = int.from_bytes(soa.rdatas[0][-20:-16], "big")
        if serial is not None and (serial - ours) & 0xFFFFFFFF < 0x80000000:
            return Transfer(iter([(soa,)]))  # RFC 1995, section 2: not older than ours (RFC 1982)
        steps: Sequence[ZoneStep] | None = None
        if serial is not None and isinstance(source, StepSource) and self._has(source, request, serial):
            steps = source.transfer_steps(request.question.name, serial)
        if isinstance(source, NumbersVersions):
            self._gives(request, ours)
        return Transfer(_messages(soa, records if steps is None else _told(steps)))

    def _has(self, source: TransferSource, request: Request, serial: int) -> bool:
        """True if a serial says which version a client has."""
        if not isinstance(source, NumbersVersions):
            return True
        return (request.question.name, str(request.client[0]), serial) in self.given

    def _gives(self, request: Request, serial: int) -> None:
        """Notes what a client has from us."""
        place = (request.question.name, str(request.client[0]), serial)
        self.given.pop(place, None)
        self.given[place] = None
        if len(self.given) > MAX_GIVEN:
            del self.given[next(iter(self.given))]


def _told(steps: Sequence[ZoneStep]) -> Iterator[RRset]:
    """Difference sequences (RFC 1995, section 4): the old SOA, what goes, the new SOA, what comes."""
    for step in steps:
        yield step.old
        for gone, _ in step.changes:
            if gone is not None:
                yield gone
        yield step.new
        for _, come in step.changes:
            if come is not None:
                yield come


def _messages(soa: RRset, records: Iterator[RRset]) -> Iterator[tuple[RRset, ...]]:
    """The zone's records in messages of a bearable size, its SOA first and last (RFC 5936, section 2.2)."""
    batch = [soa]
    size = 0
    for rrset in records:
        for part in _parts(rrset):
            length = sum(len(data) for data in part.rdatas) + len(part.rdatas) * (len(part.owner) + 10)
            if size + length > MESSAGE and batch:
                yield tuple(batch)
                batch, size = [], 0
            batch.append(part)
            size += length
    yield (*batch, soa)


def _parts(rrset: RRset) -> Iterator[RRset]:
    """An RRset in parts that fit in a message."""
    each = len(rrset.owner) + 10 + max(len(data) for data in rrset.rdatas)
    count = max(MAX_LENGTH // 4 // each, 1)
    for i in range(0, len(rrset.rdatas), count):
        yield rrset._replace(rdatas=rrset.rdatas[i : i + count])


def _serial(request: Request) -> int | None:
    """The serial in an IXFR's authority section."""
    data = request.wire
    if data[8:10] != b"\0\1":
        return None
    try:
        record = next(wire.records(data, request.question_end, 1, wire.Budget()))
    except FormatError:
        return None
    if record.type != iana.SOA or record.end - record.fixed < 32:
        return None
    return int.from_bytes(data[record.end - 20 : record.end - 16], "big")


# NOTIFY (RFC 1996).


async def _notify(zone: bytes, where: tuple[str, int], source: str, key: tsig.Key | None) -> None:
    """Tells a server that a zone may have changed; three tries, then a warning."""
    question = Question(zone, iana.SOA)
    query = b"\0\0" + (_NOTIFY | iana.AA).to_bytes(2, "big") + b"\0\1\0\0\0\0\0\0" + question.wire
    why = ""
    for _ in range(TRIES):
        try:
            # The id is chosen when it is sent; a signature covers the one that the TSIG record names (RFC 8945, section
            # 5.3.1).
            message = query if key is None else tsig.signed(query, key, time.time())[0]
            answer = await oneshot.ask(message, question, *where, timeout=TIMEOUT, source=source)
        except UpstreamError as error:
            why = str(error)
            continue
        if answer.rcode == iana.NOERROR:
            return
        why = iana.rcode_text(answer.rcode)
    _log.warning(f"notify of {to_text(zone)} to {host_port(*where)}: {why}")


# Reading the directive.


def _rule(directive: Directive, block: ServerBlock) -> Rule:
    zones = readers.zone_names(directive.args, block)
    allowed: set[str] = set()
    everybody = False
    notified: list[tuple[str, int]] = []
    source, key, algorithm = "", b"", tsig.SHA256
    for line in directive.body or ():
        readers.no_block(line)
        if line.name.text == "to":
            readers.arguments(line, 1, None, "* or addresses")
            for word in line.args:
                if word.text == "*":
                    everybody = True
                else:
                    where = readers.ip_port(word, 53)
                    allowed.add(where[0])
                    notified.append(where)
        elif line.name.text == "source":
            source = readers.ip(readers.one(line, "an address"))
        elif line.name.text == "tsig":
            readers.arguments(line, 1, 2, "a key's name")
            key = readers.name(line.args[0])
            if len(line.args) == 2:
                algorithm = readers.tsig_algorithm(line.args[1])
        else:
            raise readers.unknown(line, ("to", "source", "tsig"))
    if not allowed and not everybody:
        raise readers.fail(directive, "transfer needs `to`: * or the addresses that may have the zone")
    who = None if everybody else frozenset(allowed)
    return Rule(zones, who, tuple(dict.fromkeys(notified)), source, key, algorithm, directive.at)
