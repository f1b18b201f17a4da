"""All that is wrong with a Corefile, and not only the first of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

from kdns.corefile import Corefile, CorefileError, Directive, Position, ServerBlock
from kdns.server import build, plugin_files

MAX_PROBLEMS: Final = 100  # errors of one plugin's directives that are looked for: more help nobody


def all_problems(corefile: Corefile) -> list[CorefileError]:
    """Every error of `build`, in the order of the blocks; after a bad line of a directive the others of it are read
    too.
    """
    found: list[CorefileError] = []
    for parsed in corefile.blocks:
        for key in parsed.keys:
            found += _raised(partial(build.check_key, key))
        folder = ""
        with contextlib.suppress(CorefileError):
            folder = build.folder_of(corefile, parsed)
        for name, directives in parsed.directives.items():
            if name == plugin_files.NAME:
                for directive in directives:
                    found += _raised(partial(plugin_files.load, directive, folder))
            else:
                found += _of_directives(name, directives, parsed)
    return found


def _raised(call: Callable[[], object]) -> list[CorefileError]:
    try:
        call()
    except CorefileError as error:
        return [error]
    return []


def _of_directives(name: str, directives: list[Directive], block: ServerBlock) -> list[CorefileError]:
    """What is wrong with a plugin's directives: a line that is at fault is left out, and the rest read again.

    Only the first error may be of a directive as a whole: later ones may come of what was left out.
    """
    found: list[CorefileError] = []
    left = list(directives)
    for _ in range(MAX_PROBLEMS):
        errors = _raised(partial(build.rank, left[0].name)) or _raised(partial(build.plugins_of, name, left, block))
        if not errors:
            return found
        (error,) = errors
        without = _without(left, error.where)
        if found and without is None:
            return found
        found.append(error)
        if without is None:
            return found
        left = without
    return found


def _without(directives: list[Directive], where: Position | None) -> list[Directive] | None:
    """The directives without the option that begins on this line; None where no option does."""
    for at, directive in enumerate(directives):
        for line in directive.body or ():
            if where is not None and line.name.line == (where.file, where.line):
                kept = tuple(each for each in directive.body or () if each is not line)
                return [
                    *directives[:at],
                    Directive(directive.name, directive.args, kept or None),
                    *directives[at + 1 :],
                ]
    return None
