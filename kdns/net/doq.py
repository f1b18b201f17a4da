"""DNS over QUIC (RFC 9250): a query and its reply on each stream, behind two octets of length.

Laws: a reply is whole, its stream ends with it; what breaks the protocol closes the connection with DOQ_PROTOCOL_ERROR
(section 4.3.3); a stream whose query does not come in time is reset alone; a query is handled once it is there, the end
of its stream is not waited for.
"""

from functools import partial
from typing import Any, Final, final

from aioquic.quic import events

from kdns.dns import edns
from kdns.dns.doq import EXCESSIVE_LOAD, INTERNAL_ERROR, PROTOCOL_ERROR, REQUEST_CANCELLED
from kdns.dns.errors import FormatError
from kdns.dns.query import parse
from kdns.metrics import Counter
from kdns.net import MessageStream
from kdns.net.quic_connection import QuicConnection

_KEEPALIVE: Final = edns.KEEPALIVE.to_bytes(2, "big")

RESPONSES = Counter(
    "coredns_dns_quic_responses_total",
    "Counter of DoQ responses per server and QUIC application code.",
    ("server", "status"),
)


@final
class Doq:
    """What is spoken on one connection."""

    __slots__ = ("asked", "connection", "leaving", "parts")

    def __init__(self, connection: QuicConnection) -> None:
        self.connection = connection
        self.parts: dict[int, bytes] = {}  # what has come on streams whose query has not come whole
        self.asked: set[int] = set()  # streams whose query waits for its reply
        self.leaving = False

    def event(self, event: events.QuicEvent) -> None:
        """Takes an event of the connection."""
        if isinstance(event, events.StreamDataReceived):
            self._data(event.stream_id, event.data, event.end_stream)
        elif isinstance(event, events.StreamReset | events.StopSendingReceived):
            # Section 4.3.1: the client no longer wants a reply. What an upstream was asked for goes on.
            self.parts.pop(event.stream_id, None)
            self.connection.unfinished.pop(event.stream_id, None)
            self.asked.discard(event.stream_id)
            self.connection.reset(event.stream_id, REQUEST_CANCELLED)
            self._waiting()

    def _data(self, stream: int, data: bytes, end: bool) -> None:
        connection = self.connection
        if stream & 2:
            self._fail("a unidirectional stream")
            return
        if stream in self.asked or self.leaving:
            if data and not self.leaving:
                self._fail("octets behind a query")
            return
        before = self.parts.pop(stream, None)
        if before is not None:
            data = before + data
        size = int.from_bytes(data[:2], "big") if len(data) >= 2 else -1
        if size < 0 or len(data) - 2 < size:
            if end or not size:
                self._fail("a query that is cut")
                return
            self.parts[stream] = data
            connection.begun(stream)
            return
        connection.unfinished.pop(stream, None)
        if not size or len(data) - 2 > size:
            self._fail("an empty query" if not size else "octets behind a query")
            return
        self._query(stream, data[2:])

    def _query(self, stream: int, query: bytes) -> None:
        connection = self.connection
        listener = connection.listener
        if len(query) < 12 or query[0] or query[1] or query[2] & 0x80 or _keepalive(query):
            # Sections 4.2.1 (an ID other than 0) and 5.5.2 (edns-tcp-keepalive).
            self._fail("a message that is not a query for QUIC")
            return
        if connection.full():
            connection.reset(stream, EXCESSIVE_LOAD)
            return
        self.asked.add(stream)
        connection.asked()
        reply = listener.handler(query, connection.client(), connection.local)
        if type(reply) is bytes or reply is None or type(reply) is MessageStream:
            self._answer(stream, reply)
        else:
            reply.add(partial(self._answer, stream))  # type: ignore[union-attr]

    def _answer(self, stream: int, reply: Any) -> None:
        connection = self.connection
        connection.answered()
        if connection.gone or stream not in self.asked:
            return
        self.asked.discard(stream)
        if type(reply) is bytes and not connection.holds(len(reply)):
            RESPONSES.slot(connection.listener.label, "0x4")[0] += 1
            connection.reset(stream, EXCESSIVE_LOAD)
        elif type(reply) is bytes:
            RESPONSES.slot(connection.listener.label, "0x0")[0] += 1
            connection.write(stream, len(reply).to_bytes(2, "big") + reply)
        else:
            # Nobody answers, or the reply would be a zone: the stream says so, the client need not wait.
            RESPONSES.slot(connection.listener.label, "0x1")[0] += 1
            connection.reset(stream, INTERNAL_ERROR)
        self._waiting()

    def _fail(self, reason: str) -> None:
        RESPONSES.slot(self.connection.listener.label, "0x2")[0] += 1
        self.connection.close(PROTOCOL_ERROR, reason)

    def _waiting(self) -> None:
        if self.leaving and not self.asked:
            self.connection.finish()

    def late(self, stream: int) -> None:
        """Ends a stream whose query does not come."""
        self.parts.pop(stream, None)
        self.connection.reset(stream, REQUEST_CANCELLED)

    def leave(self) -> None:
        """Answers what was asked, and then closes."""
        self.leaving = True
        self._waiting()

    def lost(self) -> None:
        """The connection is gone."""
        self.parts.clear()
        self.asked.clear()


def _keepalive(query: bytes) -> bool:
    """True if a query has the edns-tcp-keepalive option."""
    if _KEEPALIVE not in query:
        return False
    try:
        _, _, _, options = parse(query, True)
        return any(code == edns.KEEPALIVE for code, _ in edns.options(options))
    except FormatError:
        return False
