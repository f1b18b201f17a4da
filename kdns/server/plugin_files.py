"""Plugins as files: `plugin PATH [ARGUMENTS...] { ... }` in a server block loads a Python file, without a rebuild.

A relative path begins at the block's `root`, or in the Corefile's folder where there is none.

The file holds one class that extends `kdns.plugin.Plugin`. It counts as part of the Corefile: `reload` sees an edit,
and so does SIGUSR1. Whoever may edit the Corefile may run code in the server.
"""

import importlib.util
import inspect
import os
from typing import Final

from kdns.corefile import CorefileError, Directive
from kdns.plugin import readers
from kdns.plugin.base import Plugin

NAME: Final = "plugin"


def load(directive: Directive, folder: str) -> tuple[type[Plugin], Directive]:
    """The class in a directive's file, and the directive as that class reads it. Raises CorefileError.

    `folder` is where relative paths begin.
    """
    readers.arguments(directive, 1, None, "the path of a Python file")
    word = directive.args[0]
    path = os.path.join(folder, word.text)
    if not os.path.isfile(path):
        raise readers.fail(word, f"plugin {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"kdns_plugin_{os.path.basename(path).partition('.')[0]}", path)
    if spec is None or spec.loader is None:
        raise readers.fail(word, f"plugin {path}: not a Python file (its name ends in .py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except CorefileError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise readers.fail(word, f"plugin {path}: {_where(error, path)}{type(error).__name__}: {error}") from None
    found = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, Plugin) and cls is not Plugin and cls.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise readers.fail(word, f"plugin {path}: expected one class that extends Plugin, found {len(found)}")
    if not isinstance(getattr(found[0], "name", None), str):
        raise readers.fail(word, f"plugin {path}: the class {found[0].__name__} has no `name`")
    return found[0], Directive(word._replace(text=found[0].name), directive.args[1:], directive.body)


def _where(error: BaseException, path: str) -> str:
    """The line of the file that an error came from."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    trace = error.__traceback__
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""
