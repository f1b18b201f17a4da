"""IPv4 addresses inside IPv6 addresses, as translators between the two put them (RFC 6052, section 2)."""

import ipaddress
from typing import Final

PREFIX: Final = ipaddress.IPv6Network("64:ff9b::/96")  # the well-known one (RFC 6052, section 2.1)
LENGTHS: Final = (32, 40, 48, 56, 64, 96)  # bits of a prefix (section 2.2)


def embed(prefix: ipaddress.IPv6Network, address: bytes) -> bytes:
    """An IPv4 address in a prefix; octet 8 stays zero (RFC 6052, section 2.2)."""
    out = bytearray(prefix.network_address.packed)
    at = prefix.prefixlen // 8
    for octet in address:
        if at == 8:
            at += 1
        out[at] = octet
        at += 1
    return bytes(out)
