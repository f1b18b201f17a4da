"""From a Corefile to blocks of plugins and dispatchers: the only place where things are wired together.

`read` and `build` are pure: text in, plugin objects out, nothing opened. `Instance.load` then reads files, resolves
names and looks at interfaces, groups the keys by listener and finds duplicates. `lifecycle` starts it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kdns import log
from kdns.address import host_port
from kdns.corefile import Corefile, CorefileError, Directive, Key, Reader, ServerBlock, Token, parse
from kdns.corefile.errors import did_you_mean
from kdns.dns.errors import BadName
from kdns.dns.name import from_text
from kdns.net.certificates import BadCertificate
from kdns.plugin import readers
from kdns.plugin.base import Plugin
from kdns.plugin.endpoint import ServesHttp, one_name
from kdns.plugin.providers import Processes
from kdns.server import catalog, encryption, plugin_files
from kdns.server.block import Block
from kdns.server.chain import Watch
from kdns.server.dispatch import Dispatcher
from kdns.server.order import ORDER, RANK
from kdns.server.schemes import SCHEMES
from kdns.timeslice import TimeSlice


class Group(NamedTuple):
    """What shares a listener: transport, host (empty: every address) and port."""

    scheme: str
    host: str
    port: int

    @property
    def label(self) -> str:
        """The metrics' `server` label."""
        return f"{self.scheme}://{host_port(self.host, self.port)}"


@dataclass(slots=True)
class Instance:
    """One configuration, built: blocks, and once loaded a dispatcher for each listener."""

    corefile: Corefile
    blocks: list[Block]
    dispatchers: dict[Group, Dispatcher] = field(default_factory=dict)
    loads: str = ""  # what is loaded at the moment, for whoever waits for it

    @property
    def plugins(self) -> list[Plugin]:
        """The plugins of all blocks, in the order they start."""
        return [plugin for block in self.blocks for plugin in block.plugins]

    def load(self, warn: bool = True) -> None:
        """Reads what the plugins' configs name, wires them, and groups the keys. Raises CorefileError or OSError.

        `warn`: whether warnings are logged.
        """
        for block in self.blocks:
            for plugin in block.plugins:
                self.loads = f"plugin/{plugin.name} of the server block at {block.parsed.at}"
                plugin.check(block)
                plugin.load(block)
                for warning in plugin.warnings() if warn else ():
                    log.plugin(plugin.name).warning(warning)
            time.sleep(0)  # where this is a thread: others first
        self.loads = ""
        self._wire()
        for warning in self._unused() if warn else ():
            log.plugin("tls").warning(warning)

    def _wire(self) -> None:
        for block in self.blocks:
            for plugin in block.plugins:
                plugin.wire(block)
            block.compile()
            time.sleep(0)
        self.group()

    def load_problems(self, wire: bool = True) -> list[CorefileError | OSError]:
        """Every error of `load`: each plugin is loaded, whatever the others say. For tools: warnings are not logged.

        `wire`: whether what was loaded is wired, if all of it could be.
        """
        found: list[CorefileError | OSError] = []
        for block in self.blocks:
            for plugin in block.plugins:
                try:
                    plugin.check(block)
                    plugin.load(block)
                except (CorefileError, OSError) as error:
                    found.append(error)
        if wire and not found:
            try:
                self._wire()
            except (CorefileError, OSError) as error:
                found.append(error)
        return found

    def check(self) -> None:
        """Raises CorefileError where two blocks, or two plugins, claim the same. Before `load` interfaces are only
        names.
        """
        for block in self.blocks:
            for plugin in block.plugins:
                plugin.check(block)
        for error in conflicts(self.blocks):
            raise error

    def warnings(self) -> list[str]:
        """What is not an error, and of no single plugin; once loaded, also what the certificates come to."""
        return [*encryption.unencrypted(self.blocks), *encryption.without_use(self.blocks), *self._unused()]

    def _unused(self) -> list[str]:
        """Warnings of certificates that are of no use; none before `load`."""
        shown = [(group, found.identities) for group, found in self.dispatchers.items() if found.identities is not None]
        return [
            f"{group.label}: no client is shown the certificate {path}: it has no DNS name that those of the blocks "
            f"before it do not have"
            for group, identities in shown for path in identities.unused()
        ]  # fmt: skip

    def group(self) -> None:
        """Makes the dispatchers. Raises CorefileError where two blocks claim the same."""
        self.check()
        self.dispatchers.clear()
        for block in self.blocks:
            options = [found for plugin in block.plugins if (found := plugin.listener()) is not None]
            for key in block.parsed.keys:
                for host in block.hosts or ("",):
                    group = Group(key.scheme, host, key.port)
                    dispatcher = self.dispatchers.get(group)
                    if dispatcher is None:
                        dispatcher = self.dispatchers[group] = Dispatcher(group.label)
                    dispatcher.add(from_text(key.zone), block)
                    for option in options:
                        dispatcher.fold(option)
            time.sleep(0)
        for group, dispatcher in self.dispatchers.items():
            dispatcher.ready()
            try:
                dispatcher.identities = encryption.identities(group.scheme, dispatcher.settings.tls)
            except BadCertificate as error:
                raise CorefileError(None, f"tls: {error}") from None

    async def close_beside(self) -> None:
        """`close`, while others run."""
        slice_ = TimeSlice()
        for _ in self._closing():
            await slice_.pause()

    def processes(self) -> int:
        """How many processes are to serve: the most that a block asks for."""
        return max([found.processes for block in self.blocks for found in block.all(Processes)], default=1)

    def close(self) -> None:
        """Takes apart what was stopped, or never started: objects that hold each other are garbage only a long pass
        would find.
        """
        for _ in self._closing():
            pass

    def _closing(self) -> Iterator[None]:
        while self.dispatchers:
            self.dispatchers.popitem()[1].close()
            yield
        for block in self.blocks:
            block.close()
            yield
        while self.blocks:  # one by one, as each may be the last to hold its plugins
            self.blocks.pop()
            yield


