"""Upstreams over TLS and HTTPS: what is verified, what is kept, and what a broken one comes to."""

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest
import trustme

from kdns.corefile import CorefileError
from kdns.testing import answer, code, data, eventually
from kdns.testing.upstream import soa
from tests import programs
from tests.fixtures import Serve, Start
from tests.securepeers import Authority, Doh, Dot, Peer, Script


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def peer(authority: Authority) -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def start(kind: str, script: Script | None = None, *names: str, alpn: str = "h2", **options: str) -> Peer:
        play = script or (lambda query: answer(query, "A 192.0.2.1"))
        context = authority.context(*(names or ("dns.example.net",)), alpn=alpn if kind == "https" else "")
        each = Peer(context, lambda owner: Doh(owner, play, **options) if kind == "https" else Dot(owner, play))
        made.append(each)
        return each

    yield start
    for each in made:
        each.close()


Begin = Callable[..., Peer]


def forward(to: str, *options: str) -> str:
    return ".:{port} {\n bind 127.0.0.1\n errors\n forward . " + to + " {\n " + "\n ".join(options) + "\n }\n}"


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_an_encrypted_upstream_is_verified_by_name_and_its_connection_kept(
    serve: Serve, peer: Begin, authority: Authority, kind: str
) -> None:
    up = peer(kind)
    server = serve(forward(f"{kind}://127.0.0.1:{up.port}", f"tls {authority.path}", "tls_servername dns.example.net"))
    for i in range(5):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]
    assert up.names == ["dns.example.net"] and len(up.connections) == 1 and len(up.queries) == 5
    # Each upstream may have a name of its own.
    server = serve(forward(f"{kind}://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}"))
    assert data(server.ask("y.org.")) == ["192.0.2.1"]


@pytest.mark.parametrize("kind", ["tls", "https"])
@pytest.mark.parametrize(("options", "expected"), [
    (["tls_servername dns.example.net"], "certificate verify failed"),  # an authority nobody here knows
    (["tls {ca}", "tls_servername other.example.net"], "ostname"),
    (["tls {ca}"], "IP address mismatch"),
])  # fmt: skip
def test_a_bad_certificate_is_servfail_and_said_so(
    serve: Serve, peer: Begin, authority: Authority, lines: list[str], kind: str, options: list[str], expected: str
) -> None:
    up = peer(kind)
    server = serve(
        forward(f"{kind}://127.0.0.1:{up.port}", *(option.replace("{ca}", str(authority.path)) for option in options))
    )
    assert code(server.ask("x.org.")) == "SERVFAIL" and not up.queries
    eventually(lambda: any("plugin/errors: 2 x.org. A" in line and expected in line for line in lines))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_https_asks_as_rfc_8484_says(serve: Serve, peer: Begin, authority: Authority, method: str) -> None:
    up = peer("https")
    where = f"https://127.0.0.1%dns.example.net:{up.port}"
    server = serve(forward(where, f"tls {authority.path}", f"doh_method {method}"))
    assert data(server.ask("x.org.", use_edns=0, want_dnssec=True)) == ["192.0.2.1"]
    request = up.requests[0]
    assert request[":method"] == method and request[":path"].split("?")[0] == "/dns-query"
    assert request[":authority"] == f"dns.example.net:{up.port}" and request["accept"] == "application/dns-message"
    assert up.queries[0].id == 0 and up.queries[0].ednsflags & 0x8000


def test_https_asks_many_at_once_on_one_connection(serve: Serve, peer: Begin, authority: Authority) -> None:
    up = peer("https")
    server = serve(forward(f"https://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}"))
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda i=i: found.append(data(server.ask(f"x{i}.org.")))) for i in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["192.0.2.1"]] * 150 and len(up.connections) == 1


def test_what_an_https_upstream_took_on_before_its_goodbye_was_asked_again(
    serve: Serve, peer: Begin, authority: Authority
) -> None:
    """RFC 9113, section 6.8: streams up to the one that GOAWAY names are still answered."""
    made: list[Peer] = []

    def leaves(query: dns.message.Message) -> dns.message.Message:
        made[0].connections[-1].write(b"\0\0\x08\7\0\0\0\0\0" + (1).to_bytes(4, "big") + bytes(4))
        return answer(query, "A 192.0.2.1")

    up = peer("https", leaves)
    made.append(up)
    server = serve(forward(f"https://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}"))
    for number in (1, 2):
        assert data(server.ask(f"x{number}.org.")) == ["192.0.2.1"]
        assert len(up.queries) == len(up.connections) == number


@pytest.mark.parametrize(("options", "expected"), [
    ({"status": "503"}, "HTTP status 503"), ({"content": "text/html"}, "is not application/dns-message"),
    ({"alpn": "http/1.1"}, "does not speak HTTP/2"),
])  # fmt: skip
def test_what_an_https_upstream_does_wrong_is_said(
    serve: Serve, peer: Begin, authority: Authority, lines: list[str], options: dict[str, str], expected: str
) -> None:
    up = peer("https", **options)
    server = serve(forward(f"https://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}", "health_check 10s"))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    eventually(lambda: any(expected in line for line in lines))


