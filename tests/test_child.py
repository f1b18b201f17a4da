"""Child processes: what they are given, what they say, how they end, and what starting one costs."""

import asyncio
import base64
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from kdns import child
from kdns.child import ChildFailed, output
from kdns.testing.loop import new_loop

MODULE = "base64"  # encodes its standard input


def run(coroutine: object) -> object:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(coroutine)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_child_gets_all_that_it_is_given_and_all_that_it_says_is_had(size: int) -> None:
    given = os.urandom(size)

    async def fed(stdin: asyncio.StreamWriter) -> None:
        for i in range(0, size, 100_000):
            stdin.write(given[i : i + 100_000])
            await stdin.drain()

    for how in (given, fed):
        out = run(output(MODULE, "-e", given=how, timeout=60))
        assert isinstance(out, bytearray) and base64.b64decode(out) == given


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(ChildFailed, match="Error"):
        run(output(MODULE, "-d", given=b"A", timeout=60))
    with pytest.raises(ChildFailed, match="No module named"):
        run(output("kdns.no_such_module", given=b"x" * 1_000_000, timeout=60))


def test_a_child_that_takes_too_long_is_ended_and_so_is_one_that_nobody_waits_for() -> None:
    started: list[str] = []

    async def never(stdin: asyncio.StreamWriter) -> None:
        started.extend(pid for pid in children() if pid not in others)
        await asyncio.sleep(60)

    def children() -> list[str]:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return file.read().split()

    others = children()

    with pytest.raises(ChildFailed, match=r"it took over 0\.5 s"):
        run(output(MODULE, given=never, timeout=0.5))

    async def cancelled() -> None:
        task = asyncio.create_task(output(MODULE, given=never, timeout=60))
        while len(started) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(cancelled())
    assert len(started) >= 2 and not any(os.path.exists(f"/proc/{pid}") for pid in started)


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_pipe_that_was_given_up_as_it_was_joined_was_closed_twice(turns: int) -> None:
    """By the loop, and later by the collector: its number may be another file's by then."""
    pipes: list[Any] = []

    async def begin() -> None:
        pipe = subprocess.PIPE
        async with child.running(sys.executable, "-c", "", stdin=pipe, stdout=pipe, stderr=pipe) as made:
            process = made.process
            pipes.extend((process.stdin, process.stdout, process.stderr))
            await asyncio.gather(made.writer(), made.reader(process.stdout, 100), made.reader(process.stderr, 100))

    async def given_up() -> None:
        task = asyncio.create_task(begin())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(20):  # transports close in turns of their own
            await asyncio.sleep(0)

    run(given_up())
    assert all(pipe.closed for pipe in pipes)


def test_who_gave_a_child_up_that_the_kernel_does_not_let_go_waited_for_it_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that reads from a file system that hangs: a signal reaches it when that goes on."""
    monkeypatch.setattr(child, "GOING", 0.01)

    async def held() -> None:
        async with asyncio.timeout(20):
            async with child.running(sys.executable, "-c", "") as made:
                poll, made.process.poll = made.process.poll, lambda: None  # type: ignore[method-assign]
        made.process.poll = poll  # type: ignore[method-assign]
        made.process.wait()

    asyncio.run(held())


def test_starting_a_child_held_the_loop_of_a_large_process() -> None:
    held = b"x" * (300 << 20)  # uvloop's fork copied the tables of its pages: 10 ms

    async def worst() -> float:
        task = asyncio.create_task(output(MODULE, given=b"x", timeout=60))
        longest = 0.0
        while not task.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        await task
        return longest

    times = [run(worst()) for _ in range(3)]
    assert min(each for each in times if isinstance(each, float)) < 0.005 and len(held) > child.MAX_COMPLAINT
