"""Kept connections to one upstream: which one a query goes out on, and when one is trusted no more.

TCP and TLS (tcp.py), HTTP/2 (https.py) and QUIC (quic.py) differ in how a query is written and its reply found; the
rest is here.

Theory of operation. A query goes out on the first connection with room. Where none has, it waits while another is
dialled. A connection may die without a word: a conntrack entry or the backend of a load balancer is gone, and octets
vanish. So one that answers nothing while a query's time runs out takes no more queries at once. A fresh one is dialled
beside it, and what else is in flight on it goes out again there; whichever answers first is believed, for the upstream
may only be slow. A query goes out twice at most. A connection that the upstream closed while it was idle costs nothing:
what was in flight goes out again at once. Whatever the upstream does, a query ends by its deadline, and connections are
bounded in number.
"""

import asyncio
import contextlib
import ssl
from functools import partial
from typing import Any, ClassVar, Final, final

from kdns.deadlines import Deadline, Deadlines
from kdns.dns.query import Question
from kdns.keepalive import keep_alive
from kdns.upstream.exchange import Done, Result, UpstreamError, os_text, our_end, tell, timed_out
from kdns.upstream.udp import HITS, MISSES

MAX_CONNECTIONS: Final = 64  # to one upstream, those that take no more queries included
MAX_WAITING: Final = 10_000  # queries that wait for a connection
MAX_UNSENT: Final = 65536  # octets that the kernel does not take: the upstream does not read
DIAL: Final = 5.0  # seconds to connect, TLS included: what a whole query may take
# After so many seconds another connection is tried beside one that is still dialling: its SYN may have been lost while
# the upstream was away, and the kernel tries again only after 1, 3 and 7 seconds.
REDIAL: Final = 0.4
# A connection without an answer for this part of a query's timeout is retired with the query. Less would retire one
# that has just taken over from another, with the queries that it took over; more would let a second query wait in vain.
SILENT: Final = 0.5
GOODBYE: Final = 1.0  # seconds that an upstream has to end TLS in good order
CLOSING: Final = 20  # turns of the loop that an aborted connection may take to be gone: over TLS some three
# An idle connection that is dead is found in 5 seconds, and so before `expire` (10 seconds) has an ordinary one closed:
# three probes are lost by then. Octets unacknowledged for 5 seconds are of no use to any query, which takes no longer
# in all.
KEEPALIVE_IDLE: Final = 2
KEEPALIVE_INTERVAL: Final = 1
KEEPALIVE_PROBES: Final = 3
UNACKNOWLEDGED: Final = 5.0


@final
class InFlightQuery:
    """A query on its way, and the connections that it was sent on with what its reply is known by there."""

    __slots__ = ("again", "deadline", "done", "local", "on", "over", "query", "question", "sent", "timeout")

    def __init__(self, query: bytes, question: Question, timeout: float, done: Done) -> None:
        self.query = query
        self.question = question
        self.timeout = timeout
        self.done = done
        self.local = ""  # our end of the connection that it was sent on last
        self.sent = 0.0
        self.on: dict[Connection, int] = {}
        self.over = False
        self.again = False  # whether it was given a second connection
        self.deadline: Deadline | None = None

    def end(self, result: Result) -> None:
        """Calls back, once."""
        if not self.over:
            self.over = True
            if self.deadline is not None:
                self.deadline.cancel()
            for connection, key in list(self.on.items()):
                connection.remove(key)
            tell(self.done, result)


