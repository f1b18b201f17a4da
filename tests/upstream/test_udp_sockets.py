"""The sockets of a UDP upstream: kept for the next query, few of them, and never a danger to it."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from kdns.deadlines import Deadlines
from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.query import Question
from kdns.upstream.exchange import Result
from kdns.upstream.udp import MAX_IDLE, UdpSockets

QUESTION = Question(b"\1a\3org\0", 1)
QUERY = pack_query(0, QUESTION)


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """An upstream, answered for by the test."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def pool(peer: socket.socket) -> UdpSockets:
    return UdpSockets("127.0.0.1", peer.getsockname()[1], "x", "test", Deadlines())


def reply(query: bytes) -> bytes:
    """No data, with the id of a query."""
    return query[:2] + b"\x81\x80" + query[4:]


async def asked(peer: socket.socket) -> tuple[bytes, tuple[str, int]]:
    async with asyncio.timeout(20):
        while True:
            try:
                return peer.recvfrom(512)
            except BlockingIOError:
                await asyncio.sleep(0.001)


def test_a_burst_of_queries_left_a_socket_for_each_that_was_closed_together_with_all_others(
    peer: socket.socket,
) -> None:
    async def run() -> None:
        sockets = pool(peer)
        results: list[Result] = []
        for _ in range(2 * MAX_IDLE):
            sockets.exchange(QUERY, QUESTION, 20.0, results.append)
        for _ in range(2 * MAX_IDLE):
            query, client = await asked(peer)
            peer.sendto(reply(query), client)
        async with asyncio.timeout(20):
            while len(results) < 2 * MAX_IDLE:
                await asyncio.sleep(0.001)
        assert all(isinstance(result, Answer) for result in results)
        assert len(sockets.idle) == len(sockets.open) == MAX_IDLE
        sockets.close()
        assert not sockets.open and not sockets.idle

    asyncio.run(run())


def test_a_socket_whose_query_got_no_reply_serves_the_next_and_a_late_reply_is_not_taken_for_its(
    peer: socket.socket,
) -> None:
    async def run() -> None:
        sockets = pool(peer)
        results: list[Result] = []
        sockets.exchange(QUERY, QUESTION, 0.01, results.append)
        late, client = await asked(peer)
        async with asyncio.timeout(20):
            while not results:
                await asyncio.sleep(0.001)
        assert "i/o timeout" in str(results.pop())
        sockets.exchange(QUERY, QUESTION, 20.0, results.append)
        query, again = await asked(peer)
        assert again == client and query[:2] != late[:2]
        peer.sendto(reply(late), again)
        await asyncio.sleep(0.05)
        assert not results
        peer.sendto(reply(query), again)
        async with asyncio.timeout(20):
            while not results:
                await asyncio.sleep(0.001)
        assert isinstance(results[0], Answer)
        assert not sockets.open  # a port that got something else is not used again
        sockets.close()

    asyncio.run(run())
