"""`kdns explain`: how a name is answered, and why.

    kdns explain NAME [TYPE] [--from NAMESPACE[/POD]] [--trace] [--limits] [-conf FILE] [--context NAME]

Reads the Corefile and what it names (manifests, the API), and takes the question through its plugins without opening a
listener. It says which plugin answered and why, and what changed the question or the answer; with `--trace` what each
plugin did (see trace). Without a file the Corefile is the cluster's own: of the kubeconfig's context, or the one that
is named.

With `--from` the name is looked up as a Pod of that namespace does: through its search list, with ndots 5, from the
address of one that runs; or as that Pod does, whose `dnsPolicy` and `dnsConfig` are read. An address in place of a name
is looked up in reverse. Of several listeners the one on the default port is asked; `--limits` also says what those
on its port allow their clients. Exit code: 0 with an answer, 3 without.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from kdns import log
from kdns.cli import cluster, corefiles, listenerlimits, pluginkeys, streams
from kdns.cli.flags import BadFlag, Flag, Help, Value, misused, parse_among, refuse
from kdns.cli.offline import Offline
from kdns.cli.query import reverse_of
from kdns.cli.resolv import Resolver, of_namespace, of_pod
from kdns.cli.running import run
from kdns.cli.trace import Trace
from kdns.corefile import Corefile, CorefileError
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName, FormatError
from kdns.dns.name import closest, from_text, to_text
from kdns.dns.query import Question
from kdns.kube.access import ApiConfig
from kdns.plugin.providers import Pods
from kdns.plugin.records import record_of
from kdns.printable import printable
from kdns.server import build

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile; "-" or "stdin" reads standard input'),
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    corefiles.WITH,
    Flag(
        ("from", "namespace", "n"),
        "",
        "namespace, or NAMESPACE/POD, that asks, with its search list and address",
    ),
    Flag(("trace",), False, "show each step: what every plugin did, on the way back too, and how long it took"),
    Flag(("limits",), False, "also say what the listeners on the port that is asked allow their clients"),
    *cluster.FLAGS,
)
HELP: Final = Help(
    "explain", "kdns explain [FLAGS] NAME [TYPE] | ADDRESS",
    "Takes a question through the plugins of a Corefile (-conf, ./Corefile, else the cluster's own), and says who "
    "answers and why.",
    (
        ("kdns explain web.shop.svc.cluster.local", "the Corefile and the objects of kubectl's current context"),
        ("kdns explain web --from shop/cart-7d9f", "as that Pod looks it up: its search list, its ndots"),
        ("kdns explain --trace web.shop.svc.cluster.local", "each plugin's step, and its time"),
        ("kdns explain --context staging 10.96.1.5", "whose address is it, in another cluster"),
        ("kdns explain -conf Corefile.example db --from data", "without a cluster"),
    ),
    ((0, "there is an answer"), (1, "the Corefile or the cluster cannot be read"), (2, "a bad flag or word"),
        (3, "there is no answer")),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Explains one question; returns the exit code."""
    try:
        values, rest = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    qtype = iana.type_number(rest[1]) if len(rest) > 1 else iana.A
    if not 1 <= len(rest) <= 2:
        return misused("kdns explain takes a name, and a type if it is not A", HELP)
    if qtype is None:
        return misused(f'"{rest[1]}" is not a query type', HELP)
    name = rest[0]
    if len(rest) == 1 and (reverse := reverse_of(name)):
        name, qtype = reverse, iana.PTR
    place = str(values["from"])
    if place and not all(place.split("/", 1)):
        return misused(f'--from takes NAMESPACE or NAMESPACE/POD, found "{place}"', HELP)
    try:
        from_text(name)
    except BadName as error:
        return misused(str(error), HELP)
    log.start_writer(sys.stderr)
    try:
        corefile, untried = read_corefile(values, str(values["with"]))
        if not corefile.blocks:
            raise CorefileError(None, f"{corefile.name} has no server block: nothing to explain")
        trace = Trace()
        instance = build.build(corefile, trace)
        instance.load()
        offline = Offline(instance, int(values["dns.port"]))
        # DNS over TLS and over QUIC have one port by default, and so has HTTPS over both.
        on_port = [each for each in (offline.group, *offline.others) if each.port == offline.group.port]
        for group in on_port if values["limits"] else ():
            print(f"listener {group.label}")
            for line in listenerlimits.of_listener(instance, group):
                print(f"  {line}")
            print()
        return run(_explain(offline, name, qtype, place, trace, bool(values["trace"]), untried))
    except BrokenPipeError:
        raise
    except (CorefileError, OSError, BadName, ValueError) as error:
        streams.pass_on(error)
        sys.stderr.write(f"{printable(streams.explained(error))}\n")
        return 1
    finally:
        log.stop_writer()


