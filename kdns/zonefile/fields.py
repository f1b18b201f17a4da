"""The fields that rdata is made of, in text and on the wire.

A field reads words into octets and shows octets as text; a type is a row of fields (`kdns.zonefile.types`). Reading
raises BadRecord; showing raises ValueError or IndexError for octets that are no such field, which is also how the
generic form of a known type is checked (RFC 3597, section 5).
"""

import base64
import binascii
import calendar
import re
import socket
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol

from kdns.dns import iana
from kdns.dns.name import MAX_LABEL, MAX_NAME, to_text
from kdns.zonefile.errors import BadRecord
from kdns.zonefile.words import Entry, Word, name, shown, unescape

_UNITS: Final = {ord("s"): 1, ord("m"): 60, ord("h"): 3600, ord("d"): 86400, ord("w"): 604800}
_TTL: Final = re.compile(rb"(?:[0-9]{1,10}[wdhmsWDHMS])+[0-9]{0,10}|[0-9]{1,10}")
_TTL_PART: Final = re.compile(rb"([0-9]+)([wdhmsWDHMS]?)")


class Field(Protocol):
    """A part of an rdata."""

    def read(self, entry: Entry) -> bytes:
        """The octets that the next words stand for. Raises BadRecord."""

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        """The text of the field at an offset, and the offset behind it. Raises ValueError or IndexError."""


def ttl(text: bytes) -> int | None:
    """Seconds of a TTL: a number, or numbers with units (`1w2d3h4m5s`); None where it is none."""
    if _TTL.fullmatch(text) is None:
        return None
    total = 0
    for number, unit in _TTL_PART.findall(text):
        total += int(number) * (_UNITS[unit.lower()[0]] if unit else 1)
    return total if total <= 0xFFFFFFFF else None


def number(word: Word, most: int) -> int:
    """A decimal number up to `most`. Raises BadRecord."""
    text = word.text
    if not text.isdigit() or len(text) > 20 or int(text) > most:
        raise BadRecord(word.at, f'expected a number up to {most}, found "{shown(text)}"')
    return int(text)


