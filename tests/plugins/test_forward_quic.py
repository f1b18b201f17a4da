"""Upstreams over QUIC (RFC 9250): what goes out, what is verified and kept, and what a broken one comes to."""

import gc
import os
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import pytest
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from kdns import extras
from kdns.corefile import CorefileError
from kdns.net.quic_connection import QuicConnection
from kdns.testing import Server, answer, code, data, eventually, free_port
from tests.fixtures import Serve
from tests.quicpeers import Http3Upstream, Upstream, forward_to
from tests.securepeers import Authority, Script, Site

Begin = Callable[..., Upstream]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def upstream(authority: Authority, tmp_path: Path) -> Iterator[Begin]:
    made: list[Upstream] = []

    def start(script: Script | None = None, raw: Callable[[bytes], bytes] | None = None) -> Upstream:
        made.append(Upstream(authority, tmp_path, script or (lambda query: answer(query, "A 192.0.2.1")), raw))
        return made[-1]

    yield start
    for each in made:
        each.close()


forward = partial(forward_to, "quic")


def test_queries_go_out_with_the_id_0_on_streams_of_one_connection(
    serve: Serve, upstream: Begin, authority: Authority
) -> None:
    up = upstream()
    server = serve(forward(up.port, authority))
    for i in range(5):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]
    assert len(up.connections) == 1 and [query.id for query in up.queries] == [0] * 5
    assert all(int.from_bytes(wire[:2], "big") == len(wire) - 2 for wire in up.wires)


def test_kdns_asks_kdns_over_quic_for_what_fits_in_no_datagram(serve: Serve, tmp_path: Path) -> None:
    site = Site(tmp_path)
    records = "".join(f"192.0.2.{i} big.example.org\n" for i in range(250))
    (tmp_path / "hosts").write_text(records)
    below = serve(site.block(scheme="quic").replace("/nowhere", str(tmp_path / "hosts")))
    above = serve(forward(below.port, site.authority))
    assert len(data(above.ask("big.example.org.", tcp=True))) == 250


def test_an_upstream_that_ended_a_connection_in_good_order_as_it_began_cost_a_query(
    serve: Serve, upstream: Begin, authority: Authority
) -> None:
    """Until the handshake is confirmed it can say so only by a code of QUIC's own (RFC 9000, section 10.2.3)."""

    def script(query: dns.message.Message) -> dns.message.Message | None:
        if len(up.connections) > 1:
            return answer(query, "A 192.0.2.1")
        up.connections[0]._quic.close(QuicErrorCode.APPLICATION_ERROR, frame_type=QuicFrameType.PADDING)
        return None

    up = upstream(script)
    server = serve(forward(up.port, authority))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    assert len(up.connections) == len(up.queries) == 2


