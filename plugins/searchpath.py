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
* `suffixes` are the domains that the nodes' resolv.conf adds to the search list after the cluster's own.
* `single_labels` also walks for names of one label; by default a name needs two or more.
* `except` leaves Pods of these namespaces alone.
* `lookups` is the most questions to upstreams for one query. Default 4.
* `timeout` is the time for all of them. Default 1.5s. When it is over, or an upstream fails, the Pod gets the plain
  NXDOMAIN and walks its list itself.

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

* `kdns_searchpath_answers_total{}` - queries answered by walking; `kdns_searchpath_misses_total{}` - walks that ended
  in the plain answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from kdns.corefile import Directive, ServerBlock
from kdns.deadlines import Deadlines
from kdns.dns import iana
from kdns.dns.answer import Answer, Validity, with_cname_prefix
from kdns.dns.name import MAX_NAME, closest
from kdns.dns.render import RecordSummary
from kdns.dns.rrset import RRset
from kdns.metrics import Counter, Slot
from kdns.plugin import ALWAYS, Outcome, Pending, Plugin, Request, readers, then
from kdns.plugin.base import BlockInfo, Meter
from kdns.plugin.providers import ClusterNames, SearchBase

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
    """The settings of the directive. `zones` are wire names (empty: all); `excepted` lower-cased labels; `timeout` in
    seconds.
    """

    zones: frozenset[bytes] = frozenset()
    suffixes: tuple[bytes, ...] = ()
    single_labels: bool = False
    excepted: frozenset[bytes] = frozenset()
    lookups: int = LOOKUPS
    timeout: float = TIMEOUT


class Searchpath(Plugin):
    """Answers the first name of a search list with what the list leads to."""

    name: ClassVar[str] = "searchpath"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        zones = frozenset(readers.zone_names(directive.args, block)) if directive.args else frozenset()
        found: dict[str, object] = {}
        for line in directive.body or ():
            name = line.name.text
            if name == "suffixes":
                readers.arguments(line, 1, None, "domain names")
                found["suffixes"] = tuple(readers.name(word) for word in line.args)
            elif name == "single_labels":
                readers.arguments(line, 0, 0)
                found["single_labels"] = True
            elif name == "except":
                found["excepted"] = frozenset(
                    word.lower().encode() for word in readers.arguments(line, 1, None, "namespaces")
                )
            elif name == "lookups":
                found["lookups"] = readers.integer(readers.one(line), 1, 16)
            elif name == "timeout":
                found["timeout"] = readers.seconds(readers.one(line, "a duration"), 0.01)
            else:
                raise readers.unknown(line, _OPTIONS)
        return [Config(zones, **found)]  # type: ignore[arg-type]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.clusters: list[ClusterNames] = []
        self.deadlines = Deadlines()
        self.remembered: OrderedDict[bytes, Found] = OrderedDict()
        self.walking: dict[bytes, SearchListWalk] = {}  # by the name that was asked for

    def advice(self) -> Sequence[str]:
        """A hint for clusters with policies by name."""
        if self.config.excepted:
            return ()
        return (
            "searchpath answers a cluster name with a CNAME: where a CNI policy reads DNS answers by name (Cilium "
            "toFQDNs), put "
            "the namespaces it applies to into `except`",
        )

    def wire(self, block: BlockInfo) -> None:
        self.clusters = block.all(ClusterNames)

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        slot: Slot | None = request.slots[self.position]
        if slot is None:
            return None

        def again(asked: int, said: int) -> None:
            slot[0] += 1

        return again

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        if request.depth or question.type in _LEFT_OUT or question.cls != iana.IN:
            return None
        if not request.client_rd:
            return None  # without RD an upstream does not look, so it says nothing of what exists
        for cluster in self.clusters:
            if closest(question.name, cluster.cluster_zones()) is None:
                continue
            # Which names the cluster has decides whether and how the list is walked.
            request.depends_on(cluster.names)
            base = cluster.search_base(question.name, question.starts)
            if base is None or not self._applies(cluster, base):
                return None
            found = self.remembered.get(question.name)
            if found is not None and found.until > request.now and found.names is cluster.names:
                request.expires(found.until)
                if not found.target:
                    self.missed(request)
                    return None
                return self._again(request, base, cluster, found)
            under_way = self.walking.get(question.name)
            if under_way is not None and under_way.names is cluster.names:
                return self._follow(request, base, cluster, under_way)
            return self._walk(request, base, cluster)
        return None

    def missed(self, request: Request) -> None:
        """Counts a walk that ended in the plain answer."""
        slot = MISSES.slot()
        slot[0] += 1
        request.slots[self.position] = slot

    def _follow(self, request: Request, base: SearchBase, cluster: ClusterNames, walk: SearchListWalk) -> Pending:
        """The outcome of a walk for the same name that has begun already (for AAAA, most of the time, that of A)."""
        result = Pending()

        def decided() -> None:
            found = self.remembered.get(request.question.name)
            if found is not None and found.target and found.names is cluster.names:
                try:
                    then(self._again(request, base, cluster, found), result.resolve)
                except Exception as error:
                    result.resolve(error)  # this follower's alone
            else:
                self.missed(request)
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
        self, request: Request, base: SearchBase, cluster: ClusterNames, found: Found
    ) -> Outcome | Awaitable[Outcome | None]:
        """The answer where a walk's end is remembered: the target's; a new walk if that has none any more."""

        def on_target(outcome: Outcome) -> Outcome | Awaitable[Outcome | None]:
            if type(outcome) is not Answer or outcome.rcode != iana.NOERROR or outcome.flags & iana.TC:
                return self._walk(request, base, cluster)
            return self.led_to(request, base, found.target, outcome)

        led: Outcome | Awaitable[Outcome | None] = then(request.lookup(found.target, request.question.type), on_target)
        return led

    def led_to(self, request: Request, base: SearchBase, target: bytes, outcome: Answer) -> Answer:
        """The answer for a name whose list leads to a target: a CNAME, and the target's records."""
        slot = ANSWERS.slot()
        slot[0] += 1
        request.slots[self.position] = slot
        return answer_after_cname(request.question.name, base.ttl, target, outcome)

    def remember(self, walk: SearchListWalk, target: bytes, seconds: float = MEMORY) -> None:
        """Notes where a walk ended. Where anything of it was the client's own, it says nothing about another's."""
        request = walk.request
        if request.root.personal or seconds <= 0:
            return
        if len(self.remembered) >= MAX_REMEMBERED:
            self.remembered.popitem(last=False)
        until = request.now + min(seconds, MEMORY)
        self.remembered[request.question.name] = Found(target, until, walk.names)

    def _walk(self, request: Request, base: SearchBase, cluster: ClusterNames) -> Pending:
        walk = SearchListWalk(self, request, base, cluster.names, self.candidates(base))
        deadline = self.deadlines.add(self.config.timeout, walk.give_up)
        walk.result.add(lambda _: deadline.cancel())
        self.walking[request.question.name] = walk
        walk.next()
        return walk.result

    def candidates(self, base: SearchBase) -> list[bytes]:
        """The names of the search list behind the first, in the client's order."""
        prefix = base.prefix
        suffixes = (b"\x03svc" + base.zone, base.zone, *self.config.suffixes, b"\0")
        return [prefix + suffix for suffix in suffixes if len(prefix) + len(suffix) <= MAX_NAME]


