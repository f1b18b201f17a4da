"""`kdns fmt`: a Corefile in one style.

    kdns fmt [--diff | --write] [FILE | -]

Prints the result; `--diff` what would change, with exit code 1 if anything would; `--write` puts it in the file's
place. What is not text, or has braces without a partner, is an error and stays as it is.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Final

from kdns import files
from kdns.cli import streams
from kdns.cli.corefiles import EMPTY, from_config_map, raw_text, shown
from kdns.cli.flags import BadFlag, Flag, Help, misused, parse_among, refuse
from kdns.corefile import CorefileError
from kdns.corefile.format import check_braces, formatted

FLAGS: Final = (
    Flag(("diff",), False, "print what would change; exit code 1 if anything would"),
    Flag(("write",), False, "write the result to the file"),
)
HELP: Final = Help(
    "fmt", "kdns fmt [FLAGS] [FILE | -]", "Prints a Corefile in one style, without changing its meaning.",
    (("kdns fmt Corefile", "print it"), ("kdns fmt --diff Corefile", "what would change"),
        ("kdns fmt --write Corefile", "in place")),
    ((0, "done"), (1, "it cannot be read; with --diff: something would change"), (2, "a bad flag or word")),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Formats one Corefile; returns the exit code."""
    try:
        values, rest = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    path = rest[0] if rest else "Corefile"
    if len(rest) > 1 or (values["write"] and path == "-"):
        return misused(
            "kdns fmt takes one file" + (", and cannot write to standard input" if path == "-" else ""), HELP
        )
    try:
        text = raw_text(path, exactly=True)
        if not text.strip():
            raise CorefileError(None, f"{shown(path)}: {EMPTY}")
        before = from_config_map(text, path) or text
        if values["write"] and before != text:
            raise CorefileError(None, f"{path} is a ConfigMap: --write would leave nothing of it but the Corefile")
        check_braces(before, shown(path))
        after = formatted(before)
        if values["write"]:
            if after != before:
                files.replace(path, [after.encode()], os.stat(path).st_mode & 0o777)
        elif values["diff"]:
            lines = difflib.unified_diff(
                before.splitlines(True), after.splitlines(True), shown(path), f"{shown(path)} (formatted)"
            )
            sys.stdout.writelines(lines)
            return int(after != before)
        else:
            sys.stdout.write(after)
    except BrokenPipeError:
        raise
    except (CorefileError, OSError) as error:
        streams.pass_on(error)
        sys.stderr.write(f"{streams.explained(error)}\n")
        return 1
    return 0
