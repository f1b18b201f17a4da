"""docs/plugins.md is true: every plugin in it loads and does what the text says, its test passes, its recipes work."""

import re
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.metrics import REGISTRY
from kdns.server import build, catalog
from kdns.testing import Upstream, answer, block, code, data, eventually
from tests.fixtures import Serve, Start

DOCS = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.S)
PLUGINS = {
    text.split('"""')[1].split(" - ")[0]: text for language, text in BLOCKS if language == "python" and '"""' in text
}
COREFILES = [text.replace(":1053", ":{port}") for language, text in BLOCKS if language == "corefile"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documented plugins as files, in the working folder."""
    for name, text in PLUGINS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_is_run_here() -> None:
    assert set(PLUGINS) == {"hello", "inventory", "owner", "shorten"} and len(COREFILES) == 2
    assert [language for language, _ in BLOCKS] == [
        "python", "corefile", "console", "python", "corefile", "python", "python", "python", "yaml", "sh", "sh",
        "toml",
    ]  # fmt: skip


def test_hello_greets_as_the_console_shows(serve: Serve, folder: Path) -> None:
    server = serve(COREFILES[0])
    shown = next(text for language, text in BLOCKS if language == "console").splitlines()
    assert shown[0].startswith("$ dig ") and shown[1:] == data(server.ask("hello.example.org", "TXT"))
    assert code(server.ask("hello.example.org", "A")) == "EMPTY"


def test_the_inventory_answers_denies_counts_and_follows_its_file(serve: Serve, folder: Path) -> None:
    machines = folder / "machines.txt"
    machines.write_text("a.machines.example 192.0.2.1\n\nB.machines.example 192.0.2.2\n")
    server = serve(COREFILES[1])
    slot = REGISTRY["inventory_found_total"].slot()
    before = slot[0]
    for _ in range(10):
        reply = server.ask("b.machines.example.")
        assert data(reply) == ["192.0.2.2"] and reply.answer[0].ttl == 30
    assert slot[0] == before + 10
    assert [code(server.ask(name)) for name in ("c.machines.example.", "machines.example.")] == ["NXDOMAIN", "NODATA"]
    assert code(server.ask("a.machines.example.", "AAAA")) == "NODATA" and code(server.ask("x.org.")) == "EMPTY"
    assert server.ask("c.machines.example.").authority[0].ttl == 30
    time.sleep(0.01)
    machines.write_text("a.machines.example 192.0.2.7\n")
    eventually(lambda: data(server.ask("a.machines.example.")) == ["192.0.2.7"])
    assert code(server.ask("b.machines.example.")) == "NXDOMAIN"


@pytest.mark.parametrize(("wrong", "expected"), [
    ("plugin inventory.py machines.example", "Corefile:4:12: expected ZONE FILE"),
    ("plugin inventory.py machines.example nowhere.txt", "Corefile:4:12: inventory: nowhere.txt: No such file"),
    ("plugin inventory.py machines.example machines.txt {\n ttl x\n }", "Corefile:5:6: expected a whole number"),
    ("plugin inventory.py machines.example machines.txt {\n tll 3\n }", "it knows: ttl"),
])  # fmt: skip
def test_the_inventorys_errors_have_their_place(serve: Serve, folder: Path, wrong: str, expected: str) -> None:
    (folder / "machines.txt").write_text("")
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+: ") as caught:
        serve(f".:{{port}} {{\n bind 127.0.0.1\n errors\n    {wrong}\n}}")
    assert expected in str(caught.value).replace(f"{folder}/", "")


def test_an_asynchronous_look_up_answers_later(serve: Serve, folder: Path) -> None:
    server = serve(block("plugin owner.py", "whoami"))
    assert data(server.ask("shop.owner.example.", "TXT")) == ['"team-shop"']


def test_shorten_lowers_ttls_and_its_copies_are_repeated_as_long_as_the_original_holds(
    serve: Serve, upstream: Start, folder: Path
) -> None:
    up: Upstream = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=300))
    server = serve(block("plugin shorten.py", "cache 60", f"forward . {up.address}"))
    assert [server.ask("x.org.").answer[0].ttl for _ in range(5)] == [10] * 5 and len(up.queries) == 1


def test_the_documented_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    text = next(text for language, text in BLOCKS if language == "python" and '"""' not in text)
    names: dict[str, object] = {}
    exec(compile(text, "test_hello.py", "exec"), names)  # noqa: S102 (it is our own documentation)
    names["test_it_greets"]()  # type: ignore[operator]
    sys.modules.pop("hello")


def test_the_configmap_holds_a_corefile_and_a_plugin_that_work_together(serve: Serve, folder: Path) -> None:
    found = yaml.safe_load(next(text for language, text in BLOCKS if language == "yaml"))
    (folder / "hello.py").write_text(found["data"]["hello.py"])
    build.build(build.read(found["data"]["Corefile"], "Corefile"))
    server = serve(block("plugin hello.py", "whoami"))
    assert data(server.ask("hello.cluster.example.")) == ["192.0.2.1"]


def test_a_package_with_the_documented_entry_point_brings_its_directive(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads(next(text for language, text in BLOCKS if language == "toml"))["project"]
    (folder / "kdns_hello.py").write_text(PLUGINS["hello"])
    installed = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = project["entry-points"]["kdns.plugins"]
    lines = "".join(f"{name} = {place}\n" for name, place in entries.items())
    (installed / "entry_points.txt").write_text(f"[kdns.plugins]\n{lines}")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(catalog, "_installed", catalog._installed.__wrapped__)  # a process looks for packages once
    server = serve(block("hello", "whoami"))
    assert data(server.ask("hello.example.org.", "TXT")) == ['"hello, 127.0.0.1"']
    sys.modules.pop("kdns_hello")
