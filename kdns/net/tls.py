"""TLS on accepted connections: a protocol that stands between a socket's transport and the protocol inside.

Laws: a handshake has a time limit; those that have not come to their end are bounded in number, and the one makes room
that its client has stalled for longest (a client that means it needs milliseconds); handshakes get one step of a turn,
so that in a flood of them nobody else's queries wait for more than that; what has come is decrypted in pieces, in the
turns that the listener's connections share; the protocol inside is made once a handshake is over, and learns nothing of
those that fail; a client that does not read is not read from.

Theory of operation. The loop's own TLS makes an endless number of half-open handshakes and does each as its octets
come. So the records go through memory (`ssl.MemoryBIO`, OpenSSL does all else): what comes in is decrypted and handed
on in one piece, what the inside writes in a turn is one record, or a few large ones. OpenSSL goes on until it has
octets for us or no more records, and a record may be one octet, or a change of keys: it is given no more at a time than
it may take long over. What must wait is kept here, and nothing more is read from the socket until then. A handshake
begins with the first certificate; where there are several, OpenSSL asks which it is to be once it has read the server's
name.
"""

import asyncio
import contextlib
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from kdns import faults, memory
from kdns.metrics import Counter, Gauge
from kdns.net import StreamProtocol, StreamTransport
from kdns.net.certificates import Identities
from kdns.net.turns import Turns

# Seconds for a handshake: three round trips across the world, and one lost packet.
HANDSHAKE: Final = 3.0
# Handshakes at a time of one listener. Each costs some 50 KB once its first octets are there, so 25 MB in all.
MAX_HALF_OPEN: Final = 500
GIVE_BACK: Final = 100  # of these, from how many on what they had goes back to the system: some 5 MB
# Octets of a handshake from a client: a chain of certificates has some 5,000; OpenSSL itself stops at 100 KB a message.
MAX_HANDSHAKE_OCTETS: Final = 64 << 10
# Octets that are decrypted in one go: a dozen queries. They may be 37 changes of keys (RFC 8446, section 4.6.3), which
# take 1 ms; with all that a socket had, 64 KiB, it was 70 ms.
PIECE: Final = 1024
_RECORD: Final = 16 << 10  # octets of a record (RFC 8446, section 5.1); encrypted ones may have 256 more
_HEADER: Final = 5  # octets before it
_FIRST, _LAST = 20, 23  # the types of records

HANDSHAKES = Counter("kdns_tls_handshakes_total", "TLS handshakes of clients, by result.", ("server", "result"))
HALF_OPEN = Gauge("kdns_tls_half_open_connections", "Connections whose TLS handshake is not over.", ("server",))

Make = Callable[[], StreamProtocol]


