"""DNS over HTTPS (RFC 8484): a stream of HTTP/2 for each query, all on one connection.

HTTP/2 only, which is the least that RFC 8484, section 5.2 recommends: queries share a connection without waiting for
each other.
"""

import asyncio
import contextlib
import ssl
from typing import Any, ClassVar, final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

from kdns.deadlines import Deadlines
from kdns.upstream import doh
from kdns.upstream.connections import MAX_WAITING, Connection, Connections, InFlightQuery
from kdns.upstream.doh import MAX_BODY, Response
from kdns.upstream.exchange import Result, UpstreamError


class HttpsConnections(Connections):
    """The connection to one upstream. `context` must offer `h2` by ALPN; `server_name` is what the certificate must
    bear.

    RFC 9113, section 9.1: there is one connection, and another only while that takes no more queries.
    """

    proto: ClassVar[str] = "https"
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
        context: ssl.SSLContext | None,
        get: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(host, port, to, name, deadlines, context=context, **options)
        self.authority = doh.authority(self.server_name, port)
        self.get = get

    def make(self) -> Connection:
        return _Connection(self)

    def request(self, query: bytes) -> tuple[list[tuple[str, str]], bytes]:
        """The fields and the body of the request for a query."""
        return doh.request(query, self.authority, self.get)

    def result(self, response: Response, flight: InFlightQuery) -> Result:
        """What a complete response comes to."""
        return doh.result(self, response, flight)


class _Http2(H2Connection):
    """HTTP/2 in which a GOAWAY ends nothing: what the upstream has taken on by then, it still answers (RFC 9113,
    section 6.8). To h2 itself all that comes behind one is a breach of the protocol.
    """

    def _receive_goaway_frame(self, frame: Any) -> Any:
        told = ConnectionTerminated()
        told.last_stream_id = frame.last_stream_id
        return [], [told]


@final
class _Connection(Connection):
    def __init__(self, owner: HttpsConnections) -> None:
        super().__init__(owner)
        self.asks = owner
        self.protocol: str | None = None  # by ALPN
        self.http = _Http2(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.responses: dict[int, Response] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        self.protocol = "h2" if tls is None else tls.selected_alpn_protocol()  # unencrypted: by prior knowledge
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # It keeps methods of its own, and nobody collects a cycle that was frozen meanwhile (server.gc_policy).
        vars(self.http).clear()

    def begin(self) -> None:
        self.http.initiate_connection()
        self._write()

    def unfit(self) -> str:
        return "" if self.protocol == "h2" else "the upstream does not speak HTTP/2"

    def room(self) -> bool:
        return self.http.open_outbound_streams < self.http.remote_settings.max_concurrent_streams

    def put(self, flight: InFlightQuery) -> int:
        """A request for one query; its id is 0."""
        asks = self.asks
        fields, body = asks.request(b"\0\0" + flight.query[2:])
        try:
            stream = self.http.get_next_available_stream_id()
            self.http.send_headers(stream, fields, end_stream=not body)
            if body:
                self.http.send_data(stream, body, end_stream=True)
        except ProtocolError as error:
            raise UpstreamError(f"write {asks.proto} {asks.to}: {error}") from None
        self.responses[stream] = Response()
        self._write()
        return stream

    def drop(self, key: int) -> None:
        del self.responses[key]
        with contextlib.suppress(ProtocolError):
            self.http.reset_stream(key, ErrorCodes.CANCEL)
        self._write()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.http.receive_data(data):
                self._event(event)
        except ProtocolError as error:
            self.retired = True
            self.owner.lost(self, str(error))
            self.close()
            return
        self._write()
        self.owner.flush()
        self.close_if_idle()

    def _event(self, event: object) -> None:
        if isinstance(event, ResponseReceived):
            response = self.responses.get(event.stream_id)
            if response is not None:
                response.fields = {str(name): str(value) for name, value in event.headers}
                response.status = response.fields.get(":status", "")
                response.type = response.fields.get("content-type", "")
                response.age = response.fields.get("age", "")
        elif isinstance(event, TrailersReceived):
            response = self.responses.get(event.stream_id)
            if response is not None:
                response.fields = {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, DataReceived):
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            response = self.responses.get(event.stream_id)
            if response is not None and len(response.body) <= MAX_BODY:
                response.body += event.data
        elif isinstance(event, StreamEnded):
            self._ended(event.stream_id)
        elif isinstance(event, StreamReset):
            self._unanswered(event.stream_id, f"the stream was reset (code {event.error_code})")
        elif isinstance(event, ConnectionTerminated):
            self.retired = True
            # RFC 9113, section 6.8: streams above the last one were not looked at, and may be asked again elsewhere.
            for stream in [each for each in self.flights if each > (event.last_stream_id or 0)]:
                self._unanswered(stream, "the connection was ended")

    def _ended(self, stream: int) -> None:
        response, flight = self.responses.pop(stream, None), self.taken(stream)
        if response is not None and flight is not None:
            self.alive()
            flight.end(self.asks.result(response, flight))

    def _unanswered(self, stream: int, why: str) -> None:
        self.responses.pop(stream, None)
        flight = self.taken(stream)
        if flight is not None:
            self.owner.resend(flight, why)

    def _write(self) -> None:
        data = self.http.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)
