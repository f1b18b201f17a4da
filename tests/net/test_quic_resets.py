"""Stateless resets (RFC 9000, section 10.3): who learns that a connection is over, and that nobody else does.

The clients are aioquic's, which never looks at a token: what comes to them is looked at here. Upstreams that forget:
tests/plugins/test_forward_quic.py.
"""

import asyncio
import contextlib
import itertools
import math
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from aioquic.quic.packet import QuicPacketType

from kdns.net import Process, certificates
from kdns.net.quic_connection import RETIRED, QuicConnection
from kdns.net.quic_ids import CID_OCTETS, ConnectionIds, place
from kdns.quicmachine import IDS_GIVEN
from kdns.testing import Server, free_port
from tests.cli.test_commands import Process as Command
from tests.fixtures import Serve
from tests.quicpeers import Client, client, until
from tests.securepeers import NAME, Site
from tests.server.test_multisocket import descendants, soon

# A datagram that every listener answers, by the versions that it speaks: what was sent before was not answered.
PROBE = bytes([0xC0]) + b"\xfa\xfa\xfa\xfa" + b"\x08" + bytes(8) + b"\x08" + bytes(8) + bytes(1200)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def listener(server: Server) -> Any:
    return next(iter(server.server.listeners.values())).tcp[0]


def forget(server: Server) -> None:
    """Connections are over without a word, as where the process was killed, or its last datagram was lost."""
    server.thread.call(lambda: [each.forget() for each in set(listener(server).by_id.values())])


