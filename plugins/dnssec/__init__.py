"""dnssec - signs answers while they are given.

Answers of the plugins below, from whatever source, get signatures (RFC 4035) when a query asks for them by DO. Names
and types that are not there are denied in the compact form of RFC 9824.

## Syntax

    dnssec [ZONES...] {
        key file KEY...
        key directory DIR...
        cache_capacity CAPACITY
        denial compact|nsec
        cds
    }

* ZONES are the zones that are signed; the block's if there are none.
* `key file` names key pairs as `dnssec-keygen` and `ldns-keygen` write them: `K<name>+<alg>+<id>`, with
  `.key`, `.private` or neither behind it. `key directory` takes all pairs of the zones that lie in a folder. The
  algorithms are ECDSAP256SHA256 (advised), ECDSAP384SHA384, ED25519, ED448, RSASHA256 and RSASHA512. A zone is signed
  with the keys that have its name, or with all where it has none of its own. Of an algorithm with keys with and without
  the SEP flag those with it sign the keys, the others the rest; else each key signs everything. A pair that is missing
  or broken is an error at the start. Times in the files are not looked at. CoreDNS's `key aws_secretsmanager` is not
  there: mount the secrets as files.
* `cache_capacity` is how many RRsets' signatures are kept. Default: 10000, some 5 MB.
* `denial` is how names are proven absent. `compact` (default) says of a name that does not exist that it has no types
  (NXNAME), with NOERROR; NXDOMAIN only where the client sets CO in EDNS. `nsec` are white lies (RFC 4470):
  NXDOMAIN, and two records that cover nothing else.
* `cds` also publishes CDS (SHA-256) and CDNSKEY of the zone's secure entry points, for parents that follow them
  (RFC 7344).

At the apex DNSKEY is answered, to everybody. All other answers without DO are as without this plugin. Signatures begin
3 hours before they are made and end 8 days after it; they are made again 2 days before they end, or when the clock has
been set. A reply with signatures is repeated like any other one.

Not signed: delegations (their DS, or that there is none, is), glue, and what is in no zone of ZONES, such as the target
of a CNAME that leads out of them. RRsets that have signatures already are left as they are. A wildcard's answer is
signed as if its name existed. SERVFAIL and REFUSED have nothing to sign: `hosts` without `fallthrough` says SERVFAIL
for names that it has not.

`rewrite` stands above: names and types that it changes in an answer do not fit their signatures any more. The same
holds for the CNAMEs of `autopath` and `searchpath`, for the addresses that `dns64` and `siit` make, and for what `acl`
(`filter`) and `local` answer in a zone's place. Signed addresses are not rotated by `loadbalance`.

A signature takes some 60 us with ECDSAP256SHA256 and 800 us with RSASHA256 of 2,048 bits. Answers that need many are
made in turns, and slow ones (RSA of 4,096 bits) beside the loop.

## Examples

~~~ corefile
cluster.local:1053 {
    kubernetes {
        manifests cluster.yaml
    }
    dnssec {
        key file Kcluster.local.+013+33130
    }
}
~~~

## Metrics

* `coredns_dnssec_cache_entries{server, type}` - RRsets whose signatures are kept; `type` is `signature`.
* `coredns_dnssec_cache_hits_total{server}` - RRsets whose signatures were kept.
* `coredns_dnssec_cache_misses_total{server}` - RRsets that were signed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kdns import faults, log
from kdns.corefile import Directive, ServerBlock
from kdns.dns import dnssec, iana
from kdns.dns import edns as _edns
from kdns.dns.answer import Answer, Validity
from kdns.dns.name import closest, is_within, parent, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset
from kdns.metrics import Counter, Gauge
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, keyfiles, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.keyfiles import KeyWord
from kdns.plugin.runtime import Runtime
from kdns.plugins.dnssec import denial
from kdns.plugins.dnssec.table import Made, Signatures
from kdns.timeslice import SLICE

if TYPE_CHECKING:
    from kdns.zonefile.keys import Roles

DEFAULT_CAPACITY: Final = 10_000  # CoreDNS's
MAX_CAPACITY: Final = 1_000_000
INCEPTION: Final = 3 * 3600  # seconds before now: clocks differ, and are set (CoreDNS's)
LIFE: Final = 8 * 86400  # seconds from now (CoreDNS's)
RENEW: Final = 2 * 86400  # seconds before the end: a resolver may keep an answer for a day
ORIGINAL_TTL: Final = 3600  # of what comes from others with TTLs that age, so that one signature serves (CoreDNS's)
KEY_TTL: Final = 3600  # of DNSKEY, CDS and CDNSKEY (CoreDNS's)
NO_SOA_TTL: Final = 5  # of denials where nobody knows the zone's SOA: the TTL of kubernetes
# Addresses beside an answer that are signed: a reply over UDP has room for no more, and RFC 4035, section 3.1.1 lets a
# server leave out the signatures that do not fit.
MAX_ADDITIONAL: Final = 4
CLOCK_LOOK: Final = 10.0  # seconds between looks whether the clock was set
CLOCK_JUMP: Final = 60.0  # seconds that it may be off by; signatures have hours
INVALID_QUERY_TYPE: Final = 30  # an extended error: RFC 9824, section 3.5

COMPACT: Final = "compact"
WHITE_LIES: Final = "nsec"
_OPTIONS: Final = ("key", "cache_capacity", "denial", "cds")
_SIGNABLE: Final = (iana.NOERROR, iana.NXDOMAIN, 6)  # YXDOMAIN has a DNAME (RFC 6672, section 2.2)
_PROOFS: Final = (iana.NSEC, dnssec.NSEC3)

ENTRIES: Final = Gauge(
    "coredns_dnssec_cache_entries", "The number of elements in the dnssec cache.", ("server", "type")
)
HITS: Final = Counter("coredns_dnssec_cache_hits_total", "The count of cache hits.", ("server",))
MISSES: Final = Counter("coredns_dnssec_cache_misses_total", "The count of cache misses.", ("server",))

_log = log.plugin("dnssec")

# What an answer's signing does step by step: None before a signature, or a call for a thread, which gives a signature.
Steps = Generator[Callable[[], bytes] | None, bytes | None, Answer]


@dataclass(frozen=True, slots=True)
class Config:
    """What the directive says: zones as wire names, key pairs, RRsets whose signatures are kept."""

    zones: tuple[bytes, ...]
    keys: tuple[KeyWord, ...]
    capacity: int = DEFAULT_CAPACITY
    denial: str = COMPACT
    cds: bool = False


class Dnssec(Plugin):
    """Signs answers from below."""

    name: ClassVar[str] = "dnssec"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return [_config(readers.once(directives), block)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.zones: dict[bytes, Roles] = {}
        self.names = tuple(config.zones)
        self.apex_types = {iana.DNSKEY} | ({dnssec.CDS, dnssec.CDNSKEY} if config.cds else set())
        self.table = Signatures(config.capacity)
        self.clock: Callable[[], float] = time.time
        self.offset = 0.0  # the clock less the monotonic one
        self.validity = Validity()  # ended when the clock was set
        self.task: asyncio.Task[None] | None = None
        self.threads: ThreadPoolExecutor | None = None
        self.queue = asyncio.Lock()  # who makes signatures now, where a turn has not been enough
        self.turn_end = 0.0  # when this turn of the loop has made enough signatures (performance counter)

    # Life.

    def load(self, block: BlockInfo) -> None:
        from kdns.zonefile.keys import Roles  # the cryptography library: loaded where something is signed

        found = keyfiles.load(self.name, self.config.keys, self.config.zones, block)
        self.zones = {zone: Roles(keys) for zone, keys in found.items()}

    def warnings(self) -> Sequence[str]:
        return [
            f"dnssec: zone {to_text(zone)} has no key of its own; it is signed with those of "
            f"{', '.join(sorted({to_text(key.owner) for key in roles.keys}))}"
            for zone, roles in self.zones.items()
            if all(key.owner != zone for key in roles.keys)
        ]

    async def start(self, runtime: Runtime) -> None:
        self.offset = self.clock() - time.monotonic()
        self.task = asyncio.create_task(faults.supervise("plugin/dnssec", self._watch_clock), name="dnssec")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.threads is not None:
            self.threads.shutdown(wait=False)
            self.threads = None
        await self.table.empty()

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_LOOK)
            self.look_at_clock(time.monotonic())

    def look_at_clock(self, monotonic: float) -> None:
        """Ends the replies that are repeated, if the clock was set: how long they hold was reckoned by the old one."""
        offset = self.clock() - monotonic
        if abs(offset - self.offset) > CLOCK_JUMP:
            _log.warning(f"the clock was set by {offset - self.offset:+.0f} s: signatures are checked anew")
            self.validity.end()
            self.validity = Validity()
            self.offset = offset

    # Queries.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if question.cls != iana.IN:
            return None
        if question.type == dnssec.NXNAME and closest(question.name, self.names) is not None:
            return RcodeOnly(iana.FORMERR, None, _edns.extended_error(INVALID_QUERY_TYPE))
        roles = self.zones.get(question.name) if question.type in self.apex_types else None
        if roles is None:
            return None
        rrset = roles.apex(question.name, question.type, KEY_TTL)
        return self.on_answer(request, Answer(iana.NOERROR, iana.AA, (rrset,), local=True, validity=ALWAYS))

    def on_answer(self, request: Request, answer: Answer) -> Answer | Awaitable[Answer]:
        edns = request.edns
        if edns is None or not edns.do or request.question.cls != iana.IN or answer.rcode not in _SIGNABLE:
            return answer
        if closest(request.question.name, self.names) is None:
            return answer
        if edns.co and self.config.denial == COMPACT:
            request.edns = edns.with_compact()
        steps = _Pass(self, request, answer).run()
        try:
            work = next(steps)  # nothing is left to do where all signatures were kept
            while work is None and not self.queue.locked() and self._has_time():
                work = next(steps)
        except StopIteration as done:
            return self._counted(request, done.value)
        return self._later(request, steps, work)

    async def _later(self, request: Request, steps: Steps, work: Callable[[], bytes] | None) -> Answer:
        """Makes an answer's signatures when those before it have theirs, in turns; slow ones in a thread."""
        loop = asyncio.get_running_loop()
        async with self.queue:
            try:
                while True:
                    given = None
                    if work is not None:
                        if self.threads is None:
                            # One: the machine's processors are there for queries. It gives up the interpreter lock.
                            self.threads = ThreadPoolExecutor(1, "dnssec")
                        given = await loop.run_in_executor(self.threads, work)
                    else:
                        while not self._has_time():
                            await asyncio.sleep(0)
                    work = steps.send(given)
            except StopIteration as done:
                return self._counted(request, done.value)

    def _has_time(self) -> bool:
        """Whether this turn of the loop may make one more signature: all of them share a millisecond."""
        now = time.perf_counter()
        if now < self.turn_end:
            return True
        if self.turn_end:
            return False
        self.turn_end = now + SLICE
        asyncio.get_running_loop().call_soon(self._next_turn)
        return True

    def _next_turn(self) -> None:
        self.turn_end = 0.0

    def _counted(self, request: Request, answer: Any) -> Answer:
        ENTRIES.slot(request.server.label, "signature")[0] = len(self.table)
        made: Answer = answer
        return made

    def zone_of(self, owner: bytes, rtype: int) -> bytes | None:
        """The zone that an RRset belongs to, if it is signed; a DS is the parent's (RFC 4035, section 2.4)."""
        if rtype == iana.DS and owner in self.zones:
            owner = parent(owner) if owner != b"\0" else owner
        return closest(owner, self.names)


