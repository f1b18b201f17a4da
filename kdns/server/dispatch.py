"""From a query's bytes to a reply's: accept checks, the choice of a block, the reply. One dispatcher a listener.

The accept checks come first (server.accept), then the body: FORMERR; the EDNS version: BADVERS (RFC 6891); the class: REFUSED.
Then the block of the longest zone. What was answered before is often answered again for one look-up (server.kept). What needs
no I/O is answered in the same call; what does waits in a bounded table (server.waiting).
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, final

from kdns import log
from kdns.dns import edns as _edns
from kdns.dns import iana, reply
from kdns.dns.answer import SHAPE_EDNS, Answer, render
from kdns.dns.errors import FormatError
from kdns.dns.query import parse
from kdns.metrics import Counter
from kdns.net import Address, Frames
from kdns.pipeline.block import Block
from kdns.pipeline.outcome import Bare, Drop, Outcome, Pending, Stream
from kdns.pipeline.plugin import ListenerOptions
from kdns.pipeline.request import Request
from kdns.server.accept import META, MORE, SHAPES, check, readable_question
from kdns.server.kept import WAYS, Kept
from kdns.server.waiting import Waiting

PANICS = Counter("coredns_panics_total", "A metrics that counts the number of panics.")

_log = log.Logger()


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
        self.dropped: list[Callable[[Request, Outcome], None]] = []
        self.panics = PANICS.slot()
        self.waiting = Waiting(label, self._finished)
        self.detach = self.waiting.detach  # for requests: bounded work that outlives the reply
        self.kept = Kept()
        # Looked at for each query.
        self.repeats = self.kept.replies
        self.neighbours = self.kept.neighbours
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
        way = b"" if proto == "udp" and len(peer) == 2 else WAYS[proto, len(peer)]
        known = self.repeats.get(way + data[2:])
        if known is not None:
            if known.holder.alive and (not known.until or known.until > monotonic()):
                for settle in known.settles:
                    settle(len(data), known.size)
                return data[:2] + known.reply
            del self.repeats[way + data[2:]]
        if self.neighbours and len(data) > 12:
            denied = self.kept.deny(way, data)
            if denied is not None:
                return denied
        shape = SHAPES.get(data[2:12])
        if shape is None:
            refusal = check(data)
            if refusal is not None:
                return refusal or None
            shape = reply.shape_of(data, None) | MORE
        try:
            question, end, edns = parse(data, shape & MORE != 0)
            shape &= ~MORE
        except FormatError:
            return reply.refusal(data, iana.FORMERR, False, readable_question(data))
        if edns is not None:
            shape |= SHAPE_EDNS
            if edns.version:
                # RFC 6891, section 6.1.3. Ours is version 0.
                return reply.bare(data, end, iana.BADVERS, edns)
        request = Request(self, data, end, question, edns, shape, peer, local, proto, monotonic())
        if question.cls != iana.IN and not self.any_class:
            outcome: Outcome | Pending = self._drop(request, iana.REFUSED)
        elif question.type in META:
            return reply.refusal(data, iana.FORMERR, False, data[12:end])
        else:
            outcome = self.route(request)
        if type(outcome) is Pending:
            waited: bytes | Pending | Frames | None = self.waiting.add(request, outcome)
            return waited
        if type(outcome) is Answer and self.repeatable and request.question is question:
            if outcome.alive or request.repeat is not None:
                packed = self._pack(request, outcome)
                if isinstance(packed, bytes):
                    self.kept.keep(way, request, outcome, packed)
                return packed
            if request.denial is not None and self.only is not None:
                self.kept.meet(way, request, outcome, request.denial)
        return self._pack(request, outcome)

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

    def _finished(self, request: Request, value: Any) -> bytes | Frames | None:
        """The reply of a query that has waited."""
        if isinstance(value, BaseException):
            value = self.failed(request, value)
        return self._pack(request, value if value is not None else Bare(iana.SERVFAIL, "no outcome"))


def _messages(request: Request, stream: Stream) -> Iterator[bytes]:
    """The messages of a zone transfer, each with the question (RFC 5936, section 2.2)."""
    for records in stream.messages:
        answer = Answer(iana.NOERROR, stream.flags, records)
        body = answer.rendered(request.asked.name)
        yield reply.pack(answer, body, request.data, request.end, request.shape, request.edns)
