"""`kdns explain`: how a name is answered, and why.

    kdns explain NAME [TYPE] [--from NAMESPACE[/POD]] [--limits] [-conf FILE] [--context NAME]

Reads the Corefile and what it names (manifests, the API), and takes the question through its plugins without opening a
listener. Without a file the Corefile is the cluster's own: of the kubeconfig's context, or the one that is named.

With `--from` the name is looked up as a Pod of that namespace does: through its search list, with ndots 5, from the
address of one that runs; or as that Pod does, whose `dnsPolicy` and `dnsConfig` are read. An address in place of a name
is looked up in reverse. Of several listeners the one on the default port is asked; `--limits` also says what it allows
its clients. Exit code: 0 with an answer, 3 without.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kdns import log
from kdns.cli import cluster, corefiles, listenerlimits, streams
from kdns.cli.flags import BadFlag, Flag, Help, Value, misused, parse_among, refuse
from kdns.cli.offline import LEFT_OUT, Offline
from kdns.cli.query import reverse_of
from kdns.cli.resolv import Resolver, of_namespace, of_pod
from kdns.cli.running import run
from kdns.corefile import Corefile, CorefileError
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName, FormatError
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.kube.api import ApiConfig
from kdns.plugin.base import Plugin
from kdns.plugin.outcome import RcodeOnly, ensure_pending
from kdns.plugin.providers import Pods
from kdns.plugin.records import record_of
from kdns.plugin.request import Request
from kdns.printable import printable
from kdns.server import build
from kdns.server.chain import Handle

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile; "-" or "stdin" reads standard input'),
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    corefiles.WITH,
    Flag(
        ("from", "namespace", "n"),
        "",
        "namespace, or NAMESPACE/POD, that asks, with its search list and address",
    ),
    Flag(("limits",), False, "also say what the listener that is asked allows its clients"),
    *cluster.FLAGS,
)
HELP: Final = Help(
    "explain", "kdns explain [FLAGS] NAME [TYPE] | ADDRESS",
    "Takes a question through the plugins of a Corefile (-conf, ./Corefile, else the cluster's own), and says who "
    "answers and why.",
    (
        ("kdns explain web.shop.svc.cluster.local", "the Corefile and the objects of kubectl's current context"),
        ("kdns explain web --from shop/cart-7d9f", "as that Pod looks it up: its search list, its ndots"),
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
        corefile = read_corefile(values, str(values["with"]))
        if not corefile.blocks:
            raise CorefileError(None, f"{corefile.name} has no server block: nothing to explain")
        instance = build.build(corefile)
        instance.load()
        offline = Offline(instance, int(values["dns.port"]))
        if values["limits"]:
            print(f"listener {offline.group.label}")
            for line in listenerlimits.of_listener(instance, offline.group):
                print(f"  {line}")
            print()
        return run(_explain(offline, name, qtype, place))
    except BrokenPipeError:
        raise
    except (CorefileError, OSError, BadName, ValueError) as error:
        streams.pass_on(error)
        sys.stderr.write(f"{printable(streams.explained(error))}\n")
        return 1
    finally:
        log.stop_writer()


def read_corefile(values: Mapping[str, Value], beside: str = "") -> Corefile:
    """The Corefile of `-conf`, of this folder, or of the cluster; its `kubernetes` with access to the cluster.

    Not to be called on a loop. Raises CorefileError, OSError or ValueError.
    """
    path, port = str(values["conf"]), int(values["dns.port"])
    named = bool(values["context"] or values["kubeconfig"])
    if path or (os.path.lexists("Corefile") and not named):
        corefile = corefiles.read(path or "Corefile", port, beside)
        return cluster.with_access(corefile, cluster.access(values)) if cluster.is_configured(values) else corefile
    if not cluster.is_configured(values):
        raise CorefileError(
            None, "there is no ./Corefile and no cluster is configured: name one with -conf, --kubeconfig or --context"
        )
    config = cluster.access(values)
    return cluster.with_access(corefiles.parsed(run(_cluster_corefile(config, values)), port), config)


async def _cluster_corefile(config: ApiConfig, values: Mapping[str, Value]) -> corefiles.Source:
    namespace = str(values["dns-namespace"])
    asked = cluster.Cluster(config)
    try:
        found = await asked.corefiles(namespace)
    except cluster.FAILURES as error:
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


async def _explain(offline: Offline, name: str, qtype: int, place: str) -> int:
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
                f"asked at {offline.group.label}; there are also {', '.join(group.label for group in offline.others)}"
            )
        found = False
        for number, each in enumerate(names):
            if number or place:
                print()
            print(f"{to_text(each)} {iana.type_text(qtype)}")
            outcome = await _one(offline, Question(each, qtype))
            found = type(outcome) is Answer and outcome.rcode == iana.NOERROR and bool(outcome.answer)
            if found:
                break
        return 0 if found else 3
    finally:
        await offline.stop()


async def _one(offline: Offline, question: Question) -> object:
    """Takes one question through, printing what each plugin decides."""
    request = offline.request(question)
    block = offline.dispatcher.find(request)
    if block is None:
        print("  no server block serves this name: REFUSED")
        return None
    print(
        "  server block "
        + " ".join(str(key) for key in block.parsed.keys)
        + (f" (view {block.view})" if block.view else "")
    )
    told: list[str] = []
    untold = block.chain
    block.chain = untold.watched(lambda plugin, handle: _telling(plugin, handle, told))
    try:
        outcome: object = await offline.route(request)
    finally:
        block.chain = untold
    for line in (*told, f"  = {_said(outcome)}", *(f"    {line}" for line in _records(outcome, question))):
        print(printable(line))
    return outcome


def _telling(plugin: Plugin, original: Handle, told: list[str]) -> Handle:
    """A plugin's `handle` that also says what it does with a question: lines for `told`."""
    if plugin.name in LEFT_OUT:
        return original

    def handle(request: Request) -> Any:
        indent = "  " * (request.depth + 1)
        before = request.question
        value = original(request)
        changed = ""
        if request.question is not before:
            changed = (
                f" (asks for {to_text(request.question.name)} {iana.type_text(request.question.type)} from here on)"
            )

        def tell(found: Any) -> None:
            why = plugin.explain(request) if found is not None else ""
            told.append(f"{indent}{plugin.name}: {_said(found)}{changed}" + (f" - {why}" if why else ""))

        if value is None or not hasattr(value, "__await__"):
            tell(value)
            return value
        pending = ensure_pending(value)
        pending.add(tell)
        return pending

    return handle


def _said(outcome: object) -> str:
    if outcome is None:
        return "passes it on"
    if type(outcome) is Answer:
        count = sum(len(rrset.rdatas) for rrset in outcome.answer)
        code = iana.rcode_text(outcome.rcode)
        if not count and outcome.rcode == iana.NOERROR:
            code = "NODATA (the name exists, with no record of this type)"
        return f"{code}, {count} record{'s' * (count != 1)}" if count else code
    if type(outcome) is RcodeOnly:
        return iana.rcode_text(outcome.rcode) + (f": {outcome.error}" if outcome.error else "")
    return str(outcome) or type(outcome).__name__


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
