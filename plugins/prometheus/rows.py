"""The families that queries are counted in, and the rows that make counting cheap.

Theory of operation. A query touches five families. Its row, found by one key, holds their slots. Sizes and code are
counted by one integer; only a scrape, or too many different ones, brings them into the buckets.
"""

from bisect import bisect_left
from collections.abc import Callable
from time import monotonic
from typing import Final, final

from kdns.dns import iana
from kdns.metrics import MAX, TIME_BUCKETS, Counter, Gauge, Histogram, Slot
from kdns.plugin import Outcome, Request

SIZE_BUCKETS: Final = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3)
COUNTED_TYPES: Final = frozenset((
    iana.A, iana.AAAA, iana.CNAME, iana.DNSKEY, iana.DS, iana.MX, iana.NS, iana.NSEC, 50, iana.PTR, iana.RRSIG,
    iana.SOA,
    iana.SRV, iana.TXT, iana.HTTPS, iana.SVCB, iana.IXFR, iana.AXFR, iana.ANY,
))  # fmt: skip

BUILD: Final = Gauge(
    "coredns_build_info", "A metric with a constant '1' value labeled by version, revision, and goversion.",
    ("version", "revision", "goversion"), across=MAX,
)  # fmt: skip
OWN_BUILD: Final = Gauge(
    "kdns_build_info",
    "1, with the version, the build (compiled or interpreted) and the version of Python.",
    ("version", "build", "python"),
    across=MAX,
)
REQUESTS: Final = Counter(
    "coredns_dns_requests_total", "Counter of DNS requests made per zone, protocol and family.",
    ("server", "zone", "view", "proto", "family", "type"),
)  # fmt: skip
DURATION: Final = Histogram(
    "coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.",
    TIME_BUCKETS,
    ("server", "zone", "view"),
)  # fmt: skip
REQUEST_SIZE: Final = Histogram(
    "coredns_dns_request_size_bytes",
    "Size of the EDNS0 UDP buffer in bytes (64K for TCP) per zone and protocol.",
    SIZE_BUCKETS,
    ("server", "zone", "view", "proto"),
)
RESPONSE_SIZE: Final = Histogram(
    "coredns_dns_response_size_bytes", "Size of the returned response in bytes.", SIZE_BUCKETS,
    ("server", "zone", "view", "proto"),
)  # fmt: skip
DO: Final = Counter(
    "coredns_dns_do_requests_total", "Counter of DNS requests with DO bit set per zone.", ("server", "zone", "view")
)
RESPONSES: Final = Counter(
    "coredns_dns_responses_total", "Counter of response status codes.", ("server", "zone", "view", "rcode", "plugin")
)
ENABLED: Final = Gauge(
    "coredns_plugin_enabled", "A metric that indicates whether a plugin is enabled on per server and zone basis.",
    ("server", "zone", "view", "name"), across=MAX,
)  # fmt: skip

# Different pairs of sizes that wait to be counted; then they go into the buckets, which takes half a millisecond.
MAX_PENDING: Final = 1024
NO_REPLY: Final = 0xFFFF  # stands for the code of a query without a reply
BY_SERVER: Final = 0x4000  # beside a code that the server wrote: no plugin did, as the label `plugin` then says
FIRST_BUCKET: Final = TIME_BUCKETS[0]
REPEATED: Final = 0.000002  # seconds a repeated reply takes between reading and sending, measured


@final
class QuerySeries:
    """The slots that a query of one listener, zone, transport, family and type adds to.

    `pending` counts queries by sizes and code that are not in the slots yet:
    octets of the query << 32 | octets of the reply << 16 | rcode.
    """

    __slots__ = (
        "do",
        "duration",
        "labels",
        "pending",
        "plugin",
        "repeated",
        "request_size",
        "requests",
        "response_size",
        "responses",
    )

    def __init__(self, server: str, zone: str, view: str, proto: str, family: str, qtype: int, plugin: str) -> None:
        text = iana.type_text(qtype) if qtype in COUNTED_TYPES else "other"
        self.labels = (server, zone, view)
        self.plugin = plugin
        self.requests: Slot = REQUESTS.slot(server, zone, view, proto, family, text)
        self.duration: Slot = DURATION.slot(server, zone, view)
        self.request_size: Slot = REQUEST_SIZE.slot(server, zone, view, proto)
        self.response_size: Slot = RESPONSE_SIZE.slot(server, zone, view, proto)
        self.do: Slot = DO.slot(server, zone, view)
        self.responses: dict[int, Slot] = {}
        self.pending: dict[int, int] = {}
        self.repeated: dict[int, Callable[[int, int], None]] = {}  # what counts repeated replies, by rcode << 1 | DO

    def repeater(self, rcode: int, do: bool) -> Callable[[int, int], None]:
        """What counts repeated replies with this code; one for all of them."""
        key = rcode << 1 | int(do)
        made = self.repeated.get(key)
        if made is None:
            made = self.repeated[key] = RepeatedReplies(self, rcode, do).count
        return made

    def count(self, code: int) -> None:
        """Counts a query of these sizes and this code."""
        pending = self.pending
        known = pending.get(code)
        if known is not None:
            pending[code] = known + 1
            return
        if len(pending) >= MAX_PENDING:
            self.flush()
            pending = self.pending
        pending[code] = 1

    def flush(self) -> None:
        """Brings what is pending into the slots."""
        if not self.pending:
            return
        pending, self.pending = self.pending, {}
        for key, count in pending.items():
            asked, said, rcode = key >> 32, key >> 16 & 0xFFFF, key & 0xFFFF
            self.requests[0] += count
            _add(self.request_size, asked, count)
            if rcode == NO_REPLY:
                continue
            _add(self.response_size, said, count)
            responses = self.responses.get(rcode)
            if responses is None:
                responses = self.response(rcode)
            responses[0] += count

    def response(self, rcode: int) -> Slot:
        """The slot of a response code (and who wrote it), made when it is first met."""
        plugin = "" if rcode & BY_SERVER else self.plugin
        made = self.responses[rcode] = RESPONSES.slot(*self.labels, iana.rcode_text(rcode & ~BY_SERVER), plugin)
        return made


@final
class RepeatedReplies:
    """Counts replies like one that was given before."""

    __slots__ = ("do", "rcode", "row")

    def __init__(self, row: QuerySeries, rcode: int, do: bool) -> None:
        self.row = row
        self.rcode = rcode
        self.do = do

    def count(self, asked: int, said: int) -> None:
        """Counts one more; octets of the query and of the reply without its OPT."""
        row = self.row
        row.count(asked << 32 | said << 16 | self.rcode)
        # It takes a few microseconds: the first bucket, and a fixed sum, without asking the clock.
        duration = row.duration
        duration[0] += REPEATED
        duration[1] += 1
        if self.do:
            row.do[0] += 1


def _add(slot: Slot, size: int, count: int) -> None:
    slot[0] += size * count
    slot[bisect_left(SIZE_BUCKETS, size) + 1] += count


def dropped(request: Request, outcome: Outcome) -> None:
    """A query that no block answers: counted with the zone `dropped`, as CoreDNS does."""
    family = "1" if request.family == 4 else "2"
    row = QuerySeries(request.server.label, "dropped", "", request.transport, family, request.question.type, "")
    row.requests[0] += 1
    DURATION.observe(row.duration, monotonic() - request.now)
    REQUEST_SIZE.observe(row.request_size, request.size)
    RESPONSE_SIZE.observe(row.response_size, request.question_end)
    row.response(outcome.rcode)[0] += 1
