"""One of several processes that answer on the same ports (`multisocket`): it serves as a single process would, and does
what the process that watches over the workers asks of it.

Laws: it holds sockets, plugins and caches of its own, and nothing of what is done once for all: it does not watch the
API, serve HTTP or look after the Corefile. It ends when the process that watches over it does.

Messages, lists of msgpack (kdns.net.pipe). To a worker: `["ask", id, what, arguments...]`, and `["frame", name, what,
rows]` of a relay (kdns.kube.relay). From it: `["part", id, value]` and at last `["said", id, value]`, `["follow",
name]`, `["unfollow", name]`, and `["stop", code]` where a plugin asks for the end of the server. `["tell", topic,
value]` goes to all others as `["told", topic, value]`.
"""

import asyncio
import gc
import pickle
import secrets
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, final

from kdns import faults, log, metrics
from kdns.corefile import Corefile, CorefileError
from kdns.net import Process
from kdns.net.pipe import Pipe
from kdns.server import gc_policy
from kdns.server.forks import name_process
from kdns.server.lifecycle import DRAIN, Prepared, Server

# Frames of a relay that wait to be applied before nothing more is read: each takes some 1 ms.
FRAMES: Final = 4
# Slots of a family that are sent in one message.
SLOTS: Final = 500
# What the workers of a server share because they are forked from where this module was imported.
SECRET: Final = secrets.token_bytes(16)
RUN: Final = secrets.token_bytes(2)

_log = log.Logger()


def main(number: int, sock: socket.socket, *, alone: bool = True) -> int:
    """The life of worker `number`, at the other end of this socket; gives the exit code. `alone`: no process but the
    workers listens on their ports.
    """
    gc_policy.suspend()
    log.set_worker(number)
    name_process(f"kdns worker {number}")
    try:
        import uvloop
    except ImportError:
        return asyncio.run(Worker(number, sock, alone).run())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Worker(number, sock, alone).run())


