"""DNS over HTTPS to one upstream (RFC 8484): one HTTP/2 connection, a stream a query.

HTTP/2 only, which is the least that RFC 8484, section 5.2 recommends: queries share a connection without waiting for
each other. The id is 0 (section 4.1), so a reply is matched by its stream and its question. A connection that the
upstream closed while it was idle costs nothing: what was in flight on an old one goes out again once.
"""

import asyncio
import base64
import contextlib
import ssl
from typing import Any, Final, final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

from kdns.address import host_port
from kdns.deadlines import Deadline, Deadlines
from kdns.dns.query import Question
from kdns.upstream.exchange import Done, UpstreamError, matching_reply, os_text, our_end, tell, timed_out
from kdns.upstream.udp import HITS, MISSES

DIAL: Final = 5.0  # seconds to connect, TLS included
REDIAL: Final = 0.4  # seconds after which another connection is tried beside one that is still dialling (see tcp.REDIAL)
MAX_DIALS: Final = 8
MAX_WAITING: Final = 10_000  # queries that wait for a connection or a free stream
MAX_BODY: Final = 65535  # octets of a reply: no DNS message is larger
PATH: Final = "/dns-query"
MESSAGE: Final = "application/dns-message"


@final
class _Flight:
    __slots__ = ("body", "deadline", "done", "local", "over", "query", "question", "retried", "status", "type")

    def __init__(self, query: bytes, question: Question, done: Done) -> None:
        self.query = b"\0\0" + query[2:]
        self.question = question
        self.done = done
        self.local = ""  # our end of the connection that it was sent on
        self.over = False
        self.retried = False
        self.deadline: Deadline | None = None
        self.status = ""
        self.type = ""
        self.body = bytearray()

    def end(self, result: Any) -> None:
        if not self.over:
            self.over = True
            if self.deadline is not None:
                self.deadline.cancel()
            tell(self.done, result)


