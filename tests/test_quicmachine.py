"""What kdns needs of aioquic beyond its public names. A release of aioquic that changes one of these fails here: see
kdns/quicmachine.py before the bound in pyproject.toml is moved.
"""

import gc
import os
import re
import ssl
import sys
import weakref
from pathlib import Path
from typing import Any

import pylsqpack
import pytest
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.h3 import connection as h3
from aioquic.h3.connection import H3Connection, Setting
from aioquic.h3.events import HeadersReceived
from aioquic.quic import connection as machine
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.stream import QuicStream, QuicStreamSender
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.serialization import Encoding

from kdns import quicmachine
from tests.securepeers import Site

HELD = 100_000
ROOT = Path(__file__).resolve().parents[1]


class Pair:
    """A client and a server without a network, on a clock of their own."""

    def __init__(self, site: Site, streams: int = 0, alpn: str = "doq", other: Site | None = None) -> None:
        """`other`: whose certificate is shown to who asks for `x`, as the client does."""
        self.now = 1000.0
        self.client = QuicConnection(
            configuration=QuicConfiguration(alpn_protocols=[alpn], verify_mode=ssl.CERT_NONE, server_name="x")
        )
        configuration = QuicConfiguration(is_client=False, alpn_protocols=[alpn])
        configuration.load_cert_chain(site.folder / "tls.crt", site.folder / "tls.key")
        quicmachine.encode_certificates(configuration)
        self.server = QuicConnection(
            configuration=configuration,
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.ids: list[tuple[bytes, bytes]] = []  # the server's, with their tokens
        quicmachine.name_connection(
            self.server, lambda: self.ids.append((os.urandom(8), os.urandom(16))) or self.ids[-1]
        )  # type: ignore[func-returns-value]
        quicmachine.take_few_ids(self.server)
        if streams:
            quicmachine.allow_streams(self.server, streams)
        quicmachine.hold_at_most(self.server, HELD)
        self.asked_for: list[str | None] = []
        if other is not None:
            others = QuicConfiguration(is_client=False)
            others.load_cert_chain(other.folder / "tls.crt", other.folder / "tls.key")
            quicmachine.encode_certificates(others)
            quicmachine.choose_certificate(self.server, lambda name: self.asked_for.append(name) or others)  # type: ignore[func-returns-value]
        self.client.connect(("192.0.2.1", 853), self.now)
        for _ in range(6):
            self.to_server()
            self.to_client()
        self.events(self.server)
        self.events(self.client)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def to_server(self) -> int:
        return self._carry(self.client, self.server, "192.0.2.2")

    def to_client(self) -> int:
        return self._carry(self.server, self.client, "192.0.2.1")

    def _carry(self, here: QuicConnection, there: QuicConnection, address: str) -> int:
        datagrams = here.datagrams_to_send(self.now)
        for data, _ in datagrams:
            there.receive_datagram(data, (address, 853), self.now)
        self.now += 0.005
        return len(datagrams)

    def events(self, machine: QuicConnection) -> list[events.QuicEvent]:
        out = []
        while (event := machine.next_event()) is not None:
            out.append(event)
        return out


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_certificate_is_that_of_the_name_that_a_client_asks_for(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path / "other", "other.example.net")
    pair = Pair(site, other=other)
    assert pair.asked_for == ["x"]
    found = pair.client.tls._peer_certificate
    assert found is not None
    assert ssl.DER_cert_to_PEM_cert(found.public_bytes(Encoding.DER)).split() == (
        (other.folder / "tls.crt").read_text().split()
    )


def test_each_id_of_a_server_is_ours_and_its_token_reaches_the_client(site: Site) -> None:
    pair = Pair(site)
    for number in range(12):
        pair.to_client()
        cid, token = pair.ids[number]
        assert pair.client._peer_cid.cid == cid
        for sent, known in ((token, True), (token[:-1], False), (os.urandom(16), False), (b"", False)):
            assert quicmachine.is_reset(pair.client, b"\x40" + bytes(4) + sent) == known
        assert not quicmachine.is_reset(pair.client, b"\x40" + bytes(3) + token)  # too short
        assert not quicmachine.is_reset(pair.client, b"\xc0" + bytes(4) + token)  # a long header
        assert not quicmachine.is_reset(pair.client, b"\x40" + bytes(4) + pair.ids[number + 1][1])  # not in use
        pair.client.change_connection_id()
        pair.to_server()
    assert not any(isinstance(each, events.ConnectionTerminated) for each in pair.events(pair.server))


def test_before_a_token_has_come_nothing_is_a_reset() -> None:
    fresh = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["doq"]))
    assert not quicmachine.is_reset(fresh, b"\x40" + bytes(40))


