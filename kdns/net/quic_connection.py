"""A connection of the QUIC listener (RFC 9000): aioquic's machine, our deadlines and bounds, and what is spoken on it.

The laws are the listener's (net.quic).

Theory of operation. The connection is a state machine without I/O: it takes datagrams, and gives events and datagrams.
It is told of time by one timer, which is armed for the earliest of its own deadlines and ours. A connection that we
close is forgotten once its farewell is sent: what still comes for it gets a stateless reset, for the farewell may have
been lost.
"""

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, final

from aioquic.quic import connection as machine
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from kdns import faults
from kdns.net import Address
from kdns.quicmachine import (
    acknowledge_now,
    allow_streams,
    forget_sent,
    hold_at_most,
    name_connection,
    take_apart,
    take_few_ids,
    unsent,
)

if TYPE_CHECKING:
    from kdns.net.quic import QuicListener

# Seconds for a handshake: three round trips across the world, and one lost packet.
HANDSHAKE: Final = 3.0
MAX_STREAMS: Final = 256  # of a connection at a time (CoreDNS's)
# Octets of answers of a connection that the client has not taken: some 16 of the largest, or thousands of usual ones.
MAX_HELD: Final = 1 << 20
# Seconds that a client has to acknowledge the last answers before the connection ends. A packet that was lost is sent
# again after some 0.1.
FAREWELL: Final = 1.0
# IDs that the client has given back and that are still known as the connection's: a datagram that was late must not be
# taken for one of a connection that is over. Clients use up one in some thousand packets, or when they move.
RETIRED: Final = 8


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
class QuicConnection:
    """One connection. `deadline` and `pending` are as net.shares has them."""

    __slots__ = (
        "application", "armed", "came", "closing", "deadline", "finishing", "fresh", "gone", "held", "host", "ids",
        "listener", "local", "peer", "pending", "quic", "retired", "timer", "unfinished", "written",
    )  # fmt: skip

    def __init__(
        self,
        listener: "QuicListener",
        configuration: QuicConfiguration,
        original: bytes,
        retried: bytes | None,
        peer: Address,
        local: Address,
    ) -> None:
        """`original`: the connection ID that the client chose first; `retried`: the one that our Retry gave it."""
        self.listener = listener
        self.quic = machine.QuicConnection(
            configuration=configuration, original_destination_connection_id=original, retry_source_connection_id=retried
        )
        self.ids: set[bytes] = set()
        name_connection(self.quic, self._new_id)
        take_few_ids(self.quic)
        allow_streams(self.quic, listener.max_streams or MAX_STREAMS)
        hold_at_most(self.quic, configuration.max_data)
        self.peer = peer
        self.host = peer[0]
        self.local = local  # where the client went to
        self.came = b""  # the packet info of what came last: where replies leave from
        self.application: Application | None = None
        self.pending = 0
        now = listener.loop.time()
        self.deadline = now + HANDSHAKE
        self.unfinished: dict[int, float] = {}  # streams whose request has not come whole, until when; the oldest first
        self.finishing = False  # it is to end once the client has all answers
        self.closing = False  # it is to end: its farewell is still to be sent
        self.gone = False
        self.fresh = True  # nothing was sent on it
        self.retired: deque[bytes] = deque()
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
        if self.finishing:
            self.finish()
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
            if isinstance(event, events.ConnectionIdRetired):
                self.retired.append(event.connection_id)
                if len(self.retired) > RETIRED:
                    over = self.retired.popleft()
                    self.ids.discard(over)
                    self.listener.by_id.pop(over, None)
            elif isinstance(event, events.HandshakeCompleted):
                self._begin()
            elif isinstance(event, events.ConnectionTerminated):
                self.forget()
            elif self.application is not None and not self.closing:
                self.application.event(event)

    def _new_id(self) -> tuple[bytes, bytes]:
        """An ID of this connection, and its token. It is known before the client can use it."""
        cid, token = self.listener.naming().make()
        self.ids.add(cid)
        self.listener.by_id[cid] = self
        return cid, token

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

    def unsent(self) -> bool:
        """True if the client has not acknowledged all answers that were written."""
        return not self.gone and unsent(self.quic) > 0

    def finish(self) -> None:
        """Closes once the client has acknowledged all answers, or has had time for it: what a farewell overtakes is
        lost, and so is what waits for its pace, or is to be sent again (section 10.2).
        """
        if not self.unsent():
            self.close(self.listener.no_error)
        elif not self.finishing:
            self.finishing = True
            self.deadline = min(self.deadline, self.listener.loop.time() + FAREWELL)
            self.listener.wants_to_send(self)

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
        listener.count()
        application, self.application = self.application, None
        if application is not None:
            application.lost()
        take_apart(self.quic)
