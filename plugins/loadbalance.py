"""loadbalance - changes the order of addresses from reply to reply.

Most clients use the first address, so each address should be first equally often.

## Syntax

    loadbalance [round_robin] {
        prefer CIDR...
    }

    loadbalance weighted FILE {
        reload DURATION
    }

* `round_robin` (default) shuffles A, AAAA and MX records. `prefer` puts addresses in these networks before the others,
  in the order of the networks.
* `weighted` chooses the first address at random by the weights in FILE: a line with a name, then lines with an address
  and its weight, 1 to 255. `#` starts a comment. An address that is not listed has weight 1. FILE is checked for
  changes every `reload` (default 30s, 0: never). If the new file is invalid, the old weights stay.

CNAME and DNAME records always come first. For a large RRset a few orders are prepared and renewed from time to time,
so shuffling usually costs nothing.

## Examples

~~~ corefile
.:1053 {
    loadbalance round_robin {
        prefer 10.0.0.0/8
    }
    whoami
}
~~~
"""

import asyncio
import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, NamedTuple

from kdns import faults, log, watchfile
from kdns.address import unmapped
from kdns.corefile import CorefileError, Directive, Position, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import FOREVER, Answer
from kdns.dns.errors import BadName
from kdns.dns.name import from_text
from kdns.dns.render import RecordSummary
from kdns.dns.rrset import RRset, Section
from kdns.plugin import Plugin, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.runtime import Runtime

# Orders kept of one answer; few, as each is a rendered body.
MAX_SHUFFLED: Final = 256  # records; of more the order is turned, not shuffled: that takes half a microsecond each
ROTATIONS: Final = 8
RENEWED: Final = 1.0  # seconds after which the orders of a large set are made anew
DEFAULT_RELOAD: Final = 30.0
MAX_FILE: Final = 4 << 20  # octets; a line has some 20
_ADDRESSES: Final = frozenset((iana.A, iana.AAAA))
_SHUFFLED: Final = frozenset((iana.A, iana.AAAA, iana.MX))
# What leads to another name. A DNAME stays before the CNAME that is made of it (RFC 6672, section 3.1): a validator
# that meets it later passes it over, and is left with a CNAME that nothing proves.
_ALIASES: Final = frozenset((iana.CNAME, iana.DNAME))

_log = log.plugin("loadbalance")


class Shuffled(NamedTuple):
    """An answer with its orders (None: it has but one), and until when it is given out (monotonic seconds)."""

    answer: Answer | None
    until: float


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Config:
    """`weighted`: the file with weights, or empty for round_robin; `reload` in seconds."""

    prefer: tuple[Network, ...] = ()
    weighted: str = ""
    reload: float = DEFAULT_RELOAD
    at: Position | None = None