def _cut(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise ValueError("too short")
    return part


def quoted(data: bytes) -> str:
    """A character string in quotes, odd octets as `\\DDD`."""
    out = []
    for octet in data:
        if octet in b'"\\':
            out.append("\\" + chr(octet))
        elif 0x20 <= octet < 0x7F:
            out.append(chr(octet))
        else:
            out.append(f"\\{octet:03d}")
    return '"' + "".join(out) + '"'


# A name's records stand together, and the next one's name stands in its NSEC.
name_text: Final = lru_cache(1024)(to_text)


class Name:
    """A domain name, letter case kept."""

    def read(self, entry: Entry) -> bytes:
        return name(entry.next("a name"), entry.origin)

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        end = at
        while size := data[end]:
            end += size + 1
            if size > MAX_LABEL or end - at >= MAX_NAME:
                raise ValueError("no name")
        return name_text(data[at : end + 1]), end + 1


class Number:
    """An unsigned number of so many octets."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.most = (1 << 8 * size) - 1

    def read(self, entry: Entry) -> bytes:
        return number(entry.next(f"a number up to {self.most}"), self.most).to_bytes(self.size, "big")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return str(int.from_bytes(_cut(data, at, self.size), "big")), at + self.size


class Mnemonic:
    """A number that may be written by name."""

    def __init__(self, size: int, names: dict[str, int]) -> None:
        self.size = size
        self.names = names

    def read(self, entry: Entry) -> bytes:
        word = entry.next("a number or its name")
        known = self.names.get(word.text.decode("ascii", "replace").upper())
        if known is None:
            known = number(word, (1 << 8 * self.size) - 1)
        return known.to_bytes(self.size, "big")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return str(int.from_bytes(_cut(data, at, self.size), "big")), at + self.size


class Seconds:
    """A time span of 32 bits, with units as in a TTL."""

    def read(self, entry: Entry) -> bytes:
        word = entry.next("a time in seconds")
        value = ttl(word.text)
        if value is None:
            raise BadRecord(word.at, f'expected a time such as 3600 or 1h, found "{shown(word.text)}"')
        return value.to_bytes(4, "big")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return str(int.from_bytes(_cut(data, at, 4), "big")), at + 4


class Address:
    """An IPv4 or IPv6 address."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.size = 4 if family == socket.AF_INET else 16

    def read(self, entry: Entry) -> bytes:
        word = entry.next("an address")
        try:
            return socket.inet_pton(self.family, word.text.decode("ascii"))
        except (OSError, ValueError):
            kind = "IPv4" if self.size == 4 else "IPv6"
            raise BadRecord(word.at, f'expected an {kind} address, found "{shown(word.text)}"') from None

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return socket.inet_ntop(self.family, _cut(data, at, self.size)), at + self.size


def _string(word: Word) -> bytes:
    text = unescape(word)
    if len(text) > 255:
        raise BadRecord(word.at, f"a string of {len(text)} octets, at most 255 are allowed; split it into several")
    return bytes((len(text),)) + text


class String:
    """One character string of at most 255 octets."""

    def read(self, entry: Entry) -> bytes:
        return _string(entry.next("a string"))

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        end = at + 1 + data[at]
        return quoted(_cut(data, at + 1, data[at])), end


class Strings:
    """Character strings up to the record's end; `least` of them."""

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def read(self, entry: Entry) -> bytes:
        if self.least:
            entry_first = _string(entry.next("a string"))
            return entry_first + b"".join([_string(entry.next("")) for _ in range(entry.left())])
        return b"".join([_string(entry.next("")) for _ in range(entry.left())])

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        out = []
        while at < len(data):
            out.append(quoted(_cut(data, at + 1, data[at])))
            at += 1 + data[at]
        if len(out) < self.least:
            raise ValueError("no string")
        return " ".join(out), at


class Rest:
    """One word of text that fills the rdata without a length in front: a URI's target, a CAA's value."""

    def read(self, entry: Entry) -> bytes:
        return unescape(entry.next("a string"))

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return quoted(data[at:]), len(data)


class Encoded:
    """Octets up to the record's end in base64, hex or base32, words joined."""

    def __init__(self, base: int, least: int = 1) -> None:
        self.base = base
        self.least = least

    def read(self, entry: Entry) -> bytes:
        first = entry.peek()
        parts = [entry.next("").text for _ in range(entry.left())]
        made = decoded(b"".join(parts), self.base)
        at = first.at if first is not None else entry.words[-1].at
        if made is None:
            raise BadRecord(at, f"expected {_BASES[self.base]}")
        if len(made) < self.least:
            raise BadRecord(at, f"expected {_BASES[self.base]}, found the end of the record")
        return made

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        if len(data) - at < self.least:
            raise ValueError("too short")
        return _encoded(data[at:], self.base), len(data)


class Counted:
    """Octets behind their count: one word in hex; `-` where there are none (RFC 5155, section 3.3)."""

    base = 16

    def read(self, entry: Entry) -> bytes:
        word = entry.next(_BASES[self.base])
        if word.text == b"-":
            return b"\0"
        made = decoded(word.text, self.base)
        if made is None or not 0 < len(made) <= 255:
            raise BadRecord(word.at, f'expected {_BASES[self.base]}, found "{shown(word.text)}"')
        return bytes((len(made),)) + made

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        size = data[at]
        part = _cut(data, at + 1, size)
        return (_encoded(part, self.base) if part else "-"), at + 1 + size


class Hashed(Counted):
    """An NSEC3's next name behind its length, in base32."""

    base = 32

    def read(self, entry: Entry) -> bytes:
        made = super().read(entry)
        # The algorithm stands four words before.
        if not fits_hash(number(entry.words[entry.i - 5], 255), len(made) - 1):
            raise BadRecord(entry.words[entry.i - 1].at, "a hash of SHA-1 has 20 octets")
        return made


def fits_hash(algorithm: int, size: int) -> bool:
    """Whether an NSEC3's hash may have so many octets (RFC 5155, section 11)."""
    return size == 20 if algorithm == 1 else 0 < size <= 255


_BASES: Final = {16: "octets in hex", 32: "octets in base32", 64: "octets in base64"}


def decoded(text: bytes, base: int) -> bytes | None:
    """The octets that a text in base 16, 32 or 64 stands for; None where it is none."""
    try:
        if base == 16:
            return binascii.unhexlify(text)
        if base == 64:
            return base64.b64decode(text, validate=True)
        # Without padding (RFC 5155, section 3.3).
        return base64.b32hexdecode(text.upper() + b"=" * (-len(text) % 8)) if b"=" not in text else None
    except (ValueError, binascii.Error):
        return None


def _encoded(data: bytes, base: int) -> str:
    if base == 16:
        return data.hex()
    if base == 64:
        return base64.b64encode(data).decode()
    return base64.b32hexencode(data).decode().rstrip("=").lower()


class Moment:
    """A signature's time: YYYYMMDDHHMMSS, or seconds since 1970 (RFC 4034, section 3.2)."""

    def read(self, entry: Entry) -> bytes:
        word = entry.next("a time such as 20300101000000")
        text = word.text
        if len(text) == 14 and text.isdigit():
            try:
                return _moment(text)
            except ValueError:
                raise BadRecord(word.at, f'no time: "{shown(text)}"') from None
        return number(word, 0xFFFFFFFF).to_bytes(4, "big")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return _moment_text(_cut(data, at, 4)), at + 4


# All signatures of a zone have the same few times, and each takes 20 us to read.
@lru_cache(256)
def _moment(text: bytes) -> bytes:
    made = datetime.strptime(text.decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    return (calendar.timegm(made.utctimetuple()) & 0xFFFFFFFF).to_bytes(4, "big")


@lru_cache(256)
def _moment_text(data: bytes) -> str:
    return datetime.fromtimestamp(int.from_bytes(data, "big"), UTC).strftime("%Y%m%d%H%M%S")


class Type:
    """A record type."""

    def read(self, entry: Entry) -> bytes:
        word = entry.next("a record type")
        found = iana.type_number(word.text.decode("ascii", "replace"))
        if found is None:
            raise BadRecord(word.at, f'unknown type "{shown(word.text)}"')
        return found.to_bytes(2, "big")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return iana.type_text(int.from_bytes(_cut(data, at, 2), "big")), at + 2


class Bitmap:
    """The types of a name, up to the record's end (RFC 4034, section 4.1.2)."""

    def read(self, entry: Entry) -> bytes:
        found: set[int] = set()
        while entry.left():
            found.add(int.from_bytes(Type().read(entry), "big"))
        return bitmap(found)

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return _types_text(data[at:]), len(data)


@lru_cache(256)  # a zone has few different ones
def _types_text(data: bytes) -> str:
    return " ".join([iana.type_text(each) for each in types_of(data)])


def bitmap(types: set[int]) -> bytes:
    """The type bitmap of a set of types."""
    windows: dict[int, bytearray] = {}
    for each in sorted(types):
        window = windows.setdefault(each >> 8, bytearray())
        place = (each & 0xFF) >> 3
        window.extend(bytes(place + 1 - len(window)))
        window[place] |= 0x80 >> (each & 7)
    return b"".join([bytes((window, len(bits))) + bits for window, bits in windows.items()])


def types_of(data: bytes) -> list[int]:
    """The types in a type bitmap. Raises ValueError for one that is malformed."""
    out = []
    at = 0
    last = -1
    while at < len(data):
        window, size = data[at], _cut(data, at + 1, 1)[0]
        if not 0 < size <= 32 or window <= last:
            raise ValueError("a malformed type bitmap")
        last = window
        for place, octet in enumerate(_cut(data, at + 2, size)):
            out += [window << 8 | place << 3 | bit for bit in range(8) if octet & 0x80 >> bit]
        at += 2 + size
    return out


class Eui:
    """An EUI-48 or EUI-64 address (RFC 7043): octets in hex with hyphens."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, entry: Entry) -> bytes:
        word = entry.next("an EUI address")
        if re.fullmatch(rb"(?:[0-9A-Fa-f]{2}-){%d}[0-9A-Fa-f]{2}" % (self.size - 1), word.text) is None:
            raise BadRecord(word.at, f'expected {self.size} octets such as 00-00-5e, found "{shown(word.text)}"')
        return bytes.fromhex(word.text.decode().replace("-", ""))

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return _cut(data, at, self.size).hex("-"), at + self.size


class Tag:
    """A CAA's tag: letters and digits behind their count (RFC 8659, section 4.1)."""

    def read(self, entry: Entry) -> bytes:
        word = entry.next("a tag")
        if not word.text.isalnum() or len(word.text) > 255:
            raise BadRecord(word.at, f'expected a tag of letters and digits, found "{shown(word.text)}"')
        return bytes((len(word.text),)) + word.text

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        part = _cut(data, at + 1, data[at])
        if not part.isalnum():
            raise ValueError("no tag")
        return part.decode("ascii"), at + 1 + data[at]
