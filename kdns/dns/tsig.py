"""Transaction signatures on the octets of messages (RFC 8945): found, checked, made.

Pure: keys and the time are arguments. A TSIG is the last record of a message; what is signed is the message as it was
without it.
"""

import hmac
from typing import Final, NamedTuple, final

from kdns.dns import iana, wire
from kdns.dns.errors import FormatError
from kdns.dns.name import from_text

BADSIG: Final = 16
BADKEY: Final = 17
BADTIME: Final = 18
BADTRUNC: Final = 22
NOTAUTH: Final = 9
FUDGE: Final = 300  # seconds that clocks may differ (RFC 8945, section 10)
UNSIGNED: Final = 99  # messages of a transfer that may stand unsigned between two signed ones (RFC 8945, section 5.3.1)

# Algorithm names (RFC 8945, section 6): the hash, and how many octets of it make the MAC.
ALGORITHMS: Final = {
    from_text("hmac-md5.sig-alg.reg.int."): ("md5", 16),
    from_text("hmac-sha1."): ("sha1", 20),
    from_text("hmac-sha224."): ("sha224", 28),
    from_text("hmac-sha256."): ("sha256", 32),
    from_text("hmac-sha256-128."): ("sha256", 16),
    from_text("hmac-sha384."): ("sha384", 48),
    from_text("hmac-sha384-192."): ("sha384", 24),
    from_text("hmac-sha512."): ("sha512", 64),
    from_text("hmac-sha512-256."): ("sha512", 32),
}
SHA256: Final = from_text("hmac-sha256.")
_HASHES: Final = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}  # their octets
_ANY: Final = b"\0\xff"


class Key(NamedTuple):
    """A key: its lower-cased wire name, its secret, and the algorithm's wire name."""

    name: bytes
    secret: bytes
    algorithm: bytes = SHA256


class Tsig(NamedTuple):
    """A TSIG record: names in lower case, the time in seconds since 1970; `start` is where the record begins."""

    start: int
    name: bytes
    algorithm: bytes
    time: int
    fudge: int
    mac: bytes
    original_id: bytes
    error: int
    other: bytes


class Refused(Exception):
    """A signature that does not hold; `error` is the extended code (RFC 8945, section 3)."""

    def __init__(self, error: int) -> None:
        super().__init__(f"TSIG: {iana.rcode_text(error) if error != BADSIG else 'BADSIG'}")
        self.error = error


def find(data: bytes) -> Tsig | None:
    """The TSIG of a message; None where it has none. Raises FormatError for one that is malformed or not alone at the
    end.
    """
    counts = [int.from_bytes(data[i : i + 2], "big") for i in (4, 6, 8, 10)]
    off = 12
    for _ in range(counts[0]):
        off = wire.skip_name(data, off) + 4
    records = counts[1] + counts[2] + counts[3]
    found: Tsig | None = None
    for i in range(records):
        start = off
        fixed = wire.skip_name(data, off)
        if fixed + 10 > len(data):
            raise FormatError("a record is truncated")
        off = fixed + 10 + int.from_bytes(data[fixed + 8 : fixed + 10], "big")
        if off > len(data):
            raise FormatError("an rdata runs past the end of the message")
        if data[fixed : fixed + 2] == b"\0\xfa":
            # RFC 8945, section 5.1: the last record of the additional section, and one only.
            if i != records - 1 or not counts[3] or off != len(data):
                raise FormatError("a TSIG that is not the last record")
            found = _read(data, start, fixed, off)
    return found


def _read(data: bytes, start: int, fixed: int, end: int) -> Tsig:
    budget = wire.Budget()
    if data[fixed + 2 : fixed + 8] != b"\0\xff\0\0\0\0":
        raise FormatError("a TSIG of a class other than ANY, or with a TTL")
    name, _ = wire.read_name(data, start, budget)
    algorithm, off = wire.read_name(data, fixed + 10, budget)
    size = int.from_bytes(data[off + 8 : off + 10], "big")
    rest = off + 10 + size
    other = int.from_bytes(data[rest + 4 : rest + 6], "big")
    if rest + 6 > end or rest + 6 + other != end:
        raise FormatError("a TSIG of a wrong length")
    return Tsig(
        start, name.lower(), algorithm.lower(), int.from_bytes(data[off : off + 6], "big"),
        int.from_bytes(data[off + 6 : off + 8], "big"), data[off + 10 : rest], data[rest : rest + 2],
        int.from_bytes(data[rest + 2 : rest + 4], "big"), data[rest + 6 : end],
    )  # fmt: skip


def stripped(data: bytes, tsig: Tsig) -> bytes:
    """A message without its TSIG, with the id that was signed."""
    additional = int.from_bytes(data[10:12], "big") - 1
    return tsig.original_id + data[2:10] + additional.to_bytes(2, "big") + data[12 : tsig.start]


def _counted(mac: bytes) -> bytes:
    return len(mac).to_bytes(2, "big") + mac if mac else b""


