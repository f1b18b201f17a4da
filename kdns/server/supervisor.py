"""The process that watches over the workers of `multisocket`: one Corefile, one watch of the API, one set of HTTP
listeners for all of them. It answers no queries itself.

Laws: a Corefile is served by all workers or by none: each of them builds it, opens its sockets and starts its plugins
beside what serves, and only when all could do so all change over; a worker that takes the place of another begins with
what is served then. It has Server's way of life (start, reload, lameduck, stop), so that whoever runs one runs the
other.
"""

import asyncio
import pickle
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final, final

from kdns import log
from kdns.corefile import Corefile
from kdns.plugin.base import Plugin
from kdns.server import gc_policy
from kdns.server.build import Group, Instance, build_beside
from kdns.server.crew import PAUSE, SLOW, WorkerFailed, Workers
from kdns.server.forks import ForkServer
from kdns.server.life import STATE, Life, before_stop, loaded, start_plugins, stop_plugins
from kdns.server.lifecycle import DRAIN, banner
from kdns.server.listeners import probe

# Seconds that a worker may be a lame duck beyond which nobody waits: the longest `lameduck` one would write.
_LAMEDUCK: Final = 3600.0

_log = log.Logger()


@final
class Central:
    """What of a configuration runs here: the plugins that do something once for all. The rest is let go of."""

    def __init__(self, corefile: Corefile, instance: Instance) -> None:
        self.fingerprint = corefile.fingerprint
        self.pickled = pickle.dumps(corefile)
        self.plugins: list[Plugin] = [plugin for plugin in instance.plugins if plugin.central]
        self.groups: set[Group] = set(instance.dispatchers)
        self.banner = banner(instance)
        self.count = instance.processes()
        self.instance = instance
        for dispatcher in instance.dispatchers.values():
            dispatcher.close()
        instance.dispatchers.clear()
        for block in instance.blocks:
            kept = [plugin for plugin in block.plugins if plugin.central]
            block.close()
            block.plugins = kept

    async def stop(self) -> None:
        """Stops what was started, and takes it apart."""
        await stop_plugins(self.plugins)
        await self.instance.close_beside()


