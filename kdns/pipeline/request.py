"""A query on its way through the plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, final

from kdns.dns import iana
from kdns.dns.answer import SHAPE_RD, Answer
from kdns.dns.edns import Edns
from kdns.dns.name import to_text
from kdns.dns.query import Question
from kdns.pipeline.outcome import Bare, Outcome, Pending
from kdns.pipeline.records import decode

if TYPE_CHECKING:
    from kdns.pipeline.block import Block
    from kdns.pipeline.plugin import Plugin

# How deep look-ups may lead to look-ups (a chain of CNAMEs); CoreDNS's limit, and reliability.md's R1.
MAX_DEPTH: Final = 10


class Server(Protocol):
    """The listener's dispatcher, as far as requests use it. `label` is the metrics' `server` label."""

    label: str

    def route(self, request: Request) -> Outcome | Pending:
        """Takes a request through the block that its question belongs to."""

    def failed(self, request: Request, error: BaseException) -> Bare:
        """What an exception in a plugin comes to."""

    def detach(self, awaitable: Any) -> None:
        """Lets bounded work outlive the reply."""


class Denial(NamedTuple):
    """What the plugin that denied a name can say of all names that differ from it in the leftmost label.

    `deny(label, length)` gives the denial for another label (wire form, lower-cased) and length of the whole name, or
    None where the name may exist or must be asked for in full. `answer` is the denial of the name at hand.
    """

    plugin: Plugin
    answer: Answer
    deny: Callable[[bytes, int], Answer | None]


class Repeat(NamedTuple):
    """That a plugin would give the same answer to the same question until a moment, as long as what holds it is alive.

    `until` is in monotonic seconds; `settle` counts a reply that is given without asking the plugin (see Plugin.repeat).
    """

    answer: Answer
    holder: Alive
    until: float
    settle: Callable[[int, int], None]


class Alive(Protocol):
    """Who keeps an answer. `alive` turns False once it does no more."""

    @property
    def alive(self) -> bool: ...


@final
class Request:
    """One query. `asked` is what the client sent; `question` and `edns` are what plugins see and may replace.

    `data` are the query's bytes, whose question ends at `end`; `shape` the header bits a reply repeats. `peer` and
    `local` are socket addresses (host, port, ...); `proto` is `udp` or `tcp`; `now` is when it came, in monotonic
    seconds. `block` is the server block that answers it. `added` are EDNS options (wire form) that the configuration gives
    the query on its way upstream: what is answered may depend on them. `labels` is metadata: a function for each label's
    value. `denial` is set by a plugin that denies the name, if it can say as much of its neighbours;
    `repeat` by one that would give the same answer again.
    """

    __slots__ = (
        "_slots", "added", "asked", "block", "data", "denial", "depth", "edns", "end", "labels", "local", "now", "patience",
        "peer", "proto", "question", "repeat", "server", "shape",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        data: bytes,
        end: int,
        asked: Question,
        edns: Edns | None,
        shape: int,
        peer: tuple[Any, ...],
        local: tuple[Any, ...] | None,
        proto: str,
        now: float,
    ) -> None:
        self.server = server
        self.data = data
        self.end = end
        self.asked = asked
        self.question = asked
        self.edns = edns
        self.shape = shape
        self.peer = peer
        self.local = local
        self.proto = proto
        self.now = now
        self.depth = 0
        self.patience = 0.0  # seconds after which the query is dropped unanswered (0: never)
        self._slots: list[Any] | None = None
        self.block: Block | None = None
        self.added = b""
        self.labels: dict[str, Callable[[], str]] | None = None
        self.denial: Denial | None = None
        self.repeat: Repeat | None = None

    @property
    def slots(self) -> list[Any]:
        """A place for each plugin of the block, fresh in each pass; a plugin's is `slots[self.position]`."""
        made = self._slots
        if made is None:
            assert self.block is not None
            made = self._slots = [None] * len(self.block.plugins)
        return made

    @property
    def rd(self) -> bool:
        return bool(self.shape & SHAPE_RD)

    @property
    def cd(self) -> bool:
        return bool(self.data[3] & 0x10)

    @property
    def ad(self) -> bool:
        return bool(self.data[3] & 0x20)

    @property
    def id(self) -> int:
        return self.data[0] << 8 | self.data[1]

    @property
    def name(self) -> str:
        """The name that is asked, as lower-case text with its final dot."""
        return to_text(self.question.name)

    @property
    def type(self) -> str:
        """The type that is asked, as text."""
        return iana.type_text(self.question.type)

    @property
    def message(self) -> Any:
        """The query as a `dnslib.DNSRecord`, decoded at each call. Raises FormatError."""
        return decode(self.data)

    @property
    def limit(self) -> int:
        """The octets a reply may have."""
        if self.proto == "udp":
            return 512 if self.edns is None else self.edns.limit
        return 65535

    def label(self, name: str) -> str:
        """A label's value (metadata); empty where it is not known."""
        value = self.labels.get(name) if self.labels is not None else None
        return value() if value is not None else ""

    def child(self, question: Question) -> Request:
        """A request of its own for another question, from the same client with the same EDNS."""
        new = Request(
            self.server, self.data, self.end, question, self.edns, self.shape, self.peer, self.local, self.proto, self.now
        )
        new.depth = self.depth + 1
        new.added = self.added
        new.labels = self.labels
        return new

    def lookup(self, name: bytes, qtype: int) -> Outcome | Pending:
        """Asks the whole server again, as the same client; at most 10 deep. `name` is a lower-cased wire name."""
        if self.depth >= MAX_DEPTH:
            return Bare(iana.SERVFAIL, "look-ups lead to look-ups more than 10 deep")
        return self.server.route(self.child(Question(name, qtype, self.question.cls)))

    def rest(self, plugin: Plugin, question: Question) -> Outcome | Pending:
        """Asks only the plugins below this one in the block."""
        assert self.block is not None
        child = self.child(question)
        child.block = self.block
        return self.block.pipeline.below(plugin).run(child)
