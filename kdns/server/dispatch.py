"""From a query's bytes to a reply's: accept checks, the choice of a block, the reply. One dispatcher a listener.

Order of checks (corefile.md 8 and 10; RFC 1035, section 4.1.1; RFC 6891): shorter than a header or a response: no
reply. Opcode: NOTIMP. Counts: FORMERR. Body: FORMERR. EDNS version: BADVERS. Class: REFUSED. Then the longest zone.

Theory of operation. The header of nearly every query is one of 16 forms; one look-up of its ten octets behind the id
does for all checks of it. A reply made of an answer that a store keeps is kept too, under the query's octets behind the
id, where no plugin looks at the client: while the answer is alive, the same octets get the same reply for one look-up.
So is one that a cache would give again, until the TTL in it changes. A plugin that denies a name can say as much of its
neighbours (Request.denial): a name that differs from one denied before in its leftmost label only is then denied without
a request, after the plugin has looked for that label.

What needs no I/O is answered in the same call. What does is in one bounded table, with one deadline for all, so that its
first entry is always the oldest.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple, final

from kdns import log
from kdns.dns import edns as _edns
from kdns.dns import iana, reply
from kdns.dns.answer import SHAPE_CD, SHAPE_EDNS, SHAPE_RD, Answer, render
from kdns.dns.edns import Edns
from kdns.dns.errors import FormatError
from kdns.dns.query import parse
from kdns.metrics import Counter
from kdns.net import Address, Frames
from kdns.pipeline.block import Block
from kdns.pipeline.outcome import DROP, Bare, Drop, Outcome, Pending, Stream, adopt
from kdns.pipeline.plugin import ListenerOptions
from kdns.pipeline.request import Alive, Denial, Request
from kdns.upstream.deadlines import Deadlines

# Queries that may wait for an upstream, in all. Each costs some 2 KB; a burst beyond is answered SERVFAIL at once.
MAX_PENDING: Final = 20_000
# Of one client's address, so that no one takes all places. Half: behind NAT many clients have one address.
MAX_PENDING_CLIENT: Final = MAX_PENDING // 2
# Seconds a query may wait: an upstream's five and a half, and some for a chain of names. Clients wait five.
DEADLINE: Final = 12.0
MAX_DETACHED: Final = 1000
# Finished replies kept, some 400 octets each. Beyond that all are let go: who asks so many different questions gains
# little from them.
MAX_REPEATS: Final = 8192
# Denials that speak for a name's neighbours: a few for each namespace and kind of client.
MAX_NEIGHBOURS: Final = 4096

PANICS = Counter("coredns_panics_total", "A metrics that counts the number of panics.")
OVERFLOWS = Counter("kdns_pending_refused_total", "Queries answered SERVFAIL because too many waited.", ("server",))
EXPIRED = Counter("kdns_pending_expired_total", "Queries answered SERVFAIL because no plugin did in time.", ("server",))

_log = log.Logger()


_MORE: Final = 1 << 8  # beside a shape's bits: records are claimed behind the question


def _shapes() -> dict[bytes, int]:
    out = {}
    for rd in (0, 1):
        for ad in (0, 0x20):
            for cd in (0, 0x10):
                for additional in (0, 1):
                    header = bytes((rd, ad | cd, 0, 1, 0, 0, 0, 0, 0, additional))
                    out[header] = (SHAPE_RD if rd else 0) | (SHAPE_CD if cd else 0) | (_MORE if additional else 0)
    return out


_SHAPES: Final = _shapes()
# Types that are no data and cannot be asked for: OPT and TSIG belong to a message (RFC 6891, 6.1; RFC 8945, 4.2).
_META: Final = frozenset((iana.OPT, iana.TSIG, iana.TKEY))


# What stands before the key of a kept reply, by transport and length of the peer's address (2: IPv4, 4: IPv6). One octet
# shifts the header's count of questions, so a tagged key is never another's untagged one.
_WAYS: Final = {("udp", 2): b"", ("udp", 4): b"\1", ("tcp", 2): b"\2", ("tcp", 4): b"\3"}


class _Repeat(NamedTuple):
    """A finished reply, for the same octets behind the id: valid while who holds its answer does, and until its time.

    `until` is in monotonic seconds; 0: no end.
    """

    holder: Alive
    until: float
    reply: bytes  # behind the id
    size: int  # of the reply without OPT
    settles: tuple[Callable[[int, int], None], ...]


class _Neighbours(NamedTuple):
    """A denial for all names that differ in the leftmost label only, asked for in the same way."""

    deny: Callable[[bytes, int], Answer | None]
    rest: int  # octets of the question behind the leftmost label, type and class included
    shape: int
    edns: Edns | None
    settles: tuple[Callable[[int, int], None], ...]


@final
class Dispatcher:
    """Answers the queries of one listener. `label` is `dns://HOST:PORT`, the metrics' `server`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.zones: dict[bytes, list[Block]] = {}
        self.only: Block | None = None
        self.any_class = False
        self.debug = False
        self.stacktrace = False
        self.read = self.idle = 0.0
        self.max_queries = 0
        self.deadlines = Deadlines()
        self.dropped: list[Callable[[Request, Outcome], None]] = []
        self.table: dict[Pending, tuple[float, Request]] = {}
        self.waiters: dict[Any, int] = {}  # client's host -> its queries in the table
        self.timer: asyncio.TimerHandle | None = None
        self.detached: set[Pending] = set()
        self.panics = PANICS.slot()
        self.repeats: dict[bytes, _Repeat] = {}
        self.neighbours: dict[bytes, _Neighbours] = {}
        self.repeatable = False

    def add(self, zone: bytes, block: Block) -> None:
        """Serves a zone with a block; blocks of one zone are tried in the order they were added."""
        self.zones.setdefault(zone, []).append(block)

    def fold(self, options: ListenerOptions) -> None:
        """Adds what a plugin asks of the listener."""
        self.any_class |= options.any_class
        self.debug |= options.debug
        self.stacktrace |= options.stacktrace
        # The last block that sets one counts, as in CoreDNS.
        self.read = options.read or self.read
        self.idle = options.idle or self.idle
        self.max_queries = options.max_queries or self.max_queries
        if options.dropped is not None and options.dropped not in self.dropped:
            self.dropped.append(options.dropped)

    def seal(self) -> None:
        """Called once all is added: finds out whether there is a choice of blocks at all."""
        blocks = self.zones.get(b"\0", [])
        if len(self.zones) == 1 and len(blocks) == 1 and not blocks[0].admits and not blocks[0].pipeline.empty:
            self.only = blocks[0]
        every = [block for those in self.zones.values() for block in those]
        self.repeatable = all(block.pipeline.repeatable and not block.admits for block in every)

    # Called by the listeners.

    def frame(self, data: bytes, peer: Address, local: Address | None) -> bytes | Pending | Frames | None:
        """The reply to a query that came over TCP."""
        return self.datagram(data, peer, local, "tcp")

    def datagram(self, data: bytes, peer: Address, local: Address | None, proto: str = "udp") -> bytes | Pending | Frames | None:
        """The reply to a query, None for none, or a Pending of either."""
        # Who asks in another way is counted apart, so what is kept for one way is not used for another.
        way = b"" if proto == "udp" and len(peer) == 2 else _WAYS[proto, len(peer)]
        known = self.repeats.get(way + data[2:])
        if known is not None:
            if known.holder.alive and (not known.until or known.until > monotonic()):
                for settle in known.settles:
                    settle(len(data), known.size)
                return data[:2] + known.reply
            del self.repeats[way + data[2:]]
        if self.neighbours and len(data) > 12:
            denied = self._deny(way, data)
            if denied is not None:
                return denied
        shape = _SHAPES.get(data[2:12])
        if shape is None:
            refusal = _check(data)
            if refusal is not None:
                return refusal or None
            shape = reply.shape_of(data, None) | _MORE
        try:
            question, end, edns = parse(data, shape & _MORE != 0)
            shape &= ~_MORE
        except FormatError:
            return reply.refusal(data, iana.FORMERR, False, _readable_question(data))
        if edns is not None:
            shape |= SHAPE_EDNS
            if edns.version:
                # RFC 6891, section 6.1.3. Ours is version 0.
                return reply.bare(data, end, iana.BADVERS, edns)
        request = Request(self, data, end, question, edns, shape, peer, local, proto, monotonic())
        if question.cls != iana.IN and not self.any_class:
            outcome: Outcome | Pending = self._drop(request, iana.REFUSED)
        elif question.type in _META:
            return reply.refusal(data, iana.FORMERR, False, data[12:end])
        else:
            outcome = self.route(request)
        if type(outcome) is Pending:
            return self._wait(request, outcome)
        if type(outcome) is Answer and self.repeatable and request.question is question:
            if outcome.alive or request.repeat is not None:
                return self._remember(way, request, outcome)
            if request.denial is not None:
                self._meet_neighbours(way, request, outcome, request.denial)
        return self._pack(request, outcome)

    def _remember(self, way: bytes, request: Request, answer: Answer) -> bytes | Frames | None:
        """Packs a reply, and keeps it for the same question until who holds its answer drops it."""
        packed = self._pack(request, answer)
        block = request.block
        if not isinstance(packed, bytes) or block is None or answer.turns or (request.edns is not None and request.edns.options):
            return packed
        settles = _settles(request, answer, block)
        if settles is None:
            return packed
        holder: Alive = answer
        until = 0.0
        repeat = request.repeat
        if repeat is not None:
            if repeat.answer is not answer:
                return packed  # another plugin has changed it
            holder, until = repeat.holder, repeat.until
            settles = (repeat.settle, *settles)
        if len(self.repeats) >= MAX_REPEATS:
            self.repeats.clear()
        size = request.end + answer.size_of_body
        self.repeats[way + request.data[2:]] = _Repeat(holder, until, packed[2:], size, settles)
        return packed

    def _deny(self, way: bytes, data: bytes) -> bytes | None:
        """The denial of a name whose neighbour was denied: the same octets but for the id and the leftmost label."""
        stop = 13 + data[12]
        known = self.neighbours.get(way + data[2:12] + data[stop:])
        if known is None or not 12 < stop - 1 < 76:
            return None
        end = stop + known.rest
        answer = known.deny(data[12:stop].lower(), end - 16)
        if answer is None or answer.body is None:
            return None
        for settle in known.settles:
            settle(len(data), end + len(answer.body.data))
        return reply.pack(answer, answer.body, data, end, known.shape, known.edns)

    def _meet_neighbours(self, way: bytes, request: Request, outcome: Answer, denial: Denial) -> None:
        """Keeps what a denial says of a name's neighbours, where nothing above or beside its plugin looks at names."""
        block = self.only
        data = request.data
        simple = request.edns is None or not request.edns.options
        if block is None or outcome is not denial.answer or block.pipeline.first is not denial.plugin or not simple:
            return
        settles = _settles(request, outcome, block)
        if settles is None:
            return
        if len(self.neighbours) >= MAX_NEIGHBOURS:
            self.neighbours.clear()
        stop = 13 + data[12]
        key = way + data[2:12] + data[stop:]
        self.neighbours[key] = _Neighbours(denial.deny, request.end - stop, request.shape, request.edns, settles)

    # Called by the pipeline and requests.

    def route(self, request: Request) -> Outcome | Pending:
        """Takes a request through the block that its question belongs to."""
        block = self.only
        if block is None:
            block = self._find(request)
            if block is None:
                return self._drop(request, iana.REFUSED)
        request.block = block
        return block.pipeline.run(request)

    def failed(self, request: Request, error: BaseException) -> Bare:
        """An exception in a plugin: SERVFAIL, counted and logged with the listener's name."""
        if isinstance(error, asyncio.CancelledError):
            return Bare(iana.SERVFAIL, "the query was cancelled")
        self.panics[0] += 1
        text = f'Recovered from panic in server: "{self.label}" {type(error).__name__}: {error}'
        if self.stacktrace or self.debug:
            text += " " + "".join(traceback.format_exception(error))
        _log.error(text)
        return Bare(iana.SERVFAIL, error)

    def detach(self, awaitable: Any) -> None:
        """Lets bounded work outlive the reply; beyond MAX_DETACHED it is not begun."""
        if len(self.detached) >= MAX_DETACHED:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            return
        pending = adopt(awaitable)
        if not pending.done:
            self.detached.add(pending)
            pending.add(lambda _: self.detached.discard(pending))

    # Routing.

    def _find(self, request: Request) -> Block | None:
        """The block of the longest zone that the question is in; for DS the shortest, as the parent has it."""
        name = request.question.name
        zones = self.zones
        is_ds = request.question.type == iana.DS
        found: Block | None = None
        off = 0
        while size := name[off]:
            blocks = zones.get(name[off:])
            if blocks is not None:
                for block in blocks:
                    if block.admits and not all(admit(request) for admit in block.admits):
                        continue
                    if not is_ds:
                        return None if block.pipeline.empty else block
                    found = block
            off += size + 1
        if found is not None:
            return None if found.pipeline.empty else found
        for block in zones.get(b"\0", ()):
            if not block.pipeline.empty and all(admit(request) for admit in block.admits):
                return block
        return None

    def _drop(self, request: Request, rcode: int) -> Bare:
        outcome = Bare(rcode)
        if not request.depth:
            for dropped in self.dropped:
                dropped(request, outcome)
        return outcome

    # Replies.

    def _pack(self, request: Request, outcome: Outcome) -> bytes | Frames | None:
        if type(outcome) is Answer:
            asked = request.asked
            try:
                if request.question is not asked and outcome.name != asked.name:
                    body = render(asked.name, outcome.sections)
                else:
                    kept = outcome.body
                    fits = not outcome.name or outcome.name == asked.name
                    body = kept if kept is not None and fits else outcome.rendered(asked.name)
                data, end, shape, edns = request.data, request.end, request.shape, request.edns
                out = reply.pack(outcome, body, data, end, shape, edns)
                if len(out) > _edns.MIN_SIZE and len(out) > request.limit:
                    return reply.pack_cut(outcome, body, data, end, shape, edns, request.limit)
                return out
            except Exception as error:
                outcome = self.failed(request, error)
        if type(outcome) is Drop:
            return None
        if type(outcome) is Stream:
            return Frames(_messages(request, outcome))
        assert type(outcome) is Bare
        return reply.bare(request.data, request.end, outcome.rcode, request.edns, outcome.options)

    def _wait(self, request: Request, pending: Pending) -> bytes | Pending | Frames | None:
        if pending.done:
            return self._pack(request, self._landed(request, pending.value))
        host = request.peer[0]
        waiters = self.waiters.get(host, 0)
        if len(self.table) >= MAX_PENDING or waiters >= MAX_PENDING_CLIENT:
            OVERFLOWS.slot(self.label)[0] += 1
            return self._pack(request, Bare(iana.SERVFAIL, "too many queries wait for an upstream"))
        result = Pending()
        self.waiters[host] = waiters + 1
        self.table[result] = (request.now + DEADLINE, request)
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(DEADLINE, self._sweep)
        pending.add(partial(self._land, request, result))
        if request.patience and not result.done:
            self.deadlines.add(request.patience, partial(self._land, request, result, DROP))
        return result

    def _land(self, request: Request, result: Pending, value: Any) -> None:
        if self.table.pop(result, None) is not None:
            self._left(request)
            result.resolve(self._pack(request, self._landed(request, value)))

    def _left(self, request: Request) -> None:
        host = request.peer[0]
        left = self.waiters[host] - 1
        if left:
            self.waiters[host] = left
        else:
            del self.waiters[host]

    def _landed(self, request: Request, value: Any) -> Outcome:
        if isinstance(value, BaseException):
            return self.failed(request, value)
        return value if value is not None else Bare(iana.SERVFAIL, "no outcome")

    def _sweep(self) -> None:
        """Answers SERVFAIL to what has waited too long. The table is in the order of arrival: the first is the oldest."""
        self.timer = None
        now = monotonic()
        while self.table:
            result = next(iter(self.table))
            deadline, request = self.table[result]
            if deadline > now:
                self.timer = asyncio.get_running_loop().call_later(deadline - now + 0.01, self._sweep)
                return
            del self.table[result]
            self._left(request)
            EXPIRED.slot(self.label)[0] += 1
            result.resolve(self._pack(request, Bare(iana.SERVFAIL, "no plugin answered in time")))


