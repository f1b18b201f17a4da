"""Findings on the servers: the DNS Service, its Pods and endpoints, and what the API lets them and us read."""

from collections.abc import Iterator
from typing import Final

from kdns.cli.clusterstate import Object, State, is_ready, labels_of, name_of
from kdns.cli.finding import ERROR, INFO, WARNING, Finding

RESTARTS: Final = 5  # of a container, beyond which it is not an accident
# Top-level domains that many Pods' outside names are in.
TOP_LEVEL: Final = frozenset(
    "com net org edu gov int io dev app cloud ai co de uk fr nl eu us cn jp in br ru au ca ch".split()
)


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
    bad = [each for each in servers if not is_ready(each)]
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
    images = state.images
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


def _rights(state: State) -> Iterator[Finding]:
    account = f"system:serviceaccount:{state.namespace}:{state.account}"
    if state.reviewed_self:
        yield Finding(
            INFO, "RBAC", "this account may not ask what the servers may do (subjectaccessreviews): it was asked for "
            "its own rights",
            "they are the servers' where it runs under the same account",
            "kubectl create clusterrolebinding kdns-doctor --clusterrole=system:auth-delegator "
            "--serviceaccount=NAMESPACE:NAME    # its account",
        )  # fmt: skip
    for what in state.denied:
        verb, _, resource = what.partition(" ")
        show = f"kubectl auth can-i {verb} {resource} --as={account}    # clusterrole system:coredns"
        if state.reviewed_self:
            yield Finding(
                WARNING, "RBAC", f"this account may not {verb} {resource}",
                "if the servers run under it too, names of objects they cannot list do not exist", show,
            )  # fmt: skip
            continue
        yield Finding(
            ERROR, "RBAC", f"the servers may not {verb} {resource}",
            "names of objects they cannot list do not exist, or the servers never become ready", show,
        )  # fmt: skip


RULES: Final = (_unread, _service, _names, _pods, _endpoints, _rights)
