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

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import REPLY_RD, Answer
from kdns.plugin import Plugin, Request, readers

_BITS: Final = {"aa": iana.AA, "ra": iana.RA, "rd": iana.RD}


@dataclass(frozen=True, slots=True)
class Config:
    """Rules in order: (set or clear, bit). In queries only RD means anything."""

    query: tuple[tuple[bool, int], ...]
    response: tuple[tuple[bool, int], ...]


class Header(Plugin):
    """Changes bits on the way in and out."""

    name: ClassVar[str] = "header"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = next((each for each in directives if each.body), directives[0])
        readers.arguments(directive, 0, 0)
        rules: dict[str, list[tuple[bool, int]]] = {"query": [], "response": []}
        for line in directive.body or ():
            side = line.name.text.lower()
            if side not in rules:
                raise readers.unknown(line, ("query", "response"))
            readers.arguments(line, 2, None, "set|clear FLAG...")
            action = line.args[0]
            if action.text.lower() not in ("set", "clear"):
                raise readers.fail(action, f'expected set or clear, found "{action.text}"')
            for word in line.args[1:]:
                bit = _BITS.get(word.text.lower())
                if bit is None:
                    raise readers.fail(word, f'expected aa, ra or rd, found "{word.text}"')
                rules[side].append((action.text.lower() == "set", bit))
        if not rules["query"] and not rules["response"]:
            raise readers.fail(directive, "header needs at least one rule: query|response set|clear FLAG...")
        return [Config(tuple(rules["query"]), tuple(rules["response"]))]

    def handle(self, request: Request) -> None:
        for wanted, bit in self.config.query:
            if bit == iana.RD:
                request.reply_flags = request.reply_flags | REPLY_RD if wanted else request.reply_flags & ~REPLY_RD

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        flags = answer.flags
        for wanted, bit in self.config.response:
            if bit == iana.RD:
                request.reply_flags = request.reply_flags | REPLY_RD if wanted else request.reply_flags & ~REPLY_RD
            else:
                flags = flags | bit if wanted else flags & ~bit
        return answer if flags == answer.flags else answer.replace(flags=flags, validity=answer.validity)
