"""The sockets of a listener: bound for UDP and TCP together, given to a dispatcher, handed to the next one at a
reload.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from kdns.dns import doq, edns
from kdns.net import Handler, Process, doh, grpc, sockets
from kdns.net.interfaces import addresses
from kdns.net.proxy import ProxyGate
from kdns.net.tcp import TcpListener
from kdns.net.udp import BUFFER, DROPPED, UdpListener
from kdns.net.web import WebListener
from kdns.server.build import Group
from kdns.server.dispatch import Dispatcher
from kdns.server.schemes import SCHEMES

# Sockets bound to single addresses beside a wildcard. A node has a few; one with more does without.
MAX_OWN_ADDRESSES: Final = 8


@dataclass(slots=True)
class Listeners:
    """The sockets of one group."""

    udp: list[UdpListener] = field(default_factory=list)
    tcp: list[TcpListener] = field(default_factory=list)

    def use(self, dispatcher: Dispatcher) -> None:
        """Answers with another dispatcher from the next query on."""
        datagrams, messages = _handlers(dispatcher)
        for udp in self.udp:
            udp.handler = datagrams
            udp.shed = dispatcher.settings.shed
        for tcp in self.tcp:
            tcp.handler = messages
            _limit(tcp, dispatcher)

    async def start(self) -> None:
        """Begins to read and accept."""
        for udp in self.udp:
            udp.start()
        for tcp in self.tcp:
            await tcp.start()

    def retire(self, *, shared: bool) -> None:
        """Takes nothing new; what has come is answered. `shared`: what comes now is for others on these ports."""
        for tcp in self.tcp:
            tcp.stop_accepting()
        for udp in self.udp:
            if shared:
                udp.retire()
            udp.drain()

    def unsent(self) -> bool:
        """True if clients have not got all that was answered."""
        return any(tcp.unsent() for tcp in self.tcp)

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


def probe(group: Group, ours: Iterable[Group]) -> None:
    """Raises BindError if another process has the port: SO_REUSEPORT alone would let two share it unknowingly.

    `ours` are the groups that this server has opened: what has the port may be one of them, of another scheme or on
    other addresses, which the reload closes.
    """
    had = {kind for other in ours if other.port == group.port for kind in SCHEMES[other.scheme].kinds}
    for host in [group.host] if group.host else sockets.wildcard_hosts():
        for kind in SCHEMES[group.scheme].kinds:
            if kind not in had:
                sockets.probe(kind, host, group.port)


def open_group(group: Group, dispatcher: Dispatcher, process: Process) -> Listeners:
    """The bound sockets of a group; those opened before a failure are closed. Raises BindError."""
    out = Listeners()
    label = group.label
    datagrams, messages = _handlers(dispatcher)
    try:
        wildcard = not group.host
        for host in [group.host] if group.host else sockets.wildcard_hosts():
            if SCHEMES[group.scheme].quic:
                sock = sockets.bind(socket.SOCK_DGRAM, host, group.port, reuse_port=True)
                out.tcp.append(_quic_listener(group.scheme, sock, messages, label, process, wildcard))
                _limit(out.tcp[-1], dispatcher)
                continue
            if socket.SOCK_DGRAM in SCHEMES[group.scheme].kinds:
                sock = sockets.bind(socket.SOCK_DGRAM, host, group.port, reuse_port=True)
                out.udp.append(UdpListener(sock, datagrams, label, wildcard=wildcard))
            sock = sockets.bind(socket.SOCK_STREAM, host, group.port, reuse_port=True)
            out.tcp.append(_stream_listener(group.scheme, sock, messages, label))
            _limit(out.tcp[-1], dispatcher)
        if wildcard and out.udp:
            out.udp += _own_addresses(group, dispatcher, label)
        for udp in out.udp:
            udp.shed = dispatcher.settings.shed
    except BaseException:
        out.stop()
        raise
    return out


def _handlers(dispatcher: Dispatcher) -> tuple[Handler, Handler]:
    """What answers datagrams, and messages of connections."""
    datagrams, messages = dispatcher.handlers()
    if dispatcher.settings.proxy is not None:
        datagrams = ProxyGate(dispatcher.settings.proxy, dispatcher.label).datagrams(datagrams)
    return datagrams, messages


def _stream_listener(scheme: str, sock: socket.socket, handler: Handler, label: str) -> TcpListener:
    """What accepts a scheme's connections."""
    if scheme == "https":
        return WebListener(sock, handler, label, doh.serve, http1=True)
    if scheme == "grpc":
        return WebListener(sock, handler, label, grpc.serve, http1=False)
    return TcpListener(sock, handler, label)


def _quic_listener(
    scheme: str, sock: socket.socket, handler: Handler, label: str, process: Process, wildcard: bool
) -> TcpListener:
    """What accepts connections over QUIC. Its library is an extra, and only imported where it is used."""
    from kdns.net.doq import Doq
    from kdns.net.http3 import NO_ERROR, OVERLOAD, Http3
    from kdns.net.quic import QuicListener

    made = partial(QuicListener, sock, handler, label, process=process, wildcard=wildcard)
    if scheme == "https3":
        return made(Http3, no_error=NO_ERROR, overload=OVERLOAD)
    return made(Doq, no_error=doq.NO_ERROR, overload=doq.EXCESSIVE_LOAD)


def _limit(tcp: TcpListener, dispatcher: Dispatcher) -> None:
    """Sets what `timeouts`, `limits`, `tls`, `https`, `grpc_server` and `proxyproto` ask for."""
    asked = dispatcher.settings
    tcp.limit(asked.read, asked.idle, asked.connections, asked.client_connections, asked.exempt)
    tcp.max_queries = asked.max_queries
    tcp.max_streams = asked.max_streams
    # A second less than it is, as everywhere: the client should be the first to close. In tenths of a second.
    # HTTP has its own ways to say it.
    packer = dispatcher.packer
    if packer.transfers:
        packer.keepalive = edns.option(edns.KEEPALIVE, min(int((tcp.idle - 1) * 10), 0xFFFF).to_bytes(2, "big"))
    tcp.http = asked.http
    tcp.proxy = ProxyGate(asked.proxy, dispatcher.label) if asked.proxy is not None else None
    tcp.identify(dispatcher.identities, dispatcher.label)


def _own_addresses(group: Group, dispatcher: Dispatcher, label: str) -> list[UdpListener]:
    """Sockets bound to this machine's addresses, beside a wildcard: the kernel prefers them, and replies need no packet
    info.
    """
    mine = [found.address for found in addresses() if not found.link_local]
    out: list[UdpListener] = []
    if group.port and len(mine) <= MAX_OWN_ADDRESSES:
        for host in mine:
            try:
                sock = sockets.bind(socket.SOCK_DGRAM, host, group.port, reuse_port=True)
            except OSError:
                continue  # the wildcard has it
            out.append(UdpListener(sock, _handlers(dispatcher)[0], label))
    return out
