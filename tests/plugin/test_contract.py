"""The plugin contract: awaitables, exceptions, child passes, other people's plugins, dnslib."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import dns.message
import dns.query
import dnslib
import pytest

from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import FormatError
from kdns.dns.rrset import RRset
from kdns.metrics import REGISTRY
from kdns.plugin import DROP, Outcome, Pending, Plugin, RcodeOnly, Request, then
from kdns.plugin.outcome import Transfer
from kdns.plugin.records import answer_of, decode
from kdns.server import pending
from kdns.testing import Server, block, code, data, eventually
from tests.fixtures import Serve

Handle = Callable[[Request], Outcome | Awaitable[Outcome | None] | None]


def plugin(handle: Handle, **members: Any) -> type[Plugin]:
    def parse(cls: type[Plugin], directives: Sequence[Directive], block: ServerBlock) -> list[None]:
        return [None]

    body = {"name": "mine", "parse": classmethod(parse), "handle": lambda self, request: handle(request), **members}
    return type("Mine", (Plugin,), body)


@pytest.fixture
def mine(serve: Serve) -> Callable[..., Server]:
    """A server whose only plugin behaves as told; it comes in as an installed package's would."""

    def start(handle: Handle, more: str = "", **members: Any) -> Server:
        return serve(block("errors", "mine", *([more] if more else [])), plugins=[plugin(handle, **members)])

    return start


def ok(request: Request, last: int = 1) -> Answer:
    return Answer(0, iana.AA, (RRset(request.question.name, iana.A, 5, (bytes((192, 0, 2, last)),)),))


def test_a_plugin_of_others_answers_at_once_or_later(mine: Callable[..., Server]) -> None:
    assert data(mine(ok).ask("x.org.")) == ["192.0.2.1"]

    async def slowly(request: Request) -> Answer:
        await asyncio.sleep(0.02)
        return ok(request, 2)

    assert data(mine(slowly).ask("x.org.")) == ["192.0.2.2"]
    assert data(mine(slowly).ask("x.org.", tcp=True)) == ["192.0.2.2"]


def test_what_comes_later_may_also_be_nothing_a_code_a_drop_or_an_exception(mine: Callable[..., Server]) -> None:
    def later(value: Any) -> Handle:
        async def handle(request: Request) -> Any:
            await asyncio.sleep(0)
            if isinstance(value, Exception):
                raise value
            return value

        return handle

    assert code(mine(later(None), "whoami").ask("x.org.")) == "EMPTY"
    assert code(mine(later(RcodeOnly(iana.REFUSED))).ask("x.org.")) == "REFUSED"
    assert code(mine(later(ValueError("boom"))).ask("x.org.")) == "SERVFAIL"
    with pytest.raises(Exception, match="timed out"):
        mine(later(DROP)).ask("x.org.", timeout=0.3)


def test_finish_and_settle_see_what_comes_from_below(mine: Callable[..., Server]) -> None:
    settled: list[int] = []

    async def on_answer(self: Plugin, request: Request, answer: Answer) -> Answer:
        await asyncio.sleep(0)
        return answer.replace(rcode=iana.NXDOMAIN)

    server = mine(
        lambda request: None,
        "whoami",
        on_answer=on_answer,
        observe=lambda self, request, outcome: settled.append(outcome.rcode),
    )
    assert code(server.ask("x.org.")) == "NXDOMAIN" and settled == [iana.NXDOMAIN]


def test_an_exception_in_finish_is_servfail(mine: Callable[..., Server]) -> None:
    def on_answer(self: Plugin, request: Request, answer: Answer) -> Answer:
        raise RuntimeError("boom")

    assert code(mine(lambda request: None, "whoami", on_answer=on_answer).ask("x.org.")) == "SERVFAIL"


def test_a_lookup_asks_the_whole_server_and_ends_ten_deep(mine: Callable[..., Server]) -> None:
    depths: list[int] = []

    def handle(request: Request) -> Any:
        depths.append(request.depth)
        return then(request.lookup(request.question.name, iana.A), lambda outcome: outcome)

    assert code(mine(handle).ask("x.org.")) == "SERVFAIL"
    assert depths == list(range(11))


