"""`kdns compare`: asks two servers the same questions, and says where they differ.

Either of them may be the configuration at hand, which answers without a listener. Every question that is answered
differently is asked of both again: a Service that changed in between is not a difference. Asked at a bounded rate, a
few at a time.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, NamedTuple

from kdns import files, log
from kdns.address import split_host_port
from kdns.cli import cluster, differences, questionfile, questions, streams
from kdns.cli.explain import read_corefile
from kdns.cli.flags import BadFlag, Flag, Help, Value, misused, parse_among, refuse
from kdns.cli.offline import Offline
from kdns.cli.running import result_of, run
from kdns.corefile import CorefileError
from kdns.deadlines import Deadlines
from kdns.dns import edns, iana, reply
from kdns.dns.answer import REPLY_EDNS, REPLY_RD, Answer
from kdns.dns.edns import Edns
from kdns.dns.errors import BadName, FormatError
from kdns.dns.message import pack_query, parse_reply
from kdns.dns.query import Question
from kdns.kube import manifest_file
from kdns.kube.access import ApiConfig
from kdns.plugin.outcome import RcodeOnly
from kdns.plugins.kubernetes import Kubernetes
from kdns.printable import printable
from kdns.server import build
from kdns.server.life import READING, loaded
from kdns.upstream.exchange import Result
from kdns.upstream.upstream import Address, Options, Upstream

TIMEOUT: Final = 3.0  # seconds a server has for one question
AT_ONCE: Final = 20  # questions in flight: what a server notices no more than one busy Pod
LIMIT: Final = 10_000  # questions asked at most, if nothing else is said
RATE: Final = 500  # questions a second, if nothing else is said: 1 or 2 % of what a server can do
SHOWN: Final = 10  # of each kind, if nothing else is said
DIFFERENT: Final = 3
NO_REPLY: Final = 9

FLAGS: Final = (
    Flag(("with",), "", "server to compare with, HOST[:PORT]; as @HOST"),
    Flag(("conf",), "", "Corefile to compare with one server (default: ./Corefile, else the cluster's own)"),
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    Flag(("file",), "", 'questions: dnstap, lines of the plugin log, or dnsperf\'s format; "-" reads standard input'),
    Flag(("manifests",), "", "file or folder of YAML whose Services are asked for (default: the cluster's)"),
    Flag(("zone",), "cluster.local", "zone of the cluster"),
    Flag(("limit",), LIMIT, "questions asked at most; of more, an even sample", 10_000_000),
    Flag(("rate",), RATE, "questions a second asked of each", 1_000_000),
    Flag(("all",), False, "show every difference, not the first of each kind"),
    Flag(("json",), False, "print the result as JSON"),
    *cluster.FLAGS,
)
HELP: Final = Help(
    "compare", "kdns compare @SERVER [@OTHER] [FLAGS] [NAME [TYPE]]",
    "Asks two servers, or this configuration and a server, the same questions, and says where they differ: the names "
    "of the\n"
    "cluster's objects, those of a log or a dnstap file, or one that is given.",
    (
        ("kdns compare @10.96.0.10 @10.96.200.10", "CoreDNS and kdns beside it, by the cluster's own names"),
        ("kdns compare --with 10.96.0.10", "the cluster's Corefile as kdns would serve it, and what serves now"),
        ("kubectl -n kube-system logs -l k8s-app=kube-dns | kdns compare @10.96.0.10 @10.96.200.10 --file -",
            "what Pods truly ask"),
        ("kdns compare @10.96.0.10 @10.96.200.10 --file queries.dnstap", "or asked, as dnstap wrote it down"),
        ("kdns compare @127.0.0.1:1053 @127.0.0.1:1054 --manifests cluster.yaml", "without a cluster"),
    ),
    (
        (0, "they answer alike, but for what docs/differences.md documents"), (1, "what is needed cannot be read"),
        (2, "a bad flag or word"),
        (DIFFERENT, "they answer differently"), (NO_REPLY, "one of them answers nothing"),
    ),
)  # fmt: skip

Ask = Callable[[Question], Awaitable[Answer | str]]


class Side(NamedTuple):
    """One of the two: its name, how it is asked, and how it is ended."""

    name: str
    ask: Ask
    close: Callable[[], Awaitable[None]]


class Report(NamedTuple):
    """The result of a comparison."""

    one: str
    other: str
    questions: int
    silent: str  # who answered nothing at all
    found: list[differences.Difference]

    @property
    def serious(self) -> list[differences.Difference]:
        """What a client notices and no document announces."""
        return [each for each in self.found if each.kind in differences.SERIOUS and not each.documented]

    @property
    def code(self) -> int:
        """The exit code."""
        return NO_REPLY if self.silent else DIFFERENT if self.serious else 0


def main(words: Sequence[str]) -> int:
    """Compares; returns the exit code."""
    try:
        values, given = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    servers = [word[1:] for word in given if word.startswith("@")] + ([str(values["with"])] if values["with"] else [])
    names = [word for word in given if not word.startswith("@")]
    if not 1 <= len(servers) <= 2:
        return misused("kdns compare takes one server to compare this configuration with, or two", HELP)
    if not int(values["limit"]) or not int(values["rate"]):
        return misused("-limit and -rate are at least 1", HELP)
    log.start_writer(sys.stderr)
    try:
        wheres = [split_host_port(server, int(values["dns.port"])) for server in servers]
        if names:
            asked = questions.Asked(names[0], (names[1:] or ["A"])[0].upper())
            asked.question()
        zones = differences.zones_of([str(values["zone"]), "in-addr.arpa", "ip6.arpa"])
        if len(names) > 2:
            raise ValueError("kdns compare takes one name, and a type if it is not A; more of them from a --file")
    except (BadName, ValueError) as error:
        log.stop_writer()
        return misused(str(error), HELP)
    try:
        report = run(_compare(values, wheres, [asked] if names else None, zones))
    except BrokenPipeError:
        raise
    except (CorefileError, OSError, BadName, ValueError) as error:
        streams.pass_on(error)
        sys.stderr.write(f"{printable(streams.explained(error))}\n")
        return 1
    finally:
        log.stop_writer()
    shown = len(report.found) if values["all"] else SHOWN
    streams.until_closed(lambda: _print(report, bool(values["json"]), shown))
    return report.code


async def _compare(
    values: Mapping[str, Value],
    wheres: list[tuple[str, int]],
    names: list[questions.Asked] | None,
    zones: tuple[bytes, ...],
) -> Report:
    sides: list[Side] = []
    instance: build.Instance | None = None
    try:
        if len(wheres) == 1:
            corefile, untried = await files.waiting("reading the Corefile", partial(read_corefile, values), READING)
            for each in untried:
                sys.stderr.write(printable(f"{corefile.name}: warning: {each.unseen}") + "\n")
            if not corefile.blocks:
                raise CorefileError(None, f"{corefile.name} has no server block")
            instance = build.build(corefile)
            await loaded(instance, instance.load)
            sides.append(await _offline(instance, int(values["dns.port"])))
        sides += [_server(await _address(host), port) for host, port in wheres]
        found = names if names is not None else await _questions(values, instance)
        asked = questions.sampled(found, int(values["limit"]))
        if not asked:
            raise ValueError("no questions were found: there is nothing to ask")
        return await _run(sides[0], sides[1], asked, zones, int(values["rate"]))
    finally:
        for side in sides:
            await side.close()


async def _questions(values: Mapping[str, Value], instance: build.Instance | None) -> list[questions.Asked]:
    """The questions of a file, of manifests, or of the cluster. Raises OSError, ValueError or CorefileError."""
    path, zone = str(values["file"]), str(values["zone"]).rstrip(".")
    if path:
        return await files.waiting(f"reading {path}", partial(_from_file, path, int(values["limit"])), None)
    plugins = [plugin for plugin in instance.plugins if isinstance(plugin, Kubernetes)] if instance is not None else []
    paths = (
        (str(values["manifests"]),)
        if values["manifests"]
        else next((plugin.paths for plugin in plugins if plugin.paths), ())
    )
    if paths:
        objects = await files.waiting(f"reading {' '.join(paths)}", partial(_from_manifests, paths), READING)
        if not objects:
            raise ValueError(f"there is no object of Kubernetes in {' '.join(paths)}: there is nothing to ask for")
        return list(questions.of_objects(objects, zone))
    config: ApiConfig | None = next((plugin.api for plugin in plugins if plugin.api is not None), None)
    return list(questions.of_objects(await _from_api(config or cluster.access(values)), zone))


def _from_file(path: str, limit: int) -> list[questions.Asked]:
    def note(text: str) -> None:
        sys.stderr.write(f"{printable(text)}\n")

    is_input = path in ("-", "stdin")
    name = "stdin" if is_input else path
    with nullcontext(sys.stdin.buffer) if is_input else open(path, "rb") as file:
        found = questions.sampled(questionfile.of_file(file, name, note), limit)
    if not found:
        raise ValueError(f"{name} has no questions: there is nothing to ask")
    return found


def _from_manifests(paths: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{**each.mapping, "kind": each.kind} for each in manifest_file.objects_of(paths)]


async def _from_api(config: ApiConfig) -> list[dict[str, Any]]:
    asked = cluster.Cluster(config)
    try:
        out = []
        for kind, path in (("Namespace", "/api/v1/namespaces"), ("Service", "/api/v1/services"),
                           ("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices")):  # fmt: skip
            out += [{**item, "kind": kind} for item in await asked.items(path)]
        return out
    except cluster.failures() as error:
        raise ValueError(f"the cluster's objects cannot be listed: {cluster.explained(error)}") from None
    finally:
        await asked.close()


# The two sides.


async def _address(host: str) -> str:
    """An address, or the first that a name has. Raises ValueError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"@{host}: {getattr(error, 'strerror', None) or error}") from None
    return str(found[0][4][0])


