"""Peers over QUIC, by aioquic's own asyncio classes: upstreams that answer as a script says, and a client that does
as it is told.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import dns.message
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from kdns.testing import LoopThread, free_port
from tests.securepeers import NAME, Authority, Script


def forward_to(scheme: str, port: int, authority: Authority, *options: str, name: str = NAME) -> str:
    """A Corefile that forwards to an upstream over QUIC on loopback, and trusts an authority for its name."""
    lines = "\n ".join((f"tls {authority.path}", f"tls_servername {name}", *options))
    return f".:{{port}} {{\n bind 127.0.0.1\n errors\n forward . {scheme}://127.0.0.1:{port} {{\n {lines}\n }}\n}}"


class Upstream:
    """A server of DNS over QUIC on loopback. `raw`: what it sends on a stream in place of a framed reply."""

    alpn = "doq"

    def __init__(self, authority: Authority, folder: Path, script: Script, raw: Callable[[bytes], bytes] | None = None):
        self.script = script
        self.raw = raw
        self.queries: list[dns.message.Message] = []
        self.wires: list[bytes] = []
        self.connections: list[QuicConnectionProtocol] = []
        self.ended: list[int] = []  # the codes that clients closed with
        self.deaf = False  # datagrams vanish
        made = authority.ca.issue_cert(NAME)
        for name, pem in (("up.key", made.private_key_pem.bytes()), ("up.crt", made.cert_chain_pems[0].bytes())):
            (folder / name).write_bytes(pem)
        self.port = free_port()
        self.thread = LoopThread()
        self.server = self.thread.run(self._listen(folder))

    async def _listen(self, folder: Path) -> Any:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=[self.alpn])
        configuration.load_cert_chain(str(folder / "up.crt"), str(folder / "up.key"))
        return await serve("127.0.0.1", self.port, configuration=configuration, create_protocol=self._served)

    def _served(self, *args: Any, **options: Any) -> QuicConnectionProtocol:
        return _Served(self, *args, **options)

    def drop(self, code: int = 0) -> None:
        """Closes the connections there are."""
        self.thread.call(lambda: [each.close(code) for each in self.connections])
        self.connections.clear()

    def close(self) -> None:
        async def finish() -> None:
            # aioquic cannot close what never came to a connection.
            with contextlib.suppress(IndexError):
                self.server.close()
            self.server._transport.close()
            await asyncio.sleep(0)

        self.thread.run(finish())
        self.thread.close()


class _Served(QuicConnectionProtocol):
    def __init__(self, owner: Upstream, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owner = owner
        self.parts: dict[int, bytes] = {}
        owner.connections.append(self)

    def datagram_received(self, data: Any, addr: Any) -> None:
        if not self.owner.deaf:
            super().datagram_received(data, addr)

    def quic_event_received(self, event: events.QuicEvent) -> None:
        owner = self.owner
        if isinstance(event, events.ConnectionTerminated):
            owner.ended.append(event.error_code)
        if not isinstance(event, events.StreamDataReceived):
            return
        wire = self.parts[event.stream_id] = self.parts.get(event.stream_id, b"") + event.data
        if not event.end_stream:
            return
        owner.wires.append(wire)
        query = dns.message.from_wire(wire[2:])
        owner.queries.append(query)
        reply = owner.script(query)
        if reply is not None:
            out = reply.to_wire()
            out = len(out).to_bytes(2, "big") + out if owner.raw is None else owner.raw(out)
            self._quic.send_stream_data(event.stream_id, out, end_stream=True)


class Http3Upstream(Upstream):
    """A server of DNS over HTTP/3. `respond`: what it does on a stream in place of its answer. `requests` are the
    fields that came.
    """

    alpn = "h3"

    def __init__(
        self, authority: Authority, folder: Path, script: Script,
        respond: Callable[[H3Connection, int, bytes], None] | None = None,
    ) -> None:  # fmt: skip
        self.respond = respond or _respond
        self.requests: list[dict[bytes, bytes]] = []
        super().__init__(authority, folder, script)

    def _served(self, *args: Any, **options: Any) -> QuicConnectionProtocol:
        return _Served3(self, *args, **options)


def _respond(http: H3Connection, stream: int, reply: bytes) -> None:
    fields = [(b":status", b"200"), (b"content-type", b"application/dns-message")]
    http.send_headers(stream, fields)
    http.send_data(stream, reply, end_stream=True)


class _Served3(_Served):
    owner: Http3Upstream

    def __init__(self, owner: Http3Upstream, *args: Any, **options: Any) -> None:
        super().__init__(owner, *args, **options)
        self.http: H3Connection | None = None

    def quic_event_received(self, event: events.QuicEvent) -> None:
        owner = self.owner
        if isinstance(event, events.ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if isinstance(event, events.ConnectionTerminated):
            owner.ended.append(event.error_code)
        for each in self.http.handle_event(event) if self.http is not None else ():
            if isinstance(each, HeadersReceived):
                owner.requests.append(dict(each.headers))
            elif isinstance(each, DataReceived):
                self.parts[each.stream_id] = self.parts.get(each.stream_id, b"") + each.data
            if getattr(each, "stream_ended", False):
                self._asked(each.stream_id)

    def _asked(self, stream: int) -> None:
        owner = self.owner
        path = owner.requests[-1][b":path"].decode()
        _, get, text = path.partition("?dns=")
        wire = base64.urlsafe_b64decode(text + "==") if get else self.parts.pop(stream)
        owner.wires.append(wire)
        owner.queries.append(dns.message.from_wire(wire))
        reply = owner.script(owner.queries[-1])
        if reply is not None:
            owner.respond(self.http, stream, reply.to_wire())


class Client(QuicConnectionProtocol):
    """A client: `got` is what came on each stream, `reset` and `stopped` the codes that streams ended with, `closed`
    the code of the connection's end.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.got: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.stopped: dict[int, int] = {}
        self.closed: int | None = None
        self.reason = ""

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            self.got[event.stream_id] = self.got.get(event.stream_id, b"") + event.data
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, events.StreamReset):
            self.reset[event.stream_id] = event.error_code
        elif isinstance(event, events.StopSendingReceived):
            self.stopped[event.stream_id] = event.error_code
        elif isinstance(event, events.ConnectionTerminated):
            self.closed, self.reason = event.error_code, event.reason_phrase

    def send(self, data: bytes, end: bool = True, stream: int | None = None) -> int:
        """Sends octets on a stream, a new one by default; gives its number."""
        if stream is None:
            stream = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream, data, end)
        self.transmit()
        return stream

    def query(self, name: str, **options: Any) -> int:
        """Asks for addresses."""
        return self.send(framed(dns.message.make_query(name, "A", id=0, **options).to_wire()))

    def reply(self, stream: int) -> dns.message.Message:
        """The reply on a stream."""
        got = self.got[stream]
        assert int.from_bytes(got[:2], "big") == len(got) - 2
        return dns.message.from_wire(got[2:])


def framed(message: bytes) -> bytes:
    """A message behind its length."""
    return len(message).to_bytes(2, "big") + message


async def until(condition: Callable[[], Any], timeout: float = 20.0) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


def configuration(authority: Path, alpn: str = "doq", **options: Any) -> QuicConfiguration:
    """What a client trusts."""
    made = QuicConfiguration(alpn_protocols=[alpn], server_name=NAME, **options)
    made.load_verify_locations(str(authority))
    return made


@contextlib.asynccontextmanager
async def client(port: int, authority: Path, alpn: str = "doq", **options: Any) -> AsyncIterator[Client]:
    """A connected client."""
    made = configuration(authority, alpn, **options)
    async with connect("127.0.0.1", port, configuration=made, create_protocol=Client) as protocol:
        assert isinstance(protocol, Client)
        yield protocol
