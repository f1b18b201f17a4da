"""An exception in a callback, a timer or a task ends what raised it and nothing else: it is a line and a count."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import pytest

from kdns import faults
from kdns.deadlines import Deadlines
from kdns.dns.answer import Answer
from kdns.dns.query import Question
from kdns.metrics import REFRESH
from kdns.plugin import Pending, Request
from kdns.plugins.cache import handler as cache_module
from kdns.plugins.forward import attempt as attempt_module
from kdns.server.pending import PendingTable
from kdns.testing import answer, block, code, data, eventually, free_port, http_get
from kdns.upstream.exchange import UpstreamError
from kdns.upstream.tcp import TcpConnections
from kdns.upstream.udp import UdpSockets
from tests.fixtures import Serve, Start


def boom(*_: Any) -> None:
    raise RuntimeError("boom")


@pytest.fixture
def said(lines: list[str]) -> Iterator[Callable[[], list[str]]]:
    """The lines that internal errors have made; each was counted."""
    before = faults.ERRORS.slot()[0]

    def found() -> list[str]:
        return [line for line in lines if "Internal error" in line]

    yield found
    assert faults.ERRORS.slot()[0] - before == len(found())
    assert all(line.startswith("[ERROR] ") and "\n" not in line for line in found())


def test_deadlines_that_end_together_held_the_loop_until_all_were_met() -> None:
    async def run() -> tuple[int, int]:
        deadlines = Deadlines()
        met, between = [0], [0]

        def meet() -> None:
            met[0] += 1

        def look() -> None:
            if met[0] < 1000:
                between[0] += met[0] > 0
                loop.call_soon(look)

        loop = asyncio.get_running_loop()
        for _ in range(1000):
            deadlines.add(0.01, meet)
        time.sleep(0.02)  # all of them have ended when the loop looks
        look()
        async with asyncio.timeout(20):
            while met[0] < 1000:
                await asyncio.sleep(0.001)
        return met[0], between[0]

    met, between = asyncio.run(run())
    assert met == 1000 and between >= 10


def test_queries_that_waited_too_long_together_held_the_loop_until_all_were_answered() -> None:
    """A dict's first key is found by stepping over all that were deleted before it: 20,000 took a third of a second."""

    async def run() -> tuple[int, int]:
        answered, between = [0], [0]

        def give_up(request: Request, why: str) -> bytes:
            answered[0] += 1
            return b""

        def look() -> None:
            if answered[0] < 2000:
                between[0] += answered[0] > 0
                loop.call_soon(look)

        loop = asyncio.get_running_loop()
        table = PendingTable("dns://:53", lambda request, value: value, give_up)
        asked = Question(b"\1a\0", 1, 1)
        for _ in range(2000):
            long_ago = time.monotonic() - 60
            server: Any = None
            request = Request(server, b"", 0, asked, None, b"", 0, ("192.0.2.1", 1), None, "udp", long_ago)
            table.add(request, Pending())
        table._sweep()
        look()
        async with asyncio.timeout(20):
            while table.table:
                await asyncio.sleep(0.001)
        return answered[0], between[0]

    answered, between = asyncio.run(run())
    assert answered == 2000 and between >= 20


def test_a_deadline_that_adds_the_next_one_had_one_timer_more_each_time() -> None:
    class Counting(asyncio.SelectorEventLoop):
        runs = 0

        def call_later(self, delay: float, callback: Any, *args: Any, **more: Any) -> asyncio.TimerHandle:
            self.runs += getattr(callback, "__self__", None) is deadlines
            return super().call_later(delay, callback, *args, **more)

    deadlines = Deadlines()
    left = [20]

    def again() -> None:
        left[0] -= 1
        if left[0]:
            deadlines.add(0.001, again)

    async def run() -> None:
        deadlines.add(0.001, again)
        async with asyncio.timeout(20):
            while left[0]:
                await asyncio.sleep(0.001)

    loop = Counting()
    try:
        loop.run_until_complete(run())
        assert loop.runs <= 45  # one for each, and now and then one for what the clock left of a wait
    finally:
        loop.close()