class _Pass:
    """One answer's way to signatures."""

    __slots__ = ("answer", "now", "plugin", "renew", "request")

    def __init__(self, plugin: Dnssec, request: Request, answer: Answer) -> None:
        self.plugin = plugin
        self.request = request
        self.answer = answer
        self.now = plugin.clock()
        self.renew = self.now + LIFE - RENEW

    def run(self) -> Steps:
        """The signed answer."""
        plugin, request, answer = self.plugin, self.request, self.answer
        wanted: int = answer.rcode
        records = yield from self._signed(answer.answer, _synthesised(answer.answer))
        cut = _cut(answer, plugin.names)
        # The servers of a zone below, and their addresses, are that zone's (RFC 4035, section 2.2).
        authority = yield from self._signed(answer.authority, {(cut, iana.NS)} if cut else set())
        additional = list(answer.additional) if cut else (yield from self._additional())
        proven = any(rrset.type in _PROOFS for rrset in answer.authority)
        if cut and not proven and not any(rrset.type == iana.DS for rrset in answer.authority):
            zone = closest(parent(cut), plugin.names)
            if zone is not None:
                proof = denial.ds_of(request, plugin, cut)
                if proof is None:
                    proof = denial.delegation(cut, zone, _CUT, self._ttl(zone))
                authority += yield from self._signed([proof], set(), zone)
        elif not cut and not proven:
            name = _last(request.question.name, request.question.type, answer)
            # Where the zone above is none of ours, a DS is denied by the one below.
            zone = (plugin.zone_of(name, request.question.type) or closest(name, plugin.names)) if name else None
            if zone is not None and is_within(name, zone):
                proofs, wanted = self._proofs(name, zone)
                made = yield from self._signed(proofs, set(), zone)
                if request.question.type in (iana.NSEC, iana.RRSIG) and name == made[0].owner:
                    # The proof is what was asked for; a denial would contradict it.
                    records += made if request.question.type == iana.NSEC else made[1:]
                    authority = []
                else:
                    authority += made
        request.depends_on(plugin.validity)
        request.expires(request.now + max(self.renew - self.now, 0.0))
        return answer.replace(
            rcode=wanted, answer=records, authority=authority, additional=additional, validity=request.inherit(answer)
        )

    def _proofs(self, name: bytes, zone: bytes) -> tuple[list[RRset], int]:
        """What denies a name, or a type of it, and the response code that goes with it."""
        plugin, request, answer = self.plugin, self.request, self.answer
        ttl = self._ttl(zone)
        if answer.rcode == iana.NXDOMAIN:
            if plugin.config.denial == WHITE_LIES:
                encloser = denial.closest_encloser(request, plugin, name, zone)
                lies = denial.white_lies(name, encloser, zone, ttl)
                if lies:
                    return lies, iana.NXDOMAIN
            # RFC 9824, section 5.1: who says CO knows NXNAME and wants the code as well.
            compact = request.edns is not None and request.edns.compact
            return denial.compact(name, zone, ttl), iana.NXDOMAIN if compact else iana.NOERROR
        types = denial.types_at(request, plugin, name, request.question.type)
        if name == zone:
            types |= plugin.apex_types
        return [denial.without(name, zone, types, ttl)], answer.rcode

    def _ttl(self, zone: bytes) -> int:
        return denial.negative_ttl(self.request, self.plugin, zone, self.answer.authority, NO_SOA_TTL)

    def _signed(
        self, section: Sequence[RRset], left_out: set[tuple[bytes, int]], denied_by: bytes = b""
    ) -> Generator[Callable[[], bytes] | None, bytes | None, list[RRset]]:
        """A section with signatures behind what they cover. Proofs are signed by the zone that denies, which may be the
        one above their owners'.
        """
        out: list[RRset] = []
        done = dnssec.covered(section)
        for rrset in section:
            out.append(rrset)
            owner = rrset.owner.lower()
            key = (owner, rrset.type)
            if rrset.type == iana.RRSIG or rrset.cls != iana.IN or key in done or key in left_out:
                continue
            zone = denied_by or self.plugin.zone_of(owner, rrset.type)
            if zone is not None:
                out.append((yield from self._signatures(rrset, owner, zone)))
        return out

    def _additional(self) -> Generator[Callable[[], bytes] | None, bytes | None, list[RRset]]:
        """The additional section: the first addresses with their signatures, where they are surely the zone's own."""
        section = self.answer.additional
        skipped: set[tuple[bytes, int]] = set()
        signed = 0
        for rrset in section:
            key = (rrset.owner.lower(), rrset.type)
            zone = self.plugin.zone_of(*key)
            if signed < MAX_ADDITIONAL and zone is not None and self._is_authoritative(key[0], zone):
                signed += 1
            else:
                skipped.add(key)
        return (yield from self._signed(section, skipped))

    def _is_authoritative(self, owner: bytes, zone: bytes) -> bool:
        """Whether a name's addresses are the zone's, and no glue below a delegation."""
        outcome = self.request.below(self.plugin, Question(owner, iana.A))
        return type(outcome) is Answer and _cut(outcome, self.plugin.names) == b""

    def _signatures(
        self, rrset: RRset, owner: bytes, zone: bytes
    ) -> Generator[Callable[[], bytes] | None, bytes | None, RRset]:
        """The signatures of an RRset, kept or made."""
        plugin = self.plugin
        ttl = rrset.ttl if self.answer.local else max(rrset.ttl, ORIGINAL_TTL)
        what = (zone, owner, rrset.type, ttl, rrset.rdatas)
        made = plugin.table.get(what, self.now)
        label = self.request.server.label
        if made is None:
            yield None
            made = plugin.table.get(what, self.now)  # another answer may have needed it meanwhile
        if made is None:
            MISSES.slot(label)[0] += 1
            octets = dnssec.canonical(rrset, ttl)
            inception = int(self.now) - INCEPTION
            expiration = int(self.now) + LIFE
            rdatas = []
            for i, key in enumerate(plugin.zones[zone].signers(rrset.type)):
                head = dnssec.prefix(rrset, ttl, key.algorithm, key.tag, zone, inception, expiration)
                if key.slow:
                    given = yield partial(key.sign, head + octets)
                    assert given is not None
                else:
                    if i:
                        yield None
                    given = key.sign(head + octets)
                rdatas.append(head + given)
            made = Made(tuple(rdatas), inception, expiration - RENEW)
            plugin.table.put(what, made)
        else:
            HITS.slot(label)[0] += 1
        self.renew = min(self.renew, made.renew)
        return RRset(rrset.owner, iana.RRSIG, rrset.ttl, made.rdatas)