def read_corefile(values: Mapping[str, Value], beside: str = "") -> tuple[Corefile, list[pluginkeys.Untried]]:
    """The Corefile of `-conf`, of this folder, or of the cluster; its `kubernetes` with access to the cluster. And the
    plugin files that are code from its ConfigMap, and are not in it.

    Not to be called on a loop. Raises CorefileError, OSError or ValueError.
    """
    path, port = str(values["conf"]), int(values["dns.port"])
    named = bool(values["context"] or values["kubeconfig"])
    if path or (os.path.lexists("Corefile") and not named):
        corefile, untried = pluginkeys.parsed(corefiles.one(path or "Corefile", beside), port)
        if cluster.is_configured(values):
            corefile = cluster.with_access(corefile, cluster.access(values))
        return corefile, untried
    if not cluster.is_configured(values):
        raise CorefileError(
            None, "there is no ./Corefile and no cluster is configured: name one with -conf, --kubeconfig or --context"
        )
    config = cluster.access(values)
    corefile, untried = pluginkeys.parsed(run(_cluster_corefile(config, values)), port)
    return cluster.with_access(corefile, config), untried


async def _cluster_corefile(config: ApiConfig, values: Mapping[str, Value]) -> corefiles.Source:
    namespace = str(values["dns-namespace"])
    asked = cluster.Cluster(config)
    try:
        found = await asked.corefiles(namespace)
    except cluster.failures() as error:
        raise CorefileError(None, f"the cluster's Corefile cannot be read: {cluster.explained(error)}") from None
    finally:
        await asked.close()
    if not found:
        raise CorefileError(
            None, f"no ConfigMap in {namespace} has a key Corefile: name the namespace with --dns-namespace"
        )
    return found[0]


async def _resolver(offline: Offline, place: str) -> Resolver:
    """How `NAMESPACE` or `NAMESPACE/POD` resolves names; from then on a Pod's address is the client's. Raises
    CorefileError where there is no such Pod, or none where there must be one.
    """
    namespace, _, pod = place.partition("/")
    if not namespace:
        return Resolver((), 0)
    plugin = next((plugin for plugin in offline.instance.plugins if isinstance(plugin, Pods)), None)
    zone = plugin.search_zone() if plugin is not None else "cluster.local"
    if not pod:
        return of_namespace(namespace, zone)._replace(note=await _ask_as_any(offline, plugin, namespace))
    if plugin is None:
        raise CorefileError(None, f"--from {place}: no server block has the plugin kubernetes, so it knows no Pods")
    try:
        found = await plugin.pod_object(namespace, pod)
    except Exception as error:  # of many kinds: the API's, the network's, YAML's
        raise CorefileError(None, f"--from {place}: {error}") from None
    if found is None:
        raise CorefileError(None, f"--from {place}: namespace {namespace} has no Pod {pod}")
    spec, status = (found.get(part) for part in ("spec", "status"))
    address = str(status.get("podIP") or "") if isinstance(status, dict) else ""
    if address:
        offline.client = address
    else:
        print(f"Pod {place} has no address yet: it asks as a client of this machine")
    return of_pod(spec if isinstance(spec, dict) else {}, namespace, zone)