def test_rest_asks_only_the_plugins_below(mine: Callable[..., Server]) -> None:
    found: list[Plugin] = []

    def handle(request: Request) -> Any:
        assert request.block is not None
        me = next(each for each in request.block.plugins if each.name == "mine")
        found.append(me)
        return then(request.below(me, request.question), lambda outcome: outcome.replace(rcode=iana.NXDOMAIN))

    assert code(mine(handle, "whoami").ask("x.org.")) == "NXDOMAIN" and len(found) == 1


@pytest.mark.interpreted("it replaces what is compiled in")
def test_a_query_nobody_answers_in_time_is_servfail(
    mine: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "DEADLINE", 0.2)
    server = mine(lambda request: Pending())
    began = time.monotonic()
    assert code(server.ask("x.org.")) == "SERVFAIL" and time.monotonic() - began < 2
    assert sum(slot[0] for slot in REGISTRY["kdns_pending_expired_total"].slots.values()) >= 1
    assert all(not dispatcher.waiting.table for dispatcher in server.server.instance.dispatchers.values())  # type: ignore[union-attr]


@pytest.mark.interpreted("it replaces what is compiled in")
def test_queries_that_wait_are_bounded(mine: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 3)
    monkeypatch.setattr(pending, "DEADLINE", 3.0)
    server = mine(lambda request: Pending() if b"wait" in request.question.name else ok(request))
    for i in range(3):
        assert server.raw(b"\0\1\1\0\0\1\0\0\0\0\0\0\x05wait%d\0\0\1\0\1" % i, timeout=0.05) is None
    began = time.monotonic()
    assert code(server.ask("wait4.")) == "SERVFAIL" and time.monotonic() - began < 2
    assert data(server.ask("other.")) == ["192.0.2.1"]


def test_a_plugin_may_use_dnslibs_records(mine: Callable[..., Server]) -> None:
    def handle(request: Request) -> Answer:
        reply = request.message.reply()
        reply.add_answer(*dnslib.RR.fromZone("x.org. 60 A 192.0.2.7"))
        return answer_of(reply)

    assert data(mine(handle).ask("x.org.")) == ["192.0.2.7"]
    with pytest.raises(FormatError):
        decode(b"\0" * 5)
    with pytest.raises(FormatError):
        decode(b"\0\1\1\0\0\1\0\0\0\0\0\0\x02\xff\xfe\0\0\1\0\1")


def bad(request: Request) -> bool:
    return request.question.name.startswith(b"\x03bad")


def raising(value: Any) -> Callable[..., Any]:
    """A hook that raises for names that begin with `bad`, and gives `value` for others."""

    def hook(self: Plugin, request: Request, *args: Any) -> Any:
        if bad(request):
            raise RuntimeError("boom")
        return args[0] if value is ... else value

    return hook


def panics() -> float:
    return sum(slot[0] for slot in REGISTRY["coredns_panics_total"].slots.values())


# What of a plugin queries meet, each raising.
BROKEN: dict[str, dict[str, Any]] = {
    "handle": {},
    "on_answer": {"on_answer": raising(...)},
    "observe": {"observe": raising(None)},
    "observe, repeated": {"observe": raising(None), "pure": True},
    "admit": {"view": "", "admit": raising(True)},
    "label": {"label": raising("")},
}


@pytest.mark.parametrize("hook", BROKEN)
def test_an_exception_in_a_hook_lost_the_reply_and_the_whole_tcp_connection(
    mine: Callable[..., Server], lines: list[str], hook: str
) -> None:
    handle = raising(None)
    server = mine(
        lambda request: handle(None, request) if hook == "handle" else None,
        "metadata\n log . {/mine/x}\n whoami",
        **BROKEN[hook],
    )
    before = panics()
    assert code(server.ask("bad.org.")) == "SERVFAIL" and code(server.ask("good.org.")) == "EMPTY"
    query = [dns.message.make_query(f"{name}.org.", "A", use_edns=0) for name in ("good", "bad", "good", "bad", "good")]
    with server.connect() as sock:
        for each in query:
            dns.query.send_tcp(sock, each)
        came = [dns.query.receive_tcp(sock, time.time() + 5)[0] for _ in query]
    assert sorted((reply.id, code(reply)) for reply in came) == sorted(
        (each.id, "SERVFAIL" if "bad" in str(each.question[0]) else "EMPTY") for each in query
    )
    assert all(
        reply.question == each.question and reply.edns == 0 for each in query for reply in came if reply.id == each.id
    )
    assert panics() - before == 3
    said = [line for line in lines if "boom" in line and "plugin/errors" not in line]
    assert len(said) == 3 and all("[ERROR] Recovered from panic" in line for line in said)


