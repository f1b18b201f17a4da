"""Plugins as files, as docs/plugins.md says; and what may be wrong with one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kdns.corefile import CorefileError
from tests.running import Running, code, data

Serve = Callable[..., Running]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"


def part(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(), re.S)
    assert found is not None
    return found[1]


def test_the_documented_plugin_answers_as_the_documentation_shows(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = part("python")
    (tmp_path / "hello.py").write_text(text)
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    server = serve(
        part("corefile")
        .replace(":1053", ":{port}")
        .replace("{\n", "{{\n")
        .replace("}\n", "}}\n")
        .replace("{{port}}", "{port}")
        .format(port="{port}")
    )
    assert data(server.ask("hello.example.org.", "TXT")) == ['"hello, 127.0.0.1"']
    assert code(server.ask("hello.example.org.", "A")) == "EMPTY"
    (tmp_path / "hello.py").write_text(text.replace("hello, ", "good day, "))
    assert server.reload(server.text)
    assert data(server.ask("hello.example.org.", "TXT")) == ['"good day, 127.0.0.1"']


def test_a_plugin_that_breaks_breaks_its_query_alone(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        'from kdns.plugin import Plugin\nclass Bad(Plugin):\n name = "bad"\n def handle(self, request):\n  if request.name == "x.org.":\n   1 / 0\n'
    )
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n plugin {path}\n whoami\n}}")
    assert code(server.ask("x.org.")) == "SERVFAIL" and code(server.ask("y.org.")) == "EMPTY"
    assert any("ZeroDivisionError" in line for line in lines)


def test_its_place_among_the_others_is_its_own_choice(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "first.py"
    path.write_text('from kdns.plugin import Plugin\nclass First(Plugin):\n name = "first"\n before = "rewrite"\n')
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n whoami\n plugin {path}\n rewrite name a.org b.org\n errors\n}}")
    assert server.server.instance is not None
    assert [p.name for p in server.server.instance.plugins] == ["bind", "errors", "first", "rewrite", "whoami"]


@pytest.mark.parametrize(("text", "expected"), [
    ("def (", "line 1: SyntaxError"), ("x = 1\n1 / 0", "line 2: ZeroDivisionError"), ("import nope_nope", "line 1: ModuleNotFoundError"),
    ("", "expected one class that extends Plugin, found 0"), ("raise SystemExit(3)", "SystemExit"),
    ("from kdns.plugin import Plugin\nclass A(Plugin): pass", "has no `name`"),
    ("from kdns.plugin import Plugin\nclass A(Plugin): name='a'\nclass B(Plugin): name='b'", "found 2"),
    ("from kdns.plugin import Plugin\nclass A(Plugin): name='a'", "unexpected argument"),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_place(serve: Serve, tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(text)
    argument = " more" if "unexpected" in expected else ""
    with pytest.raises(CorefileError, match=r"Corefile:2:\d+: ") as caught:
        serve(f".:{{port}} {{\n plugin {path}{argument}\n}}")
    assert expected in str(caught.value)


def test_a_missing_file_is_named(serve: Serve) -> None:
    with pytest.raises(CorefileError, match=r"nowhere[.]py: no such file"):
        serve(".:{port} {\n plugin /nowhere.py\n}")