class Wire:
    """A socket of its own, to a listener."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(20)
        self.sock.connect(("127.0.0.1", port))

    def answers(self, *datagrams: bytes) -> list[bytes]:
        """What these were answered."""
        out = []
        for at in range(0, len(datagrams), 50):
            for each in datagrams[at : at + 50]:
                self.sock.send(each)
            self.sock.send(PROBE)
            while not (came := self.sock.recv(2000))[0] & 0x80:
                out.append(came)
        return out


@pytest.fixture
def wire() -> Iterator[Callable[[int], Wire]]:
    with contextlib.ExitStack() as stack:

        def open_to(port: int) -> Wire:
            made = Wire(port)
            stack.enter_context(made.sock)
            return made

        yield open_to


def play(port: int, site: Site, script: Callable[[Client, list[bytes]], Coroutine[Any, Any, None]]) -> None:
    """What a client does on one connection; `came` is every datagram that came to it."""

    async def inside() -> None:
        async with client(port, site.authority.path) as peer:
            came: list[bytes] = []
            receive = peer.datagram_received
            peer.datagram_received = lambda octets, addr: (came.append(bytes(octets)), receive(octets, addr))  # type: ignore[assignment, method-assign]
            stream = peer.query("a.example.org.")
            await until(lambda: stream in peer.ended)
            await script(peer, came)

    asyncio.run(inside())


def token(peer: Client) -> bytes:
    """What a stateless reset for what the client sends now ends with."""
    found: bytes = peer._quic._peer_cid.stateless_reset_token
    assert len(found) == 16
    return found


def connection_id(server: Server, site: Site) -> bytes:
    """The ID of a connection that is over."""
    found: list[bytes] = []

    async def script(peer: Client, came: list[bytes]) -> None:
        found.append(peer._quic._peer_cid.cid)
        forget(server)

    play(server.port, site, script)
    return found[0]


def packet(cid: bytes, size: int, first: int = 0x40) -> bytes:
    return (bytes([first | random.randrange(64)]) + cid + os.urandom(1500))[:size]


# Who learns.


def test_a_client_whose_connection_was_forgotten_learnt_so_by_silence_alone(serve: Serve, site: Site) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client, came: list[bytes]) -> None:
        forget(server)
        before = len(came)
        peer.query("a.example.org.")
        await until(lambda: len(came) > before)
        assert came[before][-16:] == token(peer) and came[before][0] & 0xC0 == 0x40
        assert 21 <= len(came[before]) <= 43

    play(server.port, site, script)


def test_kdig_waited_for_an_answer_on_a_connection_that_was_forgotten(
    serve: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QUIC is ngtcp2's."""
    if shutil.which("kdig") is None:
        pytest.skip("kdig is not installed")
    server = serve(site.block(scheme="quic"))
    forgotten: list[QuicConnection] = []
    transmit = QuicConnection.transmit

    def once(self: QuicConnection) -> None:
        replied = self.written
        transmit(self)
        if replied and not forgotten:
            forgotten.append(self)
            self.forget()

    monkeypatch.setattr(QuicConnection, "transmit", once)
    way = [f"+tls-ca={site.authority.path}", f"+tls-hostname={NAME}", "+quic", "+keepopen", "+retry=0"]
    out = subprocess.run(
        ["kdig", "@127.0.0.1", "-p", str(server.port), *way, "a.example.org", *way, "a.example.org"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "192.0.2.1" in out.stdout and forgotten, out.stdout + out.stderr
    assert "took too long" not in out.stderr and listener(server).reset[0], out.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_of_a_process_that_was_killed_learnt_so_by_silence_alone(tmp_path: Path, workers: int) -> None:
    site = Site(tmp_path)
    port = free_port()
    (tmp_path / "Corefile").write_text(site.block(f"multisocket {workers}", scheme="quic").replace("{port}", str(port)))
    made = [begun(tmp_path)]

    async def script(peer: Client, came: list[bytes]) -> None:
        await asyncio.to_thread(kill, made[0])
        made.append(await asyncio.to_thread(begun, tmp_path))
        before = len(came)
        peer.query("a.example.org.")
        await until(lambda: any(each[-16:] == token(peer) for each in came[before:]))

    try:
        play(port, site, script)
    finally:
        kill(made[-1])


def begun(folder: Path) -> Command:
    made = Command("-conf", str(folder / "Corefile"))
    made.until("linux/")
    return made


def kill(command: Command) -> None:
    """Ends a server, and all of its workers, before they can say a word."""
    pids = descendants(command.process.pid)
    for pid in (*pids, command.process.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (*pids, command.process.pid):
        os.kill(pid, signal.SIGKILL)
    command.process.communicate()
    soon(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in pids))


def test_clients_from_before_a_certificate_was_renewed_learn_so_too(
    serve: Serve, site: Site, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.02)
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client, came: list[bytes]) -> None:
        site.issue("dns.example.net")
        await until(lambda: any("tls.crt has changed and is in use" in line for line in lines))
        async with client(server.port, site.authority.path) as other:
            assert token(other) != token(peer) and len(listener(server).names) == 2
            forget(server)
            before = len(came)
            peer.query("a.example.org.")
            await until(lambda: any(each[-16:] == token(peer) for each in came[before:]))

    play(server.port, site, script)


# Who does not.


def test_octets_that_are_nobodys_are_not_answered(serve: Serve, site: Site, wire: Callable[[int], Wire]) -> None:
    server = serve(site.block(scheme="quic"))
    connection_id(server, site)
    chance = random.Random(1)
    garbage = [packet(b"", chance.randrange(1, 1500)) for _ in range(1000)]
    before = listener(server).reset[0]  # of the client's farewell
    assert not wire(server.port).answers(*garbage)
    assert listener(server).reset[0] == before


def test_an_answer_is_shorter_than_what_it_answers_and_is_not_answered_itself(
    serve: Serve, site: Site, wire: Callable[[int], Wire]
) -> None:
    server, other = serve(site.block(scheme="quic")), serve(site.block(scheme="quic"))
    cid = connection_id(server, site)
    end = wire(server.port)
    for size in (*range(1, 60), 100, 1200, 1472):
        came = end.answers(packet(cid, size))
        assert len(came) == (size >= 22)
        assert all(21 <= len(each) < size and len(each) <= 43 for each in came)
        assert not end.answers(*came) and not wire(other.port).answers(*came)


def test_only_packets_with_a_short_header_are_answered(serve: Serve, site: Site, wire: Callable[[int], Wire]) -> None:
    server = serve(site.block(scheme="quic"))
    cid = connection_id(server, site)
    handshake = (
        bytes([0xC0 | QuicPacketType.HANDSHAKE.value << 4]) + b"\0\0\0\1" + bytes([CID_OCTETS]) + cid + bytes(80)
    )
    assert not wire(server.port).answers(packet(cid, 100, first=0), handshake)


def test_a_flood_is_answered_at_a_bounded_rate(serve: Serve, site: Site, wire: Callable[[int], Wire]) -> None:
    server = serve(site.block(scheme="quic"))
    cid = connection_id(server, site)
    own = listener(server)
    own.resets_until, own.resets_left = math.inf, 3
    assert len(wire(server.port).answers(*[packet(cid, 100) for _ in range(40)])) == 3


def test_a_client_that_used_a_new_id_at_once_was_a_stranger(serve: Serve, site: Site) -> None:
    """The ID was known as the connection's only once another datagram had come for it."""
    server = serve(site.block(scheme="quic"))

    async def inside() -> None:
        async with client(server.port, site.authority.path) as peer:
            receive = peer.datagram_received

            def at_once(*datagram: Any) -> None:
                if datagram:
                    receive(*datagram)
                if peer._quic._peer_cid_available and peer._quic._peer_cid.sequence_number == 0:
                    peer.change_connection_id()

            peer.datagram_received = at_once  # type: ignore[method-assign]
            at_once()  # others may have come with the handshake's end
            await until(lambda: peer._quic._peer_cid.sequence_number)
            stream = peer.query("a.example.org.")
            await until(lambda: stream in peer.ended)

    asyncio.run(inside())
    assert not listener(server).reset[0]


def test_what_comes_late_for_an_id_that_was_given_back_is_not_answered(
    serve: Serve, site: Site, wire: Callable[[int], Wire]
) -> None:
    server = serve(site.block(scheme="quic"))

    async def script(peer: Client, came: list[bytes]) -> None:
        before = peer._quic._peer_cid.cid
        await until(lambda: peer._quic._peer_cid_available)
        peer.change_connection_id()
        await until(lambda: any(each.retired for each in set(listener(server).by_id.values())))
        assert not await asyncio.to_thread(wire(server.port).answers, packet(before, 100))
        for _ in range(30):
            sequence = peer._quic._peer_cid.sequence_number
            await until(lambda: peer._quic._peer_cid_available)
            peer.change_connection_id()
            stream = peer.query("a.example.org.")
            await until(lambda stream=stream: stream in peer.ended)
            assert peer._quic._peer_cid.sequence_number != sequence
        assert len(listener(server).by_id) <= IDS_GIVEN + RETIRED + 1  # the first is the one that the client chose

    play(server.port, site, script)


def test_no_worker_ends_a_connection_of_another(tmp_path: Path, wire: Callable[[int], Wire]) -> None:
    """A datagram of a connection comes to the wrong worker where the client's port changes, or somebody wants it to."""
    site = Site(tmp_path)
    port = free_port()
    (tmp_path / "Corefile").write_text(site.block("multisocket 2", scheme="quic").replace("{port}", str(port)))
    command = begun(tmp_path)

    async def script(peer: Client, came: list[bytes]) -> None:
        cid = peer._quic._peer_cid.cid
        for _ in range(20):  # the kernel chooses a worker for each port
            assert not await asyncio.to_thread(wire(port).answers, packet(cid, 100))
        stream = peer.query("a.example.org.")
        await until(lambda: stream in peer.ended)

    try:
        play(port, site, script)
    finally:
        kill(command)


def test_a_process_that_shares_its_port_knows_nothing_of_others(site: Site, wire: Callable[[int], Wire]) -> None:
    port = free_port()
    with (
        Server(site.block(scheme="quic"), port=port) as alone,
        Server(site.block(scheme="quic"), port=port, share_port=True) as sharing,
    ):
        own = [listener(each) for each in (alone, sharing)]
        cids = [each.naming().make()[0] for each in own]
        for each, cid in itertools.product(own, cids):
            assert (each.naming().of_the_past(cid) is None) == (cids[own.index(each)] != cid)


def test_an_id_tells_its_own_process_from_those_that_live_and_those_that_are_over() -> None:
    secret, info = os.urandom(100), place() + " here"
    first = ConnectionIds(secret, info, Process(b"ab", 1, True))
    cid, made = first.make()
    assert (len(cid), len(made)) == (CID_OCTETS, 16) and cid != made

    def told(secret: bytes, info: str, run: bytes, worker: int) -> bytes | None:
        return ConnectionIds(secret, info, Process(run, worker, True)).of_the_past(cid)

    assert told(secret, info, b"ab", 1) == made  # the same process, or who has taken its place
    assert told(secret, info, b"ab", 2) is None  # another worker
    assert told(secret, info, b"cd", 1) == told(secret, info, b"cd", 7) == made  # after a restart
    assert told(secret, info + "2", b"cd", 1) is None  # a replica
    assert told(os.urandom(100), info, b"cd", 1) is None  # another certificate
    for each in (b"", cid[1:], cid + b"x", os.urandom(CID_OCTETS)):
        assert first.of_the_past(each) is None


def test_the_place_of_a_port_is_this_network_of_this_boot() -> None:
    assert "net:[" in place() and len(place()) > 40


def test_where_a_place_cannot_be_said_ids_are_of_one_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.net.quic_ids._BOOT", "/nowhere")
    port = free_port()
    with Server(site.block(scheme="quic"), port=port) as first:
        cid, _ = listener(first).naming().make()
        assert listener(first).naming().of_the_past(cid)
    with Server(site.block(scheme="quic"), port=port) as second:
        assert listener(second).naming().of_the_past(cid) is None
