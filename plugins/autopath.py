"""autopath - follows a Pod's search list on the server, by the client's address (as CoreDNS does; see also searchpath).

For a query that falls in the first domain of the client's search list, kdns tries each domain of the list in turn. The
first name that is not NXDOMAIN becomes the answer, with a CNAME from the name in the question.

## Syntax

    autopath [ZONES...] RESOLV-CONF|@PLUGIN

* ZONES are the zones it works in. Default: the block's zones.
* RESOLV-CONF is a file whose `search` line is the list of all clients; `@kubernetes` takes it from the Pod that asks,
  which needs `pods verified` in `kubernetes`, and clients that come with their own addresses.

## Examples

~~~ corefile
.:1053 {
    autopath @kubernetes
    kubernetes cluster.local {
        manifests cluster.yaml
        pods verified
    }
}
~~~

## Metrics

* `coredns_autopath_success_total{server}` - queries answered by walking.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns import files
from kdns.corefile import CorefileError, Directive, Position, ServerBlock
from kdns.corefile.keys import plugin_zones
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import MAX_NAME, ROOT, closest, is_within
from kdns.dns.query import Question
from kdns.dns.resolvconf import MAX_RESOLV_CONF, search_list
from kdns.dns.rrset import RRset
from kdns.metrics import Counter, Slot
from kdns.plugin import ALWAYS, Outcome, Pending, Plugin, Request, readers, then
from kdns.plugin.base import BlockInfo, Meter
from kdns.plugin.providers import SearchPath

SUCCESS: Final = Counter("coredns_autopath_success_total", "Counter of requests that did autopath.", ("server",))


@dataclass(frozen=True, slots=True)
class Config:
    """The zones, and where the list comes from: a file, or a plugin's name."""

    zones: tuple[bytes, ...]
    file: str
    plugin: str
    at: Position


class Autopath(Plugin):
    """Handles the first name of a search list."""

    name: ClassVar[str] = "autopath"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.no_block(directive)
        readers.arguments(directive, 1, None, "a file like /etc/resolv.conf, or @kubernetes")
        word = directive.args[-1]
        words = list(directive.args[:-1])
        zones = readers.wire_zones(plugin_zones(words) if words else block.zones)
        plugin = word.text[1:] if word.text.startswith("@") else ""
        return [Config(zones, "" if plugin else word.text, plugin, word.at)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.list: list[bytes] = []
        self.peer: SearchPath | None = None

    def load(self, block: BlockInfo) -> None:
        if self.config.file:
            try:
                self.list = [*search_list(files.read_text(block.path(self.config.file), MAX_RESOLV_CONF)), ROOT]
            except OSError as error:
                raise CorefileError(self.config.at, f"plugin/autopath: {self.config.file}: {error.strerror}") from None

    def wire(self, block: BlockInfo) -> None:
        if not self.config.plugin:
            return
        peers = [peer for peer in block.plugins if peer.name == self.config.plugin]
        if not peers:
            return  # as in CoreDNS: without its plugin it does nothing
        if not isinstance(peers[0], SearchPath):
            raise CorefileError(self.config.at, f"plugin/autopath: {self.config.plugin} has no search list to give")
        self.peer = peers[0]
        problem = self.peer.search_problem()
        if problem:
            raise CorefileError(self.config.at, f"plugin/autopath: {problem}")

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if request.depth or question.cls != iana.IN or closest(question.name, self.config.zones) is None:
            return None
        search = self.list or (self.peer.search_path(str(request.client[0])) if self.peer is not None else [])
        if not search or question.name == search[0] or not is_within(question.name, search[0]):
            return None
        walk = SearchListWalk(self, request, question.name[: len(question.name) - len(search[0])], search)
        walk.next()
        return walk.result

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        slot: Slot | None = request.slots[self.position]
        if slot is None:
            return None

        def succeeded(asked: int, said: int) -> None:
            slot[0] += 1

        return succeeded


class SearchListWalk:
    """One query on its way through the list."""

    def __init__(self, plugin: Autopath, request: Request, base: bytes, search: list[bytes]) -> None:
        self.plugin = plugin
        self.request = request
        self.names = [base + suffix for suffix in search if len(base) + len(suffix) <= MAX_NAME]
        self.pos = -1
        self.first: Outcome | None = None
        self.result = Pending()

    def next(self) -> None:
        self.pos += 1
        if self.pos >= len(self.names):
            self.result.resolve(self.first)
            return
        question = self.request.question
        found = then(
            self.request.below(self.plugin, Question(self.names[self.pos], question.type, question.cls)), self.on_result
        )
        if type(found) is Pending:
            found.add(self.failed)

    def failed(self, value: object) -> None:
        """An exception in what follows a reply is the query's."""
        if isinstance(value, BaseException):
            self.result.resolve(value)

    def on_result(self, outcome: Outcome) -> None:
        if type(outcome) is Answer and outcome.rcode == iana.NXDOMAIN:
            if self.pos == 0:
                self.first = outcome
            self.next()
            return
        if type(outcome) is not Answer or self.pos == 0:
            self.result.resolve(outcome)
            return
        slot = SUCCESS.slot(self.request.server.label)
        slot[0] += 1
        self.request.slots[self.plugin.position] = slot
        asked, target = self.request.question.name, self.names[self.pos]
        ttl = outcome.answer[0].ttl if outcome.answer else 0
        cname = RRset(asked, iana.CNAME, ttl, (target,))
        # Nobody has validated the CNAME (RFC 4035, section 3.2.3).
        flags = outcome.flags & ~iana.AD
        self.result.resolve(outcome.replace(flags=flags, answer=(cname, *outcome.answer), local=True, validity=ALWAYS))
