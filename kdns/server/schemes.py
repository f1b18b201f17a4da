"""The schemes of server-block keys that are served: their sockets, and what they offer in a TLS handshake."""

import socket
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scheme:
    """`kinds` are its sockets; `alpn` the protocols it offers by ALPN, the best first; none: it is never encrypted.

    `quic`: it runs over QUIC, so it is always encrypted, and needs aioquic.
    """

    kinds: tuple[socket.SocketKind, ...]
    alpn: tuple[str, ...] = ()
    quic: bool = False


SCHEMES: Final = {
    "dns": Scheme((socket.SOCK_DGRAM, socket.SOCK_STREAM)),
    "https": Scheme((socket.SOCK_STREAM,), ("h2", "http/1.1")),  # RFC 8484
    "grpc": Scheme((socket.SOCK_STREAM,), ("h2",)),
    "quic": Scheme((socket.SOCK_DGRAM,), ("doq",), quic=True),  # RFC 9250
    "https3": Scheme((socket.SOCK_DGRAM,), ("h3",), quic=True),  # RFC 8484 over RFC 9114
    "tls": Scheme((socket.SOCK_STREAM,), ("dot",)),  # RFC 7858; the ALPN name is from IANA's list
}
