"""Clients that misbehave, as a whole server meets them: what is left of the tables beside the tests of its parts."""

import socket
import struct
import threading
import time

import dns.edns
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kdns.testing import answer, block, code, data, free_port, http_get, soa
from tests.fixtures import Serve, Start

HEADER = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 1)
QUESTION = b"\3www\7example\3org\0\0\1\0\1"


def with_options(*options: tuple[int, bytes]) -> bytes:
    """A query with these options of EDNS."""
    packed = b"".join(struct.pack("!2H", number, len(value)) + value for number, value in options)
    return HEADER + QUESTION + b"\0" + struct.pack("!2HIH", 41, 1232, 0, len(packed)) + packed


@pytest.mark.parametrize("opcode", [dns.opcode.NOTIFY, dns.opcode.UPDATE])
def test_a_notify_or_an_update_touches_nothing_that_is_kept(
    serve: Serve, upstream: Start, opcode: dns.opcode.Opcode
) -> None:
    """A NOTIFY of anybody flushed a cache elsewhere, and an UPDATE was sent on."""
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("cache 30", f"forward . {up.address}"))
    assert data(server.ask("www.example.org.")) == ["192.0.2.1"]
    for name in ("example.org.", "www.example.org.", "."):
        message = dns.message.make_query(name, "SOA")
        message.set_opcode(opcode)
        for tcp in (False, True):
            assert server.send(message, tcp=tcp).rcode() == dns.rcode.NOTIMP
    assert data(server.ask("www.example.org.")) == ["192.0.2.1"]
    assert len(up.queries) == 1


@pytest.mark.parametrize("zone", [".", "org.", "example.net.", "www.example.org."])
def test_a_denial_with_the_soa_of_another_zone_denies_nothing_there(serve: Serve, upstream: Start, zone: str) -> None:
    """A denial was believed for all of the zone whose SOA came with it."""

    def says(query: dns.message.Message, proto: str) -> dns.message.Message:
        if query.question[0].name != dns.name.from_text("www.example.org."):
            return answer(query, "A 192.0.2.1")
        reply = soa(answer(query), zone)
        reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply

    server = serve(block("cache 30", f"forward . {upstream(says).address}"))
    for _ in range(2):
        assert code(server.ask("www.example.org.")) == "NXDOMAIN"
        for name in ("example.org.", "mail.example.org.", "example.net.", "www.example.net.", "org."):
            assert data(server.ask(name)) == ["192.0.2.1"], name


@pytest.mark.parametrize("plugin", ["", "cookie"])
def test_a_cookie_of_a_length_that_there_is_not_is_malformed(serve: Serve, plugin: str) -> None:
    """RFC 7873, section 5.2.2: 8 octets, or 16 to 40."""
    server = serve(block("whoami", plugin))
    wrong = []
    for length in range(60):
        reply = server.raw(with_options((10, bytes(length))))
        assert reply is not None
        good = length == 8 or 16 <= length <= 40
        # RFC 9018, section 4, and RFC 7873, section 5.2.3: a server's part that is not ours is as none.
        if (reply[3] & 15) != (0 if good else 1):
            wrong.append((length, reply[3] & 15))
    assert not wrong


def test_an_option_that_is_repeated_costs_nothing_and_is_answered_once(serve: Serve) -> None:
    server = serve(block("whoami", "nsid a", "cookie"))
    for number, value in ((3, b""), (10, bytes(8)), (12, bytes(4))):
        reply = server.raw(with_options(*[(number, value)] * 20))
        assert reply is not None
        options = [option.otype for option in dns.message.from_wire(reply).options]
        assert options.count(dns.edns.OptionType(number)) <= 1, (number, options)


def test_metrics_can_be_read_whatever_names_were_asked_for(serve: Serve) -> None:
    """A quote in a name, as a label of a metric, ended the scraping of a whole server elsewhere."""
    port = free_port()
    server = serve(block("whoami", "errors", "metadata", f"prometheus 127.0.0.1:{port}"))
    for octets in (b'"', b"\\", b"\n", b"\0", b"\xff", b'a"} 1\n', b"{", b"\r\n", b"\x1b[2J"):
        label = bytes((len(octets),)) + octets
        assert server.raw(struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + label + b"\3org\0\0\1\0\1") is not None
    families = list(text_string_to_metric_families(http_get(port, "/metrics")[1]))
    assert any(family.name == "coredns_dns_requests" for family in families)


def test_a_hundred_thousand_queries_on_one_connection_leave_nothing_behind(serve: Serve) -> None:
    """Each was a call deeper than the one before, elsewhere."""
    count, piece = 100_000, 1_000
    server = serve(block("whoami"))
    message = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + QUESTION
    frames = (len(message).to_bytes(2, "big") + message) * piece
    replies = 0

    def read(sock: socket.socket) -> None:
        nonlocal replies
        with sock.makefile("rb") as stream:
            while head := stream.read(2):
                assert stream.read(int.from_bytes(head, "big"))[:2] == message[:2]
                replies += 1

    with server.connect(timeout=60) as sock:
        thread = threading.Thread(target=read, args=(sock,))
        thread.start()
        for number in range(count // piece):
            sock.sendall(frames)
            if number % 20 == 0:  # others are served meanwhile
                assert code(server.ask("www.example.org.")) == "EMPTY"
        sock.shutdown(socket.SHUT_WR)
        thread.join(60)
    assert replies == count


def test_a_port_that_is_closed_for_one_query_is_asked_by_the_next(serve: Serve) -> None:
    """An ICMP error, which anybody may have sent, is no reason to leave an upstream out."""
    port = free_port()
    server = serve(block("errors", f"forward . 127.0.0.1:{port}"))
    assert code(server.ask("one.example.org.")) == "SERVFAIL"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        done: list[float] = []

        def ask() -> None:
            began = time.monotonic()
            assert data(server.ask("two.example.org.")) == ["192.0.2.1"]
            done.append(time.monotonic() - began)

        thread = threading.Thread(target=ask)
        thread.start()
        sock.settimeout(5)
        while thread.is_alive():
            query, peer = sock.recvfrom(4096)
            sock.sendto(answer(dns.message.from_wire(query), "A 192.0.2.1").to_wire(), peer)
            thread.join(0.05)
    assert done and done[0] < 1.5