_CUT: Final = frozenset((iana.NS,))


def _cut(answer: Answer, zones: tuple[bytes, ...]) -> bytes:
    """The name that a referral delegates; empty where the answer is none."""
    cut = b""
    for rrset in answer.authority:
        if rrset.type == iana.SOA:
            return b""
        if rrset.type == iana.NS:
            owner = rrset.owner.lower()
            if owner not in zones and closest(owner, zones) is not None:
                cut = owner
    return cut


def _synthesised(section: Sequence[RRset]) -> set[tuple[bytes, int]]:
    """The CNAMEs that a DNAME stands for: nobody signs them (RFC 6672, section 5.3.1)."""
    dnames = [rrset.owner.lower() for rrset in section if rrset.type == iana.DNAME]
    if not dnames:
        return set()
    owners = [rrset.owner.lower() for rrset in section if rrset.type == iana.CNAME]
    return {(owner, iana.CNAME) for owner in owners if any(owner != d and is_within(owner, d) for d in dnames)}


def _last(name: bytes, qtype: int, answer: Answer) -> bytes:
    """The name at the end of an answer's CNAMEs that is denied, or a type of it; empty where nothing is denied."""
    aliases: dict[bytes, bytes] = {}
    owners: set[bytes] = set()
    for rrset in answer.answer:
        owner = rrset.owner.lower()
        if rrset.type == iana.CNAME and qtype not in (iana.CNAME, iana.ANY):
            aliases[owner] = rrset.rdatas[0].lower()
        elif rrset.type not in (iana.RRSIG, iana.DNAME) or qtype in (rrset.type, iana.ANY):
            owners.add(owner)
    for _ in range(len(aliases) + 1):
        if name in owners:
            return b""
        following = aliases.get(name)
        if following is None:
            break
        name = following
    else:
        return b""  # a loop
    denied = any(rrset.type == iana.SOA for rrset in answer.authority)
    return name if denied or not answer.answer or answer.rcode == iana.NXDOMAIN else b""


def _config(directive: Directive, block: ServerBlock) -> Config:
    keys: list[KeyWord] = []
    capacity, kind, cds = DEFAULT_CAPACITY, COMPACT, False
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name == "key":
            keys += keyfiles.parse(line)
        elif name == "cache_capacity":
            capacity = readers.integer(readers.one(line, "a number of RRsets"), 0, MAX_CAPACITY)
        elif name == "denial":
            kind = readers.choice(line, (COMPACT, WHITE_LIES))
        elif name == "cds":
            readers.arguments(line, 0, 0)
            cds = True
        else:
            raise readers.unknown(line, _OPTIONS)
    if not keys:
        raise readers.fail(directive, "dnssec needs a key: key file K<name>+<alg>+<id>")
    return Config(readers.zone_names(directive.args, block), tuple(keys), capacity, kind, cds)
