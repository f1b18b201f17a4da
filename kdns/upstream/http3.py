"""DNS over HTTPS by HTTP/3 to one upstream (RFC 8484, RFC 9114): a stream for each query, all on one connection.

Requests and responses are those over HTTP/2 (upstream.doh). What an upstream sends is bounded: the octets of a
response, and those beside responses.
"""

from typing import Any, ClassVar, Final, final

from aioquic.h3.connection import ErrorCode
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic import events

from kdns.quicmachine import Http3
from kdns.upstream import doh
from kdns.upstream.connections import InFlightQuery
from kdns.upstream.quic import QuicConnections, QuicUpstream

MAX_RESPONSE: Final = doh.MAX_BODY + (16 << 10)  # octets on the wire: fields, a DNS message, and frames around them
# Octets on an upstream's own streams, for settings and the like: some 100 are usual, and a few more for each response.
ALLOWANCE: Final = 16 << 10
PER_RESPONSE: Final = 1024


@final
class Http3Connections(QuicConnections):
    """The connection to one upstream. `configuration` must offer `h3` by ALPN."""

    proto: ClassVar[str] = "https3"

    def __init__(self, *words: Any, get: bool = False, **options: Any) -> None:
        super().__init__(*words, **options)
        self.authority = doh.authority(self.server_name, self.port)
        self.get = get

    def make(self) -> QuicUpstream:
        return _Connection(self)


@final
class _Connection(QuicUpstream):
    no_error: ClassVar[int] = int(ErrorCode.H3_NO_ERROR)
    cancelled: ClassVar[int] = int(ErrorCode.H3_REQUEST_CANCELLED)

    def __init__(self, owner: Http3Connections) -> None:
        super().__init__(owner)
        self.asks = owner
        self.http: Http3 | None = None
        self.responses: dict[int, doh.Response] = {}
        self.received: dict[int, int] = {}  # octets of responses that have not come whole
        self.allowed = ALLOWANCE

    def begin(self) -> None:
        self.http = Http3(self.quic)
        self.send_soon()

    def put(self, flight: InFlightQuery) -> int:
        """A request for one query; its id is 0."""
        http = self.http
        assert http is not None  # it takes no queries before it has begun
        fields, body = doh.request(b"\0\0" + flight.query[2:], self.asks.authority, self.asks.get)
        stream = self.quic.get_next_available_stream_id()
        http.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields], end_stream=not body)
        if body:
            http.send_data(stream, body, end_stream=True)
        self.responses[stream] = doh.Response()
        self.received[stream] = 0
        self.send_soon()
        return stream

    def drop(self, key: int) -> None:
        self._forget(key)
        super().drop(key)

    def _forget(self, stream: int) -> None:
        self.responses.pop(stream, None)
        self.received.pop(stream, None)
        if self.http is not None:
            self.http.forget(stream)

    def event(self, event: events.QuicEvent) -> None:
        http = self.http
        if http is None:
            return
        if isinstance(event, events.StreamDataReceived):
            if not self._fits(event):
                return
        elif isinstance(event, events.StreamReset) and event.stream_id in self.responses:
            self._forget(event.stream_id)
            self.unanswered(event)
            return
        for each in http.handle_event(event):
            if isinstance(each, HeadersReceived):
                self._fields(each)
            elif isinstance(each, DataReceived):
                self._body(each)

    def _fits(self, event: events.StreamDataReceived) -> bool:
        """Counts octets before they are kept; False where nobody waits for them, or they are too many."""
        stream, size = event.stream_id, len(event.data)
        if stream & 3:
            self.allowed -= size
            if self.allowed < 0:
                self.fail(int(ErrorCode.H3_EXCESSIVE_LOAD), "too much beside responses")
            return self.allowed >= 0
        if stream not in self.received:
            return False
        self.received[stream] += size
        if self.received[stream] > MAX_RESPONSE:
            flight = self.taken(stream)
            if flight is not None:
                flight.end(self.owner.broken(flight, "the reply is too long"))
            self.drop(stream)
            return False
        return True

    def _fields(self, event: HeadersReceived) -> None:
        response = self.responses.get(event.stream_id)
        if response is None:
            return
        fields = {name: value.decode("latin-1") for name, value in event.headers}
        status = fields.get(b":status", "")
        # RFC 9114, section 4.1: interim responses may come before, trailers behind.
        if not response.status and not status.startswith("1"):
            response.status = status
            response.type = fields.get(b"content-type", "")
            response.age = fields.get(b"age", "")
        if event.stream_ended:
            self._answered(event.stream_id)

    def _body(self, event: DataReceived) -> None:
        response = self.responses.get(event.stream_id)
        if response is None:
            return
        response.body += event.data
        if event.stream_ended:
            self._answered(event.stream_id)

    def _answered(self, stream: int) -> None:
        response, flight = self.responses.pop(stream), self.taken(stream)
        self.received.pop(stream, None)
        self.allowed = min(self.allowed + PER_RESPONSE, ALLOWANCE)
        if flight is not None:
            self.alive()
            flight.end(doh.result(self.owner, response, flight))
