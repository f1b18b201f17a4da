"""What is wrong with a master file, and where."""

from typing import NamedTuple

from kdns.printable import printable


class Problem(NamedTuple):
    """A fault at a place: the file's name as given, line and column from 1, and one line of text."""

    file: str
    line: int
    column: int
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{printable(self.file)}:{self.line}:{self.column}: {printable(self.message)}"


class BadRecord(ValueError):
    """Text that is not a record; `at` is the offset in the file where it goes wrong."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.message = message


class ZoneFileError(Exception):
    """A file that no zone can be made of; the text is its first problem, with the number of those that follow."""

    def __init__(self, problems: list[Problem]) -> None:
        more = sum(problem.fatal for problem in problems) - 1
        first = next(problem for problem in problems if problem.fatal)
        super().__init__(f"{first}" + (f" (and {more} more)" if more > 0 else ""))
        self.problems = problems
