"""Errors of a Corefile, with their place."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from kdns.printable import printable


class Position(NamedTuple):
    """A place in a file: its name as given, line and column from 1."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{printable(self.file)}:{self.line}:{self.column}"


class CorefileError(Exception):
    """The configuration is at fault: `where` and what was expected. The text is one line."""

    def __init__(self, where: Position | None, message: str) -> None:
        message = printable(message)  # one line, whatever the words were that it quotes
        super().__init__(message)
        self.where = where
        self.message = message

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where is not None else self.message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` for the known word nearest to this one, or an empty text."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.7)
    return f' (did you mean "{near[0]}"?)' if near else ""
