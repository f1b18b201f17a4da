"""searchpath - walks a Pod's search list for it, so that an outside name takes one query and not eight.

A Pod that looks up `api.example.com` asks for `api.example.com.NAMESPACE.svc.ZONE` first (`ndots:5`), and for three to
eight more names after that, each for A and AAAA. The first name already says which namespace asks, so the server walks
the rest of the list itself and answers at once: a CNAME to the name that exists, and its records. It needs no list of
Pods and no client's address, and answers the same on every replica. Not part of CoreDNS; off unless configured.

## Syntax

    searchpath [ZONES...] {
        suffixes SUFFIX...
        single_labels
        except NAMESPACE...
        lookups N
        timeout DURATION
    }

* ZONES are cluster zones it works in; default all of the block's `kubernetes`.
* `suffixes` are what the nodes' resolv.conf adds to the search list behind the cluster's own.
* `single_labels` also walks for names of one label; by default a name needs two or more.
* `except` leaves Pods of these namespaces alone.
* `lookups` is the most questions to upstreams for one query. Default 4.
* `timeout` is the time for all of them. Default 1.5s. When it is over, or an upstream fails, the Pod gets the plain
  NXDOMAIN and walks on itself.

It applies to `X.NS.svc.ZONE` once the cluster is synced, if namespace NS exists, the last label of X is not the name of
any Service or Namespace, and no label begins with an underscore. A name exists if it is not NXDOMAIN for A or for AAAA;
that is decided the same for all types.

CNI policies that read DNS answers by name (Cilium's toFQDNs) see a CNAME from a cluster name: the namespaces they apply
to belong into `except`.

## Examples

~~~ corefile
.:1053 {
    searchpath {
        suffixes corp.example.org
        except kube-system
    }
    kubernetes cluster.local {
        manifests cluster.yaml
    }
    forward . 127.0.0.1:5301
    cache 30
}
~~~

## Metrics

* `kdns_searchpath_answers_total{}` - queries answered by walking; `kdns_searchpath_misses_total{}` - walks that ended in
  the plain answer.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, NamedTuple, cast

from kdns.corefile import Directive
from kdns.dns import iana
from kdns.dns.answer import Answer, behind_alias
from kdns.dns.name import MAX_NAME, is_within
from kdns.dns.query import Question
from kdns.dns.rrset import RRset
from kdns.metrics import Counter
from kdns.pipeline import Outcome, Pending, Plugin, Request, setup, then
from kdns.pipeline.block import Block, BlockKeys
from kdns.pipeline.plugin import looks_at_client, overrides
from kdns.pipeline.protocols import ClusterNames, SearchBase
from kdns.pipeline.request import Alive, Repeat
from kdns.pipeline.run import asking_order
from kdns.upstream.deadlines import Deadlines

LOOKUPS: Final = 4
# Seconds for which a walk's end is remembered, and the most walks: names that a pool of Pods asks for again and again.
MEMORY: Final = 5.0
MAX_REMEMBERED: Final = 8192
TIMEOUT: Final = 1.5  # seconds; a stub resolver waits five, and walks on itself if we give up
# Types that are about zones and not about what a Pod connects to.
_LEFT_OUT: Final = frozenset((
    iana.DS, iana.DNSKEY, iana.RRSIG, iana.NSEC, 50, 51, iana.SOA, iana.NS, iana.ANY, iana.AXFR, iana.IXFR,
))  # fmt: skip
_OPTIONS: Final = ("suffixes", "single_labels", "except", "lookups", "timeout")

ANSWERS: Final = Counter("kdns_searchpath_answers_total", "Queries answered by walking the search list.")
MISSES: Final = Counter("kdns_searchpath_misses_total", "Walks that ended in the plain answer.")


@dataclass(frozen=True, slots=True)
class Config:
    """What the directive says. `zones` are wire names (empty: all); `excepted` lower-cased labels; `timeout` in seconds."""

    zones: frozenset[bytes] = frozenset()
    suffixes: tuple[bytes, ...] = ()
    single_labels: bool = False
    excepted: frozenset[bytes] = frozenset()
    lookups: int = LOOKUPS
    timeout: float = TIMEOUT


class Searchpath(Plugin):
    """Answers the first name of a search list with what the list leads to."""

    name: ClassVar[str] = "searchpath"
    client_dependent = False

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[Config]:
        directive = setup.once(directives)
        zones = frozenset(setup.zone_names(directive.args, block)) if directive.args else frozenset()
        found: dict[str, object] = {}
        for line in directive.body or ():
            name = line.name.text
            if name == "suffixes":
                setup.arguments(line, 1, None, "domain names")
                found["suffixes"] = tuple(setup.name(word) for word in line.args)
            elif name == "single_labels":
                setup.arguments(line, 0, 0)
                found["single_labels"] = True
            elif name == "except":
                found["excepted"] = frozenset(word.lower().encode() for word in setup.arguments(line, 1, None, "namespaces"))
            elif name == "lookups":
                found["lookups"] = setup.integer(setup.one(line), 1, 16)
            elif name == "timeout":
                found["timeout"] = setup.seconds(setup.one(line, "a duration"), 0.01)
            else:
                raise setup.unknown(line, _OPTIONS)
        return [Config(zones, **found)]  # type: ignore[arg-type]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.clusters: list[ClusterNames] = []
        self.deadlines = Deadlines()
        self.remembered: dict[bytes, _Found] = {}
        self.remembers = False
        self.alone: set[ClusterNames] = set()
        self.walking: dict[bytes, _Walk] = {}  # by the name that was asked for

    def advice(self) -> Sequence[str]:
        """A hint for clusters with policies by name."""
        if self.config.excepted:
            return ()
        return (
            "searchpath answers a cluster name with a CNAME: where a CNI policy reads DNS answers by name (Cilium toFQDNs), put "
            "the namespaces it applies to into `except`",
        )

    def wire(self, block: Block) -> None:
        self.clusters = block.all(ClusterNames)  # type: ignore[type-abstract]
        self.alone = {cluster for cluster in self.clusters if self._decides_alone(block, cluster)}
        # Where a plugin looks at the client, one client's walk says nothing about another's.
        blocks = block.siblings or [block]
        self.remembers = not any(b.admits or any(looks_at_client(p) for p in b.plugins) for b in blocks)

    def _decides_alone(self, block: Block, cluster: ClusterNames) -> bool:
        """Whether nobody but this plugin of the cluster has a say in what its names come to."""
        plugins = block.plugins
        asked = [plugins[i] for i in asking_order(plugins) if plugins[i] is not self]
        owner = cast(Plugin, cluster)
        if asked[:1] != [owner]:
            return False
        above = plugins[: plugins.index(owner)]
        if any(overrides(plugin, "finish") and plugin.finishes_own and plugin.finishes_denials for plugin in above):
            return False
        elsewhere = [zone for other in block.siblings if other is not block for zone in other.zones]
        return not any(is_within(zone, own) for zone in elsewhere for own in cluster.cluster_zones())

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if request.depth or question.type in _LEFT_OUT or question.cls != iana.IN:
            return None
        found = self.remembered.get(question.name)
        if found is not None and (found.until <= request.now or found.version != found.cluster.version):
            found = None
        if found is not None and not found.target:
            MISSES.slot()[0] += 1
            return None
        for cluster in self.clusters:
            base = cluster.search_base(question.name, question.starts)
            if base is not None:
                if not self._applies(cluster, base):
                    return None
                if found is not None:
                    return self._again(request, base, cluster, found)
                under_way = self.walking.get(question.name)
                if under_way is not None and under_way.version == cluster.version:
                    return self._follow(request, base, cluster, under_way)
                return self._walk(request, base, cluster)
        return None

    def _follow(self, request: Request, base: SearchBase, cluster: ClusterNames, walk: "_Walk") -> Pending:
        """What a walk for the same name comes to that has begun already (for AAAA, most of the time, that of A)."""
        result = Pending()

        def decided() -> None:
            found = self.remembered.get(request.question.name)
            if found is not None and found.target and found.version == cluster.version:
                then(self._again(request, base, cluster, found), result.resolve)
            else:
                MISSES.slot()[0] += 1
                result.resolve(None)

        walk.followers.append(decided)
        return result

    def _applies(self, cluster: ClusterNames, base: SearchBase) -> bool:
        config = self.config
        labels = base.labels
        if len(labels) < (1 if config.single_labels else 2) or base.namespace in config.excepted:
            return False
        if config.zones and base.zone not in config.zones:
            return False
        if any(label.startswith(b"_") for label in labels):
            return False
        return not cluster.is_cluster_label(labels[-1])

    def _again(
        self, request: Request, base: SearchBase, cluster: ClusterNames, found: "_Found"
    ) -> Outcome | Awaitable[Outcome | None]:
        """The answer where a walk's end is remembered: the target's; a new walk if that is none any more."""
        child = request.child(Question(found.target, request.question.type))

        def came(outcome: Outcome) -> Outcome | Awaitable[Outcome | None]:
            if type(outcome) is not Answer or outcome.rcode != iana.NOERROR or outcome.flags & iana.TC:
                return self._walk(request, base, cluster)
            answer = led_to(request, base, found.target, outcome)
            repeat = child.repeat
            if repeat is not None and repeat.answer is outcome:
                held = _Held(repeat.holder, cluster, found.version)
                request.repeat = Repeat(answer, held, min(repeat.until, found.until), partial(_repeated, repeat.settle))
            return answer

        led: Outcome | Awaitable[Outcome | None] = then(request.server.route(child), came)
        return led

    def remember(self, walk: "_Walk", target: bytes, seconds: float = MEMORY) -> None:
        """Notes where a walk ended."""
        if self.remembers and seconds > 0:
            if len(self.remembered) >= MAX_REMEMBERED:
                self.remembered.clear()
            request = walk.request
            self.remembered[request.question.name] = _Found(
                target, request.now + min(seconds, MEMORY), walk.version, walk.cluster
            )

    def _walk(self, request: Request, base: SearchBase, cluster: ClusterNames) -> Pending:
        # Where the cluster denies these names whatever they are, and nobody else is asked for them, they are not asked for.
        denied = cluster in self.alone and cluster.has_nothing_below(base.labels[-1])
        walk = _Walk(self, request, base, cluster, self.candidates(base, denied))
        deadline = self.deadlines.add(self.config.timeout, walk.give_up)
        walk.result.add(lambda _: deadline.cancel())
        if self.remembers:
            self.walking[request.question.name] = walk
        walk.next()
        return walk.result

    def candidates(self, base: SearchBase, denied: bool) -> list[bytes]:
        """The names of the search list behind the first, in the client's order; without the cluster's where those are denied."""
        prefix = base.prefix
        cluster = () if denied else (b"\x03svc" + base.zone, base.zone)
        suffixes = (*cluster, *self.config.suffixes, b"\0")
        return [prefix + suffix for suffix in suffixes if len(prefix) + len(suffix) <= MAX_NAME]


class _Found(NamedTuple):
    """Where a walk ended: valid until a moment (monotonic seconds), and for one version of the cluster's names.

    `target` is empty where it ended nowhere: then the plain answer is given.
    """

    target: bytes
    until: float
    version: int
    cluster: ClusterNames


class _Held:
    """Who holds an answer of ours: the cache its target's, and the cluster the names that decided the walk."""

    __slots__ = ("cluster", "holder", "version")

    def __init__(self, holder: Alive, cluster: ClusterNames, version: int) -> None:
        self.holder = holder
        self.cluster = cluster
        self.version = version

    @property
    def alive(self) -> bool:
        return self.holder.alive and self.cluster.version == self.version


