"""What a plugin is. A feature of a server is a plugin; the server only carries queries to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kdns.dns.answer import Answer
from kdns.pipeline.outcome import Outcome

if TYPE_CHECKING:
    from kdns.corefile import Directive
    from kdns.pipeline.block import Block, BlockKeys
    from kdns.pipeline.request import Request
    from kdns.pipeline.runtime import Runtime


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """What a plugin asks of the sockets of its block, not of the block: folded over all blocks of a listener.

    `any_class`: queries of classes other than IN are let in. `debug`: exceptions are not caught. `dropped`: called
    for queries that no block was found for. `read`, `idle` (seconds) and `max_queries` are of TCP connections; 0 where they
    are not set.
    """

    any_class: bool = False
    debug: bool = False
    stacktrace: bool = False
    dropped: Callable[[Request, Outcome], None] | None = None
    read: float = 0.0
    idle: float = 0.0
    max_queries: int = 0


# What of a plugin queries meet.
HOOKS = ("handle", "finish", "settle")


class Plugin:
    """The base of all plugins: every hook may be left out.

    A life: `parse` (pure) -> one object a config -> `load` (reads files, resolves names, looks at interfaces) ->
    `wire` (finds peers in its block) -> `start` (opens sockets) -> `stop`.
    """

    name: ClassVar[str]
    # For plugins of other packages: the plugin of the fixed order that it stands right before.
    before: ClassVar[str] = "forward"
    # Whether what `handle` and `finish` do depends on more than the question: on who asks, or on seeing each query. Only where
    # no plugin of a block does are replies repeated without asking the plugins again, so it must be denied, not claimed.
    client_dependent: bool = True
    # Whether its outcomes are our own data, which no cache keeps: then it is asked before a cache right above it.
    owner: bool = False
    # Whether `handle` only looks aside (a cache): owners right below it are asked first.
    looks_aside: ClassVar[bool] = False
    # Whether `finish` changes our own answers too, and whether `settle` cares for answers: if not, neither is called
    # for them.
    finishes_own: ClassVar[bool] = True
    settles_answers: ClassVar[bool] = True
    # Whether `finish` may make a denial (NXDOMAIN) of ours another answer.
    finishes_denials: ClassVar[bool] = True
    # Its place among the block's plugins, and in `Request.slots`.
    position: int = 0

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Any]:
        """Configs from all the directives of this name in a block; one plugin object is made of each.

        Raises CorefileError. Opens nothing. As it is here: a plugin without arguments and options, whose config is None.
        """
        from kdns.pipeline import setup

        for directive in directives:
            setup.bare(directive)
        return [None] * len(directives)

    def __init__(self, config: Any) -> None:
        self.config = config

    def load(self, block: Block) -> None:
        """Reads what the config names. Raises CorefileError or OSError. May run in a thread; touches no loop."""

    def wire(self, block: Block) -> None:
        """Finds peers in the block by protocol (`block.all`). Raises CorefileError."""

    def warnings(self) -> Sequence[str]:
        """What is no error, and yet whoever wrote this should know: logged at start, and shown by `kdns check`."""
        return ()

    def advice(self) -> Sequence[str]:
        """What only `kdns check` says: where this plugin needs something that is not in the Corefile."""
        return ()

    def explain(self, request: Request) -> str:
        """Why a question comes to what it comes to here, in a few words; for `kdns explain`."""
        return ""

    async def start(self, runtime: Runtime) -> None:
        """Opens sockets and begins work. Raises OSError or CorefileError."""

    async def stop(self) -> None:
        """Ends what `start` began. Called once, also after a failed start."""

    def listener(self) -> ListenerOptions | None:
        """What it asks of the sockets."""
        return None

    # The query path. `handle` and `finish` may return awaitables; most never do.

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        """An outcome, or None: not mine, go on."""
        return None

    def finish(self, request: Request, answer: Answer) -> Answer | Awaitable[Answer]:
        """An answer from below, on its way back up."""
        return answer

    def settle(self, request: Request, outcome: Outcome) -> None:
        """Every outcome from below, once it is final."""

    def repeat(self, request: Request, answer: Answer) -> Callable[[int, int], None] | None:
        """What settles a reply like this one to a question like this one when it is given without a request.

        It is called with the octets of query and reply (the latter without OPT). None where each query must be settled by
        itself; then replies of this block are not repeated. Asked only of plugins that settle answers.
        """
        return None


def looks_at_client(plugin: Plugin) -> bool:
    """Whether two queries with one question may fare differently here. What settles is asked by itself (Plugin.repeat)."""
    return plugin.client_dependent and (overrides(plugin, "handle") or overrides(plugin, "finish"))


def overrides(plugin: Plugin, hook: str) -> bool:
    """Whether a plugin's class defines this hook itself."""
    return getattr(type(plugin), hook) is not getattr(Plugin, hook)
