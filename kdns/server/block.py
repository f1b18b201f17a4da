"""A server block, built: its plugins in the fixed order, and what is compiled of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar, cast, final

from kdns.corefile import ServerBlock
from kdns.dns.iana import MAX_TTL
from kdns.dns.name import closest, from_text, to_text
from kdns.plugin.base import Plugin, in_query_path, overrides
from kdns.plugin.outcome import Outcome
from kdns.plugin.providers import Admission, LabelCollector, NamesHosts, TtlLimit
from kdns.plugin.request import Request
from kdns.server.chain import Chain, Watch

P = TypeVar("P")


@cache
def _members(protocol: Any) -> tuple[str, ...]:
    """What a class must have to follow a protocol. `isinstance` finds that out anew each time, which takes 30 µs."""
    bases = [base for base in protocol.__mro__ if base is not object and getattr(base, "_is_protocol", False)]
    names = {
        name for base in bases if base is not Protocol for name in (*vars(base), *vars(base).get("__annotations__", ()))
    }
    return tuple(sorted(name for name in names if not name.startswith("_")))


@final
class Block:
    """One block of a server. `hosts` are the addresses of `bind`; empty: every address. `siblings` are all its
    blocks. `watch` is told what its plugins do.
    """

    def __init__(self, parsed: ServerBlock, watch: Watch | None = None) -> None:
        self.parsed = parsed
        self.watch = watch
        self.zones = tuple([from_text(zone) for zone in parsed.zones])
        self.plugins: list[Plugin] = []
        self.hosts: tuple[str, ...] = ()
        self.root = ""
        self.view = ""
        self.siblings: list[Block] = []
        self.chain = Chain(())
        self.updates = Chain(())  # what an UPDATE meets
        self.observers: tuple[Callable[[Request, Outcome], None], ...] = ()
        self.counting: tuple[Plugin, ...] = ()  # the plugins that meter or observe
        self.metadata: LabelCollector | None = None
        self.admits: tuple[Callable[[Request], bool], ...] = ()

    def all(self, protocol: Callable[..., P]) -> list[P]:
        """The plugins of this block that follow a protocol of kdns.plugin.providers, or are of a class, in order."""
        if not getattr(protocol, "_is_protocol", False):
            return cast(list[P], [plugin for plugin in self.plugins if isinstance(plugin, cast(Any, protocol))])
        members = _members(protocol)
        return cast(list[P], [plugin for plugin in self.plugins if all([hasattr(plugin, name) for name in members])])

    def anywhere(self, protocol: Callable[..., P]) -> list[P]:
        """The plugins of all blocks of this server that follow a protocol."""
        return [plugin for block in self.every_block() for plugin in block.all(protocol)]

    def named_hosts(self) -> tuple[str, ...]:
        """Its addresses; as `bind` names them where it is not loaded yet; an empty one for every address."""
        named = self.hosts or tuple(host for plugin in self.all(NamesHosts) for host in plugin.named_hosts())
        return named or ("",)

    def path(self, text: str) -> str:
        """A path of the Corefile, joined to `root` where it is relative."""
        return os.path.join(self.root, text) if self.root else text

    def zone_text(self, name: bytes) -> str:
        """The longest of the block's zones that a name is in, as text; `.` if there is none."""
        zone = closest(name, self.zones)
        return "." if zone is None else to_text(zone)

    def every_block(self) -> list[Block]:
        """All blocks of this server."""
        return self.siblings or [self]

    def every_zone(self) -> tuple[bytes, ...]:
        """The zones of all blocks of this server."""
        return tuple(dict.fromkeys([zone for block in self.every_block() for zone in block.zones]))

    def query_plugins(self) -> list[str]:
        """The names of the plugins that queries meet, in order."""
        return [plugin.name for plugin in self.plugins if in_query_path(plugin)]

    def ttl_limit(self, name: bytes, denial: bool) -> int:
        """The most seconds that the block's plugins let an answer (or a denial) of a name live."""
        limits = self.all(TtlLimit)
        return min([limit.ttl_limit(name, denial) for limit in limits], default=MAX_TTL)

    def compile(self) -> None:
        """Makes the chain of the plugins."""
        for i, plugin in enumerate(self.plugins):
            plugin.position = i
        gates = self.all(Admission)
        self.admits = tuple([gate.admit for gate in gates])
        self.view = gates[0].view if gates else ""
        collectors = self.all(LabelCollector)
        self.metadata = collectors[0] if collectors else None
        upwards = list(reversed(self.plugins))  # who stands above sees what became of those below
        self.observers = tuple([plugin.observe for plugin in upwards if overrides(plugin, "observe")])
        self.counting = tuple([p for p in upwards if overrides(p, "observe") or overrides(p, "meter")])
        self.chain = Chain(self.plugins, self.watch)
        self.updates = Chain([plugin for plugin in self.plugins if plugin.meets_updates])

    def close(self) -> None:
        """Lets go of the plugins and of the other blocks: they hold this one."""
        self.plugins = []
        self.siblings = []
        self.admits = ()
        self.metadata = None
        self.observers = ()
        self.counting = ()
        self.chain = Chain(())
        self.updates = Chain(())