class Found(NamedTuple):
    """Where a walk ended: valid until a moment (monotonic seconds), and for one state of the cluster's names.

    `target` is empty where it ended nowhere: then the plain answer is given.
    """

    target: bytes
    until: float
    names: Validity


def answer_after_cname(name: bytes, ttl: int, target: bytes, outcome: Answer) -> Answer:
    """A CNAME to a target, and the target's records. What the target depends on has been noted by its look-up."""
    if outcome.body is not None and outcome.name == target:
        made = with_cname_prefix(name, target, outcome.body, ttl)
        if made is not None:
            answer = Answer(iana.NOERROR, iana.AA | iana.RA, local=True, name=name, body=made, validity=ALWAYS)
            if outcome.summary is not None:
                least = int.from_bytes(made.data[6:10], "big")  # the CNAME's
                answer.summary = [RecordSummary(name, iana.CNAME, least, target), *outcome.summary]
            return answer
    # A name that exists but not with this type is NODATA behind its CNAME, never NXDOMAIN.
    ttls = [ttl, *(rrset.ttl for rrset in outcome.answer or outcome.authority)]
    cname = RRset(name, iana.CNAME, min(ttls), (target,))
    authority = () if outcome.answer else outcome.authority
    return Answer(iana.NOERROR, iana.AA | iana.RA, (cname, *outcome.answer), authority, local=True, validity=ALWAYS)


class SearchListWalk:
    """One query on its way through the candidates."""

    __slots__ = ("base", "candidates", "denied", "followers", "left", "names", "plugin", "pos", "request", "result")

    def __init__(
        self, plugin: Searchpath, request: Request, base: SearchBase, names: Validity, candidates: list[bytes]
    ) -> None:
        self.plugin = plugin
        self.request = request
        self.base = base
        self.names = names  # of the state of the cluster that it began with
        self.candidates = candidates
        self.pos = -1
        self.left = plugin.config.lookups
        self.followers: list[Callable[[], None]] = []  # called when it is known where the walk ends
        self.denied = MEMORY  # seconds for which what was denied so far stays so
        self.result = Pending()

    def next(self) -> None:
        """Asks for the next candidate, A first: whether a name exists is decided the same way for all types."""
        self.pos += 1
        if self.pos >= len(self.candidates):
            # No candidate exists: so it is for as long as the denials may be kept (RFC 2308, section 5).
            self.plugin.remember(self, b"", self.denied)
            self.give_up()
        else:
            self._ask(iana.A, self._first)

    def _ask(self, qtype: int, came: Callable[[Outcome], None]) -> None:
        if self.left <= 0 or self.result.done:
            self.give_up()
            return
        found = then(self.request.lookup(self.candidates[self.pos], qtype), came)
        if type(found) is Pending:
            found.add(self._failed)

    def _failed(self, value: object) -> None:
        """An exception in what follows a reply is the query's, and ends the walk."""
        if isinstance(value, BaseException) and not self.result.done:
            self.result.resolve(value)
            self._decided()

    def _first(self, outcome: Outcome) -> None:
        if not self._counts(outcome):
            return
        assert type(outcome) is Answer
        if outcome.rcode == iana.NXDOMAIN:
            if outcome.local:
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
        """True if an outcome says something; if not, the walk is over."""
        if type(outcome) is not Answer or outcome.rcode not in (iana.NOERROR, iana.NXDOMAIN) or outcome.flags & iana.TC:
            self.give_up()
            return False
        if not outcome.local:
            self.left -= 1
        return not self.result.done

    def _exists(self) -> None:
        """The walk ends at this candidate, whatever is asked for."""
        self.plugin.remember(self, self.candidates[self.pos])
        self._decided()

    def _found(self, outcome: Answer) -> None:
        self.result.resolve(self.plugin.led_to(self.request, self.base, self.candidates[self.pos], outcome))

    def give_up(self) -> None:
        """The plain answer: the plugins below give it."""
        if not self.result.done:
            self.plugin.missed(self.request)
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
