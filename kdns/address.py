"""Socket addresses: text, tuples, families. Pure; for the layers that have sockets."""

import ipaddress
import socket
from typing import Final

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


def family_of(host: str) -> socket.AddressFamily:
    """The address family of a literal address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """A socket address; an IPv6 zone (`%eth0`) becomes its scope."""
    if ":" not in host:
        return (host, port)
    bare, _, zone = host.partition("%")
    scope = 0
    if zone:
        scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return (bare, port, 0, scope)


def unmapped(packed: bytes) -> bytes:
    """A packed address; one of IPv4 in IPv6 form (`::ffff:192.0.2.7`, RFC 4291, section 2.5.5.2) as the IPv4 address
    that it is.
    """
    return packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed


def named(packed: bytes, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The socket address of an end of a connection that a proxy in front names, spelled as the kernel spells a peer's.
    What is told apart by addresses (`acl`, `view`, `limits`) knows a client by one of them, so that of IPv4 is one of
    IPv4: a proxy that listens on `::` for both families may name it in IPv6 form.
    """
    plain = unmapped(packed)
    if len(plain) == 4:
        return (socket.inet_ntop(socket.AF_INET, plain), port)
    return (socket.inet_ntop(socket.AF_INET6, plain), port, 0, 0)


def host_port(host: str, port: int) -> str:
    """`127.0.0.1:53`, `[::1]:53`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str, default: int | None = None) -> tuple[str, int]:
    """HOST:PORT as host and port: `192.0.2.1:53`, `[::1]:53`, `name:53`. The zone of an IPv6 address (`%eth0`) stays
    with it.

    With a default it is where to go: there must be a host, and the port (1 to 65535) may be left out: `::1`, `[::1]`,
    `name`. Without one it is where to listen: there must be a port (0 to 65535), and an empty host is every address:
    `:53`. Raises ValueError, whose text names the word.
    """
    host, colon, port = text, "", ""
    if text.startswith("["):
        inner, end, rest = text[1:].partition("]")
        if not end or not is_address(inner) or (rest and rest[0] != ":"):
            raise ValueError(f'expected an IP address in brackets and perhaps a colon and a port, found "{text}"')
        host, colon, port = inner, rest[:1], rest[1:]
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    elif ":" in text and not is_address(text):
        raise ValueError(f'expected host:port, found "{text}" (with a port, an IPv6 address needs brackets: [::1]:53)')
    if default is None and not colon:
        raise ValueError(
            f'expected host:port, found "{text}"' + (": an IPv6 address needs brackets" if ":" in text else "")
        )
    if default is not None and not host:
        raise ValueError(f'a host is missing in "{text}"')
    if not colon:
        assert default is not None
        return host, default
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    if not (default is not None) <= number <= 65535:
        raise ValueError(f'"{port}" is not a port, in "{text}"')
    return host, number


def is_address(text: str) -> bool:
    """Whether a text is an IP address, perhaps with a zone (`%eth0`)."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
