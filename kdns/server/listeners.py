"""The sockets of a listener: bound for UDP and TCP together, given to a dispatcher, handed to the next one at a reload."""

import socket
from dataclasses import dataclass, field
from typing import Final

from kdns.net import sockets
from kdns.net.interfaces import addresses
from kdns.net.tcp import TcpListener
from kdns.net.udp import BUFFER, DROPPED, UdpListener
from kdns.server.build import Group
from kdns.server.dispatch import Dispatcher

# Sockets bound to single addresses beside a wildcard. A node has a few; one with more does without.
MAX_OWN_ADDRESSES: Final = 8


@dataclass(slots=True)
class Listeners:
    """The sockets of one group."""

    udp: list[UdpListener] = field(default_factory=list)
    tcp: list[TcpListener] = field(default_factory=list)

    def use(self, dispatcher: Dispatcher) -> None:
        """Answers with another dispatcher from the next query on."""
        datagrams, messages = dispatcher.handlers()
        for udp in self.udp:
            udp.handler = datagrams
        for tcp in self.tcp:
            tcp.handler = messages
            _limit(tcp, dispatcher)

    async def start(self) -> None:
        """Begins to read and accept."""
        for udp in self.udp:
            udp.start()
        for tcp in self.tcp:
            await tcp.start()

    def stop(self) -> None:
        """Closes all sockets."""
        for udp in self.udp:
            udp.stop()
        for tcp in self.tcp:
            tcp.stop()

    def refresh(self, label: str) -> None:
        """Brings the sockets' metrics up to date."""
        BUFFER.slot(label)[0] = sum(udp.receive_buffer() for udp in self.udp)
        DROPPED.slot(label)[0] = sum(udp.kernel_drops() for udp in self.udp)


def probe(group: Group) -> None:
    """Raises BindError if another process has the port: SO_REUSEPORT alone would let two share it unknowingly."""
    for host in [group.host] if group.host else sockets.wildcard_hosts():
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sockets.probe(kind, host, group.port)


def open_group(group: Group, dispatcher: Dispatcher) -> Listeners:
    """The bound sockets of a group; those opened before a failure are closed. Raises BindError."""
    out = Listeners()
    label = group.label
    datagrams, messages = dispatcher.handlers()
    try:
        wildcard = not group.host
        for host in [group.host] if group.host else sockets.wildcard_hosts():
            sock = sockets.bind(socket.SOCK_DGRAM, host, group.port, reuse_port=True)
            out.udp.append(UdpListener(sock, datagrams, label, wildcard=wildcard))
            sock = sockets.bind(socket.SOCK_STREAM, host, group.port, reuse_port=True)
            out.tcp.append(TcpListener(sock, messages, label))
            _limit(out.tcp[-1], dispatcher)
        if wildcard:
            out.udp += _own_addresses(group, dispatcher, label)
    except BaseException:
        out.stop()
        raise
    return out


def _limit(tcp: TcpListener, dispatcher: Dispatcher) -> None:
    """Sets what `timeouts` and `limits` ask for."""
    tcp.limit(dispatcher.read, dispatcher.idle, dispatcher.connections, dispatcher.client_connections, dispatcher.exempt)
    tcp.max_queries = dispatcher.max_queries


def _own_addresses(group: Group, dispatcher: Dispatcher, label: str) -> list[UdpListener]:
    """Sockets bound to this machine's addresses, beside a wildcard: the kernel prefers them, and replies need no packet info."""
    mine = [found.address for found in addresses() if not found.link_local]
    out: list[UdpListener] = []
    if group.port and len(mine) <= MAX_OWN_ADDRESSES:
        for host in mine:
            try:
                sock = sockets.bind(socket.SOCK_DGRAM, host, group.port, reuse_port=True)
            except OSError:
                continue  # the wildcard has it
            out.append(UdpListener(sock, dispatcher.handlers()[0], label))
    return out
