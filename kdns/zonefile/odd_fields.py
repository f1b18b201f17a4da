"""Fields of types with a text form of their own: LOC, APL, IPSECKEY, AMTRELAY, NID, L64, NSAP, HIP, SVCB and HTTPS."""

import base64
import ipaddress
import re
import socket
from typing import Final

from kdns.zonefile.errors import BadRecord
from kdns.zonefile.fields import Address, Counted, Field, Name, Number, _cut, decoded, number, quoted
from kdns.zonefile.words import Entry, Word, name, shown, unescape


class Location:
    """A LOC's rdata (RFC 1876, section 3)."""

    _METRES: Final = re.compile(rb"(-?[0-9]{1,9})(?:\.([0-9]{1,2}))?m?")

    def read(self, entry: Entry) -> bytes:
        latitude = self._degrees(entry, b"NS", 90)
        longitude = self._degrees(entry, b"EW", 180)
        altitude = self._metres(entry.next("an altitude")) + 10_000_000
        if not 0 <= altitude <= 0xFFFFFFFF:
            raise BadRecord(entry.words[entry.i - 1].at, "the altitude is out of range")
        sizes = [self._size(entry, usual) for usual in (0x12, 0x16, 0x13)]
        return bytes((0, *sizes)) + b"".join([value.to_bytes(4, "big") for value in (latitude, longitude, altitude)])

    def _degrees(self, entry: Entry, ways: bytes, most: int) -> int:
        word = entry.next("degrees")
        total = number(word, most) * 3_600_000
        for unit in (60_000, 1000):
            word = entry.next("minutes, seconds or a direction")
            if word.text.upper() in (ways[:1], ways[1:]):
                break
            if unit == 60_000:
                total += number(word, 59) * unit
            else:
                whole, _, part = word.text.partition(b".")
                if not whole.isdigit() or int(whole) > 59 or len(part) > 3 or not (part.isdigit() or not part):
                    raise BadRecord(word.at, f'expected seconds, found "{shown(word.text)}"')
                total += int(whole) * 1000 + int(part.ljust(3, b"0"))
        else:
            word = entry.next(f"{chr(ways[0])} or {chr(ways[1])}")
        if word.text.upper() not in (ways[:1], ways[1:]) or total > most * 3_600_000:
            raise BadRecord(word.at, f'expected {chr(ways[0])} or {chr(ways[1])}, found "{shown(word.text)}"')
        return (1 << 31) + total if word.text.upper() == ways[:1] else (1 << 31) - total

    def _metres(self, word: Word) -> int:
        """Centimetres."""
        found = self._METRES.fullmatch(word.text)
        if found is None:
            raise BadRecord(word.at, f'expected metres, found "{shown(word.text)}"')
        part = int((found[2] or b"").ljust(2, b"0"))
        return int(found[1]) * 100 + (-part if found[1].startswith(b"-") else part)

    def _size(self, entry: Entry, usual: int) -> int:
        word = entry.peek()
        if word is None:
            return usual
        value = self._metres(entry.next(""))
        if not 0 <= value <= 9_000_000_000:
            raise BadRecord(word.at, "a size of 0 to 90000000m is expected")
        power = 0
        while value > 9:
            value //= 10
            power += 1
        return value << 4 | power

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        if at or len(data) != 16 or data[0]:
            raise ValueError("no LOC of version 0")
        latitude, longitude, altitude = [int.from_bytes(data[i : i + 4], "big") for i in (4, 8, 12)]
        parts = []
        for value, ways in ((latitude, "NS"), (longitude, "EW")):
            way, value = ways[value < 1 << 31], abs(value - (1 << 31))
            degrees, value = divmod(value, 3_600_000)
            minutes, value = divmod(value, 60_000)
            parts.append(f"{degrees} {minutes} {value // 1000}.{value % 1000:03d} {way}")
        sign, metres = ("-" if altitude < 10_000_000 else ""), abs(altitude - 10_000_000)
        parts.append(f"{sign}{metres // 100}.{metres % 100:02d}m")
        for octet in data[1:4]:
            if octet >> 4 > 9 or octet & 15 > 9:
                raise ValueError("no size")
            size = (octet >> 4) * 10 ** (octet & 15)
            parts.append(f"{size // 100}.{size % 100:02d}m")
        return " ".join(parts), 16


