"""Fixtures: servers under test, API servers, and a clean log."""

import contextlib
import gc
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import log, version
from kdns.testing import ApiServer, Script, Server, Upstream
from tests.forker import forker


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where all tests run in several processes, each process compiles a part of them first, and finds the others' parts
    in the cache. Else each compiles all of them: 8 s of CPU in a new checkout.
    """
    config = session.config
    worker = getattr(config, "workerinput", None)  # what xdist tells a process
    if worker is None or config.args_source is not config.ArgsSource.TESTPATHS:
        return
    here = Path(__file__).parent
    first = int(worker["workerid"].removeprefix("gw"))
    for path in sorted(here.rglob("test_*.py"))[first :: worker["workercount"]]:
        with contextlib.suppress(Exception):  # collection imports it again, and says what is wrong
            importlib.import_module(".".join(path.relative_to(here.parent).with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, on the compiled build, what replaces a constant or a function that is compiled in."""
    if version.build() != "compiled":
        return
    for item in items:
        for mark in item.iter_markers("interpreted"):
            item.add_marker(pytest.mark.skip(reason=f"runs on the interpreted build only: {mark.args[0]}"))


# The same examples in every run, and a busy machine breaks none.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def hypothesis_before_servers() -> None:
    """Hypothesis looks for who refers to its random source, once. The garbage collector that it asks does not see what
    a server has frozen, so it looks before there is a server.
    """
    given(st.none())(lambda nothing: None)()


@pytest.fixture(scope="session", autouse=True)
def few_full_collections() -> Iterator[None]:
    """A server that ends thaws what was frozen, and the next one collects garbage in all that pytest holds: 0.3 s of
    CPU for each of some thousands. Here each fiftieth thaws; what is garbage by then waits for it.
    """
    thaw, count = gc.unfreeze, itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None if next(count) % 50 else thaw())
        gc.freeze()
        yield


@pytest.fixture(scope="session", autouse=True)
def end_of_the_forker() -> Iterator[None]:
    """The forker ends while coverage still hears what it ran."""
    yield
    if forker.cache_info().currsize:
        forker().close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers from Corefile texts; stops them after the test."""
    running: list[Server] = []

    def start(text: str, **options: Any) -> Server:
        server = Server(text, **options)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """An API server with nothing in it."""
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log's lines from now on."""
    out: list[str] = []
    monkeypatch.setattr(log, "emit", lambda line: out.append(line.rstrip("\n")))
    return out


@pytest.fixture
def upstream() -> Iterator[Callable[..., Upstream]]:
    """Starts scripted upstreams; stops them after the test."""
    made: list[Upstream] = []

    def start(script: Script, **options: Any) -> Upstream:
        each = Upstream(script, **options)
        made.append(each)
        return each

    yield start
    for each in made:
        each.close()
