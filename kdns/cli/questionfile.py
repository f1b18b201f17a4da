"""Files of questions: what a file is, is told by its first octets.

A text has a question a line: `NAME [TYPE]` (dnsperf's form), or lines of the plugin `log` (CoreDNS's and ours, text or
JSON). Lines that hold no question are counted, and a file with more lines that are not even text than questions is
refused: what looks like a name in it is one by accident. Frame Streams of dnstap begin with four octets of zero, which
no text does. A file is read piece by piece, and no further than LARGEST.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from kdns.cli.questions import Asked
from kdns.dns import dnstap, iana
from kdns.dns.errors import BadName, FormatError
from kdns.dns.name import to_text
from kdns.dns.query import parse

LARGEST: Final = 256 << 20  # octets read of a file: some 2 million lines or messages, which take half a minute
_PIECE: Final = 64 << 10  # octets read of a text at once; a longer line has no question
_SHOWN: Final = 100  # octets of such a line that are looked at
_LOGGED: Final = re.compile(r'"([A-Z0-9]+) IN (\S+) (?:udp|tcp|dns|tls|https) ')
_TRANSFERS: Final = frozenset(("AXFR", "IXFR", "ANY"))  # not questions with one answer
_RESPONSE: Final = 0x80  # QR, of a header's third octet
_OPCODE: Final = 0x78
# First octets of files that are often met, and what opens them.
_KNOWN: Final = (
    (b"\x1f\x8b", "is compressed by gzip: unpack it first, gzip -dc FILE | kdns compare ... --file -"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first, zstd -dc FILE | kdns compare ... --file -"),
    (b"\xd4\xc3\xb2\xa1", "is a packet capture: kdns reads dnstap, logs, and lines of NAME TYPE"),
    (b"\x0a\x0d\x0d\x0a", "is a packet capture: kdns reads dnstap, logs, and lines of NAME TYPE"),
)


def of_file(file: BinaryIO, name: str, note: Callable[[str], None]) -> Iterator[Asked]:
    """The questions of a file, as often as they are in it; `note` is told what was left out. Raises OSError or
    FormatError.
    """
    source = _Source(file)
    for start, said in _KNOWN:
        if source.head.startswith(start):
            raise FormatError(f"{name} {said}")
    if source.head == dnstap.MARK:
        yield from _of_dnstap(source, name, note)
    else:
        yield from _of_text(source, name, note)
    if source.is_cut():
        note(f"{name} is larger than {LARGEST >> 20} MiB: the rest of it was not read")


class _Source:
    """A file that may be looked at before it is read, with an end at LARGEST."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = LARGEST
        self.head = b""
        self.head = self.read(4)

    def read(self, size: int) -> bytes:
        """The next octets, fewer at the end."""
        held, self.head = self.head[:size], self.head[size:]
        data = held + self.file.read(min(size - len(held), self.left))
        self.left -= len(data) - len(held)
        return data

    def is_cut(self) -> bool:
        """Whether there is more than was read."""
        return not self.left and bool(self.file.read(1))


class Tally:
    """What the lines of a file were: questions, or none; `binary`, of the latter: not text."""

    def __init__(self) -> None:
        self.questions = 0
        self.skipped = 0
        self.binary = 0


def _of_text(source: _Source, name: str, note: Callable[[str], None]) -> Iterator[Asked]:
    tally = Tally()
    yield from of_lines(_lines(source), tally)
    skipped = f"{tally.skipped} line{' was' if tally.skipped == 1 else 's were'} skipped"
    if tally.binary > tally.questions:
        lines = f"{tally.binary} line{' is' if tally.binary == 1 else 's are'}"
        raise FormatError(f"{name} is neither a text with questions nor dnstap: {lines} not text")
    if tally.skipped and not tally.questions:
        raise FormatError(f"{name} has no questions: {skipped}; a line is NAME [TYPE], or one of the plugin log")
    if tally.skipped:
        note(f"{name}: {skipped}, without a question in {'it' if tally.skipped == 1 else 'them'}")


def _lines(source: _Source) -> Iterator[str]:
    """The lines; one that is too long has its beginning only, and a character that no question has."""
    rest, too_long = b"", False
    while piece := source.read(_PIECE):
        first, *others = piece.split(b"\n")
        for line in others:
            yield (rest if too_long else rest + first).decode(errors="replace")
            first, rest, too_long = line, b"", False
        if not too_long:
            rest += first
        if len(rest) > _PIECE:
            rest, too_long = b"\0" + rest[:_SHOWN], True
    if rest:
        yield rest.decode(errors="replace")


def of_lines(lines: Iterable[str], tally: Tally | None = None) -> Iterator[Asked]:
    """The questions of a file's lines; what is none is passed over, and counted where it is no comment either."""
    tally = tally or Tally()
    for line in lines:
        found = _LOGGED.search(line.replace('\\"', '"'))
        words = line.split()
        if found is None and (not words or words[0][0] in "#;"):
            continue
        each = Asked(found[2], found[1]) if found is not None else _of_words(words)
        if each is None or not _is_asked(each):
            tally.skipped += 1
            tally.binary += not _is_text("".join(words))
            continue
        tally.questions += 1
        yield each


def _of_words(words: list[str]) -> Asked | None:
    if len(words) > 2 or words[0][0] in "[{" or not _is_text(words[0]):
        return None
    return Asked(words[0].rstrip(".") + ".", (words[1] if len(words) > 1 else "A").upper())


def _is_asked(each: Asked) -> bool:
    """Whether it is a question with one answer."""
    if each.type in _TRANSFERS:
        return False
    try:
        each.question()
    except (BadName, ValueError):
        return False
    return True


def _is_text(word: str) -> bool:
    """False for what a binary file has between two spaces."""
    return word.isprintable() and "\ufffd" not in word


def _of_dnstap(source: _Source, name: str, note: Callable[[str], None]) -> Iterator[Asked]:
    """The questions of a dnstap stream. What clients sent as queries and are none is passed over."""
    queries = empty = 0
    try:
        for message in dnstap.queries(source.read):
            queries += 1
            empty += not message
            each = _of_message(message)
            if each is not None:
                yield each
    except dnstap.Truncated as error:
        if not queries:
            raise FormatError(f"{name}: {error}") from None
        if source.left:  # else the end is ours
            note(f"{name}: {error}: the {queries} queries before it are used")
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
    if queries and empty == queries:
        raise FormatError(
            f"{name}: none of its {queries} queries has its message: log them whole, with CoreDNS by `dnstap ... full`"
        )


def _of_message(data: bytes) -> Asked | None:
    """The question of a query; None where it has not one, of the Internet class, with one answer."""
    if len(data) < 12 or data[2] & (_RESPONSE | _OPCODE) or data[4:6] != b"\0\1":
        return None
    try:
        question = parse(data, more=False)[0]
    except FormatError:
        return None
    each = Asked(to_text(question.name), iana.type_text(question.type))
    return each if question.cls == iana.IN and each.type not in _TRANSFERS else None
