"""root: where relative paths begin."""

from pathlib import Path

from kdns.testing import block, data
from tests.fixtures import Serve


def test_root_is_where_relative_paths_begin(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "names").write_text("192.0.2.1 a.org\n")
    assert data(serve(block(f"root {tmp_path}", "hosts names")).ask("a.org.")) == ["192.0.2.1"]
    serve(block("root /nowhere", "whoami"))
    assert any("Root path does not exist: /nowhere" in line for line in lines)
