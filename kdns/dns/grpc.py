"""DNS over gRPC, as CoreDNS speaks it: one method, whose message holds a DNS message.

    package coredns.dns;  service DnsService { rpc Query(DnsPacket) returns (DnsPacket) }  message DnsPacket { bytes msg
    = 1; }

gRPC is HTTP/2: the path names the method, a body is five octets (a flag for compression and a length) and the message,
and the outcome is in the trailers. The message needs two lines of protobuf.
"""

from typing import Final

PATH: Final = b"/coredns.dns.DnsService/Query"
TYPE: Final = b"application/grpc"
_MSG: Final = 0x0A  # field 1, a length and octets
_HEADER: Final = 5


class BadPacket(ValueError):
    """Octets that are no DnsPacket in a gRPC message."""


def packed(message: bytes) -> bytes:
    """A DNS message as the body of a gRPC request or answer."""
    size, length = len(message), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((b"\0", (1 + len(length) + len(message)).to_bytes(4, "big"), bytes((_MSG,)), length, message))


def unpacked(body: bytes) -> bytes:
    """The DNS message in a body. Raises BadPacket."""
    if len(body) < _HEADER or int.from_bytes(body[1:_HEADER], "big") != len(body) - _HEADER:
        raise BadPacket("the length of the message is wrong")
    if body[0]:
        raise BadPacket("the message is compressed, which was not offered")
    message, off = b"", _HEADER
    while off < len(body):
        tag, off = _varint(body, off)
        kind = tag & 7
        if kind == 2:
            size, off = _varint(body, off)
            end = off + size
        elif kind == 0:
            end = _varint(body, off)[1]
        elif kind in (1, 5):
            end = off + (8 if kind == 1 else 4)
        else:
            raise BadPacket("a field of a kind that there is not")
        if end > len(body):
            raise BadPacket("a field that runs past its message")
        if tag == _MSG:
            message = body[off:end]  # of several the last counts; other fields are for later versions
        off = end
    return message


def _varint(body: bytes, off: int) -> tuple[int, int]:
    value = shift = 0
    while off < len(body) and shift < 35:
        octet = body[off]
        off += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, off
        shift += 7
    raise BadPacket("a number that does not end")
