"""A relay before a server's port, which counts and cuts what comes back."""

import contextlib
import socket
import threading
from collections.abc import Callable

from kdns.testing import free_port


class Relay:
    """Stands before a server's port, `to`, and counts what comes back over TCP; `more` is called with each count, and
    an OSError that it raises cuts the connection.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self.octets = 0
        self.more: Callable[[int], None] = lambda octets: None
        self.port = free_port()
        self.tcp = socket.create_server(("127.0.0.1", self.port))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        for run in (self._accept, self._datagrams):
            threading.Thread(target=run, daemon=True).start()

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self.udp.recvfrom(65535)
                with (
                    contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
                ):  # fmt: skip
                    out.settimeout(1)
                    out.connect(("127.0.0.1", self.to))
                    out.send(data)
                    self.udp.sendto(out.recv(65535), peer)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.tcp.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.to), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if back:
                    self.octets += len(data)
                    self.more(self.octets)
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            if back:
                each.close()

    def close(self) -> None:
        """Ends it."""
        for each in (self.tcp, self.udp):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
