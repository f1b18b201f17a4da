"""Plugin files beside the Corefile in a ConfigMap, as plan, explain and compare meet them: known, and never run.

What check says of them is in test_check.
"""

from pathlib import Path

import pytest
import yaml

from kdns.testing import ApiServer
from tests.cli.test_check import HELLO, with_plugin
from tests.cli.test_commands import kdns
from tests.cli.test_tools import config_map, kubeconfig
from tests.fixtures import Serve

UNSEEN = "plugin hello.py ({}:3:2) is code from a ConfigMap and was not run: its answers cannot be shown"


@pytest.mark.parametrize("directive", ["plugin hello.py", "plugin /etc/coredns/hello.py {\n  greet all\n }"])
@pytest.mark.parametrize(("command", "code"), [
    ("plan -", 0), ("explain -conf - a.org", 3), ("explain --trace -conf - a.org", 3)
])  # fmt: skip
def test_plan_and_explain_said_no_such_file_of_a_plugin_file_in_the_config_map(
    command: str, code: int, directive: str, tmp_path: Path
) -> None:
    text = with_plugin(f"open({str(tmp_path / 'ran')!r}, 'w')\n{HELLO}", directive)
    done = kdns(*command.split(), stdin=text)
    assert (done.returncode, done.stderr) == (code, "") and "whoami" in done.stdout
    assert done.stdout.split("\n").count(f"  {UNSEEN.format('stdin')}") == 1
    assert not (tmp_path / "ran").exists()
    # Where the file is another's, or no Python, it is as before.
    done = kdns(*command.split(), stdin=with_plugin("", "plugin g/gone.py"))
    assert (done.returncode, done.stderr) == (1, "stdin:3:9: plugin g/gone.py: no such file\n")
    done = kdns(*command.split(), stdin=with_plugin("def x(:\n"))
    assert done.returncode == 1 and done.stderr.startswith("stdin/hello.py:1:7: this is not Python: ")


def test_explain_says_of_the_block_that_is_asked_what_it_leaves_out(tmp_path: Path) -> None:
    corefile = ".:53 {\n whoami\n}\nx.org {\n plugin hello.py\n}\ny.org {\n whoami\n plugin hello.py\n}\n"
    data = {"Corefile": corefile, "hello.py": HELLO}
    text = yaml.safe_dump({"kind": "ConfigMap", "metadata": {"name": "dns"}, "data": data})
    said = {name: kdns("explain", "-conf", "-", name, stdin=text).stdout for name in ("a.org", "a.x.org", "a.y.org")}
    assert "hello.py" not in said["a.org"]
    # It has no other plugin, so of this it would be said that no block serves it.
    assert "hello.py (stdin:5:2)" in said["a.x.org"] and "nothing else serves this name: REFUSED" in said["a.x.org"]
    assert "hello.py (stdin:9:2)" in said["a.y.org"] and "whoami" in said["a.y.org"]
    plan = kdns("plan", "-", stdin=text).stdout
    assert "REFUSED" not in plan and [part.count("hello.py") for part in plan.split("\n\n")] == [0, 1, 1]


def test_explain_leaves_out_the_plugin_files_of_the_clusters_own_config_map(api: ApiServer, tmp_path: Path) -> None:
    text = with_plugin(f"open({str(tmp_path / 'ran')!r}, 'w')\n{HELLO}")
    api.put(config_map("coredns", **yaml.safe_load(text)["data"]))
    done = kdns("explain", "--kubeconfig", kubeconfig(tmp_path, here=api.url), "a.org", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "") and UNSEEN.format("kube-system/coredns") in done.stdout
    assert not (tmp_path / "ran").exists()


def test_compare_says_what_it_leaves_out_of_the_configuration_at_hand(serve: Serve, tmp_path: Path) -> None:
    running = serve(".:{port} {\n bind 127.0.0.1\n whoami\n}")
    path = tmp_path / "coredns.yaml"
    path.write_text(with_plugin(HELLO))
    done = kdns("compare", "-conf", str(path), f"@127.0.0.1:{running.port}", "a.org")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == f"{path}: warning: {UNSEEN.format(path)}\n"


def test_the_name_of_a_plugin_file_was_sent_to_the_terminal_as_it_stood() -> None:
    name = "x\x1b]0;title\x07.py"
    data = {"Corefile": f'.:53 {{\n plugin "{name}"\n whoami\n}}\n', name: HELLO}
    text = yaml.safe_dump({"kind": "ConfigMap", "metadata": {"name": "dns"}, "data": data})
    for words in (["check", "-"], ["plan", "-"], ["explain", "-conf", "-", "a.org"]):
        done = kdns(*words, stdin=text)
        said = done.stdout + done.stderr
        assert "plugin x\\x1b]0;title\\x07.py" in said and said.replace("\n", "").isprintable()