class Prefixes:
    """An APL's items (RFC 3123): `[!]family:address/length`."""

    def read(self, entry: Entry) -> bytes:
        out = []
        while entry.left():
            word = entry.next("")
            found = re.fullmatch(rb"(!?)([12]):([0-9A-Fa-f:.]+)/([0-9]{1,3})", word.text)
            try:
                if found is None:
                    raise ValueError
                family = socket.AF_INET if found[2] == b"1" else socket.AF_INET6
                packed = socket.inet_pton(family, found[3].decode())
                if int(found[4]) > len(packed) * 8:
                    raise ValueError
            except (OSError, ValueError):
                raise BadRecord(
                    word.at, f'expected a prefix such as 1:192.0.2.0/24, found "{shown(word.text)}"'
                ) from None
            packed = packed.rstrip(b"\0")
            out.append(
                b"\0" + found[2].translate(_DIGITS) + bytes((int(found[4]), bool(found[1]) << 7 | len(packed))) + packed
            )
        return b"".join(out)

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        out = []
        while at < len(data):
            family, length, size = int.from_bytes(_cut(data, at, 2), "big"), data[at + 2], data[at + 3]
            width = {1: 4, 2: 16}[family]
            part = _cut(data, at + 4, size & 127)
            if len(part) > width or length > width * 8:
                raise ValueError("no prefix")
            address = ipaddress.ip_address(part.ljust(width, b"\0"))
            out.append(f"{'!' if size & 128 else ''}{family}:{address}/{length}")
            at += 4 + (size & 127)
        return " ".join(out), at


_DIGITS: Final = bytes.maketrans(b"12", b"\x01\x02")


_TARGETS: Final[dict[int, Field]] = {1: Address(socket.AF_INET), 2: Address(socket.AF_INET6), 3: Name()}


def _read_target(kind: int, entry: Entry, what: str) -> bytes:
    """An address or a name, as a kind says; `.` for kind 0, which has neither."""
    if kind:
        return _TARGETS[kind].read(entry)
    word = entry.next(f"a {what}")
    if word.text != b".":
        raise BadRecord(word.at, f'expected "." for no {what}, found "{shown(word.text)}"')
    return b""


def _show_target(kind: int, data: bytes, at: int, what: str) -> tuple[str, int]:
    if not kind:
        return ".", at
    if kind not in _TARGETS:
        raise ValueError(f"no {what}")
    return _TARGETS[kind].show(data, at)


class Gateway:
    """An IPSECKEY's gateway type, algorithm and gateway (RFC 4025, section 3)."""

    def read(self, entry: Entry) -> bytes:
        kind = number(entry.next("a gateway type"), 3)
        algorithm = Number(1).read(entry)
        return bytes((kind,)) + algorithm + _read_target(kind, entry, "gateway")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        kind, algorithm = _cut(data, at, 2)
        text, at = _show_target(kind, data, at + 2, "gateway")
        return f"{kind} {algorithm} {text}", at


class Relay:
    """An AMTRELAY's discovery bit, type and relay (RFC 8777, section 4.3)."""

    def read(self, entry: Entry) -> bytes:
        discovery = number(entry.next("0 or 1"), 1)
        kind = number(entry.next("a relay type"), 3)
        return bytes((discovery << 7 | kind,)) + _read_target(kind, entry, "relay")

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        (octet,) = _cut(data, at, 1)
        text, at = _show_target(octet & 0x7F, data, at + 1, "relay")
        return f"{octet >> 7} {octet & 0x7F} {text}", at


class Locator:
    """64 bits of an identifier or locator as four groups of hex digits (RFC 6742, sections 2.1.2 and 2.3.2)."""

    def read(self, entry: Entry) -> bytes:
        word = entry.next("four groups of hex digits")
        if re.fullmatch(rb"(?:[0-9A-Fa-f]{1,4}:){3}[0-9A-Fa-f]{1,4}", word.text) is None:
            raise BadRecord(word.at, f'expected 64 bits such as 2001:db8:1:2, found "{shown(word.text)}"')
        return b"".join(int(group, 16).to_bytes(2, "big") for group in word.text.split(b":"))

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        return _cut(data, at, 8).hex(":", 2), at + 8


