"""UDP and TCP listeners under clients of every kind."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import dns.message
import pytest

from kdns.metrics import REGISTRY
from kdns.net import connection, tcp_connection
from kdns.net import tcp as tcp_module
from kdns.net import turns as turns_module
from kdns.net import udp as udp_module
from kdns.testing import Server, Upstream, answer, answers, code, data, eventually, free_port
from tests.fixtures import Serve
from tests.turns import between_turns

HOSTS = ".:{port} {\n hosts /nowhere {\n 192.0.2.1 a.example.org\n fallthrough\n }\n BODY\n}\n"


def question(name: str = "a.example.org.", qid: int = 7) -> bytes:
    message = dns.message.make_query(name, "A", use_edns=False)
    message.id = qid
    return message.to_wire()


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def read_frame(sock: socket.socket) -> bytes:
    head = _exactly(sock, 2)
    return _exactly(sock, int.from_bytes(head, "big"))


def _exactly(sock: socket.socket, size: int) -> bytes:
    out = b""
    while len(out) < size:
        part = sock.recv(size - len(out))
        if not part:
            raise EOFError
        out += part
    return out


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(HOSTS.replace("BODY", "bind 127.0.0.1"))


# UDP.


def test_a_wildcard_bind_answers_from_the_address_that_was_asked(serve: Serve) -> None:
    server = serve(HOSTS.replace("BODY", ""))
    for host in ("127.0.0.1", "127.0.0.2", "127.7.7.7", "::1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            sock.sendto(question(), (host, server.port))
            reply, peer = sock.recvfrom(512)
            assert peer[:2] == (host, server.port) and reply[:2] == b"\0\7"


def _raw_datagram(source_port: int, port: int, payload: bytes) -> bytes:
    """An IPv4 packet from 127.0.0.1 with any source port."""
    udp = struct.pack("!4H", source_port, port, 8 + len(payload), 0) + payload
    loopback = socket.inet_aton("127.0.0.1")
    return struct.pack("!2B3H2BH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, loopback, loopback) + udp


@pytest.mark.parametrize("body", ["bind 127.0.0.1", ""])
def test_a_datagram_from_source_port_0_never_ends_the_listener_or_the_batch(serve: Serve, body: str) -> None:
    server = serve(HOSTS.replace("BODY", body))
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        pytest.skip("needs the privilege to send raw packets")
    with raw:
        for _ in range(40):
            raw.sendto(_raw_datagram(0, server.port, question()), ("127.0.0.1", 0))
            raw.sendto(_raw_datagram(0, server.port, b"junk"), ("127.0.0.1", 0))
    for _ in range(5):
        assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    errors = REGISTRY["kdns_udp_send_errors_total"].slots
    assert any(labels[1] == "EINVAL" and slot[0] > 0 for labels, slot in errors.items())


def test_a_client_that_has_gone_costs_only_its_reply(server: Server) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", server.port))
            sock.send(question())
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]


def test_two_instances_share_a_port_on_purpose_only(serve: Serve) -> None:
    first = serve(HOSTS.replace("BODY", "bind 127.0.0.1"))
    with pytest.raises(OSError, match="another process has this port"):
        serve(first.text, port=first.port)
    second = serve(first.text, port=first.port, share_port=True)
    assert all(data(second.ask("a.example.org.")) == ["192.0.2.1"] for _ in range(20))


def test_ipv6_is_served_like_ipv4(serve: Serve) -> None:
    server = serve(HOSTS.replace("BODY", "bind ::1"), port=free_port("::1"))
    for tcp in (False, True):
        assert data(server.ask("a.example.org.", host="::1", tcp=tcp)) == ["192.0.2.1"]


def _flood(server: Server, count: int, host: str) -> int:
    """Sends queries while the server is held up; how many it answers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        for i in range(count):
            sock.sendto(question(qid=i), (host, server.port))
        sock.settimeout(1)
        got = 0
        with contextlib.suppress(TimeoutError):
            while got < count:
                sock.recv(512)
                got += 1
        return got


