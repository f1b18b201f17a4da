"""Socket addresses: text, tuples, families. Pure; for the layers that have sockets."""

import ipaddress
import socket


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


def host_port(host: str, port: int) -> str:
    """`127.0.0.1:53`, `[::1]:53`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, int]:
    """`[::1]:53`, `127.0.0.1:53`, `:53`, `localhost:53` as host (perhaps empty) and port. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'expected host:port, found "{text}"')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        ipaddress.IPv6Address(host.partition("%")[0])
    elif ":" in host:
        raise ValueError(f'an IPv6 address needs brackets: "{text}"')
    return host, int(port)
