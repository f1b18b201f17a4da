"""An answer: a response code, header flags and three sections. Immutable, and rendered at most once.

A reply is `header + question as asked + body + OPT`. The body (`kdns.dns.render.Body`) is everything between question
and OPT. Its compression pointers lead into itself or into the question, so a body fits one question name only; or, for
a negative answer of ours, every name of one length below one zone (`negative`). The header's words depend on three bits
of the query (RD, CD, EDNS or not) and are kept with the answer. So a hit costs a join of five byte strings.

An answer is made of sections (ours), or of a body cut out of an upstream's message (`kdns.dns.message`). Each form is
made from the other when it is first asked for.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from kdns.dns import iana, rdata
from kdns.dns.render import Body, RecordSummary, decode, render
from kdns.dns.rrset import RRset, Section

# The three bits of a query that change a reply's header, as an index into Answer.heads.
REPLY_RD: Final = 1
REPLY_CD: Final = 2
REPLY_EDNS: Final = 4
_NO_HEADS: Final[tuple[None, ...]] = (None,) * 8
_head: Final = struct.Struct("!HHHHH").pack
FOREVER: Final = float("inf")


@final
class Validity:
    """The validity of an answer: until its owner ends it, and until a moment on the monotonic clock.

    The table that holds an answer owns its validity and ends it when the answer is replaced or dropped. `ages`: every
    TTL of the answer is the number of whole seconds left until `until`, and at least 1.
    """

    __slots__ = ("ages", "until", "valid")

    def __init__(self, until: float = FOREVER, ages: bool = False) -> None:
        self.valid = True
        self.until = until
        self.ages = ages

    def end(self) -> None:
        """Ends the validity: answers with it must not be served any more."""
        self.valid = False


@final
class Answer:
    """A response code, header flags and three sections. Immutable, but for what it remembers of its rendering.

    `flags` are the AA, TC, RA and AD bits of the header. `local` marks our own data: no cache stores it. `options` are
    EDNS options (wire form) for clients that use EDNS. `name` is the lower-cased name that `body` was rendered for; an
    empty one means that whoever made the answer vouches that the body fits. `validity` says how long the same question
    may get the same answer; None: this once. `rotations` are the orders its records may have, each an Answer; the
    server draws one for each reply.
    """

    __slots__ = (
        "_sections",
        "body",
        "flags",
        "heads",
        "local",
        "memo",
        "name",
        "options",
        "rcode",
        "rotations",
        "summary",
        "validity",
    )

    def __init__(
        self,
        rcode: int = iana.NOERROR,
        flags: int = 0,
        answer: Iterable[RRset] = (),
        authority: Iterable[RRset] = (),
        additional: Iterable[RRset] = (),
        *,
        local: bool = False,
        options: bytes = b"",
        name: bytes = b"",
        body: Body | None = None,
        validity: Validity | None = None,
    ) -> None:
        self.rcode = rcode
        self.flags = flags
        self.local = local
        self.options = options
        self.name = name
        self.body = body
        self.validity = validity
        self.heads: Sequence[bytes | None] = _NO_HEADS
        self.rotations: Sequence[Answer] = ()
        # What a plugin worked out from this answer, beside the plugin: (plugin, value). Whoever finds another's,
        # ignores it.
        self.memo: tuple[Any, Any] | None = None
        # Of an upstream's message: its records section by section, as they were found when it was read.
        self.summary: list[RecordSummary] | None = None
        self._sections: tuple[Section, Section, Section] | None = None
        if body is None:
            self._sections = (tuple(answer), tuple(authority), tuple(additional))

    @property
    def sections(self) -> tuple[Section, Section, Section]:
        """The answer, authority and additional sections, decoded from the body when first asked for."""
        known = self._sections
        if known is None:
            assert self.body is not None
            known = self._sections = decode(self.name, self.body)
        return known

    @property
    def answer(self) -> Section:
        """The answer section."""
        return self.sections[0]

    @property
    def authority(self) -> Section:
        """The authority section."""
        return self.sections[1]

    @property
    def additional(self) -> Section:
        """The additional section."""
        return self.sections[2]

    def records(self) -> tuple[list[RecordSummary], list[RecordSummary], list[RecordSummary]]:
        """The records of the three sections in summary. Where a message was read this decodes nothing."""
        summary = self.summary
        if summary is not None and self.body is not None:
            an, ns, _ = self.body.counts
            return summary[:an], summary[an : an + ns], summary[an + ns :]
        sections = self.sections
        return _summary(sections[0]), _summary(sections[1]), _summary(sections[2])

    def replace(
        self,
        *,
        rcode: int | None = None,
        flags: int | None = None,
        answer: Iterable[RRset] | None = None,
        authority: Iterable[RRset] | None = None,
        additional: Iterable[RRset] | None = None,
        options: bytes | None = None,
        local: bool | None = None,
        validity: Validity | None = None,
    ) -> "Answer":
        """A copy with these parts changed; the body is kept where no section changes.

        A copy has no validity unless one is given. `validity=answer.validity` passes it on: right where the copy
        depends on nothing but the answer.
        """
        same = answer is None and authority is None and additional is None
        new = Answer(
            self.rcode if rcode is None else rcode,
            self.flags if flags is None else flags,
            local=self.local if local is None else local,
            options=self.options if options is None else options,
            name=self.name,
            body=self.body if same else None,
            validity=validity,
        )
        if same:
            new._sections = self._sections
        else:
            old = self.sections
            new._sections = (
                old[0] if answer is None else tuple(answer),
                old[1] if authority is None else tuple(authority),
                old[2] if additional is None else tuple(additional),
            )
        return new

    def with_body(self, body: Body, flags: int, validity: Validity | None = None) -> "Answer":
        """A copy with another body of the same records (other TTLs, another order) and other flags."""
        new = Answer(
            self.rcode, flags, local=self.local, options=self.options, name=self.name, body=body, validity=validity
        )
        new.summary = self.summary
        return new

    def rendered(self, name: bytes) -> Body:
        """The body for a question of this lower-cased name. Rendered when first asked for, and kept."""
        body = self.body
        if body is None:
            self.name = name
            body = self.body = render(name, self.sections)
        elif self.name != name and self.name:
            return render(name, self.sections)
        return body

    def head(self, reply_flags: int, body: Body) -> bytes:
        """The reply header's flags and counts, ten octets, for a query with these bits (REPLY_*)."""
        made = self.heads[reply_flags]
        if made is None:
            made = pack_head(self.flags, self.rcode, reply_flags, body.counts)
            heads = self.heads
            self.heads = (*heads[:reply_flags], made, *heads[reply_flags + 1 :])
        return made


