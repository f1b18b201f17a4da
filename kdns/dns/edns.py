"""EDNS(0), RFC 6891: the OPT record of a query, and the one a reply carries.

Of a client's options none is echoed: RFC 6891, section 6.1.2 leaves each option to the specification that
defines it, and none of those defines an echo. The size in our OPT is what *we* take (section 6.2.3).
"""

from typing import Final, NamedTuple

from kdns.dns import iana
from kdns.dns.errors import FormatError

# What kdns offers to take, and the most it sends over UDP: DNS Flag Day 2020's 1232 octets, the IPv6 minimum
# MTU of 1280 less 48 of IPv6 and UDP headers, so that no reply is ever fragmented.
UDP_SIZE: Final = 1232
MIN_SIZE: Final = 512  # RFC 6891, section 6.2.5: smaller values are treated as 512
DO: Final = 0x8000

NSID: Final = 3
SUBNET: Final = 8  # RFC 7871
COOKIE: Final = 10
EDE: Final = 15


class Edns(NamedTuple):
    """A query's OPT: the sender's UDP size in octets as sent, the DO bit, the version, and the raw options."""

    size: int
    do: bool = False
    version: int = 0
    options: bytes = b""

    @property
    def limit(self) -> int:
        """The octets that a UDP reply to this sender may have."""
        return min(max(self.size, MIN_SIZE), UDP_SIZE)


def opt(size: int = UDP_SIZE, do: bool = False, options: bytes = b"", rcode: int = iana.NOERROR) -> bytes:
    """An OPT record's wire form; `rcode`'s upper 8 bits go into it (RFC 6891, section 6.1.3)."""
    return b"".join((
        b"\0\0\x29", size.to_bytes(2, "big"), bytes((rcode >> 4, 0)), b"\x80\0" if do else b"\0\0",
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
            raise FormatError("an EDNS option is cut")
        stop = off + 4 + (raw[off + 2] << 8 | raw[off + 3])
        if stop > total:
            raise FormatError("an EDNS option runs past its OPT")
        out.append((raw[off] << 8 | raw[off + 1], raw[off + 4 : stop]))
        off = stop
    return out


def from_record(cls: int, ttl: bytes, raw: bytes) -> Edns:
    """The EDNS data of an OPT: its class field, its 4 TTL octets and its rdata. Raises FormatError."""
    for code, payload in options(raw):
        # RFC 7873, section 5.2.2: a COOKIE is 8 octets, or 16 to 40.
        if code == COOKIE and len(payload) != 8 and not 16 <= len(payload) <= 40:
            raise FormatError(f"a COOKIE option of {len(payload)} octets")
    return Edns(cls, bool(ttl[2] & 0x80), ttl[1], raw)
