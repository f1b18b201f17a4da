"""loop: upstreams that lead back here."""

import asyncio
import time

import pytest

from kdns.testing import (
    answer,
    block,
    code,
    data,
    eventually,
    free_port,
)
from kdns.timeslice import TimeSlice
from tests.fixtures import Serve, Start


def test_an_upstream_that_leads_back_here_is_refused_and_cluster_names_go_on(
    serve: Serve, upstream: Start, lines: list[str]
) -> None:
    port = free_port()
    good = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    text = block(
        "errors",
        "hosts /nowhere {\n 10.0.0.1 own.org\n fallthrough\n }",
        "loop",
        f"forward . 127.0.0.1:{port} {good.address}",
    )
    server = serve(text, port=port)
    eventually(lambda: any("plugin/loop: Loop (127.0.0.1:" in line for line in lines))
    assert data(server.ask("own.org.")) == ["10.0.0.1"]
    assert all(data(server.ask(f"x{i}.org.")) == ["192.0.2.1"] for i in range(10))


def test_a_server_whose_only_upstream_is_itself_answers_servfail_at_once(serve: Serve, lines: list[str]) -> None:
    port = free_port()
    server = serve(block("loop", f"forward . 127.0.0.1:{port}"), port=port)
    eventually(lambda: any("plugin/loop" in line for line in lines))
    began = time.monotonic()
    assert code(server.ask("x.org.")) == "SERVFAIL" and time.monotonic() - began < 1.8


def test_a_start_that_took_a_turn_more_left_loops_unfound_for_a_minute(
    serve: Serve, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked for the upstreams of `forward`, which starts behind it, before there were any."""
    monkeypatch.setattr(TimeSlice, "pause", lambda self: asyncio.sleep(0))
    port = free_port()
    serve(block("loop", f"forward . 127.0.0.1:{port}"), port=port)
    eventually(lambda: any("plugin/loop: Loop (127.0.0.1:" in line for line in lines))
