"""One question over UDP: what is forged is not taken, and the wait has an end, on asyncio's loop and on uvloop."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dns.message
import dns.opcode
import dns.rcode
import pytest
import uvloop

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.query import Question
from kdns.upstream import oneshot
from kdns.upstream.exchange import UpstreamError

QUESTION = Question(b"\1x\3org\0", iana.A)
QUERY = pack_query(0, QUESTION)
Peer = Callable[[socket.socket, bytes, Any], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Answer]]:
    """Asks a server, whose reply is what `peer` sends, on each loop."""
    threads: list[threading.Thread] = []

    def start(
        peer: Peer, query: bytes = QUERY, timeout: float = 10.0, source: str = "", host: str = "127.0.0.1"
    ) -> Answer:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, 0))

        def serve() -> None:
            with sock:
                peer(sock, *sock.recvfrom(4096))

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        with asyncio.Runner(loop_factory=request.param) as runner:
            port = sock.getsockname()[1]
            return runner.run(oneshot.ask(query, QUESTION, host, port, timeout=timeout, source=source))

    yield start
    for thread in threads:
        thread.join(10)


def reply_to(query: bytes, address: str = "192.0.2.1") -> bytes:
    message = dns.message.make_response(dns.message.from_wire(query))
    if message.opcode() == dns.opcode.QUERY:
        message.answer.append(dns.rrset.from_text("x.org.", 60, "IN", "A", address))
    return message.to_wire()


def forged(query: bytes) -> list[bytes]:
    """What is not a reply to a query."""
    right = reply_to(query, "198.51.100.66")
    other = dns.message.make_response(
        dns.message.make_query("y.org.", "A", id=dns.message.from_wire(query).id)
    ).to_wire()
    return [
        b"", b"x", query, bytes((right[0] ^ 1,)) + right[1:], other, right[:-1],
        *(right[:2] + bytes((right[2] ^ 0x20,)) + right[3:],
            right.replace(b"\1x\3org\0\0\1", b"\1x\3org\0\0\x1c")) * 10,
    ]  # fmt: skip


@pytest.mark.parametrize(("host", "source"), [("127.0.0.1", ""), ("127.0.0.1", "127.0.0.9"), ("::1", "")])
def test_forged_replies_are_not_taken_however_many(run: Callable[..., Answer], host: str, source: str) -> None:
    def peer(sock: socket.socket, query: bytes, client: Any) -> None:
        assert not source or client[0] == source
        for data in forged(query):
            sock.sendto(data, client)
        time.sleep(0.3)
        sock.sendto(reply_to(query), client)

    answer = run(peer, host=host, source=source)
    assert answer.rcode == 0 and b"\xc0\0\2\1" in b"".join(rdata for rrset in answer.answer for rdata in rrset.rdatas)


@pytest.mark.parametrize("source", ["", "127.0.0.9"])
def test_a_reply_from_another_address_is_not_taken(run: Callable[..., Answer], source: str) -> None:
    def peer(sock: socket.socket, query: bytes, client: Any) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.2", 0))
            other.sendto(reply_to(query, "198.51.100.66"), client)
        time.sleep(0.3)
        message = dns.message.make_response(dns.message.from_wire(query))
        message.set_rcode(dns.rcode.REFUSED)
        sock.sendto(message.to_wire(), client)

    assert run(peer, source=source).rcode == iana.REFUSED


def test_ids_are_not_to_be_guessed_and_the_wait_has_an_end(run: Callable[..., Answer]) -> None:
    ids: set[bytes] = set()

    def peer(sock: socket.socket, query: bytes, client: Any) -> None:
        ids.add(query[:2])
        for data in forged(query):
            sock.sendto(data, client)

    for _ in range(3):
        with pytest.raises(UpstreamError, match=r"read udp 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+: i/o timeout"):
            run(peer, timeout=0.3)
    assert len(ids) > 1


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_where_nobody_listens_the_wait_ends_at_once(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    began = time.monotonic()
    with asyncio.Runner(loop_factory=loop) as runner, pytest.raises(UpstreamError, match="read: connection refused"):
        runner.run(oneshot.ask(QUERY, QUESTION, "127.0.0.1", 1, timeout=60.0))
    assert time.monotonic() - began < 30


def test_a_notify_is_answered_by_a_notify(run: Callable[..., Answer]) -> None:
    def peer(sock: socket.socket, query: bytes, client: Any) -> None:
        right = reply_to(query)
        sock.sendto(right[:2] + bytes((right[2] & 0x87,)) + bytes((iana.NOTIMP,)) + right[4:], client)  # of a query
        time.sleep(0.2)
        sock.sendto(right, client)

    assert run(peer, query=QUERY[:2] + b"\x24\0" + QUERY[4:]).rcode == iana.NOERROR
