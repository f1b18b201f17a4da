"""DNS over gRPC, as CoreDNS speaks it: one method, whose message holds a DNS message.

    package coredns.dns;  service DnsService { rpc Query(DnsPacket) returns (DnsPacket) }  message DnsPacket { bytes msg
    = 1; }

gRPC is HTTP/2: the path names the method, a body is five octets (a flag for compression and a length) and the message,
and the outcome is in the trailers. The message is one field of protobuf.
"""

from typing import Final

from kdns.dns.errors import FormatError
from kdns.dns.protobuf import fields

PATH: Final = b"/coredns.dns.DnsService/Query"
TYPE: Final = b"application/grpc"
_MSG: Final = 0x0A  # field 1, a length and octets
_HEADER: Final = 5
_BITS: Final = 32  # of a number in a message: it says how long a DNS message is


class BadPacket(ValueError):
    """Octets that are not a DnsPacket in a gRPC message."""


class Compressed(BadPacket):
    """A message in an encoding that was not offered."""


def packed(message: bytes) -> bytes:
    """A DNS message as the body of a gRPC request or answer."""
    size, length = len(message), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((b"\0", (1 + len(length) + len(message)).to_bytes(4, "big"), bytes((_MSG,)), length, message))


def unpacked(body: bytes) -> bytes:
    """The DNS message in a body. Raises BadPacket, which is Compressed where the message is."""
    if len(body) < _HEADER or int.from_bytes(body[1:_HEADER], "big") != len(body) - _HEADER:
        raise BadPacket("the length of the message is wrong")
    if body[0]:
        raise Compressed("the message is compressed, which was not offered")
    message = b""
    try:
        for number, value in fields(body, _BITS, _HEADER):
            if number == 1 and type(value) is bytes:
                message = value  # of several the last counts; other fields are for later versions
    except FormatError as error:
        raise BadPacket(str(error)) from None
    return message
