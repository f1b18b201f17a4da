"""NetworkPolicies (networking.k8s.io/v1), trimmed at decode to what says which namespaces the Pods of one may reach.

A rule whose ports are those of DNS alone is there so that names can be looked up at all; it opens no namespace.
"""

from typing import Any, Final, NamedTuple

from msgspec import Struct, field

from kdns.kube.selector import Term, terms

_DNS: Final = (53, "53", "dns", "dns-tcp")  # a port of DNS, by its number or by the names that DNS Pods give it


class RawExpression(Struct):
    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class RawSelector(Struct, rename="camel"):
    match_labels: dict[str, str] | None = None
    match_expressions: list[RawExpression] | None = None


class RawPeer(Struct, rename="camel"):
    namespace_selector: RawSelector | None = None
    pod_selector: RawSelector | None = None
    ip_block: Any = None


class RawPolicyPort(Struct, rename="camel"):
    port: int | str | None = None
    end_port: int | None = None


class RawEgress(Struct):
    to: list[RawPeer] | None = None
    ports: list[RawPolicyPort] | None = None


class RawPolicySpec(Struct, rename="camel"):
    pod_selector: RawSelector = field(default_factory=RawSelector)
    policy_types: list[str] | None = None
    egress: list[RawEgress] | None = None


class Policy(NamedTuple):
    """What a policy lets out. `every_pod`: it is for all Pods of its namespace. `everywhere`: a rule names no
    destination. `peers`: of each destination that is named by the labels of namespaces, what these must be; all of it.
    """

    namespace: str
    name: str
    every_pod: bool
    everywhere: bool
    peers: tuple[tuple[Term, ...], ...]


def egress_of(namespace: str, name: str, spec: RawPolicySpec) -> Policy | None:
    """A policy trimmed; None for one that does not bound egress."""
    types = spec.policy_types or (["Egress"] if spec.egress is not None else [])
    if "Egress" not in types:
        return None
    everywhere = False
    peers: list[tuple[Term, ...]] = []
    for rule in spec.egress or ():
        if rule.ports and all(port.port in _DNS and port.end_port in (None, 53) for port in rule.ports):
            continue
        everywhere |= not rule.to
        for peer in rule.to or ():
            # Without a namespaceSelector a peer is in the policy's own namespace, which is seen in any case, or it is
            # addresses, which say nothing of namespaces.
            if peer.namespace_selector is not None and peer.ip_block is None:
                peers.append(_terms(peer.namespace_selector))
    selects = not (spec.pod_selector.match_labels or spec.pod_selector.match_expressions)
    return Policy(namespace, name, selects, everywhere, tuple(dict.fromkeys(peers)))


def _terms(selector: RawSelector) -> tuple[Term, ...]:
    expressions = [(each.key, each.operator, each.values or ()) for each in selector.match_expressions or ()]
    return terms(selector.match_labels, expressions)