def read(
    text: str,
    name: str,
    *,
    default_port: int = 53,
    environ: Mapping[str, str] | None = None,
    reader: Reader | None = None,
    errors: list[CorefileError] | None = None,
) -> Corefile:
    """A Corefile's blocks; directives must be known. Raises CorefileError (`errors`: see corefile.parse)."""
    names = catalog.known()
    return parse(
        text,
        name,
        default_port=default_port,
        known=names,
        suggestions=[*names, "import"],
        environ=os.environ if environ is None else environ,
        reader=reader,
        errors=errors,
    )


def build(corefile: Corefile, watch: Watch | None = None) -> Instance:
    """Plugin objects for each block, in the fixed order. Raises CorefileError. Opens nothing.

    `watch` is told what the plugins do with queries; it costs time with each.
    """
    instance = Instance(corefile, [])
    fill(instance, watch)
    return instance


def fill(instance: Instance, watch: Watch | None = None) -> None:
    """Does `build` for an instance without blocks."""
    for _ in _steps(instance.corefile, instance, watch):
        pass


async def build_beside(corefile: Corefile) -> Instance:
    """The same while others run."""
    instance = Instance(corefile, [])
    slice_ = TimeSlice()
    for _ in _steps(corefile, instance):
        await slice_.pause()
    return instance


def _steps(corefile: Corefile, instance: Instance, watch: Watch | None = None) -> Iterator[None]:
    """Fills an instance; yields where others may run."""
    blocks = instance.blocks
    for parsed in corefile.blocks:
        yield
        for key in parsed.keys:
            check_key(key)
        block = Block(parsed, watch)
        ranked: list[tuple[tuple[float, str], list[Plugin]]] = []
        folder = folder_of(corefile, parsed)
        for name, directives in parsed.directives.items():
            if name == plugin_files.NAME:
                for directive in directives:
                    instance.loads = f"the plugin file at {directive.at}"
                    cls, read_as = plugin_files.load(directive, folder)
                    ranked.append(((_before(cls, directive.args[0]), cls.name), _parsed(cls, [read_as], parsed)))
            else:
                ranked.append((rank(directives[0].name), plugins_of(name, directives, parsed)))
        for _, made in sorted(ranked, key=lambda item: item[0]):
            block.plugins += made
        blocks.append(block)
    instance.loads = ""
    for block in blocks:
        block.siblings = blocks
        block.compile()
        yield


def plugin_paths(corefile: Corefile) -> list[str]:
    """The plugin files that a Corefile names."""
    out = []
    for block in corefile.blocks:
        for directive in block.directives.get(plugin_files.NAME, ()):
            with contextlib.suppress(CorefileError):  # of `root`
                out += [os.path.join(folder_of(corefile, block), word.text) for word in directive.args[:1]]
    return out


def folder_of(corefile: Corefile, block: ServerBlock) -> str:
    """Where the relative paths of a block's plugin files begin."""
    if "root" in block.directives:
        (root,) = plugins_of("root", block.directives["root"], block)
        return str(root.config)
    return os.path.dirname(corefile.name)


def rank(word: Token) -> tuple[float, str]:
    """Where a directive's plugin stands: by the fixed order, or right before the plugin it names. Raises
    CorefileError.
    """
    name = word.text
    if name in RANK:
        return RANK[name], name
    cls = catalog.plugin_class(name)
    return (_before(cls, word) if cls is not None else float(len(RANK))), name


def _before(cls: type[Plugin], word: Token) -> float:
    """The place right before the plugin that a class names. Raises CorefileError where there is none of that name."""
    before: object = cls.before  # what an author wrote
    rank = RANK.get(before) if isinstance(before, str) else None
    if rank is None:
        named = f'"{before}"' if isinstance(before, str) else repr(before)
        raise CorefileError(
            word.at,
            f"plugin {cls.name}: `before` names {named}, which is not a plugin{did_you_mean(str(before), ORDER)}",
        )
    return rank - 0.5


