"""Plugin files that a ConfigMap holds beside its Corefile (`plugin hello.py`): read as Python, and never run.

On a server whoever may edit the ConfigMap may run code. That is no reason to run it where the ConfigMap is looked at.
"""

import ast
import os

from kdns.cli.corefiles import Source
from kdns.corefile import Corefile, CorefileError, Directive, Position
from kdns.server import plugin_files


def taken_out(corefile: Corefile, source: Source) -> tuple[list[CorefileError], list[str]]:
    """Takes the directives whose files are keys of the ConfigMap out of a Corefile; what is wrong with those files, and
    warnings of what was not looked at.
    """
    errors: list[CorefileError] = []
    warnings: list[str] = []
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
            warnings.append(f"{directive.at}: plugin {key} was not run, so its own options were not checked")
        if kept:
            block.directives[plugin_files.NAME] = kept
        else:
            block.directives.pop(plugin_files.NAME, None)
    return errors, list(dict.fromkeys(warnings))


def _error(text: str, name: str) -> CorefileError | None:
    try:
        ast.parse(text)
    except SyntaxError as error:
        return CorefileError(Position(name, error.lineno or 1, error.offset or 1), f"this is not Python: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return CorefileError(Position(name, 1), f"this is not Python: {error}")
    return None
