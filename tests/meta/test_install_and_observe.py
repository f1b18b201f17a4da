"""docs/install.md and docs/observe.md are true: each command on them is run, or compared with what it names.

A command that no check below knows is a failure, so a new one comes with its check. What takes a cluster, a registry or
an engine is rendered or told apart: `kubectl kustomize`, `helm template` and `make -n` where they are, files else.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from kdns.cli import COMMANDS, serve
from kdns.cli.flags import parse, parse_among
from kdns.metrics import REGISTRY
from kdns.server import build
from kdns.server.order import BUILT, place
from kdns.server.problems import all_problems
from kdns.testing import eventually
from tests.cli.test_commands import Process, kdns
from tests.fixtures import Serve

ROOT = Path(__file__).resolve().parents[2]
INSTALL = (ROOT / "docs" / "install.md").read_text()
OBSERVE = (ROOT / "docs" / "observe.md").read_text()
PROGRAMS: Final = ("kdns", "kubectl", "helm", "make", "pip", "pipx", "docker", "dig")
CHART = ROOT / "deploy" / "helm" / "kdns"


def commands(page: str) -> list[str]:
    """The commands of a page: lines of its blocks after a `$`, and code in its text."""
    found = re.findall(r"^\$ (.*)$", page, re.M) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page)
    return [
        line for line in dict.fromkeys(found) if re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line).split()[0] in PROGRAMS
    ]  # fmt: skip


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def on_pipx(words: list[str]) -> None:
    assert words == ["install", "."] and project()["scripts"] == {"kdns": "kdns.cli:main"}
    assert project()["requires-python"] == ">=3.11" and "Python 3.11 or newer" in INSTALL


def on_pip(words: list[str]) -> None:
    assert words == ["install", "."]
    assert 'os.environ.get("KDNS_COMPILE"' in (ROOT / "hatch_build.py").read_text()


def on_make(words: list[str]) -> None:
    """What make would do: each file it runs is there, and the image has the name that was given."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", *words, "ENGINE=an-engine"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if words[0] == "push":
        name = words[1].removeprefix("IMAGE=")
        assert done.stdout.splitlines()[-1] == f"an-engine push {name}"
        assert f"an-engine build -f docker/Dockerfile -t {name} ." in done.stdout
    for path in re.findall(r"(?:sh|-f) ([\w/]+\.sh|docker/\w+)", done.stdout):
        assert (ROOT / path).is_file(), path


