"""What goes upstream is canonical, few of one question are in flight, and guesses are not waited out (RFC 5452)."""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dns.edns
import dns.flags
import dns.message
import pytest

from kdns.metrics import REGISTRY
from kdns.plugins.forward import attempt as attempt_module
from kdns.plugins.forward import handler as forward_module
from kdns.testing import answer, block, code, data, eventually
from kdns.upstream import exchange
from tests.fixtures import Serve, Start


def total(name: str) -> float:
    return sum(slot[0] for slot in REGISTRY[name].slots.values())


class Gate:
    """A script of an upstream that holds every query until the gate opens."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.closing = False
        self.asked: list[bytes] = []

    def serve(self, sock: socket.socket) -> None:
        """Answers each datagram in a thread of its own, so that all are in flight at once."""

        def reply(query: bytes, peer: Any) -> None:
            self.open.wait(20)
            end = query.index(b"\0", 12) + 5
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1"
            with contextlib.suppress(OSError):
                sock.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:end] + record, peer)

        while True:
            query, peer = sock.recvfrom(4096)
            if self.closing:
                return
            if b"\1x\3org\0" not in query:
                continue  # a probe
            self.asked.append(query)
            threading.Thread(target=reply, args=(query, peer), daemon=True).start()


@pytest.fixture
def slow() -> Iterator[tuple[Gate, str]]:
    """A slow upstream: its gate and its address."""
    gate = Gate()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=gate.serve, args=(sock,), daemon=True)
    thread.start()
    yield gate, f"127.0.0.1:{sock.getsockname()[1]}"
    gate.open.set()
    gate.closing = True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
        waker.sendto(b"", sock.getsockname())
    thread.join(5)
    sock.close()


def variants(sizes: range) -> list[dns.message.Message]:
    """One question in all the forms that a client can give it."""
    out = []
    for size, rd, ad, cd, do in itertools.product(sizes, *([False, True],) * 4):
        query = dns.message.make_query("x.org.", "A", use_edns=0, payload=size, want_dnssec=do)
        query.flags = (dns.flags.RD * rd) | (dns.flags.AD * ad) | (dns.flags.CD * cd)
        out.append(query)
    for rd, ad, cd in itertools.product([False, True], repeat=3):
        query = dns.message.make_query("x.org.", "A", use_edns=False)
        query.flags = (dns.flags.RD * rd) | (dns.flags.AD * ad) | (dns.flags.CD * cd)
        out.append(query)
    return out


def test_one_name_was_in_flight_ten_thousand_times_by_the_forms_of_its_question(
    serve: Serve, slow: tuple[Gate, str]
) -> None:
    gate, address = slow
    server = serve(block(f"forward . {address} {{\n read_timeout 10s\n }}"))
    dispatcher = next(iter(server.server.instance.dispatchers.values()))  # type: ignore[union-attr]
    asked = variants(range(512, 1233, 12))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for at in range(0, len(asked), 100):
            for query in asked[at : at + 100]:
                client.sendto(query.to_wire(), ("127.0.0.1", server.port))
            eventually(lambda at=at: len(dispatcher.waiting.table) == min(at + 100, len(asked)))
        eventually(lambda: len(gate.asked) >= 8)
        assert len(gate.asked) == 8  # RD, CD and DO
        gate.open.set()
        assert data(dns.message.from_wire(client.recv(4096))) == ["192.0.2.1"]
        eventually(lambda: not dispatcher.waiting.table)
    assert len(gate.asked) == 8


def test_a_query_upstream_has_our_size_and_ad_and_of_the_client_rd_cd_and_do(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block(f"forward . {up.address}"))
    for query in variants(range(600, 601)):
        if query.edns >= 0:
            query.use_edns(
                query.edns, query.ednsflags, query.payload, options=[dns.edns.GenericOption(10, b"12345678")]
            )
        server.send(query)
        sent = up.queries[-1]
        assert sent.edns == 0 and sent.payload == 1232 and not sent.options
        assert sent.flags == query.flags | dns.flags.AD and sent.ednsflags == query.ednsflags


def test_bufsize_lowers_the_size_that_upstreams_are_told(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    for size, told in ((800, 800), (4096, 1232)):
        server = serve(block(f"bufsize {size}", f"forward . {up.address}"))
        for payload in (512, 700, 4096):
            server.ask("x.org.", use_edns=0, payload=payload)
            server.ask("x.org.", use_edns=False)
            assert [query.payload for query in up.queries[-2:]] == [told, told]


def subnets(count: int) -> list[bytes]:
    """One question from clients of different networks."""
    out = []
    for i in range(count):
        option = dns.edns.ECSOption(f"10.{i // 250}.{i % 250}.0", 24)
        out.append(dns.message.make_query("x.org.", "A", use_edns=0, options=[option]).to_wire())
    return out


def test_forms_of_a_question_beyond_a_few_wait_for_their_turn(serve: Serve, slow: tuple[Gate, str]) -> None:
    """With `client_subnet` each network has a query of its own: a blind forger had as many chances."""
    gate, address = slow
    server = serve(block(f"forward . {address} {{\n read_timeout 10s\n client_subnet\n }}"))
    refused = total("kdns_forward_variants_refused_total")
    most, queue = forward_module.MAX_VARIANTS // 2, forward_module.MAX_QUEUED // 2  # the share of one client
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for query in subnets(most + queue + 5):
            client.sendto(query, ("127.0.0.1", server.port))
        early = [dns.message.from_wire(client.recv(4096)) for _ in range(5)]
        assert {code(reply) for reply in early} == {"SERVFAIL"} and early[0].options[0].to_text().startswith("EDE 0")
        assert total("kdns_forward_variants_refused_total") - refused == 5
        eventually(lambda: len(gate.asked) == most)
        gate.open.set()
        for _ in range(most + queue):
            assert data(dns.message.from_wire(client.recv(4096))) == ["192.0.2.1"]
    assert len(gate.asked) == most + queue
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    eventually(lambda: not forwarder.flights and not forwarder.concurrent)


def test_a_client_with_many_subnets_made_a_name_servfail_for_clients_without_any(
    serve: Serve, slow: tuple[Gate, str]
) -> None:
    gate, address = slow
    server = serve(block(f"forward . {address} {{\n read_timeout 10s\n client_subnet\n }}"))
    most, queue = forward_module.MAX_VARIANTS // 2, forward_module.MAX_QUEUED // 2  # the share of one client
    dispatcher = next(iter(server.server.instance.dispatchers.values()))  # type: ignore[union-attr]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        for query in subnets(most + queue):
            greedy.sendto(query, ("127.0.0.1", server.port))
        eventually(lambda: len(dispatcher.waiting.table) == most + queue)
        client.sendto(dns.message.make_query("x.org.", "A").to_wire(), ("127.0.0.1", server.port))
        eventually(lambda: len(dispatcher.waiting.table) == most + queue + 1)
        eventually(lambda: len(gate.asked) == most + 1)
        gate.open.set()
        assert data(dns.message.from_wire(client.recv(4096))) == ["192.0.2.1"]
    assert [not dns.message.from_wire(query).options for query in gate.asked].index(True) <= most


def test_a_client_with_many_subnets_kept_the_clients_of_other_subnets_out(serve: Serve, slow: tuple[Gate, str]) -> None:
    """It took all places of a name: others waited for it, or got SERVFAIL."""
    gate, address = slow
    server = serve(block(f"forward . {address} {{\n read_timeout 10s\n client_subnet\n }}"))
    refused = total("kdns_forward_variants_refused_total")
    asked = subnets(1000)
    with contextlib.ExitStack() as stack:

        def client(number: int) -> socket.socket:
            made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.bind((f"127.0.3.{number}", 0))
            made.settimeout(10)
            return made

        greedy = client(1)
        for query in asked[:200]:
            greedy.sendto(query, ("127.0.0.1", server.port))
        eventually(lambda: total("kdns_forward_variants_refused_total") - refused == 200 - 4 - 28)
        eventually(lambda: len(gate.asked) == 4)
        others = [client(2 + i) for i in range(3)]
        for i, other in enumerate(others):
            for j in range(2):
                other.sendto(asked[200 + 10 * i + j], ("127.0.0.1", server.port))
        eventually(lambda: len(gate.asked) == 8)  # each of the others has one at once, while the greedy one's wait
        # What the greedy one waits for and another asks too has the other's turn.
        shared, coalesced = client(9), total("kdns_forward_coalesced_total")
        shared.sendto(asked[31], ("127.0.0.1", server.port))
        eventually(lambda: total("kdns_forward_coalesced_total") > coalesced)
        gate.open.set()
        for other in others:
            assert [data(dns.message.from_wire(other.recv(4096))) for _ in range(2)] == [["192.0.2.1"]] * 2
        assert data(dns.message.from_wire(shared.recv(4096))) == ["192.0.2.1"]
    first = [dns.message.from_wire(query).options[0].to_text() for query in gate.asked]
    mine = {dns.message.from_wire(asked[200 + 10 * i]).options[0].to_text() for i in range(3)}
    assert mine <= set(first[4:8])
    assert dns.message.from_wire(asked[31]).options[0].to_text() in first[8:12]


def test_a_form_whose_turn_does_not_come_is_servfail_in_time(
    serve: Serve, slow: tuple[Gate, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "LIMIT", 0.3)
    monkeypatch.setattr(attempt_module, "LIMIT", 0.3)
    gate, address = slow
    server = serve(block(f"forward . {address} {{\n read_timeout 10s\n max_fails 0\n client_subnet\n }}"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for query in subnets(30):
            client.sendto(query, ("127.0.0.1", server.port))
        assert {code(dns.message.from_wire(client.recv(4096))) for _ in range(30)} == {"SERVFAIL"}
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    eventually(lambda: not forwarder.flights and not forwarder.concurrent)


def test_a_blind_forger_who_found_the_port_had_as_many_guesses_as_time(
    serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He counts through the ids. After ten replies that do not match, the question is asked over TCP."""
    monkeypatch.setattr(exchange._ids, "pool", b"".join(struct.pack("!H", qid) for qid in range(0x0400, 0x0700)))
    monkeypatch.setattr(exchange._ids, "at", 0)

    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        good = answer(query, "A 192.0.2.1").to_wire()
        forged = answer(query, "A 192.0.2.66").to_wire()
        if proto == "tcp":
            return [good]
        return [struct.pack("!H", guess) + forged[2:] for guess in range(0x0480)]

    up = upstream(script)
    server = serve(block(f"forward . {up.address}"))
    retries = total("kdns_upstream_mismatch_retries_total")
    for i in range(3):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]
    assert up.protos == ["udp", "tcp"] * 3 and total("kdns_upstream_mismatch_retries_total") - retries == 3
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert (
        not forwarder.upstreams[0].fails and not forwarder.upstreams[0].down() and not forwarder.upstreams[0].udp.idle
    )


