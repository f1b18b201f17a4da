"""A server that is told to end while its configuration changes, or twice: all that was started is stopped, once."""

import asyncio
import pickle
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from kdns.corefile import Corefile
from kdns.net.pipe import Pipe
from kdns.plugin import Plugin
from kdns.plugin.runtime import Runtime
from kdns.server import build, catalog
from kdns.server import supervisor as supervisor_module
from kdns.server.supervisor import Supervisor
from kdns.server.worker import Worker
from kdns.testing import Server, free_port
from kdns.testing.loop import LoopThread
from tests.fixtures import Serve


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.close()


class Gate:
    """Where a plugin waits until it is let go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def passed(self) -> None:
        self.reached.set()
        await self.open.wait()


def slow(calls: list[str], *, start: Gate | None = None, stop: Gate | None = None) -> type[Plugin]:
    """A plugin `slow` that notes its starts and stops, and waits in one of them."""

    class Slow(Plugin):
        name = "slow"

        async def start(self, runtime: Runtime) -> None:
            calls.append("start")
            if start is not None:
                await start.passed()
            calls.append("started")

        async def stop(self) -> None:
            calls.append("stop")
            if stop is not None:
                await stop.passed()
            calls.append("stopped")

    return Slow


def text(*lines: str) -> str:
    return ".:{port} {\n bind 127.0.0.1\n " + "\n ".join(lines) + "\n}\n"


async def turns(count: int = 20) -> None:
    """Lets others run."""
    for _ in range(count):
        await asyncio.sleep(0)


def during(server: Server, plugin: type[Plugin], run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs this in the server's loop, where `slow` is known."""
    with catalog.given(plugin):
        server.thread.run(run())


async def under_way(server: Server, gate: Gate, *lines: str) -> asyncio.Task[bool]:
    """A reload to these lines, which a plugin keeps waiting."""
    server.text = text(*lines)
    reloading = asyncio.create_task(server.server.reload())
    await gate.reached.wait()
    return reloading


def test_a_reload_that_was_under_way_at_the_end_went_on_and_what_it_had_started_was_never_stopped(
    serve: Serve, lines: list[str]
) -> None:
    calls: list[str] = []
    gate = Gate()
    server = serve(text("whoami"))
    life = server.server

    async def run() -> None:
        reloading = await under_way(server, gate, "slow", "whoami")
        later = asyncio.create_task(life.reload())
        await life.stop()
        assert calls == ["start", "stop", "stopped"]
        with pytest.raises(asyncio.CancelledError):
            await reloading
        assert not await later
        assert life.instance is None and not life.listeners

    during(server, slow(calls, start=gate), run)
    assert not [line for line in lines if "Restart failed" in line]


def test_a_lame_duck_took_another_configuration_that_said_it_was_ready(serve: Serve) -> None:
    calls: list[str] = []
    gate = Gate()
    server = serve(text("whoami"))
    life = server.server

    async def run() -> None:
        reloading = await under_way(server, gate, "slow", "whoami")
        await life.lameduck()
        await asyncio.gather(reloading, return_exceptions=True)
        assert calls == ["start", "stop", "stopped"]
        assert not await life.reload()

    during(server, slow(calls, start=gate), run)


def test_the_plugins_that_a_reload_replaced_were_not_stopped_where_the_server_ended_meanwhile(serve: Serve) -> None:
    calls: list[str] = []
    gate = Gate()
    plugin = slow(calls, stop=gate)
    server = serve(text("slow", "whoami"), plugins=[plugin])
    life = server.server

    async def run() -> None:
        reloading = await under_way(server, gate, "whoami")
        ending = asyncio.create_task(life.stop())
        await turns()
        assert not ending.done()
        gate.open.set()
        await ending
        assert calls == ["start", "started", "stop", "stopped"]
        assert await reloading

    during(server, plugin, run)


def test_a_server_that_was_told_to_end_twice_stopped_its_plugins_twice_and_failed(serve: Serve) -> None:
    """With systemd a worker gets SIGTERM itself, and is asked to end by the process that watches over it."""
    calls: list[str] = []
    gate = Gate()
    plugin = slow(calls, stop=gate)
    server = serve(text("slow", "whoami"), plugins=[plugin])
    life = server.server

    async def run() -> None:
        first = asyncio.create_task(life.stop())
        await gate.reached.wait()
        second = asyncio.create_task(life.stop())
        await turns()
        assert not second.done()
        gate.open.set()
        await asyncio.gather(first, second)
        assert calls == ["start", "started", "stop", "stopped"]

    during(server, plugin, run)


# Workers.


