"""The state machines of QUIC and HTTP/3: aioquic's, with what it has no public name for.

Law: nothing else in kdns touches a private attribute of aioquic, and a test pins each of those used here
(tests/test_quicmachine.py), so that a release of aioquic that changes one fails there and not in a cluster.
"""

import hmac
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Final, final

import pylsqpack
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.h3.connection import ErrorCode, H3Connection, ProtocolError
from aioquic.h3.events import H3Event, Headers
from aioquic.quic import connection as machine
from aioquic.quic import events
from aioquic.quic import stream as streams
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection, QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicStreamFrame
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import Epoch, pull_client_hello
from cryptography.hazmat.primitives.serialization import Encoding

ONE_RTT: Final = Epoch.ONE_RTT
# Keys and packet spaces are looked up by these some twenty times for each datagram; an Enum's hash is Python's.
Epoch.__hash__ = object.__hash__  # type: ignore[method-assign]

# What a stranger sends is nobody's error here, and what an upstream does wrong is said in our own words.
logging.getLogger("quic").disabled = True
logging.getLogger("http3").disabled = True


def allow_streams(quic: QuicConnection, most: int) -> None:
    """Lets the peer have `most` bidirectional streams open at a time. Before the handshake; aioquic's own are 128."""
    limit = quic._local_max_streams_bidi
    limit.value = limit.sent = most


def name_connection(quic: QuicConnection, make: Callable[[], tuple[bytes, bytes]]) -> None:
    """Has a server's connection use these IDs, with their tokens for stateless resets. Before the handshake; aioquic's
    own are random octets that nobody knows again.
    """
    first = quic._host_cids[0]
    first.cid, first.stateless_reset_token = make()
    quic.host_cid = quic._local_initial_source_connection_id = first.cid
    replenish = quic._replenish_connection_ids

    def more() -> None:
        known = len(quic._host_cids)
        quic._remote_active_connection_id_limit = min(quic._remote_active_connection_id_limit, IDS_GIVEN)
        replenish()
        for each in quic._host_cids[known:]:
            each.cid, each.stateless_reset_token = make()

    quic._replenish_connection_ids = more  # type: ignore[method-assign]


# Octets of a stateless reset, at least: some that look like a packet's, and the token (RFC 9000, section 10.3).
SMALLEST_RESET: Final = 21
TOKEN_OCTETS: Final = 16


def is_reset(quic: QuicConnection, datagram: bytes) -> bool:
    """True if a datagram says that the server knows nothing of this connection (RFC 9000, section 10.3.1): aioquic
    keeps the token of the connection ID that it uses, and never looks at it.
    """
    token = quic._peer_cid.stateless_reset_token
    return (
        len(datagram) >= SMALLEST_RESET
        and not datagram[0] & 0x80
        and len(token) == TOKEN_OCTETS
        and hmac.compare_digest(datagram[-TOKEN_OCTETS:], token)
    )


def choose_certificate(quic: QuicConnection, choose: Callable[[str | None], QuicConfiguration]) -> None:
    """Lets the server name of the ClientHello (None: it names none) choose the configuration whose certificate is
    shown. Before the handshake; aioquic has one certificate for all names.
    """
    initialize = quic._initialize

    def begin(peer_cid: bytes) -> None:
        initialize(peer_cid)
        tls = quic.tls
        answer = tls._server_handle_hello

        def hello(message: Buffer, initial: Buffer, handshake: Buffer) -> None:
            shown = choose(pull_client_hello(message).server_name)
            message.seek(0)
            tls.certificate = shown.certificate
            tls.certificate_chain = shown.certificate_chain
            tls.certificate_private_key = shown.private_key
            answer(message, initial, handshake)

        tls._server_handle_hello = hello  # type: ignore[assignment, method-assign]

    quic._initialize = begin  # type: ignore[method-assign]


# IDs of a connection at a time: the one in use, and some for a client that moves. aioquic takes and gives eight, each
# in a frame of its own in the handshake. A peer keeps two at least (RFC 9000, section 18.2).
IDS_GIVEN: Final = 4
IDS_TAKEN: Final = 2


def take_few_ids(quic: QuicConnection) -> None:
    """Has the peer give few IDs. Before the handshake."""
    quic._local_active_connection_id_limit = IDS_TAKEN


