"""When a finished reply is given again without asking the plugins: each rule with a plugin that would be wrong without
it.
"""

import itertools
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import dns.edns
import dns.flags
import dns.message
import pytest

from kdns.dns import iana
from kdns.dns.answer import Answer, Validity
from kdns.dns.rrset import RRset
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, then
from kdns.testing import Server, block, code, data, eventually, flags, free_port, http_get

Start = Callable[..., Server]


def address(request: Request, last: int, validity: Validity | None = ALWAYS, ttl: int = 5) -> Answer:
    """The address 192.0.2.LAST for the name that is asked."""
    record = RRset(request.question.name, iana.A, ttl, (bytes((192, 0, 2, last % 256)),))
    return Answer(iana.NOERROR, iana.AA, (record,), validity=validity)


@pytest.fixture
def mine(serve: Callable[..., Server]) -> Start:
    """A server with a plugin `mine` of these members above (`more`) other plugins; pure unless it says otherwise."""

    def start(*more: str, **members: Any) -> Server:
        cls = type("Mine", (Plugin,), {"name": "mine", "before": "hosts", "pure": True, **members})
        return serve(block("mine", *more), plugins=[cls])

    return start


class Calls:
    """Counts the calls of a hook."""

    def __init__(self, hook: Callable[[Request], Any]) -> None:
        self.hook = hook
        self.count = 0

    def __call__(self, plugin: Plugin, request: Request) -> Any:
        self.count += 1
        return self.hook(request)

    def bound(self) -> Any:
        return lambda plugin, request: self(plugin, request)


def ask(server: Server, name: str = "x.org.", times: int = 6, **options: Any) -> list[list[str]]:
    return [data(server.ask(name, **options)) for _ in range(times)]


def stored(server: Server) -> int:
    assert server.server.instance is not None
    return sum(len(dispatcher.replies) for dispatcher in server.server.instance.dispatchers.values())


def test_the_same_question_is_answered_without_asking_the_plugins(mine: Start) -> None:
    calls = Calls(lambda request: address(request, 1))
    server = mine(handle=calls.bound())
    assert ask(server, times=10) == [["192.0.2.1"]] * 10
    assert calls.count == 2 and stored(server) == 1  # what is asked for once is not stored


def test_letter_case_cookies_and_unknown_options_make_no_difference_and_the_question_is_echoed(mine: Start) -> None:
    calls = Calls(lambda request: address(request, 1))
    server = mine(handle=calls.bound())
    for i in range(20):
        name = "".join(random.Random(i).choice((c, c.upper())) for c in "www.example.org.")
        reply = server.ask(name, use_edns=0, options=[dns.edns.GenericOption(65001, bytes([i]))])
        assert str(reply.question[0].name) == str(reply.answer[0].name) == name
    assert calls.count == 2
    for i in range(20):
        server.ask("www.example.org.", use_edns=0, options=[dns.edns.GenericOption(10, bytes([i] * 8))])
    assert calls.count == 4  # that a COOKIE is there is part of the key, what it holds is not


def test_do_size_transport_and_header_bits_have_replies_of_their_own(mine: Start) -> None:
    calls = Calls(lambda request: address(request, 1))
    server = mine(handle=calls.bound())
    ways: list[dict[str, Any]] = [
        {}, {"tcp": True}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True}, {"flags": 0},
        {"use_edns": 0, "payload": 900},
        {"flags": dns.flags.RD | dns.flags.CD},
    ]  # fmt: skip
    for options in ways * 3:
        reply = server.ask("x.org.", **options)
        assert ("RD" in flags(reply)) == ("flags" not in options or bool(options["flags"] & dns.flags.RD))
        assert (reply.edns >= 0) == ("use_edns" in options) and bool(reply.ednsflags & dns.flags.DO) == (
            "want_dnssec" in options
        )
    assert calls.count == 2 * len(ways)


def test_type_65_is_not_taken_for_type_97(mine: Start) -> None:
    """In lower case the octet of the one is that of the other."""
    server = mine(
        handle=lambda self, request: RcodeOnly(iana.REFUSED) if request.question.type == 97 else address(request, 1)
    )
    for _ in range(3):
        assert (code(server.ask("x.org.", "TYPE97")), code(server.ask("x.org.", "HTTPS"))) == ("REFUSED", "NOERROR")


