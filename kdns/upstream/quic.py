"""Queries over QUIC to one upstream: a stream for each, all on one connection. aioquic does QUIC and TLS. Here is what
DNS over QUIC (RFC 9250) and HTTP/3 (upstream.http3) share, and the former.

Over DNS over QUIC the id is 0 (section 4.2.1), so a reply is matched by its stream and its question. An upstream that
breaks the protocol is told so by the connection's end (section 4.3.3). Early data is not sent, and no session is
resumed: what a connection costs, it costs once in a while.
"""

import asyncio
import contextlib
import os
import re
import ssl
from dataclasses import replace
from typing import Any, ClassVar, Final, final

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription

from kdns import files
from kdns.deadlines import Deadlines
from kdns.dns.doq import NO_ERROR, PROTOCOL_ERROR, REQUEST_CANCELLED
from kdns.quicmachine import forget_sent, hold_at_most, is_reset, may_open, take_apart, take_few_ids
from kdns.upstream.connections import MAX_WAITING, Connection, Connections, InFlightQuery
from kdns.upstream.exchange import matching_reply, our_end

MAX_REPLY: Final = 2 + 65_535  # octets on a stream
# TLS alerts about a certificate, as codes of QUIC (RFC 9001, section 4.8), and aioquic's words for an expired one.
_CERTIFICATE_ALERTS: Final = (
    QuicErrorCode.CRYPTO_ERROR + AlertDescription.bad_certificate,
    QuicErrorCode.CRYPTO_ERROR + AlertDescription.certificate_expired,
)
_NO_LONGER_VALID: Final = "Certificate is no longer valid"
_EXPIRED: Final = "certificate has expired"
_ANOTHER_NAME: Final = re.compile("hostname '.*' doesn't match .*")  # behind it the names, as Python's objects
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.\d+")  # how OpenSSL finds an authority in a folder


def configuration(authority: str | None, identity: list[str], alpn: str) -> QuicConfiguration:
    """What an upstream is verified by: a file with authorities, None for this machine's; `identity` is the certificate
    and the key to show, if any; `alpn` is what is spoken, `doq` or `h3`. Raises OSError.
    """
    made = QuicConfiguration(alpn_protocols=[alpn])
    if authority is not None:
        made.cadata = files.read_regular(authority, files.MAX_PEM)
    else:
        # aioquic reads them at each handshake: a folder by one name, a file with all takes milliseconds.
        paths = ssl.get_default_verify_paths()
        folder = paths.capath or paths.openssl_capath
        with contextlib.suppress(OSError):
            if any(_HASHED.fullmatch(name) for name in os.listdir(folder)):
                made.capath = folder
        made.cafile = None if made.capath else paths.cafile
    if identity:
        files.check_pem(identity)
        try:
            made.load_cert_chain(*identity)
        except (ValueError, TypeError, IndexError) as error:
            raise OSError(f"{' '.join(identity)} cannot be read for QUIC: {error}") from None
    return made


class QuicConnections(Connections):
    """The connection to one upstream; another only while that takes no more queries."""

    proto: ClassVar[str] = "quic"
    most: ClassVar[int] = 1
    pipelined: ClassVar[int] = MAX_WAITING

    def __init__(
        self,
        host: str,
        port: int,
        to: str,
        name: str,
        deadlines: Deadlines,
        *,
        configuration: QuicConfiguration,
        **options: Any,
    ) -> None:
        super().__init__(host, port, to, name, deadlines, **options)
        # A little longer than we keep an idle connection ourselves.
        self.configuration = replace(configuration, server_name=self.server_name, idle_timeout=self.expire + 1)

    def make(self) -> "QuicUpstream":
        return _Doq(self)

    async def dial(self) -> Connection:
        loop = asyncio.get_running_loop()
        # As over TLS; aioquic takes ASCII only, and fails where nobody hears of it.
        self.configuration.server_name = self.server_name.encode("idna").decode()
        options: dict[str, Any] = {"local_addr": (self.source, 0)} if self.source else {}
        _, made = await loop.create_datagram_endpoint(self.make, remote_addr=(self.host, self.port), **options)
        try:
            await made.ready
        except BaseException:
            made.abort()
            raise
        return made