@final
class TlsGate:
    """The handshakes of one listener, and the turns of its connections. `identities` may be replaced: they are those of
    handshakes that begin later.
    """

    def __init__(self, identities: Identities[ssl.SSLContext], label: str, turns: Turns) -> None:
        self.identities = identities
        self.limit = HANDSHAKE
        self.max_half_open = MAX_HALF_OPEN
        self.half_open: dict[TlsConnection, None] = {}
        self.floods = memory.Floods(GIVE_BACK)
        self.stalled: dict[TlsConnection, None] = {}  # those of them that wait for their client, the longest first
        self.queue: deque[TlsConnection] = deque()  # whose handshake goes on
        self.turns = turns
        self.open = HALF_OPEN.slot(label)
        self.ok = HANDSHAKES.slot(label, "ok")
        self.failed = HANDSHAKES.slot(label, "failed")
        self.late = HANDSHAKES.slot(label, "timeout")
        self.evicted = HANDSHAKES.slot(label, "evicted")

    def begin(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """The TLS of a connection."""
        context = self.identities.first
        if self.identities.several:
            context.sni_callback = self._switch
        return context.wrap_bio(incoming, outgoing, server_side=True)

    def _switch(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called by OpenSSL with the server name that a client sends."""
        tls.context = self.identities.choose(name)

    def enter(self, connection: "TlsConnection") -> None:
        """A connection that begins its handshake."""
        self.half_open[connection] = self.stalled[connection] = None
        self.open[0] += 1
        self.floods.now(len(self.half_open))
        if len(self.half_open) > self.max_half_open:
            self.evicted[0] += 1
            # Who waits for us does not give way to who comes later: where many come back at once, nobody would get
            # through.
            next(iter(self.stalled)).abort()

    def leave(self, connection: "TlsConnection") -> bool:
        """A connection whose handshake is over, or that is gone; says whether it was in one."""
        if connection not in self.half_open:
            return False
        del self.half_open[connection]
        self.stalled.pop(connection, None)
        self.open[0] -= 1
        self.floods.now(len(self.half_open))
        return True

    def answered(self, connection: "TlsConnection") -> None:
        """From now on a connection waits for its client, and no more for us."""
        self.stalled[connection] = None

    def wants(self, connection: "TlsConnection") -> None:
        """A record of a handshake has come: it goes on when its turn comes."""
        self.stalled.pop(connection, None)
        if not self.queue:
            asyncio.get_running_loop().call_soon(self._turn)
        self.queue.append(connection)

    def stop(self) -> None:
        """Ends all handshakes."""
        for connection in list(self.half_open):
            connection.abort()

    def _turn(self) -> None:
        """One step: the first of a handshake takes 0.3 ms with an ECDSA key and 1 ms with RSA, a turn some 0.01 ms."""
        connection = self.queue.popleft()
        if self.queue:
            asyncio.get_running_loop().call_soon(self._turn)
        try:
            connection.step()
        except Exception as error:
            faults.report("a TLS handshake", error)
            connection.abort()


@final
class TlsConnection:
    """One connection: the protocol of the socket's transport, and the transport of the protocol inside."""

    __slots__ = (
        "closing",
        "eof",
        "gate",
        "held",
        "incoming",
        "inside",
        "left",
        "make",
        "outgoing",
        "queued",
        "raw",
        "stopped",
        "timer",
        "tls",
        "took",
    )

    def __init__(self, gate: TlsGate, make: Make) -> None:
        self.gate = gate
        self.make = make
        self.inside: StreamProtocol | None = None
        self.raw: StreamTransport | None = None
        self.tls: ssl.SSLObject | None = None
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.timer: asyncio.TimerHandle | None = None
        self.left = b""  # what has come and OpenSSL has not got
        self.queued = False  # its turn will come
        self.held = False  # the protocol inside wants nothing now
        self.stopped = False  # nothing is read from the socket
        self.took = 0  # octets of the handshake
        self.eof = False  # the client writes no more
        self.closing = False

    # Called by the loop.

    def connection_made(self, transport: StreamTransport) -> None:
        self.raw = transport
        self.gate.enter(self)
        self.timer = asyncio.get_running_loop().call_later(self.gate.limit, self._expire)

    def data_received(self, data: bytes) -> None:
        if self.closing or self.eof:
            return  # what comes behind a goodbye nobody would ever read
        self.left = self.left + data if self.left else data
        gate = self.gate
        if self.inside is None:
            self.took += len(data)
            if not self.queued and _records(self.left):
                self.queued = True
                gate.wants(self)
        elif not self.queued and not self.held:
            if gate.turns.over():
                self._wait()
            else:
                self._read()
        self._flow()

    def eof_received(self) -> bool:
        if self.inside is None:
            return False
        self.incoming.write_eof()
        self._ended()
        return self.raw is not None  # half a close: what was asked is still answered

    def pause_writing(self) -> None:
        if self.inside is not None:
            self.inside.pause_writing()

    def resume_writing(self) -> None:
        if self.inside is not None:
            self.inside.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.raw = None
        self.closing = True
        self._settled()
        inside, self.inside = self.inside, None
        self.tls = None
        self.left = b""
        if inside is not None:
            inside.connection_lost(exc)

    # The handshake.

    def step(self) -> None:
        """Goes on with the handshake as far as what has come allows."""
        self.queued = False
        if self.raw is None or self.closing or self.inside is not None:
            return
        self._feed(_records(self.left))
        try:
            if self.tls is None:
                self.tls = self.gate.begin(self.incoming, self.outgoing)
            with _names_unsaid():
                self.tls.do_handshake()
        except ssl.SSLWantReadError:
            # Checked here, for what came may hold the first queries too.
            if self.took > MAX_HANDSHAKE_OCTETS:
                self.gate.failed[0] += 1
                self.abort()
                return
            self._flush()
            if _records(self.left):
                self.queued = True
                self.gate.wants(self)
            else:
                self.gate.answered(self)
            self._flow()
            return
        except (ssl.SSLError, OSError):
            # The alert says why to the client; what a stranger sends is nobody's error here.
            self.gate.failed[0] += 1
            self._flush()
            self.closing = True
            self._settled()
            self.raw.close()
            return
        self._flush()
        self.gate.ok[0] += 1
        self._settled()
        self.inside = self.make()
        self.inside.connection_made(self)
        self._read()
        self._flow()

    def _settled(self) -> None:
        self.gate.leave(self)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _expire(self) -> None:
        self.timer = None
        self.gate.late[0] += 1
        self.abort()

    # Octets.

    def resume(self) -> None:
        """Decrypts what waits, its turn having come."""
        self.queued = False
        if not self.held:
            self._read()
        self._flow()

    def _feed(self, octets: int) -> None:
        """Gives OpenSSL so many octets of what has come."""
        left = self.left
        if len(left) <= octets:
            self.incoming.write(left)
            self.left = b""
        else:
            self.incoming.write(left[:octets])
            self.left = left[octets:]

    def _flow(self) -> None:
        """Reads from the socket while nothing waits for its turn and the protocol inside wants more."""
        stop = self.held or self.queued
        raw = self.raw
        if stop != self.stopped and raw is not None and not self.eof and not self.closing:
            self.stopped = stop
            if stop:
                raw.pause_reading()
            else:
                raw.resume_reading()

    def _read(self) -> None:
        """Decrypts what has come, a piece at least, and hands it on; what is left has its turn later."""
        tls = self.tls
        if tls is None or self.closing:
            return
        parts: list[bytes] = []
        room = self.gate.turns.left()
        began = time.monotonic()
        try:
            while True:
                if self.left:
                    self._feed(PIECE)
                ended = self._decrypt(tls, parts)
                now = time.monotonic()
                if ended or not self.left or now - began >= room:
                    break
        except ssl.SSLError:
            self._flush()
            self.abort()
            return
        self.gate.turns.spend(now - began)
        if self.outgoing.pending:
            self._flush()  # replies of TLS itself, such as to a key update
        inside = self.inside
        if parts and inside is not None:
            inside.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if ended:
            self.left = b""  # what comes behind a goodbye nobody would ever read
            self._ended()
        elif self.left and not self.held:
            self._wait()

    def _decrypt(self, tls: ssl.SSLObject, parts: list[bytes]) -> bool:
        """Decrypts what OpenSSL has got; True where the client writes no more. Raises ssl.SSLError."""
        try:
            while True:
                data = tls.read(_RECORD)
                if not data:
                    return True
                parts.append(data)
                if not self.incoming.pending and not tls.pending():
                    return False
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLEOFError:
            # The end of the connection without a goodbye: messages have lengths, so nothing can be cut unseen.
            return True

    def _wait(self) -> None:
        """Has its turn later."""
        if not self.queued and not self.closing:
            self.queued = True
            self.gate.turns.wait(self)

    def _ended(self) -> None:
        inside = self.inside
        if not self.eof and inside is not None:
            self.eof = True
            if not inside.eof_received():
                self.close()

    def _flush(self) -> None:
        data = self.outgoing.read()
        if data and self.raw is not None:
            self.raw.write(data)

    # Called by the protocol inside.

    def write(self, data: Any) -> None:
        """Sends octets, encrypted."""
        tls = self.tls
        if tls is None or self.closing:
            return
        try:
            sent = tls.write(data)
            while sent < len(data):
                sent += tls.write(memoryview(data)[sent:])
        except ssl.SSLError:
            self.abort()
            return
        self._flush()

    def close(self) -> None:
        """Says goodbye and closes, once all is sent."""
        raw = self.raw
        if raw is None or self.closing:
            return
        self.closing = True
        if self.tls is not None:
            with contextlib.suppress(ssl.SSLError):  # the client's own goodbye is not waited for
                self.tls.unwrap()
            self._flush()
        raw.close()

    def abort(self) -> None:
        """Closes at once."""
        self.closing = True
        self._settled()
        if self.raw is not None:
            self.raw.abort()

    def is_closing(self) -> bool:
        return self.closing or self.raw is None

    def pause_reading(self) -> None:
        self.held = True
        self._flow()

    def resume_reading(self) -> None:
        self.held = False
        if self.left:
            self._wait()
        self._flow()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self.raw is not None:
            self.raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.raw.get_write_buffer_size() if self.raw is not None else 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object` is the connection's TLS; all else is asked of the socket's transport."""
        if name == "ssl_object":
            return self.tls if self.tls is not None else default
        return self.raw.get_extra_info(name, default) if self.raw is not None else default


@contextlib.contextmanager
def _names_unsaid() -> Iterator[None]:
    """Keeps server names that are not ASCII off the standard error: Python refuses the handshake, and prints the name
    and a stack trace besides, as often as a stranger likes.
    """
    before = sys.unraisablehook

    def hook(raised: "sys.UnraisableHookArgs") -> None:
        if not issubclass(raised.exc_type, UnicodeDecodeError):
            before(raised)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _records(data: bytes) -> int:
    """Octets of the whole records that a client's part of a handshake begins with, one at least, and no more than a
    piece of them; 0: the first has not come whole. What is no record is whole: OpenSSL says so.

    RFC 8446, section 5.1. Until then there is nothing to be done, and nothing but these octets to be kept.
    """
    end, total = 0, len(data)
    while end + _HEADER <= total:
        size = data[end + 3] << 8 | data[end + 4]
        if not _FIRST <= data[end] <= _LAST or data[end + 1] != 3 or size > _RECORD + 256:
            return total
        if end + _HEADER + size > total or (end and end + _HEADER + size > PIECE):
            break
        end += _HEADER + size
    return end