def test_an_observer_that_raised_kept_the_others_from_being_called(
    mine: Callable[..., Server], lines: list[str]
) -> None:
    server = mine(lambda request: None, "log\n whoami", observe=raising(None))
    assert code(server.ask("bad.org.")) == "SERVFAIL"
    assert any(line.startswith("[INFO] 127.0.0.1:") and "SERVFAIL" in line for line in lines)


def test_an_exception_in_what_counts_repeats_is_servfail(mine: Callable[..., Server], lines: list[str]) -> None:
    def meter(self: Plugin, request: Request, answer: Answer) -> Callable[[int, int], None]:
        def again(asked: int, said: int) -> None:
            raise RuntimeError("boom")

        return again

    members = {"pure": True, "observe": lambda self, request, outcome: None, "meter": meter}
    more = "hosts /nowhere {\n 192.0.2.1 a.org\n }"
    server = mine(lambda request: None, more, **members)
    before = panics()
    found = [code(server.ask("a.org.")) for _ in range(5)]
    assert found[0] == "NOERROR" and set(found) == {"NOERROR", "SERVFAIL"}
    assert panics() - before == found.count("SERVFAIL") == sum("Recovered from panic" in line for line in lines)


def test_what_is_no_outcome_is_servfail_and_not_a_missing_reply(mine: Callable[..., Server]) -> None:
    async def later(request: Request) -> Any:
        await asyncio.sleep(0)
        return "what"

    async def on_answer(self: Plugin, request: Request, answer: Answer) -> Any:
        return 3

    nonsense: Any = lambda request: "what"  # noqa: E731
    for server in (mine(nonsense), mine(later), mine(lambda request: None, "whoami", on_answer=on_answer)):
        before = panics()
        assert code(server.ask("x.org.")) == "SERVFAIL" and code(server.ask("x.org.", tcp=True)) == "SERVFAIL"
        assert panics() - before == 2


def test_a_zone_transfer_over_udp_is_servfail_and_not_a_missing_reply(mine: Callable[..., Server]) -> None:
    server = mine(lambda request: Transfer(iter(())))
    assert code(server.ask("x.org.")) == "SERVFAIL"


def test_an_exception_that_cannot_be_shown_is_one_like_others(mine: Callable[..., Server], lines: list[str]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def handle(request: Request) -> Any:
        raise Mute

    assert code(mine(handle).ask("x.org.")) == "SERVFAIL"
    assert any("Recovered from panic" in line and "Mute" in line for line in lines)


def transfer(after: int, error: Exception | None) -> Handle:
    """A zone transfer that gives `after` messages and then raises, or never ends."""

    def messages() -> Iterator[tuple[RRset, ...]]:
        made = itertools.count() if error is None else range(after)
        for _ in made:
            yield (RRset(b"\x01x\0", iana.A, 5, tuple(i.to_bytes(4, "big") for i in range(1000))),)
        assert error is not None
        raise error

    return lambda request: Transfer(messages())


def open_connections() -> float:
    return sum(slot[0] for slot in REGISTRY["kdns_tcp_connections"].slots.values())


@pytest.mark.parametrize("after", [0, 3])
def test_an_exception_in_a_zone_transfer_left_the_connection_open_for_ever(
    mine: Callable[..., Server], lines: list[str], after: int
) -> None:
    server = mine(transfer(after, RuntimeError("boom")))
    before, opened = panics(), open_connections()
    with server.connect() as sock:
        dns.query.send_tcp(sock, dns.message.make_query("x.", "AXFR"))
        came = 0
        with contextlib.suppress(ConnectionError):
            while octets := sock.recv(1 << 20):
                came += len(octets)
        assert came < 64_000
    eventually(lambda: open_connections() == opened)
    assert panics() - before == 1
    assert sum("Recovered from panic" in line and "boom" in line for line in lines) == 1


def test_a_client_that_read_nothing_of_a_zone_transfer_kept_its_connection_for_ever(
    mine: Callable[..., Server],
) -> None:
    server = mine(transfer(0, None), "timeouts {\n idle 1s\n }")
    opened = open_connections()
    with server.connect() as sock:
        dns.query.send_tcp(sock, dns.message.make_query("x.", "AXFR"))
        eventually(lambda: open_connections() == opened + 1)
        eventually(lambda: open_connections() == opened)
