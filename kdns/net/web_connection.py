"""Connections of DNS over HTTPS and gRPC: HTTP/2 or HTTP/1.1, as a client has chosen by ALPN or, unencrypted, by its
first octets.

Laws, as with DNS over TCP: a batch is at most so many frames, or what is left of the turn, with one write; while octets
to send wait, nothing more is read; a connection has a deadline that only whole requests move; answers leave as they
become ready, those of one turn of the loop together.
"""

import ipaddress
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, final

from kdns import address
from kdns.net import Address, StreamTransport
from kdns.net.connection import BATCH_FRAMES, BatchConnection
from kdns.net.http1 import Http1, Http1Error
from kdns.net.http2 import Exchange, Http2
from kdns.net.http2_frames import PREFACE, Http2Error, field
from kdns.net.http_date import date
from kdns.net.proxy import Network

if TYPE_CHECKING:
    from kdns.net.web import WebListener

MAX_STREAMS: Final = 256  # of a connection (CoreDNS's)
MAX_MESSAGE: Final = 65_535  # octets of a DNS message
# A length and a field number stand before the message in gRPC, with five octets of framing before those.
MAX_BODY: Final = MAX_MESSAGE + 9
MAX_FORWARDED: Final = 20  # addresses of an X-Forwarded-For that are looked at

Fields = list[tuple[bytes, bytes]]


