"""The listener of DNS over HTTPS and gRPC: its connections' requests are answered by a service.

The laws are those of TCP's listener (net.tcp), and its connections' (net.web_connection).
"""

import socket
from collections.abc import Callable

from kdns.net import Handler, StreamProtocol
from kdns.net.http2 import Exchange
from kdns.net.tcp import TcpListener
from kdns.net.web_connection import WebConnection

Service = Callable[[WebConnection, Exchange], None]


class WebListener(TcpListener):
    """Accepts connections whose requests a service answers. `trusted` are proxies whose X-Forwarded-For counts."""

    def __init__(self, sock: socket.socket, handler: Handler, label: str, service: Service, *, http1: bool) -> None:
        super().__init__(sock, handler, label)
        self.service = service
        self.http1 = http1

    def after_tls(self) -> StreamProtocol:
        return WebConnection(self)

    def stop_accepting(self) -> None:
        super().stop_accepting()
        for connection in list(self.connections):
            if isinstance(connection, WebConnection):
                connection.say_goodbye()