async def _ask_as_any(offline: Offline, plugin: Pods | None, namespace: str) -> str:
    """Makes a Pod of the namespace the client, where one is known, and says who asks. Raises CorefileError where that
    decides the answer and none is known.
    """
    found, why = None, f"no running Pod of the namespace {namespace} is known"
    try:
        found = await plugin.some_pod(namespace) if plugin is not None else None
    except Exception as error:  # of many kinds: the API's, the network's, YAML's
        why = cluster.explained(error)
    if found is not None:
        offline.client = str(found["status"]["podIP"])
        return (
            f"asks as the Pod {namespace}/{found['metadata']['name']} ({offline.client}), the first by name; another "
            f"with --from {namespace}/POD"
        )
    if any(each.name == "tenants" for each in offline.instance.plugins):
        raise CorefileError(
            None, f"--from {namespace}: {why}, and tenants answers by who asks: name a Pod, --from NAMESPACE/POD"
        )
    return f"asks as this machine: {why}"


async def _explain(
    offline: Offline, name: str, qtype: int, place: str, trace: Trace, whole: bool, untried: list[pluginkeys.Untried]
) -> int:
    resolver = await _resolver(offline, place)
    names = [from_text(each).lower() for each in resolver.names(name)]
    if place:
        print(f"search {' '.join(resolver.search) or '(none)'}; ndots {resolver.ndots}")
    if resolver.note:
        print(printable(resolver.note))
    try:
        await offline.start()
        if offline.others:
            print(
                f"asked at {offline.group.label}; there are also {', '.join(group.label for group in offline.others)} "
                f"(-dns.port chooses)"
            )
        found = False
        for number, each in enumerate(names):
            if number or place:
                print()
            print(f"{to_text(each)} {iana.type_text(qtype)}")
            outcome = await _one(offline, Question(each, qtype), trace, whole, untried)
            found = type(outcome) is Answer and outcome.rcode == iana.NOERROR and bool(outcome.answer)
            if found:
                break
        return 0 if found else 3
    finally:
        await offline.stop()


async def _one(
    offline: Offline, question: Question, trace: Trace, whole: bool, untried: list[pluginkeys.Untried]
) -> object:
    """Takes one question through and prints what came of it, and how: all steps, or those that decided it."""
    request = offline.request(question)
    block = offline.dispatcher.find(request)
    if block is None:
        # A block that has no other plugin serves nothing here.
        blocks = offline.instance.blocks
        zone = closest(question.name, [zone for each in blocks for zone in each.zones])
        alone = [each for each in untried if each.block in [found.parsed.at for found in blocks if zone in found.zones]]
        _print_unseen(alone)
        print(f"  {'nothing else' if alone else 'no server block'} serves this name: REFUSED")
        return None
    print(
        "  server block "
        + " ".join(str(key) for key in block.parsed.keys)
        + (f" (view {block.view})" if block.view else "")
    )
    _print_unseen([each for each in untried if each.block == block.parsed.at])
    trace.begin()
    outcome: object = await offline.route(request)
    for line in (*trace.lines(outcome, whole), *(f"    {line}" for line in _records(outcome, question))):
        print(printable(line))
    return outcome


def _print_unseen(untried: list[pluginkeys.Untried]) -> None:
    for each in untried:
        print(printable(f"  {each.unseen}"))


def _records(outcome: object, question: Question) -> list[str]:
    """The answer's records as a zone file has them, in RFC 3597's form where it must be."""
    if type(outcome) is not Answer:
        return []
    try:
        return [f"{rr.rname} {rr.ttl} {iana.type_text(rr.rtype)} {rr.rdata}" for rr in record_of(outcome, question).rr]
    except FormatError:  # such as names that are not UTF-8
        return [
            f"{to_text(rrset.owner)} {rrset.ttl} {iana.type_text(rrset.type)} \\# {len(data)} {data.hex()}"
            for rrset in outcome.answer
            for data in rrset.rdatas
        ]