@final
class WebConnection(BatchConnection):
    """One connection. `pending` counts requests that have come or begun, and whose answers have not left."""

    __slots__ = ("answering", "framing", "sending", "web")

    def __init__(self, listener: "WebListener") -> None:
        super().__init__(listener)
        self.web = listener
        self.framing: Http1 | Http2 | None = None
        self.answering = False  # a batch is under way: what it sends leaves at its end
        self.sending = False  # what to send leaves at the end of this turn of the loop

    def connection_made(self, transport: StreamTransport) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and self.timer is not None:  # without a timer there was no room for it
            self._speak(tls.selected_alpn_protocol() == "h2")

    def connection_lost(self, exc: Exception | None) -> None:
        self.framing = None
        super().connection_lost(exc)

    # Turns.

    def _speak(self, http2: bool) -> None:
        if http2:
            self.framing = Http2(self._ask, self.listener.max_streams or MAX_STREAMS, MAX_BODY)
        elif self.web.http1:
            self.framing = Http1(self._ask, MAX_BODY)
        else:
            self.abort()

    def _batch(self) -> None:
        self.scheduled = False
        if self.framing is None and self.transport is not None:
            # Unencrypted: HTTP/2 by prior knowledge (RFC 9113, section 3.3), or HTTP/1.1.
            if PREFACE.startswith(self.buffer[: len(PREFACE)]) and len(self.buffer) < len(PREFACE):
                return
            self._speak(self.buffer.startswith(PREFACE))
        framing = self.framing
        if framing is None or self.transport is None or self.full or self.transport.is_closing():
            return
        self.answering = True
        buffer = self.buffer
        off = frames = 0
        end = time.monotonic() + self.listener.turns.left()
        more = False
        try:
            while True:
                # A small frame takes 10 µs, one of many fields 1 ms: the clock is looked at after each.
                if frames == BATCH_FRAMES or (frames and time.monotonic() > end):
                    more = True
                    break
                frames += 1
                stop = framing.take(buffer, off)
                if stop < 0:
                    break
                off = stop
        except Http2Error as error:
            self._fail(error)
            return
        except Http1Error as refused:
            assert isinstance(framing, Http1)
            framing.leave()
            framing.respond(Exchange(0, b"", b"", {}), refused.status, [(b"date", date(time.time()))], b"")
            self._write()
            self.transport.close()
            return
        finally:
            self.answering = False
        if off:
            self.buffer = buffer[off:]
        self._write()
        if more:
            self._pause()
            self._schedule()
        elif isinstance(framing, Http1) and framing.current is not None and self.buffer:
            self._pause()  # what is pipelined waits for the answer
        elif self.paused and not self.full:
            self.paused = False
            self.transport.resume_reading()
        self._close_if_done()

    def _fail(self, error: Http2Error) -> None:
        """Ends a connection of HTTP/2 with the reason."""
        framing = self.framing
        if isinstance(framing, Http2) and self.transport is not None:
            framing.out.append(framing.goodbye(error.code))
            self._write()
            self.buffer = b""
            self.transport.close()

    # Requests and answers.

    def _ask(self, exchange: Exchange) -> None:
        self.deadline = self.loop.time() + self.listener.idle
        self.web.service(self, exchange)

    def client(self, exchange: Exchange) -> Address:
        """The client: the peer, or the address that a trusted proxy names."""
        return named(exchange, self.peer, self.listener.http.trusted)

    def respond(self, exchange: Exchange, status: int, fields: Fields, body: bytes, trailers: bytes = b"") -> None:
        """Answers a request. Called in the turn that asked, or later."""
        framing = self.framing
        if framing is None:
            return  # the client has gone
        if isinstance(framing, Http2):
            head = b"\x88" if status == 200 else field(b":status", b"%d" % status)
            head += b"".join([field(name, value) for name, value in fields])
            try:
                framing.respond(
                    exchange, head + (b"" if trailers else field(b"content-length", b"%d" % len(body))), body, trailers
                )
            except Http2Error as error:
                self._fail(error)
                return
        else:
            framing.respond(exchange, status, fields, body)
        if not self.answering and not self.sending:
            self.sending = True
            self.loop.call_soon(self._send)

    def _send(self) -> None:
        self.sending = False
        self.deadline = self.loop.time() + self.listener.idle
        self._write()
        self._close_if_done()
        if isinstance(self.framing, Http1) and self.buffer:
            self._schedule()  # what was pipelined

    def _write(self) -> None:
        framing = self.framing
        if framing is not None and self.transport is not None:
            self.pending = framing.pending
            if framing.out:
                self.transport.write(b"".join(framing.out))
                framing.out.clear()

    def say_goodbye(self) -> None:
        """Answers what was asked, and nothing more."""
        if self.framing is not None:
            self.framing.leave()
            self._write()
        self._close_if_done()

    def _close_if_done(self) -> None:
        framing = self.framing
        over = self.eof or framing is None or framing.leaving
        if self.transport is not None and over and (framing is None or not framing.pending) and not self.scheduled:
            self.transport.close()

    def working(self) -> bool:
        """True if a complete request waits for its answer, and not for the client to send or to read."""
        framing = self.framing
        if isinstance(framing, Http2):
            return any(each.ended and not each.rest for each in framing.streams.values())
        return framing is not None and framing.current is not None


def named(exchange: Exchange, peer: Address, trusted: Sequence[Network]) -> Address:
    """The client of a request: the peer, or the address that a trusted proxy names."""
    if trusted and b"x-forwarded-for" in exchange.fields:
        return forwarded(exchange.fields[b"x-forwarded-for"], peer, trusted)
    return peer


def forwarded(value: bytes, peer: Address, trusted: Sequence[Network]) -> Address:
    """The client of an X-Forwarded-For: going back from the peer, the first address that is not a trusted proxy's."""
    found = peer
    for word in reversed(value.split(b",")[-MAX_FORWARDED:]):
        try:
            here = ipaddress.ip_address(str(found[0]).partition("%")[0])
            if not any(here in network for network in trusted):
                break
            packed = ipaddress.ip_address(_bare(word.strip().decode("ascii"))).packed
        except ValueError:
            break
        found = address.named(packed, 0)
    return found


def _bare(word: str) -> str:
    """An address without its port and the brackets before that, which some proxies write."""
    if word.startswith("["):
        return word[1:].partition("]")[0]
    return word.partition(":")[0] if word.count(":") == 1 else word