def test_an_exception_in_one_deadline_ended_all_that_came_after_it(said: Callable[[], list[str]]) -> None:
    async def run() -> list[str]:
        deadlines = Deadlines()
        met: list[str] = []
        deadlines.add(0.01, lambda: met.append("before"))
        deadlines.add(0.01, boom)
        deadlines.add(0.01, lambda: met.append("after"))
        await asyncio.sleep(0.05)
        deadlines.add(0.01, lambda: met.append("later"))
        await asyncio.sleep(0.05)
        return met

    assert asyncio.run(run()) == ["before", "after", "later"]
    assert len(said()) == 1 and "RuntimeError: boom" in said()[0]


def test_an_exception_in_one_of_those_who_waited_kept_the_value_from_the_others(said: Callable[[], list[str]]) -> None:
    pending, met = Pending(), []
    for callback in (boom, met.append, boom, met.append):
        pending.add(callback)
    pending.resolve(3)
    assert met == [3, 3] and len(said()) == 2


def test_an_exception_in_what_waits_for_one_reply_failed_all_others_of_the_connection(
    upstream: Start, said: Callable[[], list[str]]
) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))

    async def run(make: Callable[[], Any]) -> list[Any]:
        found: list[Any] = []
        asked = make()
        question = Question(b"\1x\3org\0", 1)
        query = dns.message.make_query("x.org.", "A").to_wire()
        for done in (boom, found.append, boom, found.append):
            asked.exchange(query, question, 2.0, done)
        while len(found) < 2:
            await asyncio.sleep(0.01)
        await asked.close()
        return found

    found = asyncio.run(run(lambda: TcpConnections("127.0.0.1", up.port, "x", "test", Deadlines())))
    assert all(type(each) is Answer for each in found) and len(said()) == 2


def test_an_exception_in_what_waits_kept_the_other_sockets_from_being_closed(said: Callable[[], list[str]]) -> None:
    async def run() -> list[Any]:
        found: list[Any] = []
        asked = UdpSockets("127.0.0.1", free_port(), "x", "test", Deadlines())
        mute = TcpConnections("127.0.0.1", free_port(), "x", "test", Deadlines())
        for each in (asked, mute):
            for done in (boom, found.append, boom, found.append):
                each.exchange(b"\0" * 12, Question(b"\1x\0", 1), 2.0, done)
            closing = each.close()
            if closing is not None:
                await closing
        assert not asked.open and not asked.idle
        return found

    found = asyncio.run(run())
    assert len(found) == 4 and all(isinstance(each, UpstreamError) for each in found)
    assert len(said()) == 4