# 1. An answer says how long it holds.


def test_an_answer_that_was_made_for_one_query_is_given_once(mine: Start) -> None:
    numbers = itertools.count(1)
    server = mine(handle=lambda self, request: address(request, next(numbers), validity=None))
    assert ask(server) == [[f"192.0.2.{i}"] for i in range(1, 7)]


def test_an_answer_is_repeated_until_its_owner_ends_it_or_its_time_is_over(mine: Start) -> None:
    held = [Validity(), 1]

    def handle(self: Plugin, request: Request) -> Answer:
        return address(request, held[1], held[0])  # type: ignore[arg-type]

    server = mine(handle=handle)
    assert ask(server) == [["192.0.2.1"]] * 6
    held[0].end()  # type: ignore[attr-defined]
    held[:] = [Validity(time.monotonic() + 0.3), 2]
    assert ask(server) == [["192.0.2.2"]] * 6
    held[1] = 3
    eventually(lambda: ask(server, times=1) == [["192.0.2.3"]])


def test_ttls_of_an_ageing_answer_count_down_in_repeated_replies(mine: Start) -> None:
    until = time.monotonic() + 5
    validity = Validity(until, ages=True)

    def handle(self: Plugin, request: Request) -> Answer:
        return address(request, 1, validity, max(int(until - request.now), 1))

    server = mine(handle=handle)
    seen = []
    while time.monotonic() < until - 0.05:
        left = int(until - time.monotonic())
        ttl = server.ask("x.org.").answer[0].ttl
        assert max(left - 1, 1) <= ttl <= max(left + 1, 1)
        seen.append(ttl)
    assert {1, 2, 3} <= set(seen) <= {1, 2, 3, 4, 5} and stored(server) == 1


def test_a_changed_copy_has_no_validity_unless_it_is_passed_on(mine: Start) -> None:
    numbers = itertools.count(1)

    def on_answer(self: Plugin, request: Request, answer: Answer) -> Answer:
        return answer.replace(answer=(answer.answer[0]._replace(ttl=next(numbers)),))

    server = mine("hosts /nowhere {\n 192.0.2.1 x.org\n }", on_answer=on_answer)
    assert [server.ask("x.org.").answer[0].ttl for _ in range(5)] == [1, 2, 3, 4, 5]


def test_what_was_looked_up_on_the_way_ends_the_reply_too(mine: Start) -> None:
    """A plugin that passes a name on because it does not know it yet."""
    known: dict[bytes, int] = {}
    life = [Validity()]

    def handle(self: Plugin, request: Request) -> Answer | None:
        request.depends_on(life[0])
        last = known.get(request.question.name)
        return address(request, last) if last else None

    server = mine("hosts /nowhere {\n 192.0.2.9 x.org\n }", handle=handle)
    assert ask(server) == [["192.0.2.9"]] * 6
    known[b"\x01x\x03org\0"] = 7
    life[0].end()
    life[0] = Validity()
    assert ask(server) == [["192.0.2.7"]] * 6


def test_a_look_up_in_a_child_pass_counts_as_if_it_were_the_querys_own(mine: Start) -> None:
    life = [Validity(), 1]

    def handle(self: Plugin, request: Request) -> Any:
        if request.name == "target.org.":
            return address(request, life[1], life[0])  # type: ignore[arg-type]
        found = request.lookup(b"\x06target\x03org\0", iana.A)
        return then(found, lambda outcome: address(request, outcome.answer[0].rdatas[0][3]))

    server = mine(handle=handle)
    assert ask(server) == [["192.0.2.1"]] * 6
    life[1] = 2
    life[0].end()  # type: ignore[attr-defined]
    life[0] = Validity()
    assert ask(server) == [["192.0.2.2"]] * 6


