"""forward: host names among the upstreams, and what its words may be."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import pytest

from kdns.corefile import CorefileError
from kdns.testing import answer, data, free_port, soa
from kdns.upstream import lookup
from tests.cli.test_commands import kdns
from tests.fixtures import Serve, Start


def forward(to: str, *options: str) -> str:
    return f".:{{port}} {{\n bind 127.0.0.1\n forward . {to} {{\n " + "\n ".join(options) + "\n }\n}\n"


def names(*records: str, cut: bool = False) -> Callable[[dns.message.Message, str], dns.message.Message]:
    """A script that has these records for A, and for AAAA a denial; over UDP only a cut reply where `cut`."""

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        if query.question[0].rdtype == 28:
            return soa(answer(query))
        if cut and proto == "udp":
            reply = answer(query)
            reply.flags |= dns.flags.TC
            return reply
        return answer(query, *records)

    return script


@pytest.mark.parametrize("cut", [False, True])
def test_the_servers_that_resolver_names_were_never_asked(serve: Serve, upstream: Start, cut: bool) -> None:
    """The option was read, and the system's own resolver asked all the same."""
    up, resolver = upstream(names("A 192.0.2.1")), upstream(names("A 127.0.0.1", cut=cut))
    server = serve(forward(f"up.kdns.test:{up.port}", f"resolver {resolver.address}"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    assert {str(query.question[0].name) for query in resolver.queries} == {"up.kdns.test."}
    assert ("tcp" in resolver.protos) == cut


def test_the_next_server_is_asked_where_one_fails(
    serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(2)
        return reply

    monkeypatch.setattr(lookup, "TIMEOUT", 0.1)
    up, resolver = upstream(names("A 192.0.2.1")), upstream(names("A 127.0.0.1"))
    bad = f"127.0.0.1:{free_port()} {upstream(lambda query, proto: None).address} {upstream(broken).address}"
    server = serve(forward(f"up.kdns.test:{up.port}", f"resolver {bad} {resolver.address}"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    with pytest.raises(CorefileError, match=r"^Corefile:3:12: .*cannot be resolved: 127.0.0.1:\d+: SERVFAIL"):
        serve(forward("up.kdns.test", f"resolver {bad}"))
    nothing = upstream(lambda query, proto: soa(answer(query)))
    with pytest.raises(CorefileError, match="cannot be resolved: it has no address"):
        serve(forward("up.kdns.test", f"resolver {nothing.address}"))


@pytest.mark.parametrize("way", ["trickles", "closes"])
def test_a_server_whose_reply_trickles_over_tcp_was_waited_for_without_end(
    upstream: Start, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(lookup, "TIMEOUT", 0.3)
    up = upstream(names("A 127.0.0.1", cut=True), tcp=False)
    up.tcp.listen()
    stop = threading.Event()

    def slow() -> None:
        connection, _ = up.tcp.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(512)
            connection.sendall(b"\xff\xff")
            while way == "trickles" and not stop.wait(0.05):
                connection.sendall(b"x")

    thread = threading.Thread(target=slow, daemon=True)
    thread.start()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"timed out|closed the connection|reset"):
        lookup.look_up("up.kdns.test", [("127.0.0.1", up.port)])
    assert time.monotonic() - began < 5
    stop.set()
    thread.join()


def test_the_system_is_asked_for_absolute_names_after_its_own_hosts(
    serve: Serve, upstream: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = upstream(names("A 192.0.2.1"))
    asked: list[str] = []

    def getaddrinfo(host: str, *rest: Any, **named: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 53))]

    hosts = tmp_path / "hosts"
    hosts.write_text("# nothing\n127.0.0.1 other Mine.kdns.test # mine\n")
    monkeypatch.setattr(lookup, "HOSTS", str(hosts))
    monkeypatch.setattr(lookup.socket, "getaddrinfo", getaddrinfo)
    assert lookup.look_up("mine.kdns.test", ()) == ["127.0.0.1"] and not asked
    assert lookup.look_up("up.kdns.test", ()) == lookup.look_up("up.kdns.test.", ()) == ["127.0.0.1"]
    assert asked == ["up.kdns.test."] * 2
    monkeypatch.undo()
    monkeypatch.setattr(lookup, "HOSTS", str(hosts))
    assert data(serve(forward(f"mine.kdns.test:{up.port}")).ask("x.org.")) == ["192.0.2.1"]


@pytest.mark.parametrize(("to", "option", "said"), [
    ("sip://192.0.2.1", "", 'unknown scheme "sip"'), ("https://192.0.2.1/q", "", "has a path"),
    ("192.0.2.1:99999", "", '"99999" is not a port'), ("[::1]:x", "", '"x" is not a port'),
    ("tls://[::1]:0", "", '"0" is not a port'),
    ("192.0.2.1", "resolver one.org", "expected an IP address, with or without a port"),
    ("192.0.2.1", "resolver 192.0.2.2:dns", '"dns" is not a port'),
])  # fmt: skip
def test_what_can_be_no_upstream_is_found_without_loading(to: str, option: str, said: str) -> None:
    text = f". {{\n forward . {to} {{\n {option}\n }}\n}}\n"
    done = kdns("check", "-", stdin=text)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
