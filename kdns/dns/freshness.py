"""The freshness of a reply, read from its octets: for Cache-Control and Age of DNS over HTTPS (RFC 8484, section
5.1).
"""

from collections.abc import Iterator
from typing import Final

_SOA: Final = 6
_OPT: Final = 41
_LONGEST: Final = 0x7FFFFFFF  # seconds of a TTL; more are none (RFC 2181, section 8)


def lifetime(reply: bytes) -> int:
    """Seconds: the least TTL of a reply's records.

    0 for any other code, and where there is not a record to say it. The reply is our own: its form is not checked.
    """
    if reply[3] & 15 not in (0, 3) or reply[2] & 2:
        return 0
    try:
        return min((ttl for _, ttl in _ttls(reply)), default=0)
    except IndexError:
        return 0


def older(reply: bytes, seconds: int) -> bytes:
    """A reply that a cache of HTTP has had for so long: that much less of its TTLs is left (RFC 8484, section 5.1).

    One that is malformed is given back as it is, or in part: who reads it finds that out.
    """
    out = bytearray(reply)
    try:
        for at, ttl in _ttls(reply):
            left = max(ttl - seconds, 0) if ttl <= _LONGEST else 0
            out[at : at + 4] = left.to_bytes(4, "big")
    except IndexError:
        pass
    return bytes(out)


def _ttls(reply: bytes) -> Iterator[tuple[int, int]]:
    """Where the TTL of each record stands, and what it comes to: of a denial's SOA it is at most the MINIMUM (RFC 2308,
    section 5). Raises IndexError at the end of what is malformed.
    """
    denial = not reply[6] << 8 | reply[7]
    off = 12
    for _ in range(reply[4] << 8 | reply[5]):
        off = _end_of_name(reply, off) + 4
    for _ in range(sum(reply[at] << 8 | reply[at + 1] for at in (6, 8, 10))):
        off = _end_of_name(reply, off)
        end = off + 10 + (reply[off + 8] << 8 | reply[off + 9])
        kind = reply[off] << 8 | reply[off + 1]
        if kind != _OPT:
            ttl = int.from_bytes(reply[off + 4 : off + 8], "big")
            if kind == _SOA and denial:
                ttl = min(ttl, int.from_bytes(reply[end - 4 : end], "big"))
            yield off + 4, ttl
        off = end


def _end_of_name(reply: bytes, off: int) -> int:
    size = reply[off]
    while size:
        if size >= 0xC0:
            return off + 2
        off += size + 1
        size = reply[off]
    return off + 1
