"""TCP connections whose dead peer is noticed by the kernel, idle or not (tcp(7))."""

import asyncio
import contextlib
import socket


def keep_alive(transport: asyncio.BaseTransport, idle: int, interval: int, probes: int, unacknowledged: float) -> None:
    """Sets keepalive, where the system has it.

    A peer is probed after `idle` seconds without traffic, then every `interval`; `probes` without an answer end the
    connection. So do octets of ours that nobody acknowledges for `unacknowledged` seconds (TCP_USER_TIMEOUT), which
    also ends probing early where it is the shorter.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unacknowledged * 1000))
