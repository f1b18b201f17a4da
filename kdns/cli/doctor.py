"""`kdns doctor`: says what is wrong with a cluster's DNS, CoreDNS's or kdns's, from a laptop or inside a Pod.

Looks at the Service, its Pods and EndpointSlices, the Corefile, the servers' rights, NetworkPolicies, NodeLocal
DNSCache and one Pod's resolver, and at the servers' status pages, then asks real queries: in a Pod the Service, each
server, and each upstream that a server asks; from a laptop the servers, through the API (see portforward). It changes
nothing. The rules are in findings.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from kdns import files, log
from kdns.address import split_host_port
from kdns.cli import cluster, forwarding, portforward, statuspages, streams
from kdns.cli.clusterstate import Asked, Object, State, is_ready, labels_of, name_of
from kdns.cli.finding import ERROR, WARNING, Finding
from kdns.cli.findings import diagnosed
from kdns.cli.flags import BadFlag, Flag, Help, Value, misused, parse, refuse
from kdns.cli.networkpolicies import Place
from kdns.cli.running import result_of, run
from kdns.deadlines import Deadlines
from kdns.dns import iana, resolvconf
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.message import pack_query
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.kube.api import CREDENTIALS, Client
from kdns.kube.paging import ApiError
from kdns.kube.pod import pod_object, some_pod
from kdns.printable import printable
from kdns.upstream.upstream import Address, Options, Upstream

TIMEOUT: Final = 3.0  # seconds a server has for one query
UNWELL: Final = 3
MAX_ASKED: Final = 20  # Pods that are asked one by one
MAX_FORWARDED: Final = 3  # Pods that are asked through the API; the others run the same Corefile
RESOLV_CONF: Final = "/etc/resolv.conf"
# What a server lists and watches, as (API group, resource).
_NEEDED: Final = (("", "services"), ("", "namespaces"), ("discovery.k8s.io", "endpointslices"))
# And, where the Corefile has `tenants`, with `from networkpolicy` both.
_OF_TENANTS: Final = (("", "pods"), ("networking.k8s.io", "networkpolicies"))

FLAGS: Final = (
    *cluster.FLAGS,
    Flag(
        ("from", "namespace", "n"),
        "",
        "namespace, or NAMESPACE/POD, that asks: checks its resolver and NetworkPolicies",
    ),
    Flag(
        ("server",),
        "",
        "server to ask, HOST[:PORT] (default: the Service and its Pods; from outside, its Pods, through the API)",
    ),
    Flag(("zone",), "cluster.local", "zone of the cluster"),
    Flag(("outside",), "example.com", "outside name to ask for"),
    Flag(("json",), False, "print the findings as JSON"),
)
HELP: Final = Help(
    "doctor", "kdns doctor [FLAGS]",
    "Says what is wrong with a cluster's DNS (CoreDNS's or kdns's), what it means, and the next command. Changes "
    "nothing.",
    (
        ("kdns doctor", "the cluster of kubectl's current context"),
        ("kdns doctor --context prod --from shop/cart-7d9f", "and why that Pod cannot look names up"),
        ("kdns doctor --server 127.0.0.1:5353 --json", "ask through a port-forward; for programs"),
    ),
    ((0, "nothing is wrong, but for warnings"), (1, "the cluster cannot be asked"), (2, "a bad flag or word"),
        (UNWELL, "something is wrong")),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Looks; returns the exit code."""
    try:
        values, rest = parse(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    if rest:
        return misused(f'kdns doctor takes no arguments, found "{rest[0]}"', HELP)
    if values["from"] and not all(str(values["from"]).split("/", 1)):
        return misused(f'--from takes NAMESPACE or NAMESPACE/POD, found "{values["from"]}"', HELP)
    try:
        server = split_host_port(str(values["server"]), 53) if values["server"] else None
        names = [from_text(str(values[flag])) for flag in ("zone", "outside")]
        assert names
    except (BadName, ValueError) as error:
        return misused(str(error), HELP)
    log.start_writer(sys.stderr)
    try:
        state = run(_gathered(values, server))
    except cluster.failures() as error:
        sys.stderr.write(f"the cluster cannot be asked: {printable(cluster.explained(error))}\n")
        return 1
    finally:
        log.stop_writer()
    found = diagnosed(state)
    code = UNWELL if any(each.level == ERROR for each in found) else 0
    streams.until_closed(lambda: _print(found, bool(values["json"]), not code))
    return code


def _print(found: list[Finding], as_json: bool, ok: bool) -> None:
    if as_json:
        print(json.dumps({"ok": ok, "findings": [each._asdict() for each in found]}))
        return
    for each in found:
        print(printable(f"{each.level:7}  {each.part}: {each.seen}"))
        for label, text in (("means", each.means), ("next", each.next)):
            if text:
                print(printable(f"         {label}: {text}"))
    counts = {level: sum(1 for each in found if each.level == level) for level in (ERROR, WARNING)}
    said = [f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items() if count]
    print(f"\n{', '.join(said) or 'nothing is wrong'}")


# Gathering.


async def _gathered(values: Mapping[str, Value], server: tuple[str, int] | None) -> State:
    """All that the rules look at. Raises what cluster.failures names where the API cannot be reached at all."""
    namespace = str(values["dns-namespace"])
    state = State(namespace, zone=str(values["zone"]).rstrip("."), client_name=str(values["from"]))
    config = await files.waiting("reading the kubeconfig", partial(cluster.access, values), CREDENTIALS)
    state.inside = not config.kubeconfig
    api = cluster.Cluster(config)
    try:
        await api.get("/version")  # whoever cannot have this is not at this API at all
        core = f"/api/v1/namespaces/{namespace}"
        state.services = await _read(state, "services", api.items(f"{core}/services"))
        state.pods = await _read(state, "pods", api.items(f"{core}/pods"))
        state.slices = await _read(
            state, "endpointslices", api.items(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
        )
        state.corefiles = await _read(state, "configmaps", api.corefiles(namespace))
        state.daemonsets = await _read(
            state, "daemonsets", api.items(f"/apis/apps/v1/namespaces/{namespace}/daemonsets")
        )
        state.namespaces = await _read(state, "namespaces", api.items("/api/v1/namespaces"))
        state.policies = await _read(state, "networkpolicies", api.items("/apis/networking.k8s.io/v1/networkpolicies"))
        with contextlib.suppress(*cluster.failures()):  # without them, their usual port is looked at
            state.api_places = await _api_places(api)
        place, _, pod = state.client_name.partition("/")
        if pod:
            state.client = await _read(state, "pods", pod_object(config, (), place, pod))
        elif place:
            state.client = await _read(state, "pods", some_pod(config, (), place))
            if state.client is not None:
                state.client_name = f"{place}/{name_of(state.client)}"
                state.client_note = f"the first by name; another with --from {place}/POD"
        await _read(state, "subjectaccessreviews", _review(state, api))
        await statuspages.read(state, api)
        if state.inside:
            with contextlib.suppress(OSError):
                text = await files.waiting("reading /etc/resolv.conf", _resolv_conf)
                _note_resolv_conf(state, text)
            await forwarding.ask(state, str(values["outside"]))
        if server is None and not state.inside:
            await _ask_through(state, api.client, str(values["outside"]))
        else:
            await _ask_all(state, server, str(values["outside"]))
    finally:
        await api.close()
    return state


async def _read(state: State, kind: str, answer: Awaitable[Any]) -> Any:
    """What the API says, or None, with the reason in `unread`."""
    try:
        return await answer
    except cluster.failures() as error:
        state.unread[kind] = cluster.explained(error)
        return None


async def _api_places(api: cluster.Cluster) -> tuple[Place, ...]:
    """Where the API's own servers listen."""
    slices = await api.items("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")
    return tuple(
        Place(str(address), port["port"], "TCP")
        for each in slices
        if labels_of(each).get("kubernetes.io/service-name") == "kubernetes"
        for port in each.get("ports") or ()
        if isinstance(port.get("port"), int)
        for endpoint in each.get("endpoints") or ()
        for address in endpoint.get("addresses") or ()
    )


async def _review(state: State, api: cluster.Cluster) -> None:
    """Asks what the servers' account may do; in a Pod that may not ask of others, what its own account may."""
    try:
        state.denied = await _denied(state, api, state.account)
    except ApiError as error:
        if not state.inside or error.code != HTTPStatus.FORBIDDEN:
            raise
        state.reviewed_self = True
        state.denied = await _denied(state, api, "")


async def _denied(state: State, api: cluster.Cluster, account: str) -> list[str]:
    """What the servers need and an account may not do; without an account, the one that this runs under."""
    kind = "SubjectAccessReview" if account else "SelfSubjectAccessReview"
    who: Object = {}
    if account:
        # A review knows no groups but those it is told.
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{state.namespace}", "system:authenticated"]
        who = {"user": f"system:serviceaccount:{state.namespace}:{account}", "groups": groups}
    out = []
    for group, resource in (*_NEEDED, *(_OF_TENANTS[: 1 + state.hides_by_policies] if state.hides else ())):
        for verb in ("list", "watch"):
            spec = {**who, "resourceAttributes": {"group": group, "resource": resource, "verb": verb}}
            body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
            said = await api.post(f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body)
            if not (said.get("status") or {}).get("allowed"):
                out.append(f"{verb} {resource}")
    return out


def _resolv_conf() -> str:
    with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
        return file.read(resolvconf.MAX_RESOLV_CONF)


def _note_resolv_conf(state: State, text: str) -> None:
    """What this Pod's resolver is told. With dnsPolicy Default, and on the node's network, that is the node's file,
    which the servers have too; else its search list holds the cluster's zone.
    """
    state.nameservers = tuple(resolvconf.nameservers(text))
    search = resolvconf.search_list(text)
    state.nodes_resolv_conf = from_text(f"svc.{state.zone}").lower() not in search and (
        state.address not in state.nameservers
    )


async def _ask_through(state: State, client: Client, outside: str) -> None:
    """Real queries from outside the cluster: to some of the servers that are ready, over TCP, through the API."""
    for each in [each for each in state.servers if is_ready(each)][:MAX_FORWARDED]:
        pod = name_of(each)
        try:
            async with portforward.tunnel(client, state.namespace, pod, state.port, TIMEOUT) as open_:
                for name in (f"kubernetes.default.svc.{state.zone}", outside):
                    state.asked.append(await _ask_over(open_, state, pod, name))
        except portforward.NotForwarded as error:
            state.unreached[pod] = str(error)
        except cluster.failures() as error:
            state.unreached[pod] = cluster.explained(error)


async def _ask_over(open_: portforward.Tunnel, state: State, pod: str, name: str) -> Asked:
    question = Question(from_text(name).lower(), iana.A)
    began = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT):
            answer = await open_.ask(question)
        said, answered = iana.rcode_text(answer.rcode), answer.rcode == iana.NOERROR
    except TimeoutError:
        said, answered = f"no reply in {TIMEOUT:g} s", False
    again = (
        f"kubectl -n {state.namespace} port-forward {pod} 5353:{state.port}    # and: kdns query @127.0.0.1:5353 "
        f"{name}. -tcp"
    )
    return Asked(pod, "the API", f"{name}.", said, answered, time.monotonic() - began, again)


async def _ask_all(state: State, server: tuple[str, int] | None, outside: str) -> None:
    """Real queries: to the server that was named, or from inside to the Service and to each Pod."""
    inside = f"kubernetes.default.svc.{state.zone}"
    where = [server] if server is not None else []
    if server is None and state.inside:
        addresses = [state.address, *(str((each.get("status") or {}).get("podIP") or "") for each in state.servers)]
        known = [address for address in dict.fromkeys(addresses) if address and address != "None"][:MAX_ASKED]
        where = [(address, 53 if address == state.address else state.port) for address in known]
    for host, port in where:
        for name, transport in ((inside, "udp"), (inside, "tcp"), (outside, "udp")):
            state.asked.append(await _ask(host, port, name, transport))


async def _ask(host: str, port: int, name: str, transport: str) -> Asked:
    where = Address("dns", host, port)
    upstream = Upstream(where, Options(timeout=TIMEOUT, max_fails=0), "doctor", Deadlines(), None)
    question = Question(from_text(name).lower(), iana.A)
    began = time.monotonic()
    try:
        result = await result_of(upstream, pack_query(0, question), question, transport)
        said = iana.rcode_text(result.rcode) if type(result) is Answer else str(result)
        answered = type(result) is Answer and result.rcode == iana.NOERROR
    except OSError as error:
        said, answered = error.strerror or str(error), False
    finally:
        await upstream.close()
    return Asked(where.text, transport, f"{name}.", said, answered, time.monotonic() - began)
