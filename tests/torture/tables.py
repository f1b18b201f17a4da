"""The rows of tables.txt: what misbehaves, and the tests that show what kdns does then.

`python -m tests.torture.tables` prints the tests, for pytest; `make torture` runs them before the load.
"""

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("tables.txt")


class Row(NamedTuple):
    """One kind of misbehaviour, and its tests as pytest names them, below the folder of tests."""

    what: str
    tests: list[str]


def rows() -> list[Row]:
    """The rows in order: a line that begins with a space names a test of the row above it."""
    found: list[Row] = []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            found[-1].tests.append(line.strip())
        elif line and not line.startswith("#"):
            found.append(Row(line, []))
    return found


def tests() -> list[str]:
    """Each test once, as a path from the top."""
    return list(dict.fromkeys(f"tests/{test}" for row in rows() for test in row.tests))


if __name__ == "__main__":
    print("\n".join(tests()))
