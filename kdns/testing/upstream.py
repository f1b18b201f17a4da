"""Scripted upstreams on loopback: they answer over UDP and TCP as a function says."""

import contextlib
import socket
import threading
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rrset

from kdns.testing.loop import free_port

Script = Callable[[dns.message.Message, str], list[bytes] | dns.message.Message | None]


def answer(query: dns.message.Message, *records: str, ttl: int = 60, ra: bool = True) -> dns.message.Message:
    """A reply with records such as `A 192.0.2.1`, owned by the question."""
    reply = dns.message.make_response(query, recursion_available=ra)
    for record in records:
        rtype, _, data = record.partition(" ")
        reply.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", rtype, data))
    return reply


def soa(
    reply: dns.message.Message, zone: str = "example.org.", ttl: int = 60, minimum: int = 60
) -> dns.message.Message:
    """Adds a zone's SOA to a negative reply."""
    reply.authority.append(
        dns.rrset.from_text(zone, ttl, "IN", "SOA", f"ns.{zone.lstrip('.')} mail.{zone.lstrip('.')} 1 2 3 4 {minimum}")
    )
    return reply


class Upstream:
    """Answers by a script `(query, proto) -> reply, raw datagrams, or None for silence`; counts what it gets."""

    def __init__(self, script: Script, *, tcp: bool = True) -> None:
        self.script = script
        self.queries: list[dns.message.Message] = []
        self.protos: list[str] = []
        self.ports: list[int] = []
        self.closing = False
        self.port = free_port()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.tcp.bind(("127.0.0.1", self.port))
        self.threads = [threading.Thread(target=self._serve_udp, daemon=True)]
        if tcp:
            self.tcp.listen(64)
            self.threads.append(threading.Thread(target=self._serve_tcp, daemon=True))
        for thread in self.threads:
            thread.start()

    @property
    def address(self) -> str:
        """ADDRESS:PORT, for a Corefile."""
        return f"127.0.0.1:{self.port}"

    def _play(self, data: bytes, proto: str, port: int) -> list[bytes]:
        query = dns.message.from_wire(data)
        self.queries.append(query)
        self.protos.append(proto)
        self.ports.append(port)
        said = self.script(query, proto)
        if said is None:
            return []
        return said if isinstance(said, list) else [said.to_wire(max_size=65535)]

    def _serve_udp(self) -> None:
        while not self.closing:
            try:
                data, peer = self.udp.recvfrom(65535)
            except OSError:
                return
            if not data:  # sent by `close`
                return
            try:
                for part in self._play(data, "udp", peer[1]):
                    self.udp.sendto(part, peer)
            except OSError:
                return  # closed meanwhile

    def _serve_tcp(self) -> None:
        while not self.closing:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        with connection:
            stream = connection.makefile("rwb")
            try:
                while head := stream.read(2):
                    data = stream.read(int.from_bytes(head, "big"))
                    parts = self._play(data, "tcp", 0)
                    if not parts:
                        return
                    for part in parts:
                        stream.write(len(part).to_bytes(2, "big") + part)
                        stream.flush()
            except (OSError, ValueError):
                pass
            finally:
                with contextlib.suppress(OSError):
                    stream.close()

    def close(self) -> None:
        """Ends all of it."""
        self.closing = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self.udp.close()
        self.tcp.close()
