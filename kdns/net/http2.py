"""HTTP/2 for a server of small requests (RFC 9113): octets in, requests and octets out. It takes no socket, loop or
clock.

Laws: whatever a client sends is bounded. Streams count against the limit until their answer has left, also those that
the client reset (CVE-2023-44487). A header block has at most MAX_HEADERS octets in MAX_CONTINUATIONS frames. Bodies and
unsent answers of a connection are bounded together. Frames that ask for work and bring none (resets, pings, settings,
empty data) use up an allowance that finished requests refill. Who breaks a law gets a GOAWAY with the reason, and only
that connection ends.

Theory of operation. Field blocks are decoded by `hpack`, Huffman's code by `net.huffman`; a block that puts nothing
into the table means the same until one does, so its meaning is remembered. What we send is encoded without tables, and
needs none. A reset stream, a window that is too small and a body that is too long concern their stream; all other
errors end the connection (section 5.4).
"""

from collections.abc import Callable, Iterable
from typing import Final, final

from hpack import Decoder, hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError

from kdns.net import huffman
from kdns.net.http2_frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    MAX_FRAME,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Http2Error,
    frame,
    leaves_table,
    too_many_sizes,
    unpadded,
)

hpack.decode_huffman = huffman.decode  # type: ignore[assignment, attr-defined]

# Octets of a request's fields, as they come and decoded: a GET with a long query and a browser's fields have some
# 2,000. To read so many takes 1 ms.
MAX_HEADERS: Final = 8192
MAX_CONTINUATIONS: Final = 8
# What a client may send without being told that there is room again: bodies that are not complete, of all streams.
WINDOW: Final = 256 << 10
GIVE_BACK: Final = 32 << 10  # octets after which it is told
MAX_HELD: Final = 256 << 10  # octets of answers that wait for the client's window
# Frames without work that a client may be ahead. A page of a browser brings some 20, a busy resolver 2 a request.
ALLOWANCE: Final = 1000
RESET: Final = 5  # what a reset costs of it, and what a finished request brings
# Field blocks whose meaning is remembered, and octets of each: clients differ in little but the length of a query.
MAX_MEMO: Final = 64
MAX_MEMO_OCTETS: Final = 256

_INITIAL: Final = 65_535  # the windows of a connection's beginning (section 6.9.2)
_MOST: Final = 0x7FFFFFFF


@final
class Exchange:
    """A request, and later its answer. `fields` are those without a colon, lower-case names. `large`: the body was too
    long.
    """

    __slots__ = (
        "body",
        "ended",
        "fields",
        "gone",
        "large",
        "method",
        "received",
        "rest",
        "stream",
        "target",
        "trailers",
        "window",
    )

    def __init__(self, stream: int, method: bytes, target: bytes, fields: dict[bytes, bytes], window: int = 0) -> None:
        self.stream = stream
        self.method = method
        self.target = target
        self.fields = fields
        self.body = bytearray()
        self.large = False
        self.ended = False  # the request is complete
        self.gone = False  # the client wants no answer any more
        self.received = 0  # octets of flow control
        self.window = window  # octets that may be sent
        self.rest = b""  # of the answer's body
        self.trailers = b""


def head_of(found: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes, dict[bytes, bytes]]:
    """The method, the target and the other fields of a request, of which values of one name are one list (RFC 9110,
    section 5.3): each proxy may add an X-Forwarded-For of its own.
    """
    fields: dict[bytes, bytes] = {}
    method = target = b""
    for name, value in found:
        if name == b":method":
            method = value
        elif name == b":path":
            target = value
        elif name[:1] != b":":
            fields[name] = fields[name] + b", " + value if name in fields else value
    return method, target, fields