def _late(server: Server) -> float:
    return sum(
        slot[0]
        for labels, slot in REGISTRY["kdns_udp_late_dropped_total"].slots.items()
        if str(server.port) in labels[0]
    )


@pytest.mark.interpreted("constants are replaced")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("body", ["bind HOST", ""])
def test_queries_whose_clients_had_given_up_were_answered_before_those_of_clients_that_wait(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, host: str, body: str
) -> None:
    """More came than was answered: each reply was seconds late, and nobody was served."""
    server = serve(HOSTS.replace("BODY", body.replace("HOST", host)), port=free_port(host))
    monkeypatch.setattr(udp_module, "LATE", 0.05)
    monkeypatch.setattr(udp_module, "LATE_FOR", -1.0)
    monkeypatch.setattr(udp_module, "BATCH_DATAGRAMS", 8)
    server.ask("a.example.org.", host=host)
    server.thread.loop.call_soon_threadsafe(time.sleep, 0.5)
    assert _flood(server, 200, host) < 100
    eventually(lambda: _late(server) > 100)
    assert data(server.ask("a.example.org.", host=host)) == ["192.0.2.1"]


def test_a_pause_of_ours_loses_no_query(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_module, "LATE", 0.05)
    monkeypatch.setattr(udp_module, "LATE_FOR", 30.0)
    monkeypatch.setattr(udp_module, "BATCH_DATAGRAMS", 8)
    server.thread.loop.call_soon_threadsafe(time.sleep, 0.5)
    assert _flood(server, 200, "127.0.0.1") == 200 and not _late(server)
    monkeypatch.setattr(udp_module, "LATE_FOR", 0.2)
    server.thread.loop.call_soon_threadsafe(time.sleep, 0.5)  # another pause, while the first is not forgotten
    assert _flood(server, 200, "127.0.0.1") == 200 and not _late(server)


@pytest.mark.parametrize("body", ["bind 127.0.0.1", ""])
def test_a_crowd_after_a_datagram_that_was_alone_is_answered_whole(serve: Serve, body: str) -> None:
    server = serve(HOSTS.replace("BODY", body))
    for count in (1, 2, 1, udp_module.ALONE, 1, udp_module.ALONE + 1, 1, 3 * udp_module.BATCH_DATAGRAMS):
        server.thread.loop.call_soon_threadsafe(time.sleep, 0.05 if count > 1 else 0.0)
        assert _flood(server, count, "127.0.0.1") == count


def test_where_the_kernel_does_not_say_when_a_datagram_came_none_is_late(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_module, "SIOCGSTAMP", 0xFFFF)
    monkeypatch.setattr(udp_module, "LATE", 0.0)
    monkeypatch.setattr(udp_module, "LATE_FOR", -1.0)
    monkeypatch.setattr(udp_module, "BATCH_DATAGRAMS", 8)
    server.thread.loop.call_soon_threadsafe(time.sleep, 0.3)
    assert _flood(server, 100, "127.0.0.1") == 100


# TCP.


