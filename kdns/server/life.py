"""What the life of a server has in common, whether it is one process or several: the Corefile that is read again, the
plugins that are told, the metrics of its state.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from kdns import files, log
from kdns.corefile import Corefile, CorefileError
from kdns.kube.pause_gc import set_pause
from kdns.metrics import MAX, REFRESH, Counter, Gauge
from kdns.plugin.base import Plugin
from kdns.plugin.runtime import Runtime
from kdns.server import gc_policy
from kdns.server.build import Instance
from kdns.timeslice import TimeSlice

# Seconds for reading a Corefile with its imports, and for what plugins load: files, and names of upstreams, which may
# have to be asked for. What takes longer hangs.
READING: Final = 60.0
LOADING: Final = 120.0

STATE: Final = Gauge(
    "kdns_shutdown_state",
    "0 while serving, 1 while a lame duck, 2 while the last queries are answered.",
    across=MAX,
)
LOST_LINES: Final = Counter(
    "kdns_log_lines_lost_total",
    "Log lines that were not written: the reader was slow, or too many complaints a second.",
    ("reason",),
)

_log = log.Logger()


def loading(corefile: Corefile) -> str:
    """What is done for as long as files that a Corefile names are read. Its name is in it: while one hangs, another
    may be loaded.
    """
    return f"loading what the Corefile {hashlib.sha256(corefile.fingerprint.encode()).hexdigest()[:8]} names"


async def loaded(instance: Instance, load: Callable[[], None]) -> None:
    """Loads what a configuration names where waiting holds nobody: files, and names of upstreams. Raises what `load`
    raises, and TimeoutError; whoever gives up is told what hung.
    """
    try:
        await files.waiting(loading(instance.corefile), load, LOADING)
    except TimeoutError as error:
        doing = f", in {instance.loads}" if instance.loads else ""
        raise TimeoutError(error.errno, f"{error.strerror or error}{doing}") from None
    except asyncio.CancelledError:
        doing = f": {instance.loads}" if instance.loads else ""
        _log.warning(f"gave up loading the configuration{doing}")
        raise


class Life:
    """Serves one Corefile, and the ones that follow it.

    `reread` reads the Corefile again (raises CorefileError or OSError). `share_port` lets other processes listen on the
    same ports on purpose.
    """

    def __init__(self, reread: Callable[[], Corefile], *, share_port: bool = False) -> None:
        self.reread = reread
        self.share_port = share_port
        self.runtime = Runtime()
        set_pause(gc_policy.pause)
        self.runtime.reload = self.reload
        self.runtime.fingerprint = lambda: reread().fingerprint
        self.reloading = asyncio.Lock()
        self.preparing: asyncio.Task[object] | None = None  # who prepares another configuration, until it changes over
        self.over = False  # it ends: it takes no other configuration
        # Called when the sockets are open, before the plugins say what they have to say of it.
        self.opened: Callable[[], None] = lambda: None

    async def reload(self) -> bool:
        """Reads the Corefile again and serves by it; says whether it worked. If not, all stays as it was."""
        async with self.reloading:
            if self.over:
                return False
            _log.info("Reloading")
            over = gc_policy.pause()  # a large Corefile makes more objects than a pass may look at
            try:
                with self._preparation():
                    corefile = await files.waiting("reading the Corefile", self.reread, READING)
                await self._replace(corefile)
            except Exception as error:
                kind = "" if isinstance(error, CorefileError | OSError) else f"{type(error).__name__}: "
                self.runtime.refused = f"{kind}{error}"
                _log.error(f"Restart failed: {self.runtime.refused}")
                return False
            finally:
                over()
            self.runtime.refused = ""
            _log.info("Reloading complete")
            return True

    async def _replace(self, corefile: Corefile) -> None:
        """Serves by another Corefile. Raises what it fails for; then all is as it was."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _preparation(self) -> Iterator[None]:
        """In its block a change of configuration may still be given up."""
        self.preparing = asyncio.current_task()
        try:
            yield
        finally:
            self.preparing = None

    def _last(self) -> None:
        """It is to end: no other configuration comes any more, unless it changes over already."""
        self.over = True
        if self.preparing is not None:
            self.preparing.cancel()

    async def give_up(self) -> None:
        """Gives up a configuration that is being prepared; waits for one that is changing over. Nothing of either goes
        on after that.
        """
        if self.preparing is not None:
            self.preparing.cancel()
        async with self.reloading:
            return

    def _begun(self) -> None:
        """It serves: says so, and collects garbage by the policy from now on."""
        self.opened()
        self._announce()
        REFRESH.append(self._refresh)
        gc_policy.freeze()

    def _ending(self) -> None:
        """It is to accept no more."""
        if self._refresh in REFRESH:
            REFRESH.remove(self._refresh)
        STATE.slot()[0] = 2

    def _ended(self) -> None:
        STATE.slot()[0] = 0
        gc_policy.release()

    def _announce(self) -> None:
        calls, self.runtime.on_serving = self.runtime.on_serving, []
        for call in calls:
            call()

    def _refresh(self) -> None:
        LOST_LINES.slot("queue")[0] = log.dropped()
        LOST_LINES.slot("rate")[0] = log.left_out()


async def start_plugins(plugins: list[Plugin], runtime: Runtime) -> None:
    """Starts them in order. Raises what one of them raises; then those before it are stopped."""
    started: list[Plugin] = []
    slice_ = TimeSlice()
    try:
        for plugin in plugins:
            started.append(plugin)
            await plugin.start(runtime)
            await slice_.pause()
    except BaseException:
        await stop_plugins(started)
        raise


async def stop_plugins(plugins: list[Plugin]) -> None:
    """Stops them, the last one first; one that fails hinders no other."""
    slice_ = TimeSlice()
    for plugin in reversed(plugins):
        await slice_.pause()
        try:
            await plugin.stop()
        except Exception as error:
            _log.error(f"stopping plugin/{plugin.name}: {type(error).__name__}: {error}")


async def before_stop(runtime: Runtime) -> None:
    """Does what plugins want done while queries are still answered (`health`'s lameduck)."""

    async def one(call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except Exception as error:
            _log.error(f"lameduck: {type(error).__name__}: {error}")

    await asyncio.gather(*(one(call) for call in runtime.before_stop))