class Connections:
    """The connections to one upstream. `context`: TLS, with the name to verify in `server_name`."""

    proto: ClassVar[str] = "tcp"  # in errors
    most: ClassVar[int] = MAX_CONNECTIONS  # that take queries at a time
    pipelined: ClassVar[int] = 1  # queries that one connection is good for, as far as is known before it is made

    def __init__(
        self,
        host: str,
        port: int,
        to: str,
        name: str,
        deadlines: Deadlines,
        *,
        context: ssl.SSLContext | None = None,
        server_name: str = "",
        expire: float = 10.0,
        max_age: float = 0.0,
        max_idle: int = 0,
        source: str = "",
    ) -> None:
        self.host = host
        self.port = port
        self.to = to
        self.deadlines = deadlines
        self.context = context
        self.server_name = server_name or host
        self.expire = expire
        self.max_age = max_age
        self.max_idle = max_idle
        self.source = source
        self.closed = False
        self.open: list[Connection] = []
        self.dials: set[asyncio.Task[None]] = set()
        self.dialled = 0.0  # when the last dialling began
        self.waiting: dict[InFlightQuery, None] = {}
        label = self.proto if context is None or self.proto != "tcp" else "tcp-tls"
        self.hits = HITS.slot(name, to, label)
        self.misses = MISSES.slot(name, to, label)

    def make(self) -> "Connection":
        """A connection that is not connected yet."""
        raise NotImplementedError

    def exchange(self, query: bytes, question: Question, timeout: float, done: Done) -> None:
        """Sends a query (its id is replaced) and calls back once, with an answer or an UpstreamError."""
        flight = InFlightQuery(query, question, timeout, done)
        flight.deadline = self.deadlines.add(timeout, partial(self._late, flight))
        connection = self._usable()
        if connection is not None:
            self.hits[0] += 1
            connection.send(flight)
        else:
            self.misses[0] += 1
            self._wait(flight)

    def _usable(self) -> "Connection | None":
        now = asyncio.get_running_loop().time()
        for connection in self.open:
            if connection.usable(now):
                return connection
        return None

    def _wait(self, flight: InFlightQuery) -> None:
        if self.closed or len(self.waiting) >= MAX_WAITING:
            why = "closed" if self.closed else f"too many queries wait for a connection to {self.to}"
            flight.end(UpstreamError(why))
            return
        self.waiting[flight] = None
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room; dials where that is not enough."""
        while self.waiting:
            connection = self._usable()
            if connection is None:
                self._dial()
                return
            flight = next(iter(self.waiting))
            del self.waiting[flight]
            connection.send(flight)

    def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        enough = len(self.waiting) <= len(self.dials) * self.pipelined and loop.time() - self.dialled < REDIAL
        full = (
            len(self.open) + len(self.dials) >= MAX_CONNECTIONS
            or sum(not each.retired for each in self.open) >= self.most
        )
        if full or (self.dials and enough):
            return
        self.dialled = loop.time()
        task = loop.create_task(self._connect(), name=f"dial {self.to}")
        self.dials.add(task)
        task.add_done_callback(self.dials.discard)

    async def dial(self) -> "Connection":
        """A connection, once it is connected. Raises OSError, or ValueError for a server name that can be none."""
        options: dict[str, Any] = {"local_addr": (self.source, 0)} if self.source else {}
        if self.context is not None:
            options |= {"ssl": self.context, "server_hostname": self.server_name, "ssl_shutdown_timeout": GOODBYE}
        _, made = await asyncio.get_running_loop().create_connection(self.make, self.host, self.port, **options)
        return made

    async def _connect(self) -> None:
        error = ""
        try:
            async with asyncio.timeout(DIAL):
                error = (await self.dial()).unfit()
        except TimeoutError:
            error = "i/o timeout"
        except OSError as problem:
            error = os_text("connect", problem)
        except ValueError as problem:
            error = str(problem)
        self.dials.remove(asyncio.current_task())  # type: ignore[arg-type]
        if not error:
            self.flush()
        elif not self.dials:  # another may still come through
            self._fail_waiting(f"dial {self.proto} {self.to}: {error}")

    def _fail_waiting(self, error: str) -> None:
        """Ends the queries that wait, but for those that a doubtful connection may still answer."""
        waiting, self.waiting = self.waiting, {}
        for flight in waiting:
            if not flight.on:
                flight.end(UpstreamError(error))

    def _late(self, flight: InFlightQuery) -> None:
        """A query's time is over: so is that of a connection that has answered nothing meanwhile."""
        now = asyncio.get_running_loop().time()
        self.waiting.pop(flight, None)
        silent = [each for each in flight.on if now - max(each.heard, flight.sent) >= SILENT * flight.timeout]
        for connection in silent:
            connection.retired = True
        flight.end(timed_out(self.proto, flight.local, self.to))
        for connection in silent:
            for other in list(connection.flights.values()):
                if not other.again:
                    other.again = True
                    self._wait(other)

    def lost(self, connection: "Connection", why: str) -> None:
        """A connection is gone: what was in flight on one that has answered goes out again once."""
        if connection in self.open:
            self.open.remove(connection)
        flights = list(connection.flights.values())
        connection.flights.clear()
        for flight in flights:
            flight.on.pop(connection, None)
            if not flight.over and not flight.on and flight not in self.waiting:
                if connection.answered:
                    self.resend(flight, why)
                else:
                    flight.end(self.broken(flight, why))
        if connection.answered or self.open or self.dials:
            self.flush()
        else:
            self._fail_waiting(f"read {self.proto} {connection.local}->{self.to}: {why}")

    def resend(self, flight: InFlightQuery, why: str) -> None:
        """A query that will not be answered where it was sent goes out again; the second time it is over."""
        if flight.again:
            flight.end(self.broken(flight, why))
        else:
            flight.again = True
            self._wait(flight)

    def broken(self, flight: InFlightQuery, why: str) -> UpstreamError:
        """The error of a query that was sent and failed."""
        return UpstreamError(f"read {self.proto} {flight.local}->{self.to}: {why}")

    async def close(self) -> None:
        """Closes all connections, and returns when they are closed; queries in flight fail."""
        self.closed = True
        dials = list(self.dials)
        for task in dials:
            task.cancel()
        self._fail_waiting("closed")
        for connection in list(self.open):
            connection.answered = False  # nothing goes out again
            connection.abort()
        await asyncio.gather(*dials, return_exceptions=True)
        for _ in range(CLOSING):
            if not self.open:
                break
            await asyncio.sleep(0)