def test_pipelined_queries_are_all_answered(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(framed(*(question(qid=i) for i in range(500))))
        ids = {int.from_bytes(read_frame(sock)[:2], "big") for _ in range(500)}
    assert ids == set(range(500))


def test_answers_leave_as_they_become_ready_and_duplicate_ids_are_no_harm(
    serve: Serve, upstream: Callable[..., Upstream]
) -> None:
    def slow(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.3)
        return answer(query, "A 192.0.2.9")

    server = serve(HOSTS.replace("BODY", f"bind 127.0.0.1\n forward slow.org {upstream(slow).address}"))
    with server.connect() as sock:
        sock.sendall(framed(question("x.slow.org.", 1), question(qid=2), question(qid=2)))
        assert [read_frame(sock)[1] for _ in range(3)] == [2, 2, 1]


def test_a_frame_may_come_octet_by_octet(server: Server) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in framed(question()):
            sock.send(bytes((octet,)))
        assert read_frame(sock)[:2] == b"\0\7"


@pytest.mark.parametrize("junk", [b"\0\0", b"\0\1x", b"\0\x0bxxxxxxxxxxx"])
def test_frames_too_short_for_a_header_are_passed_over(server: Server, junk: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(junk + framed(question()))
        assert read_frame(sock)[:2] == b"\0\7"


def test_half_a_close_still_gets_its_answers(serve: Serve, upstream: Callable[..., Upstream]) -> None:
    def slow(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.2)
        return answer(query, "A 192.0.2.9")

    server = serve(HOSTS.replace("BODY", f"bind 127.0.0.1\n forward slow.org {upstream(slow).address}"))
    with server.connect() as sock:
        sock.sendall(framed(question("x.slow.org.", 1), question(qid=2)))
        sock.shutdown(socket.SHUT_WR)
        assert {read_frame(sock)[1] for _ in range(2)} == {1, 2}
        assert sock.recv(1) == b""


def test_a_reset_in_the_middle_costs_only_that_connection(server: Server) -> None:
    for _ in range(20):
        sock = server.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(framed(question(), question())[:-3])
        sock.close()
    assert data(server.ask("a.example.org.", tcp=True)) == ["192.0.2.1"]


def test_a_client_that_does_not_read_stops_being_read(server: Server) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        sent = 0
        payload = framed(*(question(qid=i & 0xFFFF) for i in range(1000)))
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                sent += sock.send(payload)
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 16 << 20
        began = time.monotonic()
        assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
        assert time.monotonic() - began < 2
        connections = [c for listener in _tcp(server) for c in listener.connections]
        assert all(c.transport.get_write_buffer_size() < 4 << 20 for c in connections if c.transport)


class Turns:
    """What the turns of a listener's connections come to: octets taken, and frames answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int]] = []
        batch = tcp_connection.TcpConnection._batch

        def watched(connection: tcp_connection.TcpConnection) -> None:
            octets, frames = len(connection.buffer), connection.queries
            batch(connection)
            self.seen.append((octets - len(connection.buffer), connection.queries - frames))

        monkeypatch.setattr(tcp_connection.TcpConnection, "_batch", watched)


@pytest.mark.interpreted("it replaces what is compiled in")
def test_a_turn_took_four_megabytes_of_one_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    monkeypatch.setattr(turns_module, "LOOP_SECONDS", 100.0)
    message = question() + b"\0" * 20_000
    with server.connect() as sock:
        sock.sendall(framed(*[message] * 60))
        for _ in range(60):
            read_frame(sock)
    eventually(lambda: sum(frames for _, frames in turns.seen) == 60)
    assert max(octets for octets, _ in turns.seen) <= tcp_connection.BATCH_OCTETS + len(message) + 2


@pytest.mark.interpreted("it replaces what is compiled in")
def test_a_turn_of_queries_that_cost_a_millisecond_each_took_nine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was looked at after every eighth, and ran from there."""
    turns = Turns(monkeypatch)
    now = [0.0]
    for module in (tcp_connection, connection):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    (listener,) = _tcp(server)
    handler = listener.handler

    def costly(*arguments: Any) -> Any:
        now[0] += 0.001
        return handler(*arguments)

    monkeypatch.setattr(listener, "handler", costly)
    with server.connect() as sock:
        sock.sendall(framed(*(question(qid=i) for i in range(100))))
        assert {read_frame(sock)[1] for _ in range(100)} == set(range(100))
    eventually(lambda: sum(frames for _, frames in turns.seen) == 100)
    assert max(frames for _, frames in turns.seen) <= 4


@pytest.mark.interpreted("it replaces what is compiled in")
def test_large_frames_are_never_many_between_two_looks_at_the_clock(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns(monkeypatch)
    now = [0.0]
    for module in (tcp_connection, connection):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    (listener,) = _tcp(server)
    handler = listener.handler

    def costly(*arguments: Any) -> Any:
        now[0] += 0.002
        return handler(*arguments)

    monkeypatch.setattr(listener, "handler", costly)
    with server.connect() as sock:
        sock.sendall(framed(*[question() + b"\0" * 5000] * 20))
        for _ in range(20):
            read_frame(sock)
    eventually(lambda: sum(frames for _, frames in turns.seen) == 20)
    assert max(frames for _, frames in turns.seen) <= 2


@pytest.mark.interpreted("it replaces what is compiled in")
def test_connections_that_pipeline_made_others_wait_a_millisecond_for_each_of_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    handled = [0]
    for module in (tcp_connection, connection):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    (listener,) = _tcp(server)
    handler = listener.handler

    def costly(*arguments: Any) -> Any:
        now[0] += 0.001
        handled[0] += 1
        return handler(*arguments)

    monkeypatch.setattr(listener, "handler", costly)
    between = between_turns(server, lambda: handled[0], 400)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(20)]
        for sock in socks:
            sock.sendall(framed(*(question(qid=i) for i in range(20))))
        for sock in socks:
            assert {read_frame(sock)[1] for _ in range(20)} == set(range(20))
    assert max(between) <= 8
    eventually(lambda: not listener.turns.queue and not listener.connections)


def _tcp(server: Server) -> list[tcp_module.TcpListener]:
    return [tcp for listeners in server.server.listeners.values() for tcp in listeners.tcp]


@pytest.fixture
def impatient(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    init = tcp_module.TcpListener.__init__

    def shorter(self: tcp_module.TcpListener, *args: object, **options: object) -> None:
        init(self, *args, **{"first_read": 0.6, "idle": 0.9, "max_connections": 8, **options})  # type: ignore[arg-type]

    monkeypatch.setattr(tcp_module.TcpListener, "__init__", shorter)
    yield serve(HOSTS.replace("BODY", "bind 127.0.0.1"))


def test_deadlines_are_moved_by_whole_queries_only(impatient: Server) -> None:
    began = time.monotonic()
    with impatient.connect() as sock:  # says nothing
        assert sock.recv(1) == b""
    assert 0.5 < time.monotonic() - began < 4
    began = time.monotonic()
    with impatient.connect() as sock, contextlib.suppress(OSError):  # trickles
        for octet in framed(question()):
            sock.send(bytes((octet,)))
            time.sleep(0.05)
        assert sock.recv(1) == b""
    assert time.monotonic() - began < 4
    with impatient.connect() as sock:  # goes on asking
        for i in range(6):
            sock.sendall(framed(question(qid=i)))
            assert read_frame(sock)[1] == i
            time.sleep(0.2)
        assert sock.recv(1) == b""


def test_connections_are_capped_and_udp_goes_on(impatient: Server) -> None:
    """A client's own cap is at its own cost: the new connection may be of the one behind a NAT that has a question."""
    (listener,) = _tcp(impatient)
    held = [impatient.connect() for _ in range(30)]
    try:
        eventually(lambda: listener.displaced[0] == 26)
        assert len(listener.connections) <= 4
        assert data(impatient.ask("a.example.org.")) == ["192.0.2.1"]
        eventually(lambda: not any(listener.connections for listener in _tcp(impatient)))
        assert data(impatient.ask("a.example.org.", tcp=True)) == ["192.0.2.1"]
    finally:
        for sock in held:
            sock.close()


def test_closed_connections_leave_nothing_behind(server: Server) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        server.ask("a.example.org.", tcp=True)
    eventually(lambda: not any(listener.connections for listener in _tcp(server)))
    assert all(not listener.shares.total and not listener.shares.most for listener in _tcp(server))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_an_exception_in_a_plugin_is_servfail_and_counted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    from kdns.plugins.whoami import Whoami

    def broken(self: object, request: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(Whoami, "handle", broken)
    server = serve(".:{port} {\n bind 127.0.0.1\n errors\n whoami\n}\n")
    panics = REGISTRY["coredns_panics_total"].slot()
    before = panics[0]
    for tcp in (False, True):
        assert code(server.ask("a.example.org.", tcp=tcp)) == "SERVFAIL"
    assert panics[0] == before + 2
    assert any('Recovered from panic in server: "dns://127.0.0.1:' in line and "boom" in line for line in lines)
    assert any("plugin/errors: 2 a.example.org. A: boom" in line for line in lines)
    assert answers(server.ask("a.example.org.")) == []
