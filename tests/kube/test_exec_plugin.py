"""A kubeconfig's exec plugin that hangs or fails: it is ended with all that it started, and kdns says why."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kdns import files
from kdns.kube import api as module
from kdns.kube.access import ApiConfig
from kdns.kube.api import Client
from kdns.kube.paging import ApiError
from kdns.testing import ApiServer, eventually, free_port

# It starts a program of its own, and waits for it: as `aws` and `gcloud` do, which are scripts around programs.
HANGS = "#!/bin/sh\nsleep 300 &\necho $$ $! > {told}.new; mv {told}.new {told}\nwait\n"


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


class Plugin:
    """A script, and the kubeconfig that names it."""

    def __init__(self, folder: Path, api: ApiServer, text: str) -> None:
        self.told = folder / "told"
        script = folder / "plugin"
        script.write_text(text.format(told=self.told))
        script.chmod(0o755)
        self.kubeconfig = folder / "kubeconfig"
        version = "client.authentication.k8s.io/v1"
        plugin = {"apiVersion": version, "command": str(script), "interactiveMode": "Never"}
        self.kubeconfig.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": api.url}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
            "users": [{"name": "me", "user": {"exec": plugin}}],
        }))  # fmt: skip

    def config(self) -> ApiConfig:
        return ApiConfig.load(endpoint="", tls=None, kubeconfig=str(self.kubeconfig), context="")

    def runs(self) -> list[int]:
        """Which of its processes run."""
        return [int(pid) for pid in self.told.read_text().split() if lives(int(pid))] if self.told.exists() else []


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # one that nobody has waited for yet


def test_a_plugin_that_hung_went_on_for_ever(tmp_path: Path, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later looks said that it hung, and did not begin it again: credentials were not had until a restart."""
    plugin = Plugin(tmp_path, api, HANGS)
    begun = 0

    async def run() -> None:
        nonlocal begun
        client = Client(plugin.config())
        for limit in (0.5, 1, 2, 4, 8, 16):  # the plugin has begun in the first, but on a busy machine
            monkeypatch.setattr(module, "CREDENTIALS", limit)
            with pytest.raises(ApiError, match=f"took over {limit:g} s and was given up"):
                await client.renew()
            end = time.monotonic() + 10
            while (plugin.runs() or files._threads.hanging) and time.monotonic() < end:
                await asyncio.sleep(0.01)
            assert not plugin.runs()
            begun += plugin.told.exists()
            plugin.told.unlink(missing_ok=True)
            if begun == 2:
                return

    asyncio.run(run())
    assert begun == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_plugin_that_hung_outlived_the_server(tmp_path: Path, api: ApiServer, number: signal.Signals) -> None:
    plugin = Plugin(tmp_path, api, HANGS)
    corefile = tmp_path / "Corefile"
    corefile.write_text(
        f".:{free_port()} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n kubeconfig {plugin.kubeconfig}\n }}\n}}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "kdns", "-conf", str(corefile)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        try:
            eventually(plugin.told.exists, 60)
            assert len(plugin.runs()) == 2
            process.send_signal(number)
            process.wait(30)
            eventually(lambda: not plugin.runs())  # who was killed is there until the kernel comes to it
        finally:
            process.kill()
            for pid in plugin.runs():
                os.kill(pid, signal.SIGKILL)


def test_a_plugin_that_fails_is_an_error_with_its_own_words(tmp_path: Path, api: ApiServer) -> None:
    """The API was asked without credentials, and what the plugin said went past the log."""
    plugin = Plugin(tmp_path, api, "#!/bin/sh\necho 'no session: log in first' >&2\nexit 3\n")

    async def run() -> None:
        client = Client(plugin.config())
        with pytest.raises(ApiError, match=r"credentials: exec plugin .*/plugin: process returned 3\. no session: log"):
            await client.renew()
        assert not api.requests

    asyncio.run(run())