class Said:
    """A worker's end of the pipe that remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.closed = False

    def send(self, *message: Any) -> None:
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


def read(port: int, *lines: str) -> Corefile:
    return build.read(text(*lines).replace("{port}", str(port)), "Corefile", environ={})


def test_a_configuration_that_a_worker_took_too_long_to_prepare_stayed_beside_the_one_that_serves(
    thread: LoopThread,
) -> None:
    """The process that watches over the workers has given it up; its sockets and plugins were there until the next."""
    calls: list[str] = []
    gate = Gate()
    port = free_port()

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            worker = Worker(1, ours)
            worker.pipe = said = Said()  # type: ignore[assignment]
            await worker._answer(1, "start", pickle.dumps(read(port, "whoami")))
            preparing = asyncio.create_task(worker._answer(2, "prepare", pickle.dumps(read(port, "slow", "whoami"))))
            await gate.reached.wait()
            await worker._answer(3, "abandon")
            assert calls == ["start", "stop", "stopped"]
            assert preparing.done() and worker.prepared is None
            again = asyncio.create_task(worker._answer(4, "prepare", pickle.dumps(read(port, "slow", "whoami"))))
            await turns()
            gate.open.set()
            await again
            assert worker.prepared is not None and calls[3:] == ["start", "started"]
            await worker._answer(5, "end", 0)
            assert calls[5:] == ["stop", "stopped"]
            assert said.sent == [("said", number, "") for number in (1, 3, 4, 5)] and said.closed

    with catalog.given(slow(calls, start=gate)):
        thread.run(run())


class Forks:
    """Forks no processes: its workers are ends of pipes here. `live` says how a worker answers; nothing: it hangs."""

    def __init__(self, live: Callable[["Forks", int, int, Pipe], object]) -> None:
        self.live = live
        self.ended: Callable[[int, int], None] = lambda pid, status: None
        self.gone: Callable[[], None] = lambda: None
        self.forked: list[int] = []
        self.pipes: dict[int, Pipe] = {}

    def listen(self) -> None:
        """Nothing is heard."""

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.abort()

    async def fork(self, number: int) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        self.forked.append(number)
        pid = 10_000_000 + len(self.forked)  # no process has it (proc(5), pid_max)
        self.pipes[pid] = pipe = await Pipe.open(theirs, lambda message: self.told(pid, number, message), lambda: None)
        assert pipe is not None
        return pid, ours

    def told(self, pid: int, number: int, message: list[Any]) -> None:
        if message[2] == "start":
            self.live(self, pid, number, self.pipes[pid])
        if message[2] in ("ping", "end"):
            self.pipes[pid].send("said", message[1], "")
        if message[2] == "end":
            self.die(pid)

    def die(self, pid: int) -> None:
        self.ended(pid, 9)
        self.pipes[pid].close()


def starts(pipe: Pipe) -> None:
    pipe.send("said", 1, "")


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0)


def test_a_worker_that_died_while_another_started_was_never_replaced(thread: LoopThread) -> None:
    async def run() -> None:
        waiting: list[Pipe] = []

        def live(forks: Forks, pid: int, number: int, pipe: Pipe) -> None:
            if number == 1:
                starts(pipe)
            else:
                waiting.append(pipe)

        forks = Forks(live)
        supervisor = Supervisor(lambda: corefile, forks)  # type: ignore[arg-type]
        corefile = read(free_port(), "multisocket 2", "whoami")
        starting = asyncio.create_task(supervisor.start(corefile))
        await until(lambda: waiting and 1 in supervisor.workers.known)
        forks.die(10_000_001)
        await turns()
        starts(waiting[0])
        await starting
        await until(lambda: sorted(hand.number for hand in supervisor.workers.living()) == [1, 2])
        assert forks.forked == [1, 2, 1]
        await supervisor.stop(0)

    thread.run(run())


@pytest.mark.parametrize("answers", [False, True])
def test_a_worker_that_died_as_it_started_was_replaced_by_two(
    thread: LoopThread, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them stayed for ever: nobody knew it any more, and no reload reached it."""
    monkeypatch.setattr(supervisor_module, "PAUSE", (0.0, 0.0))

    async def run() -> None:
        def live(forks: Forks, pid: int, number: int, pipe: Pipe) -> None:
            if len(forks.forked) != 3:
                starts(pipe)
                return
            if answers:
                starts(pipe)
            asyncio.get_running_loop().call_soon(forks.die, pid)

        forks = Forks(live)
        supervisor = Supervisor(lambda: corefile, forks)  # type: ignore[arg-type]
        corefile = read(free_port(), "multisocket 2", "whoami")
        await supervisor.start(corefile)
        forks.die(10_000_001)
        await until(lambda: len(forks.forked) >= 4 and len(supervisor.workers.living()) == 2)
        await until(lambda: all(task.done() for task in supervisor.replacing.values()))
        await turns(200)
        assert forks.forked == [1, 2, 1, 1]
        assert supervisor.workers.pids() == {1: 10_000_004, 2: 10_000_002}
        await supervisor.stop(0)

    thread.run(run())
