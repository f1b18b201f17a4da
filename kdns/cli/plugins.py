"""`kdns plugins [NAME]`: the plugins in the order queries meet them, or one's manual."""

import ast
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from kdns.cli.flags import Help, misused, usage
from kdns.corefile.errors import did_you_mean
from kdns.server import catalog
from kdns.server.order import ORDER

HELP: Final = Help(
    "plugins", "kdns plugins [NAME]", "Lists the plugins in the order queries meet them, or prints one's manual.",
    (("kdns plugins", "the list"), ("kdns plugins forward", "what forward does, its options and series")),
    ((0, "done"), (1, "there is no such plugin"), (2, "a bad word")),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Prints the list or a manual; returns the exit code."""
    if words and words[0] in ("-h", "-help", "--help"):
        sys.stdout.write(usage(HELP, ()))
        return 0
    if len(words) > 1:
        return misused("kdns plugins takes one name", HELP)
    if words:
        return _manual(words[0])
    for name in catalog.built():
        print(f"{name:14} {_title(name)}")
    print(f"\nKnown from CoreDNS, not built: {', '.join(not_built())}")
    return 0


def not_built() -> list[str]:
    """The names of CoreDNS's plugins that are known and not built."""
    return [name for name, place in ORDER.items() if place is None and name != "on"]


def _manual(name: str) -> int:
    cls = catalog.plugin_class(name) if name in catalog.known() else None
    if cls is None:
        hint = did_you_mean(name, catalog.built())
        sys.stderr.write(
            f'there is no plugin "{name}"{hint}\n' if name not in ORDER else f'plugin "{name}" is not built yet\n'
        )
        return 1
    print(manual(name))
    return 0


def manual(name: str) -> str:
    """A plugin's manual: its module's docstring (a package's, where it is one)."""
    cls = catalog.plugin_class(name)
    assert cls is not None
    module = inspect.getmodule(cls)
    package = sys.modules.get(module.__name__.rpartition(".")[0]) if module is not None else None
    texts = [docstring(place) for place in (package, module) if place is not None]
    return next(
        (text for text in texts if text.startswith(f"{name} - ")), texts[-1] if texts else f"{name} - no manual"
    )


def docstring(module: ModuleType) -> str:
    """A module's docstring. That of a compiled module is only in its source, which lies beside it."""
    text = inspect.getdoc(module)
    if not text and module.__file__:
        path = Path(module.__file__)
        source = path.with_name(path.name.partition(".")[0] + ".py")
        text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) if source.is_file() else None
    return text or ""


def _title(name: str) -> str:
    return manual(name).partition("\n")[0].partition(" - ")[2]


def all_manuals() -> str:
    """Every manual in one Markdown text, in the order queries meet the plugins; docs/manuals.md is this."""
    parts = [
        "# The plugins' manuals\n\nMade of the plugins' docstrings by `make docs`; `kdns plugins NAME` prints one."
    ]
    for name in catalog.built():
        title, _, rest = manual(name).partition("\n")
        parts.append(f"## {title}\n\n{rest.strip()}".replace("\n## ", "\n### "))
    return "\n\n".join(parts) + "\n"
