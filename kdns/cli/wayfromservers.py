"""Findings on the way from the servers to whom they ask: NetworkPolicies that cut off the upstreams or the API."""

from collections.abc import Iterator
from typing import Final

from kdns.cli.clusterstate import Object, State, labels_of, name_of
from kdns.cli.configmaps import is_loopback, served
from kdns.cli.finding import ERROR, WARNING, Finding
from kdns.cli.networkpolicies import Place, may_let_out, selects, types
from kdns.corefile import CorefileError, Directive
from kdns.plugins.forward.config import target

# The API's Service is at 443, its servers at 6443 where nobody says otherwise. Some networks apply policies before a
# Service's address becomes a server's, others after.
_API: Final = (Place("", 443, "TCP"), Place("", 6443, "TCP"))
_OVER_UDP: Final = ("quic", "https3")
# Options of `kubernetes` that say where objects come from: then the cluster's own API is not asked.
_ELSEWHERE: Final = frozenset(("endpoint", "kubeconfig", "manifests"))


def findings(state: State) -> Iterator[Finding]:
    """What NetworkPolicies on the servers cut off, each once."""
    told = set()
    for server in state.servers:
        if (server.get("spec") or {}).get("hostNetwork"):
            continue  # it has its node's address, to which networks apply no policy
        policies = [
            each
            for each in state.policies or ()
            if (each.get("metadata") or {}).get("namespace") == state.namespace
            and "Egress" in types(each)
            and selects(each, labels_of(server))
        ]
        if policies:
            for found in (*_upstreams(state, policies), *_api(state, policies)):
                if found.seen not in told:
                    told.add(found.seen)
                    yield found


def _upstreams(state: State, policies: list[Object]) -> Iterator[Finding]:
    for block in served(state) or ():
        for directive in block.directives.get("forward", ()):
            places = _places(directive, state.address)
            lost = {word: place for word, place in places.items() if not _any_lets_out(policies, place)}
            if lost:
                all_lost = len(lost) == len(places)
                yield _finding(
                    state,
                    policies,
                    ERROR if all_lost else WARNING,
                    lost,
                    "names that are forwarded there time out" if all_lost else "queries that are sent there time out",
                )
                continue
            # A truncated reply is asked for again over TCP (RFC 7766, section 5).
            tcp = {word: place._replace(protocol="TCP") for word, place in places.items() if "://" not in word}
            lost = {word: place for word, place in tcp.items() if not _any_lets_out(policies, place)}
            if lost:
                yield _finding(state, policies, WARNING, lost, "large answers fail")


def _finding(state: State, policies: list[Object], level: str, lost: dict[str, Place], means: str) -> Finding:
    ports = " and ".join(dict.fromkeys(f"{place.port}/{place.protocol}" for place in lost.values()))
    return Finding(
        level,
        "NetworkPolicy",
        f"{_names(policies)} in {state.namespace}: the DNS Pods may not send to port {ports} of their upstreams "
        f"{', '.join(lost)}",
        means,
        f"kubectl -n {state.namespace} get networkpolicy -o yaml    # an egress rule to them, port {ports}",
    )


def _places(directive: Directive, own: str) -> dict[str, Place]:
    """Where a `forward` sends queries first, by its words; those that loop are another rule's, and errors too."""
    out = {}
    forced = any(line.name.text == "force_tcp" for line in directive.body or ())
    for word in directive.args[1:]:
        try:
            where = target(word)
        except CorefileError:
            continue
        host = where.host.partition("%")[0]
        if is_loopback(host) or host == own:
            continue
        over_udp = where.transport in _OVER_UDP or (where.transport == "dns" and not forced)
        out[word.text] = Place(host, where.port, "UDP" if over_udp else "TCP")
    return out


def _api(state: State, policies: list[Object]) -> Iterator[Finding]:
    blocks = served(state)
    asking = [each for block in blocks or () for each in block.directives.get("kubernetes", ())]
    if blocks is not None and all(_is_elsewhere(each) for each in asking):
        return
    places = (*_API, *state.api_places)
    if not any(_any_lets_out(policies, place) for place in places):
        ports = " or ".join(dict.fromkeys(str(place.port) for place in places))
        yield Finding(
            ERROR,
            "NetworkPolicy",
            f"{_names(policies)} in {state.namespace}: the DNS Pods may not send to port {ports}/TCP of the API",
            "names of the cluster stay as they were, and a server that restarts knows none",
            f"kubectl -n {state.namespace} get networkpolicy -o yaml    # an egress rule to the addresses of: kubectl "
            f"get endpointslices -n default",
        )


def _is_elsewhere(directive: Directive) -> bool:
    return any(line.name.text in _ELSEWHERE for line in directive.body or ())


def _any_lets_out(policies: list[Object], place: Place) -> bool:
    return any(may_let_out(each, place) for each in policies)


def _names(policies: list[Object]) -> str:
    return ", ".join(name_of(each) for each in policies)
