"""`kdns explain`: how a name is answered, and why.

    kdns explain NAME [TYPE] [--from NAMESPACE] [-conf FILE]

Reads the Corefile and what it names (manifests, the API), and takes the question through its plugins without opening a
listener. With `--from` the name is looked up as a Pod of that namespace does: through its search list, with ndots 5.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from kdns import log
from kdns.cli import corefiles
from kdns.cli.flags import BadFlag, Flag, parse, usage
from kdns.corefile import CorefileError
from kdns.dns import iana
from kdns.dns.answer import SHAPE_RD, Answer
from kdns.dns.errors import BadName
from kdns.dns.message import pack_query
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset
from kdns.pipeline.block import Block
from kdns.pipeline.outcome import Bare, Pending, adopt
from kdns.pipeline.plugin import Plugin, overrides
from kdns.pipeline.protocols import Readiness
from kdns.pipeline.request import Request
from kdns.pipeline.runtime import Runtime
from kdns.server import build
from kdns.server.dispatch import Dispatcher

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile; "-" or "stdin" reads standard input'),
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    Flag(("from",), "", "namespace of the Pod that asks: its search list is walked"),
)
_HEAD: Final = "Usage: kdns explain [FLAGS] NAME [TYPE]\n\nFlags:"
# Plugins that would open listeners or end the process; they decide nothing about an answer.
_LEFT_OUT: Final = frozenset(("health", "ready", "prometheus", "reload", "loop", "log", "errors"))
NDOTS: Final = 5  # what the kubelet writes into a Pod's resolv.conf
SYNC: Final = 10.0  # seconds to wait for the API


def main(words: Sequence[str]) -> int:
    """Explains one question; returns the exit code."""
    values: dict[str, Any] = {}
    rest: list[str] = []
    left = list(words)
    try:
        values, left = parse(left, FLAGS)
        while left:
            rest.append(left.pop(0))
            more, left = parse(left, FLAGS)
            values |= {name: value for name, value in more.items() if value not in ("", 53)}
    except BadFlag as error:
        sys.stderr.write(f"{error}\n" * bool(str(error)) + usage(_HEAD, FLAGS))
        return 0 if error.help else 2
    qtype = iana.type_number(rest[1]) if len(rest) > 1 else iana.A
    if not 1 <= len(rest) <= 2 or qtype is None:
        sys.stderr.write("kdns explain takes a name, and a type if it is not A\n")
        return 2
    log.start_writer(sys.stderr)
    try:
        instance = build.build(corefiles.read(str(values["conf"]) or "Corefile", int(values["dns.port"])))
        instance.load()
        names = candidates(rest[0], str(values["from"]).partition("/")[0], instance)
        return asyncio.run(_explain(instance, names, qtype))
    except BrokenPipeError:
        raise
    except (CorefileError, OSError, BadName) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        log.stop_writer()


def candidates(name: str, namespace: str, instance: build.Instance) -> list[bytes]:
    """The names that a resolver asks for, in order (resolv.conf(5): search and ndots)."""
    absolute = from_text(name).lower()
    if not namespace or name.endswith("."):
        return [absolute]
    zone = next((to_text(p.primary) for p in _configs(instance)), "cluster.local.")
    search = [f"{namespace}.svc.{zone}", f"svc.{zone}", zone]
    listed = [from_text(f"{name}.{suffix}").lower() for suffix in search]
    return [*listed, absolute] if name.count(".") < NDOTS else [absolute, *listed]


def _configs(instance: build.Instance) -> list[Any]:
    return [plugin.config for plugin in instance.plugins if plugin.name == "kubernetes"]


async def _explain(instance: build.Instance, names: list[bytes], qtype: int) -> int:
    runtime = Runtime()
    started: list[Plugin] = []
    try:
        for plugin in instance.plugins:
            if plugin.name not in _LEFT_OUT:
                started.append(plugin)
                await plugin.start(runtime)
        await _synced(instance)
        dispatcher = next(iter(instance.dispatchers.values()))
        found = False
        for number, name in enumerate(names):
            if number:
                print()
            print(f"{to_text(name)} {iana.type_text(qtype)}")
            outcome = await _one(dispatcher, Question(name, qtype))
            found = type(outcome) is Answer and outcome.rcode == iana.NOERROR and bool(outcome.answer)
            if found:
                break
        return 0 if found else 3
    finally:
        for plugin in reversed(started):
            await plugin.stop()


async def _synced(instance: build.Instance) -> None:
    end = time.monotonic() + SYNC
    waiting = [plugin for plugin in instance.plugins if isinstance(plugin, Readiness) and not plugin.is_ready()]
    while any(not plugin.is_ready() for plugin in waiting) and time.monotonic() < end:
        await asyncio.sleep(0.02)


async def _one(dispatcher: Dispatcher, question: Question) -> object:
    """Takes one question through, printing what each plugin decides."""
    query = pack_query(1, question)
    local = (socket.gethostname(), 53)
    end = 12 + len(question.wire)
    request = Request(dispatcher, query, end, question, None, SHAPE_RD, ("127.0.0.1", 0), local, "udp", time.monotonic())
    block = dispatcher.only or dispatcher._find(request)
    if block is None:
        print("  no server block is for this name: REFUSED")
        return None
    print("  server block " + " ".join(str(key) for key in block.keys.keys) + (f" (view {block.view})" if block.view else ""))
    told: list[str] = []
    traced = _traced(block, told)
    try:
        outcome: object = dispatcher.route(request)
        if isinstance(outcome, Pending):
            outcome = await outcome
    finally:
        for plugin, hook, original in traced:
            setattr(plugin, hook, original)
        block.compile()
    print("\n".join([*told, f"  = {_said(outcome)}"]))
    for line in _records(outcome):
        print(f"    {line}")
    return outcome


def _traced(block: Block, told: list[str]) -> list[tuple[Plugin, str, Any]]:
    """Lets each plugin of a block say what it does with a question: lines for `told`."""
    out: list[tuple[Plugin, str, Any]] = []
    for plugin in block.plugins:
        if plugin.name in _LEFT_OUT or not overrides(plugin, "handle"):
            continue
        original = plugin.handle
        out.append((plugin, "handle", original))
        plugin.handle = _telling(plugin, original, told)  # type: ignore[method-assign, assignment]
    block.compile()
    return out


def _telling(plugin: Plugin, original: Callable[[Request], Any], told: list[str]) -> Callable[[Request], Any]:
    def handle(request: Request) -> Any:
        indent = "  " * (request.depth + 1)
        before = request.question
        value = original(request)
        changed = ""
        if request.question is not before:
            changed = f" (asks for {to_text(request.question.name)} {iana.type_text(request.question.type)} from here on)"

        def tell(found: Any) -> None:
            why = plugin.explain(request) if found is not None else ""
            told.append(f"{indent}{plugin.name}: {_said(found)}{changed}" + (f" - {why}" if why else ""))

        if value is None or not hasattr(value, "__await__"):
            tell(value)
            return value
        pending = adopt(value)
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
    if type(outcome) is Bare:
        return iana.rcode_text(outcome.rcode) + (f": {outcome.error}" if outcome.error else "")
    return str(outcome) or type(outcome).__name__


def _records(outcome: object) -> list[str]:
    if type(outcome) is not Answer:
        return []
    return [line for rrset in outcome.answer for line in _lines(rrset)]


def _lines(rrset: RRset) -> list[str]:
    out = []
    for data in rrset.rdatas:
        if rrset.type in (iana.A, iana.AAAA):
            text = socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
        elif rrset.type in (iana.CNAME, iana.PTR, iana.NS):
            text = to_text(data)
        elif rrset.type == iana.SRV:
            text = " ".join(str(data[i] << 8 | data[i + 1]) for i in (0, 2, 4)) + f" {to_text(data[6:])}"
        else:
            text = data.hex()
        out.append(f"{to_text(rrset.owner)} {rrset.ttl} {iana.type_text(rrset.type)} {text}")
    return out
