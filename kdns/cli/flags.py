"""Flags as Go's `flag` package reads them: `-x`, `--x`, `-x=v`, `-x v`; the first other word ends them."""

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


_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


Value = str | bool | int


def parse(
    words: Sequence[str], flags: Sequence[Flag], known: Mapping[str, Value] | None = None
) -> tuple[dict[str, Value], list[str]]:
    """Values by first name, and the words behind the flags. `known`: values to begin with (the defaults). Raises BadFlag."""
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
            raise BadFlag(f"flag provided but not defined: -{name}")
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
            if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) > 65535:
                raise BadFlag(f'invalid value "{text}" for flag -{name}: expected a port, 0 to 65535')
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


def refuse(error: BadFlag, head: str, flags: Sequence[Flag]) -> int:
    """Says what is wrong with the flags, and the usage; returns the exit code: 0 where only that was asked for."""
    sys.stderr.write(f"{error}\n" * bool(str(error)) + usage(head, flags))
    return 0 if error.help else 2


def usage(head: str, flags: Sequence[Flag]) -> str:
    """The help text."""
    lines = [head]
    for flag in flags:
        value = "" if isinstance(flag.default, bool) else " N" if isinstance(flag.default, int) else " TEXT"
        names = ", ".join("-" + name for name in flag.names)
        default = f" (default {flag.default})" if flag.default not in ("", False) else ""
        lines.append(f"  {names}{value}\n    \t{flag.help}{default}")
    return "\n".join(lines) + "\n"
