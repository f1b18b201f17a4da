"""What tests of dnstap write: frames and messages, put together by hand from the two specifications."""

import struct

CONTENT = b"protobuf:dnstap.Dnstap"
STOP = struct.pack("!III", 0, 4, 3)
CLIENT_QUERY, CLIENT_RESPONSE = 5, 6


def start(content: bytes = CONTENT) -> bytes:
    body = struct.pack("!III", 2, 1, len(content)) + content
    return struct.pack("!II", 0, len(body)) + body


def frame(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes, kind: int | None = None) -> bytes:
    if isinstance(value, int):
        return varint(number << 3 | (kind or 0)) + varint(value)
    if kind is not None:  # of a fixed size
        return varint(number << 3 | kind) + value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(query: bytes | None, kind: int = CLIENT_QUERY) -> bytes:
    """A Dnstap with all that servers put into it."""
    inner = field(1, kind) + field(2, 1) + field(3, 1) + field(4, bytes([10, 244, 0, 5])) + field(6, 53211)
    inner += field(8, 1_700_000_000) + field(9, b"\1\2\3\4", 5)
    inner += field(10, query) if query is not None else b""
    return field(1, b"ns1") + field(2, b"CoreDNS-1.14") + field(14, inner) + field(15, 1)


def stream(*queries: bytes) -> bytes:
    return start() + b"".join(frame(message(each)) for each in queries) + STOP
