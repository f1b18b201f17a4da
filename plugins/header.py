"""header - sets or clears header bits of queries and replies.

## Syntax

    header {
        query|response set|clear FLAG...
    }

* FLAG is `aa`, `ra` or `rd`. Rules are applied in order. Query rules change what later plugins and upstreams see, and
  the RD bit that the reply repeats; response rules change the reply.

## Examples

~~~ corefile
.:1053 {
    header {
        response set ra
        query clear rd
    }
    forward . 127.0.0.1:5301
}
~~~
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns.corefile import Directive
from kdns.dns import iana
from kdns.dns.answer import SHAPE_RD, Answer
from kdns.pipeline import Plugin, Request, setup
from kdns.pipeline.block import BlockKeys

_BITS: Final = {"aa": iana.AA, "ra": iana.RA, "rd": iana.RD}


@dataclass(frozen=True, slots=True)
class Config:
    """Rules in order: (set or clear, bit). In queries only RD means anything."""

    query: tuple[tuple[bool, int], ...]
    response: tuple[tuple[bool, int], ...]


class Header(Plugin):
    """Changes bits on the way in and out."""

    name: ClassVar[str] = "header"
    client_dependent = False
    finishes_denials = False

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        directive = next((each for each in directives if each.body), directives[0])
        setup.arguments(directive, 0, 0)
        rules: dict[str, list[tuple[bool, int]]] = {"query": [], "response": []}
        for line in directive.body or ():
            side = line.name.text.lower()
            if side not in rules:
                raise setup.unknown(line, ("query", "response"))
            setup.arguments(line, 2, None, "set|clear FLAG...")
            action = line.args[0]
            if action.text.lower() not in ("set", "clear"):
                raise setup.fail(action, f'expected set or clear, found "{action.text}"')
            for word in line.args[1:]:
                bit = _BITS.get(word.text.lower())
                if bit is None:
                    raise setup.fail(word, f'expected aa, ra or rd, found "{word.text}"')
                rules[side].append((action.text.lower() == "set", bit))
        if not rules["query"] and not rules["response"]:
            raise setup.fail(directive, "header needs at least one rule: query|response set|clear FLAG...")
        return [Config(tuple(rules["query"]), tuple(rules["response"]))]

    def handle(self, request: Request) -> None:
        for wanted, bit in self.config.query:
            if bit == iana.RD:
                request.shape = request.shape | SHAPE_RD if wanted else request.shape & ~SHAPE_RD

    def finish(self, request: Request, answer: Answer) -> Answer:
        flags = answer.flags
        for wanted, bit in self.config.response:
            if bit == iana.RD:
                request.shape = request.shape | SHAPE_RD if wanted else request.shape & ~SHAPE_RD
            else:
                flags = flags | bit if wanted else flags & ~bit
        return answer if flags == answer.flags else answer.replace(flags=flags)