def on_kubectl(words: list[str]) -> None:
    if words[:2] == ["apply", "-k"]:
        folder = ROOT / words[2]
        custom = yaml.safe_load((folder / "kustomization.yaml").read_text())
        for path in custom.get("resources", []) + custom.get("components", []):
            assert (folder / path).exists(), path
        if shutil.which("kubectl") is not None:
            done = subprocess.run(
                ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0 and "kind: " in done.stdout, done.stderr
        return
    assert words[:4] == ["-n", "kube-system", "port-forward", "POD"]
    assert f"`status 127.0.0.1:{words[4]}`" in OBSERVE  # the page is where the line before it puts it


def on_helm(words: list[str]) -> None:
    assert words[0] == "install" and (ROOT / words[2] / "Chart.yaml").is_file()
    if shutil.which("helm") is not None:
        done = subprocess.run(
            ["helm", "template", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 and "kind: Deployment" in done.stdout, done.stderr


def on_kdns(words: list[str]) -> None:
    if words[0].startswith("-"):
        assert re.search(r"(compiled|interpreted)", kdns(*words).stdout)
        return
    assert words[0] in COMMANDS, words
    if words[0] == "plugins":
        assert "coredns_dns_requests_total" in kdns("plugins", "prometheus").stdout
    elif words[0] != "demo":  # which is run by the tests of README
        parse_among(words[1:], importlib.import_module(f"kdns.cli.{words[0]}").FLAGS)


CHECKS: Final[dict[str, Callable[[list[str]], None]]] = {
    "pipx": on_pipx, "pip": on_pip, "make": on_make, "kubectl": on_kubectl, "helm": on_helm, "kdns": on_kdns,
}  # fmt: skip


@pytest.mark.parametrize("command", commands(INSTALL) + commands(OBSERVE))
def test_a_command_of_the_pages_on_installing_and_observing_does_what_they_say(command: str) -> None:
    words = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command).split()
    CHECKS[words[0]](words[1:])


def test_both_pages_have_their_commands() -> None:
    assert len(commands(INSTALL)) >= 12 and len(commands(OBSERVE)) >= 7


# Installing.


def test_the_values_of_the_chart_that_the_page_names_are_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = re.findall(r"`((?:image|writable|rollingUpdate)\.\w+)", INSTALL)
    assert len(named) >= 5
    for name in named:
        room, _, key = name.partition(".")
        assert key in values[room], name


@pytest.mark.parametrize(("plugin", "text"), [
    ("sign", "sign db {{\n key directory keys\n {option}\n }}"),
    ("secondary", "secondary example.org {{\n transfer from 192.0.2.1\n {option}\n }}"),
    ("kubernetes", "kubernetes cluster.local {{\n {option}\n }}"),
    ("dynupdate", "dynupdate example.org {{\n {option}\n allow 192.0.2.0/24\n }}"),
])  # fmt: skip
def test_the_settings_for_the_folder_to_write_to_are_read_as_they_are_printed(plugin: str, text: str) -> None:
    row = re.search(rf"^\| `{plugin}` \| `([^`]+)`", INSTALL, re.M)
    assert row is not None
    option = row[1] if " " in row[1] else f"{row[1]} /var/lib/coredns"
    corefile = f".:53 {{\n {text.format(option=option)}\n}}\n"
    errors = all_problems(build.read(corefile, "Corefile", environ={}))
    assert not [error for error in errors if option.split()[0] in str(error)], errors


def test_the_folder_is_the_charts_the_components_and_the_default_of_sign() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    component = (ROOT / "deploy/components/writable/kustomization.yaml").read_text()
    assert "`components: [../../components/writable]`" in INSTALL
    assert values["writable"]["mountPath"] == "/var/lib/coredns" and "mountPath: /var/lib/coredns" in component
    assert "/var/lib/coredns" in kdns("plugins", "sign").stdout


def test_the_rights_and_ports_are_those_of_the_manifests() -> None:
    role = next(yaml.safe_load_all((ROOT / "deploy/base/rbac.yaml").read_text()))
    granted = {resource for rule in role["rules"] for resource in rule["resources"]}
    row = re.search(r"^\| rights \| list and watch of (.*)$", INSTALL, re.M)
    assert row is not None and {rule for rule in granted if rule not in row[1].lower()} == set()
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    row = re.search(r"^\| network \| in: ([^;]*);", INSTALL, re.M)
    base = (ROOT / "deploy/base/deployment.yaml").read_text() + (ROOT / "deploy/base/configmap.yaml").read_text()
    assert row is not None
    ports = re.findall(r"\b\d{2,5}\b", row[1])
    assert len(ports) == 4 and all(re.search(rf"\b{port}\b", base) for port in ports), ports


def test_the_figures_of_both_builds_are_where_the_page_says() -> None:
    """It had figures of its own, which were those of an older build."""
    assert "[README](../README.md#cost)" in INSTALL
    assert "| case | kdns compiled | kdns interpreted |" in (ROOT / "README.md").read_text().partition("## Cost")[2]


# Observing.


@pytest.mark.parametrize("line", sorted(set(re.findall(rf"`((?:{'|'.join(BUILT)}) [^`]+)`", INSTALL + OBSERVE))))
def test_a_directive_in_the_text_is_read_as_it_is_printed(line: str) -> None:
    line = line.replace(" N", " 2")
    assert all_problems(build.read(f".:53 {{\n{line}\nwhoami\n}}\n", "Corefile", environ=dict(os.environ))) == []


def test_the_block_that_logs_few_lines_logs_a_denial_and_not_an_answer(serve: Serve, lines: list[str]) -> None:
    """It stood on one line, which is an error."""
    (text,) = re.findall(r"```corefile\n(.*?)```", OBSERVE, re.S)
    hosts = "hosts {\n        192.0.2.1 a.org\n    }\n    template ANY ANY b.org {\n        rcode NXDOMAIN\n    }"
    server = serve(
        text.replace(".:53 {", ".:{port} {\n    bind 127.0.0.1", 1).replace("whoami", f"{hosts}\n    whoami")
    )
    server.ask("a.org.")
    server.ask("b.org.")
    eventually(lambda: any(" IN b.org. " in line for line in lines))
    assert not any(" IN a.org. " in line for line in lines)


def test_a_log_in_json_is_an_object_a_line() -> None:
    assert "`-log-format json`" in OBSERVE and parse(["-log-format", "json"], serve.FLAGS)
    process = Process("-log-format", "json", "-conf", "nowhere/Corefile")
    out, _ = process.process.communicate(timeout=90)
    for line in filter(None, out.splitlines()):
        json.loads(line)


def test_what_monitors_is_in_the_overlay() -> None:
    folder = ROOT / "deploy/overlays/monitoring"
    kinds = {yaml.safe_load(path.read_text())["kind"] for path in folder.glob("*monitor.yaml")}
    assert kinds == {"ServiceMonitor", "PodMonitor"} and (folder / "dashboard.json").is_file()
    assert "a ServiceMonitor, a PodMonitor, the rules below and a\ndashboard" in OBSERVE


def test_a_series_has_the_labels_that_the_page_asks_it_by() -> None:
    for name in BUILT:
        found = place(name)
        assert found is not None
        importlib.import_module(found[0])
    asked = re.findall(r"^\| [^|]* \| `(\w+)` by ([^;|]*)[;|]", OBSERVE, re.M)
    assert len(asked) == 2
    for name, labels in asked:
        words = set(re.findall(r"`(\w+)`", labels))
        assert words and words <= set(REGISTRY[name].labels), (name, words, REGISTRY[name].labels)
