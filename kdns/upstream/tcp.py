"""TCP and TLS to one upstream: kept connections, pipelined (RFC 7766, section 6.2.1.1; RFC 7858).

A connection that the upstream closed while it was idle costs nothing: the query goes out again at once on a new one.
"""

import asyncio
import contextlib
import ssl
from typing import Final, final

from kdns.deadlines import Deadline, Deadlines
from kdns.dns.query import Question
from kdns.upstream.exchange import Done, UpstreamError, matching_reply, new_id, os_text, our_end, tell, timed_out
from kdns.upstream.udp import HITS, MISSES

# Queries on one connection at a time; beyond that another is opened.
MAX_PIPELINED: Final = 200
MAX_CONNECTIONS: Final = 64  # to one upstream
MAX_WAITING: Final = 10_000  # queries that wait for a connection
DIAL: Final = 5.0  # seconds to connect, TLS included: what a whole query may take
# After so many seconds another connection is tried beside one that is still dialling: its SYN may have been lost while
# the upstream was away, and the kernel tries again only after 1, 3 and 7 seconds.
REDIAL: Final = 0.4


@final
class _Flight:
    __slots__ = ("deadline", "done", "local", "over", "query", "question", "reused", "timeout")

    def __init__(self, query: bytes, question: Question, timeout: float, done: Done) -> None:
        self.query = query
        self.question = question
        self.timeout = timeout
        self.done = done
        self.reused = False
        self.local = ""  # our end of the connection that it was sent on
        self.over = False
        self.deadline: Deadline | None = None

    def end(self, result: "UpstreamError | object") -> None:
        if not self.over:
            self.over = True
            if self.deadline is not None:
                self.deadline.cancel()
            tell(self.done, result)  # type: ignore[arg-type]


