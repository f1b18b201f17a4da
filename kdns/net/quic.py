"""The QUIC listener (RFC 9000): datagrams in, connections of whatever is spoken on them. aioquic does QUIC and TLS.

Laws: a turn of the loop reads for at most a millisecond, one datagram at least; what a turn has to send leaves at its
end. A handshake has a time limit; those that have not come to their end are bounded in number, the oldest gives way;
while there are many, clients must first show that they receive at their address (Retry, section 8.1.2), which costs us
no memory. To an address that has not, we send at most three times what came from it (section 8.1; aioquic's). Early
data (0-RTT) is not taken: it can be replayed (RFC 9250, section 4.5). Connections are capped, in all and for one
client, as those over TCP are (net.tcp, net.shares).

Theory of operation. A datagram is given to its connection by the connection ID in it. The connection is a state machine
without I/O: it takes datagrams, and gives events and datagrams. It is told of time by one timer, which is armed for the
earliest of its own deadlines and ours. A connection that we close is forgotten once its farewell is sent: what still
comes for it is for nobody, and is not answered.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic import connection as machine
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from kdns import faults
from kdns.metrics import Counter
from kdns.net import Address, Handler
from kdns.net.certificates import Identity
from kdns.net.sockets import Controls, receive_local, reply_from
from kdns.net.tcp import TcpListener
from kdns.net.tls import HALF_OPEN, HANDSHAKES, MAX_HALF_OPEN
from kdns.quicmachine import acknowledge_now, allow_streams, forget_sent, hold_at_most, unsent

BATCH_DATAGRAMS: Final = 64  # of a turn, as over UDP
BATCH_SECONDS: Final = 0.001
# Octets of a datagram: paths carry 1,500 with headers or, within a cluster, up to some 9,000, which nobody uses. One of
# this size holds 40 queries, which take some 3 ms; time is looked at between datagrams.
MAX_DATAGRAM: Final = 1500
CONTROL_SIZE: Final = socket.CMSG_SPACE(20)
# Seconds for a handshake: three round trips across the world, and one lost packet.
HANDSHAKE: Final = 3.0
# Handshakes under way from which on clients must prove their address first. A burst of new clients stays below it for
# the milliseconds that a handshake takes; a flood from forged addresses passes it at once.
RETRY_FROM: Final = 32
MAX_STREAMS: Final = 256  # of a connection at a time (CoreDNS's)
# Octets of answers of a connection that the client has not taken: some 16 of the largest, or thousands of usual ones.
MAX_HELD: Final = 1 << 20
CID_OCTETS: Final = 8  # of our connection IDs
SMALLEST_INITIAL: Final = 1200  # octets of a datagram that begins a connection (section 14.1)

RETRIES: Final = Counter(
    "kdns_quic_retries_total", "Clients asked to prove their address before a handshake.", ("server",)
)
REJECTED: Final = Counter(
    "kdns_quic_datagrams_rejected_total", "Datagrams that belong to no connection and begin none.", ("server",)
)


class Application(Protocol):
    """What is spoken on a connection."""

    def event(self, event: events.QuicEvent) -> None:
        """Takes an event of the connection: octets of a stream, the end of one."""

    def late(self, stream: int) -> None:
        """What was begun on a stream has not come whole in time."""

    def leave(self) -> None:
        """Answers what was asked, takes nothing more, and then closes."""

    def lost(self) -> None:
        """The connection is gone."""


@final
class QuicListener(TcpListener):
    """Accepts connections on one bound UDP socket. `speak` makes what is spoken on a connection.

    `wildcard`: the socket is bound to every address, so that a reply's source must be set by hand.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        label: str,
        speak: Callable[["QuicConnection"], Application],
        *,
        no_error: int,
        overload: int,
        wildcard: bool = False,
    ) -> None:
        """`no_error` and `overload` are the application's codes for a farewell and for a lack of room."""
        super().__init__(sock, handler, label)
        self.label = label
        self.speak = speak
        self.no_error = no_error
        self.overload = overload
        self.wildcard = wildcard
        self.identity: Identity[QuicConfiguration] | None = None
        self.loop: Any = None
        self.accepting = False
        self.tokens = QuicRetryTokenHandler()
        self.by_id: dict[bytes, QuicConnection] = {}
        self.half_open: dict[QuicConnection, None] = {}  # the oldest first
        self.to_send: dict[QuicConnection, None] = {}  # those with something to send at the end of this turn
        self.sending = False
        self.half_open_slot = HALF_OPEN.slot(label)
        self.results = {name: HANDSHAKES.slot(label, name) for name in ("ok", "failed", "timeout", "evicted")}
        self.retries = RETRIES.slot(label)
        self.rejected = REJECTED.slot(label)
        if wildcard:
            receive_local(sock)

    def identify(self, identity: Identity[QuicConfiguration] | None, label: str) -> None:
        if identity is None or (self.identity is not None and self.identity.files == identity.files):
            return
        if self.identity is not None:
            self.identity.stop()
        self.identity = identity
        identity.start()

    async def start(self) -> None:
        """Begins to read."""
        self.loop = asyncio.get_running_loop()
        self.accepting = True
        self.loop.add_reader(self.sock, self._read)

    def stop_accepting(self) -> None:
        """Takes no new connections; those there are end once their queries are answered."""
        self.accepting = False
        for connection in list(self.half_open):
            connection.abort()
        for each in list(self.connections):
            assert isinstance(each, QuicConnection)
            each.say_goodbye()
        self._flush()

    def stop(self) -> None:
        """Closes everything."""
        self.accepting = False
        for connection in set(self.by_id.values()):
            connection.abort()
        if self.loop is not None:
            self.loop.remove_reader(self.sock)
        if self.identity is not None:
            self.identity.stop()
        self.sock.close()

    # Datagrams.

    def _read(self) -> None:
        self.busy = self.sending = True  # what is to be sent leaves at the end of this
        end = time.monotonic() + BATCH_SECONDS
        receive = self.sock.recvmsg
        size = CONTROL_SIZE if self.wildcard else 0
        try:
            for _ in range(BATCH_DATAGRAMS):
                try:
                    data, controls, _, peer = receive(MAX_DATAGRAM, size)
                except BlockingIOError:
                    return
                except OSError:
                    continue  # an error that a datagram of ours came to; QUIC finds out by itself what was lost
                try:
                    self._datagram(data, peer, controls[0][2] if controls else b"")
                except Exception as error:
                    faults.report("a QUIC datagram", error)
                if time.monotonic() > end:
                    return
        finally:
            self._flush()

    def _datagram(self, data: bytes, peer: Address, came: bytes) -> None:
        # The connection ID stands where its form says (RFC 9000, sections 17.2 and 17.3).
        if not data:
            return
        if data[0] & 0x80:
            cid = data[6 : 6 + data[5]] if len(data) > 6 else b""
        else:
            cid = data[1 : 1 + CID_OCTETS]
        connection = self.by_id.get(cid)
        if connection is None:
            connection = self._open(data, peer, came) if data[0] & 0x80 else None
            if connection is None:
                return
        connection.receive(data, peer, came)

    def _open(self, data: bytes, peer: Address, came: bytes) -> "QuicConnection | None":
        """The connection that a datagram begins; None where it begins none, or its client must prove its address."""
        if not self.accepting or len(data) < SMALLEST_INITIAL or self.identity is None:
            self.rejected[0] += 1
            return None
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_OCTETS)
        except ValueError:
            self.rejected[0] += 1
            return None
        configuration = self.identity.current
        configuration.idle_timeout = self.idle
        version = header.version or 0
        if version and version not in configuration.supported_versions:
            packet = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=configuration.supported_versions,
            )
            self.send([(packet, peer)], came)
            return None
        # Section 7.2: a client's first connection ID has eight octets at least.
        if header.packet_type != QuicPacketType.INITIAL or len(header.destination_cid) < 8:
            self.rejected[0] += 1
            return None
        now = self.loop.time()
        original, retried = header.destination_cid, None
        if header.token:
            # A token that is not ours, or no longer good: as if there were none (section 8.1.3).
            with contextlib.suppress(ValueError):
                original = self.tokens.validate_token(
                    address=peer, destination_cid=header.destination_cid, token=header.token, now=now
                )
                retried = header.destination_cid
        if retried is None and len(self.half_open) >= RETRY_FROM:
            source = os.urandom(CID_OCTETS)
            token = self.tokens.create_token(
                address=peer,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=source,
                now=now,
            )
            packet = encode_quic_retry(
                version=version,
                source_cid=source,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            )
            self.retries[0] += 1
            self.send([(packet, peer)], came)
            return None
        connection = QuicConnection(self, configuration, original, retried, peer)
        self.by_id[header.destination_cid] = connection
        connection.ids.add(header.destination_cid)
        self.half_open[connection] = None
        self.half_open_slot[0] += 1
        if len(self.half_open) > MAX_HALF_OPEN:
            self.results["evicted"][0] += 1
            next(iter(self.half_open)).abort()
        return connection

    def settled(self, connection: "QuicConnection", result: str) -> None:
        """A handshake is over, or given up."""
        if connection in self.half_open:
            del self.half_open[connection]
            self.half_open_slot[0] -= 1
            self.results[result][0] += 1

    def send(self, datagrams: list[tuple[bytes, Address]], came: bytes) -> None:
        """Sends datagrams; one that the kernel does not take is lost, and sent again by QUIC."""
        controls: Controls = reply_from(came) if came else []
        for data, peer in datagrams:
            with contextlib.suppress(OSError):
                if controls:
                    self.sock.sendmsg((data,), controls, 0, peer)
                else:
                    self.sock.sendto(data, peer)

    def wants_to_send(self, connection: "QuicConnection") -> None:
        """A connection has something to send: it leaves at the end of this turn."""
        self.to_send[connection] = None
        if not self.sending:
            self.sending = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.sending = False
        waiting, self.to_send = self.to_send, {}
        for connection in waiting:
            try:
                connection.transmit()
            except Exception as error:
                faults.report("a QUIC connection", error)
                connection.forget()


