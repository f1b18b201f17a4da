"""Rdata: what stands in it, as far as a name server must know.

Three kinds of knowledge: where names are (they may be compressed in the types of RFC 1035 and must be expanded
before an rdata is moved, RFC 3597 section 4), how long it must be, and how the few types kdns makes are packed.
"""

from typing import Final

from kdns.dns import iana

# The layout of the types that hold names: octets before, then names, then what is left (True: any length).
# The first table is RFC 1035's (and RFC 1183's, which RFC 3597, section 4 counts with them for receivers):
# names in it may arrive compressed. kdns itself compresses only in COMPRESSIBLE.
NAMES_AT: Final[dict[int, tuple[int, int, int]]] = {
    iana.NS: (0, 1, 0), 3: (0, 1, 0), 4: (0, 1, 0), iana.CNAME: (0, 1, 0), iana.SOA: (0, 2, 20),
    7: (0, 1, 0), 8: (0, 1, 0), 9: (0, 1, 0), iana.PTR: (0, 1, 0), 14: (0, 2, 0), iana.MX: (2, 1, 0),
    17: (0, 2, 0), 18: (2, 1, 0), 21: (2, 1, 0), 26: (2, 2, 0), iana.SRV: (6, 1, 0), 36: (2, 1, 0),
    iana.DNAME: (0, 1, 0),
}  # fmt: skip
COMPRESSIBLE: Final = frozenset((iana.NS, 3, 4, iana.CNAME, iana.SOA, 7, 8, 9, iana.PTR, 14, iana.MX))
FIXED: Final[dict[int, int]] = {iana.A: 4, iana.AAAA: 16}


# Timers in seconds (RFC 1035, section 3.3.13) of an SOA that comes from no zone file, CoreDNS's. Nothing transfers such
# a zone by them; resolvers read the minimum.
REFRESH: Final = 7200
RETRY: Final = 1800
EXPIRE: Final = 86400


def soa(mname: bytes, rname: bytes, serial: int, refresh: int, retry: int, expire: int, minimum: int) -> bytes:
    """An SOA's rdata (RFC 1035, section 3.3.13); times in seconds."""
    numbers = (serial, refresh, retry, expire, minimum)
    return mname + rname + b"".join((n & 0xFFFFFFFF).to_bytes(4, "big") for n in numbers)


def is_newer(serial: int, than: int) -> bool:
    """Whether a serial is that of a later version (RFC 1982, section 3.2)."""
    return 0 < (serial - than) & 0xFFFFFFFF < 1 << 31


def srv(priority: int, weight: int, port: int, target: bytes) -> bytes:
    """An SRV's rdata (RFC 2782)."""
    return priority.to_bytes(2, "big") + weight.to_bytes(2, "big") + port.to_bytes(2, "big") + target


def txt(*strings: bytes) -> bytes:
    """A TXT's rdata; each string at most 255 octets (RFC 1035, section 3.3.14)."""
    return b"".join(bytes((len(string),)) + string for string in strings)
