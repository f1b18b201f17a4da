"""The plugin: a feature of the server. The server only carries queries to plugins.

A query goes down the plugins of its server block in the fixed order until a `handle` gives an outcome. An answer then
goes back up through the `on_answer` of the plugins above that place, nearest first; what is no answer goes through
their `on_failure`. At last all `observe`s of the block see the final outcome.

An exception in any hook is SERVFAIL for that query, a line in the log and a count, and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

from kdns.dns.answer import Answer
from kdns.net.http_options import HttpOptions
from kdns.plugin.outcome import Outcome

if TYPE_CHECKING:
    from kdns.corefile import Directive, ServerBlock
    from kdns.net.certificates import TlsFiles
    from kdns.net.proxy import ProxyPolicy
    from kdns.net.udp import Shedding
    from kdns.plugin.request import Request
    from kdns.plugin.runtime import Runtime

P = TypeVar("P")
# How one more reply like a given one is counted: (octets of the query, octets of the reply without its OPT).
Meter = Callable[[int, int], None]
# What becomes of a query before anything of it is read, by the client's socket address and whether it came over TCP:
# one of the verdicts below. It runs for every query, also for those that the reply cache answers.
Gate = Callable[[tuple[Any, ...], bool], int]
# The DNS cookie for a reply (24 octets, empty for none), by the payload of the query's COOKIE option and the client's
# socket address. It runs for every query with such an option.
ServerCookies = Callable[[bytes, tuple[Any, ...]], bytes]
# A number for what a client may see, by its socket address: the reply cache keeps the replies of each apart. It is
# worked out for every query, so it must be cheap; what changes takes a number that was never used before.
Audience = Callable[[tuple[Any, ...]], int]
PASS: Final = 0
IGNORED: Final = 1  # no reply
SHORTENED: Final = 2  # a reply with TC and nothing in it, over UDP: who is at that address comes back over TCP
DENIED: Final = 3  # REFUSED


class BlockInfo(Protocol):
    """A server block as its plugins see it while they are loaded and wired."""

    parsed: ServerBlock
    zones: tuple[bytes, ...]
    plugins: list[Plugin]
    hosts: tuple[str, ...]
    root: str
    view: str

    def all(self, protocol: Callable[..., P]) -> list[P]:
        """The plugins of this block that follow a protocol of kdns.plugin.providers, in order."""

    def path(self, text: str) -> str:
        """A path of the Corefile, joined to `root` where it is relative."""

    def zone_text(self, name: bytes) -> str:
        """The longest of the block's zones that a name is in, as text; `.` if there is none."""

    def anywhere(self, protocol: Callable[..., P]) -> list[P]:
        """The plugins of all blocks of this server that follow a protocol."""

    def every_block(self) -> Sequence[BlockInfo]:
        """All blocks of this server."""

    def every_zone(self) -> tuple[bytes, ...]:
        """The zones of all blocks of this server."""

    def ttl_limit(self, name: bytes, denial: bool) -> int:
        """The most seconds that the block's plugins let an answer (or a denial) of a name live."""

    def query_plugins(self) -> list[str]:
        """The names of the plugins that queries meet, in order."""


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """Options that a plugin sets for the sockets of its block, merged over all blocks of a listener.

    `any_class`: queries of classes other than IN are let in. `debug`, `stacktrace`: exceptions are logged with their
    stack. `dropped`: called for queries that no block was found for. `read`, `idle` (seconds) and `max_queries` are of
    TCP connections; `connections` and `client_connections` are how many there may be, of all clients and of each. All
    are 0 where they are not set; so is `client_waiting`, the queries of a client that may wait for the network.
    `exempt` says of a client's address, as text, whether the limits of each client are not for it. `gate` makes, from
    the listener's label, what judges each query before anything else. `tls`: the certificates of encrypted listeners.
    `audience`: which clients' replies must not be given to others (see `Request.audience`).
    `max_streams`: requests at a time of a connection to https:// and grpc:// (0: not set). `proxy`: whose PROXY headers
    are believed. `cookies` makes, from the listener's label, what makes DNS cookies. `shed`: from which age on waiting
    queries are dropped under overload. `http`: what only listeners that speak HTTP have.
    """

    any_class: bool = False
    debug: bool = False
    stacktrace: bool = False
    dropped: Callable[[Request, Outcome], None] | None = None
    read: float = 0.0
    idle: float = 0.0
    max_queries: int = 0
    connections: int = 0
    client_connections: int = 0
    client_waiting: int = 0
    exempt: Callable[[str], bool] | None = None
    gate: Callable[[str], Gate] | None = None
    tls: tuple[TlsFiles, ...] = ()
    proxy: ProxyPolicy | None = None
    max_streams: int = 0
    cookies: Callable[[str], ServerCookies] | None = None
    audience: Audience | None = None
    shed: Shedding | None = None
    http: HttpOptions = field(default_factory=HttpOptions)


