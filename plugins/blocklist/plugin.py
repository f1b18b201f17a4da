"""The plugin `blocklist`: what is said in place of others of names that are on lists.

Theory of operation. `handle` looks the name up and gives an answer of its own, or lets it go on. All that it says holds
as long as no list changes: one validity stands for the lists, and replies are repeated without asking it again. Names
outside its zones depend on no list. Which namespace a client is of is the reply cache's audience, as with `tenants`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.dns import edns, iana, rdata
from kdns.dns.answer import Answer, Validity
from kdns.dns.errors import BadName
from kdns.dns.name import closest, from_labels, labels, offsets
from kdns.dns.rrset import RRset
from kdns.metrics import Counter
from kdns.namelist import DROP as DROPPED
from kdns.namelist import LISTED, NODATA, NXDOMAIN, PASS, RECORDS, TCP_ONLY, Hit
from kdns.plugin import ALWAYS, DROP, Outcome, Plugin, RcodeOnly, Request, then
from kdns.plugin.base import BlockInfo, ListenerOptions, Meter
from kdns.plugin.providers import WATCH_PODS, NamesNamespaces, ServesCluster
from kdns.plugin.runtime import Runtime
from kdns.plugins.blocklist import config as _config
from kdns.plugins.blocklist.config import Config
from kdns.plugins.blocklist.lists import Lists
from kdns.plugins.blocklist.scope import OUTSIDE, WAITS, Scope

BLOCKED: Final = Counter(
    "kdns_blocklist_blocked_total",
    "Queries that got something else, by list and by what.",
    ("server", "list", "action"),
)
_ACTIONS: Final = {
    NXDOMAIN: "nxdomain", NODATA: "nodata", DROPPED: "drop", TCP_ONLY: "tcp-only", RECORDS: "records", PASS: "pass",
}  # fmt: skip
_RNAME: Final = b"\6nobody\7invalid\0"  # RFC 2606, section 2: nobody reads mail there
_NEVER: Final = 3600  # the SOA's times for secondaries, of which there are none

Handled = Outcome | Awaitable[Outcome | None] | None


class Verdict:
    """What is done with a query, and why: for counting and explaining."""

    __slots__ = ("action", "hit", "source")

    def __init__(self, action: str, source: str, hit: Hit) -> None:
        self.action = action
        self.source = source
        self.hit = hit


class Blocklist(Plugin):
    """Answers for names that are on lists."""

    name: ClassVar[str] = "blocklist"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return _config.parse(directives, block)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.lists = Lists(config, str, self._changed)
        self.validity = Validity()  # of all that the lists say
        self.own: tuple[bytes, ...] = ()  # zones that are left alone
        self.scope = Scope(config) if config.clients else None
        self.options = edns.extended_error(config.code)

    # Life.

    def check(self, block: BlockInfo) -> None:
        if self.scope is not None:
            self.scope.check(block)

    def load(self, block: BlockInfo) -> None:
        self.lists = Lists(self.config, block.path, self._changed)
        self.lists.look()

    def wire(self, block: BlockInfo) -> None:
        if not self.config.written:
            zones = [zone for source in block.all(ServesCluster) for zone in source.cluster_zones()]
            zones += [zone for namer in block.all(NamesNamespaces) for zone in namer.named_zones()]
            self.own = tuple(dict.fromkeys(zones))
        if self.scope is not None:
            self.scope.wire(block)

    def watches(self) -> frozenset[str]:
        """What it wants of a cluster."""
        return frozenset((WATCH_PODS,)) if self.scope is not None else frozenset()

    def warnings(self) -> Sequence[str]:
        return self.lists.problems()

    def advice(self) -> Sequence[str]:
        if self.scope is None:
            return ()
        return (
            "blocklist with namespaces needs the right to list and watch pods; behind a NodeLocal DNSCache, or "
            "anything else that asks for many, namespaces are not told apart",
        )

    def listener(self) -> ListenerOptions | None:
        return ListenerOptions(audience=self.scope.audience) if self.scope is not None else None

    async def start(self, runtime: Runtime) -> None:
        if self.scope is not None:
            self.scope.attach()
        await self.lists.start()

    async def stop(self) -> None:
        self.lists.stop()
        if self.scope is not None:
            self.scope.detach()
            self.scope.source = None
        self.lists.changed = _nothing

    def _changed(self) -> None:
        self.validity.end()
        self.validity = Validity()

    # Queries.

    def handle(self, request: Request) -> Handled:
        question = request.question
        if not self._looks_at(question.name, question.type, question.cls):
            return None
        return self._for_client(request, lambda: self._judged(request), None)

    def _looks_at(self, name: bytes, qtype: int, cls: int) -> bool:
        """True for the names, types and classes that are none but the lists' business."""
        if cls != iana.IN or qtype in (iana.AXFR, iana.IXFR):
            return False
        if closest(name, self.config.zones) is None:
            return False
        return not self.own or closest(name, self.own) is None

    def _for_client(self, request: Request, judge: Callable[[], Handled], otherwise: Outcome | None) -> Handled:
        """What is judged if the lists are for this client, once it is known who asks."""
        scope = self.scope
        if scope is None:
            return judge()
        verdict = request.audience(scope.audience)
        if verdict != WAITS:
            return judge() if verdict != OUTSIDE else otherwise
        request.once()
        client = request._client
        pending = scope.wait(client)
        outcome: Handled = then(
            pending, lambda _: judge() if scope.settled(client) != OUTSIDE else otherwise
        )  # too many wait: at once
        return outcome

    def _judged(self, request: Request) -> Handled:
        request.depends_on(self.validity)
        question = request.question
        lists = self.lists
        if lists.allowing and lists.allowed(question.name, question.starts):
            return None
        found = lists.find(question.name, question.starts)
        return self._done(request, *found) if found is not None else None

    def _done(self, request: Request, source: str, hit: Hit) -> Handled:
        """What a name gets that a list says something of."""
        done = hit.done
        action = self.config.action if done == LISTED else _ACTIONS[done]
        if done == PASS or (done == TCP_ONLY and request.transport != "udp"):
            return None
        request.slots[self.position] = Verdict(action, source, hit)
        BLOCKED.slot(request.server.label, source, action)[0] += 1
        if action == "drop":
            return DROP
        if action == "tcp-only":
            return Answer(iana.NOERROR, iana.RA | iana.TC, local=True, options=self.options, validity=ALWAYS)
        if action == "refused":
            return Answer(iana.REFUSED, iana.RA, local=True, options=self.options, validity=ALWAYS)
        if action == "address":
            return self._records(request, hit, self._addresses())
        if action == "records":
            return self._records(request, hit, hit.records)
        return self._denial(hit, iana.NXDOMAIN if action == "nxdomain" else iana.NOERROR)

    def _addresses(self) -> list[tuple[int, int, list[bytes]]]:
        config = self.config
        found = ((iana.A, config.v4), (iana.AAAA, config.v6))
        return [(rtype, config.ttl, list(packed)) for rtype, packed in found if packed]

    def _denial(self, hit: Hit, rcode: int) -> Answer:
        """NXDOMAIN or NODATA, with an SOA that says how long it may be kept (RFC 2308, section 3).

        RA as a resolver's reply has it: we speak for no zone.
        """
        ttl = self.config.ttl
        soa = rdata.soa(hit.name, _RNAME, 1, _NEVER, _NEVER, _NEVER, ttl)
        authority = (RRset(hit.name, iana.SOA, ttl, (soa,)),)
        return Answer(rcode, iana.RA, (), authority, local=True, options=self.options, validity=ALWAYS)

    def _records(self, request: Request, hit: Hit, records: Sequence[tuple[int, int, list[bytes]]]) -> Handled:
        """Records in place of the name's own."""
        question = request.question
        name, qtype = question.name, question.type
        answer = tuple(
            RRset(name, rtype, ttl, tuple(rdatas)) for rtype, ttl, rdatas in records if qtype in (rtype, iana.ANY)
        )
        if answer:
            return Answer(iana.NOERROR, iana.RA, answer, local=True, options=self.options, validity=ALWAYS)
        found = next((record for record in records if record[0] == iana.CNAME), None)
        if found is None:
            return self._denial(hit, iana.NOERROR)
        target = _target(found[2][0], name)
        if target is None:
            return RcodeOnly(iana.SERVFAIL, "the policy's CNAME leads to a name that is too long")
        alias = RRset(name, iana.CNAME, found[1], (target,))
        theirs = request.lookup(target.lower(), qtype)
        outcome: Handled = then(theirs, lambda outcome: self._joined(request, alias, outcome))
        return outcome

    def _joined(self, request: Request, alias: RRset, found: Outcome) -> Outcome:
        """A CNAME of a policy and what it leads to (RFC 1034, section 3.6.2)."""
        if type(found) is not Answer:
            return found
        sections = found.sections
        return Answer(
            found.rcode, iana.RA, (alias, *sections[0]), sections[1], local=True, options=self.options,
            validity=request.inherit(found),
        )  # fmt: skip

    def on_answer(self, request: Request, answer: Answer) -> Answer | Awaitable[Answer]:
        if not self.config.cnames or answer.rcode != iana.NOERROR:
            return answer
        question = request.question
        if not self._looks_at(question.name, question.type, question.cls):
            return answer
        targets = [record.target for record in answer.records()[0] if record.type == iana.CNAME]
        if not targets:
            return answer
        return self._for_client(request, lambda: self._behind(request, answer, targets), answer)  # type: ignore[return-value]

    def _behind(self, request: Request, answer: Answer, targets: Sequence[bytes]) -> Handled:
        """An answer whose CNAMEs lead to these names, or what it is replaced by."""
        request.depends_on(self.validity)
        lists = self.lists
        question = request.question
        if lists.allowed(question.name, question.starts):
            return answer
        for target in targets:
            starts = offsets(target)
            if not self._looks_at(target, question.type, question.cls) or lists.allowed(target, starts):
                continue
            found = lists.find(target, starts)
            if found is None or found[1].done in (PASS, TCP_ONLY, DROPPED):
                continue
            source, hit = found
            action = self.config.action if hit.done == LISTED else _ACTIONS[hit.done]
            request.slots[self.position] = Verdict(action, source, hit)
            BLOCKED.slot(request.server.label, source, action)[0] += 1
            if action == "address":
                return self._records(request, Hit(hit.done, question.name, False, ()), self._addresses())
            if action == "refused":
                return Answer(iana.REFUSED, iana.RA, local=True, options=self.options, validity=ALWAYS)
            rcode = iana.NOERROR if action == "nodata" else iana.NXDOMAIN
            return self._denial(Hit(hit.done, question.name, False, ()), rcode)
        return answer

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        verdict = request.slots[self.position]
        if verdict is None:
            return None
        slot = BLOCKED.slot(request.server.label, verdict.source, verdict.action)

        def blocked(asked: int, said: int) -> None:
            slot[0] += 1

        return blocked

    def explain(self, request: Request) -> str:
        verdict = request.slots[self.position]
        if verdict is not None:
            return f"blocked by {verdict.source}, which lists {verdict.hit}: {verdict.action}"
        return ""


def _target(target: bytes, name: bytes) -> bytes | None:
    """What a policy's CNAME leads to: `*` in it stands for the name that was asked. None where that is too long."""
    if not target.startswith(b"\1*"):
        return target
    try:
        return from_labels([*labels(name), *labels(target[2:])])
    except BadName:
        return None


def _nothing() -> None:
    """After the end nobody is told of changes."""
