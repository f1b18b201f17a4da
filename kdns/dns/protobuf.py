"""The wire format of protobuf messages (protobuf.dev, Encoding), as far as it has to be read: fields are given by their
number, and who reads skips those that it does not know, which is how protobuf takes fields of later versions.
"""

from collections.abc import Iterator

from kdns.dns.errors import FormatError


def fields(data: bytes, bits: int = 64, at: int = 0) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message that begins at an offset: numbers, and octets. Numbers have at most `bits` bits, rounded
    up to sevens. Raises FormatError.
    """
    while at < len(data):
        key, at = _varint(data, at, bits)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at, bits)
            yield key >> 3, number
            continue
        if kind == 2:
            length, at = _varint(data, at, bits)
        elif kind in (1, 5):  # fixed64 and fixed32
            length = 8 if kind == 1 else 4
        else:  # groups, which nobody sends any more, and what is unassigned
            raise FormatError("a field of a kind that there is not")
        if length > len(data) - at:
            raise FormatError("a field that runs past its message")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int, bits: int) -> tuple[int, int]:
    """A number, seven bits to an octet, and the offset behind it. Raises FormatError."""
    value = shift = 0
    while at < len(data) and shift < bits:
        octet = data[at]
        at += 1
        value |= (octet & 127) << shift
        if octet < 128:
            return value, at
        shift += 7
    raise FormatError("a number that does not end")
