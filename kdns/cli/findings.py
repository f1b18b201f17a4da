"""Faults of a cluster's DNS, found by rules over a State of its API and its servers. Pure.

Each rule looks at one part and yields Findings: what was seen, what it means for those who ask, and the next command.
What the API would not show is None in the State, and is a finding of its own.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Final

from kdns.cli import serverneeds, statuspages
from kdns.cli.check import examined
from kdns.cli.clusterstate import Object, State, labels_of, name_of
from kdns.cli.corefiles import Source
from kdns.cli.finding import ERROR, INFO, WARNING, Finding
from kdns.cli.networkpolicies import allows_53, lets_out, selects, types
from kdns.cli.resolv import of_pod
from kdns.corefile import Corefile, CorefileError
from kdns.server import build

RESTARTS: Final = 5  # of a container, beyond which it is no accident
# Top-level domains that many Pods' outside names are in.
TOP_LEVEL: Final = frozenset(
    "com net org edu gov int io dev app cloud ai co de uk fr nl eu us cn jp in br ru au ca ch".split()
)
MAX_NAMESERVERS: Final = 3  # resolv.conf(5), MAXNS; the kubelet cuts what is more


def diagnosed(state: State) -> list[Finding]:
    """Every finding, the gravest first."""
    rank = {ERROR: 0, WARNING: 1, INFO: 2}
    return sorted((found for rule in RULES for found in rule(state)), key=lambda found: rank[found.level])


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


# The rules.


def _unread(state: State) -> Iterator[Finding]:
    for kind, why in state.unread.items():
        yield Finding(
            WARNING,
            "access",
            f"{kind} cannot be read: {why}",
            "checks that need them were skipped",
            f"kubectl auth can-i list {kind} -A",
        )


def _service(state: State) -> Iterator[Finding]:
    ns = state.namespace
    if state.services is None:
        return
    if state.service is None:
        yield Finding(
            ERROR, "Service", f"no Service of the cluster's DNS in {ns} (label k8s-app=kube-dns, or the name kube-dns)",
            "Pods ask an address that has no server: every name fails",
            "kubectl get svc -A -l k8s-app=kube-dns    # another namespace? --dns-namespace",
        )  # fmt: skip
        return
    name, spec = name_of(state.service), state.service.get("spec") or {}
    ports = {(port.get("port"), port.get("protocol", "TCP")) for port in spec.get("ports") or ()}
    for protocol in ("UDP", "TCP"):
        if (53, protocol) not in ports:
            means = "every name fails" if protocol == "UDP" else "large answers fail, and resolvers that use TCP"
            yield Finding(
                ERROR, "Service", f"{name} has no port 53/{protocol}", means, f"kubectl -n {ns} edit svc {name}"
            )
    if spec.get("clusterIP") in (None, "", "None"):
        yield Finding(
            ERROR,
            "Service",
            f"{name} has no cluster address",
            "kubelets have nothing to put into resolv.conf",
            f"kubectl -n {ns} get svc {name} -o yaml",
        )


def _names(state: State) -> Iterator[Finding]:
    # A Pod with ndots 5 looks for api.example.com as api.example.com.svc.cluster.local before it asks for the name
    # itself: a Service `example` in a namespace `com` answers that (CVE-2022-2835).
    taken = sorted({name_of(each) for each in state.namespaces or ()} & TOP_LEVEL)
    for name in taken:
        yield Finding(
            WARNING,
            "names",
            f"there is a namespace {name}, as the top-level domain",
            f"Pods that look for NAME.{name} are led to a Service NAME in it, whoever made that",
            f"kubectl get svc -n {name}",
        )


def _pods(state: State) -> Iterator[Finding]:
    ns, servers = state.namespace, state.servers
    if state.pods is None or (state.services is not None and state.service is None):
        return
    if not servers:
        yield Finding(
            ERROR,
            "Pods",
            f"no DNS Pod runs in {ns}",
            "every name fails",
            f"kubectl -n {ns} get deploy,ds -l k8s-app=kube-dns; kubectl -n {ns} get events",
        )
        return
    bad = [each for each in servers if not _ready(each)]
    for pod in bad:
        why = _why_not_ready(pod)
        level = ERROR if len(bad) == len(servers) else WARNING
        means = (
            "no server answers: every name fails"
            if level == ERROR
            else f"{len(servers) - len(bad)} of {len(servers)} servers answer"
        )
        yield Finding(
            level,
            "Pods",
            f"{name_of(pod)} is not ready: {why}",
            means,
            f"kubectl -n {ns} describe pod {name_of(pod)}; kubectl -n {ns} logs {name_of(pod)} --previous",
        )
    for pod in servers:
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            last = ((status.get("lastState") or {}).get("terminated") or {}).get("reason", "")
            if last == "OOMKilled":
                yield Finding(
                    WARNING, "Pods", f"{name_of(pod)} was killed for memory",
                    "queries were lost each time, and its cache with them",
                    f"kubectl -n {ns} set resources deploy/coredns --limits=memory=340Mi    # or what your cluster "
                    f"needs",
                )  # fmt: skip
            elif int(status.get("restartCount") or 0) > RESTARTS:
                yield Finding(
                    WARNING,
                    "Pods",
                    f"{name_of(pod)} restarted {status['restartCount']} times{f' ({last})' if last else ''}",
                    "queries are lost at each",
                    f"kubectl -n {ns} logs {name_of(pod)} --previous",
                )
    nodes = {(each.get("spec") or {}).get("nodeName") for each in servers}
    if len(servers) == 1:
        yield Finding(
            WARNING,
            "Pods",
            "there is one DNS Pod",
            "while it moves or restarts, every name fails",
            f"kubectl -n {ns} scale deploy/coredns --replicas=2",
        )
    elif len(nodes) == 1 and None not in nodes:
        yield Finding(
            WARNING,
            "Pods",
            f"all {len(servers)} DNS Pods are on the node {nodes.pop()}",
            "if it fails, every name fails",
            f"kubectl -n {ns} rollout restart deploy/coredns    # and a topologySpreadConstraint",
        )
    images = sorted(
        {
            str(container.get("image"))
            for each in servers
            for container in (each.get("spec") or {}).get("containers") or ()
        }
    )
    if len(images) > 1:
        yield Finding(
            WARNING,
            "versions",
            f"DNS Pods run {len(images)} images: {', '.join(images)}",
            "answers may differ from one query to the next",
            f"kubectl -n {ns} rollout status deploy/coredns",
        )
    elif images:
        yield Finding(INFO, "versions", f"{len(servers)} DNS Pods run {images[0]}")
    for pod in servers:
        if (pod.get("spec") or {}).get("dnsPolicy") in (None, "ClusterFirst") and not (pod.get("spec") or {}).get(
            "hostNetwork"
        ):
            yield Finding(
                ERROR, "loops", f"{name_of(pod)} has dnsPolicy ClusterFirst",
                "its resolv.conf names its own Service: queries forwarded there loop",
                f"kubectl -n {ns} patch deploy coredns -p "
                f"'{{\"spec\":{{\"template\":{{\"spec\":{{\"dnsPolicy\":\"Default\"}}}}}}}}'",
            )  # fmt: skip
            return


def _why_not_ready(pod: Object) -> str:
    status = pod.get("status") or {}
    for each in status.get("containerStatuses") or ():
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"{waiting['reason']} {waiting.get('message', '')}".strip()
    conditions = [
        each for each in status.get("conditions") or () if each.get("status") == "False" and each.get("message")
    ]
    return str(conditions[0]["message"]) if conditions else str(status.get("phase") or "no status yet")


def _endpoints(state: State) -> Iterator[Finding]:
    if state.slices is None or state.service is None:
        return
    name = name_of(state.service)
    own = [each for each in state.slices if labels_of(each).get("kubernetes.io/service-name") == name]
    ready = {
        address
        for each in own
        for endpoint in each.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") is not False
        for address in endpoint.get("addresses") or ()
    }
    if not ready:
        yield Finding(
            ERROR, "EndpointSlices", f"{name} has no ready endpoint",
            "kube-proxy has no server to send queries to: they are refused or time out",
            f"kubectl -n {state.namespace} get endpointslices -l kubernetes.io/service-name={name}    # and the "
            f"Service's selector",
        )  # fmt: skip


def _configuration(state: State) -> Iterator[Finding]:
    ns = state.namespace
    if state.corefiles is None:
        return
    if not state.corefiles:
        yield Finding(
            ERROR,
            "ConfigMap",
            f"no ConfigMap in {ns} has a key Corefile",
            "a server that restarts has nothing to serve",
            f"kubectl -n {ns} get cm",
        )
    for source in state.corefiles[:1]:
        show = f"kubectl -n {ns} get cm {source.name.rpartition('/')[2]} -o yaml | kdns check -"
        summary, errors = examined(source, 53, False)
        for error in errors:
            yield Finding(
                ERROR,
                "ConfigMap",
                str(error),
                "a server that restarts with it fails; running ones keep the configuration before",
                show,
            )
        for warning in summary.warnings:
            yield Finding(INFO, "ConfigMap", f"{source.name}: {warning}", "", show)
        if not errors:
            yield from _blocks(state, source)


def _blocks(state: State, source: Source) -> Iterator[Finding]:
    try:
        corefile: Corefile = build.read(source.text, source.name)
    except CorefileError:  # it imports what is in the server's file system only
        return
    if not any("kubernetes" in block.directives for block in corefile.blocks):
        yield Finding(
            ERROR,
            "ConfigMap",
            f"{source.name} has no plugin kubernetes",
            f"names of {state.zone} are not served",
            f"kubectl -n {state.namespace} edit cm {source.name.rpartition('/')[2]}",
        )
    if not any("loop" in block.directives for block in corefile.blocks):
        yield Finding(
            WARNING,
            "ConfigMap",
            f"{source.name} has no plugin loop",
            "forwarding loops are not detected",
            "add a line `loop` to its server block",
        )
    for block in corefile.blocks:
        for directive in block.directives.get("forward", []):
            for word in directive.args[1:]:
                host = word.text.partition("://")[2] or word.text
                host = re.sub(r"(:\d+)?$", "", host.partition("%")[0]).strip("[]")
                if _is_loopback(host) or (host and host == state.address):
                    what = "this server's own Service" if host == state.address else "the Pod itself"
                    yield Finding(
                        ERROR,
                        "loops",
                        f"{word.at}: forwards to {host}, which is {what}",
                        "queries for outside names loop and fail",
                        f"kubectl -n {state.namespace} edit cm {source.name.rpartition('/')[2]}    # name the nodes' "
                        f"true upstreams",
                    )


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _rights(state: State) -> Iterator[Finding]:
    for what in state.denied:
        verb, _, resource = what.partition(" ")
        yield Finding(
            ERROR, "RBAC", f"the servers may not {verb} {resource}",
            "names of objects they cannot list do not exist, or the servers never become ready",
            f"kubectl auth can-i {verb} {resource} --as=system:serviceaccount:{state.namespace}:{_account(state)}    # "
            f"clusterrole system:coredns",
        )  # fmt: skip


def _account(state: State) -> str:
    return next(
        (
            str((each.get("spec") or {}).get("serviceAccountName"))
            for each in state.servers
            if (each.get("spec") or {}).get("serviceAccountName")
        ),
        "coredns",
    )


def _client(state: State) -> Iterator[Finding]:
    if not state.client_name:
        return
    if state.client is None:
        if "pods" not in state.unread:
            yield Finding(
                ERROR,
                "client",
                f"there is no Pod {state.client_name}",
                "",
                f"kubectl get pods -n {state.client_name.partition('/')[0]}",
            )
        return
    namespace, spec = state.client_name.partition("/")[0], state.client.get("spec") or {}
    resolver = of_pod(spec, namespace, state.zone)
    show = f"kubectl -n {namespace} exec {name_of(state.client)} -- cat /etc/resolv.conf"
    yield Finding(
        INFO,
        "client",
        f"{state.client_name} searches {' '.join(resolver.search) or '(nothing)'}; ndots {resolver.ndots}",
        "",
        show,
    )
    if resolver.note:
        yield Finding(
            WARNING,
            "client",
            resolver.note,
            f"names of {state.zone} may not exist for it",
            f"kubectl -n {namespace} get pod {name_of(state.client)} -o yaml    # dnsPolicy: ClusterFirstWithHostNet",
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
                who = state.client_name or f"Pods of the namespace {namespace}"
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


def _tenants(state: State) -> Iterator[Finding]:
    if not state.hides:
        return
    yield Finding(
        INFO, "tenants", "the Corefile has tenants: names of other namespaces do not exist for Pods",
        "a name that one Pod finds may be NXDOMAIN for another, or SERVFAIL for who is no Pod",
        "kdns explain NAME    # and kdns_tenants_hidden_total counts",
    )  # fmt: skip
    if any("node-local" in name_of(each) for each in state.daemonsets or ()):
        yield Finding(
            WARNING, "tenants", "a NodeLocal DNSCache runs in front of tenants",
            "tenants are not told apart: all Pods of a node are one client, and share what its cache holds",
            f"kubectl -n {state.namespace} get ds",
        )  # fmt: skip


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
    loops = [each for each in state.nameservers if _is_loopback(each)]
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
        if not each.answered:
            outside = state.zone not in each.name
            means = (
                "outside names fail"
                if outside
                else "names of the cluster fail"
                if each.transport == "udp"
                else "large answers fail"
            )
            command = f"kdns query @{each.server} {each.name}{' -tcp' if each.transport == 'tcp' else ''}"
            yield Finding(
                ERROR, "queries", f"{each.server} over {each.transport}, {each.name}: {each.said}", means, command
            )
        elif each.took > 1:
            yield Finding(
                WARNING,
                "queries",
                f"{each.server} took {each.took:.1f} s for {each.name}",
                "resolvers ask again after 5 s, and applications wait",
                f"kdns query @{each.server} {each.name}",
            )
    good = sum(each.answered for each in state.asked)
    if good:
        yield Finding(INFO, "queries", f"{good} of {len(state.asked)} queries were answered")
    if not state.asked:
        yield Finding(
            INFO, "queries", "no server was asked: this is not a Pod of the cluster, and no --server was named", "",
            f"run doctor in a Pod, or name a server that can be reached from here: kdns doctor --server "
            f"{state.address or 'ADDRESS'}",
        )  # fmt: skip


RULES: Final[tuple[Callable[[State], Iterator[Finding]], ...]] = (
    _unread, _service, _names, _pods, _endpoints, _configuration, _rights, _client, _network_policies, _tenants,
    _node_local,
    _resolv_conf, serverneeds.findings, _queries, statuspages.findings,
)  # fmt: skip
