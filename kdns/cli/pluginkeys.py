"""Plugin files that a ConfigMap holds beside its Corefile (`plugin hello.py`): read as Python, and never run.

On a server whoever may edit the ConfigMap may run code. That is no reason to run it where the ConfigMap is looked at.
"""

import ast
import os
from typing import NamedTuple

from kdns.cli import corefiles
from kdns.cli.corefiles import Source
from kdns.corefile import Corefile, CorefileError, Directive, Position
from kdns.server import plugin_files


class Untried(NamedTuple):
    """A directive whose plugin file is a key of the ConfigMap: the key, and where it and its server block stand."""

    key: str
    at: Position
    block: Position

    @property
    def unseen(self) -> str:
        """What a tool that shows plugins or answers leaves out, as a line."""
        return f"plugin {self.key} ({self.at}) is code from a ConfigMap and was not run: its answers cannot be shown"


def parsed(source: Source, port: int) -> tuple[Corefile, list[Untried]]:
    """A source, parsed, without the directives whose files are keys of its ConfigMap; and those. Raises CorefileError
    where one of the files is at fault too.
    """
    corefile = corefiles.parsed(source, port)
    errors, untried = taken_out(corefile, source)
    if errors:
        raise errors[0]
    return corefile, untried


def taken_out(corefile: Corefile, source: Source) -> tuple[list[CorefileError], list[Untried]]:
    """Takes the directives whose files are keys of the ConfigMap out of a Corefile; what is wrong with those files, and
    the directives.
    """
    errors: list[CorefileError] = []
    untried: list[Untried] = []
    for block in corefile.blocks:
        kept: list[Directive] = []
        for directive in block.directives.get(plugin_files.NAME, ()):
            key = os.path.basename(directive.args[0].text) if directive.args else ""
            if key not in source.own:
                kept.append(directive)
                continue
            error = _error(source.own[key], f"{source.name}/{key}")
            if error is not None:
                errors.append(error)
            untried.append(Untried(key, directive.at, block.at))
        if kept:
            block.directives[plugin_files.NAME] = kept
        else:
            block.directives.pop(plugin_files.NAME, None)
    return errors, list(dict.fromkeys(untried))


def _error(text: str, name: str) -> CorefileError | None:
    try:
        ast.parse(text)
    except SyntaxError as error:
        return CorefileError(Position(name, error.lineno or 1, error.offset or 1), f"this is not Python: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return CorefileError(Position(name, 1), f"this is not Python: {error}")
    return None