def plugins_of(name: str, directives: list[Directive], block: ServerBlock) -> list[Plugin]:
    """The plugins that the directives of this name make in a block. Raises CorefileError."""
    cls = catalog.plugin_class(name)
    if cls is None:
        raise CorefileError(
            directives[0].at,
            f'plugin "{name}" is known from CoreDNS, but this version of kdns does not have it yet',
        )
    return _parsed(cls, directives, block)


def _parsed(cls: type[Plugin], directives: list[Directive], block: ServerBlock) -> list[Plugin]:
    """The plugins that a class makes of its directives. One without a `parse` of its own takes no arguments."""
    if next(each for each in cls.__mro__ if "parse" in vars(each)) is Plugin:
        for directive in directives:
            readers.bare(directive)
        return [cls(None) for _ in directives]
    return [cls(config) for config in cls.parse(directives, block)]


def check_key(key: Key) -> None:
    """Raises CorefileError for a key that cannot be served."""
    if key.scheme not in SCHEMES:
        served = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise CorefileError(
            key.token.at,
            f'"{key.token.text}": this version of kdns does not have {key.scheme}:// yet; it serves {served}',
        )
    try:
        from_text(key.zone)
    except BadName as error:
        raise CorefileError(key.token.at, str(error)) from None


def conflicts(blocks: list[Block]) -> Iterator[CorefileError]:
    """What blocks, or their plugins, claim twice, and where their listeners cannot be encrypted as they ask."""
    yield from _duplicates(blocks)
    yield from _shared_ports(blocks)
    yield from _shared_endpoints(blocks)
    yield from encryption.problems(blocks)


def _duplicates(blocks: list[Block]) -> Iterator[CorefileError]:
    """Where two keys claim the same zone, transport and port on the same or overlapping addresses."""
    claims: dict[tuple[str, str, int], dict[str, Key]] = {}  # by scheme, zone and port: who claims which address
    for block in blocks:
        time.sleep(0)  # where this is a thread: others first
        hosts = block.named_hosts()
        for key in block.parsed.keys:
            for host in hosts:
                claimed = claims.setdefault((key.scheme, key.zone, key.port), {})
                overlap = _overlap(claimed, host)
                if overlap is not None:
                    yield CorefileError(
                        key.token.at,
                        f"cannot serve {key} - zone overlap listener capacity with {overlap} defined at "
                        f"{overlap.token.at}: "
                        "one is bound to an address, the other to all",
                    )
                elif block.admits:
                    continue
                elif host in claimed:
                    yield CorefileError(
                        key.token.at, f"cannot serve {key} - it is already defined at {claimed[host].token.at}"
                    )
                else:
                    claimed[host] = key


def _shared_ports(blocks: list[Block]) -> Iterator[CorefileError]:
    """Where two schemes have one address and port: the kernel would give a client to the one or the other by chance."""
    claims: dict[tuple[socket.SocketKind, int], dict[tuple[str, str], Key]] = {}  # by kind and port: host and scheme
    for block in blocks:
        time.sleep(0)  # where this is a thread: others first
        for host in block.named_hosts():
            for key in block.parsed.keys:
                for kind in SCHEMES[key.scheme].kinds if key.port else ():
                    claimed = claims.setdefault((kind, key.port), {})
                    other = _sharing(claimed, kind, host, key.scheme)
                    if other is not None:
                        yield CorefileError(
                            key.token.at,
                            f"{key} and {other} at {other.token.at} cannot share {_KINDS[kind]} port {key.port}: give "
                            f"one of them another port, or another address with `bind`",
                        )
                    claimed.setdefault((host, key.scheme), key)


def _sharing(claimed: dict[tuple[str, str], Key], kind: socket.SocketKind, host: str, scheme: str) -> Key | None:
    """The key of another scheme whose sockets of a kind would get the clients of this one's."""
    for (its, other), key in claimed.items():
        # Plain DNS on every address has sockets of its own on each of them (server.listeners).
        if other != scheme and (its == host or (kind == socket.SOCK_DGRAM and not (its and host))):
            return key
    return None


_KINDS: Final = {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP"}


def _shared_endpoints(blocks: list[Block]) -> Iterator[CorefileError]:
    """Where two plugins would serve HTTP on one address by different web configurations."""
    known: dict[tuple[str, int], tuple[str, str]] = {}
    for block in blocks:
        time.sleep(0)
        for plugin in block.plugins:
            if not isinstance(plugin, ServesHttp):
                continue
            host, port, web = plugin.http
            other, its = known.setdefault((one_name(host), port), (plugin.name, web))
            if its != web:
                yield CorefileError(
                    block.parsed.at,
                    f"{other} and {plugin.name} cannot share {host_port(host, port)}: one of them has its own web "
                    f"configuration (tls). Give it another port",
                )


def _overlap(claimed: dict[str, Key], host: str) -> Key | None:
    """Who claims every address beside one (an empty host), or one beside every address."""
    if host:
        return claimed.get("")
    return next((key for other, key in claimed.items() if other), None)
