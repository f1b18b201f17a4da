"""minimal - leaves out sections that clients do not need.

Positive answers lose their authority and additional sections. Denials, errors and delegations are not changed.

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
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.rrset import RRset
from kdns.plugin import Plugin, Request, readers

NSEC3: Final = 50


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
        proofs = [rrset for rrset in answer.authority if proves(rrset)]
        return answer.replace(authority=proofs, additional=(), validity=answer.validity)


def proves(rrset: RRset) -> bool:
    """True if an RRset is part of a proof: without that of a wildcard's answer validators take it for a forgery (RFC
    4035, 5.3.4).
    """
    if rrset.type == iana.RRSIG:
        return any(data[:2] in (b"\0\x2f", b"\0\x32") for data in rrset.rdatas)
    return rrset.type in (iana.NSEC, NSEC3)