@final
class HttpsConnections:
    """The connection to one upstream. `context` must offer `h2` by ALPN; `server_name` is what the certificate must bear."""

    def __init__(
        self,
        host: str,
        port: int,
        to: str,
        name: str,
        deadlines: Deadlines,
        *,
        context: ssl.SSLContext,
        server_name: str = "",
        get: bool = False,
        expire: float = 10.0,
        max_age: float = 0.0,
        source: str = "",
    ) -> None:
        self.host = host
        self.port = port
        self.to = to
        self.deadlines = deadlines
        self.context = context
        self.server_name = server_name or host
        self.authority = self.server_name if port == 443 else host_port(self.server_name, port)
        self.get = get
        self.expire = expire
        self.max_age = max_age
        self.source = source
        self.connection: _Connection | None = None
        self.open: set[_Connection] = set()
        self.dials: set[asyncio.Task[None]] = set()
        self.dialled = 0.0  # when the last dialling began
        self.waiting: list[_Flight] = []
        self.hits = HITS.slot(name, to, "https")
        self.misses = MISSES.slot(name, to, "https")

    def exchange(self, query: bytes, question: Question, timeout: float, done: Done) -> None:
        """Sends a query and calls back once, with an answer or an UpstreamError."""
        flight = _Flight(query, question, done)
        flight.deadline = self.deadlines.add(timeout, lambda: flight.end(timed_out("https", flight.local, self.to)))
        self.assign(flight)

    def assign(self, flight: _Flight) -> None:
        """Sends a query on the connection, or lets it wait for one."""
        connection = self.connection
        if connection is not None and connection.old():
            connection.retire()
            connection = self.connection = None
        if connection is not None and connection.room():
            self.hits[0] += 1
            connection.send(flight)
            return
        if len(self.waiting) >= MAX_WAITING:
            flight.end(UpstreamError(f"too many queries wait for a connection to {self.to}"))
            return
        self.waiting.append(flight)
        if connection is None:
            self.dial()

    def dial(self) -> None:
        """Opens a connection, unless one is being opened."""
        loop = asyncio.get_running_loop()
        if self.dials and (loop.time() - self.dialled < REDIAL or len(self.dials) >= MAX_DIALS):
            return
        self.misses[0] += 1
        self.dialled = loop.time()
        task = loop.create_task(self._dial(), name=f"dial {self.to}")
        self.dials.add(task)
        task.add_done_callback(self.dials.discard)

    async def _dial(self) -> None:
        error = ""
        try:
            _, made = await asyncio.wait_for(
                asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self),
                    self.host,
                    self.port,
                    ssl=self.context,
                    server_hostname=self.server_name,
                    local_addr=(self.source, 0) if self.source else None,
                ),
                DIAL,
            )
            if made.speaks_h2():
                if self.connection is not None:
                    made.retire()
                else:
                    self.connection = made
            else:
                made.close()
                error = "the upstream does not speak HTTP/2"
        except TimeoutError:
            error = "i/o timeout"
        except OSError as problem:
            error = str(problem) if isinstance(problem, ssl.SSLError) else os_text("connect", problem)
        if not error:
            self.flush()
        elif len(self.dials) == 1:  # this one
            self.fail_waiting(f"dial https {self.to}: {error}")

    def fail_waiting(self, error: str) -> None:
        """Ends the queries that wait."""
        waiting, self.waiting = self.waiting, []
        for flight in waiting:
            flight.end(UpstreamError(error))

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        self.waiting = [flight for flight in self.waiting if not flight.over]
        while self.waiting and self.connection is not None and self.connection.room():
            self.connection.send(self.waiting.pop(0))

    def lost(self, connection: "_Connection", error: object) -> None:
        """A connection is gone: what was in flight on an old one goes out again once."""
        self.open.discard(connection)
        if self.connection is connection:
            self.connection = None
        flights = [flight for flight in connection.flights.values() if not flight.over]
        connection.flights.clear()
        for flight in flights:
            if flight.retried or not connection.answered:
                why = os_text("read", error) if isinstance(error, OSError) else error or "the connection was closed"
                flight.end(UpstreamError(f"read https {flight.local}->{self.to}: {why}"))
            else:
                flight.retried = True
                flight.local = ""
                self.assign(flight)
        if self.waiting and self.connection is None:
            self.dial()

    def close(self) -> None:
        """Closes the connection; queries in flight fail."""
        for task in list(self.dials):
            task.cancel()
        self.fail_waiting("closed")
        for connection in list(self.open):
            connection.answered = False
            connection.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, owner: HttpsConnections) -> None:
        self.owner = owner
        self.http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.flights: dict[int, _Flight] = {}
        self.answered = False
        self.transport: asyncio.Transport | None = None
        self.local = ""
        self.loop = asyncio.get_running_loop()
        self.born = self.used = self.loop.time()
        self.timer: asyncio.TimerHandle | None = None
        self.retired = False

    def speaks_h2(self) -> bool:
        """Whether ALPN chose HTTP/2."""
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        return tls is not None and tls.selected_alpn_protocol() == "h2"

    def old(self) -> bool:
        """Whether it takes no new queries."""
        gone = self.transport is None or self.transport.is_closing()
        return gone or bool(self.owner.max_age and self.loop.time() - self.born > self.owner.max_age)

    def room(self) -> bool:
        """Whether another stream may be opened."""
        return self.http.open_outbound_streams < self.http.remote_settings.max_concurrent_streams

    def retire(self) -> None:
        """Closes it once nothing is in flight."""
        self.retired = True
        if not self.flights:
            self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.local = our_end(transport)
        self.owner.open.add(self)
        self.http.initiate_connection()
        self._write()
        self.timer = self.loop.call_later(self.owner.expire, self._idle)

    def send(self, flight: _Flight) -> None:
        """A request for one query (RFC 8484, section 4.1)."""
        owner = self.owner
        path = PATH
        if owner.get:
            path += "?dns=" + base64.urlsafe_b64encode(flight.query).rstrip(b"=").decode()
        headers = [
            (":method", "GET" if owner.get else "POST"), (":scheme", "https"), (":authority", owner.authority), (":path", path),
            ("accept", MESSAGE),
        ]  # fmt: skip
        if not owner.get:
            headers += [("content-type", MESSAGE), ("content-length", str(len(flight.query)))]
        try:
            stream = self.http.get_next_available_stream_id()
            self.http.send_headers(stream, headers, end_stream=owner.get)
            if not owner.get:
                self.http.send_data(stream, flight.query, end_stream=True)
        except ProtocolError as error:
            flight.end(UpstreamError(f"write https {owner.to}: {error}"))
            self.close()
            return
        flight.status, flight.type, flight.body = "", "", bytearray()
        self.flights[stream] = flight
        flight.local = self.local
        self.used = self.loop.time()
        self._write()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.http.receive_data(data)
        except ProtocolError as error:
            self.owner.lost(self, error)
            self.close()
            return
        for event in events:
            self._event(event)
        self._write()
        self.owner.flush()
        if self.retired and not self.flights:
            self.close()

    def _event(self, event: object) -> None:
        if isinstance(event, ResponseReceived):
            flight = self.flights.get(event.stream_id)
            if flight is not None:
                headers = {str(name): str(value) for name, value in event.headers}
                flight.status, flight.type = headers.get(":status", ""), headers.get("content-type", "")
        elif isinstance(event, DataReceived):
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            flight = self.flights.get(event.stream_id)
            if flight is not None and len(flight.body) <= MAX_BODY:
                flight.body += event.data
        elif isinstance(event, StreamEnded):
            self._ended(event.stream_id)
        elif isinstance(event, StreamReset):
            flight = self.flights.pop(event.stream_id, None)
            if flight is not None:
                flight.end(
                    UpstreamError(f"read https {self.local}->{self.owner.to}: the stream was reset (code {event.error_code})")
                )
        elif isinstance(event, ConnectionTerminated):
            if self.owner.connection is self:
                self.owner.connection = None
            self.retire()

    def _ended(self, stream: int) -> None:
        flight = self.flights.pop(stream, None)
        if flight is None or flight.over:
            return
        self.answered = True
        self.used = self.loop.time()
        to = self.owner.to
        route = f"{self.local}->{to}"
        if flight.status != "200":
            flight.end(UpstreamError(f"read https {route}: HTTP status {flight.status or 'missing'}"))
        elif flight.type.partition(";")[0].strip() != MESSAGE or len(flight.body) > MAX_BODY:
            flight.end(UpstreamError(f"read https {route}: the reply is no {MESSAGE}"))
        else:
            answer = matching_reply(bytes(flight.body), bytes(flight.body[:2]), flight.question, to)
            flight.end(answer if answer is not None else UpstreamError(f"read https {route}: the reply is to another question"))

    def _write(self) -> None:
        data = self.http.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.timer is not None:
            self.timer.cancel()
        self.owner.lost(self, exc)

    def _idle(self) -> None:
        """Closes a connection that was not used for `expire` seconds."""
        for stream in [stream for stream, flight in self.flights.items() if flight.over]:
            del self.flights[stream]
            with contextlib.suppress(ProtocolError):
                self.http.reset_stream(stream)
        self._write()
        left = self.used + self.owner.expire - self.loop.time()
        if not self.flights and left <= 0:
            self.close()
        else:
            self.timer = self.loop.call_later(max(left, 0.5), self._idle)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Closes it at once: a peer that does not say goodbye would keep it open for half a minute."""
        if self.transport is not None:
            self.transport.abort()