class Nsap:
    """An NSAP's address (RFC 1706, section 7): hex behind `0x`, with dots between the octets or without."""

    def read(self, entry: Entry) -> bytes:
        word = entry.next("an address such as 0x47.0005")
        text = word.text.replace(b".", b"").lower()
        made = decoded(text[2:], 16) if text.startswith(b"0x") else None
        if not made:
            raise BadRecord(word.at, f'expected an address such as 0x47.0005, found "{shown(word.text)}"')
        return made

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        if at == len(data):
            raise ValueError("no address")
        return f"0x{data[at:].hex()}", len(data)


class HostIdentity:
    """A HIP's rdata (RFC 8005, section 5): algorithm, identity in hex, key in base64, rendezvous servers."""

    def read(self, entry: Entry) -> bytes:
        algorithm = Number(1).read(entry)
        identity = Counted().read(entry)
        word = entry.next("a key in base64")
        try:
            key = base64.b64decode(word.text, validate=True)
        except ValueError:
            raise BadRecord(word.at, "expected a key in base64") from None
        servers = b"".join([name(entry.next(""), entry.origin) for _ in range(entry.left())])
        return identity[:1] + algorithm + len(key).to_bytes(2, "big") + identity[1:] + key + servers

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        size, algorithm, length = data[at], data[at + 1], int.from_bytes(_cut(data, at + 2, 2), "big")
        identity = _cut(data, at + 4, size)
        key = _cut(data, at + 4 + size, length)
        out = [str(algorithm), identity.hex(), base64.b64encode(key).decode()]
        at += 4 + size + length
        while at < len(data):
            text, at = Name().show(data, at)
            out.append(text)
        return " ".join(out), at


# SvcParamKeys by name (RFC 9460, section 14.3; RFC 9461; RFC 9540; 9: draft-ietf-tls-key-share-prediction).
_KEYS: Final = {
    "mandatory": 0, "alpn": 1, "no-default-alpn": 2, "port": 3, "ipv4hint": 4, "ech": 5, "ipv6hint": 6, "dohpath": 7,
    "ohttp": 8, "tls-supported-groups": 9,
}  # fmt: skip
_KEY_TEXT: Final = {value: text for text, value in _KEYS.items()}


