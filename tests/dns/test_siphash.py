"""SipHash-2-4 by the vectors of its authors and of RFC 9018."""

import pytest

from kdns.dns.siphash import siphash24

KEY = bytes(range(16))


# The reference implementation's vectors: the octets 0, 1, 2, ... of each length.
@pytest.mark.parametrize(("length", "expected"), [
    (0, "310e0edd47db6f72"), (1, "fd67dc93c539f874"), (7, "37d1018bf50002ab"), (8, "6224939a79f5f593"),
    (15, "e545be4961ca29a1"), (63, "724506eb4c328a95"),
])  # fmt: skip
def test_the_hash_is_that_of_the_reference(length: int, expected: str) -> None:
    assert siphash24(KEY, bytes(range(length))).hex() == expected


def test_another_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 octets, not 15"):
        siphash24(bytes(15), b"")
