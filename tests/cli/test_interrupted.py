"""Ctrl-C ends a tool at once, whatever a thread of it waits for: a file that does not come, a silent name server."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdns.testing import eventually
from tests.forker import ENV

# A system whose name servers say nothing: the interpreter loads this by itself. A shell's job in the background, which
# the tests may be, ignores SIGINT, and so would the tool.
SILENT = """
import signal, socket, time

signal.signal(signal.SIGINT, signal.default_int_handler)

def silent(host, *more, real=socket.getaddrinfo, **options):
    if not str(host).endswith("example.net"):
        return real(host, *more, **options)
    open({told!r}, "w").close()
    time.sleep(600)

socket.getaddrinfo = silent
"""


@pytest.mark.parametrize("words", [
    "compare @dns.example.net @127.0.0.1:1 a.org",
    "compare @127.0.0.1:1 @127.0.0.1:1 --file PIPE",
    "query @dns.example.net a.org",
    "query @dns.example.net -tcp a.org",
    "doctor --kubeconfig KUBECONFIG",
    "explain --kubeconfig KUBECONFIG a.org",
])  # fmt: skip
def test_ctrl_c_waited_for_a_thread_that_hung(tmp_path: Path, words: str) -> None:
    told, pipe = tmp_path / "told", tmp_path / "PIPE"
    os.mkfifo(pipe)
    (tmp_path / "sitecustomize.py").write_text(SILENT.format(told=str(told)))
    (tmp_path / "KUBECONFIG").write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": "http://api.example.net:1"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
        "users": [{"name": "me", "user": {"token": "x"}}],
    }))  # fmt: skip
    writers: list[int] = []

    def hangs() -> bool:
        with contextlib.suppress(OSError):  # nobody reads it
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers) or told.exists()

    environ = {**ENV, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(Path.cwd())))}
    with subprocess.Popen(
        [sys.executable, "-m", "kdns", *words.split()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=tmp_path, env=environ, text=True,
    ) as process:  # fmt: skip
        try:
            eventually(lambda: hangs() or process.poll() is not None, 60)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
            for writer in writers:
                os.close(writer)
    assert process.returncode == 130 and not out + err, out + err
