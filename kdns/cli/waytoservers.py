"""Findings on the way from a client to the servers: its resolver, NetworkPolicies, NodeLocal, and
what real queries came to.
"""

from collections.abc import Iterator
from typing import Final

from kdns.cli.clusterstate import Object, State, labels_of, name_of
from kdns.cli.configmaps import is_loopback
from kdns.cli.finding import ERROR, INFO, WARNING, Finding
from kdns.cli.networkpolicies import allows_53, lets_out, selects, types
from kdns.cli.resolv import of_pod

MAX_NAMESERVERS: Final = 3  # resolv.conf(5), MAXNS; the kubelet cuts what is more

_IN_A_POD: Final = "run doctor in a Pod"  # docs/troubleshoot.md says how


def _client(state: State) -> Iterator[Finding]:
    if not state.client_name:
        return
    namespace, _, pod = state.client_name.partition("/")
    if state.namespaces is not None and namespace not in map(name_of, state.namespaces):
        yield Finding(ERROR, "client", f"there is no namespace {namespace}", "", "kubectl get namespaces")
        return
    if state.client is None and "pods" in state.unread:
        return
    if state.client is None and pod:
        yield Finding(ERROR, "client", f"there is no Pod {state.client_name}", "", f"kubectl get pods -n {namespace}")
        return
    show = f"kubectl -n {namespace} exec {pod} -- cat /etc/resolv.conf" if pod else f"kubectl -n {namespace} get pods"
    if state.client is None:
        yield Finding(
            INFO,
            "client",
            f"no running Pod of the namespace {namespace} is known",
            "what follows is for a Pod whose spec says nothing of DNS",
            show,
        )
    elif state.client_note:
        yield Finding(INFO, "client", f"asks as the Pod {state.client_name}, {state.client_note}")
    spec = (state.client or {}).get("spec") or {}
    resolver = of_pod(spec, namespace, state.zone)
    yield Finding(
        INFO,
        "client",
        f"{_asking(state)} searches {' '.join(resolver.search) or '(nothing)'}; ndots {resolver.ndots}",
        "",
        show,
    )
    if resolver.note:
        yield Finding(
            WARNING,
            "client",
            resolver.note,
            f"names of {state.zone} may not exist for it",
            f"kubectl -n {namespace} get pod {pod} -o yaml    # dnsPolicy: ClusterFirstWithHostNet",
        )
    config = spec.get("dnsConfig") or {}
    servers = [str(each) for each in config.get("nameservers") or ()]
    if len(servers) > MAX_NAMESERVERS:
        yield Finding(
            ERROR,
            "client",
            f"dnsConfig names {len(servers)} servers",
            f"a resolver takes the first {MAX_NAMESERVERS}",
            show,
        )
    if servers and spec.get("dnsPolicy") == "None" and state.address and state.address not in servers:
        yield Finding(
            WARNING,
            "client",
            f"it asks {', '.join(servers)}, not the cluster's DNS ({state.address})",
            f"names of {state.zone} do not exist for it, unless those servers know them",
            show,
        )
    if resolver.ndots > 1 and resolver.search:
        count = len(resolver.search)
        yield Finding(
            INFO,
            "client",
            f"an outside name with fewer than {resolver.ndots} dots costs {count} queries more ({count * 2} with AAAA)",
            "",
            "write it with a final dot, lower ndots in dnsConfig, or use the plugin searchpath",
        )


def _asking(state: State) -> str:
    """Who asks, in words."""
    namespace, _, pod = state.client_name.partition("/")
    return state.client_name if pod else f"a Pod of the namespace {namespace}"


