"""The words of a master file's entry, and names in it (RFC 1035, section 5.1).

An entry is a line, or several where parentheses hold them together. A word keeps its escapes; whoever reads it knows
what they mean there.
"""

import re
from typing import Final, NamedTuple, final

from kdns.dns.name import MAX_LABEL, MAX_NAME, ROOT
from kdns.zonefile.errors import BadRecord

# Octets of one word: an rdata of 65,535 octets in hex.
MAX_WORD: Final = 2 * 65535
# Words of one entry: a TXT of 65,535 octets holds half as many strings, each of one octet.
MAX_WORDS: Final = 40_000

# Groups: 1 blanks, 2 a comment, 3 the line's end, 4 a parenthesis, 5 a quoted word, 6 a bare one. Nothing is given back
# (`++`, `*+`): to be able to, the expression would hold 275 octets for each octet of a word.
_TOKEN: Final = re.compile(
    rb'([ \t\r\x0b\x0c]+)|(;[^\n]*)|(\n)|([()])|"((?:[^"\\\n]++|\\[^\n])*+)"'
    rb'|((?:[^ \t\r\x0b\x0c\n;()"\\]++|\\[^\n])++)'
)
_BLANK, _COMMENT, _END, _PAREN, _QUOTED, _BARE = range(1, 7)
LENGTH: Final = tuple([bytes((size,)) for size in range(MAX_LABEL + 1)])  # a label's first octet, by its size


class Word(NamedTuple):
    """A word as it stands, without its quotes, and the offset where it begins."""

    text: bytes
    at: int
    quoted: bool = False


@final
class Entry:
    """The words of one entry, read one after the other. `blank`: its first word is not an owner."""

    __slots__ = ("blank", "end", "i", "origin", "words")

    def __init__(self, words: list[Word], blank: bool, end: int, origin: bytes) -> None:
        self.words = words
        self.blank = blank
        self.end = end  # the offset behind the entry
        self.origin = origin
        self.i = 0

    def left(self) -> int:
        """How many words are still to be read."""
        return len(self.words) - self.i

    def peek(self) -> Word | None:
        """The next word, which stays."""
        return self.words[self.i] if self.i < len(self.words) else None

    def next(self, what: str) -> Word:
        """The next word. Raises BadRecord that says what is missing."""
        if self.i >= len(self.words):
            raise BadRecord(
                self.words[-1].at if self.words else self.end, f"expected {what}, found the end of the record"
            )
        self.i += 1
        return self.words[self.i - 1]

    def done(self) -> None:
        """Raises BadRecord where a word is left."""
        word = self.peek()
        if word is not None:
            raise BadRecord(word.at, f'unexpected "{shown(word.text)}" behind the record')


def shown(text: bytes) -> str:
    """A word for a message, shortened."""
    return text[:60].decode("utf-8", "replace") + ("..." if len(text) > 60 else "")


def split(data: bytes, at: int, origin: bytes) -> Entry:
    """The words of the entry that begins at an offset. Raises BadRecord for a quote or a parenthesis without its
    partner.
    """
    match = _TOKEN.match
    words: list[Word] = []
    open_ = -1  # where the parenthesis stands that is open
    blank = data[at : at + 1] in (b" ", b"\t")
    start, total = at, len(data)
    while at < total:
        found = match(data, at)
        if found is None:
            raise BadRecord(
                at,
                "a quote without its partner on the line" if data[at] == 0x22 else "a backslash at the end of the line",
            )
        kind = found.lastindex
        if kind in (_BARE, _QUOTED):
            text = found[kind]
            if len(text) > MAX_WORD:
                raise BadRecord(at, f"a word of {len(text)} octets, at most {MAX_WORD} are allowed")
            if len(words) >= MAX_WORDS:
                raise BadRecord(
                    start,
                    f"a record of more than {MAX_WORDS} words"
                    + (": is a parenthesis not closed?" if open_ >= 0 else ""),
                )
            words.append(Word(text, at, kind == _QUOTED))
        elif kind == _END:
            if open_ < 0:
                return Entry(words, blank, found.end(), origin)
        elif kind == _PAREN:
            if data[at] == 0x28:
                if open_ >= 0:
                    raise BadRecord(at, "a parenthesis inside parentheses")
                open_ = at
            else:
                if open_ < 0:
                    raise BadRecord(at, "a parenthesis is closed that was not opened")
                open_ = -1
        at = found.end()
    if open_ >= 0:
        raise BadRecord(open_, "a parenthesis that is not closed")
    return Entry(words, blank, total, origin)


