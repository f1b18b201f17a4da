"""What NetworkPolicies let through: queries to a cluster's DNS, and what its servers ask (networking.k8s.io/v1). Pure.

A Pod that some policy of a direction selects may do what the rules of those policies allow, and nothing else of that
direction.
"""

import ipaddress
from typing import Any, NamedTuple

from kdns.kube.selector import terms

Object = dict[str, Any]


class Targets(NamedTuple):
    """The Pods to be reached: their namespace, its labels, each one's labels, and their addresses, the Service's
    too.
    """

    namespace: str
    namespace_labels: dict[str, str]
    labels: list[dict[str, str]]
    addresses: list[str]


class Place(NamedTuple):
    """What a server asks. `address`: what is not an IP address, such as a host name, stands for one that is not known.
    `protocol`: UDP or TCP.
    """

    address: str
    port: int
    protocol: str


def types(policy: Object) -> list[str]:
    """The directions that a policy bounds: Ingress, Egress, or both."""
    spec = policy.get("spec") or {}
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]


def selects(policy: Object, labels: dict[str, str] | None) -> bool:
    """True if a policy selects a Pod with these labels; None: whether it selects all of its namespace."""
    selector = (policy.get("spec") or {}).get("podSelector") or {}
    return not selector if labels is None else matches(selector, labels)


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Kubernetes' LabelSelector."""
    expressions = [
        (str(each.get("key")), str(each.get("operator")), each.get("values") or ())
        for each in selector.get("matchExpressions") or ()
    ]
    return all(term.matches(labels) for term in terms(selector.get("matchLabels"), expressions))


def lets_out(policy: Object, protocol: str, targets: Targets) -> bool:
    """True if an egress rule of a policy lets queries of this protocol reach one of the targets."""
    for rule in (policy.get("spec") or {}).get("egress") or ():
        peers = rule.get("to")
        if allows_53(rule, protocol) and (not peers or any(_reaches(peer, policy, targets) for peer in peers)):
            return True
    return False


def _reaches(peer: Object, policy: Object, targets: Targets) -> bool:
    """True if a peer of an egress rule is one of the targets."""
    if block := peer.get("ipBlock"):
        return any(_within(address, block) for address in targets.addresses)
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"] or {}, targets.namespace_labels):
            return False
    elif (policy.get("metadata") or {}).get("namespace") != targets.namespace:
        return False
    return any(matches(peer.get("podSelector") or {}, labels) for labels in targets.labels)


def may_let_out(policy: Object, place: Place) -> bool:
    """False only if no egress rule of a policy can let packets to a place out.

    It may be what is not known here: which addresses a name or a file stands for, and whether a private address is a
    Service's whose Pods the labels of a rule select.
    """
    try:
        address = ipaddress.ip_address(place.address)
    except ValueError:
        address = None
    for rule in (policy.get("spec") or {}).get("egress") or ():
        if not _allows(rule, place.port, place.protocol):
            continue
        peers = rule.get("to")
        if not peers or address is None:
            return True
        for peer in peers:
            block = peer.get("ipBlock")
            if _within(place.address, block) if block else not address.is_global:
                return True
    return False


def _within(address: str, block: Object) -> bool:
    """True if an ipBlock holds an address."""
    try:
        host = ipaddress.ip_address(address)
        return host in ipaddress.ip_network(str(block.get("cidr")), strict=False) and not any(
            host in ipaddress.ip_network(str(each), strict=False) for each in block.get("except") or ()
        )
    except ValueError:
        return False


def allows_53(rule: Object, protocol: str) -> bool:
    """True if the ports of a rule hold 53 of this protocol."""
    return _allows(rule, 53, protocol, ("dns", "dns-tcp"))


def _allows(rule: Object, wanted: int, protocol: str, names: tuple[str, ...] = ()) -> bool:
    """True if the ports of a rule hold one, by number or by a name that Pods give it."""
    ports = rule.get("ports")
    if not ports:
        return True
    for each in ports:
        if each.get("protocol", "TCP") != protocol:
            continue
        port, last = each.get("port"), each.get("endPort")
        if (
            port is None
            or port in (wanted, str(wanted), *names)
            or (isinstance(port, int) and isinstance(last, int) and port <= wanted <= last)
        ):
            return True
    return False
