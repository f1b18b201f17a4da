"""A kubeconfig's exec plugin: a program that gives credentials. The package `kubernetes` runs it; here it is ended.

Laws: a plugin and what it starts are killed as soon as nobody waits for its credentials any more: with its time limit,
and with kdns. One that fails is an error with its own words, not a request without credentials.

Theory of operation. The package waits for a plugin without limit, in the thread that called it. So the processes that
it starts are ours: each leads a process group, which a signal reaches as a whole. Where kdns runs in a terminal, a
plugin may ask for a password there, which only the terminal's own group can; then the terminal's Ctrl-C reaches it and
all that it started, and only the plugin itself is killed.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, TypeVar, final

T = TypeVar("T")

_lock: Final = threading.Lock()
_called: Final = threading.local()  # the run that this thread is in
_all: Final[set["ExecPlugin"]] = set()


class PluginFailed(BaseException):
    """It gave no credentials; the text says why. No Exception: the package logs those as it likes, and goes on without
    credentials.
    """


@final
class ExecPlugin:
    """One run of a plugin, if the kubeconfig names one."""

    def __init__(self) -> None:
        self.process: _Process | None = None
        self.over = False

    def run(self, call: Callable[[], T]) -> T:
        """What a call gives that may run the plugin. Raises ValueError where the plugin fails, and what it raises."""
        _called.plugin = self
        try:
            return call()
        except PluginFailed as error:
            raise ValueError(str(error)) from None
        finally:
            _called.plugin = None

    def close(self) -> None:
        """Kills the plugin where it still runs, or as soon as it does."""
        with _lock:
            self.over = True
            if self.process is not None:
                self.process.kill_group()


def end_all() -> None:
    """Kills every plugin that runs: the process leaves without stopping anything else."""
    for plugin in list(_all):
        plugin.close()


@contextlib.contextmanager
def running() -> Iterator[ExecPlugin]:
    """A run that ends with the block."""
    plugin = ExecPlugin()
    _all.add(plugin)
    try:
        yield plugin
    finally:
        _all.discard(plugin)
        plugin.close()


@final
class _Process(subprocess.Popen[str]):
    def __init__(self, *words: Any, **options: Any) -> None:
        self.leads = not (sys.stdin is not None and sys.stdin.isatty())
        if self.leads:
            options["process_group"] = 0
        super().__init__(*words, **options)  # without the lock: a program on a file system that hangs hangs here
        plugin: ExecPlugin | None = getattr(_called, "plugin", None)
        with _lock:
            if plugin is not None:
                plugin.process = self
                if plugin.over:
                    self.kill_group()

    def kill_group(self) -> None:
        """Ends it and what it started; nothing where it has ended."""
        if self.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.leads:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)


def install() -> None:
    """Has the package run plugins by us."""
    exec_provider: Any = importlib.import_module("kubernetes.config.exec_provider")
    provider = exec_provider.ExecProvider
    if isinstance(exec_provider.subprocess, SimpleNamespace):
        return
    exec_provider.subprocess = SimpleNamespace(PIPE=subprocess.PIPE, Popen=_Process)
    run: Callable[..., Any] = provider.run

    def told(self: Any, previous_response: Any = None) -> Any:
        try:
            return run(self, previous_response)
        except Exception as error:
            raise PluginFailed(f"exec plugin {self.args[0]}: {str(error).removeprefix('exec: ')}") from None

    provider.run = told
