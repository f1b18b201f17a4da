"""Starting other people's servers: one that ends is noticed at once, a port that is taken is replaced, and what fails
says what the program wrote. And ports: workers of one run never pick the same.
"""

import socket
import sys
from pathlib import Path

import pytest

from kdns.testing.loop import _ports
from tests import programs

SERVER = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"


def test_a_program_that_ends_fails_at_once_with_what_it_wrote(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"ended with code 3: no such option"),
        programs.running(tmp_path, lambda port: ["sh", "-c", "echo no such option >&2; exit 3"]),
    ):
        pytest.fail("it was taken to run")


def test_a_program_that_ends_later_fails_at_once_with_what_it_wrote(tmp_path: Path) -> None:
    with programs.running(tmp_path, lambda port: [sys.executable, "-c", SERVER, str(port)]) as program:
        program.process.kill()
        with pytest.raises(AssertionError, match=r"ended with code -9"):
            program.until(lambda: False)


def test_what_a_program_wrote_is_said_where_it_never_does_what_is_waited_for(tmp_path: Path) -> None:
    words = [sys.executable, "-c", f"print('I sleep', flush=True)\n{SERVER}"]
    with (
        programs.running(tmp_path, lambda port: [*words, str(port)]) as program,
        pytest.raises(AssertionError, match=r"still not true after 0.1 s: .*; I sleep"),
    ):
        program.until(lambda: False, timeout=0.1)


def test_a_port_that_somebody_took_is_replaced(tmp_path: Path) -> None:
    taken: list[socket.socket] = []

    def words(port: int) -> list[str]:
        if not taken:
            taken.append(socket.create_server(("127.0.0.1", port)))
        return [sys.executable, "-c", SERVER, str(port)]

    with programs.running(tmp_path, words) as program:
        assert program.port != taken[0].getsockname()[1]
        socket.create_connection(("127.0.0.1", program.port), 5).close()
    taken[0].close()


def test_workers_of_one_run_share_no_port_and_two_runs_begin_in_different_places() -> None:
    def worker(number: int, run: str) -> list[int]:
        return _ports({
            "PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": "8", "PYTEST_XDIST_TESTRUNUID": run,
        })  # fmt: skip

    every = [port for number in range(8) for port in worker(number, "a")]
    assert len(every) == len(set(every)) == 22_000
    assert worker(0, "a") == worker(0, "a") and worker(0, "a")[0] != worker(0, "b")[0]
    assert len(_ports({})) == 22_000
