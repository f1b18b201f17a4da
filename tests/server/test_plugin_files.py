"""Plugins as files, and what may be wrong with one."""

from pathlib import Path
from typing import Any

import pytest

from kdns.cli import serve as serving
from kdns.corefile import CorefileError
from kdns.plugin import Plugin
from kdns.server import build, catalog
from kdns.server.reading import CorefileOnDisk
from kdns.testing import Server, code, data, free_port
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
        'from kdns.plugin import Plugin\nclass Bad(Plugin):\n name = "bad"\n def handle(self, request):\n  if '
        'request.name == "x.org.":\n   1 / 0\n'
    )
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n plugin {path}\n whoami\n}}")
    assert code(server.ask("x.org.")) == "SERVFAIL" and code(server.ask("y.org.")) == "EMPTY"
    assert any(f"ZeroDivisionError: division by zero ({path}:6)" in line for line in lines)


def test_reload_did_not_see_an_edited_plugin_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "hello.py"
    path.write_text(GREETING)
    corefile = tmp_path / "Corefile"
    corefile.write_text(f". {{\n root {tmp_path}/sub\n plugin hello.py\n whoami\n}}\n")
    read = CorefileOnDisk(str(corefile), 53, catalog.known, build.plugin_paths)
    first = read()
    assert read() is first
    path.write_text(GREETING.replace("hello", "good day"))
    second = read()
    assert second.fingerprint != first.fingerprint and read() is second
    path.unlink()
    assert read().fingerprint not in (first.fingerprint, second.fingerprint)


def test_its_place_among_the_others_is_its_own_choice(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "first.py"
    path.write_text('from kdns.plugin import Plugin\nclass First(Plugin):\n name = "first"\n before = "rewrite"\n')
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n whoami\n plugin {path}\n rewrite name a.org b.org\n errors\n}}")
    assert server.server.instance is not None
    assert [p.name for p in server.server.instance.plugins] == ["bind", "errors", "first", "rewrite", "whoami"]


@pytest.mark.parametrize(("text", "expected"), [
    ("def (", "line 1: SyntaxError"), ("x = 1\n1 / 0", "line 2: ZeroDivisionError"),
    ("import nope_nope", "line 1: ModuleNotFoundError"),
    ("", "expected one class that extends Plugin, found 0"), ("raise SystemExit(3)", "SystemExit"),
    ("from kdns.plugin import Plugin\nclass A(Plugin): pass", "has no `name`"),
    ("from kdns.plugin import Plugin\nclass A(Plugin): name='a'\nclass B(Plugin): name='b'", "found 2"),
    ("from kdns.plugin import Plugin\nclass A(Plugin): name='a'", "unexpected argument"),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_place(
    serve: Serve, tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "p.py"
    path.write_text(text)
    argument = " more" if "unexpected" in expected else ""
    with pytest.raises(CorefileError, match=r"Corefile:2:\d+: ") as caught:
        serve(f".:{{port}} {{\n plugin {path}{argument}\n}}")
    assert expected in str(caught.value)


def test_a_missing_file_is_named(serve: Serve) -> None:
    with pytest.raises(CorefileError, match=r"nowhere[.]py: no such file"):
        serve(".:{port} {\n plugin /nowhere.py\n}")


SAYS = """from kdns.plugin import Plugin
from kdns.plugin.records import answered
class Says(Plugin):
 name = "says"
 def handle(self, request):
  return answered(f'{request.name} 60 TXT "WORD"')
"""


class FromFile(Server):
    """A server whose text is the path of its Corefile."""

    def read(self) -> Any:
        return serving.corefile_source(self.text, 53)()


def test_a_file_was_looked_for_in_the_working_folder(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("corefile", "corefile/more", "root", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "says.py").write_text(SAYS.replace("WORD", folder))
    monkeypatch.chdir(tmp_path / "elsewhere")
    port = free_port()

    def says(*lines: str) -> list[str]:
        path = tmp_path / "corefile" / "Corefile"
        path.write_text(f".:{port} {{\n bind 127.0.0.1\n " + "\n ".join(lines) + "\n}\n")
        server = FromFile(str(path), port=port)
        try:
            return data(server.ask("x.org.", "TXT"))
        finally:
            server.close()

    assert says("plugin says.py") == ['"corefile"']
    assert says("plugin more/says.py") == ['"corefile/more"']
    assert (
        says("plugin says.py", f"root {tmp_path}/root") == says(f"root {tmp_path}/root", "plugin says.py") == ['"root"']
    )
    assert says("root ../root", "plugin says.py") == ['"root"']  # as for other plugins
    assert says(f"plugin {tmp_path}/elsewhere/says.py") == ['"elsewhere"']
    (tmp_path / "imported").write_text("plugin says.py\n")
    assert says(f"import {tmp_path}/imported") == ['"corefile"']
    with pytest.raises(CorefileError, match=r"Corefile:3:9: plugin .*/root/none.py: no such file"):
        says("plugin none.py", f"root {tmp_path}/root")


@pytest.mark.parametrize(("before", "hint"), [
    ("kubernets", 'names "kubernets", which is not a plugin (did you mean "kubernetes"?)'),
    ("nothing", 'names "nothing", which is not a plugin'), ("mine", 'names "mine", which is not a plugin'),
    (7, "names 7, which is not a plugin"), ([], "names [], which is not a plugin"),
    (None, "names None, which is not a plugin"),
])  # fmt: skip
def test_a_plugin_that_stands_before_one_that_is_not_there_was_silently_last(
    serve: Serve, tmp_path: Path, before: object, hint: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f'from kdns.plugin import Plugin\nclass Mine(Plugin):\n name = "mine"\n before = {before!r}\n')
    with pytest.raises(CorefileError, match=r"Corefile:2:9: plugin mine: `before` ") as caught:
        serve(f".:{{port}} {{\n plugin {path}\n}}")
    assert hint in str(caught.value)
    installed = type("Mine", (Plugin,), {"name": "mine", "before": before})
    with pytest.raises(CorefileError, match=r"Corefile:2:2: plugin mine: `before` "):
        serve(".:{port} {\n mine\n}", plugins=[installed])
