"""check says everything that is wrong, once, in the order of the file, and nothing that only follows from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.test_commands import kdns


def said(text: str, *words: str) -> list[str]:
    """What check says of a text on standard input: `line:column message`."""
    done = kdns("check", *words, "-", stdin=text)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1 or done.stderr.splitlines()[-1] == f"stdin: {len(lines)} errors"
    return [line.removeprefix("stdin:").replace(" error: ", " ", 1) for line in lines]


def matches(found: list[str], expected: list[str]) -> bool:
    return len(found) == len(expected) and all(
        line.split()[0].rstrip(":") == text.split()[0] and text.split(" ", 1)[1] in line
        for line, text in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(("text", "expected"), [
    # An import that fails, in a block and between blocks.
    (".:53 {\n import nope\n errrs\n}\nimport gone/x\nb {\n whoam\n}\n",
        ["2:9 cannot import", '3:2 unknown directive "errrs"', "5:8 cannot import", '7:2 unknown directive "whoam"']),
    (".:53 {\n import a b\n import\n import \"\"\n import a*b*c\n errrs\n}\n",
        ["2:11 import takes one argument", "3:2 expected a file", "4:9 import of an empty name", "5:9 more than one",
            "6:2 unknown directive"]),
    # A brace that is missing: of a server block, of a directive, of a snippet, of both, at the end.
    (".:53 {\n errors\n\nb:53 {\n errrs\n}\n", ["4:1 to close the server block that begins at stdin:1:1",
        "5:2 unknown directive"]),
    (".:53 {\n forward . 1.1.1.1 {\n  max_fails 3\n cache 30\n errrs\n}\nb {\n whoam\n}\n",
        ["4:2 to close the block of forward that begins at stdin:2:20, found the next directive",
            "5:2 unknown directive", "8:2 unknown directive"]),
    ("(s) {\n log\n\n.:53 {\n import s\n errrs\n}\n", ["4:1 to close the snippet that begins at stdin:1:1",
        "6:2 unknown directive"]),
    (".:53 {\n forward . 1.1.1.1 {\n  max_fails x\n\nb {\n errrs\n}\n",
        ["3:13 ", "5:1 to close the block of forward", "6:2 unknown directive"]),
    (".:53 {\n errrs\n forward . 1.1.1.1 {\n", ["2:2 unknown directive", "3:21 to close the block of forward"]),
    (".:53 {\nerrors\nkuberntes cluster.local {\nttl 5\n}\nb.org {\nerrrs\n}\n",
        ['3:1 unknown directive "kuberntes"', "6:1 to close the server block that begins at stdin:1:1",
            "7:1 unknown directive"]),
    # One too many, or without the one it closes.
    (".:53 {\n errors\n }\n cache 30\n}\nb {\n whoam\n}\n",
        ["5:1 no block is open (the server block that begins at stdin:1:1 ends at stdin:3:2)",
            "7:2 unknown directive"]),
    (".:53\n errrs\n}\nb {\n whoam\n}\n", ["2:2 unknown directive", "3:1 no block is open (is '{' missing after",
        "5:2 unknown directive"]),
    ("}\n.:53 {\n errrs\n}\n", ["1:1 no block is open", "3:2 unknown directive"]),
    # Out of place, or without a space.
    (".:53{\n errrs\n}\nb {\n forward . 1.1.1.1{\n  max_fails 3\n }\n whoam\n}\n",
        ['1:1 ".:53{": a space is missing', "2:2 unknown directive", '5:12 "1.1.1.1{": a space is missing',
            "8:2 unknown directive"]),
    (".:53 {\n log{\n  class all\n }\n errrs\n}\n", ["2:2 (a space is missing before", "5:2 unknown directive"]),
    (".:53 {\n forward . 1.1.1.1\n {\n  max_fails 3\n }\n errrs\n}\n", ["3:2 on the directive's own line",
        "6:2 unknown directive"]),
    (".:53 {\n health { lameduck 5s }\n errrs\n} x\nb {\n whoam\n}\n", ["2:11 on its own line", "3:2 unknown directive",
        "4:3 expected a new line", "6:2 unknown directive"]),
    (".:53 {\n cache {\n {\n }\n success x\n } errors\n errrs\n}\n", ["3:2 unexpected '{'", "5:10 ",
        "6:4 expected a new line", "7:2 unknown directive"]),
    ("a, {\n errrs\n}\n", ["1:4 expected another key", "2:2 unknown directive"]),
    # Snippets.
    ("(s) {\n log\n}\n(s) {\n log\n}\n(t) {\n import t\n}\n.:53 {\n errrs\n}\n", ["4:1 defined twice",
        "8:9 imports itself", "11:2 unknown directive"]),
    # What is claimed twice, beside other errors, more than once.
    (".:53 {\n errrs\n}\n.:53 {\n log\n}\nb {\n cache x {\n  success y\n }\n}\nb {\n}\n.:53 {\n}\n",
        ["2:2 unknown directive", "4:1 cannot serve .:53 - it is already defined at stdin:1:1",
            "9:11 ", "12:1 already defined at stdin:7:1", "14:1 already defined at stdin:1:1"]),
])  # fmt: skip
def test_one_error_hid_what_came_after_it(text: str, expected: list[str]) -> None:
    found = said(text)
    assert matches(found, expected), "\n".join(found)


@pytest.mark.parametrize(("text", "expected"), [
    # A file that cannot be read may have had the snippets that are then imported.
    (".:53 {\n import snippets.conf\n import common\n}\n", ["2:9 cannot import"]),
    # Two blocks may have one zone with `bind` or `view`; a misspelled one, or one that is wrong, is the error.
    (".:53 {\n bnd 127.0.0.1\n}\n.:53 {\n bind 127.0.0.2\n}\n", ['2:2 unknown directive "bnd"']),
    (".:53 {\n view a {\n  expr 1 +\n }\n}\n.:53 {\n}\n", ["3:"]),
    # What a plugin needs of another is not there while that one is wrong.
    (".:53 {\n tenants {\n  isolate\n  unknown deny\n }\n kuberntes cluster.local\n}\n",
        ['6:2 unknown directive "kuberntes"']),
    (".:53 {\n tenants {\n  isolate\n  unknown deny\n }\n kubernetes cluster.local {\n  ttl x\n }\n}\n", ["7:7 "]),
    # A snippet that imports itself, and one who imports it.
    ("(t) {\n log\n import t\n}\n.:53 {\n import t\n}\n", ["3:9 imports itself"]),
    # The file ends in three open blocks: the innermost is said.
    (".:53 {\n view a {\n  expr true\n", ["3:12 to close the block of view"]),
])  # fmt: skip
def test_what_follows_from_an_error_is_not_said(text: str, expected: list[str]) -> None:
    found = said(text)
    assert len(found) == len(expected) and all(
        line.startswith(text.split(" ", 1)[0]) and text.split(" ", 1)[-1] in line
        for line, text in zip(found, expected, strict=True)
    ), "\n".join(found)


def test_a_quote_without_an_end_takes_the_rest_of_the_file_and_check_says_where_it_begins() -> None:
    (line,) = said('.:53 {\n log . "a\n}\nb {\n errors\n}\n')
    assert "(does the quote that begins at stdin:2:8 end where it should?)" in line


def test_errors_of_imported_files_are_said_each_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("errrs\nforward . 1.1.1.1 {\n max_fails x\n}\n")
    (tmp_path / "b").write_bytes(b"log\0\n")
    (tmp_path / "c").write_text("import c\nwhoam\n")
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n import a\n import b\n import c\n lg\n}\n")
    done = kdns("check", str(path))
    places = [line.split(" error: ")[0] for line in done.stderr.splitlines()]
    assert places == [
        f"{tmp_path}/a:1:1:", f"{tmp_path}/a:3:12:", f"{tmp_path}/b:1:4:", f"{tmp_path}/c:1:8:", f"{tmp_path}/c:2:1:",
        f"{path}:5:2:", f"{path}: 6 errors",
    ], done.stderr  # fmt: skip


def test_each_corefile_of_several_config_maps_is_read_to_its_end() -> None:
    maps = [
        {"kind": "ConfigMap", "metadata": {"name": name}, "data": {"Corefile": text}}
        for name, text in (("a", ".:53 {\n import nope\n errrs\n}\n"), ("b", ".:53 {\n errrs\n\nb {\n whoam\n}\n"))
    ]
    found = said_of_maps(yaml.safe_dump({"kind": "List", "items": maps}))
    assert found == ["stdin(a):2:9", "stdin(a):3:2", "stdin(b):2:2", "stdin(b):4:1", "stdin(b):5:2"]


def said_of_maps(text: str) -> list[str]:
    done = kdns("check", "-", stdin=text)
    return [line.split(": error: ")[0] for line in done.stderr.splitlines() if ": error: " in line]


def test_load_goes_on_in_the_blocks_without_errors(tmp_path: Path) -> None:
    found = said(f".:53 {{\n errrs\n}}\nb {{\n forward . {tmp_path}/none\n}}\n", "--load")
    assert matches(found, ["2:2 unknown directive", "5:12 neither an address nor a file"]), found


def test_the_errors_as_json_are_the_same() -> None:
    done = kdns("check", "--json", "-", stdin=".:53 {\n import nope\n errrs\n\nb {\n}\n.:53 {\n}\n")
    told = json.loads(done.stdout)
    assert [(error["line"], error["column"]) for error in told["errors"]] == [(2, 9), (3, 2), (5, 1), (7, 1)]


HELLO = "from kdns.plugin import Plugin\n\n\nclass Hello(Plugin):\n    name = 'hello'\n"


def with_plugin(text: str, directive: str = "plugin hello.py {\n  greet all\n }") -> str:
    corefile = f".:53 {{\n errors\n {directive}\n whoami\n}}\n"
    return yaml.safe_dump(
        {"kind": "ConfigMap", "metadata": {"name": "dns"}, "data": {"Corefile": corefile, "hello.py": text}}
    )


@pytest.mark.parametrize("directive", ["plugin hello.py", "plugin /etc/coredns/hello.py {\n  greet all\n }"])
def test_a_plugin_file_that_is_a_key_of_the_config_map_was_no_such_file(directive: str) -> None:
    done = kdns("check", "-", stdin=with_plugin(HELLO, directive))
    assert done.returncode == 0 and done.stdout == "stdin: ok (1 server block, 2 plugins)\n", done.stderr
    assert done.stderr == (
        "stdin: warning: stdin:3:2: plugin hello.py was not run, so its own options were not checked\n"
    )


def test_a_plugin_file_of_a_config_map_is_not_run(tmp_path: Path) -> None:
    """What stands in a cluster's ConfigMap may run in the cluster, and not where somebody looks at it."""
    done = kdns("check", "--load", "-", stdin=with_plugin(f"open({str(tmp_path / 'ran')!r}, 'w')\n{HELLO}"))
    assert done.returncode == 0 and not (tmp_path / "ran").exists()


def test_a_plugin_file_of_a_config_map_that_is_not_python_is_an_error_with_its_place() -> None:
    done = kdns("check", "-", stdin=with_plugin("import os\ndef x(:\n"))
    assert done.returncode == 1 and done.stderr.startswith("stdin/hello.py:2:7: error: this is not Python: ")
    done = kdns("check", "-", stdin=with_plugin(HELLO, "plugin gone.py"))
    assert done.returncode == 1 and "stdin:3:9: error: plugin gone.py: no such file" in done.stderr


@pytest.mark.parametrize(("text", "code"), [(".:53 {\n whoami\n}\n", 0), (".:53 {\n whoam\n}\n", 1)])
def test_check_keeps_its_verdict_where_nobody_reads_its_output(text: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(text)
    script = f"{sys.executable} -m kdns check --json {tmp_path}/Corefile | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{code}\n", "")


def test_other_tools_end_with_141_where_nobody_reads_their_output() -> None:
    """As a shell says of SIGPIPE. It was 1, which is for what went wrong."""
    script = f"{sys.executable} -m kdns plugins kubernetes | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("141\n", "")