def test_a_handshake_gave_sixteen_ids_of_which_two_were_used(site: Site) -> None:
    pair = Pair(site)
    assert len(pair.server._host_cids) == 1 + len(pair.client._peer_cid_available) == quicmachine.IDS_GIVEN
    assert len(pair.client._host_cids) == 1 + len(pair.server._peer_cid_available) == quicmachine.IDS_TAKEN


@pytest.mark.parametrize(("octets", "left"), [(b"\0", 0), (bytes(1000), 0), (b"\0\1\0", 2), (bytes(900) + b"\1\0", 2)])
def test_padding_is_skipped_up_to_the_next_frame(octets: bytes, left: int) -> None:
    buf = Buffer(data=octets)
    assert buf.pull_uint_var() == QuicFrameType.PADDING
    fresh = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["doq"]))
    handle, _ = fresh._QuicConnection__frame_handlers[QuicFrameType.PADDING]  # type: ignore[attr-defined]
    handle(None, QuicFrameType.PADDING, buf)
    assert handle.__func__ is quicmachine._skip_padding and len(octets) - buf.tell() == left


def test_which_packets_a_frame_may_come_in_is_made_once() -> None:
    assert machine.EPOCHS("IH01") is machine.EPOCHS("IH01") == frozenset(Epoch)


def test_the_number_of_streams_that_a_client_may_open_is_ours(site: Site) -> None:
    pair = Pair(site, streams=3)
    opened = []
    while quicmachine.may_open(pair.client):
        opened.append(pair.client.get_next_available_stream_id())
        pair.client.send_stream_data(opened[-1], b"query", end_stream=True)
    assert opened == [0, 4, 8]
    pair.to_server()
    came = [each for each in pair.events(pair.server) if isinstance(each, events.StreamDataReceived)]
    assert [each.stream_id for each in came] == opened
    for each in came:
        pair.server.send_stream_data(each.stream_id, b"reply", end_stream=True)
    for _ in range(4):
        pair.to_client()
        pair.to_server()
    assert quicmachine.may_open(pair.client)


def test_what_has_come_is_acknowledged_with_the_reply(site: Site) -> None:
    pair = Pair(site)
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream, b"query", end_stream=True)
    pair.client.datagrams_to_send(pair.now)  # lost
    waits = pair.client.get_timer()
    pair.client.send_stream_data(stream + 4, b"query", end_stream=True)
    before = pair.now
    for data, _ in pair.client.datagrams_to_send(before):
        pair.server.receive_datagram(data, ("192.0.2.2", 853), before)
    quiet = pair.server.get_timer()
    assert quiet is not None and before < quiet <= before + 0.025  # aioquic would acknowledge by itself, later
    pair.server.send_stream_data(stream + 4, b"reply", end_stream=True)
    quicmachine.acknowledge_now(pair.server, before)
    sent = pair.server.datagrams_to_send(before)
    assert len(sent) == 1
    later = pair.server.get_timer()
    assert later is not None and later > quiet + 0.001  # nothing is left to acknowledge
    pair.client.receive_datagram(sent[0][0], ("192.0.2.1", 853), before)
    assert pair.client.get_timer() != waits  # it knows what is missing
    assert any(isinstance(each, events.StreamDataReceived) for each in pair.events(pair.client))


def test_acknowledging_where_nothing_has_come_does_nothing(site: Site) -> None:
    fresh = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["doq"]))
    quicmachine.acknowledge_now(fresh, 1.0)
    pair = Pair(site)
    quicmachine.acknowledge_now(pair.server, pair.now)
    assert pair.to_client() == 0


