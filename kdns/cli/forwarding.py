"""The upstreams of a cluster's Corefile, asked as its servers ask them: for `kdns doctor` in a Pod.

Each word of a line `forward` or `grpc` becomes a plugin of its own, with the options of the line: its addresses,
certificates, server name and time limits are the servers'. Two things differ: nothing is probed, and no
`source_address` is bound, as this Pod has another.
"""

import asyncio
import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from kdns import files
from kdns.address import is_address
from kdns.cli.clusterstate import Asked, State, Tried
from kdns.cli.configmaps import is_loopback, served
from kdns.cli.running import result_of
from kdns.corefile import CorefileError, Directive, ServerBlock, Token
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.message import pack_query
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.plugin.runtime import Runtime
from kdns.plugins.forward.attempt import LIMIT
from kdns.plugins.forward.config import target
from kdns.plugins.forward.grpc import Grpc
from kdns.plugins.forward.handler import Forward
from kdns.server import build
from kdns.server.block import Block
from kdns.upstream.upstream import Address, Upstream

SHOWN: Final = 10  # lines that have a finding each
MAX_ASKED: Final = 20  # words that are asked one by one
MAX_ADDRESSES: Final = 5  # of a host name that are asked
TRIES: Final = 2  # that `forward` has for an upstream
RESOLV_CONF: Final = "/etc/resolv.conf"
_PLUGINS: Final[dict[str, type[Forward]]] = {"forward": Forward, "grpc": Grpc}


class Line(NamedTuple):
    """A line `forward` or `grpc`: the domain it is for, where it stands, its words, and those that can be asked from
    here, each as a plugin in its block.
    """

    zone: str
    at: str
    words: tuple[str, ...]
    askable: list[tuple[str, Forward, Block]]


def lines(state: State) -> list[Line]:
    """The Corefile's lines, each once. What stands for a file of the DNS Pods is read where this Pod has the same."""
    out: dict[str, Line] = {}
    for parsed in served(state) or ():
        for name, cls in _PLUGINS.items():
            for directive in parsed.directives.get(name, ()):
                zone = directive.args[0].text if directive.args else "."
                at, words = f"{name}, {directive.at}", tuple(word.text for word in directive.args[1:])
                if at not in out and len(out) < SHOWN:  # the lines of a snippet stand in several blocks
                    out[at] = Line(zone, at, words, list(_askable(state, cls, directive, parsed)))
    return list(out.values())


def _askable(
    state: State, cls: type[Forward], directive: Directive, parsed: ServerBlock
) -> Iterator[tuple[str, Forward, Block]]:
    for word in directive.args[1:]:
        of_node = word.text == RESOLV_CONF and state.nodes_resolv_conf
        for each in [word._replace(text=text) for text in state.nameservers] if of_node else [word]:
            with contextlib.suppress(CorefileError, BadName):  # it has a finding of its own
                if (plugin := _alone(cls, directive, each, parsed)) is not None:
                    yield word.text, *plugin


def _alone(cls: type[Forward], directive: Directive, word: Token, parsed: ServerBlock) -> tuple[Forward, Block] | None:
    """The plugin of a line with one of its upstreams alone; None where the word may stand for a file of the DNS Pods.
    Raises CorefileError or BadName.
    """
    (config,) = cls.parse([replace(directive, args=(directive.args[0], word))], parsed)
    if "://" not in word.text and not is_address(target(config.targets[0]).host):
        return None
    options = replace(config.options, timeout=min(config.options.timeout, LIMIT), max_fails=0, source="")
    block = Block(parsed)
    if "root" in parsed.directives:
        (root,) = build.plugins_of("root", parsed.directives["root"], parsed)
        block.root = str(root.config)
    return cls(replace(config, options=options)), block


async def ask(state: State, outside: str) -> None:
    """Asks each upstream for a name that it is asked for: `outside`, or the domain that it is for."""
    found = [(line, *each) for line in lines(state) for each in line.askable][:MAX_ASKED]
    tried = await asyncio.gather(*(_tried(state, outside, *each) for each in found))
    state.upstreams = [each for each in tried if each is not None]


async def _tried(state: State, outside: str, line: Line, word: str, plugin: Forward, block: Block) -> Tried | None:
    """What came of a word; None where all that it leads to are the servers themselves."""
    config = plugin.config
    name = f"{outside.rstrip('.')}." if config.zone == b"\0" else to_text(config.zone)
    try:
        await files.waiting(f"reading what {word} ({line.at}) needs", partial(plugin.load, block))
    except (CorefileError, OSError) as error:
        why = error.message if isinstance(error, CorefileError) else str(error)
        if plugin.addresses:  # what cannot be read is its certificates
            return Tried(line.at, word, (), why)
        return Tried(line.at, word, (Asked(word, "", name, why, False, 0.0),))
    # A server's own address, and its Service, are findings on loops.
    known = [each for each in plugin.addresses if not is_loopback(each.host) and each.host != state.address]
    if not known:
        return None
    plugin.addresses = known[:MAX_ADDRESSES]
    await plugin.start(Runtime())
    try:
        asking = [_ask(plugin, *each, name) for each in zip(plugin.addresses, plugin.upstreams, strict=True)]
        return Tried(line.at, word, tuple(await asyncio.gather(*asking)))
    finally:
        await plugin.stop()


async def _ask(plugin: Forward, where: Address, upstream: Upstream, name: str) -> Asked:
    question = Question(from_text(name).lower(), iana.A)
    query = pack_query(0, question, ad=True, opt=edns.PLAIN)
    began = time.monotonic()
    said, answered = f"no reply in {LIMIT:g} s", False
    try:
        async with asyncio.timeout(LIMIT):
            for _ in range(TRIES):
                result = await result_of(upstream, query, question, "udp")
                if type(result) is Answer:
                    said, answered = iana.rcode_text(result.rcode), result.rcode == iana.NOERROR
                    break
                said = str(result)
    except TimeoutError:
        pass
    except OSError as error:
        said = error.strerror or str(error)
    plain = where.transport == "dns"
    transport = ("tcp" if upstream.stream_only else "udp") if plain else ""
    server = where.text if plain else f"{where.transport}://{where.text}"
    return Asked(server, transport, name, said, answered, time.monotonic() - began, _again(plugin, where, name))


def _again(plugin: Forward, where: Address, name: str) -> str:
    """The command that asks the same; empty where `kdns query` cannot: unencrypted gRPC, and certificates of ours."""
    words = ["kdns", "query", f"@{where.text}"]
    if where.transport != "dns":
        config = plugin.config
        if where.transport not in plugin.contexts or len(config.tls) > 1:
            return ""
        server_name = where.server_name or config.options.server_name
        words[-1] = f"@{where.transport}://{where.text}"
        words += [*(("-name", server_name) if server_name else ()), *(("-ca", config.tls[0]) if config.tls else ())]
    elif plugin.config.options.force_tcp:
        words.append("-tcp")
    return shlex.join([*words, name])