@final
class QuicConnection:
    """One connection. `deadline` and `pending` are as net.shares has them."""

    __slots__ = (
        "application", "armed", "came", "closing", "deadline", "fresh", "gone", "held", "host", "ids", "listener",
        "peer", "pending", "quic", "timer", "unfinished", "written",
    )  # fmt: skip

    def __init__(
        self,
        listener: QuicListener,
        configuration: QuicConfiguration,
        original: bytes,
        retried: bytes | None,
        peer: Address,
    ) -> None:
        """`original`: the connection ID that the client chose first; `retried`: the one that our Retry gave it."""
        self.listener = listener
        self.quic = machine.QuicConnection(
            configuration=configuration, original_destination_connection_id=original, retry_source_connection_id=retried
        )
        allow_streams(self.quic, listener.max_streams or MAX_STREAMS)
        hold_at_most(self.quic, configuration.max_data)
        self.peer = peer
        self.host = peer[0]
        self.came = b""  # the packet info of what came last: where replies leave from
        self.application: Application | None = None
        self.pending = 0
        now = listener.loop.time()
        self.deadline = now + HANDSHAKE
        self.unfinished: dict[int, float] = {}  # streams whose request has not come whole, until when; the oldest first
        self.closing = False  # it is to end: its farewell is still to be sent
        self.gone = False
        self.fresh = True  # nothing was sent on it
        self.ids: set[bytes] = {self.quic.host_cid}
        listener.by_id[self.quic.host_cid] = self
        self.written = False  # a reply waits to be sent
        self.held = 0  # octets of answers, of which the client may have taken some
        self.timer: asyncio.TimerHandle | None = None
        self.armed = 0.0

    # Datagrams and time.

    def receive(self, data: bytes, peer: Address, came: bytes) -> None:
        """Takes a datagram."""
        self.came = came
        self.quic.receive_datagram(data, peer, self.listener.loop.time())
        self._events()
        self.listener.wants_to_send(self)

    def transmit(self) -> None:
        """Sends what there is to send, and arms the timer."""
        if self.gone:
            return
        now = self.listener.loop.time()
        if self.written:
            self.written = False
            acknowledge_now(self.quic, now)
        datagrams = self.quic.datagrams_to_send(now)
        if datagrams:
            forget_sent(self.quic)
            self.fresh = False
            self.listener.send(datagrams, self.came)
        elif self.fresh:
            # What seemed to begin a connection could not be decrypted: a packet that can is acknowledged at once.
            self.forget()
            return
        if self.closing:
            self.forget()
            return
        self._arm(self.quic.get_timer())

    def _arm(self, quic_at: float | None) -> None:
        """Arms the timer for what is due first. `quic_at`: when QUIC wants to be told of the time."""
        at = self.deadline
        if self.unfinished:
            at = min(at, next(iter(self.unfinished.values())))
        if quic_at is not None:
            at = min(at, quic_at)
        # A timer that is early only looks again: to move it at each datagram costs more.
        if self.timer is None or at < self.armed:
            if self.timer is not None:
                self.timer.cancel()
            self.armed = at
            self.timer = self.listener.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self.timer = None
        if self.gone:
            return
        now = self.listener.loop.time()
        try:
            self._expire(now)
            self._tell_time(now)
        except Exception as error:
            faults.report("a QUIC connection", error)
            self.forget()

    def _tell_time(self, now: float) -> None:
        """Tells QUIC the time where it wants to know; a timer that was early is armed again."""
        if self.gone:
            return
        at = self.quic.get_timer()
        if at is not None and now >= at:
            self.quic.handle_timer(now)
            self._events()
            self.transmit()
        else:
            self._arm(at)

    def _expire(self, now: float) -> None:
        application = self.application
        if now >= self.deadline:
            if application is None:
                self.listener.settled(self, "timeout")
                self.abort()
            elif self.pending:
                self.deadline = now + 1.0  # an upstream is being waited for; its own deadline ends that
            else:
                self.close(self.listener.no_error)
        while application is not None and self.unfinished:
            stream = next(iter(self.unfinished))
            if self.unfinished[stream] > now:
                break
            del self.unfinished[stream]
            application.late(stream)

    def _events(self) -> None:
        while not self.gone and (event := self.quic.next_event()) is not None:
            if isinstance(event, events.ConnectionIdIssued):
                self.ids.add(event.connection_id)
                self.listener.by_id[event.connection_id] = self
            elif isinstance(event, events.ConnectionIdRetired):
                self.ids.discard(event.connection_id)
                self.listener.by_id.pop(event.connection_id, None)
            elif isinstance(event, events.HandshakeCompleted):
                self._begin()
            elif isinstance(event, events.ConnectionTerminated):
                self.forget()
            elif self.application is not None and not self.closing:
                self.application.event(event)

    def _begin(self) -> None:
        """The handshake is over."""
        listener = self.listener
        listener.settled(self, "ok")
        self.peer = self.client()
        self.host = self.peer[0]
        self.deadline = listener.loop.time() + listener.first_read
        if not listener.admit(self, self.host):
            self.close(listener.overload, "too many connections")
            return
        self.application = listener.speak(self)

    # Called by what is spoken.

    def client(self) -> Address:
        """Where the client is now: it may move (section 9)."""
        return self.quic.get_peer_address() or self.peer

    def write(self, stream: int, data: bytes, end: bool = True) -> None:
        """Sends octets on a stream."""
        with contextlib.suppress(ValueError, RuntimeError):  # the client has ended the stream meanwhile
            self.quic.send_stream_data(stream, data, end)
        self.wrote()

    def wrote(self) -> None:
        """A reply has been written: what has come is acknowledged with it."""
        self.written = True
        self.listener.wants_to_send(self)

    def stop(self, stream: int, code: int) -> None:
        """Asks the client to send no more on a stream."""
        with contextlib.suppress(ValueError):
            self.quic.stop_stream(stream, code)
        self.listener.wants_to_send(self)

    def reset(self, stream: int, code: int) -> None:
        """Ends a stream in both directions."""
        with contextlib.suppress(ValueError):
            self.quic.reset_stream(stream, code)
        self.stop(stream, code)

    def begun(self, stream: int) -> None:
        """A part of a request has come on a stream: the rest has a time limit."""
        if stream not in self.unfinished:
            self.unfinished[stream] = self.listener.loop.time() + self.listener.first_read

    def full(self) -> bool:
        """True if as many requests wait for their answers as there may be streams. Those whose stream the client has
        reset count too: it may open others at once, and so could have us ask without end (what CVE-2023-44487 is over
        HTTP/2).
        """
        return self.pending >= (self.listener.max_streams or MAX_STREAMS)

    def holds(self, octets: int) -> bool:
        """True if an answer of so many octets may wait for the client to take it."""
        self.held += octets
        if self.held > MAX_HELD:
            self.held = unsent(self.quic) + octets
        return self.held <= MAX_HELD

    def asked(self) -> None:
        """A request has come whole: only that makes the connection live longer."""
        self.pending += 1
        self.deadline = self.listener.loop.time() + self.listener.idle

    def answered(self) -> None:
        """Its answer is there."""
        self.pending -= 1
        self.deadline = self.listener.loop.time() + self.listener.idle

    def close(self, code: int, reason: str = "") -> None:
        """Closes with an error code of the application's."""
        if not self.gone and not self.closing:
            self.transmit()  # a farewell takes the place of all that waits
        if not self.gone and not self.closing:
            self.closing = True
            self.quic.close(error_code=code, reason_phrase=reason)
            self.listener.wants_to_send(self)

    # Called by the listener.

    def say_goodbye(self) -> None:
        """Answers what was asked, and then closes."""
        if self.application is not None:
            self.application.leave()

    def resume(self) -> None:
        """Nothing waits: each datagram is answered in the turn that reads it."""

    def leave(self) -> None:
        """Gives its place to others."""
        self.listener.discharge(self, self.host)

    def abort(self) -> None:
        """Closes at once."""
        self.close(self.listener.no_error if self.application is not None else self.listener.overload)
        try:
            self.transmit()
        finally:
            self.forget()

    def forget(self) -> None:
        """It is gone: nothing more is sent, and nothing taken."""
        if self.gone:
            return
        self.gone = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        listener = self.listener
        for each in self.ids:
            listener.by_id.pop(each, None)
        listener.settled(self, "failed")
        self.leave()
        application, self.application = self.application, None
        if application is not None:
            application.lost()
