"""The wire format of HTTP/2: frames (RFC 9113, section 4) and header fields without a table (RFC 7541). Pure."""

from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME: Final = 16_384  # octets of a frame: the least there is (section 6.5.2), and a query's many times over

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20


class Http2Error(Exception):
    """An error that ends the connection. `code` is what GOAWAY says."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame's wire form (section 4.1)."""
    return b"".join((len(payload).to_bytes(3, "big"), bytes((kind, flags)), stream.to_bytes(4, "big"), payload))


def field(name: bytes, value: bytes) -> bytes:
    """A field that is in no table (RFC 7541, section 6.2.2)."""
    if len(name) < 0x7F and len(value) < 0x7F:
        return b"".join((b"\0", bytes((len(name),)), name, bytes((len(value),)), value))
    return b"".join((b"\0", _length(name), name, _length(value), value))


def _length(string: bytes) -> bytes:
    """A string's length in octets (sections 5.1 and 5.2): seven bits and, of what is more, seven in each octet."""
    left = len(string) - 0x7F
    if left < 0:
        return bytes((len(string),))
    out = bytearray((0x7F,))
    while left >= 0x80:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def leaves_table(block: bytes) -> bool:
    """True if a well-formed block of fields leaves the table as it is: indexes, and literals that are not put there.

    RFC 7541, section 6. Where a length leads outside, the answer is no.
    """
    off, total = 0, len(block)
    try:
        while off < total:
            octet = block[off]
            if octet & 0x80:
                off = _end_of_integer(block, off, 0x7F)
                continue
            if octet & 0x60:
                return False
            off = _end_of_integer(block, off, 0x0F)
            for _ in range(1 if octet & 0x0F else 2):  # a name that is not an index, and the value
                size = block[off] & 0x7F
                if size == 0x7F:
                    return False
                off += 1 + size
    except IndexError:
        return False
    return off == total


def too_many_sizes(block: bytes) -> bool:
    """True if a block begins with more new sizes of the table than an encoder ever needs: the smallest that it had
    since the last block, and the one it has (RFC 7541, section 4.2). A decoder would go on for 16,000 of them.
    """
    off = count = 0
    while off < len(block) and block[off] & 0xE0 == 0x20 and count <= 2:
        try:
            off = _end_of_integer(block, off, 0x1F)
        except IndexError:
            return False  # the decoder says what is wrong
        count += 1
    return count > 2


def _end_of_integer(block: bytes, off: int, mask: int) -> int:
    """Where an integer ends (section 5.1)."""
    long = block[off] & mask == mask
    off += 1
    while long:
        long = bool(block[off] & 0x80)
        off += 1
    return off


def unpadded(flags: int, payload: bytes) -> bytes:
    """A payload without its padding (section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