def _network_policies(state: State) -> Iterator[Finding]:
    if state.policies is None:
        return
    by_namespace: dict[str, list[Object]] = {}
    for each in state.policies:
        by_namespace.setdefault(str((each.get("metadata") or {}).get("namespace")), []).append(each)
    client_namespace = state.client_name.partition("/")[0]
    for namespace, policies in sorted(by_namespace.items()):
        if state.client_name and namespace != client_namespace:
            continue
        labels = labels_of(state.client) if state.client is not None else None
        chosen = [each for each in policies if selects(each, labels) and "Egress" in types(each)]
        for protocol in ("UDP", "TCP"):
            if chosen and not any(lets_out(each, protocol, state.targets) for each in chosen):
                who = _asking(state) if state.client_name else f"Pods of the namespace {namespace}"
                names = ", ".join(name_of(each) for each in chosen)
                yield Finding(
                    ERROR if protocol == "UDP" else WARNING, "NetworkPolicy",
                    f"{names} in {namespace}: {who} may not send to port 53/{protocol} of the DNS Pods",
                    "every name times out there" if protocol == "UDP" else "large answers, and resolvers that use TCP, "
                        "fail there",
                    f"kubectl -n {namespace} get networkpolicy -o yaml    # an egress rule to namespace "
                    f"{state.namespace}, ports 53 UDP and TCP",
                )  # fmt: skip
    for each in by_namespace.get(state.namespace, []):
        if "Ingress" in types(each) and any(selects(each, labels_of(server)) for server in state.servers):
            rules = (each.get("spec") or {}).get("ingress") or []
            if not any(allows_53(rule, "UDP") for rule in rules):
                yield Finding(
                    ERROR,
                    "NetworkPolicy",
                    f"{name_of(each)} in {state.namespace} lets no query in to the DNS Pods",
                    "every name times out",
                    f"kubectl -n {state.namespace} get networkpolicy {name_of(each)} -o yaml",
                )


def _node_local(state: State) -> Iterator[Finding]:
    for each in state.daemonsets or ():
        if "node-local" not in name_of(each):
            continue
        status = each.get("status") or {}
        wanted, ready = int(status.get("desiredNumberScheduled") or 0), int(status.get("numberReady") or 0)
        if ready < wanted:
            yield Finding(
                ERROR,
                "NodeLocal",
                f"{name_of(each)}: {ready} of {wanted} are ready",
                "on the other nodes every name may fail: Pods there ask an address that no server listens on",
                f"kubectl -n {state.namespace} get pods -o wide -l k8s-app={name_of(each)}",
            )
        else:
            yield Finding(
                INFO,
                "NodeLocal",
                f"{name_of(each)} runs on {ready} nodes: the servers see the nodes' addresses, not the Pods'",
            )


def _resolv_conf(state: State) -> Iterator[Finding]:
    loops = [each for each in state.nameservers if is_loopback(each)]
    if loops:
        yield Finding(
            ERROR,
            "loops",
            f"/etc/resolv.conf names {', '.join(loops)}",
            "in a Pod, that is the Pod itself: queries forwarded there loop or fail",
            "set the kubelet's --resolv-conf to the file with the real servers (systemd: "
            "/run/systemd/resolve/resolv.conf)",
        )
    if len(state.nameservers) > MAX_NAMESERVERS:
        yield Finding(
            WARNING,
            "upstreams",
            f"/etc/resolv.conf names {len(state.nameservers)} servers",
            f"resolvers take the first {MAX_NAMESERVERS}",
            "shorten the node's resolv.conf",
        )


def _queries(state: State) -> Iterator[Finding]:
    for each in state.asked:
        command = each.again or f"kdns query @{each.server} {each.name}{' -tcp' if each.transport == 'tcp' else ''}"
        if not each.answered:
            outside = state.zone not in each.name
            means = (
                "outside names fail"
                if outside
                else "large answers fail"
                if each.transport == "tcp"
                else "names of the cluster fail"
            )
            yield Finding(
                ERROR, "queries", f"{each.server} over {each.transport}, {each.name}: {each.said}", means, command
            )
        elif each.took > 1:
            yield Finding(
                WARNING,
                "queries",
                f"{each.server} took {each.took:.1f} s for {each.name}",
                "resolvers ask again after 5 s, and applications wait",
                command,
            )
    good = sum(each.answered for each in state.asked)
    through = any(each.again for each in state.asked)
    if good:
        yield Finding(
            INFO,
            "queries",
            f"{good} of {len(state.asked)} queries were answered{', over TCP through the API' if through else ''}",
            "UDP, and the way through the Service, were not tried" if through else "",
            _IN_A_POD if through else "",
        )
    for server, why in state.unreached.items():
        yield Finding(
            INFO,
            "queries",
            f"{server} could not be asked through the API: {why}",
            "whether it answers is not known",
            f"kubectl -n {state.namespace} port-forward {server} 5353:{state.port}    # the right it takes: create and "
            f"get pods/portforward",
        )
    if not state.asked and not state.unreached:
        yield Finding(
            INFO, "queries", "no server was asked: none is ready, and no --server was named", "",
            f"{_IN_A_POD}, or name a server that can be reached from here: kdns doctor --server "
            f"{state.address or 'ADDRESS'}",
        )  # fmt: skip


RULES: Final = (_client, _network_policies, _node_local, _resolv_conf, _queries)
