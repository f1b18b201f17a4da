"""What every tool says to input that cannot be used: one line and the exit code of its help, and nothing else."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdns.cli import COMMANDS
from kdns.testing import ApiServer
from tests.cli.test_commands import kdns
from tests.cli.test_tools import kubeconfig
from tests.forker import ENV

COREFILE = ".:53 {\n whoami\n}\n"
PRINTING = (
    "plugins", "plugins cache", "help check", "help", "version", "completion bash", "completion man",
    "check FILE", "check --json FILE", "fmt FILE", "fmt --diff FILE", "plan FILE", "explain a.org -conf FILE",
    "compare @127.0.0.1:1 @127.0.0.1:1 a.org", "query --help", "zone -print -origin a.org ZONE", "doctor --help",
)  # fmt: skip
ZONE = "@ 60 SOA a b 1 2 3 4 5\n@ 60 NS a\na 60 A 192.0.2.1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "FILE").write_text(COREFILE.replace("\n ", "\n   "))
    (tmp_path / "ZONE").write_text(ZONE)
    return tmp_path


class Web:
    """A web server that says the same to everything."""

    body = ""
    url = ""


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(found.body.encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def shell(words: str, redirections: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = f'"{sys.executable}" -m kdns {words} {redirections}'
    env = {**ENV, "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_every_tool_that_prints_is_tried() -> None:
    assert {words.split()[0] for words in PRINTING} | {"demo"} == set(COMMANDS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("words", PRINTING)
def test_a_full_disk_behind_standard_output_was_a_traceback(words: str, folder: Path) -> None:
    done = shell(words, ">/dev/full", folder)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "cannot write the output: No space left on device\n"


@pytest.mark.parametrize("words", ["plugins", "check FILE", "explain a.org -conf FILE", "zone -origin a.org ZONE"])
def test_closed_standard_streams_were_a_traceback(words: str, folder: Path) -> None:
    usual = shell(words, "</dev/null >/dev/null", folder)
    done = shell(words, "<&- >&-", folder)
    assert (done.returncode, done.stderr) == (usual.returncode, usual.stderr)


def test_no_stream_at_all_is_no_fault(folder: Path) -> None:
    assert shell("check FILE", "<&- >&- 2>&-", folder).returncode == 0


@pytest.mark.parametrize("words", ["help", "check FILE", "zone -print -origin a.org ZONE"])
def test_a_reader_that_left_is_said_nothing(words: str, folder: Path) -> None:
    done = shell(words, "| true", folder)
    assert not done.stderr


@pytest.mark.parametrize("words", ["check -", "fmt -", "plan -", "explain a -conf -", "-conf stdin",
    "compare @127.0.0.1:1 @127.0.0.1:1 --file -"])  # fmt: skip
def test_a_closed_standard_input_was_a_traceback(words: str, folder: Path) -> None:
    done = shell(words, "<&-", folder) if words != "-conf stdin" else shell(words + " -nope", "<&-", folder)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    if words != "-conf stdin":
        assert done.stderr.count("\n") == 1 and ("empty" in done.stderr or "no questions" in done.stderr)


@pytest.mark.parametrize(("words", "code", "said"), [
    ("fmt EMPTY", 1, "EMPTY: the input is empty: did the command before the pipe fail?\n"),
    ("compare @127.0.0.1:1 @127.0.0.1:1 --file /nowhere/x", 1, "cannot read /nowhere/x: No such file or directory\n"),
    ("compare @127.0.0.1:1 @127.0.0.1:1 --file .", 1, "cannot read .: Is a directory\n"),
    ("compare @127.0.0.1:1 @127.0.0.1:1 --manifests /nowhere/x", 1, "cannot read /nowhere/x: No such file or "
        "directory\n"),
    ("compare @127.0.0.1:1 @127.0.0.1:1 --manifests EMPTY", 1, "there is no object of Kubernetes in EMPTY: there is "
        "nothing to ask for\n"),
    ("compare @127.0.0.1:1 @127.0.0.1:1 --manifests BINARY", 1, "BINARY:2: unacceptable character #x0000: control "
        "characters are not allowed\n"),
    ("compare @127.0.0.1:1 @127.0.0.1:1 --manifests HUGE", 1, "cannot read HUGE: it is larger than 256 MiB\n"),
    ("doctor --kubeconfig HUGE", 1, "the cluster cannot be asked: kubeconfig HUGE cannot be read: it is larger than "
        "4 MiB\n"),
    ("doctor --kubeconfig LATIN", 1, "the cluster cannot be asked: kubeconfig LATIN cannot be read: it is not text\n"),
    ("doctor --kubeconfig DIR", 1, "the cluster cannot be asked: kubeconfig DIR: not a file\n"),
    ("explain a..b -conf FILE", 2, "empty label in name 'a..b'\nSee: kdns explain --help\n"),
    ("explain a --from / -conf FILE", 2, '--from takes NAMESPACE or NAMESPACE/POD, found "/"\nSee: kdns explain '
        "--help\n"),
    ("explain a --from shop/ -conf FILE", 2, '--from takes NAMESPACE or NAMESPACE/POD, found "shop/"\nSee: kdns '
        "explain --help\n"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line(words: str, code: int, said: str, folder: Path) -> None:
    (folder / "EMPTY").touch()
    (folder / "DIR").mkdir()
    (folder / "BINARY").write_bytes(b"a: b\n\0\1\2")
    (folder / "LATIN").write_bytes(b"a: b\n\xff\xfe")
    with (folder / "HUGE").open("wb") as file:
        file.truncate(3 << 30)
    done = kdns(*words.split(), cwd=folder)
    assert (done.returncode, done.stderr.replace(f"{folder}/", "")) == (code, said)


@pytest.mark.parametrize("words", ["explain a.org", "compare @127.0.0.1:1 @127.0.0.1:1", "compare @127.0.0.1:1",
    "doctor"])  # fmt: skip
@pytest.mark.parametrize("status", [403, 500])
def test_an_api_that_says_no_to_all_is_one_line(words: str, status: int, api: ApiServer, tmp_path: Path) -> None:
    api.fail += [status] * 50
    done = kdns(*words.split(), "--kubeconfig", kubeconfig(tmp_path, here=api.url), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"{status} " in done.stderr, done.stderr
    assert not done.stdout


@pytest.mark.parametrize("words", ["explain a.org", "compare @127.0.0.1:1 @127.0.0.1:1", "doctor"])
@pytest.mark.parametrize("body", ["<html>sign in</html>", "null", '{"items": 5}', '{"items": [null]}'])
def test_an_api_that_is_none_is_one_line(words: str, body: str, tmp_path: Path, web: Web) -> None:
    web.body = body
    done = kdns(*words.split(), "--kubeconfig", kubeconfig(tmp_path, here=web.url), cwd=tmp_path)
    assert done.returncode in (1, 3) and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 1