# Which packets a frame may come in is one of six sets, made thirty times for each connection.
machine.EPOCHS = cache(machine.EPOCHS)


def _skip_padding(self: QuicConnection, context: Any, frame_type: int, buf: Buffer) -> None:
    """aioquic looks at each octet: a client's first packet has some 900."""
    rest = buf.data_slice(buf.tell(), buf.capacity)
    buf.seek(buf.capacity - len(rest.lstrip(b"\0")))


QuicConnection._handle_padding_frame = _skip_padding  # type: ignore[method-assign]


class _Encoded:
    """A certificate in the form that is sent; aioquic encodes it for each connection."""

    def __init__(self, certificate: Any) -> None:
        self.octets: bytes = certificate.public_bytes(Encoding.DER)

    def public_bytes(self, encoding: Encoding) -> bytes:
        """The octets."""
        return self.octets


def encode_certificates(configuration: QuicConfiguration) -> None:
    """Encodes what a server shows once for all connections."""
    configuration.certificate = _Encoded(configuration.certificate)
    configuration.certificate_chain = [_Encoded(each) for each in configuration.certificate_chain]


# Octets of a handshake that may wait for those before them, as over TCP (net.tls): aioquic lets it be eight times that.
machine.MAX_PENDING_CRYPTO = 64 << 10


# Gaps in what has come of one stream. A message of 64 KiB is some 55 packets, of which every other one may be missing.
MAX_GAPS: Final = 64
# Gaps in what was acknowledged of one stream: more than there may be packets on their way (quic_connection.MAX_HELD).
MAX_GAPS_SENT: Final = 1024


class _Ranges(RangeSet):
    """Which octets of a stream have come, or were acknowledged. aioquic's own looks through all ranges for each frame:
    with 60,000 of them, which one client can make, a datagram held the loop for four seconds.
    """

    def add(self, start: int, stop: int | None = None) -> None:
        """Raises QuicConnectionError, which ends the connection."""
        super().add(start, stop)
        if len(self) > MAX_GAPS_SENT:
            raise _too_many_gaps()


class _Receiver(streams.QuicStreamReceiver):
    """The half of a stream that comes."""

    def handle_frame(self, frame: QuicStreamFrame) -> events.StreamDataReceived | None:
        """Raises QuicConnectionError, which ends the connection."""
        event = super().handle_frame(frame)
        if len(self._ranges) > MAX_GAPS:
            raise _too_many_gaps()
        return event


def _too_many_gaps() -> QuicConnectionError:
    return QuicConnectionError(QuicErrorCode.INTERNAL_ERROR, QuicFrameType.STREAM_BASE, "too many gaps")


streams.RangeSet = _Ranges  # type: ignore[attr-defined]
streams.QuicStreamReceiver = _Receiver  # type: ignore[misc]


class _Window(Limit):
    """What a peer may send on all streams together, beyond what has been read of them (RFC 9000, section 4.1).

    aioquic's own doubles whenever half of it was used, read or not: who keeps back the first octet of a stream could
    have any amount of what follows it kept here.
    """

    def __init__(self, quic: QuicConnection, most: int) -> None:
        self.streams = quic._streams
        self.most = most
        self.allowed = most
        super().__init__(QuicFrameType.MAX_DATA, "max_data", most)

    @property
    def value(self) -> int:
        return self.allowed

    @value.setter
    def value(self, _: int) -> None:
        """aioquic wants to give more room."""
        if self.allowed - self.used < self.most // 2:
            receivers = [stream.receiver for stream in self.streams.values()]
            waiting = sum(each.highest_offset - each.starting_offset() for each in receivers)
            self.allowed = self.used - waiting + self.most


def hold_at_most(quic: QuicConnection, octets: int) -> None:
    """Bounds what of the peer's streams is kept until what comes before it is there. Before the handshake."""
    quic._local_max_data = _Window(quic, octets)


def unsent(quic: QuicConnection) -> int:
    """Octets written to streams that the peer has not acknowledged."""
    return sum(len(stream.sender._buffer) for stream in quic._streams.values())


# Packets that are remembered until they are acknowledged: one for each stream that may be open, and as many besides.
MAX_SENT: Final = 512


