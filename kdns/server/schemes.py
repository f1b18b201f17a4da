"""The schemes of server-block keys that are served: their sockets, and what they offer in a TLS handshake."""

import socket
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scheme:
    """`kinds` are its sockets; `alpn` the protocols it offers by ALPN, the best first; none: it is never encrypted."""

    kinds: tuple[socket.SocketKind, ...]
    alpn: tuple[str, ...] = ()


SCHEMES: Final = {
    "dns": Scheme((socket.SOCK_DGRAM, socket.SOCK_STREAM)),
    "https": Scheme((socket.SOCK_STREAM,), ("h2", "http/1.1")),  # RFC 8484
    "grpc": Scheme((socket.SOCK_STREAM,), ("h2",)),
    "tls": Scheme((socket.SOCK_STREAM,), ("dot",)),  # RFC 7858; the ALPN name is from IANA's list
}