def test_failures_and_truncated_replies_are_never_repeated(mine: Start) -> None:
    calls = Calls(lambda request: Answer(iana.SERVFAIL, 0, validity=ALWAYS))
    server = mine(handle=calls.bound())
    assert [code(server.ask("x.org.")) for _ in range(5)] == ["SERVFAIL"] * 5 and calls.count == 5

    def many(request: Request) -> Answer:
        records = tuple(bytes((10, 0, i >> 8, i & 255)) for i in range(400))
        return Answer(iana.NOERROR, iana.AA, (RRset(request.question.name, iana.A, 5, records),), validity=ALWAYS)

    long = Calls(many)
    server = mine(handle=long.bound())
    assert all("TC" in flags(server.ask("x.org.")) for _ in range(5)) and long.count == 5
    assert all(len(server.ask("x.org.", tcp=True).answer[0]) == 400 for _ in range(5)) and long.count == 7


# 2. Nothing was read but what the key holds.


READERS: dict[str, Callable[[Request], Any]] = {
    "client": lambda request: request.client[1],
    "id": lambda request: request.id,
    "octets": lambda request: request.wire,
    "size": lambda request: request.size,
    "buffer size": lambda request: request.bufsize,
    "message": lambda request: request.message,
    "our address": lambda request: request.local,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_a_client_differs_in_makes_the_reply_its_own(mine: Start, read: Callable[[Request], Any]) -> None:
    calls = Calls(lambda request: (read(request), address(request, 1))[1])
    server = mine(handle=calls.bound())
    assert ask(server) == [["192.0.2.1"]] * 6 and calls.count == 6 and not stored(server)


def test_a_client_that_is_looked_at_for_some_names_only_costs_only_those(mine: Start) -> None:
    calls = Calls(lambda request: address(request, request.client[1] % 256 if request.name == "mine.org." else 1))
    server = mine(handle=calls.bound())
    for _ in range(5):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
            sock.sendto(dns.message.make_query("mine.org.", "A").to_wire(), ("127.0.0.1", server.port))
            assert data(dns.message.from_wire(sock.recv(512))) == [f"192.0.2.{sock.getsockname()[1] % 256}"]
    assert calls.count == 5
    assert ask(server, "other.org.") == [["192.0.2.1"]] * 6 and calls.count == 7


def test_what_an_answer_hook_or_a_child_pass_reads_counts(mine: Start) -> None:
    def on_answer(self: Plugin, request: Request, answer: Answer) -> Answer:
        return answer.replace(answer=(answer.answer[0]._replace(ttl=request.id),), validity=answer.validity)

    server = mine("hosts /nowhere {\n 192.0.2.1 x.org\n }", on_answer=on_answer)
    for _ in range(4):
        query = dns.message.make_query("x.org.", "A")
        assert server.send(query).answer[0].ttl == query.id

    def handle(self: Plugin, request: Request) -> Any:
        if request.depth:
            return address(request, request.id % 256)
        return then(
            request.lookup(b"\x01y\0", iana.A), lambda outcome: address(request, outcome.answer[0].rdatas[0][3])
        )

    server = mine(handle=handle)
    for _ in range(4):
        query = dns.message.make_query("x.org.", "A")
        assert data(server.send(query)) == [f"192.0.2.{query.id % 256}"]


def test_an_option_that_a_plugin_has_once_read_keeps_queries_with_it_apart(mine: Start) -> None:
    def handle(self: Plugin, request: Request) -> Answer:
        if request.name == "careless.org.":
            return address(request, 1)
        value = request.option(65001)
        return address(request, value[0] if value else 99)

    server = mine(handle=handle)

    def with_option(name: str, value: int) -> list[str]:
        return data(server.ask(name, use_edns=0, options=[dns.edns.GenericOption(65001, bytes([value]))]))

    assert [with_option("careless.org.", i) for i in range(5)] == [["192.0.2.1"]] * 5
    assert stored(server) == 1
    assert [with_option("x.org.", i) for i in range(2, 7)] == [[f"192.0.2.{i}"] for i in range(2, 7)]
    assert ask(server, use_edns=0) == [["192.0.2.99"]] * 6
    assert [with_option("x.org.", i) for i in range(2, 7)] == [[f"192.0.2.{i}"] for i in range(2, 7)]


def test_a_plugin_that_looks_at_all_options_sees_each_query_that_has_any(mine: Start) -> None:
    calls = Calls(lambda request: address(request, len(request.options)))
    server = mine(handle=calls.bound())
    for count in (1, 3, 2, 1, 0, 0, 0):
        options = [dns.edns.GenericOption(65001 + i, b"") for i in range(count)]
        assert data(server.ask("x.org.", use_edns=0, options=options)) == [f"192.0.2.{count}"]
    assert calls.count == 5  # the first query was counted before anybody had looked at options


def test_a_view_that_looks_at_the_client_is_asked_for_each_query(serve: Callable[..., Server]) -> None:
    inside = (
        ".:{port} {\n bind 127.0.0.1\n view inside {\n expr client_ip() == '127.0.0.2'\n }\n hosts /nowhere {\n "
        "192.0.2.2 x.org\n }\n}\n"
    )
    server = serve(inside + block("hosts /nowhere {\n 192.0.2.1 x.org\n }"))

    def from_(source: str) -> list[str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.settimeout(5)
            sock.sendto(dns.message.make_query("x.org.", "A").to_wire(), ("127.0.0.1", server.port))
            return data(dns.message.from_wire(sock.recv(512)))

    assert [from_(f"127.0.0.{i}") for i in (1, 2, 1, 2, 1)] == [[f"192.0.2.{i}"] for i in (1, 2, 1, 2, 1)]


def test_metadata_costs_nothing_until_a_label_of_the_client_is_read(mine: Start) -> None:
    calls = Calls(lambda request: address(request, 1) if request.label("view/name") == "" else None)
    server = mine("metadata", handle=calls.bound())
    assert ask(server) == [["192.0.2.1"]] * 6 and calls.count == 2

    def label(self: Plugin, request: Request, name: str) -> str | None:
        return str(request.client[1]) if name == "mine/port" else None

    ports = Calls(lambda request: address(request, int(request.label("mine/port")) % 256))
    server = mine("metadata", handle=ports.bound(), label=label)
    assert len({tuple(each) for each in ask(server, times=8)}) > 1 and ports.count == 8


# 3. All plugins are pure.


NUMBERS = itertools.count()
IMPURE: dict[str, Callable[[], int]] = {
    "a counter": lambda: next(NUMBERS),
    "a clock": lambda: time.monotonic_ns() // 1000,
    "chance": lambda: random.randrange(256),
}


@pytest.mark.parametrize("number", IMPURE.values(), ids=IMPURE)
def test_a_plugin_that_does_not_claim_to_be_pure_sees_each_query(mine: Start, number: Callable[[], int]) -> None:
    calls = Calls(lambda request: address(request, number()))
    server = mine(handle=calls.bound(), pure=False)
    ask(server, times=8)
    assert calls.count == 8 and not stored(server)


def test_a_block_with_such_a_plugin_that_is_reached_by_a_look_up_counts_too(
    serve: Callable[..., Server], mine: Start
) -> None:
    numbers = itertools.count(1)

    def handle(self: Plugin, request: Request) -> Outcome | None:
        return address(request, next(numbers)) if request.depth else None

    server = mine('template IN A x.org {\n answer "x.org. 5 CNAME y.org."\n }', handle=handle, pure=False)
    assert len({tuple(each) for each in ask(server)}) == 6


def test_a_pure_plugin_may_say_that_one_reply_is_for_one_query(mine: Start) -> None:
    numbers = itertools.count(1)

    def handle(self: Plugin, request: Request) -> Answer:
        if request.name == "x.org.":
            request.once()
            return address(request, next(numbers))
        return address(request, 200)

    server = mine(handle=handle)
    assert ask(server) == [[f"192.0.2.{i}"] for i in range(1, 7)] and ask(server, "y.org.") == [["192.0.2.200"]] * 6


def test_a_reply_that_will_be_another_one_by_itself_expires(mine: Start) -> None:
    def handle(self: Plugin, request: Request) -> Answer:
        tick = int(request.now / 0.2)
        request.expires((tick + 1) * 0.2)
        return address(request, tick)

    server = mine(handle=handle)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        before = int(time.monotonic() / 0.2)
        found = ask(server, times=1)[0]
        after = int(time.monotonic() / 0.2)
        assert found in [[f"192.0.2.{tick % 256}"] for tick in range(before, after + 1)]


# 4. Who observes gave a meter, or sees each query.


def test_an_observer_without_a_meter_sees_each_query_and_others_are_spared(mine: Start) -> None:
    seen: list[tuple[Any, ...]] = []
    calls = Calls(lambda request: address(request, 1))

    def observe(self: Plugin, request: Request, outcome: Outcome) -> None:
        seen.append((request.client[1], request.name, request.edns is not None, outcome.rcode, len(outcome.answer)))  # type: ignore[union-attr]

    server = mine(handle=calls.bound(), observe=observe)
    ask(server, times=4)
    ask(server, times=4, use_edns=0)
    assert len({each[0] for each in seen}) > 1 and [each[1:] for each in seen] == [
        *[("x.org.", False, 0, 1)] * 4, *[("x.org.", True, 0, 1)] * 4,
    ]  # fmt: skip
    assert calls.count == 4


def test_an_observers_meter_counts_repeated_replies_and_their_octets(mine: Start) -> None:
    seen: list[tuple[int, int]] = []
    observed: list[int] = []

    def meter(self: Plugin, request: Request, answer: Answer) -> Callable[[int, int], None]:
        return lambda asked, said: seen.append((asked, said))

    server = mine(
        handle=lambda self, request: address(request, 1), meter=meter,
        observe=lambda self, request, outcome: observed.append(outcome.rcode),
    )  # fmt: skip
    ask(server, times=6)
    cookie = [dns.edns.GenericOption(65001, b"12345678")]
    ask(server, times=6, use_edns=0, options=cookie)
    assert observed == [0] * 4 and seen == [(23, 39)] * 4 + [(46, 39)] * 4


def test_an_observer_that_fails_fails_for_its_query_only(mine: Start, lines: list[str]) -> None:
    turn = itertools.count()

    def observe(self: Plugin, request: Request, outcome: Outcome) -> None:
        if next(turn) == 2:
            raise RuntimeError("boom")

    server = mine(handle=lambda self, request: address(request, 1), observe=observe)
    assert [code(server.ask("x.org.")) for _ in range(6)].count("NOERROR") >= 5
    assert sum("boom" in line for line in lines) == 1


def test_one_log_line_two_zones_header_and_whoami_switch_nothing_off(
    serve: Callable[..., Server], lines: list[str]
) -> None:
    port = free_port()
    server = serve(
        "example.org:{port} example.net:{port} {\n bind 127.0.0.1\n log\n errors\n header {\n response set ra\n }\n"
        f" prometheus 127.0.0.1:{port}\n loadbalance\n minimal\n nsid one\n"
        " hosts /nowhere {\n 192.0.2.1 a.example.org a.example.net\n }\n}\n"
        "who.org:{port} {\n bind 127.0.0.1\n whoami\n}\n"
    )
    for name in ("a.example.org.", "a.example.net."):
        for options in ({}, {"use_edns": 0}):
            for _ in range(5):
                reply = server.ask(name, **options)  # type: ignore[arg-type]
                assert data(reply) == ["192.0.2.1"] and "RA" in flags(reply)
    assert code(server.ask("who.org.")) == "EMPTY" and stored(server) == 4
    logged = [line for line in lines if "IN a.example." in line]
    assert len(logged) == 20 and all(" NOERROR " in line for line in logged)
    _, text = http_get(port, "/metrics")
    counts = [line for line in text.splitlines() if line.startswith("coredns_dns_requests_total") and "example" in line]
    mine = [line for line in counts if f'127.0.0.1:{server.port}"' in line]
    assert sorted(float(line.rpartition(" ")[2]) for line in mine) == [10, 10]


# Bounds.


def test_names_that_clients_make_up_do_not_grow_the_table(mine: Start) -> None:
    server = mine(handle=lambda self, request: address(request, 1))
    assert server.server.instance is not None
    replies = next(iter(server.server.instance.dispatchers.values())).replies
    replies.half = 20_000
    for i in range(150):
        ask(server, f"n{i}.org.", times=2)
        ask(server, "hot.org.", times=2)
    assert replies.octets <= 20_000 and sum(entry.octets for entry in replies.old.values()) <= 20_000
    calls = len(replies)
    assert 10 < calls < 120 and any(b"\x03hot" in key for key in replies.young)
