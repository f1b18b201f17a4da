"""Flags as Go's `flag` package reads them: `-x`, `--x`, `-x=v`, `-x v`; the first other word ends them."""

from collections.abc import Sequence
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


def parse(words: Sequence[str], flags: Sequence[Flag]) -> tuple[dict[str, str | bool | int], list[str]]:
    """Values by first name, and the words behind the flags. Raises BadFlag."""
    by_name = {name: flag for flag in flags for name in flag.names}
    values: dict[str, str | bool | int] = {flag.names[0]: flag.default for flag in flags}
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
            if not text.isascii() or not text.isdecimal() or int(text) > 65535:
                raise BadFlag(f'invalid value "{text}" for flag -{name}: expected a port, 0 to 65535')
            values[flag.names[0]] = int(text)
        else:
            values[flag.names[0]] = text
    return values, rest


def usage(head: str, flags: Sequence[Flag]) -> str:
    """The help text."""
    lines = [head]
    for flag in flags:
        value = "" if isinstance(flag.default, bool) else " N" if isinstance(flag.default, int) else " TEXT"
        names = ", ".join("-" + name for name in flag.names)
        default = f" (default {flag.default})" if flag.default not in ("", False) else ""
        lines.append(f"  {names}{value}\n    \t{flag.help}{default}")
    return "\n".join(lines) + "\n"
