"""Objects from YAML: several documents a file, `kind: List` as `kubectl get -o yaml` prints it.

As a program it prints the objects of a file, one JSON line each; parsing YAML holds the loop 1 ms for some 6 KiB.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from kdns import files
from kdns.kube.objects import RAW, BadObject, from_mapping

MAX_FILE: Final = 256 << 20  # octets; a dump of a 5,000-node cluster has some 100 MB
_SUFFIXES: Final = (".yaml", ".yml", ".json")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BrokenManifest(ValueError):
    """A file that is not YAML, or holds no objects; the text begins with file and line."""


class Found(NamedTuple):
    """An object of a file: kind, `namespace/name`, its mapping, and the line it begins on."""

    kind: str
    mapping: dict[str, Any]
    line: int


class _LinedLoader(_Loader):  # type: ignore[misc]
    """Loads mappings; those that look like objects carry the line they begin on, under a key no object has."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made: dict[Any, Any] = super().construct_mapping(node, deep=True)
        if "kind" in made:
            made["\0line"] = node.start_mark.line + 1
        return made


def _construct_map(loader: Any, node: Any) -> Any:
    return loader.construct_mapping(node)


_LinedLoader.add_constructor("tag:yaml.org,2002:map", _construct_map)


class _PlacingLoader(_LinedLoader):
    """Says where a value stands that its constructor chokes on; slower, so only for a file that is known to be
    broken.
    """

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception:
            what = str(node.tag).removeprefix("tag:yaml.org,2002:")
            raise yaml.constructor.ConstructorError(None, None, f"a value is no {what}", node.start_mark) from None


def parse(text: str, path: str) -> tuple[list[Found], list[str]]:
    """The objects of a file that kdns serves, and a line for each that is none. Raises BrokenManifest."""
    try:
        return _parsed(text, path, _LinedLoader)
    except BrokenManifest:
        raise
    except Exception:
        # PyYAML's constructors raise whatever they meet: KeyError for `!!bool maybe`, IndexError for `!!int ""`.
        return _parsed(text, path, _PlacingLoader)


def _parsed(text: str, path: str, loader: Any) -> tuple[list[Found], list[str]]:
    found: list[Found] = []
    rejected: list[str] = []
    try:
        for document in yaml.load_all(text, Loader=loader):
            for item in _items(document):
                if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
                    rejected.append(f"{path}: a document is not a Kubernetes object (it has no kind)")
                    continue
                line = item.pop("\0line", 1)
                if item["kind"] in RAW:
                    found.append(Found(item["kind"], item, line))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # What is not text at all has a position in place of a mark, and a second line about it.
        position = getattr(error, "position", None)
        line = mark.line + 1 if mark is not None else text.count("\n", 0, position) + 1 if position is not None else 1
        why = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise BrokenManifest(f"{path}:{line}: {why}") from None
    except RecursionError as error:
        raise BrokenManifest(f"{path}:1: {error}") from None
    return found, rejected


def _items(document: Any) -> Iterator[Any]:
    if document is None:
        return
    if isinstance(document, dict) and isinstance(document.get("items"), list):
        listed = str(document.get("kind", ""))
        kind = listed.removesuffix("List")
        for item in document["items"]:
            # The items of a ServiceList carry no kind of their own.
            if isinstance(item, dict) and kind and "kind" not in item:
                item["kind"] = kind
            yield item
    else:
        yield document


def files_of(paths: tuple[str, ...]) -> Iterator[str]:
    """The files that paths come to: a folder's manifests, at any depth, but what begins with a dot; any other path
    itself.
    """
    for path in paths:
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if name.endswith(_SUFFIXES) and not name.startswith("."):
                        yield os.path.join(folder, name)
        else:
            yield path


def objects_of(paths: tuple[str, ...]) -> Iterator[Found]:
    """The objects of all files that paths come to, for tools. Raises OSError or BrokenManifest."""
    for path in files_of(paths):
        yield from parse(files.read_text(path, MAX_FILE), path)[0]


_found: Final = msgspec.json.Decoder(Found)


def decode(line: bytes | memoryview) -> Found:
    """An object as the child process printed it."""
    return _found.decode(line)


def _child(path: str) -> int:
    """Prints the objects of a file, one JSON line each; a line on stderr and 1 where it is broken."""
    try:
        found, _ = parse(files.read(path, MAX_FILE).decode(), path)
    except BrokenManifest as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 1
    encoder = msgspec.json.Encoder(enc_hook=str)
    for item in found:
        # Only what is served, so that the parent need not look at a dump's managedFields.
        raw = msgspec.to_builtins(_struct_or_mapping(item))
        sys.stdout.buffer.write(encoder.encode(item._replace(mapping=raw)) + b"\n")
    return 0


def _struct_or_mapping(found: Found) -> Any:
    """The object as its struct reads it, or, where that fails, as it came: the parent then says why."""
    try:
        return from_mapping(found.kind, found.mapping)
    except BadObject:
        return found.mapping


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
