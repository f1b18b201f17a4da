"""A command of the forker beside one that has a process of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdns.testing import eventually
from tests.forker import ENV, Forker, forker

ENVIRON = {**ENV, "PYTHONPATH": str(Path.cwd())}
COREFILE = b".:53 {\n whoami\n}\n"


def state(pid: int) -> dict[str, object]:
    """What a process has from whoever started it, its signals, files and folder; and how many threads it has."""
    status = Path(f"/proc/{pid}/status").read_text()
    files = {each: os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")}
    return {
        "status": re.findall(r"^(Threads|Sig(?:Blk|Ign|Cgt)):\s+(\w+)", status, re.M),
        "files": {number: re.sub(r"\d+", "N", file) for number, file in files.items()},
        "folder": os.readlink(f"/proc/{pid}/cwd"),
    }


def reads(pid: int, fifo: Path) -> bool:
    return str(fifo) in [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.parametrize(("words", "given", "code"), [
    ("version", None, 0),
    ("check -", COREFILE, 0),
    ("check -", b"x {\n nonsense\n}\n", 1),
    ("check -", b"", 1),
    ("fmt --diff Corefile", None, 1),
    ("explain a.org A -conf -", COREFILE, 3),
    ("plan /nowhere/x", None, 1),
    ("nonsense", None, 1),
    ("-nonsense", None, 2),
    ("completion man", None, 0),
])  # fmt: skip
def test_a_command_says_what_it_says_in_a_process_of_its_own(
    tmp_path: Path, words: str, given: bytes | None, code: int
) -> None:
    (tmp_path / "Corefile").write_bytes(COREFILE)
    forked = forker().run(tuple(words.split()), given, tmp_path, 60)
    real = subprocess.run(
        [sys.executable, "-m", "kdns", *words.split()], input=given, capture_output=True, cwd=tmp_path, env=ENVIRON,
        stdin=subprocess.DEVNULL if given is None else None, timeout=60,
    )  # fmt: skip
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)
    assert forked.returncode == code


def test_more_is_given_and_said_than_a_pipe_holds() -> None:
    text = COREFILE + b"# a comment\n" * 100_000
    done = forker().run(("fmt", "-"), text, None, 60)
    assert done.returncode == 0 and done.stdout.count(b"# a comment\n") == 100_000
    assert forker().run(("version", "-nonsense"), text, None, 60).returncode == 2  # which reads nothing


def test_a_command_has_the_signals_files_and_folder_of_a_process_of_its_own(tmp_path: Path) -> None:
    fifo = tmp_path / "FIFO"
    os.mkfifo(fifo)
    words = ("check", fifo.name)
    command = forker().start(words, tmp_path)
    with open(fifo, "wb"):  # waits for a reader
        eventually(lambda: reads(command.pid, fifo), 60)
        forked = state(command.pid)
    command.communicate()
    with subprocess.Popen(
        [sys.executable, "-m", "kdns", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRON,
    ) as process:  # fmt: skip
        with open(fifo, "wb"):
            eventually(lambda: reads(process.pid, fifo), 60)
            real = state(process.pid)
        process.communicate()
    assert forked == real


def test_a_command_that_takes_too_long_is_killed_and_the_next_one_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FIFO")
    before = forker().commands()
    with pytest.raises(subprocess.TimeoutExpired):
        forker().run(("check", "FIFO"), None, tmp_path, 0.1)
    assert forker().commands() == before
    assert forker().run(("check", "-"), COREFILE, None, 60).returncode == 0


def test_commands_run_beside_each_other_and_each_has_the_end_that_is_its_own(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FIFO")
    first, second = (forker().start(("check", "FIFO"), tmp_path) for _ in range(2))
    assert {first.pid, second.pid} <= set(forker().commands())
    first.kill()
    assert first.wait(60) == -signal.SIGKILL and second.poll() is None
    second.send_signal(signal.SIGTERM)
    assert second.communicate(timeout=60) == first.communicate() == (b"", b"")
    assert second.returncode == -signal.SIGTERM and first.returncode == -signal.SIGKILL


def test_a_forker_begins_in_any_folder_and_its_commands_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "FIFO")
    monkeypatch.chdir(tmp_path)
    made = Forker(ENVIRON)
    command = made.start(("check", "FIFO"), tmp_path)
    assert command.poll() is None
    made.close()
    with command.stdin, command.stdout, command.stderr:
        assert command.stdout.read() == b""
    with pytest.raises(AssertionError, match="the forker has ended"):
        command.wait(60)
