"""From a query's octets to a reply's. One dispatcher for each listener.

    datagram -> the reply cache: one look-up answers what may be repeated      (server.replycache)
             -> accept checks, question, EDNS; the longest zone -> its block   (server.accept, dns.query)
             -> the block's chain of plugins -> outcome, observed              (server.chain)
             -> reply: header, question as asked, body, OPT; truncated to fit  (server.packing)

What needs no I/O is answered in the same call. What does waits in a bounded table (server.pending).
"""

import asyncio
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, final

from kdns import faults, log
from kdns.dns import edns as _edns
from kdns.dns import iana, reply
from kdns.dns.answer import REPLY_EDNS, Answer
from kdns.dns.errors import FormatError
from kdns.dns.query import parse, readable_opt
from kdns.metrics import Counter
from kdns.net import Address, Handler, MessageStream
from kdns.net.certificates import Identities
from kdns.plugin.base import PASS, Audience, Gate, ListenerOptions, Plugin
from kdns.plugin.outcome import Outcome, Pending, RcodeOnly
from kdns.plugin.providers import TakesNotify, TakesUpdate
from kdns.plugin.request import Request
from kdns.server.accept import COOKIE_ALONE, META, MORE, REPLY_FLAGS, UPDATE, check, readable_question
from kdns.server.audiences import Audiences, turned_away
from kdns.server.block import Block
from kdns.server.packing import Packer, ends_with_cookie
from kdns.server.pending import PendingTable
from kdns.server.replycache import AUDIENCE, IPV6, TCP, UDP, CachedReply, ReplyCache, entry_for
from kdns.server.settings import merged

PANICS: Final = Counter("coredns_panics_total", "A metrics that counts the number of panics.")
_TRANSPORTS: Final = ("udp", "udp", "tcp", "tcp")  # by UDP and TCP of the reply cache

_log: Final = log.Logger()