class QuicUpstream(Connection, asyncio.DatagramProtocol):
    """A connection over QUIC. `no_error` and `cancelled` are the protocol's codes for a farewell, and for a stream
    whose reply nobody waits for any more.
    """

    no_error: ClassVar[int]
    cancelled: ClassVar[int]
    owner: QuicConnections

    def __init__(self, owner: QuicConnections) -> None:
        super().__init__(owner)
        self.quic = QuicConnection(configuration=owner.configuration)
        take_few_ids(self.quic)
        hold_at_most(self.quic, owner.configuration.max_data)
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.why = ""  # it ended
        self.sending = False
        self.wake: asyncio.TimerHandle | None = None
        self.wake_at = 0.0

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.local = our_end(transport)
        self.quic.connect(transport.get_extra_info("peername"), self.loop.time())
        self._send()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if is_reset(self.quic, data):
            # RFC 9000, section 10.3.1: nothing more is sent. What was asked was answered by nobody, so it is asked
            # again.
            self.answered = True
            self._ended(ConnectionResetError("the upstream knows nothing of the connection"))
            return
        self.quic.receive_datagram(data, addr, self.loop.time())
        self._events()
        self.send_soon()  # once for all datagrams of this turn
        self.owner.flush()
        self.close_if_idle()

    def error_received(self, exc: Exception) -> None:
        """The kernel says that nobody is there."""
        self._ended(exc if isinstance(exc, OSError) else ConnectionAbortedError(str(exc)))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.wake is not None:
            self.wake.cancel()
        joined = self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None
        if joined:
            super().connection_lost(exc or Exception(self.why or "the connection was closed"))
        else:
            self.transport = None
            self._not_ready(ConnectionAbortedError(self.why or "the connection was closed"))
        take_apart(self.quic)

    # What protocols differ in.

    def usable(self, now: float) -> bool:
        if self.retired or self.transport is None or self.why:
            return False
        if self.owner.max_age and now - self.born > self.owner.max_age:
            self.retire()
            return False
        return self.room()

    def room(self) -> bool:
        return may_open(self.quic)

    def event(self, event: events.QuicEvent) -> None:
        """Takes an event of a stream."""
        raise NotImplementedError

    def drop(self, key: int) -> None:
        with contextlib.suppress(ValueError):
            self.quic.stop_stream(key, self.cancelled)
        with contextlib.suppress(ValueError):
            self.quic.reset_stream(key, self.cancelled)
        self.send_soon()

    # Events.

    def _events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                if not self.ready.done():
                    self.ready.set_result(None)
                    self.join()
            elif isinstance(event, events.ConnectionTerminated):
                if event.error_code == QuicErrorCode.APPLICATION_ERROR and event.frame_type is not None:
                    # RFC 9000, section 10.2.3: it ended in good order as it began. What it was asked goes out again.
                    self.answered = True
                self._ended(ConnectionAbortedError(self._text(event)))
            else:
                self.event(event)

    def _text(self, end: events.ConnectionTerminated) -> str:
        """Why a connection has ended. Before it was ready, an alert about a certificate is ours, of the upstream's: it
        is said as over TLS.
        """
        code, reason = end.error_code, end.reason_phrase
        if not self.ready.done() and code in _CERTIFICATE_ALERTS:
            if _ANOTHER_NAME.fullmatch(reason):
                name = self.quic.configuration.server_name
                reason = f"Hostname mismatch, certificate is not valid for '{name}'"
            return f"certificate verify failed: {_EXPIRED if reason == _NO_LONGER_VALID else reason}"
        return f"the connection was ended (code {code}){': ' if reason else ''}{reason}"

    def unanswered(self, event: events.StreamReset) -> None:
        """The upstream has ended a stream."""
        flight = self.taken(event.stream_id)
        if flight is not None:
            self.owner.resend(flight, f"the stream was reset (code {event.error_code})")

    def fail(self, code: int, reason: str) -> None:
        """The upstream has broken the protocol."""
        self.retired = True
        self.why = self.why or reason
        self._farewell(code, reason)

    def _ended(self, error: OSError) -> None:
        self.retired = True
        self.why = self.why or error.strerror or str(error)
        self._not_ready(error)
        if self.transport is not None:
            self.transport.abort()

    def _not_ready(self, error: OSError) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)

    # Octets and time.

    def send_soon(self) -> None:
        """What is asked in one turn of the loop leaves together."""
        if not self.sending:
            self.sending = True
            self.loop.call_soon(self._send)

    def _send(self) -> None:
        self.sending = False
        transport: Any = self.transport
        if transport is None or transport.is_closing():
            return
        for data, _ in self.quic.datagrams_to_send(self.loop.time()):
            transport.sendto(data)
        forget_sent(self.quic)
        at = self.quic.get_timer()
        if at is not None and (self.wake is None or at < self.wake_at):
            if self.wake is not None:
                self.wake.cancel()
            self.wake_at = at
            self.wake = self.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self.wake = None
        now = self.loop.time()
        at = self.quic.get_timer()
        if at is not None and now >= at:
            self.quic.handle_timer(now)
            self._events()
        self._send()

    def _farewell(self, code: int, reason: str = "") -> None:
        self.quic.close(code, reason_phrase=reason)
        self._send()
        if self.transport is not None:
            self.transport.close()

    def close(self) -> None:
        self.retired = True
        if self.transport is not None and not self.transport.is_closing():
            self._farewell(self.no_error)

    def abort(self) -> None:
        self.close()


