"""$GENERATE: one line that stands for many records, counted by a number (BIND's directive).

    $GENERATE START-STOP[/STEP] OWNER [TTL] [CLASS] TYPE RDATA...

`$` is the number, `${OFFSET[,WIDTH[,BASE]]}` the number and an offset, padded to a width, in base d, o, x, X, or as
nibbles n, N; `$$` and `\\$` are a dollar.
"""

import re
from collections.abc import Iterator
from typing import Final

from kdns.zonefile.errors import BadRecord
from kdns.zonefile.words import Entry, Word, shown

MAX_STEPS: Final = 65_536  # of one directive
MAX_GENERATED: Final = 1 << 20  # records of all directives of a zone
_RANGE: Final = re.compile(rb"([0-9]{1,9})-([0-9]{1,9})(?:/([0-9]{1,9}))?")
_DOLLAR: Final = re.compile(rb"\\\$|\$\$|\$\{([^}]*)\}|\$")
_FORM: Final = re.compile(rb"([+-]?[0-9]{1,9})(?:,([0-9]{1,3})(?:,([doxXnN]))?)?")
_FORMATS: Final = {b"d": "d", b"o": "o", b"x": "x", b"X": "X"}


def expanded(entry: Entry) -> Iterator[Entry]:
    """The entries that the words behind $GENERATE stand for. Raises BadRecord."""
    span = entry.next("a range such as 1-10")
    found = _RANGE.fullmatch(span.text)
    if found is None:
        raise BadRecord(span.at, f'expected a range such as 1-10 or 1-10/2, found "{shown(span.text)}"')
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if first > last or not step:
        raise BadRecord(span.at, f'the range "{shown(span.text)}" leads nowhere')
    if (last - first) // step >= MAX_STEPS:
        raise BadRecord(span.at, f"a range of more than {MAX_STEPS} steps")
    words = entry.words[entry.i :]
    if len(words) < 3:
        raise BadRecord(span.at, "expected an owner, a type and data behind the range")
    if words[0].text.startswith(b"$INCLUDE"):
        raise BadRecord(words[0].at, "$GENERATE makes records, no directives")
    for number in range(first, last + 1, step):
        made = [Word(_counted(word, number), word.at, word.quoted) for word in words]
        yield Entry(made, False, entry.end, entry.origin)


def _counted(word: Word, number: int) -> bytes:
    def put(found: re.Match[bytes]) -> bytes:
        text = found[0]
        if text == b"\\$" or text == b"$$":
            return b"$"
        form = found[1]
        if form is None:
            return str(number).encode()
        read = _FORM.fullmatch(form)
        if read is None or int(read[2] or 0) > 255:
            raise BadRecord(word.at, f'expected ${{OFFSET,WIDTH,BASE}}, found "${{{shown(form)}}}"')
        value, width, base = number + int(read[1]), int(read[2] or 0), read[3] or b"d"
        if value < 0:
            raise BadRecord(word.at, f"the offset makes {number} negative")
        if base in (b"n", b"N"):
            digits = f"{value:0{max((width + 1) // 2, 1)}{'x' if base == b'n' else 'X'}}"
            return ".".join(reversed(digits)).encode()
        return f"{value:0{width}{_FORMATS[base]}}".encode()

    return _DOLLAR.sub(put, word.text)