def forget_sent(quic: QuicConnection) -> None:
    """Bounds what is remembered of packets that only acknowledge. Nobody has to acknowledge those (RFC 9000, section
    13.2.1), and who never does, and sends PINGs, would have one more remembered for each.
    """
    space = quic._spaces.get(ONE_RTT)
    if space is not None and len(space.sent_packets) > MAX_SENT:
        sent = space.sent_packets
        for number in [number for number, packet in sent.items() if not packet.in_flight]:
            del sent[number]


def may_open(quic: QuicConnection) -> bool:
    """True if the peer lets another bidirectional stream be opened now: aioquic keeps back what it does not, and does
    not say so.
    """
    return quic.get_next_available_stream_id() // 4 < quic._remote_max_streams_bidi


def acknowledge_now(quic: QuicConnection, now: float) -> None:
    """Lets the next packet acknowledge what has come (RFC 9000, section 13.2.1), which aioquic puts off for a
    millisecond: an acknowledgement that goes with a reply needs no packet, and no timer, of its own.
    """
    space = quic._spaces.get(ONE_RTT)
    if space is not None and space.ack_at is not None and space.ack_at > now:
        space.ack_at = now


def take_apart(quic: QuicConnection) -> None:
    """Lets a connection that is over be freed at once, with its streams. It must not be used any more.

    It holds itself in cycles: it and its TLS keep methods of its own, a packet that was sent keeps its packet space. No
    collection of garbage finds those that were frozen before the connection ended (server.gc_policy).
    """
    for space in quic._spaces.values():
        space.sent_packets.clear()
    if hasattr(quic, "tls"):  # something has come for it
        vars(quic.tls).clear()
    vars(quic).clear()


# Octets of the fields of a message, each with 32 more (RFC 9114, section 4.2.2). An octet may stand for a whole field:
# without a bound one request had 80,000, and held the loop for 60 ms.
MAX_FIELDS: Final = 16 << 10
# Frames of HTTP/3 in what has come of a stream at once. A body of 64 KiB has some 55; one frame may be two octets, and
# who kept back the first octet of a request had 40,000 read in one go, in 100 ms.
MAX_FRAMES: Final = 256


class _TooMuch(ProtocolError):
    """Ends the connection."""

    error_code = ErrorCode.H3_EXCESSIVE_LOAD


@final
class Http3(H3Connection):
    """HTTP/3 without tables of fields (QPACK's dynamic tables): of one that the peer fills a few octets could stand for
    many. What there is to do for what comes at once is bounded.
    """

    def _init_connection(self) -> None:
        self._frames = 0  # of what is being read
        self._max_table_capacity = self._blocked_streams = 0
        self._decoder = pylsqpack.Decoder(0, 0)
        self._writer = pylsqpack.Encoder()  # it hears of no table at the peer, whose entries would be acknowledged
        super()._init_connection()

    def handle_event(self, event: events.QuicEvent) -> list[H3Event]:
        """What an event of the connection brings; too much of it ends the connection."""
        self._frames = 0
        return super().handle_event(event)

    def _check_request_or_push_frame_type(self, frame_type: int, stream: Any) -> None:
        self._count()
        super()._check_request_or_push_frame_type(frame_type, stream)

    def _check_control_frame_type(self, frame_type: int) -> None:
        self._count()
        super()._check_control_frame_type(frame_type)

    def _count(self) -> None:
        self._frames += 1
        if self._frames > MAX_FRAMES:
            raise _TooMuch("too many frames")

    def _encode_headers(self, stream_id: int, headers: Headers) -> bytes:
        _, encoded = self._writer.encode(stream_id, headers)
        return encoded

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Headers:
        if frame_data is not None and len(frame_data) > MAX_FIELDS:
            raise _TooMuch("fields that are too long")
        fields = super()._decode_headers(stream_id, frame_data)
        size = 0
        for name, value in fields:
            size += len(name) + len(value) + 32
            if size > MAX_FIELDS:
                raise _TooMuch("fields that are too long")
        return fields

    def forget(self, stream: int) -> None:
        """Keeps nothing of a stream that we have reset: aioquic waits for an end that nobody will send."""
        self._stream.pop(stream, None)