@pytest.mark.interpreted("it replaces what is compiled in")
@pytest.mark.parametrize("where", ["choose", "ask", "finish_reply"])
def test_a_fault_in_forward_left_its_question_in_flight_for_ever(
    serve: Serve, upstream: Start, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whoever asked the same again waited for a reply that could not come, and max_concurrent filled up."""
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("errors", f"forward . {up.address} {{\n max_concurrent 2\n }}"))
    if where == "finish_reply":
        monkeypatch.setattr(attempt_module, "is_empty", boom)
        up.script = lambda query, proto: answer(query, "A 192.0.2.1", ra=False)
    else:
        monkeypatch.setattr(attempt_module.ForwardAttempt, where, boom)
    for i in range(4):
        assert code(server.ask("x.org.", timeout=3)) == "SERVFAIL"
        assert code(server.ask(f"x{i}.org.", timeout=3)) == "SERVFAIL"
    assert len(said()) == 8
    monkeypatch.undo()
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert not forwarder.concurrent and not forwarder.flights


@pytest.mark.interpreted("it replaces what is compiled in")
def test_an_exception_in_a_timer_of_forward_is_servfail_for_its_question(
    serve: Serve, upstream: Start, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ups = [upstream(lambda query, proto: None) for _ in range(2)]
    server = serve(block(f"forward . {ups[0].address} {ups[1].address} {{\n read_timeout 10s\n }}"))
    monkeypatch.setattr(attempt_module, "HEDGED", None)  # what the timer counts with
    assert code(server.ask("x.org.", timeout=3)) == "SERVFAIL"
    assert len(said()) == 1


def test_a_plugin_that_raised_when_a_query_had_timed_out_ended_all_time_outs(
    serve: Serve, upstream: Start, tmp_path: Path, lines: list[str]
) -> None:
    """It was called by a deadline; those behind it were never looked at again, and max_concurrent filled up."""
    plugin = tmp_path / "bad.py"
    plugin.write_text(
        "from kdns.plugin import Plugin\n"
        "class Bad(Plugin):\n"
        "    name = 'bad'\n"
        "    before = 'log'\n"
        "    def observe(self, request, outcome):\n"
        "        if request.name == 'bad.org.':\n"
        "            raise RuntimeError('boom')\n"
    )
    up = upstream(lambda query, proto: None)
    options = "read_timeout 50ms\n max_fails 0\n max_concurrent 3"
    server = serve(block(f"plugin {plugin}", f"forward . {up.address} {{\n {options}\n }}"))
    server.raw(dns.message.make_query("bad.org.", "A").to_wire(), 0.3)
    for i in range(8):
        assert code(server.ask(f"x{i}.org.", timeout=3)) == "SERVFAIL"
    assert sum("boom" in line for line in lines) == 1


def test_an_exception_in_one_gauges_refresh_ended_the_whole_scrape(serve: Serve, said: Callable[[], list[str]]) -> None:
    port = free_port()
    serve(block(f"prometheus 127.0.0.1:{port}", "whoami"))
    REFRESH.insert(0, boom)
    try:
        assert "kdns_internal_errors_total" in http_get(port, "/metrics")[1]
    finally:
        REFRESH.remove(boom)
    assert len(said()) == 1


@pytest.mark.interpreted("it replaces what is compiled in")
def test_work_that_outlives_its_reply_failed_in_silence(
    serve: Serve, upstream: Start, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=1))
    server = serve(block("cache {\n success 100 3600 0\n serve_stale\n }", f"forward . {up.address}"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    time.sleep(1.1)
    monkeypatch.setattr(cache_module, "_replaces", boom)
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    eventually(lambda: len(said()) == 1)


def test_a_task_that_fails_is_said_and_begun_again(said: Callable[[], list[str]]) -> None:
    async def run() -> int:
        rounds = 0

        async def work() -> None:
            nonlocal rounds
            rounds += 1
            if rounds < 3:
                raise RuntimeError("boom")

        async with asyncio.timeout(5):
            await faults.supervise("the work", work, pause=0.01)
        return rounds

    assert asyncio.run(run()) == 3
    assert len(said()) == 2 and all("the work" in line for line in said())


def test_what_the_loop_catches_is_one_line_of_our_log_and_a_count(said: Callable[[], list[str]]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(faults.caught)
        loop.call_soon(boom)
        await asyncio.sleep(0.01)
        loop.call_exception_handler({"message": "two\nlines"})

    asyncio.run(run())
    first, second = said()
    assert "RuntimeError: boom" in first and "test_callbacks" in first
    assert second.endswith("two\\nlines")


def test_an_exception_without_text_of_its_own_is_said_by_its_name(said: Callable[[], list[str]]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    faults.report("a test", Mute())
    faults.report("a test", ValueError())
    assert "Mute" in said()[0] and said()[1].endswith("Internal error in a test: ValueError")


def test_the_process_logs_what_its_loop_catches_in_our_format(tmp_path: Path) -> None:
    plugin = tmp_path / "bad.py"
    plugin.write_text(
        "import asyncio\n"
        "from kdns.plugin import Plugin\n"
        "class Bad(Plugin):\n"
        "    name = 'bad'\n"
        "    async def start(self, runtime):\n"
        "        asyncio.get_running_loop().call_soon(self.boom)\n"
        "    def boom(self):\n"
        "        raise RuntimeError('boom')\n"
    )
    (tmp_path / "Corefile").write_text(f".:{free_port()} {{\n bind 127.0.0.1\n plugin {plugin}\n whoami\n}}\n")
    with subprocess.Popen(
        [sys.executable, "-m", "kdns", "-conf", str(tmp_path / "Corefile")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        found: list[str] = []
        while not any("boom" in line for line in found):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            found.append(line)
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert found[-1].startswith("[ERROR] Internal error") and "RuntimeError: boom" in found[-1]
        assert "Traceback" not in process.stderr.read()
