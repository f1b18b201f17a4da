"""The repository's own rules: layers, the wheel's content, every example and claim of the documentation."""

import ast
import importlib
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from kdns import __version__ as kdns_version
from kdns.cli.plugins import docstring
from kdns.corefile import CorefileError
from kdns.server import build
from kdns.server.order import BUILT, ORDER, place
from kdns.testing import free_port
from tests.cli.test_commands import Process, kdns
from tests.securepeers import Site
from tests.zones import keymaker

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted([*ROOT.glob("kdns/**/*.py"), *ROOT.glob("plugins/**/*.py")])


def test_plugins_are_one_package_through_a_link() -> None:
    link = ROOT / "kdns" / "plugins"
    assert link.is_symlink() and link.resolve() == ROOT / "plugins"
    assert importlib.import_module("kdns.plugins.kubernetes").__name__ == "kdns.plugins.kubernetes"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_what_it_is_for_and_its_public_parts_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            plain = {ast.unparse(base) for base in node.bases} & {
                "Struct",
                "NamedTuple",
                "Protocol",
            } or node.name.startswith("Raw")
            assert ast.get_docstring(node) or plain, node.name
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_only_the_command_line_exits_the_process() -> None:
    for path in SOURCES:
        if "cli" in path.parts or path.name == "__main__.py":
            continue
        text = path.read_text()
        exits = re.findall(r"(?:sys|os)\._?exit\(", text)
        # Child processes have exit codes of their own.
        children = ("manifest_file.py", "forks.py", "hostsfile.py", "namelist.py", "reading.py")
        assert not exits or path.name in children, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_who_waited_for_a_task_to_end_lost_its_own_cancellation(path: Path) -> None:
    """Both are the same exception: `gather` with return_exceptions tells them apart."""
    assert not re.search(r"suppress\([^)]*(CancelledError|BaseException)", path.read_text())


def test_the_projects_urls_the_charts_and_the_images_name_are_of_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    urls = project["urls"]
    host, _, path = urls["Source"].removeprefix("https://").partition("/")
    for url in urls.values():
        assert url.startswith(urls["Source"])
        assert (ROOT / url.removeprefix(urls["Source"]).strip("/")).exists(), url
    chart = yaml.safe_load((ROOT / "deploy/helm/kdns/Chart.yaml").read_text())
    assert chart["home"] == urls["Source"] and chart["appVersion"] == kdns_version
    pages = ("README.md", "docs/install.md", "deploy/components/image/kustomization.yaml")
    named = {name for page in pages for name in re.findall(r"\bregistry\.[\w.]+/[\w/-]+", (ROOT / page).read_text())}
    assert named == {f"registry.{host.partition('.')[2]}/{path}"}


def test_nothing_is_left_for_later() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "X" * 3 + ":")
    for path in [*SOURCES, *ROOT.glob("tests/**/*.py"), ROOT / "README.md"]:
        assert not any(word in path.read_text() for word in words), path


def test_the_order_names_every_plugin_once_and_its_class() -> None:
    for name in BUILT:
        found = place(name)
        assert found is not None
        cls = getattr(importlib.import_module(found[0]), found[1])
        assert cls.name == name
    files = {
        path.stem for path in (ROOT / "plugins").iterdir() if not path.name.startswith("__") and path.suffix != ".so"
    }
    assert files == {found[0].split(".")[2] for found in map(place, BUILT) if found is not None}
    assert len(ORDER) > 50


def manual(name: str) -> str:
    found = place(name)
    assert found is not None
    return docstring(importlib.import_module(found[0]))


@pytest.mark.parametrize("name", BUILT)
def test_a_plugins_manual_has_its_parts_and_its_examples_load(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = manual(name)
    assert text.startswith(f"{name} - ") and "## Syntax" in text and "## Examples" in text
    examples = re.findall(r"~~~ corefile\n(.*?)~~~", text, re.S)
    assert examples
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "kdns/cli/sample/cluster.yaml", tmp_path / "cluster.yaml")
    Site(tmp_path)
    Site(tmp_path / "lab", "*.lab.example")
    for zone in ("example.org.", "cluster.local."):
        keymaker.make(tmp_path, zone, secret=keymaker.KNOWN)
    (tmp_path / "db.example.org").write_text("@ 60 SOA ns h 1 2 3 4 5\n@ 60 NS ns\nns 60 A 192.0.2.1\n")
    for example in examples:
        instance = build.build(build.read(example, "example"))
        instance.load()
        assert any(plugin.name == name for plugin in instance.plugins)


def test_a_plugins_metrics_are_named_in_its_manual() -> None:
    for name in BUILT:
        found = place(name)
        assert found is not None
        source = ROOT / Path(*found[0].split(".")[1:])
        for path in source.glob("*.py") if source.is_dir() else [source.with_suffix(".py")]:
            for metric in re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"([a-z0-9_]+)"', path.read_text()):
                assert metric in manual(name), f"{metric} is not in the manual of {name}"


def built(kind: str, pattern: str, folder: Path) -> Path:
    """A wheel or sdist of the checkout."""
    words = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True, timeout=110)
    (made,) = folder.glob(pattern)
    return made


