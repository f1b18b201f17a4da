"""TCP connections are shared out: no number of addresses keeps another one out, and no file is left for the rest of
us.
"""

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.net import tcp as tcp_module
from kdns.net.shares import LOOKS, Shares
from kdns.testing import Server, Upstream, answer, eventually
from tests.fixtures import Serve
from tests.net.test_listeners import HOSTS, _tcp, framed, question, read_frame

CAP = 12


@pytest.fixture
def small(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with room for few connections."""
    monkeypatch.setattr(tcp_module, "MAX_CONNECTIONS", CAP)
    return serve(HOSTS.replace("BODY", "bind 127.0.0.1"))


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    """Connects from an address of the loopback network, and waits until the server has taken it in or refused it."""
    with contextlib.ExitStack() as stack:

        def from_address(server: Server, host: str) -> socket.socket:
            (listener,) = _tcp(server)
            before = listener.shares.count(host) + listener.refused[0] + listener.displaced[0]
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=5, source_address=(host, 0))
            stack.enter_context(sock)
            eventually(lambda: listener.shares.count(host) + listener.refused[0] + listener.displaced[0] > before)
            return sock

        yield from_address


def is_open(sock: socket.socket) -> bool:
    sock.settimeout(0.1)
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def asks(sock: socket.socket) -> bool:
    sock.settimeout(5)
    try:
        sock.sendall(framed(question()))
        return read_frame(sock)[:2] == b"\0\7"
    except (OSError, EOFError):
        return False


def test_three_addresses_held_all_connections_and_a_fourth_waited_for_their_deadlines(
    small: Server, connect: Callable[..., socket.socket]
) -> None:
    holders = [connect(small, f"127.0.0.{2 + i % 3}") for i in range(CAP)]
    began = time.monotonic()
    assert asks(connect(small, "127.0.0.9"))
    assert time.monotonic() - began < tcp_module.FIRST_READ / 2
    assert sum(is_open(sock) for sock in holders) == CAP - 1


def test_who_holds_most_gives_way_until_all_hold_alike(small: Server, connect: Callable[..., socket.socket]) -> None:
    (listener,) = _tcp(small)
    for _ in range(CAP):
        connect(small, "127.0.0.2")
        connect(small, "127.0.0.3")
    late = [connect(small, f"127.0.0.{4 + i}") for i in range(4) for _ in range(2)]
    assert len(listener.connections) <= CAP and sum(asks(sock) for sock in late) == 8
    assert {listener.shares.count(f"127.0.0.{i}") for i in range(2, 8)} == {2}


def test_a_busy_connection_gives_way_only_where_its_client_holds_more_than_its_share(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    upstream: Callable[..., Upstream],
    connect: Callable[..., socket.socket],
) -> None:
    def slow(query: object, proto: str) -> object:
        time.sleep(1.5)
        return answer(query, "A 192.0.2.9")  # type: ignore[arg-type]

    monkeypatch.setattr(tcp_module, "MAX_CONNECTIONS", 4)
    server = serve(HOSTS.replace("BODY", f"bind 127.0.0.1\n forward slow.org {upstream(slow).address}"))
    busy = [connect(server, f"127.0.0.{2 + i // 2}") for i in range(4)]
    for i, sock in enumerate(busy):
        sock.sendall(framed(question(f"x{i}.slow.org.", i)))
    eventually(lambda: sum(c.pending for c in _tcp(server)[0].connections) == 4)
    assert asks(connect(server, "127.0.0.9"))  # two each: one is more than the others' share
    assert asks(connect(server, "127.0.0.10"))
    (listener,) = _tcp(server)
    assert {listener.shares.count(f"127.0.0.{i}") for i in (2, 3, 9, 10)} == {1}
    # All hold one. Who waits for an answer keeps it, who is idle gives way.
    assert asks(connect(server, "127.0.0.11"))
    assert listener.shares.count("127.0.0.2") == listener.shares.count("127.0.0.3") == 1
    for sock in busy:
        sock.settimeout(5)
    replies = []
    for sock in busy:
        with contextlib.suppress(OSError, EOFError):
            replies.append(read_frame(sock)[1])
    assert len(replies) == 2


def test_a_client_at_its_own_limit_displaces_nobody_else(small: Server, connect: Callable[..., socket.socket]) -> None:
    other = connect(small, "127.0.0.3")
    mine = [connect(small, "127.0.0.2") for _ in range(CAP)]
    (listener,) = _tcp(small)
    assert listener.shares.count("127.0.0.2") == CAP // tcp_module.CLIENT_SHARE
    assert is_open(other) and is_open(mine[-1]) and not is_open(mine[0])


def test_connections_took_the_files_that_upstreams_and_probes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, expected in (
        (1024, 256),
        (1 << 20, tcp_module.MAX_CONNECTIONS),
        (resource.RLIM_INFINITY, tcp_module.MAX_CONNECTIONS),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert tcp_module.most_connections() == expected


class Held:
    """A connection as Shares sees it."""

    def __init__(self, deadline: float, pending: int) -> None:
        self.deadline = deadline
        self.pending = pending


steps = st.lists(
    st.tuples(st.sampled_from("abcde"), st.booleans(), st.integers(0, 3), st.integers(0, 9), st.integers(0, 1)),
    max_size=120,
)


@given(steps)
@settings(max_examples=150, deadline=None)
def test_shares_are_those_of_a_plain_count(taken: list[tuple[str, bool, int, int, int]]) -> None:
    shares: Shares[Held] = Shares()
    model: dict[str, list[Held]] = {}

    def remove(client: str, held: Held) -> None:
        assert shares.remove(client, held) and not shares.remove(client, held)
        model[client].remove(held)

    for client, comes, place, deadline, pending in taken:
        mine = model.setdefault(client, [])
        if not comes:
            if mine:
                remove(client, mine[place % len(mine)])
        else:
            if not shares.room(client, 10, 6):
                assert len(mine) >= 6 or sum(map(len, model.values())) >= 10
                other = shares.gives_way(client, 6)
                if other is None:
                    continue
                (holder,) = [name for name, each in model.items() if other in each]
                assert holder == client or len(model[holder]) > len(mine)
                assert not other.pending or len(model[holder]) > len(mine) + 1
                remove(holder, other)
            held = Held(deadline, pending)
            shares.add(client, held)
            mine.append(held)
        assert {name: shares.count(name) for name in "abcde"} == {name: len(model.get(name, ())) for name in "abcde"}
        assert shares.total == sum(map(len, model.values())) <= 10
        assert shares.most == max(map(len, model.values()))
        assert sum(map(len, shares._holders.values())) == len(shares._held) == sum(1 for each in model.values() if each)


def test_the_idlest_of_a_few_gives_way_and_each_look_is_at_others() -> None:
    shares: Shares[Held] = Shares()
    held = [Held(float(100 - i), 0) for i in range(3 * LOOKS)]
    for each in held:
        shares.add("a", each)
    first = shares.gives_way("a", 1)
    assert first is held[LOOKS - 1]
    second = shares.gives_way("a", 1)
    assert second is held[2 * LOOKS - 1]
