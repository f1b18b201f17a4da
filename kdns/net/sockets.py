"""Making sockets: options, buffers, and what a failed bind means to a person."""

import contextlib
import errno
import socket
import struct
from typing import Final

from kdns.address import address, family_of, host_port
from kdns.net import Address

# What a listener asks of the kernel: the default of 212,992 octets holds 256 small datagrams, 10 ms of load.
RECEIVE_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
IP_PKTINFO: Final = 8

Controls = list[tuple[int, int, bytes]]  # ancillary data of a message: level, type, octets


class BindError(OSError):
    """An address could not be bound; the text says what to do."""


def wildcard_hosts() -> list[str]:
    """What "every address" is on this machine: 0.0.0.0, and :: where there is IPv6."""
    hosts = ["0.0.0.0"]
    if socket.has_ipv6:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
            hosts.append("::")
    return hosts


def bind(kind: socket.SocketKind, host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A bound, non-blocking socket. Raises BindError."""
    sock = socket.socket(family_of(host), kind)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address(host, port))
    except OSError as error:
        sock.close()
        raise bind_error(error, kind, host, port) from None
    sock.setblocking(False)
    if kind == socket.SOCK_DGRAM:
        _enlarge(sock)
    return sock


def probe(kind: socket.SocketKind, host: str, port: int) -> None:
    """Binds once without SO_REUSEPORT and lets go: raises BindError if another process has the port."""
    if port:
        bind(kind, host, port, reuse_port=False).close()


def bind_error(error: OSError, kind: socket.SocketKind, host: str, port: int) -> BindError:
    """A bind's failure in one line that says what to do."""
    what = f"{'udp' if kind == socket.SOCK_DGRAM else 'tcp'} {host_port(host, port)}"
    if error.errno == errno.EADDRINUSE:
        text = (
            f"cannot listen on {what}: another process has this port. Stop it, choose another port with -dns.port or "
            f"in the "
            "Corefile, or share the port on purpose with -share-port"
        )
    elif error.errno in (errno.EACCES, errno.EPERM):
        text = (
            f"cannot listen on {what}: permission denied. Ports below 1024 need the capability NET_BIND_SERVICE "
            f"(setcap "
            "cap_net_bind_service=+ep on the interpreter), the sysctl net.ipv4.ip_unprivileged_port_start=0, or "
            "another port "
            "(-dns.port 1053)"
        )
    elif error.errno == errno.EADDRNOTAVAIL:
        text = f"cannot listen on {what}: this machine does not have the address. See `ip addr`, or change `bind`"
    else:
        text = f"cannot listen on {what}: {error.strerror or error}"
    return BindError(error.errno, text)


def receive_local(sock: socket.socket) -> None:
    """Has datagrams come with their packet info: the address they went to (RFC 3542, section 6.1)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def reply_from(info: bytes) -> Controls:
    """The control data that makes a datagram leave from where another one went to, by its packet info."""
    if len(info) == 12:
        # struct in_pktinfo: index, spec_dst, addr. Index 0: the route is free, the source is not.
        return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, info[4:8], b"\0" * 4))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)] if len(info) == 20 else []


def went_to(info: bytes, local: Address) -> Address:
    """The address that a datagram went to, by its packet info; `local` is the socket's own."""
    if len(info) == 12:
        return (socket.inet_ntop(socket.AF_INET, info[8:12]), local[1])
    return (socket.inet_ntop(socket.AF_INET6, info[:16]), local[1], 0, 0) if len(info) == 20 else local


def _enlarge(sock: socket.socket) -> None:
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
            return


def drops(sock: socket.socket) -> int:
    """Datagrams the kernel dropped at this socket because its buffer was full."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        return int(struct.unpack_from("=I", raw, 4 * _MEMINFO_DROPS)[0])
    except (OSError, struct.error):
        return 0
