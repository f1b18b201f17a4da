"""Plugins as files, and what may be wrong with one."""

from pathlib import Path

import pytest

from kdns.corefile import CorefileError
from kdns.testing import code, data
from tests.fixtures import Serve

GREETING = '''"""hello - greets."""

from kdns.plugin import Plugin
from kdns.plugin.records import answered


class Hello(Plugin):
    name = "hello"

    def handle(self, request):
        return answered(f'{request.name} 60 TXT "hello"') if request.type == "TXT" else None
'''


def test_an_edited_file_takes_effect_with_a_reload(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "hello.py"
    path.write_text(GREETING)
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n plugin {path}\n whoami\n}}")
    assert data(server.ask("x.org.", "TXT")) == ['"hello"']
    path.write_text(GREETING.replace('"hello"\'', '"good day"\''))
    assert server.reload(server.text)
    assert data(server.ask("x.org.", "TXT")) == ['"good day"']


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