def _timers(time: int, fudge: int) -> bytes:
    return time.to_bytes(6, "big") + fudge.to_bytes(2, "big")


def mac_of(
    message: bytes,
    key: Key,
    time: int,
    fudge: int,
    error: int,
    other: bytes,
    before: bytes = b"",
    timers_only: bool = False,
) -> bytes:
    """The MAC over a message without TSIG (RFC 8945, section 4.3). `before` is the MAC of the request or the message
    before.
    """
    if timers_only:
        variables = _timers(time, fudge)
    else:
        tail = error.to_bytes(2, "big") + len(other).to_bytes(2, "big") + other
        variables = b"".join((key.name, _ANY, b"\0\0\0\0", key.algorithm, _timers(time, fudge), tail))
    digest, size = ALGORITHMS[key.algorithm]
    return hmac.digest(key.secret, _counted(before) + message + variables, digest)[:size]


def check(
    data: bytes, tsig: Tsig, key: Key, now: float, before: bytes = b"", timers_only: bool = False, between: bytes = b""
) -> None:
    """Checks a signature. `between` are unsigned messages that came before this one. Raises Refused or FormatError."""
    found = ALGORITHMS.get(tsig.algorithm)
    if found is None or tsig.algorithm != key.algorithm:
        raise Refused(BADKEY)
    digest, size = found
    # RFC 8945, section 5.2.2.1: no shorter than 10 octets and half of the hash, no longer than the algorithm's.
    if len(tsig.mac) > size or len(tsig.mac) < max(10, _HASHES[digest] // 2):
        raise FormatError("a MAC of a wrong length")
    message = between + stripped(data, tsig)
    mac = mac_of(message, key, tsig.time, tsig.fudge, tsig.error, tsig.other, before, timers_only)
    if not hmac.compare_digest(mac[: len(tsig.mac)], tsig.mac):
        raise Refused(BADSIG)
    if abs(now - tsig.time) > tsig.fudge:
        raise Refused(BADTIME)


def signed(
    data: bytes, key: Key, now: float, before: bytes = b"", *, error: int = 0, other: bytes = b"",
    timers_only: bool = False,
    time: int | None = None, original_id: bytes = b"",
) -> tuple[bytes, bytes]:  # fmt: skip
    """A message with its signature, and the MAC. `time` (default: now) is what stands in the record."""
    stamp = int(now) if time is None else time
    mac = mac_of(data, key, stamp, FUDGE, error, other, before, timers_only)
    return with_record(data, key, stamp, mac, error, other, original_id or data[:2]), mac


def with_record(data: bytes, key: Key, time: int, mac: bytes, error: int, other: bytes, original_id: bytes) -> bytes:
    """A message with a TSIG record; an empty MAC is an unsigned one (BADKEY, BADSIG: RFC 8945, section 5.3.2)."""
    rdata = b"".join((
        key.algorithm, _timers(time, FUDGE), len(mac).to_bytes(2, "big"), mac, original_id, error.to_bytes(2, "big"),
        len(other).to_bytes(2, "big"), other,
    ))  # fmt: skip
    count = int.from_bytes(data[10:12], "big") + 1
    record = b"".join((key.name, b"\0\xfa", _ANY, b"\0\0\0\0", len(rdata).to_bytes(2, "big"), rdata))
    return data[:10] + count.to_bytes(2, "big") + data[12:] + record


@final
class Signer:
    """Signs the messages of one reply in turn: the first over the request's MAC, each later one over the MAC before
    it.
    """

    __slots__ = ("before", "first", "key")

    def __init__(self, key: Key, request_mac: bytes) -> None:
        self.key = key
        self.before = request_mac
        self.first = True

    def sign(self, data: bytes, now: float) -> bytes:
        """The next message, signed."""
        out, self.before = signed(data, self.key, now, self.before, timers_only=not self.first)
        self.first = False
        return out


@final
class Checker:
    """Checks the messages of one reply in turn (RFC 8945, section 5.3.1)."""

    __slots__ = ("before", "between", "count", "first", "key")

    def __init__(self, key: Key, request_mac: bytes) -> None:
        self.key = key
        self.before = request_mac
        self.first = True
        self.between: list[bytes] = []
        self.count = 0

    def check(self, data: bytes, now: float, last: bool = False) -> None:
        """Checks the next message. Raises Refused or FormatError; also where the first or the last one is unsigned."""
        tsig = find(data)
        if tsig is None:
            self.count += 1
            if self.first or last or self.count > UNSIGNED:
                raise Refused(BADSIG)
            self.between.append(data)
            return
        if tsig.name != self.key.name or tsig.error:
            raise Refused(tsig.error or BADKEY)
        check(data, tsig, self.key, now, self.before, not self.first, b"".join(self.between))
        self.before = tsig.mac
        self.first = False
        self.between.clear()
        self.count = 0

    @property
    def complete(self) -> bool:
        """True if the last message that came was signed."""
        return not self.between and not self.first