@final
class Dispatcher:
    """Answers the queries of one listener. `label` is `dns://HOST:PORT`, the metrics' `server`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.zones: dict[bytes, list[Block]] = {}
        self.only: Block | None = None
        self.settings = ListenerOptions()
        self.identities: Identities[Any] | None = None
        self.gate: Gate | None = None
        self.audiences = Audiences()
        self.packer = Packer(label, self.failed, self._panic)
        self.notices = False  # whether anybody wants to be told of new versions of zones
        self.updates = False  # whether anybody has zones that clients may change
        self.dropped: list[Callable[[Request, Outcome], None]] = []
        self.panics = PANICS.slot()
        self.waiting = PendingTable(label, self.finish, self.give_up)
        self.replies = ReplyCache()
        self.closed = False

    # Called by the build.

    def add(self, zone: bytes, block: Block) -> None:
        """Serves a zone with a block; blocks of one zone are tried in the order they were added."""
        self.zones.setdefault(zone, []).append(block)

    def fold(self, options: ListenerOptions) -> None:
        """Adds what a plugin asks of the listener."""
        self.settings = merged(options, self.settings)
        self.waiting.limit(options.client_waiting, options.exempt)
        self.waiting.shed = self.settings.shed
        if options.audience is not None:
            self.audiences.add(options.audience)
        if options.gate is not None:
            self.gate = options.gate(self.label)
        if options.cookies is not None:
            self.packer.cookies = options.cookies(self.label)
        if options.dropped is not None and options.dropped not in self.dropped:
            self.dropped.append(options.dropped)

    def ready(self) -> None:
        """Called once all is added: finds out whether there is a choice of blocks at all."""
        self.notices = any(block.all(TakesNotify) for found in self.zones.values() for block in found)
        # Not over HTTP, gRPC or QUIC: RFC 2136 knows datagrams and connections, and TLS is one.
        self.updates = self.packer.transfers and any(
            block.all(TakesUpdate) for found in self.zones.values() for block in found
        )
        blocks = self.zones.get(b"\0", [])
        if len(self.zones) == 1 and len(blocks) == 1 and not blocks[0].admits and not blocks[0].chain.empty:
            self.only = blocks[0]

    def close(self) -> None:
        """Ends for good: what still waits is answered SERVFAIL, and what holds this dispatcher is let go."""
        self.waiting.close()
        self.packer.close()
        self.closed = True
        self.zones.clear()
        self.dropped.clear()
        self.only = None
        self.audiences = Audiences()
        self.replies.clear()

    def handlers(self) -> tuple[Handler, Handler]:
        """What answers the datagrams, and the messages over TCP. Where clients are neither judged nor told apart, that
        costs nothing.
        """
        if self.gate is None and not self.audiences.all:
            return self.datagram, self.message
        return self.judged_datagram, self.judged_message

    # Called by the listeners.

    def datagram(self, data: bytes, client: Address, local: Address | None) -> bytes | Pending | MessageStream | None:
        """The reply to a query that came over UDP, None for none, or a Pending of either."""
        return self.answer(data, client, local, UDP if len(client) == 2 else UDP | IPV6)

    def message(self, data: bytes, client: Address, local: Address | None) -> bytes | Pending | MessageStream | None:
        """The reply to a query that came over TCP."""
        return self.answer(data, client, local, TCP if len(client) == 2 else TCP | IPV6)

    def judged_datagram(
        self, data: bytes, client: Address, local: Address | None
    ) -> bytes | Pending | MessageStream | None:
        """The reply to a datagram where clients are judged or told apart."""
        return self._judged(data, client, local, UDP if len(client) == 2 else UDP | IPV6)

    def judged_message(
        self, data: bytes, client: Address, local: Address | None
    ) -> bytes | Pending | MessageStream | None:
        """The reply to a message over TCP where clients are judged or told apart."""
        return self._judged(data, client, local, TCP if len(client) == 2 else TCP | IPV6)

    def _judged(
        self, data: bytes, client: Address, local: Address | None, transport: int
    ) -> bytes | Pending | MessageStream | None:
        verdict = self._judge(client, transport & TCP != 0)
        if verdict != PASS:
            return turned_away(data, verdict)
        if self.audiences.all:
            try:
                transport |= self.audiences.number(client) << AUDIENCE
            except Exception as error:
                return self._broken(data, error)
        return self.answer(data, client, local, transport)

    def _judge(self, client: Address, tcp: bool) -> int:
        gate = self.gate
        if gate is None:
            return PASS
        try:
            return gate(client, tcp)
        except Exception as error:
            self._panic(error)
            return PASS

    def answer(
        self, data: bytes, client: Address, local: Address | None, transport: int
    ) -> bytes | Pending | MessageStream | None:
        """The reply to a query; `transport` as in server.replycache."""
        replies = self.replies
        try:
            entry = replies.get(data, transport)
            if entry is not None:
                for meter in entry.meters:
                    meter(len(data), entry.size)
                if entry.observers:
                    failed = self._show(entry, data, client, local, transport)
                    if failed:
                        return failed
                tail = entry.next_tail()
                cookies = self.packer.cookies
                if replies.cookie_at and cookies is not None:
                    cookie = cookies(data[replies.cookie_at : replies.cookie_end], client)
                    if not cookie:
                        return self._in_full(data, client, local, transport)
                    tail = tail[: -_edns.COOKIE_SIZE] + cookie
                return b"".join((data[:2], entry.head, data[12 : replies.end], tail))
            return self._in_full(data, client, local, transport)
        except Exception as error:
            replies.clear()
            return self._broken(data, error)

    def _in_full(
        self, data: bytes, client: Address, local: Address | None, transport: int
    ) -> bytes | Pending | MessageStream | None:
        """The reply that the plugins give."""
        flags = REPLY_FLAGS.get(data[2:12], -1)
        if flags < 0:
            refusal = check(data, self.notices, self.updates)
            if refusal is not None:
                if refusal and self.packer.cookies is not None and data[2:12] in COOKIE_ALONE:
                    return self.packer.cookie_alone(data, client)
                return refusal or None
            if data[2] & 0x78 == UPDATE:
                return self._update(data, client, local, transport)
            flags = reply.flags_of(data) | MORE
        try:
            question, end, edns, options = parse(data, flags & MORE != 0)
        except FormatError:
            asked = readable_question(data)
            edns = readable_opt(data, 12 + len(asked)) if asked else None
            if edns is not None:
                # RFC 6891, section 6.1.1: a FORMERR without an OPT says that we know no EDNS (section 7).
                return reply.bare(data, 12 + len(asked), iana.FORMERR, edns)
            return reply.refusal(data, iana.FORMERR, False, asked)
        flags &= ~MORE
        if edns is not None:
            flags |= REPLY_EDNS
            if edns.version:
                # RFC 6891, section 6.1.3. Ours is version 0.
                return reply.bare(data, end, iana.BADVERS, edns)
        if question.type in META:
            return reply.bare(data, end, iana.FORMERR, edns)
        request = Request(
            self, data, end, question, edns, options, flags, client, local, _TRANSPORTS[transport & 3], monotonic()
        )
        if data[2] & 0x78:
            return self._notice(request)
        key = self.replies.key if self.replies.wanted() else b""
        if question.cls != iana.IN and not self.settings.any_class:
            outcome: Outcome | Pending = self._drop(request, RcodeOnly(iana.REFUSED))
        else:
            outcome = self._route(request)
        if type(outcome) is Pending:
            waited: bytes | Pending | MessageStream | None = self.waiting.add(request, outcome)
            return waited
        # What observers read of the request is not noted.
        stored = (
            key
            and type(outcome) is Answer
            and outcome.validity is not None
            and request.repeatable
            and not request.personal
        )
        seen: Outcome = self._observe(request, outcome)
        made = self.packer.reply(request, seen)
        if stored and seen is outcome and type(seen) is Answer and type(made) is bytes:
            self._store(request, seen, key, made)
        return made

    def _update(
        self, data: bytes, client: Address, local: Address | None, transport: int
    ) -> bytes | Pending | MessageStream | None:
        """The reply to an UPDATE (RFC 2136), from those plugins of the zone's block that know what one is."""
        try:
            zone, end, edns, options = parse(data, False)
            request = Request(
                self, data, end, zone, edns, options, 0, client, local, _TRANSPORTS[transport & 3], monotonic()
            )
            block = self.find(request)
            takers: list[TakesUpdate] = block.all(TakesUpdate) if block is not None else []
            if block is None or not takers:
                return reply.refusal(data, iana.NOTIMP, True, data[12:end])
            # Before any of its records is read: a message has room for 6,000, and reading them would hold the others.
            records = int.from_bytes(data[6:8], "big") + int.from_bytes(data[8:10], "big")
            if records > max([taker.update_limit for taker in takers]) or data[10:12] > b"\0\x10":
                return reply.refusal(data, iana.REFUSED, True, data[12:end])
            _, _, request.edns, request._options = parse(data)
        except FormatError:
            return reply.refusal(data, iana.FORMERR, True, readable_question(data))
        request.reply_flags = reply.flags_of(data) | (REPLY_EDNS if request.edns is not None else 0)
        if request.edns is not None and request.edns.version:
            return reply.bare(data, end, iana.BADVERS, request.edns)
        request.block = block
        outcome = block.updates.run(request)
        if type(outcome) is Pending:
            waited: bytes | Pending | MessageStream | None = self.waiting.add(request, outcome)
            return waited
        return self.packer.reply(request, self._observe(request, outcome))

    def _notice(self, request: Request) -> bytes:
        """The reply to a NOTIFY (RFC 1996): of the plugin whose zone it is, REFUSED where there is none."""
        rcode: int | None = None
        block = self.find(request)
        for plugin in block.all(TakesNotify) if block is not None else ():
            rcode = plugin.notified(request)
            if rcode is not None:
                break
        made = reply.bare(request._data, request._end, iana.REFUSED if rcode is None else rcode, request.edns)
        made = made[:2] + bytes((made[2] | iana.AA >> 8,)) + made[3:]
        return made if request.seal is None else request.seal(made)

    # Called by requests.

    def route(self, request: Request) -> Outcome | Pending:
        """Takes a child request through the block that its question belongs to, and lets the block observe what
        comes.
        """
        outcome = self._route(request)
        if type(outcome) is not Pending:
            root = request.root
            personal, repeatable = root.personal, root.repeatable
            self._observe(request, outcome)
            root.personal, root.repeatable = personal, repeatable
        else:
            outcome.add(lambda value: self._observe(request, value))
        return outcome

    def below(self, request: Request, plugin: Plugin) -> Outcome | Pending:
        """Takes a child request through the plugins below one of its block."""
        chain = request.block.chain.below(plugin)
        out: Outcome | Pending = chain.run(request)
        return out

    def tells_apart(self, audience: Audience) -> bool:
        """Whether the reply cache keeps the audiences apart that this gives."""
        return audience in self.audiences.all

    def detach(self, awaitable: Any) -> None:
        """Lets bounded work outlive the reply."""
        self.waiting.detach(awaitable)

    def watch_option(self, code: int) -> None:
        """From now on queries with this EDNS option (-1: with any) are answered in full."""
        self.replies.watch(code)

    def failed(self, request: Request, error: BaseException) -> RcodeOnly:
        """An exception in a plugin: SERVFAIL, counted and logged with the listener's name."""
        request.root.personal = True
        if isinstance(error, asyncio.CancelledError):
            return RcodeOnly(iana.SERVFAIL, "the query was cancelled")
        if self.closed:
            return RcodeOnly(
                iana.SERVFAIL, "the configuration was replaced"
            )  # its plugins may have lost what they need
        self._panic(error)
        return RcodeOnly(iana.SERVFAIL, error)

    def _panic(self, error: BaseException) -> None:
        """Counts and logs an exception in a plugin, or of our own."""
        self.panics[0] += 1
        text = f'Recovered from panic in server: "{self.label}" {faults.text_of(error)}'
        if self.settings.stacktrace or self.settings.debug:
            text += " " + "".join(traceback.format_exception(error))
        _log.error(text)

    def _broken(self, data: bytes, error: Exception) -> bytes:
        """SERVFAIL for a query that broke something outside of the chain."""
        self._panic(error)
        try:
            _, end, edns, _ = parse(data)
        except FormatError:
            return reply.refusal(data, iana.SERVFAIL, False, readable_question(data))
        return reply.bare(data, end, iana.SERVFAIL, edns)

    # Routing.

    def _route(self, request: Request) -> Outcome | Pending:
        try:
            block = self.find(request)
        except Exception as error:
            return self._drop(request, self.failed(request, error))
        if block is None:
            return self._drop(request, RcodeOnly(iana.REFUSED))
        request.block = block
        return block.chain.run(request)

    def find(self, request: Request) -> Block | None:
        """The block of the longest zone that the question is in; for DS the shortest, as the parent has it."""
        if self.only is not None:
            return self.only
        name = request.question.name
        zones = self.zones
        is_ds = request.question.type == iana.DS
        found: Block | None = None
        off = 0
        while size := name[off]:
            blocks = zones.get(name[off:])
            if blocks is not None:
                for block in blocks:
                    if block.admits and not all([admit(request) for admit in block.admits]):
                        continue
                    if not is_ds:
                        return None if block.chain.empty else block
                    found = block
            off += size + 1
        if found is not None:
            return None if found.chain.empty else found
        for block in zones.get(b"\0", ()):
            if not block.chain.empty and all([admit(request) for admit in block.admits]):
                return block
        return None

    def _drop(self, request: Request, outcome: RcodeOnly) -> RcodeOnly:
        """The outcome of a query that no block has taken."""
        if not request.depth:
            for dropped in self.dropped:
                try:
                    dropped(request, outcome)
                except Exception as error:
                    outcome = self.failed(request, error)
        return outcome

    # Outcomes and replies.

    def finish(self, request: Request, value: Any) -> bytes | MessageStream | None:
        """The reply that an outcome, an exception or nothing gives, once the block has observed it."""
        if isinstance(value, BaseException):
            value = self.failed(request, value)
        elif value is None:
            value = RcodeOnly(iana.SERVFAIL, "no outcome")
        try:
            return self.packer.reply(request, self._observe(request, value))
        except Exception as error:
            return self._broken(request._data, error)

    def give_up(self, request: Request, reason: str) -> bytes | MessageStream | None:
        """The reply to a query that may not wait, or has waited too long."""
        failure = RcodeOnly(iana.SERVFAIL, reason)
        request.block.chain.fail(request, failure)
        return self.finish(request, failure)

    def _observe(self, request: Request, outcome: Any) -> Any:
        """Shows an outcome to the block's observers; SERVFAIL where one of them raises, for those after it too."""
        block: Block | None = request.block
        if block is None:
            return outcome
        for observe in block.observers:
            try:
                observe(request, outcome)
            except Exception as error:
                outcome = self.failed(request, error)
        return outcome

    def _store(self, request: Request, outcome: Answer, key: bytes, made: bytes) -> None:
        """Puts a reply into the cache, if it may be given again."""
        if self.replies.cookie_at and self.packer.cookies is not None and not ends_with_cookie(made):
            return  # without a cookie where another's could be put
        rotations = outcome.rotations
        packed = [self.packer.answer(request, each) for each in rotations] if rotations else [made]
        entry = entry_for(request, outcome, key, packed, request.block.counting)
        if entry is not None:
            self.replies.put(entry)

    def _show(self, entry: CachedReply, data: bytes, client: Address, local: Address | None, transport: int) -> bytes:
        """Shows a repeated reply to the observers that want to see each query; what to reply if one of them raises."""
        question, end, edns, options = parse(data, True)
        flags = reply.flags_of(data) | (REPLY_EDNS if edns is not None else 0)
        request = Request(
            self, data, end, question, edns, options, flags, client, local, _TRANSPORTS[transport & 3], monotonic()
        )
        if entry.question is not None:
            request.question = entry.question
        block: Block = entry.block
        request.block = block
        try:
            request.metadata = block.metadata
            for observe in entry.observers:
                observe(request, entry.answer)
        except Exception as error:
            return reply.bare(data, end, self.failed(request, error).rcode, edns)
        return b""