def unescape(word: Word) -> bytes:
    """A word's octets: `\\DDD` and `\\X` resolved. Raises BadRecord."""
    text = word.text
    if b"\\" not in text:
        return text
    out = bytearray()
    i, end = 0, len(text)
    while i < end:
        octet = text[i]
        i += 1
        if octet == 0x5C:
            octet, i = _escaped(text, i, word.at)
        out.append(octet)
    return bytes(out)


def _escaped(text: bytes, i: int, at: int) -> tuple[int, int]:
    """The octet that the escape behind a backslash stands for, and the offset behind it."""
    digits = text[i : i + 3]
    if digits[:1].isdigit():
        if len(digits) < 3 or not digits.isdigit() or int(digits) > 255:
            raise BadRecord(at + i - 1, f'bad escape "\\{shown(digits)}": three digits up to 255 are expected')
        return int(digits), i + 3
    if not digits:
        raise BadRecord(at + i - 1, "a backslash at the end of a word")
    return digits[0], i + 1


def name(word: Word, origin: bytes) -> bytes:
    """The wire name of a word, letter case kept; below `origin` where no dot ends it. Raises BadRecord."""
    text = word.text
    if text == b"@" and not word.quoted:
        return origin
    if text == b".":
        return ROOT
    if b"\\" in text:
        return _escaped_name(word, origin)
    if b"." not in text and 0 < len(text) <= MAX_LABEL and len(text) + len(origin) < MAX_NAME:
        return LENGTH[len(text)] + text + origin
    if text[-1:] == b".":
        parts, tail = text[:-1].split(b"."), ROOT
    else:
        parts, tail = text.split(b"."), origin
    out = []
    for part in parts:
        size = len(part)
        if not 0 < size <= MAX_LABEL:
            raise _bad_label(word, size)
        out.append(LENGTH[size])
        out.append(part)
    out.append(tail)
    made = b"".join(out)
    if len(made) > MAX_NAME:
        raise BadRecord(word.at, f"a name of {len(made)} octets, at most {MAX_NAME} are allowed")
    return made


def _bad_label(word: Word, size: int) -> BadRecord:
    if not size:
        return BadRecord(word.at, f'empty label in name "{shown(word.text)}"')
    return BadRecord(word.at, f'label of {size} octets in name "{shown(word.text)}", at most {MAX_LABEL} are allowed')


def _escaped_name(word: Word, origin: bytes) -> bytes:
    text = word.text
    out = bytearray()
    label = bytearray()
    i, end = 0, len(text)
    tail = origin
    while i < end:
        octet = text[i]
        i += 1
        if octet == 0x2E:
            if not 0 < len(label) <= MAX_LABEL:
                raise _bad_label(word, len(label))
            out.append(len(label))
            out += label
            label.clear()
            tail = ROOT if i == end else origin
            continue
        if octet == 0x5C:
            octet, i = _escaped(text, i, word.at)
        label.append(octet)
    if label:
        if len(label) > MAX_LABEL:
            raise _bad_label(word, len(label))
        out.append(len(label))
        out += label
        tail = origin
    out += tail
    if len(out) > MAX_NAME:
        raise BadRecord(word.at, f"a name of {len(out)} octets, at most {MAX_NAME} are allowed")
    return bytes(out)
