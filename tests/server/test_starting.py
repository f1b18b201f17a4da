"""A start that hangs in a file system ends when it is told to, within a second, and says what it hung in."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdns.testing import eventually, free_port

# A pipe that nobody writes to stands for a file system that does not answer.
PLUGIN = '''"""A plugin that hangs."""

from kdns.plugin import Plugin

{module}

class Hangs(Plugin):
    name = "hangs"

    def load(self, block):
        {load}
'''
HANG = "open({told!r}, 'w').close(); open({pipe!r})"


def started(folder: Path, plugin: str, more: str = "") -> "subprocess.Popen[str]":
    """A kdns that has begun to hang."""
    told, pipe = folder / "told", folder / "pipe"
    os.mkfifo(pipe)
    hang = HANG.format(told=str(told), pipe=str(pipe))
    (folder / "hangs.py").write_text(plugin.replace("HANG", hang))
    corefile = folder / "Corefile"
    corefile.write_text(f".:{free_port()} {{\n bind 127.0.0.1\n {more}\n plugin hangs.py\n whoami\n}}\n")
    process = kdns(str(corefile))
    eventually(lambda: told.exists() or process.poll() is not None, 20)
    return process


def kdns(conf: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "kdns", "-conf", conf],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]", number: int) -> tuple[int, str]:
    """Its exit code, and what it said. It ends within 0.1 s, but on a busy machine."""
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, out + err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("more", ["", "multisocket 2"])
@pytest.mark.parametrize("where", ["module", "load"])
def test_a_start_that_hung_in_a_file_system_did_not_end(
    tmp_path: Path, where: str, more: str, number: signal.Signals
) -> None:
    code = {"module": "pass", "load": "pass", where: "HANG"}
    process = started(tmp_path, PLUGIN.format(**code), more)
    status, said = ended(process, number)
    assert status == 0, said
    at = f"{tmp_path}/Corefile"
    if where == "load":
        doing = f"gave up loading the configuration: plugin/hangs of the server block at {at}:1:1"
    elif more:
        doing = "while reading the Corefile"  # which says how many processes there are to be
    else:
        doing = f"gave up loading the configuration: the plugin file at {at}:4:2"
    assert f"{number.name}: " in said and doing in said, said


@pytest.mark.parametrize("conf", ["pipe", "Corefile", "stdin"])
def test_a_corefile_that_does_not_come_ends_with_the_signal_too(tmp_path: Path, conf: str) -> None:
    """Also for the first process of a container, which no signal ends that it does not handle."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "Corefile").write_text(f". {{\n import {tmp_path}/pipe\n}}\n")
    process = kdns(conf if conf == "stdin" else str(tmp_path / conf))
    eventually(lambda: handles(process.pid, signal.SIGTERM), 20)
    status, said = ended(process, signal.SIGTERM)
    assert status == 0, said
    assert "SIGTERM: ended before serving, while reading the Corefile" in said


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (proc_pid_status(5))."""
    found = re.search(r"^SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