@final
class TcpConnections:
    """The connections to one upstream. `context`: TLS, with the name to verify in `server_name`."""

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
        self.server_name = server_name
        self.expire = expire
        self.max_age = max_age
        self.max_idle = max_idle
        self.source = source
        self.connections: list[_Connection] = []
        self.dialling = 0
        self.dialled = 0.0  # when the last dialling began
        self.waiting: list[_Flight] = []
        self.tasks: set[asyncio.Task[None]] = set()
        proto = "tcp-tls" if context is not None else "tcp"
        self.hits = HITS.slot(name, to, proto)
        self.misses = MISSES.slot(name, to, proto)

    def exchange(self, query: bytes, question: Question, timeout: float, done: Done) -> None:
        """Sends a query (its id is replaced) and calls back once, with an answer or an UpstreamError."""
        flight = _Flight(query, question, timeout, done)
        flight.deadline = self.deadlines.add(timeout, lambda: flight.end(timed_out("tcp", flight.local, self.to)))
        self._assign(flight)

    def _assign(self, flight: _Flight) -> None:
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            if connection.usable(now):
                self.hits[0] += 1
                flight.reused = True
                connection.send(flight)
                return
        if len(self.waiting) >= MAX_WAITING:
            flight.end(UpstreamError(f"too many queries wait for a connection to {self.to}"))
            return
        self.misses[0] += 1
        self.waiting.append(flight)
        room = self.dialling + len(self.connections) < MAX_CONNECTIONS
        if room and (len(self.waiting) > self.dialling * MAX_PIPELINED or now - self.dialled > REDIAL):
            self.dialling += 1
            self.dialled = now
            task = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self.to}")
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        error = ""
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(
                    lambda: _Connection(self),
                    self.host,
                    self.port,
                    ssl=self.context,
                    server_hostname=(self.server_name or self.host) if self.context is not None else None,
                    local_addr=(self.source, 0) if self.source else None,
                ),
                DIAL,
            )
        except TimeoutError:
            error = "i/o timeout"
        except (OSError, ssl.SSLError) as problem:
            error = str(problem) if isinstance(problem, ssl.SSLError) else os_text("connect", problem)
        finally:
            self.dialling -= 1
        if error and self.dialling:
            return  # another may still come through
        if error:
            waiting, self.waiting = self.waiting, []
            for flight in waiting:
                flight.end(UpstreamError(f"dial tcp {self.to}: {error}"))
            return
        self.connections.append(connection)
        waiting, self.waiting = self.waiting[:MAX_PIPELINED], self.waiting[MAX_PIPELINED:]
        for flight in waiting:
            if not flight.over:
                connection.send(flight)
        waiting, self.waiting = self.waiting, []
        for flight in waiting:
            self._assign(flight)

    def lost(self, connection: "_Connection", error: Exception | None) -> None:
        """A connection is gone: what was in flight on it goes out again once if the connection was an old one."""
        if connection in self.connections:
            self.connections.remove(connection)
        flights = list(connection.flights.values())
        connection.flights.clear()
        for flight in flights:
            if flight.over:
                continue
            if flight.reused:
                flight.reused = False
                flight.local = ""
                self._assign(flight)
            else:
                why = os_text("read", error) if isinstance(error, OSError) else error or "the connection was closed"
                flight.end(UpstreamError(f"read tcp {flight.local}->{self.to}: {why}"))

    def close(self) -> None:
        """Closes all connections; queries in flight fail."""
        for task in list(self.tasks):
            task.cancel()
        waiting, self.waiting = self.waiting, []
        for flight in waiting:
            flight.end(UpstreamError("closed"))
        for connection in list(self.connections):
            for flight in connection.flights.values():
                flight.reused = False
            connection.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, owner: TcpConnections) -> None:
        self.owner = owner
        self.flights: dict[bytes, _Flight] = {}
        self.buffer = b""
        self.transport: asyncio.Transport | None = None
        self.local = ""
        self.loop = asyncio.get_running_loop()
        self.born = self.used = self.loop.time()
        self.timer: asyncio.TimerHandle | None = None

    def usable(self, now: float) -> bool:
        """Whether another query may go out on it."""
        if self.transport is None or self.transport.is_closing() or len(self.flights) >= MAX_PIPELINED:
            return False
        return not (self.owner.max_age and now - self.born > self.owner.max_age)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.local = our_end(transport)
        self.timer = self.loop.call_later(self.owner.expire, self._idle)

    def send(self, flight: _Flight) -> None:
        assert self.transport is not None
        qid = new_id()
        while qid in self.flights:
            qid = new_id()
        self.flights[qid] = flight
        flight.local = self.local
        self.used = self.loop.time()
        self.transport.write(len(flight.query).to_bytes(2, "big") + qid + flight.query[2:])

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        off, total = 0, len(buffer)
        while off + 2 <= total:
            stop = off + 2 + (buffer[off] << 8 | buffer[off + 1])
            if stop > total:
                break
            self._frame(buffer[off + 2 : stop])
            off = stop
        self.buffer = buffer[off:]

    def _frame(self, data: bytes) -> None:
        qid = data[:2]
        flight = self.flights.get(qid)
        if flight is None:
            return
        if flight.over:
            del self.flights[qid]
            return
        answer = matching_reply(data, qid, flight.question, self.owner.to)
        if answer is not None:
            del self.flights[qid]
            self.used = self.loop.time()
            flight.end(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.timer is not None:
            self.timer.cancel()
        self.owner.lost(self, exc)

    def _idle(self) -> None:
        """Closes a connection that was not used for `expire` seconds, or of which there are too many."""
        owner = self.owner
        stale = [qid for qid, flight in self.flights.items() if flight.over]
        for qid in stale:
            del self.flights[qid]
        left = self.used + owner.expire - self.loop.time()
        idle = sum(not connection.flights for connection in owner.connections)
        if not self.flights and (left <= 0 or (owner.max_idle and idle > owner.max_idle)):
            self.close()
        else:
            self.timer = self.loop.call_later(max(left, 0.5), self._idle)

    def close(self) -> None:
        if self.transport is not None:
            with contextlib.suppress(Exception):
                self.transport.close()

    def abort(self) -> None:
        """Closes it at once: a TLS peer that does not say goodbye would keep it open for half a minute."""
        if self.transport is not None:
            self.transport.abort()