def test_an_https_reply_to_another_question_is_not_taken(
    serve: Serve, peer: Begin, authority: Authority, lines: list[str]
) -> None:
    def other(query: dns.message.Message) -> dns.message.Message:
        return answer(dns.message.make_query("other.org.", "A"), "A 192.0.2.66")

    up = peer("https", other)
    server = serve(forward(f"https://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}"))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    eventually(lambda: any("the reply is to another question" in line for line in lines))


@pytest.mark.parametrize(("age", "left"), [
    ("", (300, 60)), ("50", (250, 10)), (" 50", (250, 10)), ("301", (0, 0)), ("9" * 5000, (0, 0)), ("0", (300, 60)),
    ("-5", (300, 60)), ("soon", (300, 60)), ("5, 6", (300, 60)), ("٥", (300, 60)),
])  # fmt: skip
def test_the_time_that_a_reply_had_been_in_a_cache_of_http_was_not_taken_off_its_ttls(
    serve: Serve, peer: Begin, authority: Authority, age: str, left: tuple[int, int]
) -> None:
    """RFC 8484, section 5.1: a client must, for the field Age says how old the TTLs are."""

    def script(query: dns.message.Message) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.1", ttl=300)
        if query.question[0].name.to_text().startswith("none."):
            reply = soa(answer(query), "org.", 600, 60)
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply

    up = peer("https", script, age=age, content="Application/DNS-Message")
    server = serve(forward(f"https://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}"))
    reply, denial = server.ask("x.org.", use_edns=0), server.ask("none.org.")
    assert (reply.answer[0].ttl, min(denial.authority[0].ttl, 60)) == left
    assert data(reply) == ["192.0.2.1"] and reply.edns == 0


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_a_connection_the_upstream_closed_costs_nothing(
    serve: Serve, peer: Begin, authority: Authority, kind: str
) -> None:
    up = peer(kind)
    server = serve(forward(f"{kind}://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}"))
    for i in range(3):
        assert data(server.ask(f"x{i}.org.")) == ["192.0.2.1"]
        up.drop()
    assert len(up.queries) == 3


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_an_upstream_that_takes_queries_and_says_nothing_times_out(
    serve: Serve, peer: Begin, authority: Authority, kind: str
) -> None:
    mute = peer(kind, lambda query: None)
    good = peer(kind)
    server = serve(forward(
        f"{kind}://127.0.0.1%dns.example.net:{mute.port} {kind}://127.0.0.1%dns.example.net:{good.port}",
        f"tls {authority.path}", "policy sequential", "read_timeout 300ms",
    ))  # fmt: skip
    began = time.monotonic()
    assert data(server.ask("x.org.")) == ["192.0.2.1"] and time.monotonic() - began < 1.9


