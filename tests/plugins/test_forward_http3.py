"""Upstreams over HTTP/3: what goes out, what is verified and kept, and what a broken one comes to."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dns.message
import pytest
from aioquic.h3.connection import H3Connection

from kdns import extras
from kdns.corefile import CorefileError
from kdns.testing import answer, code, data, eventually
from tests.fixtures import Serve
from tests.quicpeers import Http3Upstream, forward_to
from tests.securepeers import Authority, Script, Site

Respond = Callable[[H3Connection, int, bytes], None]
Begin = Callable[..., Http3Upstream]
MESSAGE = b"application/dns-message"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def upstream(authority: Authority, tmp_path: Path) -> Iterator[Begin]:
    made: list[Http3Upstream] = []

    def start(script: Script | None = None, respond: Respond | None = None) -> Http3Upstream:
        script = script or (lambda query: answer(query, "A 192.0.2.1"))
        made.append(Http3Upstream(authority, tmp_path, script, respond))
        return made[-1]

    yield start
    for each in made:
        each.close()


forward = partial(forward_to, "https3")


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_queries_go_out_with_the_id_0_as_requests_of_one_connection(
    serve: Serve, upstream: Begin, authority: Authority, method: str
) -> None:
    up = upstream()
    server = serve(forward(up.port, authority, f"doh_method {method}"))
    for i in range(5):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]
    assert len(up.connections) == 1 and [query.id for query in up.queries] == [0] * 5
    fields = up.requests[0]
    assert fields[b":method"] == method.encode() and fields[b":scheme"] == b"https" and fields[b"accept"] == MESSAGE
    assert fields[b":authority"] == f"dns.example.net:{up.port}".encode()


def test_kdns_asks_kdns_over_http3_for_what_fits_in_no_datagram(serve: Serve, tmp_path: Path) -> None:
    site = Site(tmp_path)
    records = "".join(f"192.0.{i >> 8}.{i & 255} big.example.org\n" for i in range(3000))
    (tmp_path / "hosts").write_text(records)
    below = serve(site.block(scheme="https3").replace("/nowhere", str(tmp_path / "hosts")))
    above = serve(forward(below.port, site.authority))
    assert len(data(above.ask("big.example.org.", tcp=True))) == 3000


def test_a_certificate_for_another_name_is_servfail_and_said_so(
    serve: Serve, upstream: Begin, authority: Authority, lines: list[str]
) -> None:
    server = serve(forward(upstream().port, authority, name="other.example.net"))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    assert any("dial https3" in line and "Hostname mismatch" in line for line in lines), lines


def test_an_upstream_that_speaks_only_doq_is_servfail_and_said_so(
    serve: Serve, authority: Authority, tmp_path: Path, lines: list[str]
) -> None:
    site = Site(tmp_path)
    below = serve(site.block(scheme="quic"))
    server = serve(forward(below.port, site.authority, "max_connect_attempts 1"))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    assert any("dial https3" in line and "No common ALPN" in line for line in lines), lines


def test_a_connection_the_upstream_closed_costs_nothing(serve: Serve, upstream: Begin, authority: Authority) -> None:
    up = upstream()
    server = serve(forward(up.port, authority))
    assert code(server.ask("a.org.")) == "NOERROR"
    up.drop(0x100)
    assert code(server.ask("b.org.")) == "NOERROR"
    assert len(up.connections) == 1  # the list was cleared: it is another


def _status(status: bytes, kind: bytes = MESSAGE) -> Respond:
    def respond(http: H3Connection, stream: int, reply: bytes) -> None:
        http.send_headers(stream, [(b":status", status), (b"content-type", kind)])
        http.send_data(stream, reply, end_stream=True)

    return respond


def _long(http: H3Connection, stream: int, reply: bytes) -> None:
    http.send_headers(stream, [(b":status", b"200"), (b"content-type", MESSAGE)])
    http.send_data(stream, bytes(200_000), end_stream=True)


def _endless(http: H3Connection, stream: int, reply: bytes) -> None:
    http._quic.send_stream_data(stream, b"\1\x80\x10\0\0" + bytes(200_000))  # fields that do not end


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        (_status(b"503"), "HTTP status 503"),
        (_status(b"200", b"text/html"), "the reply is not application/dns-message"),
        (_long, "the reply is too long"),
        (_endless, "the reply is too long"),
    ],
)
def test_what_is_no_reply_is_servfail_and_the_connection_stays(
    serve: Serve, upstream: Begin, authority: Authority, lines: list[str], respond: Respond, said: str
) -> None:
    up = upstream(respond=respond)
    server = serve(forward(up.port, authority, "max_connect_attempts 1", "max_fails 0"))
    for _ in range(3):
        assert code(server.ask("a.org.")) == "SERVFAIL"
    assert any(said in line for line in lines), lines
    assert len(up.connections) == 1


def test_interim_responses_and_trailers_are_passed_over(serve: Serve, upstream: Begin, authority: Authority) -> None:
    def respond(http: H3Connection, stream: int, reply: bytes) -> None:
        http.send_headers(stream, [(b":status", b"103")])
        http.send_headers(stream, [(b":status", b"200"), (b"content-type", MESSAGE)])
        http.send_data(stream, reply, end_stream=False)
        http.send_headers(stream, [(b"x-status", b"500")], end_stream=True)

    server = serve(forward(upstream(respond=respond).port, authority))
    assert data(server.ask("a.org.")) == ["192.0.2.1"]


def test_the_time_that_a_reply_had_been_in_a_cache_of_http_was_not_taken_off_its_ttls(
    serve: Serve, upstream: Begin, authority: Authority
) -> None:
    def respond(http: H3Connection, stream: int, reply: bytes) -> None:
        http.send_headers(stream, [(b":status", b"200"), (b"content-type", MESSAGE), (b"age", b"20")])
        http.send_data(stream, reply, end_stream=True)

    server = serve(forward(upstream(respond=respond).port, authority))
    assert server.ask("a.org.").answer[0].ttl == 40


def test_octets_beside_responses_are_bounded(serve: Serve, upstream: Begin, authority: Authority) -> None:
    def respond(http: H3Connection, stream: int, reply: bytes) -> None:
        uni = http._quic.get_next_available_stream_id(is_unidirectional=True)
        http._quic.send_stream_data(uni, b"\x21" + bytes(50_000))

    up = upstream(respond=respond)
    server = serve(forward(up.port, authority, "max_connect_attempts 1", "max_fails 0", "read_timeout 300ms"))
    assert code(server.ask("a.org.")) == "SERVFAIL"
    eventually(lambda: up.ended == [0x107])


def test_a_stream_that_is_reset_is_asked_again_once(serve: Serve, upstream: Begin, authority: Authority) -> None:
    def respond(http: H3Connection, stream: int, reply: bytes) -> None:
        if len(up.queries) == 1:
            http._quic.reset_stream(stream, 0x10B)
        else:
            _status(b"200")(http, stream, reply)

    up = upstream(respond=respond)
    server = serve(forward(up.port, authority))
    assert data(server.ask("a.org.")) == ["192.0.2.1"]
    assert len(up.queries) == 2


def test_a_silent_connection_is_left_with_the_first_query_that_times_out(
    serve: Serve, upstream: Begin, authority: Authority
) -> None:
    up = upstream()
    server = serve(forward(up.port, authority, "read_timeout 300ms", "max_connect_attempts 1", "max_fails 0"))
    assert code(server.ask("a.org.")) == "NOERROR"
    up.deaf = True
    began = time.monotonic()
    assert code(server.ask("b.org.")) == "SERVFAIL"
    assert time.monotonic() - began < 5
    up.deaf = False
    assert code(server.ask("c.org.")) == "NOERROR"
    assert len(up.connections) == 2


def test_many_queries_at_once_share_a_connection(serve: Serve, upstream: Begin, authority: Authority) -> None:
    """Twice as many as aioquic's server lets be open at a time."""
    up = upstream()
    server = serve(forward(up.port, authority))
    with server.connect() as sock:
        for i in range(256):
            wire = dns.message.make_query(f"x{i}.org.", "A").to_wire()
            sock.sendall(len(wire).to_bytes(2, "big") + wire)
        file = sock.makefile("rb")
        for _ in range(256):
            reply = dns.message.from_wire(file.read(int.from_bytes(file.read(2), "big")))
            assert data(reply) == ["192.0.2.1"]
    assert len(up.connections) == 1


def test_http3_without_its_library_is_an_error_with_its_place(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorefileError, match=r":4:.*https3://127.0.0.1:443 needs .* pip install 'kdns\[quic\]'"):
        serve(forward(443, authority))
