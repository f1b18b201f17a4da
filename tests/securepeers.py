"""Real certificates, for servers under test and upstreams: DNS over TLS and DNS over HTTPS (HTTP/2), as a script
says.
"""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.message
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from kdns.testing import LoopThread, free_port

NAME = "dns.example.net"  # in the certificates of servers under test
HOSTS = " hosts /nowhere {\n 192.0.2.1 a.example.org\n fallthrough\n }\n"

Script = Callable[[dns.message.Message], dns.message.Message | None]


class Authority:
    """A certificate authority; `path` is its certificate's file."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.path))

    def context(self, *names: str, alpn: str = "") -> ssl.SSLContext:
        """A server's context with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        if alpn:
            context.set_alpn_protocols([alpn])
        return context


class Site:
    """A folder with an authority, or what another one signs, and a certificate and key in `tls.crt` and `tls.key`."""

    def __init__(self, folder: Path, *names: str, authority: Authority | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.authority = authority or Authority(folder)
        self.issue(*(names or (NAME,)))

    def issue(self, *names: str, **options: Any) -> None:
        """Puts another certificate in their place."""
        made = self.authority.ca.issue_cert(*names, **options)
        for name, pem in (("tls.key", made.private_key_pem.bytes()), ("tls.crt", made.cert_chain_pems[0].bytes())):
            part = self.folder / "part"
            part.write_bytes(pem)
            part.replace(self.folder / name)

    def client(self, **options: Any) -> ssl.SSLContext:
        """What a client trusts."""
        context = ssl.create_default_context(cafile=str(self.authority.path))
        for name, value in options.items():
            setattr(context, name, value)
        return context

    def block(self, *more: str, tls: str = "", scheme: str = "tls", zone: str = ".") -> str:
        lines = "".join(f" {line}\n" for line in more)
        directive = tls or f"tls {self.folder}/tls.crt {self.folder}/tls.key"
        return f"{scheme}://{zone}:{{port}} {{\n bind 127.0.0.1\n {directive}\n{HOSTS}{lines} whoami\n}}\n"


class Peer:
    """A server on loopback that speaks one protocol, over TLS with a context. `names` are the server names clients
    asked for.
    """

    def __init__(self, context: ssl.SSLContext | None, protocol: Callable[["Peer"], asyncio.Protocol]) -> None:
        self.queries: list[dns.message.Message] = []
        self.connections: list[Any] = []
        self.made: set[Any] = set()  # all that are open
        self.names: list[str | None] = []
        self.requests: list[dict[str, str]] = []
        if context is not None:
            context.sni_callback = lambda sock, name, _: self.names.append(name)
        self.port = free_port()
        self.thread = LoopThread()

        async def listen() -> asyncio.Server:
            return await asyncio.get_running_loop().create_server(
                lambda: protocol(self), "127.0.0.1", self.port, ssl=context, reuse_address=True
            )

        self.server = self.thread.run(listen())

    def silence(self) -> None:
        """From now on nobody reads what comes on the connections there are: to their clients, the network lost them."""
        self.thread.call(lambda: [transport.pause_reading() for transport in self.connections])

    def drop(self) -> None:
        """Closes the connections there are."""
        self.thread.call(lambda: [transport.close() for transport in self.connections])
        self.connections.clear()

    def close(self) -> None:
        async def finish() -> None:
            self.server.close()
            for transport in list(self.made):
                transport.abort()
            for _ in range(20):  # turns that this takes: a loop is not closed above open connections
                await asyncio.sleep(0)

        self.thread.run(finish())
        self.thread.close()


class Dot(asyncio.Protocol):
    """DNS over TLS (RFC 7858)."""

    def __init__(self, peer: Peer, script: Script) -> None:
        self.peer, self.script, self.buffer = peer, script, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer.connections.append(transport)
        self.peer.made.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.peer.made.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) > 2 and len(self.buffer) >= 2 + (size := int.from_bytes(self.buffer[:2], "big")):
            query = dns.message.from_wire(self.buffer[2 : 2 + size])
            self.buffer = self.buffer[2 + size :]
            self.peer.queries.append(query)
            reply = self.script(query)
            if reply is not None:
                wire = reply.to_wire()
                self.transport.write(len(wire).to_bytes(2, "big") + wire)


class Doh(asyncio.Protocol):
    """DNS over HTTPS (RFC 8484) over HTTP/2. `status`, `content` and `age` are what replies say."""

    def __init__(
        self, peer: Peer, script: Script, status: str = "200", content: str = "application/dns-message", age: str = ""
    ) -> None:
        self.peer, self.script = peer, script
        self.fields = [(":status", status), ("content-type", content), *([("age", age)] if age else [])]
        self.http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.streams: dict[int, tuple[dict[str, str], bytearray]] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer.connections.append(transport)
        self.peer.made.add(transport)
        self.http.initiate_connection()
        transport.write(self.http.data_to_send())

    def connection_lost(self, error: Exception | None) -> None:
        self.peer.made.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            if isinstance(event, RequestReceived):
                self.streams[event.stream_id] = ({str(k): str(v) for k, v in event.headers}, bytearray())
            elif isinstance(event, DataReceived):
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.streams[event.stream_id][1].extend(event.data)
            elif isinstance(event, StreamEnded):
                self.answer(event.stream_id)
        self.transport.write(self.http.data_to_send())

    def answer(self, stream: int) -> None:
        headers, body = self.streams.pop(stream)
        self.peer.requests.append(headers)
        if headers[":method"] == "GET":
            encoded = headers[":path"].partition("?dns=")[2]
            body = bytearray(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        query = dns.message.from_wire(bytes(body))
        self.peer.queries.append(query)
        reply = self.script(query)
        if reply is None:
            return
        with contextlib.suppress(Exception):
            self.http.send_headers(stream, self.fields)
            self.http.send_data(stream, reply.to_wire(), end_stream=True)
