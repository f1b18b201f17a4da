"""`kdns check`: reads a Corefile, says what is wrong with it and where, and serves nothing.

    kdns check [--load] [--json] [-conf FILE | FILE | -]

The file may be a ConfigMap's YAML with a key Corefile: `kubectl -n kube-system get cm coredns -o yaml | kdns check -`.

`--load` also reads the files it names, resolves names and looks at interfaces. Exit code: 0 if it would start.
"""

import json
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from kdns import log
from kdns.cli import corefiles
from kdns.cli.flags import BadFlag, Flag, parse, refuse
from kdns.corefile import CorefileError
from kdns.server import build

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile to check; "-" or "stdin" reads standard input'),
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    Flag(("load",), False, "also read the files it names and look at interfaces"),
    Flag(("json",), False, "print the result as JSON"),
)
_HEAD: Final = "Usage: kdns check [FLAGS] [FILE | -]\n\nFlags:"


class Summary(NamedTuple):
    """What a good Corefile comes to."""

    blocks: int
    plugins: int
    warnings: tuple[str, ...]


def main(words: Sequence[str]) -> int:
    """Checks one Corefile; returns the exit code."""
    try:
        values, rest = parse(words, FLAGS)
    except BadFlag as error:
        return refuse(error, _HEAD, FLAGS)
    if len(rest) > 1:
        sys.stderr.write("kdns check takes one file\n")
        return 2
    path = rest[0] if rest else str(values["conf"]) or "Corefile"
    as_json = bool(values["json"])
    log.start_writer(sys.stderr)
    try:
        summary = _check(path, int(values["dns.port"]), bool(values["load"]))
    except BrokenPipeError:
        raise
    except (CorefileError, OSError) as error:
        _report(path, error, as_json)
        return 1
    finally:
        log.stop_writer()
    if as_json:
        print(json.dumps({"file": corefiles.shown(path), "ok": True, **summary._asdict()}))
    else:
        for warning in summary.warnings:
            sys.stderr.write(f"{corefiles.shown(path)}: warning: {warning}\n")
        print(f"{corefiles.shown(path)}: ok ({_count(summary.blocks, 'server block')}, {_count(summary.plugins, 'plugin')})")
    return 0


def _check(path: str, port: int, load: bool) -> Summary:
    corefile = corefiles.read(path, port)
    instance = build.build(corefile)
    if load:
        instance.load()
    else:
        instance.check()
    warnings = list(corefile.warnings)
    if not instance.blocks:
        warnings.append("no server block: in its place kdns would serve its built-in Corefile (whoami)")
    for plugin in instance.plugins:
        warnings += [f"plugin/{plugin.name}: {text}" for text in (*plugin.warnings(), *plugin.advice())]
    return Summary(len(instance.blocks), len(instance.plugins), tuple(warnings))


def _report(path: str, error: CorefileError | OSError, as_json: bool) -> None:
    where = error.where if isinstance(error, CorefileError) else None
    message = error.message if isinstance(error, CorefileError) else str(error)
    if as_json:
        place = {"file": where.file, "line": where.line, "column": where.column} if where else {"file": corefiles.shown(path)}
        print(json.dumps({**place, "ok": False, "error": message}))
    else:
        sys.stderr.write(f"{where or corefiles.shown(path)}: error: {message}\n")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