class Parameters:
    """The SvcParams of an SVCB or HTTPS (RFC 9460, section 2.1), up to the record's end, in order of their keys."""

    def read(self, entry: Entry) -> bytes:
        found: dict[int, bytes] = {}
        while entry.left():
            word = entry.next("")
            text, equals, value = word.text.partition(b"=")
            given = Word(value, word.at + len(text) + 1 if value else word.at)
            follows = entry.peek()
            if (
                equals
                and not value
                and follows is not None
                and follows.quoted
                and follows.at == word.at + len(word.text)
            ):
                given = entry.next("")
            key = self._key(Word(text, word.at))
            if key in found:
                raise BadRecord(word.at, f'parameter "{shown(text)}" stands twice')
            found[key] = self._value(key, given, bool(equals))
        if 0 in found:
            wanted = [int.from_bytes(found[0][i : i + 2], "big") for i in range(0, len(found[0]), 2)]
            if any(key not in found or key == 0 for key in wanted):
                raise BadRecord(entry.words[-1].at, "a mandatory parameter is missing")
        if 2 in found and 1 not in found:
            raise BadRecord(entry.words[-1].at, "no-default-alpn needs alpn")
        return b"".join([
            key.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for key, value in sorted(found.items())
        ])  # fmt: skip

    def _key(self, word: Word) -> int:
        text = word.text.decode("ascii", "replace").lower()
        if text in _KEYS:
            return _KEYS[text]
        digits = text.removeprefix("key")
        if (
            digits == text
            or not digits.isdecimal()
            or (len(digits) > 1 and digits[0] == "0")
            or int(digits[:6]) > 65534
        ):
            raise BadRecord(word.at, f'unknown parameter "{shown(word.text)}"')
        return int(digits)

    def _value(self, key: int, word: Word, given: bool) -> bytes:
        if key in (2, 8):
            if given:
                raise BadRecord(word.at, "this parameter takes no value")
            return b""
        text = unescape(word)
        if key in (0, 1, 3, 4, 5, 6, 7, 9) and not text:
            raise BadRecord(word.at, "this parameter needs a value")
        try:
            if key == 0:
                return b"".join(_once(sorted(self._key(Word(part, word.at)) for part in text.split(b",")), word))
            if key == 1:
                return b"".join([bytes((len(part),)) + part for part in _listed(text, word)])
            if key == 3:
                return number(Word(text, word.at), 65535).to_bytes(2, "big")
            if key in (4, 6):
                family = socket.AF_INET if key == 4 else socket.AF_INET6
                return b"".join([socket.inet_pton(family, part.decode("ascii")) for part in text.split(b",")])
            if key == 5:
                return base64.b64decode(text, validate=True)
            if key == 9:
                return b"".join(_once([number(Word(part, word.at), 65535) for part in text.split(b",")], word))
        except (OSError, ValueError) as error:
            if isinstance(error, BadRecord):
                raise
            raise BadRecord(word.at, f'a bad value of parameter {_KEY_TEXT[key]}: "{shown(text)}"') from None
        return text

    def show(self, data: bytes, at: int) -> tuple[str, int]:
        out = []
        last = -1
        while at < len(data):
            key, size = int.from_bytes(_cut(data, at, 2), "big"), int.from_bytes(_cut(data, at + 2, 2), "big")
            if key <= last:
                raise ValueError("parameters out of order")
            last = key
            out.append(self._shown(key, _cut(data, at + 4, size)))
            at += 4 + size
        return " ".join(out), at

    def _shown(self, key: int, value: bytes) -> str:
        text = _KEY_TEXT.get(key, f"key{key}")
        if key == 0:
            if len(value) % 2 or not value:
                raise ValueError("a bad list of keys")
            numbers = [int.from_bytes(value[i : i + 2], "big") for i in range(0, len(value), 2)]
            return f"{text}={','.join(_KEY_TEXT.get(each, f'key{each}') for each in numbers)}"
        if key == 1:
            out, at = [], 0
            while at < len(value):
                part = _cut(value, at + 1, value[at])
                out.append(part.replace(b"\\", b"\\\\").replace(b",", b"\\,"))
                at += 1 + value[at]
            return f"{text}={quoted(b','.join(out))}"
        if key == 3:
            return f"{text}={int.from_bytes(_cut(value, 0, 2), 'big')}" if len(value) == 2 else _fail()
        if key in (4, 6):
            width = 4 if key == 4 else 16
            if not value or len(value) % width:
                raise ValueError("bad hints")
            family = socket.AF_INET if key == 4 else socket.AF_INET6
            hints = (socket.inet_ntop(family, value[i : i + width]) for i in range(0, len(value), width))
            return f"{text}={','.join(hints)}"
        if key == 5:
            return f"{text}={quoted(base64.b64encode(value))}"
        if key == 9:
            if len(value) % 2 or not value:
                raise ValueError("a bad list of groups")
            numbers = [int.from_bytes(value[i : i + 2], "big") for i in range(0, len(value), 2)]
            return f"{text}={','.join(map(str, numbers))}"
        return f"{text}={quoted(value)}" if value else text


def _fail() -> str:
    raise ValueError("a bad parameter")


def _once(numbers: list[int], word: Word) -> list[bytes]:
    """Numbers of a list, two octets each."""
    if len(set(numbers)) < len(numbers):
        raise BadRecord(word.at, f'"{shown(word.text)}": one of these stands twice')
    return [each.to_bytes(2, "big") for each in numbers]


def _listed(text: bytes, word: Word) -> list[bytes]:
    """The items of a list whose commas and backslashes may be escaped once more (RFC 9460, appendix A.1)."""
    out = [bytearray()]
    i = 0
    while i < len(text):
        octet = text[i]
        i += 1
        if octet == 0x2C:
            out.append(bytearray())
            continue
        if octet == 0x5C:
            # Nothing else may be escaped here (RFC 9460, appendix A.1).
            if text[i : i + 1] not in (b"\\", b","):
                raise BadRecord(word.at, f'"{shown(word.text)}": of a list\'s item, commas and backslashes are escaped')
            octet = text[i]
            i += 1
        out[-1].append(octet)
    if any(not 0 < len(part) <= 255 for part in out):
        raise BadRecord(word.at, "an item of a list is empty or too long")
    return [bytes(part) for part in out]