def _server(host: str, port: int) -> Side:
    where = Address("dns", host, port)
    upstream = Upstream(where, Options(timeout=TIMEOUT, max_fails=0), "compare", Deadlines(), None)
    opt = edns.opt()

    async def ask(question: Question) -> Answer | str:
        result: Result | None = None
        for _ in range(2):  # one datagram may be lost
            result = await result_of(upstream, pack_query(0, question, opt=opt), question, "udp")
            if type(result) is Answer:
                return result
        return str(result)

    return Side(where.text, ask, upstream.close)


async def _offline(instance: build.Instance, port: int) -> Side:
    offline = Offline(instance, port)
    try:
        late = await offline.start()
    except BaseException:
        await offline.stop()
        raise
    if late:
        await offline.stop()
        raise CorefileError(None, f"plugin/{late[0]} is not ready: what it would answer cannot be compared yet")

    async def ask(question: Question) -> Answer | str:
        request = offline.request(question)
        if offline.dispatcher.find(request) is None:
            return Answer(iana.REFUSED)
        outcome = await offline.route(request)
        if type(outcome) is RcodeOnly:
            outcome = Answer(outcome.rcode)
        if type(outcome) is not Answer:
            return "no reply: the configuration drops the query"
        # As it leaves a listener, and as a client reads it.
        query = pack_query(0, question)
        packed = reply.pack(
            outcome,
            outcome.rendered(question.name),
            query,
            12 + len(question.wire),
            REPLY_RD | REPLY_EDNS,
            Edns(edns.UDP_SIZE, False),
            65535,
        )
        try:
            return parse_reply(packed, question).answer
        except FormatError as error:
            return f"a reply that cannot be read: {error}"

    return Side(f"{instance.corefile.name} (this configuration)", ask, offline.stop)


