"""The tables of what misbehaves name tests that exist."""

import ast
from functools import cache
from pathlib import Path

from tests.torture import tables


@cache
def defined(file: str) -> frozenset[str]:
    """The tests of a file."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_each_row_has_tests_and_each_of_them_exists() -> None:
    assert not [row.what for row in tables.rows() if not row.tests]
    missing = []
    for test in tables.tests():
        file, _, name = test.partition("::")
        if not Path(file).is_file() or name not in defined(file):
            missing.append(test)
    assert not missing
