"""The plugin `tenants`: what each client may see of a cluster's names.

Theory of operation. A client's address leads to a namespace (kdns.plugin.clients), the namespace to a View, the set of
namespaces it sees. Views are worked out when they are first asked for, and all forgotten when namespaces, policies or
the Services of this server change. A View's number is the reply cache's audience: namespaces that see the same share
their replies, and a number is never used again, so no reply outlives what it was made by.

A question for a name goes on if one of those whose name it is may be seen; else it gets what the plugin that serves it
says of a name that does not exist. PTR records that point to both are thinned out on their way up. A target of a CNAME
is looked up as the same client, through this plugin again.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final

from kdns import log
from kdns.corefile import CorefileError, Directive, ServerBlock
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.name import offsets, to_text
from kdns.kube.cluster import ServiceState
from kdns.kube.objects import Pod
from kdns.metrics import Counter
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, then
from kdns.plugin.base import BlockInfo, ListenerOptions, Meter
from kdns.plugin.clients import EXEMPT, NOBODY, Clients
from kdns.plugin.providers import (
    NO_SERVICE,
    WATCH_LABELS,
    WATCH_PODS,
    WATCH_POLICIES,
    NamesNamespaces,
    Owner,
    ServesCluster,
)
from kdns.plugin.runtime import Runtime
from kdns.plugins.tenants import config as _config
from kdns.plugins.tenants.config import Config
from kdns.plugins.tenants.visibility import Visibility

HIDDEN: Final = Counter(
    "kdns_tenants_hidden_total", "Queries whose name was hidden from the client.", ("server", "client")
)
_PROHIBITED: Final = edns.extended_error(edns.PROHIBITED)
# What every Pod needs: the API server's Service, and those of the cluster's DNS as they are usually called.
_SYSTEM: Final = (Owner(b"default", b"kubernetes"), Owner(b"kube-system", b"kube-dns"))
_NODE_CACHE: Final = "node-local-dns"

_log: Final = log.plugin("tenants")
Handled = Outcome | Awaitable[Outcome | None] | None


class View:
    """What some clients see: labels of namespaces (None: all), and a number that stands for it."""

    __slots__ = ("names", "number", "waits")

    def __init__(self, names: frozenset[bytes] | None, number: int, waits: bool = False) -> None:
        self.names = names
        self.number = number
        self.waits = waits  # whether it is not known yet who asks


class Tenants(Plugin):
    """Hides the names of others."""

    name: ClassVar[str] = "tenants"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        return _config.parse(directives, block)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.source: ServesCluster | None = None
        self.namers: list[NamesNamespaces] = []
        self.clients = Clients(config.exempt)
        self.state: Visibility | None = None
        self.views: dict[str | None, View] = {}
        self.numbers: dict[frozenset[bytes] | None, int] = {}
        self.number = 0
        self.system: frozenset[Owner] = frozenset(_SYSTEM)
        self.warned = False

    def watches(self) -> frozenset[str]:
        """What it wants of the cluster."""
        wanted = {WATCH_PODS}
        if self.config.by or self.config.policies:
            wanted.add(WATCH_LABELS)
        if self.config.policies:
            wanted.add(WATCH_POLICIES)
        return frozenset(wanted)

    def check(self, block: BlockInfo) -> None:
        if not block.all(ServesCluster):
            raise CorefileError(self.config.at, "tenants: it needs the plugin kubernetes in the same server block")

    def wire(self, block: BlockInfo) -> None:
        self.source = block.all(ServesCluster)[0]
        self.namers = block.all(NamesNamespaces)
        if self.config.zone and self.config.zone not in self.source.cluster_zones():
            zones = " ".join(map(to_text, self.source.cluster_zones()))
            text = to_text(self.config.zone)
            raise CorefileError(self.config.at, f"tenants: {text} is not a zone of the block's kubernetes ({zones})")
        if option := self.source.selects():
            raise CorefileError(
                self.config.at,
                f"tenants must know all Pods and namespaces, and `{option}` of kubernetes keeps some away",
            )

    def advice(self) -> Sequence[str]:
        policies = ", namespaces and networkpolicies" if self.config.policies else " and namespaces"
        return (
            f"tenants needs the rights to list and watch pods{policies}; behind a NodeLocal DNSCache, or anything else "
            f"that asks for many, tenants are not told apart",
        )

    def listener(self) -> ListenerOptions:
        return ListenerOptions(audience=self.audience)

    async def start(self, runtime: Runtime) -> None:
        self._attach()

    async def stop(self) -> None:
        self.clients.detach(self)
        self.source = None
        self.namers = []
        self._forget()

    # Views.

    def audience(self, client: tuple[Any, ...]) -> int:
        """The number of what a client sees."""
        # Asked for every query, so the usual case, a Pod that is known, is written out here.
        source, clients = self.source, self.clients
        if source is not None and source.cluster is clients.cluster:
            packed = clients.packed.get(client[0])
            pod = clients.pods.get(packed) if packed is not None else None
            if type(pod) is Pod and not pod.host:
                view = self.views.get(pod.namespace)
                if view is not None:
                    return view.number
        return self.view(client[0]).number

    def view(self, host: str) -> View:
        """What a client sees."""
        source = self.source
        if source is not None and source.cluster is not self.clients.cluster:
            self._attach()
        return self._of(self.clients.namespace(host))

    def _of(self, namespace: str | None) -> View:
        found = self.views.get(namespace)
        return self._made(namespace) if found is None else found

    def _made(self, namespace: str | None) -> View:
        assert self.clients.cluster is not None
        if self.state is None:
            self.state = Visibility(self.config, self.clients.cluster)
        seen: frozenset[str] | None
        if namespace == EXEMPT:
            seen = None
        elif namespace is None:
            seen = self.state.public
        elif namespace == NOBODY:
            seen = None if self.config.unknown else self.state.public
        else:
            seen = self.state.of(namespace)
        names = frozenset(name.encode() for name in seen) if seen is not None else None
        if namespace is None or namespace == NOBODY:
            # Numbers of their own: what such clients get for a hidden name is not what a Pod gets.
            self.number += 1
            view = View(names, self.number, namespace is None)
        else:
            number = self.numbers.get(names)
            if number is None:
                self.number += 1
                number = self.numbers[names] = self.number
            view = View(names, number)
        self.views[namespace] = view
        return view

    def _attach(self) -> None:
        """Follows the cluster that is served now."""
        if self.source is None:
            return
        self.clients.attach(self.source.cluster, self)
        self._forget()
        self._look_around()

    def _forget(self) -> None:
        self.views = {}
        self.numbers = {}
        self.state = None

    def _look_around(self) -> None:
        """Says what is odd, once there is something to look at."""
        cluster = self.clients.cluster
        if cluster is None or not cluster.synced or self.warned:
            return
        self.warned = True
        named = {*self.config.share, *(name for pair in self.config.allow for name in pair)}
        for name in sorted(named - cluster.namespaces):
            _log.warning(f"there is no namespace {name} (yet), which share or allow names")
        if any(pod.name.startswith(_NODE_CACHE) for pod in cluster.pods.values()):
            _log.warning("a NodeLocal DNSCache runs: tenants are not told apart behind it")

    # A watcher of the cluster.

    def entry_changed(self, entry: ServiceState, addresses: list[bytes]) -> None:
        if self.source is None:
            return
        own = [
            Owner(found.namespace.lower().encode(), found.name.lower().encode())
            for found in self.source.server_services()
        ]
        system = frozenset((*_SYSTEM, *own))
        if system != self.system:
            self.system = system
            self._forget()

    def namespace_changed(self, name: str) -> None:
        self._forget()

    def pods_changed(self) -> None:
        self.clients.pods_changed()

    def freshness_changed(self) -> None:
        self._look_around()

    # Queries.

    def handle(self, request: Request) -> Handled:
        question = request.question
        if question.type in (iana.AXFR, iana.IXFR):
            return self._transfer(request)
        for namer in self.namers:
            owners = namer.owners(question.name, question.starts)
            if owners is not None:
                break
        else:
            return None
        view = self._view_of(request)
        if view.names is None:
            return None
        seen = [self._sees(view, owner) for owner in owners]
        if all(seen):
            return None
        if view.waits:
            return self._once_known(request, lambda: self._decided(request, namer, owners))
        return None if any(seen) else self._deny(request, namer)

    def _once_known(self, request: Request, decided: Callable[[], Handled]) -> Handled:
        """What is decided once it is known who asks, or that nobody can say."""
        pending = self.clients.wait(request._client[0])
        if pending is None:
            return decided()
        outcome: Handled = then(pending, lambda _: decided())
        return outcome

    def _decided(self, request: Request, namer: NamesNamespaces, owners: list[Owner]) -> Handled:
        """The outcome of a name, now that there is nothing to wait for."""
        view = self._view_of(request)
        if view.waits:
            view = self._of(NOBODY)
        if any(self._sees(view, owner) for owner in owners):
            return None
        return self._deny(request, namer)

    def _view_of(self, request: Request) -> View:
        request.audience(self.audience)
        return self.view(request._client[0])

    def _sees(self, view: View, owner: Owner) -> bool:
        if view.names is None or owner.namespace in view.names:
            return True
        if owner.service == b"":  # a namespace exists where anything in it does (RFC 8020, section 2)
            return any(owner.namespace == each.namespace for each in self.system)
        return owner.service != NO_SERVICE and owner in self.system

    def _deny(self, request: Request, namer: NamesNamespaces) -> Handled:
        pod = self._is_pod(request)
        self._count(request, pod)
        request.slots[self.position] = "pod" if pod else "unknown"
        if not pod:
            # It is not known who asks, so nothing may be said of what is there, least of all what a cache would keep.
            return RcodeOnly(iana.SERVFAIL, options=_PROHIBITED)
        if self.config.refuse:
            return RcodeOnly(iana.REFUSED, options=_PROHIBITED)
        outcome = namer.absent(request)
        if outcome is None and isinstance(namer, Plugin):
            return request.below(namer, request.question)
        return outcome

    def _is_pod(self, request: Request) -> bool:
        return self.clients.namespace(request._client[0]) not in (None, NOBODY)

    def _count(self, request: Request, pod: bool) -> None:
        HIDDEN.slot(request.server.label, "pod" if pod else "unknown")[0] += 1

    def _transfer(self, request: Request) -> Handled:
        """A zone is given whole or not at all."""
        if not any(request.question.name in namer.named_zones() for namer in self.namers):
            return None
        view = self._view_of(request)
        if view.waits:
            return self._once_known(request, lambda: self._transferred(request))
        return self._transferred(request)

    def _transferred(self, request: Request) -> Handled:
        view = self._view_of(request)
        if view.waits:
            view = self._of(NOBODY)
        if view.names is None:
            return None
        self._count(request, self._is_pod(request))
        return RcodeOnly(iana.REFUSED, options=_PROHIBITED)

    def on_answer(self, request: Request, answer: Answer) -> Answer:
        if request.question.type not in (iana.PTR, iana.ANY) or answer.rcode != iana.NOERROR:
            return answer
        if not any(rrset.type == iana.PTR for rrset in answer.answer):
            return answer
        view = self._view_of(request)
        if view.waits:
            view = self._of(NOBODY)
        if view.names is None:
            return answer
        kept = []
        for rrset in answer.answer:
            if rrset.type == iana.PTR:
                shown = tuple(target for target in rrset.rdatas if self._shows(view, target))
                if not shown:
                    continue
                rrset = rrset._replace(rdatas=shown)
            kept.append(rrset)
        if kept == list(answer.answer):
            return answer
        return answer.replace(answer=tuple(kept), validity=request.inherit(answer))

    def _shows(self, view: View, target: bytes) -> bool:
        """Whether a name that a PTR record points to may be seen."""
        name = target.lower()
        starts = offsets(name)
        for namer in self.namers:
            owners = namer.owners(name, starts)
            if owners is not None:
                return any(self._sees(view, owner) for owner in owners)
        return True

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        why = request.slots[self.position]
        if why is None:
            return None
        slot = HIDDEN.slot(request.server.label, why)

        def hidden(asked: int, said: int) -> None:
            slot[0] += 1

        return hidden

    def explain(self, request: Request) -> str:
        why = request.slots[self.position]
        if why is None:
            return ""
        if why == "unknown":
            return "hidden: the client is not a Pod, and `unknown deny` stands"
        return f"hidden from the namespace {self.clients.namespace(request._client[0])}, as if it did not exist"