@pytest.mark.interpreted("it builds the checkout")
def test_the_wheel_holds_every_module_and_the_sample(tmp_path: Path) -> None:
    wheel = built("wheel", "*.whl", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "out")
    expected = {str(path.relative_to(ROOT)) for path in ROOT.glob("kdns/**/*.py") if "plugins" not in path.parts}
    expected |= {f"kdns/{path.relative_to(ROOT)}" for path in ROOT.glob("plugins/**/*.py")}
    expected |= {"kdns/cli/sample/cluster.yaml", "kdns/cli/sample/Corefile.example"}
    assert expected <= held
    assert not any(name.startswith(("plugins/", "tests/")) for name in held)
    done = subprocess.run(
        [sys.executable, "-c", "import kdns.cli.demo as d; print(d.folder(), 'kubernetes' in d.corefile())"],
        cwd=tmp_path / "out", capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path / "out")},
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'out' / 'kdns' / 'cli' / 'sample'} True\n"


@pytest.mark.interpreted("it builds the checkout")
def test_the_sdist_lacked_files_that_its_tests_read_and_had_plugins_in_another_place(tmp_path: Path) -> None:
    sdist = built("sdist", "*.tar.gz", tmp_path)
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], check=True, timeout=60)
    top = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert (top / "kdns" / "plugins").is_symlink() and (top / "kdns" / "plugins").resolve() == top / "plugins"
    rooms = ("kdns", "plugins", "tests", "benchmarks", "deploy", "docker", "docs")
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    missing = {
        str(path.relative_to(ROOT))
        for path in [ROOT / ".dockerignore", *files]
        if "__pycache__" not in path.parts and not (top / path.relative_to(ROOT)).exists()
    }
    assert missing <= set((ROOT / ".gitignore").read_text().split())  # what a benchmark has built
    words = [sys.executable, "-m", "pytest", "tests/deploy/test_image.py", "-k", "recipe"]
    done = subprocess.run(words, cwd=top, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


# The README.


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_readmes_first_screen_has_both_commands() -> None:
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:60])
    assert "make run" in head and "make test" in head and "dig @127.0.0.1 -p 1053" in head


def test_every_corefile_of_the_readme_and_the_example_build() -> None:
    texts = [*blocks("corefile"), (ROOT / "Corefile.example").read_text()]
    assert len(texts) >= 2
    for text in texts:
        try:
            build.build(build.read(text, "README")).check()
        except CorefileError as error:
            raise AssertionError(f"{error}\n{text}") from None


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed (bind9-dnsutils)")
def test_the_commands_of_the_readme_print_what_it_shows() -> None:
    port = free_port()
    text = (
        (ROOT / "Corefile.example")
        .read_text()
        .replace(".:1053", f".:{port}")
        .replace("/etc/resolv.conf", "127.0.0.1:9")
    )
    for taken in ("8080", "8181", "9153"):
        text = text.replace(f"127.0.0.1:{taken}", f"127.0.0.1:{free_port()}")
    process = Process("-conf", "stdin", stdin=text)
    try:
        process.until("linux/")
        tried = 0
        for block in blocks("console"):
            commands = re.split(r"^\$ ", block, flags=re.M)
            for part in commands[1:]:
                command, _, expected = part.partition("\n")
                if command.startswith("dig "):
                    words = command.replace("1053", str(port)).split()
                    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
                    assert _plain(done.stdout) == _plain(expected), command
                    tried += 1
                elif command.startswith("kdns "):
                    found = kdns(*command.split()[1:])
                    assert _plain(found.stdout + found.stderr) == _plain(expected), command
                    tried += 1
        assert tried >= 6
    finally:
        process.end(2)


def test_the_readmes_first_lines_are_those_of_make_run() -> None:
    shown = blocks("console")[0].splitlines()
    assert shown[0] == "$ make run"
    process = Process("-conf", "stdin", stdin=(ROOT / "Corefile.example").read_text().replace("1053", str(free_port())))
    try:
        process.until("linux/")
    finally:
        process.end(2)

    def kinds(lines: list[str]) -> list[str]:
        return [re.sub(r"= [0-9a-f.]+$|:\d+ |\d+(\.\d+)+|(interpret|compil)ed", "N", line) for line in lines]

    assert kinds(process.lines[: len(shown) - 1]) == kinds(shown[1:])


def test_the_readmes_error_is_what_check_says() -> None:
    said = re.search(r"^    (stdin:2:3: .*)$", (ROOT / "README.md").read_text(), re.M)
    done = kdns("check", "-", stdin=".:53 {\n  kuberntes cluster.local\n}\n")
    assert said is not None and done.stderr.strip() == said[1] and done.returncode == 1


def _plain(text: str) -> list[str]:
    """Lines without what changes from run to run: ids, times, serials, warnings about .local, the order of records."""
    lines = [re.sub(r"\s+", " ", re.sub(r"id: \d+|\b1[0-9]{9}\b", "N", line)).strip() for line in text.splitlines()]
    return sorted(line for line in lines if line and "mDNS" not in line and "WARNING: .local" not in line)


def test_the_demo_says_it_is_ready_and_ends_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if any(taken.connect_ex(("127.0.0.1", port)) == 0 for port in (8080, 8181, 9153)):
            pytest.skip("one of the sample's ports is taken on this machine")
    process = Process("demo", "-p", str(free_port()), cwd=tmp_path)
    try:
        process.until("ready: 14 services, 15 endpoints")
    finally:
        assert process.end(2) == 0


def test_the_readmes_figures_are_those_that_the_benchmarks_wrote() -> None:
    written = (ROOT / "benchmarks" / "results.md").read_text()
    text = (ROOT / "README.md").read_text().partition("## Cost")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "x |" in line]
    assert len(rows) == 9
    for name, *figures in rows:
        line = next(line for line in written.splitlines() if line.startswith(f"| {name} |"))
        assert all(
            re.search(rf"\| {re.escape(figure.strip(' |'))}[ |]", line) for figure in figures if figure.strip(" |")
        ), name