class Loadbalance(Plugin):
    """Finishes answers with more than one address."""

    name: ClassVar[str] = "loadbalance"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 2)
        policy = directive.args[0].text if directive.args else "round_robin"
        weighted = ""
        if policy == "weighted":
            readers.arguments(directive, 2, 2, "weighted FILE")
            weighted = directive.args[1].text
        elif policy != "round_robin":
            raise readers.fail(directive.args[0], f'expected round_robin or weighted, found "{policy}"')
        else:
            readers.arguments(directive, 0, 1)
        prefer: list[Network] = []
        reload = DEFAULT_RELOAD
        for line in directive.body or ():
            if line.name.text == "prefer" and not weighted:
                readers.arguments(line, 1, None, "networks such as 10.0.0.0/8")
                for word in line.args:
                    try:
                        prefer.append(ipaddress.ip_network(word.text, strict=False))
                    except ValueError:
                        raise readers.fail(
                            word, f'expected a network such as 10.0.0.0/8, found "{word.text}"'
                        ) from None
            elif line.name.text == "reload" and weighted:
                reload = readers.seconds(readers.one(line, "a duration"))
            else:
                raise readers.unknown(line, ("reload",) if weighted else ("prefer",))
        return [Config(tuple(prefer), weighted, reload, directive.at)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weights: dict[bytes, dict[bytes, int]] = {}
        self.path = ""
        self.follower: watchfile.Follower | None = None
        self.task: asyncio.Task[None] | None = None
        self.pure = not config.weighted  # chance decides for each query

    # Life.

    def load(self, block: BlockInfo) -> None:
        config = self.config
        if not config.weighted:
            return
        self.path = block.path(config.weighted)
        path = self.path
        self.follower = watchfile.Follower(path, lambda: (path,), most=MAX_FILE, keep=MAX_FILE)
        for change in self.follower.look():
            if change.error is None:
                try:
                    self.weights = _weights(change)
                except ValueError as error:
                    raise CorefileError(config.at, f"plugin/loadbalance: {error}") from None
            elif not config.reload:
                raise CorefileError(config.at, f"plugin/loadbalance: {path}: {change.error.strerror}")
            else:
                _log.warning(f"Failed to open weight file {path}: {change.error.strerror}; it is tried again")

    async def start(self, runtime: Runtime) -> None:
        if self.follower is not None and self.config.reload:
            follow = partial(self.follower.follow, self.config.reload, self._changed)
            self.task = asyncio.create_task(faults.supervise("plugin/loadbalance", follow), name="loadbalance")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None

    async def _changed(self, found: Sequence[watchfile.Change]) -> None:
        for change in found:
            try:
                self.weights = _weights(change)
                _log.info(f"Successfully reloaded weight file {self.path}")
            except (OSError, ValueError) as error:
                _log.error(f"{error}; the weights are kept")

    # Answers.

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        if self.path:
            return self._weighted(request, answer)
        if answer.rcode != iana.NOERROR or request.question.type in (iana.AXFR, iana.IXFR):
            return answer
        memo = answer.memo
        if memo is not None and memo[0] is self:
            made: Shuffled = memo[1]
            if request.now >= made.until:
                made = self._shuffle(answer, request.asked.name, request.now)
                answer.memo = (self, made)
        else:
            made = self._shuffle(answer, request.asked.name, request.now)
            answer.memo = (self, made)
        if made.until != FOREVER:
            request.expires(made.until)
        return made.answer or answer

    def _shuffle(self, answer: Answer, name: bytes, now: float) -> Shuffled:
        """An answer with the orders its records may have, if there is something to order."""
        prefer = bool(self.config.prefer)
        summary = answer.summary
        if summary is not None and not prefer and not _may_be_ordered(summary):
            return Shuffled(None, FOREVER)
        body = answer.rendered(name)
        run = body.address_run() if not prefer and body.counts[1] == 0 == body.counts[2] else None
        if run is not None:
            start, count, size = run
            if count > MAX_SHUFFLED:
                turns = [random.randrange(count) for _ in range(ROTATIONS)]
                bodies = [body.turned(start, size, count, at) for at in turns]
            else:
                bodies = [body.with_addresses(start, size, order) for order in _orders(count)]
            rotations = [answer.with_body(each, answer.flags) for each in bodies]
        else:
            counts = [len(rrset.rdatas) for section in answer.sections for rrset in section if rrset.type in _SHUFFLED]
            count = max(counts, default=0)
            if count < 2:
                ordered = _aliases_first(self._prefer(answer.answer) if prefer else answer.answer)
                if ordered == answer.answer:
                    return Shuffled(None, FOREVER)
                return Shuffled(answer.replace(answer=ordered, validity=answer.validity), FOREVER)
            rotations = [self._rotation(answer, i) for i in range(min(count, ROTATIONS))]
        made = answer.replace(validity=answer.validity)
        made.rotations = rotations
        # With more records than orders, the orders are made anew each second: then all come first in time.
        return Shuffled(made, FOREVER if count <= ROTATIONS else now + RENEWED)

    def _rotation(self, answer: Answer, i: int) -> Answer:
        made = [tuple(self._shuffled(rrset, i) for rrset in _aliases_first(section)) for section in answer.sections]
        if self.config.prefer:
            made[0] = self._prefer(made[0])
        return answer.replace(answer=made[0], authority=made[1], additional=made[2])

    def _shuffled(self, rrset: RRset, i: int) -> RRset:
        count = len(rrset.rdatas)
        if rrset.type not in _SHUFFLED or count < 2:
            return rrset
        if count > MAX_SHUFFLED:
            at = random.randrange(count)
            return rrset._replace(rdatas=rrset.rdatas[at:] + rrset.rdatas[:at])
        rdatas = list(rrset.rdatas)
        if count <= ROTATIONS:
            # Each is first in exactly one of the orders.
            first = rdatas.pop(i % count)
            random.shuffle(rdatas)
            rdatas.insert(0, first)
        else:
            random.shuffle(rdatas)
        return rrset._replace(rdatas=tuple(rdatas))

    def _prefer(self, section: Section) -> Section:
        return tuple(
            rrset._replace(rdatas=tuple(sorted(rrset.rdatas, key=self._rank))) if rrset.type in _ADDRESSES else rrset
            for rrset in section
        )

    def _rank(self, packed: bytes) -> int:
        address = ipaddress.ip_address(packed)
        for rank, network in enumerate(self.config.prefer):
            if address in network:
                return rank
        return len(self.config.prefer)

    def _weighted(self, request: Request, answer: Answer) -> Answer:
        if request.question.type not in (iana.A, iana.AAAA, iana.SRV):
            return answer
        weights = self.weights.get(request.question.name)
        if weights is None:
            return answer
        sections = [tuple(_drawn(rrset, weights) for rrset in _aliases_first(section)) for section in answer.sections]
        return answer.replace(answer=sections[0], authority=sections[1], additional=sections[2])


def _may_be_ordered(summary: list[RecordSummary]) -> bool:
    """Whether records may have another order: two of a type that is shuffled, or an alias that is not the first."""
    if len(summary) < 2:
        return False
    seen = 0
    for i, record in enumerate(summary):
        rtype = record.type
        if rtype in _ALIASES:
            if i and summary[i - 1].type not in _ALIASES:
                return True
        elif rtype in _SHUFFLED:
            if seen >> rtype & 1:
                return True
            seen |= 1 << rtype
    return False


def _orders(count: int) -> list[list[int]]:
    """Orders of so many records. Of a few each is first in exactly one of them."""
    orders = []
    for i in range(min(count, ROTATIONS)):
        order = list(range(count))
        if count <= ROTATIONS:
            del order[i]
            random.shuffle(order)
            order.insert(0, i)
        else:
            random.shuffle(order)
        orders.append(order)
    return orders


def _aliases_first(section: Section) -> Section:
    return tuple(sorted(section, key=lambda rrset: rrset.type not in _ALIASES))


def _drawn(rrset: RRset, weights: dict[bytes, int]) -> RRset:
    if rrset.type not in _ADDRESSES or len(rrset.rdatas) < 2:
        return rrset
    rdatas = list(rrset.rdatas)
    at = random.choices(range(len(rdatas)), [weights.get(packed, 1) for packed in rdatas])[0]
    rdatas[0], rdatas[at] = rdatas[at], rdatas[0]
    return rrset._replace(rdatas=tuple(rdatas))


def _weights(change: watchfile.Change) -> dict[bytes, dict[bytes, int]]:
    """Raises OSError or ValueError."""
    if change.error is not None:
        raise change.error
    return read_weights((change.data or b"").decode(), change.path)


def read_weights(text: str, path: str) -> dict[bytes, dict[bytes, int]]:
    """The weights of a file: by lower-cased wire name, by packed address. Raises ValueError with file and line."""
    out: dict[bytes, dict[bytes, int]] = {}
    current: dict[bytes, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if len(words) == 1:
                current = out.setdefault(from_text(words[0]).lower(), {})
                continue
            if len(words) != 2 or current is None:
                raise ValueError("expected a name, or an address and a weight below one")
            weight = int(words[1])
            if not 1 <= weight <= 255:
                raise ValueError(f"weight {weight} is not within 1 to 255")
            current[unmapped(ipaddress.ip_address(words[0]).packed)] = weight
        except (ValueError, BadName) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return out