def test_what_a_peer_may_send_ahead_of_what_was_read_did_not_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that kept the first octet of a stream back had all that followed kept for it: flow control gave it
    twice the room each time.
    """
    pair = Pair(site)
    held = pair.client.get_next_available_stream_id()
    get_frame = QuicStreamSender.get_frame

    def without_the_first(self: QuicStreamSender, *words: Any) -> Any:
        frame = get_frame(self, *words)
        if frame is not None and self._stream_id == held and not frame.offset:
            frame.offset, frame.data = 1, frame.data[1:]
        return frame

    monkeypatch.setattr(QuicStreamSender, "get_frame", without_the_first)
    pair.client.send_stream_data(held, bytes(2_000_000))
    for _ in range(400):
        pair.to_server()
        pair.to_client()
    kept = sum(len(each.receiver._buffer) for each in pair.server._streams.values())
    assert 30_000 < kept <= HELD
    assert not any(isinstance(each, events.ConnectionTerminated) for each in pair.events(pair.server))


def test_a_datagram_of_single_octets_held_the_loop_for_seconds(site: Site) -> None:
    """Every other octet of a stream: what has come was a list of 60,000 ranges, looked through for each frame."""
    pair = Pair(site)
    offset = 1

    def octets(builder: Any, space: Any, stream: Any, max_offset: int) -> int:
        nonlocal offset
        for _ in range(150):
            if builder.remaining_flight_space < 24 or offset >= max_offset:
                break
            buf = builder.start_frame(QuicFrameType.STREAM_BASE | 6, capacity=12)
            buf.push_uint_var(stream.stream_id)
            buf.push_uint_var(offset)
            buf.push_uint16(1 | 0x4000)
            buf.push_bytes(b"x")
            offset += 2
        return 0

    pair.client._write_stream_frame = octets
    pair.client.send_stream_data(pair.client.get_next_available_stream_id(), bytes(HELD))
    for _ in range(10):
        pair.to_server()
        pair.to_client()
    assert all(len(each.receiver._ranges) < 2 * quicmachine.MAX_GAPS for each in pair.server._streams.values())
    pair.pass_time(100)
    pair.client.handle_timer(pair.now)
    ended = [each for each in pair.events(pair.client) if isinstance(each, events.ConnectionTerminated)]
    assert ended and ended[0].reason_phrase == "too many gaps"


def test_a_peer_that_never_acknowledges_had_a_packet_remembered_for_each_ping(site: Site) -> None:
    pair = Pair(site)
    kept = pair.server._spaces[Epoch.ONE_RTT].sent_packets
    for number in range(2000):
        pair.client._spaces[Epoch.ONE_RTT].ack_at = None
        pair.client.send_ping(number)
        pair.to_server()
        pair.to_client()
        quicmachine.forget_sent(pair.server)
        assert len(kept) <= quicmachine.MAX_SENT
    # Nothing is lost by it.
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream, b"query", end_stream=True)
    pair.to_server()
    pair.server.send_stream_data(stream, b"reply", end_stream=True)
    for _ in range(3):
        pair.to_client()
        pair.to_server()
    assert any(isinstance(each, events.StreamDataReceived) for each in pair.events(pair.client))
    assert stream not in pair.server._streams


@pytest.mark.parametrize("named", [False, True])
def test_a_connection_that_was_over_held_itself(site: Site, tmp_path: Path, named: bool) -> None:
    """It and all its streams were freed by a collection alone, which looks at nothing that was frozen before."""
    pair = Pair(site, other=Site(tmp_path / "other", "other.example.net") if named else None)
    for i in range(5):
        pair.client.send_stream_data(4 * i, b"a part")
    pair.to_server()
    pair.events(pair.server)
    pair.server.reset_stream(0, 1)
    pair.server.send_stream_data(4, b"reply", end_stream=True)
    pair.to_client()  # and is not acknowledged
    machine = pair.server
    pair.server = pair.client
    parts: list[Any] = [machine, machine.tls, *machine._streams.values(), *machine._spaces.values()]
    parts += [packet for space in machine._spaces.values() for packet in space.sent_packets.values()]
    left = [weakref.ref(each) for each in parts]
    assert {"QuicStream", "QuicPacketSpace", "QuicSentPacket"} < {type(each).__name__ for each in parts}
    parts.clear()
    gc.disable()
    try:
        quicmachine.take_apart(machine)
        del machine
        assert not [each() for each in left if each() is not None]
    finally:
        gc.enable()


def test_a_connection_that_has_not_begun_can_be_taken_apart() -> None:
    quicmachine.take_apart(QuicConnection(configuration=QuicConfiguration(alpn_protocols=["doq"])))


def test_both_halves_of_a_stream_are_those_with_bounds() -> None:
    made = QuicStream(stream_id=0)
    assert type(made.receiver) is quicmachine._Receiver
    assert all(type(each) is quicmachine._Ranges for each in (made.receiver._ranges, made.sender._acked))
    assert type(made.sender._pending) is quicmachine._Ranges


@pytest.mark.parametrize("lost", [2, 3, 5])
def test_a_message_of_64_kib_of_which_every_other_packet_is_lost_comes_whole(site: Site, lost: int) -> None:
    pair = Pair(site)
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream, bytes(65_537), end_stream=True)
    came = sent = 0
    for _ in range(3000):
        for data, _ in pair.client.datagrams_to_send(pair.now):
            sent += 1
            if sent > 200 or sent % lost:
                pair.server.receive_datagram(data, ("192.0.2.2", 853), pair.now)
        came += sum(len(each.data) for each in pair.events(pair.server) if isinstance(each, events.StreamDataReceived))
        pair.now += 0.005
        pair.to_client()
        at = pair.client.get_timer()
        if at is not None and pair.now >= at:
            pair.client.handle_timer(pair.now)
        if came == 65_537:
            break
    assert came == 65_537


def test_room_is_given_as_it_is_read(site: Site) -> None:
    pair = Pair(site)
    size = 3 * HELD
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream, bytes(size), end_stream=True)
    pair.client.send_stream_data(stream + 4, bytes(size), end_stream=True)
    came = 0
    for _ in range(1000):
        pair.to_server()
        came += sum(len(each.data) for each in pair.events(pair.server) if isinstance(each, events.StreamDataReceived))
        pair.to_client()
    assert came == 2 * size


def test_octets_of_a_handshake_that_wait_for_others_are_bounded(site: Site) -> None:
    pair = Pair(site)
    crypto = pair.client._crypto_streams[Epoch.ONE_RTT].sender
    crypto.write(bytes(100_000))
    crypto._buffer_start += 20_000  # as if it had been sent before
    del crypto._buffer[:20_000]
    crypto._pending.subtract(0, 20_000)
    for _ in range(100):
        pair.to_server()
        pair.to_client()
    ended = [each for each in pair.events(pair.client) if isinstance(each, events.ConnectionTerminated)]
    pair.pass_time(100)
    pair.client.handle_timer(pair.now)
    ended += [each for each in pair.events(pair.client) if isinstance(each, events.ConnectionTerminated)]
    assert ended and ended[0].error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED


def test_http3_offers_no_table_of_fields_and_keeps_nothing_of_a_stream_that_is_forgotten(site: Site) -> None:
    pair = Pair(site, alpn="h3")
    server, client = quicmachine.Http3(pair.server), H3Connection(pair.client)
    stream = pair.client.get_next_available_stream_id()
    client.send_headers(stream, [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")])
    pair.to_server()
    pair.to_client()
    came = [event for each in pair.events(pair.server) for event in server.handle_event(each)]
    assert any(isinstance(each, HeadersReceived) for each in came)
    for each in pair.events(pair.client):
        client.handle_event(each)
    assert client.received_settings is not None
    assert client.received_settings[Setting.QPACK_MAX_TABLE_CAPACITY] == 0
    assert client.received_settings[Setting.QPACK_BLOCKED_STREAMS] == 0
    kept = len(server._stream)
    server.forget(stream)
    assert len(server._stream) == kept - 1 and stream not in server._stream


def test_each_response_over_http3_had_an_entry_in_a_table_at_the_client(site: Site) -> None:
    """And each entry an acknowledgement by the client, in a frame of its own."""
    pair = Pair(site, alpn="h3")
    server, client = quicmachine.Http3(pair.server), H3Connection(pair.client)
    beside = []
    for number in range(20):
        stream = pair.client.get_next_available_stream_id()
        asked = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")]
        client.send_headers(stream, asked, end_stream=True)
        pair.to_server()
        for event in pair.events(pair.server):
            if number > 1 and isinstance(event, events.StreamDataReceived) and event.stream_id & 2:
                beside.append(event)
            server.handle_event(event)
        fields = [(b":status", b"200"), (b"content-type", b"application/dns-message"), (b"x-n", b"%d" % (number % 2))]
        server.send_headers(stream, fields, end_stream=True)
        pair.to_client()
        came = [each for event in pair.events(pair.client) for each in client.handle_event(event)]
        assert [each.headers for each in came if isinstance(each, HeadersReceived)] == [fields]
    assert client.received_settings and not beside


def test_no_table_of_aioquic_was_made_with_another_hash_of_an_epoch() -> None:
    assert len({Epoch.INITIAL, Epoch.ONE_RTT} & set(Epoch)) == 2
    modules = [module for name, module in sys.modules.items() if name.startswith("aioquic.")]
    tables = [each for module in modules for each in vars(module).values() if isinstance(each, dict | set | frozenset)]
    assert len(modules) > 10 and not any(isinstance(key, Epoch) for table in tables for key in table)


def request(*frames: bytes, fields: bytes = b"") -> bytes:
    """The octets of a request's stream: its fields, the plain ones and others that are encoded already, and frames."""
    _, block = pylsqpack.Encoder().encode(
        0, [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")]
    )
    block += fields
    return b"\1" + (0x8000_0000 | len(block)).to_bytes(4, "big") + block + b"".join(frames)


MANY = {
    "empty frames of a body": (0, request(b"\0\0" * 40_000)),
    "frames that nobody knows": (0, request(b"\x21\0" * 40_000)),
    "fields": (0, request(fields=b"\xe3" * 1_000)),
    "long fields": (0, request(fields=b"\xe3" * 60_000)),
    "frames beside requests": (2, b"\0\4\0" + b"\x21\0" * 8_000),
    "settings beside requests": (2, b"\0\4\0" + b"\x0d\1\1" * 5_000),
}


@pytest.mark.parametrize("kind", MANY)
def test_what_came_of_a_stream_at_once_held_the_loop_for_a_tenth_of_a_second(
    site: Site, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(site, alpn="h3")
    server = quicmachine.Http3(pair.server)
    stream, octets = MANY[kind]
    looked = []
    validate = h3.validate_header_name
    monkeypatch.setattr(h3, "validate_header_name", lambda name: looked.append(name) or validate(name))
    found = server.handle_event(events.StreamDataReceived(data=octets, end_stream=False, stream_id=stream))
    assert len(found) <= quicmachine.MAX_FRAMES and len(looked) < 1_000
    ended = pair.server._close_event
    assert ended is not None and ended.error_code == h3.ErrorCode.H3_EXCESSIVE_LOAD


def test_a_request_in_many_frames_and_with_many_fields_is_read(site: Site) -> None:
    pair = Pair(site, alpn="h3")
    server = quicmachine.Http3(pair.server)
    octets = request(*[b"\0\1x"] * 200, fields=b"\xe3" * 200)
    came = server.handle_event(events.StreamDataReceived(data=octets, end_stream=True, stream_id=0))
    assert isinstance(came[0], HeadersReceived) and len(came[0].headers) == 204 and len(came) == 201


def test_nothing_else_touches_a_private_attribute_of_aioquic() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [*ROOT.glob("kdns/**/*.py"), *ROOT.glob("plugins/**/*.py")]
        if path.name != "quicmachine.py" and "quic" in (text := path.read_text())
        for line in text.splitlines()
        if re.search(r"\b(quic|frames|http|machine)\._[a-z]", line)
    ]
    assert found == []


def test_the_dependency_on_aioquic_is_bounded_above() -> None:
    assert re.search(r'"aioquic>=[0-9.]+,<[0-9.]+"', (ROOT / "pyproject.toml").read_text())