@final
class Supervisor(Life):
    """Serves one Corefile by several workers, and the ones that follow it.

    `reread` reads the Corefile again (raises CorefileError or OSError). `share_port` lets other processes listen on the
    same ports on purpose.
    """

    def __init__(self, reread: Callable[[], Corefile], forks: ForkServer, *, share_port: bool = False) -> None:
        super().__init__(reread, share_port=share_port)
        self.workers = Workers(forks)
        self.runtime.crew = self.workers
        self.current: Central | None = None
        self.stopping = False
        self.replacing: dict[int, asyncio.Task[None]] = {}

    async def start(self, corefile: Corefile) -> None:
        """Starts the workers, and what is done once for all. Raises CorefileError or OSError; then nothing is left."""
        async with self.reloading:  # a worker that ends meanwhile is replaced after that
            await self._start(corefile)

    async def _start(self, corefile: Corefile) -> None:
        gc_policy.suspend()
        workers = self.workers
        workers.stop = lambda code: self.runtime.stop(code) if self.runtime.stop is not None else None
        workers.replace = self._replace_worker
        workers.lost = self._forks_lost
        workers.begin()
        central: Central | None = None
        try:
            central = await self._central(corefile)
            self.runtime.loaded = central.fingerprint
            await start_plugins(central.plugins, self.runtime)
            numbers = range(1, central.count + 1)
            results = await asyncio.gather(
                *(workers.spawn(number, central.pickled) for number in numbers), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            self.stopping = True
            await workers.end(list(workers.hands.values()), 0)
            if central is not None:
                await central.stop()
            workers.close()
            gc_policy.release()
            raise
        self.current = central
        self._begun()

    async def _replace(self, corefile: Corefile) -> None:
        old = self.current
        assert old is not None
        workers = self.workers
        # The first step: all build it.
        with self._preparation():
            new = await self._prepared(corefile, old)
        # The second: all change over. One that ends meanwhile is replaced by one that begins with the new one.
        self.current = new
        changing = asyncio.ensure_future(workers.ask_each("commit", limit=SLOW))
        await self._resize(new.count, new.pickled)
        for number, problem in (await changing).items():
            if problem != "":
                _log.error(f"worker {number} did not change over: {problem or 'it says nothing'}; it is replaced")
                workers.kill(number)
        await old.stop()
        self._announce()

    async def _prepared(self, corefile: Corefile, old: Central) -> Central:
        """A configuration that all workers could serve, beside the old one. Raises what it fails for; then nothing of
        it is left.
        """
        workers = self.workers
        before = self.runtime.loaded
        new = await self._central(corefile, old.groups)
        try:
            self.runtime.loaded = new.fingerprint
            await start_plugins(new.plugins, self.runtime)
            try:
                said = await workers.ask_each("prepare", new.pickled, limit=SLOW)
                for number, problem in said.items():
                    if problem != "":
                        raise WorkerFailed(problem or f"worker {number} did not load it within {SLOW:g} s")
            except BaseException:
                await workers.ask_each("abandon", limit=SLOW)
                await new.stop()
                raise
        except BaseException:
            self.runtime.loaded = before
            self.runtime.on_serving.clear()
            raise
        return new

    async def _resize(self, count: int, pickled: bytes) -> None:
        """Begins, or ends, as many workers as there are too few or too many."""
        workers = self.workers
        for number in range(1, count + 1):
            if number not in workers.hands:
                try:
                    await workers.spawn(number, pickled)
                except OSError as error:
                    _log.error(f"worker {number} does not start: {error}")
                    self._replace_worker(number, PAUSE[0])
        await workers.end([hand for number, hand in list(workers.hands.items()) if number > count], DRAIN)

    async def _central(self, corefile: Corefile, open_already: AbstractSet[Group] = frozenset()) -> Central:
        """Builds and loads a configuration as a worker will, so that what is wrong with it is said here, and once."""
        instance = await build_beside(corefile)
        for warning in (*corefile.warnings, *instance.warnings()):
            _log.warning(warning)
        await loaded(instance, instance.load)
        for group in instance.dispatchers.keys() - open_already if not self.share_port else ():
            probe(group, open_already)
        return Central(corefile, instance)

    # Workers that are replaced.

    def _replace_worker(self, number: int, pause: float) -> None:
        if not self.stopping:
            self.replacing[number] = asyncio.create_task(self._replaced(number, pause), name="replace a worker")

    async def _replaced(self, number: int, pause: float) -> None:
        while not self.stopping:
            await asyncio.sleep(pause)
            async with self.reloading:
                current = self.current
                if self.stopping or current is None or number > current.count:
                    return
                try:
                    await self.workers.spawn(number, current.pickled)
                except OSError as error:
                    pause = min(max(pause * 2, PAUSE[0]), PAUSE[1])
                    _log.error(f"worker {number} does not start: {error}; it is tried again in {pause:g} s")
                    continue
                _log.info(f"worker {number} serves again")
                return

    def _forks_lost(self) -> None:
        """Workers cannot be replaced any more: whoever watches over this server is to start it anew."""
        if not self.stopping:
            _log.fatal("the process that forks the workers has ended: the server ends, to be started again")
            if self.runtime.stop is not None:
                self.runtime.stop(1)

    # The end.

    async def lameduck(self) -> None:
        """The workers go on answering for as long as `health` says, each until nobody asks it any more."""
        self.stopping = True
        STATE.slot()[0] = 1
        self._last()
        for hand in self.workers.hands.values():
            hand.ending = True
        await asyncio.gather(self.workers.ask_each("lameduck", limit=_LAMEDUCK), before_stop(self.runtime))

    async def stop(self, drain: float = DRAIN) -> None:
        """Ends the workers, which get `drain` seconds for queries in flight, then closes everything."""
        self.stopping = True
        self._last()
        self._ending()
        for task in self.replacing.values():
            task.cancel()
        await self.give_up()
        await self.workers.end(list(self.workers.hands.values()), drain)
        if self.current is not None:
            await self.current.stop()
            self.current = None
        self.workers.close()
        self._ended()

    def banner(self) -> list[str]:
        """A line for each zone and listener, as CoreDNS prints them: once for each worker's sockets."""
        assert self.current is not None
        return sorted(self.current.banner * len(self.workers.hands))