@final
class Worker:
    """A worker; also its plugins' Link to the process that watches over it."""

    def __init__(self, number: int, sock: socket.socket, alone: bool = True) -> None:
        self.number = number
        self.sock = sock
        self.server = Server(_unread, share_port=True, warns=False)
        self.server.process = Process(RUN, number, alone)
        self.server.runtime.link = self
        self.server.runtime.stop = self._plugin_stops
        self.prepared: Prepared | None = None
        self.routes: dict[tuple[str, int, str], list[Callable[[], Awaitable[Any]]]] = {}
        self.secret = SECRET
        self.listening: dict[str, list[Callable[[Any], None]]] = {}
        self.followed: dict[str, Callable[[str, list[Any]], Awaitable[None]]] = {}
        self.frames: deque[list[Any]] = deque()
        self.framed = asyncio.Event()
        self.over = asyncio.Event()
        self.ending = False
        self.tasks: set[asyncio.Task[object]] = set()

    async def run(self) -> int:
        """Serves until it is told to end, or nobody is there to tell it."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(faults.caught)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # they go to the process that watches over the workers
        loop.add_signal_handler(signal.SIGTERM, lambda: self._do(self._leave(lame=True)))
        log.start_writer()
        self.pipe = await Pipe.open(self.sock, self._heard, self._alone)
        self._do(faults.supervise("a relay", self._apply_frames))
        await self.over.wait()
        for task in list(self.tasks):
            task.cancel()
        log.stop_writer()
        return 0

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _heard(self, message: list[Any]) -> None:
        if message[0] == "ask":
            self._do(self._answer(*message[1:]))
        elif message[0] == "told":
            calls = self.listening.get(message[1], ())
            faults.call_each("what another worker tells", [partial(call, message[2]) for call in calls])
        else:
            self.frames.append(message)
            self.framed.set()
            if len(self.frames) >= FRAMES:
                self.pipe.pause()

    def _alone(self) -> None:
        if not self.ending:
            _log.error("the process that watches over the workers has ended: so does this one")
            self._do(self._leave(lame=False))

    async def _answer(self, number: int, what: str, *arguments: Any) -> None:
        try:
            said = await self._ASKED[what](self, number, *arguments)
        except (CorefileError, OSError) as error:
            said = str(error) or type(error).__name__
        except Exception as error:
            faults.report(f"the question {what} to a worker", error)
            said = f"{type(error).__name__}: {error}"
        self.pipe.send("said", number, said)
        if what == "end":
            self._leaves()

    async def _ping(self, number: int) -> str:
        return ""

    async def _start(self, number: int, corefile: bytes) -> str:
        await self.server.start(_unpickled(corefile))
        return ""

    async def _prepare(self, number: int, corefile: bytes) -> str:
        if self.ending:
            return ""  # whoever takes its place begins with what is served then
        await self._abandon(number)
        async with self.server.reloading:
            self.prepared = await self.server.prepare(_unpickled(corefile))
        return ""

    async def _abandon(self, number: int) -> str:
        await self.server.give_up()  # who asked may not have waited for it
        if self.prepared is not None:
            prepared, self.prepared = self.prepared, None
            await self.server.abandon(prepared)
        return ""

    async def _commit(self, number: int) -> str:
        if self.ending:
            return ""
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        async with self.server.reloading:
            await self.server.commit(prepared)
        return ""

    async def _lameduck(self, number: int) -> str:
        self.ending = True
        await self.server.lameduck()
        return ""

    async def _stop(self, number: int, drain: float) -> str:
        await self._end(drain)
        return ""

    async def _route(self, number: int, host: str, port: int, path: str) -> tuple[int, bytes] | None:
        routes = self.routes.get((host, port, path))
        if not routes:
            return None
        response = await routes[-1]()
        body = response.body
        return response.status, body if isinstance(body, bytes) else b"".join(body)

    async def _metrics(self, number: int) -> str:
        faults.call_each("the refresh of a metric", metrics.REFRESH)
        for row in metrics.dump(SLOTS):
            self.pipe.send("part", number, row)
            await self.pipe.room()
            await asyncio.sleep(0)
        return ""

    _ASKED: Final[dict[str, Callable[..., Awaitable[Any]]]] = {
        "ping": _ping, "start": _start, "prepare": _prepare, "abandon": _abandon, "commit": _commit,
        "lameduck": _lameduck, "end": _stop, "route": _route, "metrics": _metrics,
    }  # fmt: skip

    async def _apply_frames(self) -> None:
        while True:
            await self.framed.wait()
            self.framed.clear()
            while self.frames:
                _, name, what, rows = self.frames.popleft()
                receive = self.followed.get(name)
                if receive is not None:
                    await receive(what, rows)
                await asyncio.sleep(0)
            self.pipe.resume()

    async def _leave(self, *, lame: bool) -> None:
        """Ends untold, as a whole server would: SIGTERM came to this worker alone (then it is a lame duck first, and
        another takes its place), or nobody is there who would tell it.
        """
        if not self.ending:
            self.ending = True
            if lame:
                await self.server.lameduck()
            await self._end(DRAIN)
            self._leaves()

    async def _end(self, drain: float) -> None:
        self.ending = True
        await self._abandon(0)
        await self.server.stop(drain)

    def _leaves(self) -> None:
        self.pipe.close()
        self.over.set()

    def _plugin_stops(self, code: int) -> None:
        self.pipe.send("stop", code)

    # What plugins ask of it (kdns.plugin.runtime.Link).

    def follow(self, name: str, receive: Callable[[str, list[Any]], Awaitable[None]]) -> None:
        """Calls `receive` with all frames of this relay from now on."""
        self.followed[name] = receive
        self.pipe.send("follow", name)

    def unfollow(self, name: str) -> None:
        """Ends that."""
        if self.followed.pop(name, None) is not None:
            self.pipe.send("unfollow", name)

    def tell(self, topic: str, value: Any) -> None:
        """Tells all other workers something that msgpack can hold."""
        self.pipe.send("tell", topic, value)

    def listen(self, topic: str, told: Callable[[Any], None]) -> None:
        """Calls `told` with what other workers tell."""
        self.listening.setdefault(topic, []).append(told)

    def ignore(self, topic: str, told: Callable[[Any], None]) -> None:
        """Ends that."""
        calls = self.listening.get(topic, [])
        if told in calls:
            calls.remove(told)

    def add_route(self, host: str, port: int, path: str, route: Callable[[], Awaitable[Any]]) -> None:
        """Answers a path for the process that serves HTTP."""
        self.routes.setdefault((host, port, path), []).append(route)

    def remove_route(self, host: str, port: int, path: str, route: Callable[[], Awaitable[Any]]) -> None:
        """Takes a route back."""
        routes = self.routes.get((host, port, path), [])
        if route in routes:
            routes.remove(route)
        if not routes:
            self.routes.pop((host, port, path), None)


def _unread() -> Corefile:
    raise CorefileError(None, "a worker reads no Corefile")


def _unpickled(data: bytes) -> Corefile:
    """What our own other process has pickled."""
    corefile: Corefile = pickle.loads(data)
    return corefile


def freeze() -> None:
    """Before workers are forked: what is there is moved where no collection writes to it, so that they share it."""
    gc.collect()
    gc.freeze()
