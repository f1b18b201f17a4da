"""One upstream server: how it is asked, how long it took, and whether it is down.

Nothing is probed while nothing fails. The first failure starts a prober that asks until an answer comes, every
`interval`; more than `max_fails` failed probes in a row, and the upstream counts as down.
"""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Union, final

from kdns import faults
from kdns.address import host_port
from kdns.deadlines import Deadlines
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.query import Question
from kdns.metrics import TIME_BUCKETS, Counter, Histogram
from kdns.upstream.exchange import Done, Mismatched, Result, UpstreamError
from kdns.upstream.tcp import TcpConnections
from kdns.upstream.udp import UdpSockets

if TYPE_CHECKING:
    from aioquic.quic.configuration import QuicConfiguration

    from kdns.upstream.connections import Connections

PROBE_TIMEOUT: Final = 1.0  # seconds (CoreDNS's)
MAX_ERROR: Final = 200  # characters kept of an error
MIN_INTERVAL: Final = 0.05  # seconds between probes: `health_check 0` is not a reason to spin
PORTS: Final = {"dns": 53, "tls": 853, "https": 443, "https3": 443, "grpc": 443, "quic": 853}
ALPN: Final = {"quic": "doq", "https3": "h3"}  # the transports over QUIC, and what is spoken there

DURATION = Histogram(
    "coredns_proxy_request_duration_seconds", "Histogram of the time each request took.", TIME_BUCKETS,
    ("proxy_name", "to", "rcode"),
)  # fmt: skip
# Codes by which a server may say that it does not know EDNS.
_NO_EDNS: Final = frozenset((iana.FORMERR, iana.NOTIMP))

MISMATCHES = Counter(
    "kdns_upstream_mismatch_retries_total", "Questions asked again over TCP because replies did not match.", ("to",)
)
FAILURES = Counter(
    "coredns_proxy_healthcheck_failures_total", "Counter of the number of failed healthchecks.", ("proxy_name", "to")
)


Trust = Union[ssl.SSLContext, "QuicConfiguration"]


@dataclass(frozen=True, slots=True)
class Options:
    """How upstreams are asked. Times are seconds; a count of 0 is no limit."""

    timeout: float = 2.0
    expire: float = 10.0
    max_age: float = 0.0
    max_idle: int = 0
    max_fails: int = 2
    interval: float = 0.5
    probe_rd: bool = True
    probe_name: bytes = b"\0"
    force_tcp: bool = False
    fresh_ports: bool = False
    random_case: bool = False
    source: str = ""
    server_name: str = ""
    doh_get: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """Where an upstream is. `transport` is dns, tls, https, https3, grpc or quic."""

    transport: str
    host: str
    port: int
    server_name: str = ""

    @property
    def text(self) -> str:
        """`1.1.1.1:53`, as the metrics' label `to` has it."""
        return host_port(self.host, self.port)