def _repeated(settle: Callable[[int, int], None], asked: int, said: int) -> None:
    ANSWERS.slot()[0] += 1
    settle(asked, said)


def led_to(request: Request, base: SearchBase, target: bytes, outcome: Answer) -> Answer:
    """The answer that a name leads to a target by: a CNAME, and the target's records."""
    ANSWERS.slot()[0] += 1
    name = request.question.name
    if outcome.body is not None and outcome.name == target:
        made = behind_alias(name, target, outcome.body, base.ttl)
        if made is not None:
            answer = Answer(iana.NOERROR, iana.AA | iana.RA, own=True, name=name, body=made)
            if made.counts[0] == 2:
                answer.turns = ()  # one address has no other order
            return answer
    # A name that exists but not with this type is NODATA behind its CNAME, never NXDOMAIN.
    ttls = [base.ttl, *(rrset.ttl for rrset in outcome.answer or outcome.authority)]
    cname = RRset(name, iana.CNAME, min(ttls), (target,))
    authority = () if outcome.answer else outcome.authority
    return Answer(iana.NOERROR, iana.AA | iana.RA, (cname, *outcome.answer), authority, own=True)


class _Walk:
    """One query on its way through the candidates."""

    __slots__ = ("base", "cluster", "denied", "followers", "left", "names", "plugin", "pos", "request", "result", "version")

    def __init__(self, plugin: Searchpath, request: Request, base: SearchBase, cluster: ClusterNames, names: list[bytes]) -> None:
        self.cluster = cluster
        self.version = cluster.version
        self.plugin = plugin
        self.request = request
        self.base = base
        self.names = names
        self.pos = -1
        self.left = plugin.config.lookups
        self.followers: list[Callable[[], None]] = []  # called when it is known where the walk ends
        self.denied = MEMORY  # seconds for which what was denied so far stays so
        self.result = Pending()

    def next(self) -> None:
        """Asks for the next candidate, A first: whether a name exists is decided the same way for all types."""
        self.pos += 1
        if self.pos >= len(self.names):
            # No candidate exists: so it is for as long as the denials may be kept (RFC 2308, section 5).
            self.plugin.remember(self, b"", self.denied)
            self.give_up()
        else:
            self._ask(iana.A, self._first)

    def _ask(self, qtype: int, came: Callable[[Outcome], None]) -> None:
        if self.left <= 0 or self.result.done:
            self.give_up()
            return
        then(self.request.lookup(self.names[self.pos], qtype), came)

    def _first(self, outcome: Outcome) -> None:
        if not self._counts(outcome):
            return
        assert type(outcome) is Answer
        if outcome.rcode == iana.NXDOMAIN:
            if outcome.own:
                self.next()
            else:
                self.denied = min(self.denied, *(line[2] for line in outcome.records()[1]), MEMORY)
                self._ask(iana.AAAA, self._second)
        else:
            self._exists()
            if self.request.question.type == iana.A:
                self._found(outcome)
            else:
                self._ask(self.request.question.type, self._last)

    def _second(self, outcome: Outcome) -> None:
        """AAAA of a name that has no A: some servers deny a name for one type only."""
        if not self._counts(outcome):
            return
        assert type(outcome) is Answer
        if outcome.rcode == iana.NXDOMAIN:
            self.next()
        else:
            self._exists()
            if self.request.question.type == iana.AAAA:
                self._found(outcome)
            else:
                self._ask(self.request.question.type, self._last)

    def _last(self, outcome: Outcome) -> None:
        if self._counts(outcome):
            assert type(outcome) is Answer
            self._found(outcome)

    def _counts(self, outcome: Outcome) -> bool:
        """Whether an outcome says something; if not, the walk is over."""
        if type(outcome) is not Answer or outcome.rcode not in (iana.NOERROR, iana.NXDOMAIN) or outcome.flags & iana.TC:
            self.give_up()
            return False
        if not outcome.own:
            self.left -= 1
        return not self.result.done

    def _exists(self) -> None:
        """The walk ends at this candidate, whatever is asked for."""
        self.plugin.remember(self, self.names[self.pos])
        self._decided()

    def _found(self, outcome: Answer) -> None:
        self.result.resolve(led_to(self.request, self.base, self.names[self.pos], outcome))

    def give_up(self) -> None:
        """The plain answer: the plugins below give it."""
        if not self.result.done:
            MISSES.slot()[0] += 1
            self.result.resolve(None)
            self._decided()

    def _decided(self) -> None:
        """From now on who asks for this name walks himself, or is told what is remembered; so are those who waited."""
        walking, name = self.plugin.walking, self.request.question.name
        if walking.get(name) is self:
            del walking[name]
        followers, self.followers = self.followers, []
        for each in followers:
            each()
