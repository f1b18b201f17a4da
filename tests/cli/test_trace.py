"""explain and its trace: the server's objects are built with the watch and not patched; steps, depth, times."""

import re
import time
from pathlib import Path

import pytest

from kdns.cli.offline import Offline
from kdns.cli.trace import Trace, said
from kdns.dns import iana
from kdns.dns.name import from_text
from kdns.dns.query import Question
from kdns.plugin.outcome import DROP
from kdns.server import build
from kdns.testing import answer
from tests.cli.test_commands import kdns
from tests.fixtures import Start

TIME = re.compile(r" \[\d+\.\d{3} ms\]$")


@pytest.fixture
def corefile(tmp_path: Path, upstream: Start) -> str:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    (tmp_path / "zone").write_text("@ SOA ns host 1 60 60 60 60\n@ NS ns\nns A 192.0.2.9\nwww CNAME web.other.org.\n")
    path = tmp_path / "Corefile"
    path.write_text(
        f"a.org:53 {{\n errors\n loadbalance\n file {tmp_path / 'zone'}\n}}\n"
        f".:53 {{\n errors\n health :1\n rewrite name old.org new.org\n cache 30\n forward . {up.address}\n}}\n"
    )
    return str(path)


def test_without_the_flag_explain_says_who_answered_and_what_changed_the_question(corefile: str) -> None:
    done = kdns("explain", "-conf", corefile, "old.org")
    assert done.stdout.splitlines()[2:4] == [
        "  rewrite: passes it on (asks for new.org. A from here on)",
        "  forward: NOERROR, 1 record",
    ], done.stdout + done.stderr
    assert "cache" not in done.stdout and "ms]" not in done.stdout


def test_with_trace_each_plugin_has_its_step_and_its_time_down_and_back_up(corefile: str) -> None:
    done = kdns("explain", "-conf", corefile, "--trace", "old.org")
    steps = done.stdout.splitlines()[2:-1]
    assert all(TIME.search(line) for line in steps), done.stdout + done.stderr
    assert [TIME.sub("", line) for line in steps] == [
        "  rewrite: passes it on (asks for new.org. A from here on)",
        "  cache: passes it on",
        "  forward: NOERROR, 1 record",
        "  cache, on the way back: changes the TTL",
        "  rewrite, on the way back: changes the records' names",
        "  = NOERROR, 1 record",
    ]


def test_the_look_ups_of_a_plugin_in_another_server_block_were_not_in_the_trace(corefile: str) -> None:
    """The hook was put on the chain of the one block that the name belongs to."""
    done = kdns("explain", "-conf", corefile, "--trace", "www.a.org")
    lines = [TIME.sub("", line) for line in done.stdout.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith("  file: "))
    assert lines[at + 1 : at + 4] == [
        "    rewrite: passes it on",
        "    cache: passes it on",
        "    forward: NOERROR, 1 record",
    ], done.stdout + done.stderr
    brief = kdns("explain", "-conf", corefile, "www.a.org").stdout
    assert "  file: NOERROR, 2 records" in brief and "forward" not in brief


def test_a_step_is_as_long_as_the_clock_says_and_a_trace_begins_anew() -> None:
    ticks = iter(range(100))
    trace = Trace(lambda: float(next(ticks)))
    instance = build.build(build.read(".:53 {\n whoami\n}\n", "Corefile"), trace)
    instance.load()
    offline = Offline(instance, 53)
    for _ in range(2):
        trace.begin()
        outcome = offline.dispatcher.route(offline.request(Question(from_text("a.org."), iana.A)))
        lines = trace.lines(outcome, whole=True)
        assert [line.split("[")[1] for line in lines] == ["1000.000 ms]", "3000.000 ms]"] and "whoami" in lines[0]


def test_a_plugin_that_fails_is_named_and_so_is_an_explanation_that_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from kdns.plugin import Plugin\n\n\nclass Broken(Plugin):\n    name = 'broken'\n    before = 'forward'\n\n"
        "    def handle(self, request):\n        if request.name.startswith('bad.'):\n            1 / 0\n"
        "        return None\n\n    def explain(self, request):\n        raise ValueError('no words')\n"
    )
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n errors\n plugin broken.py\n forward . 127.0.0.1:9\n}\n")
    done = kdns("explain", "-conf", str(path), "bad.org")
    assert "  broken: fails: ZeroDivisionError: division by zero\n" in done.stdout, done.stdout + done.stderr
    done = kdns("explain", "-conf", str(path), "--trace", "good.org")
    assert "  broken: passes it on - its explain() failed: ValueError: no words [" in done.stdout
    assert "  forward: SERVFAIL" in done.stdout


def test_no_reply_was_told_as_the_address_of_an_object() -> None:
    assert said(DROP) == "no reply"


def test_a_server_that_nobody_watches_calls_its_plugins_directly() -> None:
    instance = build.build(build.read(".:53 {\n whoami\n}\n", "Corefile"))
    (block,) = instance.blocks
    assert block.chain.handles == (block.plugins[0].handle,)


def test_explain_of_a_slow_upstream_shows_where_the_time_went(tmp_path: Path, upstream: Start) -> None:
    def slow(query: object, proto: str) -> object:
        time.sleep(0.05)
        return answer(query, "A 192.0.2.1")  # type: ignore[arg-type]

    path = tmp_path / "Corefile"
    path.write_text(f".:53 {{\n errors\n forward . {upstream(slow).address}\n}}\n")  # type: ignore[arg-type]
    done = kdns("explain", "-conf", str(path), "--trace", "a.org")
    found = re.search(r"forward: NOERROR, 1 record \[([\d.]+) ms\]", done.stdout)
    assert found is not None and float(found[1]) >= 50, done.stdout + done.stderr