@final
class Http2:
    """The server's end of one connection. `ask` is called with each complete request; what to send gathers in `out`."""

    def __init__(self, ask: Callable[[Exchange], None], max_streams: int, max_body: int) -> None:
        self.ask = ask
        self.max_streams = max_streams
        self.max_body = max_body
        settings = b"".join((
            b"\0\3", max_streams.to_bytes(4, "big"),  # SETTINGS_MAX_CONCURRENT_STREAMS
            b"\0\4", WINDOW.to_bytes(4, "big"),  # SETTINGS_INITIAL_WINDOW_SIZE: a body needs no more of it
            b"\0\6", MAX_HEADERS.to_bytes(4, "big"),  # SETTINGS_MAX_HEADER_LIST_SIZE
        ))  # fmt: skip
        self.out = [
            frame(SETTINGS, 0, 0, settings),
            frame(WINDOW_UPDATE, 0, 0, (WINDOW - _INITIAL).to_bytes(4, "big")),
        ]
        self.begun = False
        self.decoder = Decoder(MAX_HEADERS)
        self.memo: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self.streams: dict[int, Exchange] = {}
        self.last = 0  # the highest stream of the client
        self.block: bytearray | None = None  # of fields, not complete
        self.block_stream = 0
        self.block_ends = False
        self.continued = 0
        self.window = _INITIAL  # octets that may be sent
        self.initial = _INITIAL
        self.held = 0
        self.unread = 0  # octets received and not given back
        self.consumed = 0  # of these: to give back
        self.spent = 0  # of the allowance
        self.leaving = False  # no new streams

    @property
    def pending(self) -> int:
        """Requests that have come or begun, and whose answers have not left."""
        return len(self.streams)

    def take(self, buffer: bytes, off: int) -> int:
        """Reads one frame; gives where it ends, or -1 where it is not complete. Raises Http2Error."""
        if not self.begun:
            if len(buffer) - off < len(PREFACE):
                if not PREFACE.startswith(buffer[off:]):
                    raise Http2Error(PROTOCOL_ERROR, "no HTTP/2")
                return -1
            if buffer[off : off + len(PREFACE)] != PREFACE:
                raise Http2Error(PROTOCOL_ERROR, "no HTTP/2")
            self.begun = True
            return off + len(PREFACE)
        if len(buffer) - off < 9:
            return -1
        size = buffer[off] << 16 | buffer[off + 1] << 8 | buffer[off + 2]
        if size > MAX_FRAME:
            raise Http2Error(FRAME_SIZE_ERROR, "a frame that is too long")
        start = off + 9
        end = start + size
        if len(buffer) < end:
            return -1
        kind, flags = buffer[off + 3], buffer[off + 4]
        stream = int.from_bytes(buffer[off + 5 : start], "big") & _MOST
        if self.block is not None and (kind != CONTINUATION or stream != self.block_stream):
            raise Http2Error(PROTOCOL_ERROR, "a frame between those of a header block")
        if kind == HEADERS:
            self._headers(flags, stream, buffer[start:end])
        elif kind == DATA:
            self._data(flags, stream, buffer[start:end])
        else:
            self._control(kind, flags, stream, buffer[start:end])
        return end

    def respond(self, exchange: Exchange, fields: bytes, body: bytes, trailers: bytes = b"") -> None:
        """Answers a request. `fields` and `trailers` are of `field`, the status first. Raises Http2Error."""
        stream = exchange.stream
        if exchange.gone or stream not in self.streams:
            self._finish(exchange)
            return
        out = self.out
        if not body and not trailers:
            out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, fields))
            self._finish(exchange)
            return
        out.append(frame(HEADERS, END_HEADERS, stream, fields))
        exchange.rest = body
        exchange.trailers = trailers
        self.held += len(body)
        self._send(exchange)
        if self.held > MAX_HELD:
            raise Http2Error(ENHANCE_YOUR_CALM, "answers are not read")

    def leave(self) -> None:
        """Says that no new requests are taken; those that came are answered."""
        if not self.leaving:
            self.leaving = True
            self.out.append(self.goodbye(NO_ERROR))

    def goodbye(self, code: int) -> bytes:
        """A GOAWAY frame."""
        return frame(GOAWAY, 0, 0, self.last.to_bytes(4, "big") + code.to_bytes(4, "big"))

    # Frames.

    def _headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream & 1:
            raise Http2Error(PROTOCOL_ERROR, "a request on a stream that is not the client's")
        payload = unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise Http2Error(FRAME_SIZE_ERROR, "HEADERS without a priority")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._fields(stream, bool(flags & END_STREAM), payload)
        else:
            self.block = bytearray(payload)
            self.block_stream = stream
            self.block_ends = bool(flags & END_STREAM)
            self.continued = 0

    def _continuation(self, flags: int, payload: bytes) -> None:
        block = self.block
        if block is None:
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION of nothing")
        block += payload
        self.continued += 1
        if len(block) > MAX_HEADERS or self.continued > MAX_CONTINUATIONS:
            raise _too_long()
        if flags & END_HEADERS:
            self.block = None
            self._fields(self.block_stream, self.block_ends, bytes(block))

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        known = self.memo.get(block)
        if known is not None:
            return known
        if len(block) > MAX_HEADERS:
            raise _too_long()
        if too_many_sizes(block):
            raise Http2Error(COMPRESSION_ERROR, "new sizes of the table without end")
        try:
            found = [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            raise _too_long() from None
        except HPACKError as error:
            raise Http2Error(COMPRESSION_ERROR, str(error)) from None
        if not leaves_table(block):
            self.memo.clear()
        elif len(block) <= MAX_MEMO_OCTETS:
            if len(self.memo) >= MAX_MEMO:
                self.memo.clear()
            self.memo[block] = found
        return found

    def _fields(self, stream: int, ends: bool, block: bytes) -> None:
        """A complete block of fields: a request's, or its trailers."""
        found = self._decode(block)  # in any case: the table is the connection's
        known = self.streams.get(stream)
        if known is not None:
            if known.ended or not ends:
                raise Http2Error(STREAM_CLOSED if known.ended else PROTOCOL_ERROR, "fields in the middle of a request")
            self._complete(known)
            return
        if stream <= self.last:
            self._spend(RESET)  # of a stream that we have answered or refused
            return
        self.last = stream
        if self.leaving:
            return
        if len(self.streams) >= self.max_streams:
            self._reset(stream, REFUSED_STREAM)
            return
        method, target, fields = head_of(found)
        if not method or not target:
            self._reset(stream, PROTOCOL_ERROR)  # section 8.3.1
            return
        exchange = self.streams[stream] = Exchange(stream, method, target, fields, self.initial)
        if ends:
            self._complete(exchange)

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self.unread += size
        if self.unread > WINDOW:
            raise Http2Error(FLOW_CONTROL_ERROR, "more than the window")
        payload = unpadded(flags, payload)
        if not stream or stream > self.last:
            raise Http2Error(PROTOCOL_ERROR, "data of no request")
        exchange = self.streams.get(stream)
        if exchange is None or exchange.ended:
            if exchange is not None and not exchange.large and not exchange.gone:
                raise Http2Error(STREAM_CLOSED, "data after the end of a request")
            self._spend(1)
            self._give_back(size)  # on its way when the stream was closed
            return
        exchange.received += size
        exchange.body += payload
        if len(exchange.body) > self.max_body:
            exchange.large = True
            exchange.body.clear()
            self._complete(exchange)
        elif flags & END_STREAM:
            self._complete(exchange)
        else:
            self._spend(1)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == CONTINUATION:
            self._continuation(flags, payload)
            return
        self._spend(1)
        if kind == WINDOW_UPDATE:
            self._window_update(stream, payload)
        elif kind == RST_STREAM:
            self._client_reset(stream, payload)
        elif kind == SETTINGS:
            self._settings(flags, stream, payload)
        elif kind == PING:
            if len(payload) != 8:
                raise Http2Error(FRAME_SIZE_ERROR, "PING")
            if not flags & ACK:
                self.out.append(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.leaving = True
        elif kind == PUSH_PROMISE:
            raise Http2Error(PROTOCOL_ERROR, "a client cannot push")

    def _client_reset(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4 or not stream or stream > self.last:
            raise Http2Error(PROTOCOL_ERROR, "RST_STREAM")
        self._spend(RESET)
        exchange = self.streams.get(stream)
        if exchange is None or exchange.gone:
            return
        exchange.gone = True
        if exchange.rest or exchange.trailers or not exchange.ended:
            self._finish(exchange)  # else it is being worked on, and counts until that is over

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) % 6 or (flags & ACK and payload):
            raise Http2Error(FRAME_SIZE_ERROR if not stream else PROTOCOL_ERROR, "SETTINGS")
        if flags & ACK:
            return
        initial = self.initial
        for at in range(0, len(payload), 6):
            if payload[at : at + 2] == b"\0\4":  # SETTINGS_INITIAL_WINDOW_SIZE
                initial = int.from_bytes(payload[at + 2 : at + 6], "big")
                if initial > _MOST:
                    raise Http2Error(FLOW_CONTROL_ERROR, "a window that is too large")
        if initial != self.initial:
            for exchange in self.streams.values():
                exchange.window += initial - self.initial
            self.initial = initial
        self.out.append(frame(SETTINGS, ACK, 0))
        self._flush()

    def _window_update(self, stream: int, payload: bytes) -> None:
        step = int.from_bytes(payload, "big") & _MOST
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        if not stream:
            self.window += step
            if not step or self.window > _MOST:
                raise Http2Error(FLOW_CONTROL_ERROR if step else PROTOCOL_ERROR, "a window that cannot be")
            self._flush()
            return
        if stream > self.last:
            raise Http2Error(PROTOCOL_ERROR, "WINDOW_UPDATE of no request")
        exchange = self.streams.get(stream)
        if exchange is not None:
            exchange.window += step
            if not step or exchange.window > _MOST:
                self._reset(stream, FLOW_CONTROL_ERROR if step else PROTOCOL_ERROR)
                exchange.gone = True
                if exchange.rest or exchange.trailers or not exchange.ended:
                    self._finish(exchange)
            elif exchange.rest:
                self._send(exchange)

    # Streams.

    def _complete(self, exchange: Exchange) -> None:
        exchange.ended = True
        self._give_back(exchange.received)
        self.ask(exchange)

    def _send(self, exchange: Exchange) -> None:
        """Sends of an answer's body what the windows allow, then its trailers."""
        out, stream = self.out, exchange.stream
        body = exchange.rest
        off = 0
        while off < len(body):
            size = min(len(body) - off, MAX_FRAME, self.window, exchange.window)
            if size <= 0:
                break
            last = off + size == len(body) and not exchange.trailers
            out.append(frame(DATA, END_STREAM if last else 0, stream, body[off : off + size]))
            self.window -= size
            exchange.window -= size
            self.held -= size
            off += size
        exchange.rest = body[off:]
        if not exchange.rest:
            if exchange.trailers:
                out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, exchange.trailers))
            self._finish(exchange)

    def _flush(self) -> None:
        if self.held:
            for exchange in list(self.streams.values()):
                if exchange.rest and self.window > 0:
                    self._send(exchange)

    def _finish(self, exchange: Exchange) -> None:
        """Forgets a stream."""
        if self.streams.pop(exchange.stream, None) is None:
            return
        self.held -= len(exchange.rest)
        exchange.rest = exchange.trailers = b""
        if not exchange.ended:
            exchange.ended = True
            self._give_back(exchange.received)
        if exchange.large and not exchange.gone:
            self.out.append(frame(RST_STREAM, 0, exchange.stream, bytes(4)))  # section 8.1: the rest need not be sent
        elif not exchange.gone:
            self.spent = max(self.spent - RESET, 0)

    def _reset(self, stream: int, code: int) -> None:
        self.out.append(frame(RST_STREAM, 0, stream, code.to_bytes(4, "big")))
        self._spend(RESET)

    def _give_back(self, size: int) -> None:
        self.consumed += size
        if self.consumed >= GIVE_BACK:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, self.consumed.to_bytes(4, "big")))
            self.unread -= self.consumed
            self.consumed = 0

    def _spend(self, cost: int) -> None:
        self.spent += cost
        if self.spent > ALLOWANCE:
            raise Http2Error(ENHANCE_YOUR_CALM, "frames that bring no work")


def _too_long() -> Http2Error:
    return Http2Error(ENHANCE_YOUR_CALM, "fields that are too long")