class Plugin:
    """The base of all plugins; every hook may be left out.

    A life: `parse` (pure) -> one object for each config -> `load` (reads files, resolves names, looks at interfaces) ->
    `wire` (finds other plugins of its block) -> `start` (opens sockets) -> `stop`.

    A reply is given again to the same question without asking the plugins if

    1. its Answer has a validity (`Answer.validity`), and that still holds;
    2. nothing was read of the query that the same question could differ in (the request notes it);
    3. all plugins of the block are `pure`;
    4. all that observe gave a meter, or are called for each repeated reply.
    """

    name: ClassVar[str]
    # For plugins of other packages: the plugin of the fixed order right before which it stands.
    before: ClassVar[str] = "forward"
    # Whether what `handle`, `on_answer` and `on_failure` do depends on nothing but what they read of the request, the
    # configuration, and what a validity stands for: not on a counter, the clock or chance. Claim it only to be faster.
    pure: bool = False
    # With `multisocket`: whether it is also started in the process that watches over the workers (`Runtime.crew`), for
    # what is done once and not by each of them.
    central: ClassVar[bool] = False
    # Whether `handle` is called for an UPDATE (RFC 2136) too: its question is the zone's SOA, its opcode 5.
    meets_updates: bool = False
    # Its place among the block's plugins, and in `Request.slots`.
    position: int = 0

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Any]:
        """Configs from all the directives of this name in a block; one plugin object is made of each.

        Raises CorefileError. Opens nothing. A plugin without arguments and options leaves it out; its config is None.
        """
        raise NotImplementedError

    def check(self, block: BlockInfo) -> None:
        """Raises CorefileError where the block lacks a plugin that this one needs. Nothing has been read yet."""

    def load(self, block: BlockInfo) -> None:
        """Reads what the config names. Raises CorefileError or OSError. May run in a thread; touches no loop."""

    def wire(self, block: BlockInfo) -> None:
        """Finds other plugins of the block by protocol (`block.all`). Raises CorefileError."""

    def warnings(self) -> Sequence[str]:
        """Warnings about the Corefile, which is valid: logged at start and shown by `kdns check`."""
        return ()

    def advice(self) -> Sequence[str]:
        """Notes that only `kdns check` shows: requirements of this plugin that the Corefile cannot show."""
        return ()

    def explain(self, request: Request) -> str:
        """The reason for the outcome of a question here, in a few words; for `kdns explain`."""
        return ""

    async def start(self, runtime: Runtime) -> None:
        """Opens sockets and begins work. Raises OSError or CorefileError."""

    async def stop(self) -> None:
        """Ends what `start` began. Called once, also after a failed start."""

    def listener(self) -> ListenerOptions | None:
        """The options that this plugin sets for the listener's sockets."""
        return None

    # The query path. `handle` and `on_answer` may return awaitables; most never do.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        """An outcome, or None: not mine, go on."""
        return None

    def on_answer(self, request: Request, answer: Answer) -> Answer | Awaitable[Answer]:
        """An Answer from below, on its way back up: itself, or a changed copy."""
        return answer

    def on_failure(self, request: Request, failure: Outcome) -> None:
        """Called with an outcome from the plugins below that is not an Answer."""

    def observe(self, request: Request, outcome: Outcome) -> None:
        """Every final outcome of the block. It must not change anything of it."""

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        """The meter that counts one more reply like this one, served without asking the plugins.

        None: `observe` must see each query; or, for a plugin without `observe`, there is nothing to count.
        """
        return None


def overrides(plugin: Plugin, hook: str) -> bool:
    """True if a plugin's class defines this hook itself."""
    return getattr(type(plugin), hook) is not getattr(Plugin, hook)


def in_query_path(plugin: Plugin) -> bool:
    """True if queries pass through this plugin."""
    return any(overrides(plugin, hook) for hook in ("handle", "on_answer", "on_failure", "observe"))
