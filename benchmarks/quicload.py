"""A client that asks one question over and over by DNS over QUIC or HTTP/3, for benchmarks: what it costs a server.

    python -m benchmarks.quicload doq|h3 PORT NAME SECONDS CONNECTIONS IN-FLIGHT

It is aioquic's state machine in a loop of its own. IN-FLIGHT queries are on their way on each connection at a time.
Prints how many were answered, the time in seconds, and the datagrams sent and received.
"""

import base64
import select
import socket
import ssl
import sys
import time
from typing import Any, Final

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

MAX_DATAGRAM: Final = 4096


class Client:
    """One connection."""

    def __init__(self, alpn: str, port: int, query: bytes, most: int) -> None:
        self.alpn = "doq" if alpn == "doq" else "h3"
        configuration = QuicConfiguration(alpn_protocols=[self.alpn], verify_mode=ssl.CERT_NONE)
        self.quic = QuicConnection(configuration=configuration)
        self.http: H3Connection | None = None
        self.query = query
        self.most = most
        self.waiting = 0
        self.done = self.sent = self.received = 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.server = ("127.0.0.1", port)
        self.sock.connect(self.server)
        self.quic.connect(self.server, time.monotonic())
        self.head = [
            (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"dns.example.net"),
            (b":path", b"/dns-query?dns=" + base64.urlsafe_b64encode(query).rstrip(b"=")),
            (b"accept", b"application/dns-message"),
        ]  # fmt: skip

    def ask(self) -> None:
        """Fills up what is in flight."""
        while self.waiting < self.most:
            stream = self.quic.get_next_available_stream_id()
            if self.http is None:
                self.quic.send_stream_data(stream, len(self.query).to_bytes(2, "big") + self.query, True)
            else:
                self.http.send_headers(stream, self.head, end_stream=True)
            self.waiting += 1

    def receive(self) -> None:
        """Takes what has come."""
        now = time.monotonic()
        while True:
            try:
                data = self.sock.recv(MAX_DATAGRAM)
            except BlockingIOError:
                break
            self.received += 1
            self.quic.receive_datagram(data, self.server, now)
        self._events()

    def _events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.http = H3Connection(self.quic) if self.alpn == "h3" else None
                self.ask()
            elif isinstance(event, events.ConnectionTerminated):
                raise SystemExit(f"the connection was ended: {event.error_code} {event.reason_phrase}")
            elif self.http is not None:
                for each in self.http.handle_event(event):
                    if isinstance(each, HeadersReceived | DataReceived) and each.stream_ended:
                        self._answered()
            elif isinstance(event, events.StreamDataReceived) and event.end_stream:
                self._answered()

    def _answered(self) -> None:
        self.done += 1
        self.waiting -= 1
        self.ask()

    def send(self) -> float:
        """Sends what there is; gives the time until its timer."""
        now = time.monotonic()
        at = self.quic.get_timer()
        if at is not None and now >= at:
            self.quic.handle_timer(now)
            self._events()
        for data, _ in self.quic.datagrams_to_send(now):
            self.sent += 1
            self.sock.send(data)
        at = self.quic.get_timer()
        return at - now if at is not None else 1.0


def main(words: list[str]) -> None:
    """Asks for a time."""
    alpn, port, name, seconds, connections, most = words
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\0\0\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    clients = {}
    for _ in range(int(connections)):
        client = Client(alpn, int(port), query, int(most))
        clients[client.sock.fileno()] = client
    poll = select.epoll()
    for fd in clients:
        poll.register(fd, select.EPOLLIN)
    began = time.monotonic()
    end = began + float(seconds)
    wait = {fd: client.send() for fd, client in clients.items()}
    while time.monotonic() < end:
        ready: list[Any] = poll.poll(max(0.0, min(wait.values())))
        for fd in {fd for fd, _ in ready} | {fd for fd in clients if wait[fd] <= 0 or not ready}:
            clients[fd].receive()
            wait[fd] = clients[fd].send()
    took = time.monotonic() - began
    every = list(clients.values())
    print(
        sum(each.done for each in every), took, sum(each.sent for each in every), sum(each.received for each in every)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