@final
class Upstream:
    """An upstream in use."""

    def __init__(
        self, where: Address, options: Options, name: str, deadlines: Deadlines, trust: "Trust | None"
    ) -> None:
        """`trust`: what encrypted upstreams are verified by; for QUIC it has its own form (upstream.quic)."""
        self.where = where
        self.to = where.text
        self.options = options
        self.name = name
        self.fails = 0
        self.rtt = 0.0  # seconds, smoothed; 0 while not known
        self.refused = False  # by the plugin `loop`
        # For whoever shows it: since when it answers, when it last did, since when it does not (monotonic seconds; 0:
        # never), what became of the last query that it did not answer, and when.
        self.up = 0.0
        self.answered = 0.0
        self.failing = 0.0
        self.error = ""
        self.error_at = 0.0
        self.closed = False
        self.task: asyncio.Task[None] | None = None
        o = options
        tls = where.transport == "tls"
        self.udp = UdpSockets(where.host, where.port, self.to, name, deadlines, fresh=o.fresh_ports, source=o.source)
        server_name = where.server_name or o.server_name
        self.tcp: Connections
        context = trust if isinstance(trust, ssl.SSLContext) else None
        if where.transport == "https":
            from kdns.upstream import https  # it brings an HTTP/2 implementation, for those who ask by it

            assert context is not None
            self.tcp = https.HttpsConnections(
                where.host, where.port, self.to, name, deadlines,
                context=context, server_name=server_name, get=o.doh_get, expire=o.expire, max_age=o.max_age,
                source=o.source,
            )  # fmt: skip
        elif where.transport == "quic":
            from kdns.upstream import quic

            assert trust is not None and not isinstance(trust, ssl.SSLContext)
            self.tcp = quic.QuicConnections(
                where.host, where.port, self.to, name, deadlines,
                configuration=trust, server_name=server_name, expire=o.expire, max_age=o.max_age, source=o.source,
            )  # fmt: skip
        elif where.transport == "https3":
            from kdns.upstream import http3

            assert trust is not None and not isinstance(trust, ssl.SSLContext)
            self.tcp = http3.Http3Connections(
                where.host, where.port, self.to, name, deadlines,
                configuration=trust, server_name=server_name, get=o.doh_get, expire=o.expire, max_age=o.max_age,
                source=o.source,
            )  # fmt: skip
        elif where.transport == "grpc":
            from kdns.upstream import grpc

            self.tcp = grpc.GrpcConnections(
                where.host, where.port, self.to, name, deadlines,
                context=context, server_name=server_name, expire=o.expire, max_age=o.max_age, source=o.source,
            )  # fmt: skip
        else:
            self.tcp = TcpConnections(
                where.host, where.port, self.to, name, deadlines,
                context=context if tls else None, server_name=server_name,
                expire=o.expire, max_age=o.max_age, max_idle=o.max_idle, source=o.source,
            )  # fmt: skip
        self.stream_only = where.transport != "dns" or o.force_tcp
        self.pads = trust is not None  # encrypted: how long a name is, is nobody's business
        self.durations: dict[int, list[float]] = {}
        self.mismatches = MISMATCHES.slot(self.to)

    def down(self) -> bool:
        """True if it counts as down: more failed probes than max_fails (0: never)."""
        return self.refused or bool(self.options.max_fails and self.fails > self.options.max_fails)

    def exchange(self, query: bytes, question: Question, proto: str, done: Done) -> None:
        """Asks, and asks again where the reply says so; calls back once.

        Over TCP if a reply is truncated (RFC 7766, section 5), or where too many did not match; without OPT where the
        upstream may not know it (RFC 6891, section 7). Where that fails, the first reply is passed on. What follows a
        reply begins within `timeout` of the first query, so all takes two timeouts at most. That an upstream knows no
        EDNS is not remembered: one forged reply would take DNSSEC and large answers from everybody. Encrypted
        queries are padded (RFC 8467, section 4.1; RFC 9250, section 5.4).
        """
        if self.closed:
            done(UpstreamError(f"{self.to} is closed"))
        else:
            self._send(monotonic(), self._padded(query, question), question, proto, None, done)

    def _padded(self, query: bytes, question: Question) -> bytes:
        return edns.padded_query(query, 12 + len(question.wire)) if self.pads else query

    def _send(
        self, began: float, query: bytes, question: Question, proto: str, first: Answer | None, done: Done
    ) -> None:
        """`first` is the reply that there is already."""
        if self.stream_only or proto == "tcp":
            on_result = partial(self._on_result, began, query, question, "tcp", first, done)
            self.tcp.exchange(query, question, self.options.timeout, on_result)
        else:
            on_result = partial(self._on_result, began, query, question, "udp", first, done)
            self.udp.exchange(query, question, self.options.timeout, on_result, self.options.random_case)

    def _on_result(
        self,
        began: float,
        query: bytes,
        question: Question,
        proto: str,
        first: Answer | None,
        done: Done,
        result: Result,
    ) -> None:
        if type(result) is Answer:
            truncated = result.flags & iana.TC and proto == "udp"
            if (truncated or (result.rcode in _NO_EDNS and query[11])) and monotonic() - began < self.options.timeout:
                if not truncated:
                    # The least there is: no OPT, and no AD bit, which was a reserved zero in RFC 1035.
                    query = b"".join((query[:3], bytes((query[3] & ~iana.AD,)), query[4:10], b"\0\0", question.wire))
                self._send(began, query, question, "tcp" if truncated else proto, result, done)
                return
        elif type(result) is Mismatched:
            self.mismatches[0] += 1
            self._send(began, query, question, "tcp", first, done)
            return
        elif first is not None:
            result = first
        self._done(began, done, result)

    def _done(self, began: float, done: Done, result: Result) -> None:
        if type(result) is Answer:
            slot = self.durations.get(result.rcode)
            if slot is None:
                slot = self.durations[result.rcode] = DURATION.slot(self.name, self.to, iana.rcode_text(result.rcode))
            took = monotonic() - began
            DURATION.observe(slot, took)
            self._is_up(began + took)
            # RFC 6298's gain of 1/8: one slow answer moves it little, a change shows in a dozen.
            self.rtt = took if not self.rtt else self.rtt + (took - self.rtt) / 8
        else:
            # Who did not answer is asked last until it does again.
            self.rtt = max(self.rtt * 2, self.options.timeout)
            self._note(result)
            self.failed()
        done(result)

    def _is_up(self, now: float) -> None:
        if self.failing or not self.up:
            self.up = now
            self.failing = 0.0
        self.answered = now

    def _note(self, error: UpstreamError) -> None:
        self.error = str(error)[:MAX_ERROR]
        self.error_at = monotonic()
        self.failing = self.failing or self.error_at

    def failed(self) -> None:
        """An exchange failed: from now on it is probed until it answers."""
        if self.options.max_fails and self.task is None and not self.closed:
            self.task = asyncio.get_running_loop().create_task(
                faults.supervise(f"the probing of {self.to}", self._probe), name=f"probe {self.to}"
            )

    async def _probe(self) -> None:
        """Probes every `interval`, however long a probe is waited for: an upstream that is back is seen with the next
        one.
        """
        question = Question(self.options.probe_name, iana.NS)
        query = pack_query(0, question, rd=self.options.probe_rd, opt=edns.PLAIN if self.pads else b"")
        query = self._padded(query, question)
        alive = asyncio.Event()

        def done(result: Result) -> None:
            if type(result) is Answer:
                alive.set()
            elif not alive.is_set():
                self._note(result)
                self.fails += 1
                FAILURES.slot(self.name, self.to)[0] += 1

        while not alive.is_set():
            exchange = self.tcp.exchange if self.stream_only else self.udp.exchange
            exchange(query, question, PROBE_TIMEOUT, done)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(self.options.interval, MIN_INTERVAL)):
                    await alive.wait()
        self.fails = 0
        self.rtt = 0.0
        self._is_up(monotonic())
        self.task = None

    async def close(self) -> None:
        """Ends probing and closes all sockets. What was in flight fails, and a try that follows from that opens none
        again.
        """
        self.closed = True
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
        self.udp.close()
        await self.tcp.close()
