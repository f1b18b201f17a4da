"""UDP to one upstream: connected sockets of random ports, one query in flight on each.

A socket connected to the upstream gets datagrams from nobody else (RFC 5452, section 9.2), and an ICMP error as an
errno, which is only a hint: it may be forged, so it ends the try and marks nobody down by itself. A socket is kept for
a while, because making one costs 12 µs; not for long, so that a guessed port is worth little. A wait that gets MAX_JUNK
datagrams that do not match ends as Mismatched.
"""

import asyncio
import contextlib
import socket
from collections import deque
from time import monotonic
from typing import Any, Final, final

from kdns.address import address, family_of, host_port
from kdns.deadlines import Deadline, Deadlines
from kdns.dns.query import Question
from kdns.metrics import Counter
from kdns.upstream.exchange import Done, Mismatched, UpstreamError, matching_reply, new_id, os_text, random_case, tell

MAX_USES: Final = 100  # queries through one port
MAX_AGE: Final = 10.0  # seconds of one port
# Sockets that wait for a next query. A burst opens one for each query; those it leaves beyond these are closed one by
# one as they get free, for to close one takes 8 µs, and after a pause all would be too old at the same moment.
MAX_IDLE: Final = 256
MAX_REPLY: Final = 4096  # octets; we ask for 1232 at most
# Datagrams that are not a reply to the query in flight, after which the wait ends: somebody who guesses ids has found
# the port, and would have as many guesses as there is time (RFC 5452, section 9; other resolvers do the same). An
# honest network duplicates a reply now and then; ten are no accident.
MAX_JUNK: Final = 10

HITS = Counter(
    "coredns_proxy_conn_cache_hits_total",
    "Counter of connection cache hits per upstream and protocol.",
    ("proxy_name", "to", "proto"),
)
MISSES = Counter(
    "coredns_proxy_conn_cache_misses_total",
    "Counter of connection cache misses per upstream and protocol.",
    ("proxy_name", "to", "proto"),
)


@final
class UdpSockets:
    """The sockets of one upstream."""

    def __init__(
        self, host: str, port: int, to: str, name: str, deadlines: Deadlines, *, fresh: bool = False, source: str = ""
    ) -> None:
        self.peer: Any = address(host, port)
        self.family = family_of(host)
        self.to = to
        self.deadlines = deadlines
        self.uses = 1 if fresh else MAX_USES
        self.source = source
        self.idle: deque[_Socket] = deque()
        self.open: set[_Socket] = set()
        self.hits = HITS.slot(name, to, "udp")
        self.misses = MISSES.slot(name, to, "udp")

    def exchange(self, query: bytes, question: Question, timeout: float, done: Done, mix: bool = False) -> None:
        """Sends a query (its id is replaced) and calls back once, with an answer or an UpstreamError.

        `mix`: the name's case is random, and a reply in another case ends the wait as Mismatched.
        """
        now = monotonic()
        while self.idle:
            sock = self.idle.popleft()
            if now - sock.born < MAX_AGE:
                self.hits[0] += 1
                break
            sock.close()
        else:
            self.misses[0] += 1
            try:
                sock = _Socket(self, now)
            except OSError as error:
                tell(done, UpstreamError(f"dial udp {self.to}: {os_text('connect', error)}"))
                return
        sock.send(query, question, timeout, done, mix)

    def close(self) -> None:
        """Closes all sockets; queries in flight fail."""
        for sock in list(self.open):
            sock.fail(UpstreamError("closed"))


@final
class _Socket:
    __slots__ = (
        "born",
        "cased",
        "deadline",
        "done",
        "junk",
        "local",
        "loop",
        "owner",
        "qid",
        "question",
        "sock",
        "uses",
    )

    def __init__(self, owner: UdpSockets, now: float) -> None:
        self.owner = owner
        self.born = now
        self.uses = 0
        self.junk = 0
        self.cased = b""  # the name as it was sent where its case is random
        self.done: Done | None = None
        self.deadline: Deadline | None = None
        sock = socket.socket(owner.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if owner.source:
                sock.bind((owner.source, 0))
            sock.connect(owner.peer)
        except OSError:
            sock.close()
            raise
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(sock, self._read)
        owner.open.add(self)

    def send(self, query: bytes, question: Question, timeout: float, done: Done, mix: bool) -> None:
        self.uses += 1
        self.junk = 0
        self.qid = new_id()
        self.question = question
        self.done = done
        self.deadline = self.owner.deadlines.add(timeout, self._expire)
        self.cased = random_case(question.name) if mix else b""
        if mix:
            query = b"".join((query[:12], self.cased, query[12 + len(self.cased) :]))
        try:
            self.sock.send(self.qid + query[2:])
        except OSError as error:
            self.fail(UpstreamError(f"write udp {self._route()}: {os_text('write', error)}"))

    def _read(self) -> None:
        try:
            data = self.sock.recv(MAX_REPLY)
        except BlockingIOError:
            return
        except OSError as error:
            if self.done is None:
                self.close()
            else:
                self.fail(UpstreamError(f"read udp {self._route()}: {os_text('read', error)}"))
            return
        done = self.done
        if done is None:
            return  # late, for a question that was given up
        answer = matching_reply(data, self.qid, self.question, self.owner.to)
        if answer is None:
            self.junk += 1
            if self.junk >= MAX_JUNK:
                self.fail(Mismatched(f"read udp {self._route()}: {self.junk} replies did not match the query"))
            return
        if self.cased and data[5] and not data.startswith(self.cased, 12):
            self.fail(Mismatched(f"read udp {self._route()}: the reply's name is in another case than the query's"))
            return
        self.done = None
        if self.deadline is not None:
            self.deadline.cancel()
        self._release()
        done(answer)

    def _release(self) -> None:
        """Keeps the socket for a next query, or closes it."""
        owner = self.owner
        if self.uses >= owner.uses or self.junk or len(owner.idle) >= MAX_IDLE:
            self.close()  # a port that got junk is known to somebody
        else:
            owner.idle.append(self)

    def _expire(self) -> None:
        """No reply in time. The socket is kept: a reply that still comes has another id than the next query's, and
        while an upstream is mute, new sockets would be a third of what its queries cost.
        """
        done, self.done = self.done, None
        if done is not None:
            error = UpstreamError(f"read udp {self._route()}: i/o timeout")
            self._release()
            tell(done, error)

    def fail(self, error: UpstreamError) -> None:
        """Ends the query in flight with an error, and closes the socket."""
        done, self.done = self.done, None
        if self.deadline is not None:
            self.deadline.cancel()
        self.close()
        if done is not None:
            tell(done, error)

    def close(self) -> None:
        if self in self.owner.open:
            self.owner.open.discard(self)
            with contextlib.suppress(ValueError):
                self.owner.idle.remove(self)
            self.loop.remove_reader(self.sock)
            self.sock.close()

    def _route(self) -> str:
        try:
            host, port = self.sock.getsockname()[:2]
        except OSError:
            return f"->{self.owner.to}"
        return f"{host_port(host, port)}->{self.owner.to}"
