"""A query's bytes, read once and strictly: the question, and EDNS."""

from typing import Final

from kdns.dns import edns as _edns
from kdns.dns import iana, wire
from kdns.dns.edns import Edns
from kdns.dns.errors import FormatError
from kdns.dns.name import MAX_NAME, offsets


class Question:
    """What is asked: a lower-cased wire name, a type and a class. Never changed once made."""

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


# Plain OPTs (no options) as they came, so that one is not taken apart twice. Clients use a handful of forms;
# the bound is for those who make up new ones.
_KNOWN_OPTS: Final[dict[bytes, Edns]] = {}
_KNOWN_OPTS_MAX: Final = 256


def parse(data: bytes, more: bool = True) -> tuple[Question, int, Edns | None]:
    """The question, the offset behind it, and the OPT of a query of one question. Raises FormatError.

    `more` says whether the header claims any records behind the question.

    The header's counts are the caller's to check (server.dispatch); here the body must hold what they claim.
    A pointer in a question is an error: there is nothing before it to point to.
    """
    rest = data[12:]
    off = 0
    starts = [0]
    try:
        while length := rest[off]:
            if length > 63:
                raise FormatError("a question's name holds something other than labels")
            off += length + 1
            starts.append(off)
        question = Question(
            rest[: off + 1].lower(), rest[off + 1] << 8 | rest[off + 2], rest[off + 3] << 8 | rest[off + 4], starts
        )
    except IndexError:
        raise FormatError("the question is cut") from None
    if off >= MAX_NAME:
        raise FormatError("a question's name is over 255 octets")
    end = off + 17
    if not more:
        return question, end, None
    if data[6:12] == b"\0\0\0\0\0\1":
        known = _KNOWN_OPTS.get(data[end:])
        if known is not None:
            return question, end, known
    return question, end, _read_edns(data, end)


def _read_edns(data: bytes, off: int) -> Edns | None:
    budget = wire.Budget()
    answers, authorities, additionals = (int.from_bytes(data[i : i + 2], "big") for i in (6, 8, 10))
    for record in wire.records(data, off, answers + authorities, budget):
        off = record.end  # a query has no use for them; they must only be well-formed
    found: Edns | None = None
    for record in wire.records(data, off, additionals, budget):
        if record.type != iana.OPT:
            continue
        # RFC 6891, section 6.1.1: one OPT at most, owned by the root.
        if found is not None or record.owner != b"\0" or data[record.start] != 0:
            raise FormatError("a second OPT, or one that the root does not own")
        at = record.fixed
        found = _edns.from_record(record.cls, data[at + 4 : at + 8], data[at + 10 : record.end])
        if not found.options and record.end == len(data):
            if len(_KNOWN_OPTS) >= _KNOWN_OPTS_MAX:
                _KNOWN_OPTS.clear()
            if answers + authorities == 0 and additionals == 1:
                _KNOWN_OPTS[data[record.start :]] = found
    return found
