"""minimal - leaves out what clients do not need.

Positive answers lose their authority and additional sections. Denials, errors and delegations stay as they are.

## Syntax

    minimal

## Examples

~~~ corefile
.:1053 {
    minimal
    forward . 127.0.0.1:5301
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.plugin import Plugin, Request, readers


class Minimal(Plugin):
    """Finishes answers without the sections that are not asked for."""

    name: ClassVar[str] = "minimal"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[None]:
        readers.bare(readers.once(directives))
        return [None]

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        body = answer.body
        if answer.rcode != iana.NOERROR or (body is not None and not (body.counts[1] or body.counts[2])):
            return answer
        if not answer.answer or not (answer.authority or answer.additional):
            return answer
        return answer.replace(authority=(), additional=(), validity=answer.validity)
