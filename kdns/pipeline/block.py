"""A server block: what its plugins may know of it while they are parsed, and what it is once built."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from kdns.corefile import Key, Position
from kdns.dns.iana import MAX_TTL
from kdns.dns.name import closest, from_text, to_text
from kdns.pipeline.plugin import HOOKS, Plugin, overrides
from kdns.pipeline.protocols import Admission, BoundsTtl
from kdns.pipeline.run import Pipeline

if TYPE_CHECKING:
    from kdns.pipeline.request import Request

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """What `parse` may look at: the block's keys and where it stands."""

    keys: tuple[Key, ...]
    at: Position

    @property
    def zones(self) -> list[str]:
        """The zones of the keys as text, lower-cased, with a final dot; no repeats."""
        return list(dict.fromkeys(key.zone for key in self.keys))


@dataclass(slots=True)
class Block:
    """A server block, built: its plugins in the fixed order and the pipeline compiled from them."""

    keys: BlockKeys
    zones: tuple[bytes, ...]
    plugins: list[Plugin] = field(default_factory=list)
    hosts: tuple[str, ...] = ()  # addresses of `bind`; empty: every address
    root: str = ""
    pipeline: Pipeline = field(default_factory=lambda: Pipeline(()))
    view: str = ""
    siblings: list[Block] = field(default_factory=list)  # all blocks of the server, this one too
    admits: tuple[Callable[[Request], bool], ...] = ()

    @classmethod
    def of(cls, keys: BlockKeys) -> Block:
        return cls(keys, tuple(from_text(zone) for zone in keys.zones))

    def all(self, protocol: type[P]) -> list[P]:
        """The plugins of this block that follow a protocol (runtime_checkable), in order."""
        return [plugin for plugin in self.plugins if isinstance(plugin, protocol)]

    def path(self, text: str) -> str:
        """A path of the Corefile, joined to `root` where it is relative."""
        return os.path.join(self.root, text) if self.root else text

    def zone_text(self, name: bytes) -> str:
        """The longest of the block's zones that a name is in, as text; `.` if there is none."""
        zone = closest(name, self.zones)
        return "." if zone is None else to_text(zone)

    def every_zone(self) -> tuple[bytes, ...]:
        """The zones of all blocks of this server."""
        return tuple(dict.fromkeys(zone for block in self.siblings or [self] for zone in block.zones))

    def chain(self) -> list[str]:
        """The names of the plugins that take part in queries, in order."""
        return [p.name for p in self.plugins if any(overrides(p, hook) for hook in HOOKS)]

    def ttl_bounds(self, owner: Plugin) -> Callable[[bytes, bool], int]:
        """What says the most seconds that plugins above `owner` let an answer (or a denial) of a name live."""
        bounds = [p.ttl_bound for p in self.plugins[: self.plugins.index(owner)] if isinstance(p, BoundsTtl)]
        return lambda name, denial: min((bound(name, denial) for bound in bounds), default=MAX_TTL)

    def compile(self) -> None:
        """Makes the pipeline of the plugins."""
        for i, plugin in enumerate(self.plugins):
            plugin.position = i
        gates = self.all(Admission)  # type: ignore[type-abstract]
        self.admits = tuple(gate.admit for gate in gates)
        self.view = gates[0].view if gates else ""
        self.pipeline = Pipeline(self.plugins)
