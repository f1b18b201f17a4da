"""loadbalance - changes the order of addresses from reply to reply.

Clients mostly take the first address, so each should be first equally often.

## Syntax

    loadbalance [round_robin] {
        prefer CIDR...
    }

    loadbalance weighted FILE {
        reload DURATION
    }

* `round_robin` (default) shuffles A, AAAA and MX records; CNAMEs come first. `prefer` puts addresses in these networks
  before the others, in the order of the networks.
* `weighted` puts one address first, by chance with the weights of FILE: a line with a name, then lines of an address
  and its weight, 1 to 255; `#` begins a comment. Addresses without a line weigh 1. FILE is read again every
  `reload` (default 30s, 0 never) when it has changed; a broken one keeps the weights there were.

Of a large set some orders are kept and made anew after a while, so that shuffling costs nothing most of the time.

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
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns import log
from kdns.corefile import CorefileError, Directive, Position
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.name import from_text
from kdns.dns.rrset import RRset, Section
from kdns.pipeline import Plugin, Request, setup
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.runtime import Runtime

# Orders kept of one answer; few, as each is a rendered body.
MAX_SHUFFLED: Final = 256  # records; of more the order is turned, not shuffled: that takes half a microsecond each
ROTATIONS: Final = 8
# Uses after which an answer's orders are made anew. With more addresses than orders, all come first in time.
USES: Final = 64
DEFAULT_RELOAD: Final = 30.0
_ADDRESSES: Final = frozenset((iana.A, iana.AAAA))
_SHUFFLED: Final = frozenset((iana.A, iana.AAAA, iana.MX))

_log = log.plugin("loadbalance")
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
    client_dependent = False
    finishes_denials = False

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        directive = setup.once(directives)
        setup.arguments(directive, 0, 2)
        policy = directive.args[0].text if directive.args else "round_robin"
        weighted = ""
        if policy == "weighted":
            setup.arguments(directive, 2, 2, "weighted FILE")
            weighted = directive.args[1].text
        elif policy != "round_robin":
            raise setup.fail(directive.args[0], f'expected round_robin or weighted, found "{policy}"')
        else:
            setup.arguments(directive, 0, 1)
        prefer: list[Network] = []
        reload = DEFAULT_RELOAD
        for line in directive.body or ():
            if line.name.text == "prefer" and not weighted:
                setup.arguments(line, 1, None, "networks such as 10.0.0.0/8")
                for word in line.args:
                    try:
                        prefer.append(ipaddress.ip_network(word.text, strict=False))
                    except ValueError:
                        raise setup.fail(word, f'expected a network such as 10.0.0.0/8, found "{word.text}"') from None
            elif line.name.text == "reload" and weighted:
                reload = setup.seconds(setup.one(line, "a duration"))
            else:
                raise setup.unknown(line, ("reload",) if weighted else ("prefer",))
        return [Config(tuple(prefer), weighted, reload, directive.at)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weights: dict[bytes, dict[bytes, int]] = {}
        self.path = ""
        self.seen: tuple[int, int] | None = None
        self.task: asyncio.Task[None] | None = None
        self.uses = 0

    # Life.

    def load(self, block: Block) -> None:
        config = self.config
        if not config.weighted:
            return
        self.path = block.path(config.weighted)
        try:
            self.weights = self._read()
        except OSError as error:
            if not config.reload:
                raise CorefileError(config.at, f"plugin/loadbalance: {self.path}: {error.strerror}") from None
            _log.warning(f"Failed to open weight file {self.path}: {error.strerror}; it is tried again")
        except ValueError as error:
            raise CorefileError(config.at, f"plugin/loadbalance: {error}") from None

    async def start(self, runtime: Runtime) -> None:
        if self.path and self.config.reload:
            self.task = asyncio.create_task(self._follow(), name="loadbalance")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload)
            try:
                stat = os.stat(self.path)
                if (stat.st_mtime_ns, stat.st_size) != self.seen:
                    self.weights = self._read()
                    _log.info(f"Successfully reloaded weight file {self.path}")
            except (OSError, ValueError) as error:
                _log.error(f"{error}; the weights are kept")

    def _read(self) -> dict[bytes, dict[bytes, int]]:
        with open(self.path, encoding="utf-8") as file:
            stat = os.fstat(file.fileno())
            weights = read_weights(file.read(), self.path)
        self.seen = (stat.st_mtime_ns, stat.st_size)
        return weights

    # Answers.

    def finish(self, request: Request, answer: Answer) -> Answer:
        turns = answer.turns
        if turns is None:
            turns = self._turns(request, answer)
        if not turns:
            return answer
        if self.path:
            return self._weighted(request, answer)
        self.uses += 1
        if self.uses >= USES:
            self.uses = 0
            answer.turns = None
        return turns[int(random.random() * len(turns))]

    def _turns(self, request: Request, answer: Answer) -> Sequence[Answer]:
        """The orders of an answer, made and kept; none where there is nothing to order."""
        outline = answer.outline
        if (
            outline is not None
            and not self.config.prefer
            and (len(outline) < 2 or sum(line[1] in _SHUFFLED for line in outline) < 2)
        ):
            answer.turns = ()
            return ()
        if answer.rcode != iana.NOERROR or request.question.type in (iana.AXFR, iana.IXFR):
            answer.turns = ()
        elif not any(rrset.type in _SHUFFLED and len(rrset.rdatas) > 1 for section in answer.sections for rrset in section):
            ordered = self._prefer(answer.answer) if self.config.prefer else answer.answer
            answer.turns = () if ordered == answer.answer else (answer.replace(answer=ordered),)
        else:
            most = max(len(rrset.rdatas) for rrset in answer.answer) if answer.answer else 2
            answer.turns = tuple(self._turn(answer, i) for i in range(min(most, ROTATIONS)))
        return answer.turns

    def _turn(self, answer: Answer, i: int) -> Answer:
        made = [tuple(self._shuffled(rrset, i) for rrset in _cnames_first(section)) for section in answer.sections]
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
        sections = [tuple(_drawn(rrset, weights) for rrset in section) for section in answer.sections]
        return answer.replace(answer=sections[0], authority=sections[1], additional=sections[2])


def _cnames_first(section: Section) -> Section:
    return tuple(sorted(section, key=lambda rrset: rrset.type != iana.CNAME))


def _drawn(rrset: RRset, weights: dict[bytes, int]) -> RRset:
    if rrset.type not in _ADDRESSES or len(rrset.rdatas) < 2:
        return rrset
    rdatas = list(rrset.rdatas)
    at = random.choices(range(len(rdatas)), [weights.get(packed, 1) for packed in rdatas])[0]
    rdatas[0], rdatas[at] = rdatas[at], rdatas[0]
    return rrset._replace(rdatas=tuple(rdatas))


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
            current[ipaddress.ip_address(words[0]).packed] = weight
        except (ValueError, BadName) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return out
