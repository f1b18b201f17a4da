"""Which directives there are, and the plugins behind them: ours in the fixed order, and those of packages."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from kdns.plugin.base import Plugin
from kdns.server import plugin_files
from kdns.server.order import BUILT, ORDER, place

ENTRY_POINTS: Final = "kdns.plugins"


def known() -> set[str]:
    """The directives there are: the fixed order's, and those of installed packages."""
    return {*ORDER, plugin_files.NAME, *(entry.name for entry in _foreign())}


def built() -> list[str]:
    """The directives that work, in order; those of other packages last."""
    return [*BUILT, *sorted(entry.name for entry in _foreign())]


class _Given:
    """A plugin class that is used as if its package were installed."""

    def __init__(self, cls: type[Plugin]) -> None:
        self.name = cls.name
        self.cls = cls

    def load(self) -> type[Plugin]:
        return self.cls


_given: list[_Given] = []


@contextmanager
def given(*classes: type[Plugin]) -> Iterator[None]:
    """Inside, Corefiles may use these plugins as if their packages were installed."""
    before = list(_given)
    _given.extend(_Given(cls) for cls in classes)
    try:
        yield
    finally:
        _given[:] = before


@cache
def _installed() -> tuple[importlib.metadata.EntryPoint, ...]:
    """The plugins of installed packages: to look for them takes 5 ms, and they change with the process only."""
    return tuple(importlib.metadata.entry_points(group=ENTRY_POINTS))


def _foreign() -> list[importlib.metadata.EntryPoint | _Given]:
    return [*_given, *(entry for entry in _installed() if entry.name not in ORDER)]


def plugin_class(name: str) -> type[Plugin] | None:
    """The class of a plugin; None where the name is known but not built. Raises ImportError for a foreign one that
    breaks.
    """
    if name in ORDER:
        found = place(name)
        if found is None:
            return None
        module = importlib.import_module(found[0])
        cls: type[Plugin] = getattr(module, found[1])
        return cls
    for entry in _foreign():
        if entry.name == name:
            loaded: type[Plugin] = entry.load()
            return loaded
    return None