class Connection(asyncio.Protocol):
    """One connection. `flights` are the queries in flight, by what their replies are known by."""

    def __init__(self, owner: Connections) -> None:
        self.owner = owner
        self.flights: dict[int, InFlightQuery] = {}
        self.transport: asyncio.Transport | None = None
        self.local = ""
        self.loop = asyncio.get_running_loop()
        self.born = self.used = self.loop.time()
        self.heard = 0.0  # when it answered last
        self.answered = False
        self.retired = False  # takes no more queries, and is closed when none is in flight
        self.timer: asyncio.TimerHandle | None = None

    # What protocols differ in.

    def begin(self) -> None:
        """Connected."""

    def unfit(self) -> str:
        """Why it is of no use although it is connected; empty where it is of use."""
        return ""

    def room(self) -> bool:
        """True if another query may be in flight."""
        raise NotImplementedError

    def put(self, flight: InFlightQuery) -> int:
        """Writes a query; gives what its reply is known by. Raises UpstreamError."""
        raise NotImplementedError

    def drop(self, key: int) -> None:
        """A query's reply is not waited for any more."""

    # What they share.

    def usable(self, now: float) -> bool:
        """True if another query may go out on it."""
        transport = self.transport
        if self.retired or transport is None or transport.is_closing():
            return False
        if self.owner.max_age and now - self.born > self.owner.max_age:
            self.retire()
            return False
        return self.room() and transport.get_write_buffer_size() < MAX_UNSENT

    def send(self, flight: InFlightQuery) -> None:
        """Sends a query."""
        flight.local = self.local
        flight.sent = self.used = self.loop.time()
        try:
            key = self.put(flight)
        except UpstreamError as error:
            self.retire()
            flight.end(error)
            return
        self.flights[key] = flight
        flight.on[self] = key

    def taken(self, key: int) -> InFlightQuery | None:
        """The query that a whole reply is for. None: nobody waits for it."""
        flight = self.flights.pop(key, None)
        if flight is not None:
            flight.on.pop(self, None)
        return flight

    def alive(self) -> None:
        """A reply has come."""
        self.answered = True
        self.heard = self.used = self.loop.time()

    def remove(self, key: int) -> None:
        """What came for this query came from elsewhere, or too late."""
        if self.taken(key) is not None:
            self.drop(key)
            self.close_if_idle()

    def retire(self) -> None:
        """Takes no more queries."""
        self.retired = True
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Closes a connection that takes no more queries once none is in flight."""
        if self.retired and not self.flights:
            self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.local = our_end(transport)
        keep_alive(transport, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, UNACKNOWLEDGED)
        self.join()

    def join(self) -> None:
        """Takes queries from now on."""
        self.owner.open.append(self)
        self.timer = self.loop.call_later(self.owner.expire, self._idle)
        if self.owner.closed:
            self.abort()
        elif self.unfit():
            self.retire()
        else:
            self.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.timer is not None:
            self.timer.cancel()
        self.owner.lost(
            self, os_text("read", exc) if isinstance(exc, OSError) else str(exc or "the connection was closed")
        )

    def _idle(self) -> None:
        """Closes a connection that was not used for `expire` seconds, or of which there are too many."""
        owner = self.owner
        left = self.used + owner.expire - self.loop.time()
        idle = sum(not connection.flights for connection in owner.open)
        if not self.flights and (left <= 0 or (owner.max_idle and idle > owner.max_idle)):
            self.close()
        self.timer = self.loop.call_later(max(left, 0.5), self._idle)

    def close(self) -> None:
        """Closes it in good order."""
        self.retired = True
        if self.transport is not None:
            with contextlib.suppress(Exception):
                self.transport.close()

    def abort(self) -> None:
        """Closes it at once."""
        if self.transport is not None:
            self.transport.abort()
