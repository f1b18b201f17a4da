"""A query on its way through the plugins, and the notes of what was read of it.

A finished reply may be given again to the same question (kdns.server.replycache) only if it depends on nothing that the
same question of somebody else could differ in. So a request notes what is read of it: the client's address, ours, the
message itself, EDNS options. It also notes the validities of what plugins looked up on the way, also in child passes,
and when the reply will be another one by itself. The notes of all passes of a query stand on its `root`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from kdns.dns import edns as _edns
from kdns.dns import iana
from kdns.dns.answer import FOREVER, REPLY_RD, Answer, Validity
from kdns.dns.edns import Edns
from kdns.dns.name import to_text
from kdns.dns.query import Question
from kdns.plugin.outcome import Outcome, Pending, RcodeOnly

if TYPE_CHECKING:
    from kdns.plugin.base import Audience, Plugin
    from kdns.plugin.providers import LabelCollector

# How deep look-ups may lead to look-ups: a chain of CNAMEs (CoreDNS's limit).
MAX_DEPTH: Final = 10
# The validity of an answer that depends on nothing but the configuration and what the request has noted.
ALWAYS: Final = Validity()
# EDNS options whose presence is part of the reply cache's key.
KEYED_OPTIONS: Final = frozenset((_edns.NSID, _edns.SUBNET, _edns.COOKIE, _edns.KEEPALIVE, _edns.PADDING))


class Server(Protocol):
    """The listener's dispatcher, as far as requests use it. `label` is the metrics' `server` label."""

    label: str

    def route(self, request: Request) -> Outcome | Pending:
        """Takes a child request through the block that its question belongs to."""

    def below(self, request: Request, plugin: Plugin) -> Outcome | Pending:
        """Takes a child request through the plugins below one of its block."""

    def failed(self, request: Request, error: BaseException) -> RcodeOnly:
        """Counts and logs an exception in a plugin; returns the SERVFAIL that the query gets."""

    def tells_apart(self, audience: Audience) -> bool:
        """Whether the reply cache keeps the audiences apart that this gives."""

    def detach(self, awaitable: Any) -> None:
        """Lets bounded work outlive the reply."""

    def watch_option(self, code: int) -> None:
        """From now on queries with this EDNS option (-1: with any) are not alike."""


@final
class Request:
    """One query. `asked` is what the client sent; `question` and `edns` are what plugins see and may replace.

    `transport` is `udp` or `tcp`; `family` 4 or 6; `now` is when the query came, in monotonic seconds. `block` is the
    server block that answers it. `reply_flags` are the header bits that the reply repeats (REPLY_*). `added` are EDNS
    options (wire form) that the configuration gives the query on its way upstream. `metadata` is what knows the values
    of its labels. `timeout` are seconds after which the query is dropped unanswered; 0: never.

    What may differ between two clients with the same question is read through properties that note it.
    """

    __slots__ = (
        "_client", "_data", "_end", "_local", "_options", "_root", "_slots", "added", "asked", "block", "depth", "edns",
        "metadata", "now", "personal", "question", "repeatable", "reply_flags", "seal", "server", "timeout",
        "transport", "until",
        "validities",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        data: bytes,
        end: int,
        asked: Question,
        edns: Edns | None,
        options: bytes,
        reply_flags: int,
        client: tuple[Any, ...],
        local: tuple[Any, ...] | None,
        transport: str,
        now: float,
        root: Request | None = None,
    ) -> None:
        """`data` are the query's octets, its question ends at `end`; `options` the rdata of its OPT."""
        self.server = server
        self._data = data
        self._end = end
        self.asked = asked
        self.question = asked
        self.edns = edns
        self._options = options
        self.reply_flags = reply_flags
        self._client = client
        self._local = local
        self.transport = transport
        self.now = now
        self.depth = 0
        self.timeout = 0.0
        # What makes the octets that leave of a finished message, called for each message of the reply in turn.
        self.seal: Callable[[bytes], bytes] | None = None
        self._slots: list[Any] | None = None
        self.block: Any = None
        self.added = b""
        self.metadata: LabelCollector | None = None
        self._root = root  # None where it is this one: a request that refers to itself would wait for the collector
        # The notes; those of the root count.
        self.personal = False  # whether anything was read that is this client's own, or that chance decides
        self.repeatable = True  # whether all that was looked up says how long it holds
        self.until = FOREVER
        self.validities: list[Validity] | None = None

    @property
    def root(self) -> Request:
        """The query's own request, on which notes are made in all passes."""
        return self if self._root is None else self._root

    # What two clients with one question may differ in.

    @property
    def client(self) -> tuple[Any, ...]:
        """The client's socket address: (host, port), or (host, port, flow, scope) over IPv6."""
        self.root.personal = True
        return self._client

    def audience(self, of: Audience) -> int:
        """The audience that the client is of. Where the listener knows of it, the reply cache keeps audiences apart,
        and nothing is noted; else the reply is this client's own.
        """
        if not self.server.tells_apart(of):
            self.root.personal = True
        return of(self._client)

    @property
    def local(self) -> tuple[Any, ...] | None:
        """The address that the query was sent to, as a socket address."""
        self.root.personal = True
        return self._local

    @property
    def wire(self) -> bytes:
        """The query's octets as they came."""
        self.root.personal = True
        return self._data

    @property
    def size(self) -> int:
        """The octets of the query."""
        self.root.personal = True
        return len(self._data)

    @property
    def shows_ad(self) -> bool:
        """True if the client says that it understands AD in a reply, by AD or by DO (RFC 6840, sections 5.7 and
        5.8).
        """
        return bool(self._data[3] & 0x20) or (self.edns is not None and self.edns.do)

    @property
    def may_be_signed(self) -> bool:
        """True if the query has records that no key of the reply cache covers, such as a TSIG."""
        data = self._data
        if data[6:10] != b"\0\0\0\0":
            return True
        return data[10] != 0 or data[11] > (self.edns is not None)

    @property
    def id(self) -> int:
        """The query's id."""
        self.root.personal = True
        return self._data[0] << 8 | self._data[1]

    @property
    def bufsize(self) -> int:
        """The octets that the client says it takes over this transport, as it says it (RFC 6891, section 6.2.3)."""
        self.root.personal = True
        if self.transport != "udp":
            return 65535
        return 512 if self.edns is None else max(512, self.edns.sent)

    @property
    def message(self) -> Any:
        """The query as a `dnslib.DNSRecord`, decoded at each call. Raises FormatError."""
        from kdns.plugin.records import decode

        return decode(self.wire)

    def has_option(self, code: int) -> bool:
        """True if the query has this EDNS option."""
        if code not in KEYED_OPTIONS:
            self.server.watch_option(code)
        return bool(self._options) and any(found == code for found, _ in _edns.options(self._options))

    def remove_option(self, code: int) -> None:
        """Takes an EDNS option out of what later plugins see of the query."""
        if self.has_option(code):
            kept = [_edns.option(c, data) for c, data in _edns.options(self._options) if c != code]
            self._options = b"".join(kept)

    def option(self, code: int) -> bytes | None:
        """The data of the query's first EDNS option of this code; None where there is none."""
        if code not in KEYED_OPTIONS:
            self.server.watch_option(code)
        if self._options:
            for found, data in _edns.options(self._options):
                if found == code:
                    self.root.personal = True
                    return data
        return None

    @property
    def options(self) -> list[tuple[int, bytes]]:
        """All EDNS options of the query as (code, data)."""
        self.server.watch_option(-1)
        return _edns.options(self._options) if self._options else []

    # What the reply cache knows of each query.

    @property
    def question_end(self) -> int:
        """The octets of header and question, which a reply repeats."""
        return self._end

    @property
    def family(self) -> int:
        """4 or 6: the address family that the query came over."""
        return 4 if len(self._client) == 2 else 6

    @property
    def rd(self) -> bool:
        """True if recursion is desired, as plugins above left it (`header`)."""
        return bool(self.reply_flags & REPLY_RD)

    @property
    def client_rd(self) -> bool:
        """True if the client wants its question resolved (RFC 1035, section 4.1.1)."""
        return bool(self._data[2] & 1)

    @property
    def cd(self) -> bool:
        """True if checking is disabled (CD)."""
        return bool(self._data[3] & 0x10)

    @property
    def opcode(self) -> int:
        """The query's opcode."""
        return self._data[2] >> 3 & 15

    @property
    def name(self) -> str:
        """The name that is asked, as lower-case text with its final dot."""
        return to_text(self.question.name)

    @property
    def type(self) -> str:
        """The type that is asked, as text."""
        return iana.type_text(self.question.type)

    @property
    def limit(self) -> int:
        """The octets a reply may have."""
        if self.transport == "udp":
            return 512 if self.edns is None else self.edns.size
        return 65535

    # Notes.

    def once(self) -> None:
        """Says that this reply is for this query only: it depends on chance, or on something that no validity stands
        for.
        """
        self.root.personal = True

    def depends_on(self, validity: Validity | None) -> None:
        """Says that the reply holds only as long as this does; None: this once.

        Where the TTLs of what it stands for age, the reply holds until the next second begins to be counted down.
        """
        root = self.root
        if validity is None:
            root.repeatable = False
            return
        if validity is ALWAYS:
            return
        if root.validities is None:
            root.validities = [validity]
        else:
            root.validities.append(validity)
        until = validity.until
        if validity.ages:
            left = until - self.now
            if left >= 2:
                until -= int(left)
        if until < root.until:
            root.until = until

    def expires(self, at: float) -> None:
        """Says that the reply may be another one from this moment on (monotonic seconds)."""
        root = self.root
        if at < root.until:
            root.until = at

    def inherit(self, answer: Answer) -> Validity | None:
        """The validity of a new answer that was made from this one, with TTLs of its own."""
        if answer.validity is None:
            return None
        self.depends_on(answer.validity)
        return ALWAYS

    # Memory, metadata, child passes.

    @property
    def slots(self) -> list[Any]:
        """A place for each plugin of the block, fresh in each pass; a plugin's is `slots[self.position]`."""
        made = self._slots
        if made is None:
            made = self._slots = [None] * len(self.block.plugins)
        return made

    def label(self, name: str) -> str:
        """A label's value (metadata); empty where it is not known. Labels are those of the query as it came."""
        return self.metadata.value(self.root, name) if self.metadata is not None else ""

    def child(self, question: Question) -> Request:
        """A request for another question, from the same client with the same EDNS."""
        new = Request(
            self.server, self._data, self._end, question, self.edns, self._options, self.reply_flags, self._client,
            self._local,
            self.transport, self.now, self.root,
        )  # fmt: skip
        new.depth = self.depth + 1
        new.added = self.added
        new.metadata = self.metadata
        return new

    def lookup(self, name: bytes, qtype: int) -> Outcome | Pending:
        """Asks the whole server again, as the same client; at most 10 deep. `name` is a lower-cased wire name."""
        if self.depth >= MAX_DEPTH:
            return RcodeOnly(iana.SERVFAIL, "look-ups lead to look-ups more than 10 deep")
        child = self.child(Question(name, qtype, self.question.cls))
        return self._noted(self.server.route(child))

    def below(self, plugin: Plugin, question: Question) -> Outcome | Pending:
        """Asks only the plugins below this one in the block."""
        child = self.child(question)
        child.block = self.block
        return self._noted(self.server.below(child, plugin))

    def detach(self, awaitable: Any) -> None:
        """Lets bounded work outlive the reply."""
        self.server.detach(awaitable)

    def _noted(self, outcome: Outcome | Pending) -> Outcome | Pending:
        """A child pass's outcome; the reply depends on it from now on."""
        self.depends_on(outcome.validity if type(outcome) is Answer else None)
        return outcome