def _summary(section: Section) -> list[RecordSummary]:
    return [
        RecordSummary(rrset.owner.lower(), rrset.type, rrset.ttl, data.lower() if rrset.type == iana.CNAME else b"")
        for rrset in section
        for data in rrset.rdatas
    ]


def pack_head(flags: int, rcode: int, reply_flags: int, counts: tuple[int, int, int]) -> bytes:
    """Header octets 2 to 12 of a reply: QR and the flags, RD and CD as the query had them, one question, counts."""
    if rcode > 15 and not reply_flags & REPLY_EDNS:
        rcode = (
            iana.SERVFAIL
        )  # its upper bits are in the OPT (RFC 6891, section 6.1.3): the lower alone say something else
    word = iana.QR | flags | (rcode & 15)
    if reply_flags & REPLY_RD:
        word |= iana.RD
    if reply_flags & REPLY_CD:
        word |= iana.CD
    an, ns, ar = counts
    return _head(word, 1, an, ns, ar + (1 if reply_flags & REPLY_EDNS else 0))


def negative(
    name: bytes,
    zone: bytes,
    rcode: int,
    flags: int,
    ttl: int,
    soa_rdata: bytes,
    validity: Validity | None = None,
    signed: Section = (),
) -> Answer:
    """A negative answer of ours with the zone's SOA (RFC 2308, section 3) and perhaps its signatures, rendered for all
    names of this length in the zone.

    Its `name` is empty: the caller vouches that it is used for such names only. Its pointers lead into the zone's own
    suffix of the question and nowhere else, since that is all that these names share.
    """
    authority = (RRset(zone, iana.SOA, ttl, (soa_rdata,)), *signed)
    made = Answer(rcode, flags, (), authority, (), local=True, validity=validity)
    made.body = render(name, made.sections, zone)
    return made


def with_cname_prefix(name: bytes, target: bytes, body: Body, most: int) -> Body | None:
    """The body for a question of `name`: a CNAME to `target`, then the addresses that `body` has for a question of
    that.

    The TTL of the CNAME is the least of theirs and `most`. None where the body holds anything else, or names them
    otherwise than by a pointer to the question: then it takes a rendering. The result is what that would give, for a
    fifth of the time.
    """
    count = body.counts[0]
    if not count or body.counts[1] or body.counts[2]:
        return None
    given = body.data
    data = bytearray(given)
    pointer = (0xC000 | 12 + len(name) + 4 + 12).to_bytes(2, "big")  # where the target stands in the CNAME
    ttl = most
    start = 0
    for at, end in zip(body.ttls, body.ends, strict=True):
        if at != start + 6 or given[start : start + 6] not in _ADDRESS_AT_QUESTION:
            return None
        ttl = min(ttl, int.from_bytes(given[at : at + 4], "big"))
        data[start : start + 2] = pointer
        start = end
    alias = b"\xc0\x0c\0\5\0\1" + ttl.to_bytes(4, "big") + len(target).to_bytes(2, "big") + target
    size = len(alias)
    ends, ttls = [size, *(end + size for end in body.ends)], [6, *(at + size for at in body.ttls)]
    return Body(alias + bytes(data), (1 + count, 0, 0), ends, ttls)


# The first octets of an address record of the question's name, in class IN.
_ADDRESS_AT_QUESTION: Final = (b"\xc0\x0c\0\1\0\1", b"\xc0\x0c\0\x1c\0\1")
assert rdata.FIXED[iana.A] == 4
