"""What ARCHITECTURE.md and CONTRIBUTING.md say is there is there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TOOLS = (ROOT / "tests" / "tools.sh").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b[a-z_]+(?:/[a-z_]+)*\.py\b", ARCHITECTURE + CONTRIBUTING))))
def test_a_module_that_the_documents_name_is_there(path: str) -> None:
    folders = (
        ROOT,
        ROOT / "kdns",
        ROOT / "kdns/dns",
        ROOT / "kdns/server",
        ROOT / "kdns/net",
        ROOT / "kdns/corefile",
        ROOT / "kdns/kube",
    )
    assert any((folder / path).is_file() for folder in (*folders, ROOT / "plugins/kubernetes")), path


def test_every_layer_is_in_the_drawing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"] for contract in project["tool"]["importlinter"]["contracts"] if "layers" in contract
    )
    names = {name for row in layers for name in row.split(" | ")}
    drawing = ARCHITECTURE.split("```text")[1].split("```")[0]
    assert {name for name in names if not re.search(rf"\b{name}\b", drawing)} == set()


def test_kubectl_was_said_to_be_installed_by_make_tools_and_no_page_named_its_version() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests" / "deploy").glob("*.py"))
    needed = set(re.findall(r'skipif\(shutil\.which\("(\w+)"\) is None', sources))
    installed = set(re.findall(r"\b([\w-]+):[\w-]+", "".join(re.findall(r'^tools="(.*)"$', TOOLS, re.M))))
    assert {"dig", "promtool", "haproxy"} <= installed and needed - installed == {"helm", "kubectl"}
    for name in needed - installed:
        assert f"`{name}`" in CONTRIBUTING and re.search(rf"{name}\s+\d\.\d+", CONTRIBUTING), name
    comment = (ROOT / "Makefile").read_text().split("\ntools:\n")[0].rsplit("\n\n", 1)[1].replace("\n# ", " ")
    assert "kubectl and helm are yours to install" in comment and "tests/tools.sh" in comment


def test_every_target_of_make_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in (ARCHITECTURE, CONTRIBUTING, SECURITY, (ROOT / "README.md").read_text()):
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", document, re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|docker|deploy)(?:/[\w.-]+)*)`", SECURITY))))
def test_what_shows_a_promise_is_there(path: str) -> None:
    assert (ROOT / path).exists(), path


def test_each_weakness_elsewhere_has_its_test_here() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| CVE-")]
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named or "the same tests" in row, row
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.M), (file, test)
    numbers = [number for row in rows for number in re.findall(r"CVE-\d{4}-\d+", row)]
    assert len(numbers) == len(set(numbers)) > 70


def test_a_counter_that_a_promise_names_is_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "kdns").rglob("*.py"))
    for counter in re.findall(r"`(\w+_total)`", SECURITY):
        assert f'"{counter}"' in sources, counter
