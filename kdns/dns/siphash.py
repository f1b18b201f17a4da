"""SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed hash of 64 bits, the one that RFC 9018 has for server cookies.

In plain Python it costs some 30 µs for 24 octets: callers remember what they have computed.
"""

from typing import Final

_MASK: Final = (1 << 64) - 1


def siphash24(key: bytes, data: bytes) -> bytes:
    """The hash of any octets under a key of 16, as 8 octets, the lowest first. Raises ValueError for another key."""
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 octets, not {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1, v2, v3 = (
        k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573,
    )  # fmt: skip
    # The last word holds what is left, and the length's low octet in its highest.
    padded = data + bytes(7 - len(data) % 8) + bytes((len(data) & 0xFF,))
    for off in range(0, len(padded), 8):
        word = int.from_bytes(padded[off : off + 8], "little")
        v3 ^= word
        v0, v1, v2, v3 = _round(*_round(v0, v1, v2, v3))
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return (v0 ^ v1 ^ v2 ^ v3).to_bytes(8, "little")


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = v0 + v1 & _MASK
    v1 = _left(v1, 13) ^ v0
    v0 = _left(v0, 32)
    v2 = v2 + v3 & _MASK
    v3 = _left(v3, 16) ^ v2
    v0 = v0 + v3 & _MASK
    v3 = _left(v3, 21) ^ v0
    v2 = v2 + v1 & _MASK
    v1 = _left(v1, 17) ^ v2
    return v0, v1, _left(v2, 32), v3


def _left(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & _MASK