@pytest.mark.parametrize("scheme", ["quic", "https3"])
@pytest.mark.parametrize("answered", [True, False])
def test_an_upstream_that_had_forgotten_a_connection_cost_a_query(
    serve: Serve, tmp_path: Path, scheme: str, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so by a stateless reset (RFC 9000, section 10.3), which was read as a packet that is damaged."""
    site = Site(tmp_path)
    below = serve(site.block(scheme=scheme))
    listener = next(iter(below.server.listeners.values())).tcp[0]
    above = serve(forward_to(scheme, below.port, site.authority, "max_connect_attempts 1", "max_fails 0"))
    if answered:
        assert data(above.ask("a.example.org.")) == ["192.0.2.1"]
        below.thread.call(lambda: [each.forget() for each in set(listener.by_id.values())])
    else:  # it forgets as soon as it has begun
        begin, forgotten = QuicConnection._begin, []

        def forget(self: QuicConnection) -> None:
            begin(self)
            if not forgotten:
                forgotten.append(True)
                self.transmit()
                self.forget()

        monkeypatch.setattr(QuicConnection, "_begin", forget)
    assert data(above.ask("a.example.org.")) == ["192.0.2.1"]
    assert listener.reset[0]


def test_what_ends_with_the_token_of_another_connection_ends_none(
    serve: Serve, upstream: Begin, authority: Authority
) -> None:
    up = upstream()
    server = serve(forward(up.port, authority))
    assert code(server.ask("a.org.")) == "NOERROR"
    served, other = up.connections[0], os.urandom(16)
    for datagram in (b"\x40" + bytes(30) + other, other[:16], b"\xc0" + bytes(30) + other):
        up.thread.call(served._transport.sendto, datagram, served._quic.get_peer_address())
    assert code(server.ask("b.org.")) == "NOERROR"
    assert len(up.connections) == 1


def test_a_certificate_for_another_name_is_servfail_and_said_so(
    serve: Serve, upstream: Begin, authority: Authority, lines: list[str]
) -> None:
    server = serve(forward(upstream().port, authority, name="other.example.net"))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    assert any("dial quic" in line and "Hostname mismatch" in line for line in lines), lines


def test_nobody_there_is_said_at_once(serve: Serve, authority: Authority, lines: list[str]) -> None:
    server = serve(forward(free_port(), authority, "max_connect_attempts 1"))
    began = time.monotonic()
    assert code(server.ask("x.org.")) == "SERVFAIL"
    assert any("dial quic" in line and "connection refused" in line for line in lines), lines
    assert time.monotonic() - began < 1.5


def test_a_connection_the_upstream_closed_costs_nothing(serve: Serve, upstream: Begin, authority: Authority) -> None:
    up = upstream()
    server = serve(forward(up.port, authority))
    assert code(server.ask("a.org.")) == "NOERROR"
    up.drop()
    assert code(server.ask("b.org.")) == "NOERROR"
    assert len(up.connections) == 1  # the list was cleared: it is another


def test_a_silent_connection_is_left_with_the_first_query_that_times_out(
    serve: Serve, upstream: Begin, authority: Authority
) -> None:
    up = upstream()
    server = serve(forward(up.port, authority, "read_timeout 300ms", "max_connect_attempts 1", "max_fails 0"))
    assert code(server.ask("a.org.")) == "NOERROR"
    up.deaf = True
    assert code(server.ask("b.org.")) == "SERVFAIL"
    up.deaf = False
    assert code(server.ask("c.org.")) == "NOERROR"
    assert len(up.connections) == 2


@pytest.mark.parametrize(
    "raw",
    [
        lambda reply: b"\0\1" + reply,
        lambda reply: len(reply).to_bytes(2, "big") + reply[:-1],
        lambda reply: b"",
        lambda reply: len(reply).to_bytes(2, "big") + b"\0\1" + reply[2:],
    ],
    ids=["another length", "cut", "empty", "an id"],
)
def test_a_malformed_reply_ends_the_connection_with_a_protocol_error(
    serve: Serve, upstream: Begin, authority: Authority, lines: list[str], raw: Callable[[bytes], bytes]
) -> None:
    up = upstream(raw=raw)
    server = serve(forward(up.port, authority, "max_connect_attempts 1", "max_fails 0"))
    assert code(server.ask("a.org.")) == "SERVFAIL"
    assert any("the reply is malformed" in line for line in lines), lines
    eventually(lambda: up.ended == [2])


def test_a_reply_to_another_question_is_not_taken(
    serve: Serve, upstream: Begin, authority: Authority, lines: list[str]
) -> None:
    def other(query: dns.message.Message) -> dns.message.Message:
        return answer(dns.message.make_query("other.org.", "A", id=query.id), "A 192.0.2.9")

    up = upstream(other)
    server = serve(forward(up.port, authority, "max_connect_attempts 1", "max_fails 0"))
    assert code(server.ask("a.org.")) == "SERVFAIL"
    assert any("the reply is to another question" in line for line in lines), lines


def test_a_connection_is_closed_when_it_is_idle_or_too_old(serve: Serve, upstream: Begin, authority: Authority) -> None:
    up = upstream()
    server = serve(forward(up.port, authority, "expire 1s"))
    assert code(server.ask("a.org.")) == "NOERROR"
    eventually(lambda: up.ended == [0])
    assert code(server.ask("b.org.")) == "NOERROR"


@pytest.mark.parametrize(("scheme", "kind"), [("quic", Upstream), ("https3", Http3Upstream)])
def test_a_connection_that_was_closed_stayed_for_ever(
    serve: Serve, authority: Authority, tmp_path: Path, scheme: str, kind: Callable[..., Upstream]
) -> None:
    """It held itself. What is frozen while it lives is looked at by no collection (server.gc_policy)."""
    up = kind(authority, tmp_path, lambda query: answer(query, "A 192.0.2.1"))
    server = serve(forward_to(scheme, up.port, authority, "expire 1s"))
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    pool = forwarder.upstreams[0].tcp
    assert code(server.ask("a.org.")) == "NOERROR"
    old = [weakref.ref(each) for each in (pool.open[0], pool.open[0].quic, pool.open[0].quic.tls)]
    gc.disable()
    try:
        eventually(lambda: not any(each() for each in old))
    finally:
        gc.enable()
        up.close()


def test_an_upstream_that_is_back_is_found_by_its_probes(serve: Serve, upstream: Begin, authority: Authority) -> None:
    up = upstream()
    options = ("read_timeout 200ms", "max_fails 1", "health_check 100ms", "failfast_all_unhealthy_upstreams")
    server: Server = serve(forward(up.port, authority, *options))
    up.deaf = True
    eventually(lambda: code(server.ask("a.org.")) == "SERVFAIL")
    up.deaf = False
    eventually(lambda: code(server.ask("b.org.")) == "NOERROR")


def test_many_queries_at_once_share_a_connection(serve: Serve, upstream: Begin, authority: Authority) -> None:
    """Twice as many as aioquic's server lets be open at a time."""
    up = upstream()
    server = serve(forward(up.port, authority))
    replies = 0
    with server.connect() as sock:
        for i in range(256):
            wire = dns.message.make_query(f"x{i}.org.", "A").to_wire()
            sock.sendall(len(wire).to_bytes(2, "big") + wire)
        file = sock.makefile("rb")
        while replies < 256:
            reply = dns.message.from_wire(file.read(int.from_bytes(file.read(2), "big")))
            assert data(reply) == ["192.0.2.1"]
            replies += 1
    assert len(up.connections) == 1


def test_quic_without_its_library_is_an_error_with_its_place(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorefileError, match=r":4:.*quic://127.0.0.1:853 needs .* pip install 'kdns\[quic\]'"):
        serve(forward(853, authority))
