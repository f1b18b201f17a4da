"""HTTP/3 (RFC 9114) for DNS over HTTPS: the requests of a connection over QUIC. aioquic reads and writes its frames.

Laws: what a request says, and what it is answered, is as over other versions of HTTP (net.doh); a request that does not
come whole in time is reset alone; a request and its fields are bounded, and so is what a client may send beside its
requests; no table of fields is kept for a client (QPACK's dynamic table), by which a few octets could stand for many.
"""

from typing import Final, final

from aioquic.h3.connection import ErrorCode
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.h3.exceptions import H3Error
from aioquic.quic import events

from kdns.net import Address, doh
from kdns.net.http2 import MAX_HEADERS, Exchange, head_of
from kdns.net.quic import QuicListener
from kdns.net.quic_connection import QuicConnection
from kdns.net.web_connection import MAX_MESSAGE, Fields, named
from kdns.quicmachine import Http3 as Frames

NO_ERROR: Final = int(ErrorCode.H3_NO_ERROR)
OVERLOAD: Final = int(ErrorCode.H3_EXCESSIVE_LOAD)
# Octets of a request on the wire: its fields, a DNS message, and frames around them.
MAX_REQUEST: Final = MAX_HEADERS + MAX_MESSAGE + 1024
# Octets on a client's own streams, for settings and the like: some 100 are usual, and a few more for each request.
ALLOWANCE: Final = 16 << 10
PER_REQUEST: Final = 1024


@final
class Http3:
    """What is spoken on one connection."""

    __slots__ = ("allowed", "connection", "ended", "frames", "leaving", "listener", "local", "received", "requests")

    def __init__(self, connection: QuicConnection) -> None:
        self.connection = connection
        self.listener: QuicListener = connection.listener
        self.local = connection.local
        self.frames = Frames(connection.quic)
        self.requests: dict[int, Exchange] = {}  # by stream: those that come, and those that wait for their answer
        self.received: dict[int, int] = {}  # octets of requests that have not come whole
        self.ended: set[int] = set()  # streams that we have reset, until the client ends them too
        self.allowed = ALLOWANCE
        self.leaving = False

    def event(self, event: events.QuicEvent) -> None:
        """Takes an event of the connection."""
        if isinstance(event, events.StreamDataReceived):
            if not self._fits(event):
                return
        elif isinstance(event, events.StreamReset | events.StopSendingReceived) and not event.stream_id & 2:
            self._end(event.stream_id, ErrorCode.H3_REQUEST_CANCELLED)
            if isinstance(event, events.StreamReset):
                self.ended.discard(event.stream_id)
        for each in self.frames.handle_event(event):
            if isinstance(each, HeadersReceived):
                self._headers(each)
            elif isinstance(each, DataReceived):
                self._data(each)
        self.listener.wants_to_send(self.connection)

    def _fits(self, event: events.StreamDataReceived) -> bool:
        """Counts octets before they are kept; False where they are too many."""
        stream, size = event.stream_id, len(event.data)
        if stream & 2:
            self.allowed -= size
            if self.allowed < 0:
                self.connection.close(OVERLOAD, "too much beside requests")
                return False
            return True
        if stream in self.ended or (stream in self.requests and self.requests[stream].ended):
            if event.end_stream:
                self.ended.discard(stream)
            return False
        size += self.received.get(stream, 0)
        if size > MAX_REQUEST:
            exchange = self.requests.get(stream)
            if exchange is None:  # fields without an end
                self._end(stream, ErrorCode.H3_EXCESSIVE_LOAD)
            else:
                exchange.large = True
                self._ask(exchange)
            return False
        self.received[stream] = size
        self.connection.begun(stream)
        return True

    def _headers(self, event: HeadersReceived) -> None:
        stream = event.stream_id
        exchange = self.requests.get(stream)
        if exchange is None:
            if self.leaving:
                self._end(stream, ErrorCode.H3_REQUEST_REJECTED)
                return
            exchange = Exchange(stream, *head_of(event.headers))
            self.requests[stream] = exchange
        if event.stream_ended:
            self._ask(exchange)

    def _data(self, event: DataReceived) -> None:
        exchange = self.requests.get(event.stream_id)
        if exchange is None or exchange.ended:
            return
        exchange.body += event.data
        if len(exchange.body) > MAX_MESSAGE:
            exchange.large = True
            exchange.body.clear()
        if event.stream_ended or exchange.large:
            self._ask(exchange)

    def _ask(self, exchange: Exchange) -> None:
        if self.connection.full():
            self._end(exchange.stream, ErrorCode.H3_REQUEST_REJECTED)
            return
        exchange.ended = True
        self.received.pop(exchange.stream, None)
        self.connection.unfinished.pop(exchange.stream, None)
        self.connection.asked()
        self.allowed = min(self.allowed + PER_REQUEST, ALLOWANCE)
        doh.serve(self, exchange)

    # Called by what answers requests (net.doh).

    def client(self, exchange: Exchange) -> Address:
        """The client: the peer, or the address that a trusted proxy names."""
        return named(exchange, self.connection.client(), self.listener.http.trusted)

    def respond(self, exchange: Exchange, status: int, fields: Fields, body: bytes) -> None:
        """Answers a request. Called in the turn that asked, or later."""
        connection = self.connection
        connection.answered()
        if connection.gone or self.requests.pop(exchange.stream, None) is None:
            return  # the client wants no answer any more
        if not connection.holds(len(body)):
            self._end(exchange.stream, ErrorCode.H3_EXCESSIVE_LOAD)
            return
        head = [(b":status", b"%d" % status), *fields, (b"content-length", b"%d" % len(body))]
        try:
            self.frames.send_headers(exchange.stream, head, end_stream=not body)
            if body:
                self.frames.send_data(exchange.stream, body, end_stream=True)
        except (H3Error, ValueError, RuntimeError):  # the client has ended the stream meanwhile
            pass
        if exchange.large:
            connection.stop(exchange.stream, NO_ERROR)  # RFC 9114, section 4.1: the rest is not wanted
            self.ended.add(exchange.stream)
        connection.wrote()
        self._close_if_done()

    def _end(self, stream: int, code: ErrorCode) -> None:
        """Resets a stream, and takes no more of it."""
        self.ended.add(stream)
        self.connection.reset(stream, int(code))
        self.frames.forget(stream)
        self.requests.pop(stream, None)
        self.received.pop(stream, None)
        self.connection.unfinished.pop(stream, None)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.leaving and not self.requests:
            self.connection.finish()

    def late(self, stream: int) -> None:
        """Ends a stream whose request does not come."""
        self._end(stream, ErrorCode.H3_REQUEST_CANCELLED)

    def leave(self) -> None:
        """Answers what was asked, and then closes."""
        self.leaving = True
        for stream in [each.stream for each in self.requests.values() if not each.ended]:
            self.late(stream)
        self._close_if_done()

    def lost(self) -> None:
        """The connection is gone."""
        self.requests.clear()
        self.received.clear()