def _messages(request: Request, stream: Stream) -> Iterator[bytes]:
    """The messages of a zone transfer, each with the question (RFC 5936, section 2.2)."""
    for records in stream.messages:
        answer = Answer(iana.NOERROR, stream.flags, records)
        body = answer.rendered(request.asked.name)
        yield reply.pack(answer, body, request.data, request.end, request.shape, request.edns)


def _settles(request: Request, answer: Answer, block: Block) -> tuple[Callable[[int, int], None], ...] | None:
    """What settles replies like this one without a request; None where a plugin must see each."""
    out = []
    for plugin in block.pipeline.repeaters:
        settle = plugin.repeat(request, answer)
        if settle is None:
            return None
        out.append(settle)
    return tuple(out)


def _check(data: bytes) -> bytes | None:
    """The accept checks, for a header that is none of the usual ones: None to go on, a reply, or `b""` for none."""
    if len(data) < 12 or data[2] & 0x80:
        return b""  # a response is never answered: two servers could go on for ever
    if data[2] & 0x78:
        return reply.refusal(data, iana.NOTIMP, True)
    if data[4:6] != b"\0\1" or data[6:8] > b"\0\1" or data[8:10] > b"\0\1" or data[10:12] > b"\0\2":
        return reply.refusal(data, iana.FORMERR, False)
    return None


def _readable_question(data: bytes) -> bytes:
    """The question of a query whose rest cannot be read, or nothing."""
    off = 12
    try:
        while length := data[off]:
            if length > 63:
                return b""
            off += length + 1
    except IndexError:
        return b""
    end = off + 5
    return data[12:end] if end <= len(data) and off < 12 + 255 else b""
