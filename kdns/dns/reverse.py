"""Names of the reverse trees: in-addr.arpa (RFC 1035, section 3.5) and ip6.arpa (RFC 3596, section 2.5).

Addresses are packed octets: 4 of IPv4, 16 of IPv6.
"""

from typing import Final

from kdns.dns.name import from_labels, is_within, labels

IN_ADDR: Final = b"\x07in-addr\x04arpa\0"
IP6: Final = b"\x03ip6\x04arpa\0"
_NIBBLES: Final = {ord(c): i for i, c in enumerate("0123456789abcdef")}
_OCTETS: Final = {str(i).encode(): i for i in range(256)}


def name_of(address: bytes) -> bytes:
    """The reverse name of a packed address: 4 octets give in-addr.arpa, 16 give ip6.arpa."""
    if len(address) == 4:
        return from_labels([str(octet).encode() for octet in reversed(address)])[:-1] + IN_ADDR
    nibbles = "".join(f"{octet:02x}" for octet in address)
    return b"".join(b"\x01" + c.encode() for c in reversed(nibbles)) + IP6


def address_of(name: bytes) -> bytes | None:
    """The packed address that a lower-cased reverse name stands for; None if it is not a whole, canonical one."""
    if len(name) == 74 and name[64:] == IP6:
        if name[0:64:2] != b"\x01" * 32:
            return None
        try:
            nibbles = [_NIBBLES[octet] for octet in name[63:0:-2]]
        except KeyError:
            return None
        return bytes(nibbles[i] << 4 | nibbles[i + 1] for i in range(0, 32, 2))
    excess = len(name) - len(IN_ADDR)
    if excess < 8 or name[excess:] != IN_ADDR:
        return None
    out = []
    off = 0
    for _ in range(4):
        size = name[off]
        octet = _OCTETS.get(name[off + 1 : off + 1 + size])
        if octet is None:
            return None
        out.append(octet)
        off += size + 1
    return bytes(reversed(out)) if off == excess else None


def range_below(name: bytes) -> tuple[bytes, bytes] | None:
    """The lowest and the highest packed address whose reverse names are below a lower-cased reverse name.

    None for a whole address, for the trees' apexes, and for names that no address's is below.
    """
    parts = labels(name)
    if len(parts) < 3 or parts[-1] != b"arpa":
        return None
    left = parts[-3::-1]  # the address's digits, the most significant first
    if parts[-2] == b"in-addr" and len(left) < 4:
        octets = [_OCTETS.get(part, -1) for part in left]
        if min(octets) < 0:
            return None
        rest = 4 - len(octets)
        return bytes(octets) + b"\0" * rest, bytes(octets) + b"\xff" * rest
    if parts[-2] == b"ip6" and len(left) < 32:
        try:
            digits = "".join([chr(part[0]) for part in left if len(part) == 1 and part[0] in _NIBBLES])
            if len(digits) != len(left):
                return None
            return bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))
        except ValueError:
            return None
    return None


def is_reverse(name: bytes) -> bool:
    """True if a lower-cased name is one of the two reverse trees' apexes or below."""
    return is_within(name, IN_ADDR) or is_within(name, IP6)