def test_a_client_certificate_is_shown(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    import ssl

    context = authority.context("dns.example.net")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(context)
    mine = authority.ca.issue_cert("client.example.net")
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    up = Peer(context, lambda owner: Dot(owner, lambda query: answer(query, "A 192.0.2.1")))
    try:
        where = f"tls://127.0.0.1%dns.example.net:{up.port}"
        server = serve(forward(where, f"tls {tmp_path / 'cert.pem'} {tmp_path / 'key.pem'} {authority.path}"))
        assert data(server.ask("x.org.")) == ["192.0.2.1"]
        server = serve(forward(where, f"tls {authority.path}"))
        assert code(server.ask("x.org.")) == "SERVFAIL"
    finally:
        up.close()


def test_an_authority_that_vanishes_keeps_the_last_good_one(
    serve: Serve, peer: Begin, authority: Authority, lines: list[str]
) -> None:
    up = peer("tls")
    text = forward(f"tls://127.0.0.1%dns.example.net:{up.port}", f"tls {authority.path}")
    server = serve(text)
    assert data(server.ask("a.org.")) == ["192.0.2.1"]
    authority.path.unlink()
    up.drop()
    assert data(server.ask("b.org.")) == ["192.0.2.1"]
    assert not server.reload(text + "\n")  # a new configuration needs it: the old one serves on
    assert data(server.ask("c.org.")) == ["192.0.2.1"]
    eventually(lambda: any("ca.pem" in line for line in lines))


@pytest.mark.parametrize("text", ["not a certificate", ""])
def test_a_broken_authority_is_named_with_its_place(serve: Serve, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.pem").write_text(text)
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+.*tls .*bad.pem"):
        serve(forward("tls://127.0.0.1", f"tls {tmp_path / 'bad.pem'}"))


@pytest.mark.parametrize("to", ["tls://127.0.0.1", "https3://127.0.0.1"])
@pytest.mark.parametrize("files", ["pipe", "pipe pipe", "good.pem good.pem pipe"])
def test_a_pipe_as_a_certificate_kept_the_start_waiting_for_ever(
    serve: Serve, authority: Authority, tmp_path: Path, to: str, files: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    shutil.copy(authority.path, tmp_path / "good.pem")
    paths = " ".join(str(tmp_path / name) for name in files.split())
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+.*tls .*it is not a regular file: '.*/pipe'"):
        serve(forward(to, f"tls {paths}"))


def test_a_path_in_an_https_upstream_is_an_error(serve: Serve) -> None:
    with pytest.raises(CorefileError, match="has a path"):
        serve(forward("https://127.0.0.1/resolve"))


def test_a_half_open_tcp_connection_ends_in_time_and_the_next_upstream_answers(serve: Serve, upstream: Start) -> None:
    """It is accepted by the kernel; nobody ever reads."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen(64)
        good = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
        server = serve(
            forward(
                f"127.0.0.1:{dead.getsockname()[1]} {good.address}",
                "force_tcp",
                "policy sequential",
                "read_timeout 200ms",
            )
        )
        began = time.monotonic()
        assert data(server.ask("x.org.")) == ["192.0.2.1"] and time.monotonic() - began < 1.9


@pytest.mark.skipif(shutil.which("unbound") is None, reason="unbound is not installed")
@pytest.mark.parametrize("kind", ["tls", "https"])
def test_a_real_unbound_is_asked_over_tls_and_https(
    serve: Serve, authority: Authority, tmp_path: Path, kind: str
) -> None:
    cert: trustme.LeafCert = authority.ca.issue_cert("dns.example.net")
    cert.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))

    def words(port: int) -> list[str]:
        (tmp_path / "unbound.conf").write_text(f"""
server:
  interface: 127.0.0.1@{port}
  {"tls-port" if kind == "tls" else "https-port"}: {port}
  tls-service-key: "{tmp_path / "key.pem"}"
  tls-service-pem: "{tmp_path / "cert.pem"}"
  username: ""
  chroot: ""
  directory: "{tmp_path}"
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  local-zone: "example.org." static
  local-data: "www.example.org. 60 IN A 192.0.2.7"
remote-control:
  control-enable: no
""")
        return ["unbound", "-c", str(tmp_path / "unbound.conf")]

    with programs.running(tmp_path / "unbound", words) as program:
        server = serve(forward(f"{kind}://127.0.0.1%dns.example.net:{program.port}", f"tls {authority.path}"))
        program.until(lambda: data(server.ask("www.example.org.")) == ["192.0.2.7"])
        assert code(server.ask("nope.example.org.")) == "NXDOMAIN"


def where(kind: str, to: str, authority: Authority) -> str:
    options = ["read_timeout 300ms", "max_connect_attempts 1", "max_fails 0"]
    options += ["force_tcp"] if kind == "dns" else [f"tls {authority.path}", "tls_servername dns.example.net"]
    return forward(f"{kind}://{to}", *options)


@pytest.mark.parametrize("kind", ["dns", "tls", "https"])
def test_a_time_out_over_a_connection_did_not_say_which(
    serve: Serve, upstream: Start, peer: Begin, authority: Authority, lines: list[str], kind: str
) -> None:
    """Patterns such as `read tcp (.*)->(.*): i/o timeout` are what logs of CoreDNS are searched for."""

    def late(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.8)
        return answer(query, "A 192.0.2.1")

    to = f"127.0.0.1:{(upstream(late) if kind == 'dns' else peer(kind, lambda query: None)).port}"
    server = serve(where(kind, to, authority))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    proto = "https" if kind == "https" else "tcp"
    pattern = rf"plugin/errors: 2 x.org. A: read {proto} 127\.0\.0\.1:\d+->{to}: i/o timeout$"
    assert any(re.search(pattern, line) for line in lines), lines


@pytest.mark.parametrize("kind", ["dns", "tls", "https"])
def test_a_connection_that_is_closed_says_which(
    serve: Serve, upstream: Start, peer: Begin, authority: Authority, lines: list[str], kind: str
) -> None:
    made: list[Peer] = []

    def closes(query: dns.message.Message) -> None:
        for transport in made[0].connections:
            transport.close()

    if kind == "dns":
        to = upstream(lambda query, proto: None).address
    else:
        made.append(peer(kind, closes))
        to = f"127.0.0.1:{made[0].port}"
    server = serve(where(kind, to, authority))
    assert code(server.ask("x.org.")) == "SERVFAIL"
    proto = "https" if kind == "https" else "tcp"
    pattern = rf"plugin/errors: 2 x.org. A: read {proto} 127\.0\.0\.1:\d+->{to}: \w"
    assert any(re.search(pattern, line) for line in lines), lines


@pytest.mark.parametrize("kind", ["dns", "tls", "https"])
def test_a_connection_that_does_not_come_about_is_no_time_out_of_reading(
    serve: Serve, authority: Authority, lines: list[str], kind: str
) -> None:
    with socket.socket() as full:
        # Nobody accepts, and the queue is full: the connection is never made, or never secured.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        to = f"127.0.0.1:{full.getsockname()[1]}"
        others = [socket.socket() for _ in range(3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        server = serve(where(kind, to, authority))
        assert code(server.ask("x.org.")) == "SERVFAIL"
        for other in others:
            other.close()
    proto = "https" if kind == "https" else "tcp"
    assert any(f"x.org. A: dial {proto} {to}: i/o timeout" in line for line in lines), lines
