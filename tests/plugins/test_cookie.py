"""cookie: server cookies of RFC 9018, each client's own, whatever was asked before."""

import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.corefile import CorefileError
from kdns.plugins import cookie as cookie_module
from kdns.plugins.cookie import ACCEPTED, AHEAD, RENEWED, Cookies
from kdns.testing import Server, block, code, data
from tests.fixtures import Serve

HOSTS = "hosts /nowhere {\n 192.0.2.1 a.example.org\n 192.0.2.2 a.example.org\n 192.0.2.3 b.example.org\n }"
SECRET = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def cookies(clock: Clock, *secrets: bytes) -> Cookies:
    return Cookies(secrets or (SECRET,), "dns://test:53", clock)


def ask(server: Server, name: str, cookie: bytes, host: str = "127.0.0.1", **options: Any) -> dns.message.Message:
    """Asks from an address of the loopback network with a COOKIE option."""
    query = dns.message.make_query(name, "A", use_edns=0, options=[dns.edns.GenericOption(10, cookie)])
    send = dns.query.tcp if options.pop("tcp", False) else dns.query.udp
    return send(query, "127.0.0.1", port=server.port, timeout=3, source=host)


def given_back(reply: dns.message.Message) -> bytes:
    (found,) = (option for option in reply.options if option.otype == 10)
    return found.to_wire()  # type: ignore[no-any-return]


# RFC 9018, appendix A.


def test_the_cookies_are_those_of_the_rfcs_examples() -> None:
    clock = Clock(1559731985)
    make = cookies(clock)
    client = ("198.51.100.100", 53)
    first = bytes.fromhex("2464c4abcf10c957010000005cf79f111f8130c3eee29480")
    assert make(first[:8], client) == first
    clock.now = 1559734385  # forty minutes later it is still good, and replaced
    assert make(first, client).hex() == "2464c4abcf10c957010000005cf7a871d4a564a1442aca77"


def test_a_cookie_is_repeated_for_half_an_hour_and_replaced_after_it() -> None:
    clock = Clock(1_700_000_000)
    make = cookies(clock)
    client = ("2001:db8::1", 53, 0, 0)
    first = make(b"12345678", client)
    clock.now += RENEWED - 1
    assert make(first, client) == first
    clock.now += 2
    second = make(first, client)
    assert second != first and second[:8] == first[:8] and make(second, client) == second


@pytest.mark.parametrize("spoiled", ["address", "client", "hash", "version", "length", "old", "future", "secret"])
def test_a_cookie_that_is_not_good_is_replaced_and_counted(spoiled: str) -> None:
    clock = Clock(1_700_000_000)
    make, host = cookies(clock), "192.0.2.1"
    good = make(b"12345678", (host, 53))
    if spoiled == "address":
        host = "192.0.2.2"
    elif spoiled == "old":
        clock.now += ACCEPTED + 1
    elif spoiled == "future":
        clock.now -= AHEAD + 1
    elif spoiled == "secret":
        make = cookies(clock, bytes(16))
    sent = {
        "client": b"87654321" + good[8:],
        "hash": good[:-1] + bytes((good[-1] ^ 1,)),
        "version": good[:8] + b"\2" + good[9:],
        "length": good[:16],
    }.get(spoiled, good)
    bad = make.bad[0]
    assert make(sent, (host, 53)) != sent and make.bad[0] == bad + 1


def test_an_old_secret_is_accepted_and_makes_no_more() -> None:
    clock = Clock(1_700_000_000)
    old, new = bytes(16), b"\1" * 16
    client = ("192.0.2.1", 53)
    first = cookies(clock, old)(b"12345678", client)
    clock.now += 60
    rolled = cookies(clock, new, old)
    assert rolled(first, client) == first
    assert rolled(b"12345678", client) == cookies(clock, new)(b"12345678", client)


def test_what_is_remembered_is_bounded_and_so_is_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1_700_000_000)
    make = cookies(clock)
    made = [make(os.urandom(8), ("192.0.2.1", 53)) for _ in range(cookie_module.MOST_NEW + 10)]
    assert [bool(found) for found in made[-11:]] == [True] + [False] * 10
    clock.now += 1
    for second in range(30):
        clock.now += 1
        for _ in range(cookie_module.MOST_NEW):
            make(os.urandom(8), (f"192.0.2.{second}", 53))
    assert len(make.young) + len(make.old) <= 2 * cookie_module.REMEMBERED


# On the wire.


def test_each_client_gets_its_own_cookie_however_often_the_reply_is_repeated(serve: Serve) -> None:
    server = serve(block("cookie", HOSTS))
    seen: dict[tuple[str, bytes], set[bytes]] = {}
    for tcp in (False, True, False):
        for host in ("127.0.0.1", "127.0.0.2"):
            for own in (b"aaaaaaaa", b"bbbbbbbb"):
                for name in ("a.example.org.", "b.example.org.", "a.example.org.", "nx.example.org."):
                    found = given_back(ask(server, name, own, host, tcp=tcp))
                    assert len(found) == 24 and found[:8] == own
                    seen.setdefault((host, own), set()).add(found[16:])
    hashes = [found for each in seen.values() for found in each]
    assert len(hashes) == len(set(hashes))
    (dispatcher,) = server.server.instance.dispatchers.values()
    assert len(dispatcher.replies)  # the replies were repeated, not made anew


