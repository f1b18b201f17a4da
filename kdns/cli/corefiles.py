"""Input of the tools: Corefiles by path or from standard input, as they are or inside ConfigMaps.

A ConfigMap may be YAML or JSON, alone, one of several documents, or an item of a `kind: List`, as kubectl prints them.
What the Corefile imports from a ConfigMap of its own (`coredns-custom` on AKS and k3s) is taken from such a ConfigMap:
given by `--with`, or in the same input.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml

from kdns.cli.flags import Flag
from kdns.corefile import Corefile, CorefileError, FileReader, Position, source
from kdns.server import build
from kdns.server.reading import read_file

WITH: Final = Flag(
    ("with",), "", "ConfigMap (or file, or folder) with what the Corefile imports, such as coredns-custom"
)
# A key `kind` at the beginning of a line: no directive is written so.
_MANIFEST: Final = re.compile(r"""^\s*(?:\{\s*)?["']?(?:kind|apiVersion|items)["']?\s*:(?:\s|$)""", re.MULTILINE)
EMPTY: Final = "the input is empty: did the command before the pipe fail?"
_CUSTOM: Final = (".override", ".server")  # keys of the ConfigMap that AKS and k3s import from
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Source(NamedTuple):
    """One Corefile: its name in errors, its text, the files beside it that it may import (name -> text), and, where it
    is known, which ConfigMap holds each (name -> namespace/name). `own` are the other keys of its own ConfigMap.
    """

    name: str
    text: str
    beside: dict[str, str]
    holders: dict[str, str] = {}
    own: dict[str, str] = {}


class Reader(FileReader):
    """Files as they are on this machine, and behind them those of a ConfigMap, in whatever folder they are looked
    for.
    """

    def __init__(self, of: Source) -> None:
        self.beside = of.beside
        self.holders = of.holders
        self.used: set[str] = set()

    def read(self, path: str) -> str:
        name = os.path.basename(path)
        if name in self.beside and not os.path.exists(path):
            self.used.add(name)
            return self.beside[name]
        return super().read(path)

    def list(self, folder: str) -> list[str]:
        try:
            there = super().list(folder)
        except OSError:
            there = []
        return sorted({*there, *self.beside})

    def shown(self, path: str) -> str:
        name = os.path.basename(path)
        return f"{self.holders[name]}/{name}" if name in self.used and name in self.holders else path


def raw_text(path: str, *, exactly: bool = False) -> str:
    """A file's text as it stands; `-` and `stdin` are standard input. `exactly`: octets that are not UTF-8 are an
    error.
    """
    if path in ("-", "stdin"):
        return source.text_of(sys.stdin.buffer, "stdin", exactly=exactly)
    return read_file(path, exactly=exactly)


def is_manifest(text: str) -> bool:
    """True if a text is Kubernetes' YAML or JSON rather than a Corefile."""
    return _MANIFEST.search(text) is not None


def sources(path: str, beside: str = "") -> list[Source]:
    """The Corefiles of a file; `beside` is what `--with` names. Raises CorefileError or OSError."""
    text = raw_text(path)
    files = _beside(beside) if beside else {}
    if not text.strip():
        raise CorefileError(None, f"{shown(path)}: {EMPTY}")
    if not is_manifest(text):
        return [Source(shown(path), text, files)]
    maps = _config_maps(text, shown(path))
    found = [(label, data) for label, data in maps if isinstance(data.get("Corefile"), str)]
    if not found:
        raise CorefileError(None, f"{shown(path)}: {_without_corefile(maps)}")
    files = {**_custom(data for _, data in maps), **files}
    names = [shown(path) if len(found) == 1 else f"{shown(path)}({label})" for label, _ in found]
    return [
        Source(name, data["Corefile"], files, own=other_keys(data))
        for name, (_, data) in zip(names, found, strict=True)
    ]


def other_keys(data: dict[str, Any]) -> dict[str, str]:
    """What a ConfigMap holds beside its Corefile."""
    return {str(key): text for key, text in data.items() if key != "Corefile" and isinstance(text, str)}


def from_config_map(text: str, path: str) -> str:
    """The Corefile in a ConfigMap; empty where the text is a Corefile itself. Raises CorefileError where it holds
    several.
    """
    if not is_manifest(text):
        return ""
    maps = _config_maps(text, shown(path))
    found = [(label, data["Corefile"]) for label, data in maps if isinstance(data.get("Corefile"), str)]
    if len(found) != 1:
        raise CorefileError(
            None, f"{shown(path)}: {_several([label for label, _ in found]) or _without_corefile(maps)}"
        )
    return str(found[0][1])


def one(path: str, beside: str = "") -> Source:
    """The one Corefile of a file. Raises CorefileError or OSError."""
    found = sources(path, beside)
    if len(found) > 1:
        raise CorefileError(None, f"{shown(path)}: {_several([each.name for each in found])}")
    return found[0]


def parsed(
    each: Source, port: int, *, reader: Reader | None = None, errors: list[CorefileError] | None = None
) -> Corefile:
    """A source, parsed. Raises CorefileError (`errors`: see corefile.parse)."""
    reader = reader or Reader(each)
    return build.read(each.text, each.name, default_port=port, environ=os.environ, reader=reader, errors=errors)


def shown(path: str) -> str:
    """How a path stands in errors."""
    return "stdin" if path == "-" else path


def _several(labels: list[str]) -> str:
    return f"{len(labels)} Corefiles, and one is needed: {', '.join(labels)}" if len(labels) > 1 else ""


def _without_corefile(maps: list[tuple[str, dict[str, Any]]]) -> str:
    if len(maps) == 1:
        return "the ConfigMap has no key Corefile under data"
    if not maps:
        return "it holds no ConfigMap, so there is no Corefile in it"
    return f"none of its ConfigMaps has a key Corefile: {', '.join(label for label, _ in maps)}"


def _config_maps(text: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    """(namespace/name, data) of each ConfigMap. Raises CorefileError."""
    out = []
    for item in _objects(text, name):
        meta, data = item.get("metadata"), item.get("data")
        label = (
            "/".join(str(meta[key]) for key in ("namespace", "name") if meta.get(key)) if isinstance(meta, dict) else ""
        )
        if item.get("kind") == "ConfigMap":
            out.append((label, data if isinstance(data, dict) else {}))
    return out


def _objects(text: str, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a text, those inside lists too. Raises CorefileError."""
    try:
        documents = [json.loads(text)] if text.lstrip().startswith("{") else list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = Position(name, mark.line + 1, mark.column + 1) if mark is not None else None
        raise CorefileError(where, f"this is not YAML: {error.problem} (is the file whole?)") from None
    except json.JSONDecodeError as error:
        raise CorefileError(Position(name, error.lineno, error.colno), f"this is not JSON: {error.msg}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CorefileError(Position(name, 1, 1), f"this is not YAML: {error}") from None
    for document in documents:
        items = document.get("items") if isinstance(document, dict) else None
        for item in items if isinstance(items, list) else [document]:
            if isinstance(item, dict):
                # The items of a ConfigMapList carry no kind of their own.
                kind = str(document.get("kind", "")).removesuffix("List")
                yield item if "kind" in item or not kind else {**item, "kind": kind}


def _custom(maps: Iterator[dict[str, Any]]) -> dict[str, str]:
    """What ConfigMaps without a Corefile hold for one to import."""
    return {
        key: text
        for data in maps
        if "Corefile" not in data
        for key, text in data.items()
        if isinstance(text, str) and str(key).endswith(_CUSTOM)
    }


def _beside(path: str) -> dict[str, str]:
    if path not in ("-", "stdin") and os.path.isdir(path):
        return {
            name: read_file(os.path.join(path, name)) for name in sorted(os.listdir(path)) if not name.startswith(".")
        }
    text = raw_text(path)
    if not is_manifest(text):
        return {os.path.basename(path): text}
    maps = _config_maps(text, shown(path))
    if not maps:
        raise CorefileError(None, f"{shown(path)}: it holds no ConfigMap")
    return {str(key): value for _, data in maps for key, value in data.items() if isinstance(value, str)}
