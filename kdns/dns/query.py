"""A query's bytes, read once and strictly: the question, and EDNS."""

from typing import Final, final

from kdns.dns import edns as _edns
from kdns.dns import iana, wire
from kdns.dns.edns import Edns
from kdns.dns.errors import FormatError
from kdns.dns.name import MAX_NAME, offsets


@final
class Question:
    """A question: a lower-cased wire name, a type and a class. Never changed once made."""

    __slots__ = ("_wire", "cls", "name", "starts", "type")

    def __init__(self, name: bytes, qtype: int, cls: int = iana.IN, starts: list[int] | None = None) -> None:
        self.name = name
        self.type = qtype
        self.cls = cls
        # Where each label of the name begins; the last entry is the root's.
        self.starts = offsets(name) if starts is None else starts
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        """The question's wire form, its name in lower case."""
        made = self._wire
        if made is None:
            made = self._wire = self.name + self.type.to_bytes(2, "big") + self.cls.to_bytes(2, "big")
        return made

    def __repr__(self) -> str:
        return f"Question({self.name!r}, {iana.type_text(self.type)}, {iana.class_text(self.cls)})"


# OPTs by their fixed part, so that one is not taken apart twice. Clients use a handful of forms; the bound is for those
# who make up new ones.
_KNOWN_OPTS: Final[dict[bytes, Edns]] = {}
_KNOWN_OPTS_MAX: Final = 256
_ONE_ADDITIONAL: Final = b"\0\0\0\0\0\1"


def parse(data: bytes, more: bool = True) -> tuple[Question, int, Edns | None, bytes]:
    """The question of a query, the offset behind it, its OPT, and the options in that. Raises FormatError.

    `more` says whether the header claims any records behind the question. The header's counts are the caller's to check
    (server.accept); here the body must hold what they claim. A pointer in a question is an error: there is nothing
    before it to point to.
    """
    off = 12
    starts = [0]
    try:
        size = data[12]
        while size:
            if size > 63:
                raise FormatError("a question's name holds something other than labels")
            off += size + 1
            starts.append(off - 12)
            size = data[off]
        question = Question(
            data[12 : off + 1].lower(), data[off + 1] << 8 | data[off + 2], data[off + 3] << 8 | data[off + 4], starts
        )
    except IndexError:
        raise FormatError("the question is truncated") from None
    if off >= MAX_NAME + 12:
        raise FormatError("a question's name is over 255 octets")
    end = off + 5
    if not more:
        return question, end, None, b""
    at = end + 11
    alone = data[6:12] == _ONE_ADDITIONAL and data[end : end + 3] == b"\0\0\x29" and len(data) >= at
    if alone and at + (data[end + 9] << 8 | data[end + 10]) == len(data):
        options = data[at:]
        if options:
            _edns.check_options(options)
        return question, end, _opt(data[end + 3 : end + 9]), options
    edns, options = _search_opt(data, end)
    return question, end, edns, options


def parse_opt(data: bytes) -> tuple[Edns | None, bytes]:
    """The OPT of a query without a question, and its options. Raises FormatError."""
    return _search_opt(data, 12)


def _opt(fixed: bytes) -> Edns:
    """The OPT with this class and TTL field, six octets."""
    known = _KNOWN_OPTS.get(fixed)
    if known is None:
        if len(_KNOWN_OPTS) >= _KNOWN_OPTS_MAX:
            del _KNOWN_OPTS[next(iter(_KNOWN_OPTS))]
        known = _KNOWN_OPTS[fixed] = Edns(
            fixed[0] << 8 | fixed[1], bool(fixed[4] & 0x80), fixed[3], bool(fixed[4] & 0x40)
        )
    return known


def readable_opt(data: bytes, end: int) -> Edns | None:
    """The OPT of a query that is not well-formed, whose question ends at `end`; None where it has no single one."""
    try:
        return _search_opt(data, end, False)[0]
    except FormatError:
        return None


def _search_opt(data: bytes, off: int, checked: bool = True) -> tuple[Edns | None, bytes]:
    """The OPT among a query's records, and its options, which may be malformed unless `checked`. Raises FormatError."""
    budget = wire.Budget()
    answers, authorities, additionals = [int.from_bytes(data[i : i + 2], "big") for i in (6, 8, 10)]
    for record in wire.records(data, off, answers + authorities, budget):
        off = record.end  # a query has no use for them; they must only be well-formed
    found: Edns | None = None
    options = b""
    for record in wire.records(data, off, additionals, budget):
        if record.type != iana.OPT:
            continue
        # RFC 6891, section 6.1.1: one OPT at most, owned by the root.
        if found is not None or record.owner != b"\0" or data[record.start] != 0:
            raise FormatError("a second OPT, or one that the root does not own")
        at = record.fixed
        options = data[at + 10 : record.end]
        if checked:
            _edns.check_options(options)
        found = _opt(data[at + 2 : at + 8])
    return found, options