def test_a_good_cookie_comes_back_as_it_went_and_a_query_without_gets_none(serve: Serve) -> None:
    server = serve(block("cookie", HOSTS))
    good = given_back(ask(server, "a.example.org.", b"aaaaaaaa"))
    for _ in range(4):
        reply = ask(server, "a.example.org.", good)
        assert given_back(reply) == good and data(reply) == ["192.0.2.1", "192.0.2.2"]
        assert not server.ask("a.example.org.", use_edns=0).options
        assert server.ask("a.example.org.", use_edns=False).edns == -1


def test_a_client_may_ask_for_a_cookie_alone(serve: Serve) -> None:
    """RFC 7873, section 5.4; without the plugin it is a message without a question."""
    opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\x0c\0\x0a\0\x08abcdefgh"
    for plugin, expected in (("cookie", 0), ("debug", 1)):
        server = serve(block(plugin, HOSTS))
        for tail, rcode in ((opt, expected), (opt[:-1], 1), (b"\0\0\x29\x04\xd0\0\0\0\0\0\0", 1)):
            reply = server.raw(struct.pack("!6H", 7, 0x0100, 0, 0, 0, 1) + tail)
            assert reply is not None and reply[3] & 15 == rcode
            assert (b"\0\x0a\0\x18abcdefgh" in reply) == (rcode == 0)


def test_padding_of_a_reply_over_tcp_stays_padding(serve: Serve) -> None:
    server = serve(block("cookie", "nsid x", HOSTS))
    options = [dns.edns.GenericOption(code, body) for code, body in ((10, b"aaaaaaaa"), (3, b""), (12, b""), (11, b""))]
    for tcp in (True, False):
        for _ in range(4):
            reply = server.ask("a.example.org.", use_edns=0, options=options, tcp=tcp)
            codes = [option.otype for option in reply.options]
            assert codes == ([3, 11, 10] if tcp else [3, 10]) and given_back(reply)[:8] == b"aaaaaaaa"


@given(st.lists(st.tuples(st.sampled_from(["127.0.0.1", "127.0.0.3"]), st.sampled_from([b"a" * 8, b"b" * 8]),
                          st.sampled_from(["a.example.org.", "b.example.org.", "nx.example.org."])),
                          max_size=20))  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_no_client_ever_gets_another_ones_cookie(server: Server, asked: list[tuple[str, bytes, str]]) -> None:
    for host, own, name in asked:
        found = given_back(ask(server, name, own, host))
        assert given_back(ask(server, name, found, host)) == found


@pytest.fixture(scope="module")
def server() -> Any:
    with Server(block("cookie", HOSTS)) as started:
        yield started


@pytest.mark.dig
def test_dig_finds_the_cookie_good(serve: Serve) -> None:
    if shutil.which("dig") is None:
        pytest.skip("dig is not installed")
    server = serve(block("cookie", HOSTS))
    for _ in range(3):
        done = subprocess.run(
            ["dig", "@127.0.0.1", "-p", str(server.port), "+cookie", "b.example.org"], capture_output=True, text=True
        )
        assert "(good)" in done.stdout and "192.0.2.3" in done.stdout


# Configuration.


@pytest.mark.parametrize(("text", "expected"), [
    ("cookie x", "takes no arguments"), ("cookie {\n secret\n }", "expected a file"),
    ("cookie {\n secrets x\n }", "secret"), ("cookie {\n secret a\n secret b\n }", "stands twice"),
])  # fmt: skip
def test_what_cannot_be_read_says_where_and_why(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=expected):
        serve(block(text, HOSTS))


@pytest.mark.parametrize(
    "content", [None, b"", b"00" * 15, b"zz" * 16, b"\xff\xfe", b"00" * 16 + b" junk", b"0" * 5000]
)
def test_a_file_without_secrets_is_an_error(serve: Serve, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorefileError, match=r"secret cannot be read|does not hold secrets"):
        serve(block(f"cookie {{\n secret {path}\n }}", HOSTS))


def test_replicas_with_the_same_secret_take_each_others_cookies(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET.hex()}\n{bytes(16).hex()}\n")
    one, two = (serve(block(f"cookie {{\n secret {tmp_path}/secret\n }}", HOSTS)) for _ in range(2))
    made = given_back(ask(one, "a.example.org.", b"aaaaaaaa"))
    assert given_back(ask(two, "a.example.org.", made)) == made
    assert code(ask(two, "nx.example.org.", made)) in ("NXDOMAIN", "REFUSED", "SERVFAIL")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"\0" * 12, ("127.0.0.1", two.port))