def test_junk_and_no_tcp_marks_nobody_down(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        if query.question[0].name.to_text() == "bad.org.":
            return [b"junk"] * 50
        return [answer(query, "A 192.0.2.1").to_wire()]

    server = serve(block(f"forward . {upstream(script, tcp=False).address} {{\n max_fails 1\n }}"))
    assert code(server.ask("bad.org.")) == "SERVFAIL"
    assert data(server.ask("good.org.")) == ["192.0.2.1"]


# Replies that are nothing but a header.


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    ("word", "expected"), [(0x8001, "FORMERR"), (0x8082, "SERVFAIL"), (0x8004, "NOTIMP"), (0x8105, "REFUSED")]
)
def test_a_reply_that_is_a_header_alone_was_waited_out(
    serve: Serve, upstream: Start, word: int, expected: str, tcp: bool
) -> None:
    up = upstream(lambda query, proto: [struct.pack("!HH8x", query.id, word)])
    server = serve(block(f"forward . {up.address} {{\n read_timeout 10s\n }}"))
    reply = server.ask("x.org.", tcp=tcp, timeout=4)
    assert code(reply) == expected and str(reply.question[0].name) == "x.org."
    # RFC 6891, section 7: it is asked once more without OPT where that may be what was not understood.
    assert [query.edns for query in up.queries] == ([0, -1] if expected in ("FORMERR", "NOTIMP") else [0])


