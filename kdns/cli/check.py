"""`kdns check`: reads a Corefile, says all that is wrong with it and where, and serves nothing.

The file may be ConfigMaps as kubectl prints them (see corefiles). It reads past each error: a bad line, an import that
fails, a brace that is missing. What one error may have caused is not said: what a plugin needs of others is looked at
in blocks without errors, and a zone that two blocks serve where it is known what both listen on.
"""

import json
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from kdns import log
from kdns.cli import corefiles, pluginkeys, streams
from kdns.cli.flags import BadFlag, Flag, Help, misused, parse_among, refuse
from kdns.corefile import CorefileError
from kdns.printable import printable
from kdns.server import build, problems

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile to check; "-" or "stdin" reads standard input'),
    corefiles.WITH,
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    Flag(("load",), False, "also read the files it names, resolve names and look at interfaces"),
    Flag(("json",), False, "print the result as JSON, one object a Corefile"),
)
HELP: Final = Help(
    "check", "kdns check [FLAGS] [FILE | -]",
    "Reads a Corefile, or ConfigMaps with one, and says all that is wrong with it and where. Serves nothing.",
    (
        ("kdns check Corefile", "a file"),
        ("kubectl -n kube-system get cm coredns -o yaml | kdns check -", "the cluster's own"),
        ("kubectl -n kube-system get cm coredns coredns-custom -o yaml | kdns check -", "with what it imports, on AKS "
            "and k3s"),
        ("kdns check --with custom.yaml coredns.yaml", "the same from files"),
    ),
    ((0, "it would start"), (1, "it would not, or cannot be read"), (2, "a bad flag or word")),
)  # fmt: skip
_SHOWN: Final = 100  # errors of a Corefile that are printed


class Summary(NamedTuple):
    """The contents of a good Corefile, in numbers."""

    blocks: int
    plugins: int
    warnings: tuple[str, ...]


def main(words: Sequence[str]) -> int:
    """Checks Corefiles; returns the exit code."""
    try:
        values, rest = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    if len(rest) > 1:
        return misused("kdns check takes one file", HELP)
    path = rest[0] if rest else str(values["conf"]) or "Corefile"
    as_json = bool(values["json"])
    log.start_writer(sys.stderr)
    try:
        found = corefiles.sources(path, str(values["with"]))
        return max([_one(each, int(values["dns.port"]), bool(values["load"]), as_json) for each in found])
    except (CorefileError, OSError) as error:
        streams.pass_on(error)
        _report(corefiles.shown(path), [error], as_json)
        return 1
    finally:
        log.stop_writer()


def _one(each: corefiles.Source, port: int, load: bool, as_json: bool) -> int:
    summary, errors = examined(each, port, load)
    if errors:
        _report(each.name, errors, as_json)
        return 1
    if as_json:
        _say(json.dumps({"file": each.name, "ok": True, **summary._asdict()}))
    else:
        for warning in summary.warnings:
            sys.stderr.write(printable(f"{each.name}: warning: {warning}") + "\n")
        _say(f"{each.name}: ok ({_count(summary.blocks, 'server block')}, {_count(summary.plugins, 'plugin')})")
    return 0


def examined(each: corefiles.Source, port: int, load: bool) -> tuple[Summary, list[CorefileError | OSError]]:
    """The contents of a Corefile, and all its errors in the order of the file."""
    parsing: list[CorefileError] = []
    errors: list[CorefileError | OSError] = []
    summary = Summary(0, 0, ())
    reader = corefiles.Reader(each)
    try:
        corefile = corefiles.parsed(each, port, reader=reader, errors=parsing)
        of_keys, untried = pluginkeys.taken_out(corefile, each)
        errors += of_keys
        found, instance = problems.examine(corefile)
        errors += [*parsing, *found]
        whole = not errors
        if whole:
            instance = build.build(corefile)
        if load:
            errors += instance.load_problems(wire=whole)
        if not errors:
            if not instance.blocks:
                raise CorefileError(
                    None, "no server block: in its place kdns would serve its built-in Corefile (whoami)"
                )
            summary = _summary(instance, sorted(set(each.beside) - reader.used), untried)
    except (CorefileError, OSError) as error:
        errors.append(error)
    return summary, _ordered(errors)


def _ordered(errors: list[CorefileError | OSError]) -> list[CorefileError | OSError]:
    """Each error once (a snippet's are there for each import of it), by place."""
    once = list({str(error): error for error in errors}.values())
    places = [error.where for error in once if isinstance(error, CorefileError) and error.where is not None]
    files = list(dict.fromkeys(place.file for place in places))

    def place(error: CorefileError | OSError) -> tuple[int, int, int]:
        where = error.where if isinstance(error, CorefileError) else None
        return (files.index(where.file), where.line, where.column) if where is not None else (len(files), 0, 0)

    return sorted(once, key=place)


def _summary(instance: build.Instance, unused: list[str], untried: list[pluginkeys.Untried]) -> Summary:
    warnings = [f"{each.at}: plugin {each.key} was not run, so its own options were not checked" for each in untried]
    warnings += [*instance.corefile.warnings, *instance.warnings()]
    warnings += [f"nothing imports {name}" for name in unused]
    for plugin in instance.plugins:
        warnings += [f"plugin/{plugin.name}: {text}" for text in (*plugin.warnings(), *plugin.advice())]
    return Summary(len(instance.blocks), len(instance.plugins), tuple(warnings))


def _report(name: str, errors: Sequence[CorefileError | OSError], as_json: bool) -> None:
    told = [_told(name, error) for error in errors[:_SHOWN]]
    if as_json:
        _say(json.dumps({**told[0], "ok": False, "errors": told}))
        return
    for error in errors[:_SHOWN]:
        where = error.where if isinstance(error, CorefileError) else None
        sys.stderr.write(f"{where or name}: error: {_message(error, name)}\n")
    if len(errors) > 1:
        sys.stderr.write(f"{name}: {len(errors)} errors" + f", {_SHOWN} shown" * (len(errors) > _SHOWN) + "\n")


def _say(text: str) -> None:
    streams.until_closed(lambda: print(text))


def _told(name: str, error: CorefileError | OSError) -> dict[str, object]:
    where = error.where if isinstance(error, CorefileError) else None
    place = {"file": where.file, "line": where.line, "column": where.column} if where else {"file": name}
    return {**place, "error": _message(error, name)}


def _message(error: CorefileError | OSError, name: str) -> str:
    text = error.message if isinstance(error, CorefileError) else str(error)
    return text.removeprefix(f"{name}: ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