@final
class _Doq(QuicUpstream):
    no_error: ClassVar[int] = NO_ERROR
    cancelled: ClassVar[int] = REQUEST_CANCELLED

    def __init__(self, owner: QuicConnections) -> None:
        super().__init__(owner)
        self.parts: dict[int, bytearray] = {}  # what has come on streams

    def put(self, flight: InFlightQuery) -> int:
        """A stream for one query; its id is 0, and its stream's end follows (section 4.2)."""
        stream = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(stream, len(flight.query).to_bytes(2, "big") + b"\0\0" + flight.query[2:], True)
        self.parts[stream] = bytearray()
        self.send_soon()
        return stream

    def drop(self, key: int) -> None:
        self.parts.pop(key, None)
        super().drop(key)

    def event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            self._data(event)
        elif isinstance(event, events.StreamReset):
            self.parts.pop(event.stream_id, None)
            self.unanswered(event)

    def _data(self, event: events.StreamDataReceived) -> None:
        stream = event.stream_id
        if stream & 3:
            self.fail(PROTOCOL_ERROR, "a stream that a server may not open")
            return
        parts = self.parts.get(stream)
        if parts is None:
            return  # nobody waits for it any more
        parts += event.data
        whole = len(parts) >= 2 and len(parts) == 2 + int.from_bytes(parts[:2], "big")
        if len(parts) > MAX_REPLY or (event.end_stream and (not whole or len(parts) < 14 or parts[2:4] != b"\0\0")):
            flight = self.taken(stream)
            if flight is not None:
                flight.end(self.owner.broken(flight, "the reply is malformed"))
            self.fail(PROTOCOL_ERROR, "a malformed reply")
        elif event.end_stream:
            del self.parts[stream]
            self._reply(stream, bytes(parts[2:]))

    def _reply(self, stream: int, reply: bytes) -> None:
        flight = self.taken(stream)
        if flight is not None:
            self.alive()
            answer = matching_reply(reply, b"\0\0", flight.question, self.owner.to)
            flight.end(answer or self.owner.broken(flight, "the reply is to another question"))