@pytest.mark.parametrize("header", [
    pytest.param(lambda q: struct.pack("!HH8x", q.id ^ 1, 0x8001), id="another id"),
    pytest.param(lambda q: struct.pack("!HH8x", q.id, 0x0001), id="a query"),
    pytest.param(lambda q: struct.pack("!HH8x", q.id, 0x8000), id="NOERROR"),
    pytest.param(lambda q: struct.pack("!HH8x", q.id, 0x8003), id="NXDOMAIN"),
    pytest.param(lambda q: struct.pack("!HH8x", q.id, 0xA001), id="another opcode"),
    pytest.param(
        lambda q: struct.pack("!HHHHHH", q.id, 0x8002, 0, 1, 0, 0) + b"\0\0\1\0\1\0\0\0\5\0\4\1\2\3\4",
        id="with a record"
    ),
])  # fmt: skip
def test_a_header_alone_that_is_no_error_of_this_query_is_no_reply(
    serve: Serve, upstream: Start, header: Callable[[dns.message.Message], bytes]
) -> None:
    up = upstream(lambda query, proto: [header(query), answer(query, "A 192.0.2.1").to_wire()])
    assert data(serve(block(f"forward . {up.address}")).ask("x.org.")) == ["192.0.2.1"] and len(up.queries) == 1


