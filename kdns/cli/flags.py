"""Flags as Go's `flag` package reads them: `-x`, `--x`, `-x=v`, `-x v`; the first other word ends them."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class BadFlag(Exception):
    """A flag that does not exist, or a value that does not fit. `help`: only the usage was asked for."""

    def __init__(self, message: str, *, help: bool = False) -> None:
        super().__init__(message)
        self.help = help


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag: names (the first is the usual one), a default whose type is the flag's, a line of help."""

    names: tuple[str, ...]
    default: str | bool | int
    help: str
    most: int = 65535  # of a number; a port's, as most are


@dataclass(frozen=True, slots=True)
class Help:
    """The text of a command's `--help` and of its part of the manual page, without its flags.

    `examples` are (command line, what it does); `codes` are (exit code, what it means).
    """

    command: str
    usage: str
    about: str
    examples: tuple[tuple[str, str], ...] = ()
    codes: tuple[tuple[int, str], ...] = ((0, "done"), (1, "it failed: stderr says why"), (2, "a bad flag or word"))


_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


Value = str | bool | int


def parse(
    words: Sequence[str], flags: Sequence[Flag], known: Mapping[str, Value] | None = None
) -> tuple[dict[str, Value], list[str]]:
    """Values by first name, and the words behind the flags. `known`: values to begin with (the defaults). Raises
    BadFlag.
    """
    by_name = {name: flag for flag in flags for name in flag.names}
    values: dict[str, Value] = {flag.names[0]: flag.default for flag in flags} | dict(known or {})
    rest = list(words)
    while rest:
        word = rest[0]
        if len(word) < 2 or not word.startswith("-"):
            break
        rest.pop(0)
        if word == "--":
            break
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        flag = by_name.get(name)
        if flag is None:
            if name in ("h", "help"):
                raise BadFlag("", help=True)
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)
            raise BadFlag(f"flag provided but not defined: -{name}" + (f" (did you mean -{near[0]}?)" if near else ""))
        if isinstance(flag.default, bool):
            if equals and text not in _TRUE + _FALSE:
                raise BadFlag(f'invalid boolean value "{text}" for -{name}')
            values[flag.names[0]] = not equals or text in _TRUE
            continue
        if not equals:
            if not rest:
                raise BadFlag(f"flag needs an argument: -{name}")
            text = rest.pop(0)
        if isinstance(flag.default, int):
            if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) > flag.most:
                raise BadFlag(f'invalid value "{text}" for flag -{name}: expected a number, 0 to {flag.most}')
            values[flag.names[0]] = int(text)
        else:
            values[flag.names[0]] = text
    return values, rest


def parse_among(words: Sequence[str], flags: Sequence[Flag]) -> tuple[dict[str, Value], list[str]]:
    """As `parse`, but flags may stand before, between and behind the other words. Raises BadFlag."""
    values, left = parse(words, flags)
    rest = []
    while left:
        rest.append(left.pop(0))
        values, left = parse(left, flags, values)
    return values, rest


def refuse(error: BadFlag, help: Help, flags: Sequence[Flag]) -> int:
    """Prints the help where that was asked for, else what is wrong; returns the exit code."""
    if error.help:
        sys.stdout.write(usage(help, flags))
        return 0
    return misused(str(error), help)


def misused(text: str, help: Help) -> int:
    """Says what is wrong with a command line, and where its help is; returns the exit code for that."""
    sys.stderr.write(f"{text}\nSee: kdns {help.command + ' ' if help.command else ''}--help\n")
    return 2


def usage(help: Help, flags: Sequence[Flag]) -> str:
    """The help text."""
    lines = [f"Usage: {help.usage}", "", help.about]
    if help.examples:
        lines += ["", "Examples:", *(f"  {line}\n      {text}" for line, text in help.examples)]
    if flags:
        lines += ["", "Flags:"]
    for flag in flags:
        default = f" (default {flag.default})" if flag.default not in ("", False, 0) else ""
        lines.append(f"  {', '.join('-' + name for name in flag.names)}{_value(flag)}\n    \t{flag.help}{default}")
    lines += ["", "Exit codes: " + "; ".join(f"{code} {text}" for code, text in help.codes) + "."]
    return "\n".join(lines) + "\n"


def _value(flag: Flag) -> str:
    return "" if isinstance(flag.default, bool) else " N" if isinstance(flag.default, int) else " TEXT"