async def _run(one: Side, other: Side, asked: list[questions.Asked], zones: tuple[bytes, ...], rate: int) -> Report:
    found: list[list[differences.Difference]] = [[] for _ in asked]
    replied = [0, 0]
    began = time.monotonic()
    at = 0

    async def both(question: Question) -> tuple[Answer | str, Answer | str]:
        return await asyncio.gather(one.ask(question), other.ask(question))

    async def work() -> None:
        nonlocal at
        while at < len(asked):
            mine, at = at, at + 1
            await asyncio.sleep(max(0.0, began + mine / rate - time.monotonic()))
            question = asked[mine].question()
            pair = await both(question)
            for side, answer in enumerate(pair):
                replied[side] += isinstance(answer, Answer)
            if mine >= AT_ONCE and not all(replied):
                at = len(asked)  # one of them answers nothing at all: that is the finding
                return
            found[mine] = differences.compared(question, zones, *pair)
            if any(each.kind in differences.SERIOUS and not each.documented for each in found[mine]):
                await asyncio.sleep(min(1.0, 5 / rate))
                found[mine] = differences.compared(question, zones, *await both(question))

    await asyncio.gather(*(work() for _ in range(min(AT_ONCE, len(asked)))))
    silent = "" if all(replied) else (one.name if not replied[0] else other.name)
    return Report(one.name, other.name, len(asked), silent, [each for some in found for each in some])


# What is printed.


def _print(report: Report, as_json: bool, shown: int) -> None:
    if as_json:
        told = [each._asdict() for each in report.found]
        print(
            json.dumps({**report._asdict(), "found": told, "serious": len(report.serious), "verdict": _verdict(report)})
        )
        return
    print(f"{report.questions} question{'s' * (report.questions != 1)}; left: {report.one}, right: {report.other}")
    for kind in differences.KINDS:
        for documented in (False, True):
            found = [each for each in report.found if each.kind == kind and bool(each.documented) is documented]
            if not found:
                continue
            note = (
                " - as docs/differences.md says"
                if documented
                else ""
                if kind in differences.SERIOUS
                else " - no client minds"
            )
            print(f"\n{kind}: {len(found)}{note}")
            for each in found[:shown]:
                print(f"  {printable(each.name)} {each.type}")
                print(f"      {printable(each.one)}  |  {printable(each.other)}")
                if each.documented:
                    print(f"      documented: {each.documented}")
            if len(found) > shown:
                print(f"  and {len(found) - shown} more (--all shows them)")
    print(f"\n{_verdict(report)}")


def _verdict(report: Report) -> str:
    if report.silent:
        return f"{report.silent} answers nothing: is it there, and may it be asked from here?"
    if report.serious:
        names = len({(each.name, each.type) for each in report.serious})
        asked = f"{report.questions} question{'s' * (report.questions != 1)}"
        return f"{names} of {asked} {'is' if names == 1 else 'are'} answered differently"
    rest = sum(1 for each in report.found if each.documented)
    return "both answer alike" + (f", but for {_differences(rest)}" if rest else "")


def _differences(count: int) -> str:
    return (
        f"{count} differences that docs/differences.md documents"
        if count != 1
        else "one difference that docs/differences.md documents"
    )
