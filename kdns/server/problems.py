"""All that is wrong with a Corefile, and not only the first of it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from kdns.corefile import Corefile, CorefileError, Directive, Position, ServerBlock
from kdns.server import build, plugin_files
from kdns.server.block import Block

MAX_PROBLEMS: Final = 100  # errors of one plugin's directives that are looked for: more help nobody
# Directives that say what a block listens on, and how that is encrypted.
_LISTENERS: Final = ("bind", "view", "tls")


def all_problems(corefile: Corefile) -> list[CorefileError]:
    """Every error of `build` and of `check`, in the order of the blocks; after a bad line of a directive the others of
    it are read too.
    """
    return examine(corefile)[0]


def examine(corefile: Corefile) -> tuple[list[CorefileError], build.Instance]:
    """The same errors, and an instance of the blocks that have none.

    What plugins need of each other is looked at in those only, and what blocks claim twice where it is known what they
    listen on: an error is not to be the echo of another.
    """
    found: list[CorefileError] = []
    whole = build.Instance(corefile, [])
    listening: list[Block] = []
    for parsed in corefile.blocks:
        block = Block(parsed)
        errors = _of_block(corefile, block)
        if not (errors or parsed.faults):
            whole.blocks.append(block)
        if not any(_may_be_of_listener(word) for word in (*parsed.faults, *_faulty(block))):
            listening.append(block)
        found += errors
    for block in whole.blocks:
        block.siblings = whole.blocks
    for block in listening:
        block.compile()  # for `view`
    for block in whole.blocks:
        for plugin in block.plugins:
            found += _raised(partial(plugin.check, block))
    found += build.conflicts(listening)
    return found, whole


def _of_block(corefile: Corefile, block: Block) -> list[CorefileError]:
    """What is wrong within a block, which gets the plugins with which nothing is."""
    found: list[CorefileError] = []
    parsed = block.parsed
    for key in list(parsed.keys):
        errors = _raised(partial(build.check_key, key))
        if errors:
            parsed.keys.remove(key)
        found += errors
    folder = ""
    with contextlib.suppress(CorefileError):
        folder = build.folder_of(corefile, parsed)
    for name, directives in parsed.directives.items():
        if name == plugin_files.NAME:
            for directive in directives:
                found += _raised(partial(plugin_files.load, directive, folder))
        else:
            errors = _of_directives(name, directives, parsed)
            found += errors
            if not errors:
                block.plugins += build.plugins_of(name, directives, parsed)
    return found


def _faulty(block: Block) -> Iterator[str]:
    made = {plugin.name for plugin in block.plugins}
    yield from (name for name in block.parsed.directives if name not in made)


def _may_be_of_listener(word: str) -> bool:
    """Whether a directive says what a block listens on, or a misspelled one may."""
    return bool(difflib.get_close_matches(word, _LISTENERS, n=1, cutoff=0.6))


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
