"""EDNS(0), RFC 6891: the OPT record of a query, and the one a reply carries.

Of a client's options none is echoed: RFC 6891, section 6.1.2 leaves each option to the specification that
defines it, and none of those defines an echo. The size in our OPT is what *we* take (section 6.2.3).
"""

from typing import Final, final

from kdns.dns import iana
from kdns.dns.errors import FormatError

# What kdns offers to take, and the most it sends over UDP: DNS Flag Day 2020's 1232 octets, the IPv6 minimum
# MTU of 1280 less 48 of IPv6 and UDP headers, so that no reply is ever fragmented.
UDP_SIZE: Final = 1232
MIN_SIZE: Final = 512  # RFC 6891, section 6.2.5: smaller values are treated as 512
DO: Final = 0x8000
CO: Final = 0x4000  # Compact Answers OK: RFC 9824, section 5.1

# Options of one OPT. IANA's list has some twenty, each of which stands in a query once; nobody needs more, and each
# costs those who wait behind it.
MAX_OPTIONS: Final = 64
# Octets of an option that a Corefile gives: larger ones would crowd the question out of an unfragmented datagram.
MAX_CONFIGURED: Final = 1024
# Octets of a query's options. A few cookies and a name make some hundred; padding (RFC 8467, section 4.1) fills up to
# 128. As many as a UDP query may have in all.
MAX_OPTIONS_SIZE: Final = 4096

NSID: Final = 3
SUBNET: Final = 8  # RFC 7871
COOKIE: Final = 10
COOKIE_SIZE: Final = 24  # octets of a reply's COOKIE, the client's 8 and the server's 16 (RFC 9018, section 4)
_PREFIXES: Final = {b"\0\0": 0, b"\0\1": 32, b"\0\2": 128}  # the longest prefix of each address family
KEEPALIVE: Final = 11  # RFC 7828
PADDING: Final = 12  # RFC 7830
PADDING_BLOCK: Final = 468  # octets that replies are padded to a multiple of (RFC 8467, section 4.1)
QUERY_BLOCK: Final = 128  # and queries
EDE: Final = 15
OTHER_ERROR: Final = 0  # extended errors: RFC 8914, section 4
STALE_ANSWER: Final = 3
CACHED_ERROR: Final = 13
BLOCKED: Final = 15
CENSORED: Final = 16
FILTERED: Final = 17
PROHIBITED: Final = 18
NETWORK_ERROR: Final = 23


@final
class Edns:
    """A query's OPT: the octets that a UDP reply to it may have, the DO and CO bits, and the version.

    `sent` is the size as the sender put it; what is decided by it differs between clients that are otherwise alike.
    `compact`: the reply has CO too, since it denies names as RFC 9824 has it.
    """

    __slots__ = ("co", "compact", "do", "sent", "size", "version")

    def __init__(self, sent: int, do: bool = False, version: int = 0, co: bool = False, compact: bool = False) -> None:
        self.sent = sent
        # RFC 6891, section 6.2.5: values below 512 count as 512.
        self.size = MIN_SIZE if sent < MIN_SIZE else UDP_SIZE if sent > UDP_SIZE else sent
        self.do = do
        self.version = version
        self.co = co
        self.compact = compact

    def with_size(self, most: int) -> "Edns":
        """The same OPT with a size of at most so many octets."""
        return self if self.size <= most else Edns(most, self.do, self.version, self.co, self.compact)

    def with_compact(self) -> "Edns":
        """The same OPT, to which the reply has CO."""
        return Edns(self.sent, self.do, self.version, self.co, True)


def opt(
    size: int = UDP_SIZE, do: bool = False, options: bytes = b"", rcode: int = iana.NOERROR, co: bool = False
) -> bytes:
    """An OPT record's wire form; `rcode`'s upper 8 bits go into it (RFC 6891, section 6.1.3)."""
    return b"".join((
        b"\0\0\x29", size.to_bytes(2, "big"), bytes((rcode >> 4, 0)),
        bytes(((0x80 if do else 0) | (0x40 if co else 0), 0)),
        len(options).to_bytes(2, "big"), options,
    ))  # fmt: skip


PLAIN: Final = opt()
WITH_DO: Final = opt(do=True)


def option(code: int, payload: bytes) -> bytes:
    """One EDNS option's wire form."""
    return code.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload


def extended_error(code: int, text: bytes = b"") -> bytes:
    """An extended error's wire form (RFC 8914, section 2); `text` is UTF-8."""
    return option(EDE, code.to_bytes(2, "big") + text)


def options(raw: bytes) -> list[tuple[int, bytes]]:
    """The options of an OPT's rdata as (code, payload). Raises FormatError where a length leads outside."""
    out = []
    off, total = 0, len(raw)
    while off < total:
        if off + 4 > total:
            raise FormatError("an EDNS option is truncated")
        stop = off + 4 + (raw[off + 2] << 8 | raw[off + 3])
        if stop > total:
            raise FormatError("an EDNS option runs past its OPT")
        out.append((raw[off] << 8 | raw[off + 1], raw[off + 4 : stop]))
        off = stop
    return out


def cookie_fits(length: int) -> bool:
    """True if a COOKIE option may have so many octets: 8, or 16 to 40 (RFC 7873, section 5.2.2)."""
    return length == 8 or 16 <= length <= 40


def subnet_fits(payload: bytes, in_reply: bool = False) -> bool:
    """True if a client subnet is well formed: exactly the octets that its prefix needs, no bit beyond it, and a scope
    in replies alone (RFC 7871, section 6). Family 0 without a prefix, "do not use my address", is let through as BIND
    does.
    """
    if len(payload) < 4 or (payload[3] and not in_reply):
        return False
    prefix = payload[2]
    most = _PREFIXES.get(payload[:2], -1)
    if prefix > most or len(payload) != 4 + (prefix + 7 >> 3):
        return False
    return not prefix & 7 or not payload[-1] & 0xFF >> (prefix & 7)


def check_options(raw: bytes, in_reply: bool = False) -> None:
    """Raises FormatError for options that are malformed or too many.

    Most are only stepped over: who wants one reads it. The forms of a COOKIE and of a client subnet are looked at here,
    because their specifications want FORMERR from every server that knows them.
    """
    off, total = 0, len(raw)
    if total > MAX_OPTIONS_SIZE:
        raise FormatError(f"more than {MAX_OPTIONS_SIZE} octets of EDNS options")
    left = MAX_OPTIONS
    while off < total:
        if not left:
            raise FormatError(f"more than {MAX_OPTIONS} EDNS options")
        left -= 1
        if off + 4 > total:
            raise FormatError("an EDNS option is truncated")
        length = raw[off + 2] << 8 | raw[off + 3]
        if not raw[off]:
            code = raw[off + 1]
            if code == COOKIE and not cookie_fits(length):
                raise FormatError(f"a COOKIE option of {length} octets")
            if code == SUBNET and not subnet_fits(raw[off + 4 : off + 4 + length], in_reply):
                raise FormatError("a malformed client subnet")
        off += 4 + length
    if off != total:
        raise FormatError("an EDNS option runs past its OPT")


def padded(raw: bytes, size: int, most: int, block: int = PADDING_BLOCK) -> bytes:
    """Options, with padding behind them that brings a message of `size` octets, these included, to whole blocks.

    It has at most `most` octets then; without padding where there is no room (RFC 7830, section 3).
    """
    left = most - size - 4
    if left < 0:
        return raw
    return raw + option(PADDING, bytes(min(-(size + 4) % block, left)))


def padded_query(query: bytes, end: int) -> bytes:
    """A query whose OPT is behind all else, which ends at `end`, padded to whole blocks (RFC 8467, section 4.1). One
    without OPT stays as it is.
    """
    if len(query) < end + 11:
        return query
    raw = padded(query[end + 11 :], len(query), 65535, QUERY_BLOCK)
    return b"".join((query[: end + 9], len(raw).to_bytes(2, "big"), raw))


def within(raw: bytes, room: int) -> bytes:
    """Options of at most `room` octets. The texts of extended errors are shortened first, then those options go, then
    all.
    """
    if len(raw) <= room:
        return raw
    found = options(raw)
    left = room - sum(4 + len(payload) for code, payload in found if code != EDE)
    if left < 0:
        return b""
    out = []
    for code, payload in found:
        if code == EDE:
            if left < 6:
                continue
            # Between two characters: the text is UTF-8 (RFC 8914, section 2).
            payload = payload[:2] + payload[2 : left - 4].decode("utf-8", "ignore").encode()
            left -= 4 + len(payload)
        out.append(option(code, payload))
    return b"".join(out)
