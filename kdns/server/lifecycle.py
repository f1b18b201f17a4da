"""The server's life: start, serve, reload, stop.

Laws: a start that fails leaves nothing behind; a reload that fails leaves the old configuration serving, its sockets
untouched; sockets, informers and HTTP endpoints whose configuration did not change are kept through a reload: the
listeners only get another dispatcher, between two datagrams.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from kdns import log
from kdns.corefile import Corefile
from kdns.metrics import MIN, Gauge
from kdns.net import Process
from kdns.net.tcp import TcpListener
from kdns.net.udp import UdpListener
from kdns.server import gc_policy
from kdns.server.build import Group, Instance, build_beside, fill
from kdns.server.life import STATE, Life, before_stop, loaded, start_plugins, stop_plugins
from kdns.server.listeners import Listeners, open_group, probe

# Seconds that queries in flight get when the server ends (CoreDNS's).
DRAIN: Final = 5.0
DRAIN_STEP: Final = 0.02
# Seconds that clients get to read their last answers, or over QUIC to acknowledge them: a packet may be lost.
UNSENT: Final = 1.0
# Seconds without a query after which a lame duck need not wait longer: endpoints are taken out within a second or two,
# and what still comes by then is not there.
QUIET: Final = 3.0
QUIET_STEP: Final = 0.1

SILENCE: Final = Gauge("kdns_shutdown_quiet_seconds", "While a lame duck: seconds since the last query.", across=MIN)

_log = log.Logger()


class Prepared(NamedTuple):
    """A configuration that could serve: its sockets are open, its plugins run. `before` is what runs until then."""

    instance: Instance
    opened: dict[Group, Listeners]
    before: str


class Server(Life):
    """Serves one Corefile, and the ones that follow it.

    `reread` reads the Corefile again (raises CorefileError or OSError). `share_port` lets a second process listen on
    the same ports on purpose. `warns`: whether a Corefile's warnings are logged; another process does, for a worker.
    """

    def __init__(self, reread: Callable[[], Corefile], *, share_port: bool = False, warns: bool = True) -> None:
        super().__init__(reread, share_port=share_port)
        self.warns = warns
        self.process = Process(secrets.token_bytes(2), 0, alone=not share_port)
        self.instance: Instance | None = None
        self.listeners: dict[Group, Listeners] = {}
        self.ending = asyncio.Lock()
        self.hurries = False  # queries in flight are not waited for

    async def start(self, corefile: Corefile) -> None:
        """Loads, starts the plugins, opens the sockets. Raises CorefileError or OSError; then nothing is left open."""
        gc_policy.suspend()
        for warning in corefile.warnings if self.warns else ():
            _log.warning(warning)
        instance = Instance(corefile, [])
        try:
            await loaded(instance, partial(self._build, instance))
            self.runtime.loaded = corefile.fingerprint
            opened = await self._bring_up(instance)
        except BaseException:
            instance.close()
            gc_policy.release()
            raise
        self.instance = instance
        self.listeners = opened
        self._begun()

    def _build(self, instance: Instance) -> None:
        """Builds and loads the first: in one go, as nobody waits for an answer yet."""
        fill(instance)
        for warning in instance.warnings() if self.warns else ():
            _log.warning(warning)
        instance.load(self.warns)

    async def _replace(self, corefile: Corefile) -> None:
        prepared = await self.prepare(corefile)
        if prepared.instance.processes() > 1:
            _log.warning("multisocket: this process goes on alone; restart kdns to serve by several")
        await self.commit(prepared)

    async def prepare(self, corefile: Corefile) -> "Prepared":
        """Starts the plugins of another configuration and opens its sockets, beside the one that serves. Raises what
        building, loading and starting raise; then nothing of it is left.
        """
        with self._preparation():
            return await self._prepared(corefile)

    async def _prepared(self, corefile: Corefile) -> "Prepared":
        new = await build_beside(corefile)
        for warning in (*corefile.warnings, *new.warnings()) if self.warns else ():
            _log.warning(warning)
        before = self.runtime.loaded
        try:
            await loaded(new, partial(new.load, self.warns))
            self.runtime.loaded = corefile.fingerprint
            opened = await self._bring_up(new)
        except BaseException:
            self.runtime.loaded = before
            self.runtime.on_serving.clear()
            await new.close_beside()
            raise
        return Prepared(new, opened, before)

    async def abandon(self, prepared: "Prepared") -> None:
        """Undoes `prepare`."""
        self.runtime.loaded = prepared.before
        self.runtime.on_serving.clear()
        for listeners in prepared.opened.values():
            listeners.stop()
        await stop_plugins(prepared.instance.plugins)
        await prepared.instance.close_beside()

    async def commit(self, prepared: "Prepared") -> None:
        """Serves by what was prepared from now on; returns once what was served before has ended."""
        old, new, opened = self.instance, prepared.instance, prepared.opened
        assert old is not None
        for group, dispatcher in new.dispatchers.items():
            if group in self.listeners:
                self.listeners[group].use(dispatcher)
        over = [self.listeners.pop(group) for group in self.listeners.keys() - new.dispatchers.keys()]
        for listeners in over:
            listeners.retire(shared=True)
        self.listeners.update(opened)
        self.instance = new
        try:
            await self._drain(old, DRAIN, over)
        finally:
            for listeners in over:
                listeners.stop()
        await stop_plugins(old.plugins)
        await old.close_beside()
        self._announce()

    async def _bring_up(self, instance: Instance) -> dict[Group, Listeners]:
        """Starts the plugins and opens the sockets that are not open yet; what a failure leaves is undone."""
        opened: dict[Group, Listeners] = {}
        wanted = [group for group in instance.dispatchers if group not in self.listeners]
        for group in wanted if not self.share_port else ():
            probe(group, self.listeners)
        await start_plugins(instance.plugins, self.runtime)
        try:
            for group in wanted:
                opened[group] = open_group(group, instance.dispatchers[group], self.process)
            for listeners in opened.values():
                await listeners.start()
        except BaseException:
            for listeners in opened.values():
                listeners.stop()
            await stop_plugins(instance.plugins)
            raise
        return opened

    async def lameduck(self) -> None:
        """What plugins want done while queries are still answered: until the last of it is done, or nobody asks any
        more.
        """
        STATE.slot()[0] = 1
        self._last()  # one that began now would say that it is ready
        if not self.runtime.before_stop:
            return
        waiting = [asyncio.ensure_future(before_stop(self.runtime)), asyncio.ensure_future(self._quiet())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting[1].done():
            _log.info(f"no query for {QUIET:g} s: the lameduck ends early")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _quiet(self) -> None:
        """Ends once nothing has come for QUIET seconds."""
        every: list[UdpListener | TcpListener] = []
        for found in self.listeners.values():
            every += found.udp
            every += found.tcp
        quiet = 0.0
        while quiet < QUIET:
            for each in every:
                each.busy = False
            await asyncio.sleep(QUIET_STEP)
            quiet = 0.0 if any(each.busy for each in every) else quiet + QUIET_STEP
            SILENCE.slot()[0] = quiet

    async def stop(self, drain: float = DRAIN) -> None:
        """Accepts no more, gives queries in flight `drain` seconds, closes everything. Whoever asks for that a second
        time waits until it is done.
        """
        self._last()
        self.hurries = not drain
        async with self.ending:
            self._ending()
            for listeners in self.listeners.values():
                listeners.retire(shared=self.share_port)
            await self.give_up()
            if self.instance is not None:
                await self._drain(self.instance, drain, self.listeners.values())
            for listeners in self.listeners.values():
                listeners.stop()
            self.listeners.clear()
            if self.instance is not None:
                await stop_plugins(self.instance.plugins)
                self.instance.close()
                self.instance = None
            self._ended()

    def banner(self) -> list[str]:
        """A line for each zone and listener, as CoreDNS prints them."""
        assert self.instance is not None
        return banner(self.instance)

    async def _drain(self, instance: Instance, limit: float, over: Iterable[Listeners]) -> None:
        """Waits until no query of this configuration is in flight, for at most `limit` seconds, and then, for at most
        UNSENT, until the clients of listeners that are to end have their answers.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while any(each.waiting.table for each in instance.dispatchers.values()):
            if self.hurries or loop.time() >= end:
                return
            await asyncio.sleep(DRAIN_STEP)
        end = loop.time() + UNSENT
        while not self.hurries and loop.time() < end and any(each.unsent() for each in over):
            await asyncio.sleep(DRAIN_STEP)

    def _refresh(self) -> None:
        super()._refresh()
        for group, listeners in self.listeners.items():
            listeners.refresh(group.label)


def banner(instance: Instance) -> list[str]:
    """A line for each zone and listener, as CoreDNS prints them."""
    lines = []
    for block in instance.blocks:
        for key in block.parsed.keys:
            for host in block.hosts or ("",):
                on = f" on {host}" if host else ""
                lines.append(f"{key}{on}")
    return sorted(set(lines))


def pid_text() -> str:
    """What stands in a pid file."""
    return f"{os.getpid()}\n"