def test_an_upstream_that_knows_no_edns_is_asked_without(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> Any:
        if query.edns >= 0:
            return [struct.pack("!HH8x", query.id, 0x8001)]
        reply = answer(query, *(f"A 192.0.2.{i}" for i in range(40)))
        if proto == "udp":
            reply.answer = []
            reply.flags |= dns.flags.TC
        return reply

    up = upstream(script)
    server = serve(block(f"forward . {up.address}"))
    assert len(data(server.ask("x.org.", use_edns=0, payload=1232))) == 40
    assert [(query.edns, proto) for query, proto in zip(up.queries, up.protos, strict=True)] == [
        (0, "udp"), (-1, "udp"), (-1, "tcp"),
    ]  # fmt: skip


def test_where_asking_without_edns_fails_too_the_first_code_is_passed_on(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message | None:
        reply = answer(query)
        reply.set_rcode(1)
        return reply if query.edns >= 0 else None

    up = upstream(script)
    server = serve(block(f"forward . {up.address} {{\n read_timeout 200ms\n }}"))
    assert code(server.ask("x.org.")) == "FORMERR" and [query.edns for query in up.queries] == [0, -1]


def test_an_extended_code_is_servfail_for_who_knows_none(serve: Serve, upstream: Start) -> None:
    """Its low four bits alone read as NOERROR."""

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.use_edns(0)
        reply.set_rcode(16)
        return reply

    server = serve(block(f"forward . {upstream(script).address}"))
    assert (
        code(server.ask("x.org.", use_edns=False)) == "SERVFAIL" and code(server.ask("x.org.", use_edns=0)) == "BADVERS"
    )


# Random case (0x20).


def mixed(text: str) -> bool:
    return text not in (text.lower(), text.upper())


def test_case_is_random_where_that_is_configured_and_the_clients_own_is_what_it_gets(
    serve: Serve, upstream: Start
) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    name = "some-long-name.with-65-letters.example.org."
    server = serve(block(f"forward . {up.address} {{\n case_randomization\n }}"))
    for i in range(20):
        reply = server.ask(f"{i}.{name}", "HTTPS" if i % 2 else "A")  # the type's octet is a letter too: 65
        assert code(reply) == "NOERROR" and reply.question[0].name.to_text() == f"{i}.{name}"
    asked = [query.question[0].name.to_text() for query in up.queries]
    assert all(mixed(text) for text in asked) and len({text.partition(".")[2] for text in asked}) == 20
    assert {query.question[0].rdtype for query in up.queries} == {1, 65} and set(up.protos) == {"udp"}
    plain = serve(block(f"forward . {up.address}"))
    plain.ask(f"Mixed.{name}")
    assert up.queries[-1].question[0].name.to_text() == f"mixed.{name}"


def test_a_reply_in_another_case_is_asked_for_over_tcp(serve: Serve, upstream: Start) -> None:
    """A forger who has the id and the port still has to guess the case; he gets one try."""

    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        if proto == "tcp":
            return [answer(query, "A 192.0.2.1").to_wire()]
        forged = dns.message.make_query(query.question[0].name.to_text().lower(), "A", id=query.id)
        return [answer(forged, "A 192.0.2.66").to_wire(), answer(query, "A 192.0.2.2").to_wire()]

    up = upstream(script)
    server = serve(
        block(f"forward . {up.address} {{\n case_randomization\n health_check 0.5s domain health.example.org\n }}")
    )
    retries = total("kdns_upstream_mismatch_retries_total")
    for i in range(3):
        assert data(server.ask(f"x{i}.a-long-name.example.org.")) == ["192.0.2.1"]
    assert up.protos == ["udp", "tcp"] * 3 and total("kdns_upstream_mismatch_retries_total") - retries == 3


def test_a_reply_without_question_has_no_case(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: [struct.pack("!HH8x", query.id, 0x8105)])
    server = serve(block(f"forward . {up.address} {{\n case_randomization\n }}"))
    assert code(server.ask("some-long-name.example.org.")) == "REFUSED" and set(up.protos) == {"udp"}


def test_an_upstream_that_folds_case_is_not_down_for_its_probes(serve: Serve, upstream: Start) -> None:
    broken = threading.Event()

    def script(query: dns.message.Message, proto: str) -> Any:
        if broken.is_set():
            return None
        name = query.question[0].name.to_text().lower()
        folded = dns.message.make_query(name, query.question[0].rdtype, id=query.id)
        return answer(folded if proto == "udp" else query, *(["A 192.0.2.1"] if "health" not in name else []))

    options = "case_randomization\n health_check 50ms domain health.a-long-name.example.org\n read_timeout 100ms"
    server = serve(block(f"forward . {upstream(script).address} {{\n {options}\n }}"))
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    broken.set()
    assert code(server.ask("one.a-long-name.example.org.")) == "SERVFAIL"
    eventually(lambda: forwarder.upstreams[0].down())
    broken.clear()
    eventually(lambda: not forwarder.upstreams[0].down())
    assert data(server.ask("two.a-long-name.example.org.")) == ["192.0.2.1"]
