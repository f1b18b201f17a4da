"""Messages that reach the server: accept checks, EDNS, server blocks, truncation."""

import random
import struct
from collections.abc import Callable, Iterator

import dns.edns
import dns.flags
import dns.message
import pytest

from kdns.dns import edns
from kdns.dns.name import from_text
from kdns.testing import Server, Upstream, answer, block, code, data, eventually, flags
from kdns.testing.objects import endpoint, endpointslice, service
from tests.fixtures import Serve

COREFILE = """
.:{port} {
    bind 127.0.0.1
    kubernetes cluster.local {
        manifests PATH
    }
    loadbalance
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import yaml

    path = tmp_path_factory.mktemp("m") / "all.yaml"
    many = [endpoint(f"10.2.{i // 250}.{i % 250 + 1}") for i in range(5000)]
    slices = [endpointslice(f"n1/huge-{i}", "huge", *many[i : i + 100]) for i in range(0, 5000, 100)]
    some = [endpoint(f"10.3.0.{i + 1}", host=f"host-{i}") for i in range(60)]
    objects = [
        service("n1/web", "10.0.0.1"),
        service("n1/huge"),
        *slices,
        service("n1/some"),
        endpointslice("n1/some-1", "some", *some),
    ]
    path.write_text(yaml.safe_dump_all(objects))
    made = Server(COREFILE.replace("PATH", str(path)))
    yield made
    made.close()


def query(name: str = "web.n1.svc.cluster.local.", rtype: int = 1, cls: int = 1, **header: int) -> bytes:
    values = {"id": 0x1234, "flags": 0x0100, "qd": 1, "an": 0, "ns": 0, "ar": 0, **header}
    head = struct.pack("!6H", *(values[key] for key in ("id", "flags", "qd", "an", "ns", "ar")))
    return head + from_text(name) + struct.pack("!2H", rtype, cls)


OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


@pytest.mark.parametrize("data", [b"", b"\0", b"\x12\x34" * 5, query()[:11], query(flags=0x8100)], ids=range(5))
def test_what_is_too_short_or_a_response_gets_no_reply(server: Server, data: bytes) -> None:
    assert server.raw(data, timeout=0.2) is None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_opcodes_other_than_query_are_notimp_with_sections_empty(server: Server, opcode: int) -> None:
    assert server.raw(query(flags=opcode << 11 | 0x0110)) == struct.pack(
        "!6H", 0x1234, 0x8000 | opcode << 11 | 0x0110 | 4, 0, 0, 0, 0
    )


@pytest.mark.parametrize("counts", [{"qd": 0}, {"qd": 2}, {"an": 2}, {"ns": 2}, {"ar": 3}])
def test_odd_counts_are_formerr(server: Server, counts: dict[str, int]) -> None:
    assert server.raw(query(**counts)) == struct.pack("!6H", 0x1234, 0x8101, 0, 0, 0, 0)


@pytest.mark.parametrize("body", [
    b"\xc0\x0c\0\1\0\1",  # a pointer to itself
    b"\x03web\xc0\x0c\0\1\0\1",
    b"\x40abc\0\0\1\0\1",  # a label type of 01
    b"\x80abc\0\0\1\0\1",
    b"\x03web",  # no end
    b"\x03web\0\0\1",  # no class
    (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",  # 257 octets
    b"\0" * 4,
])  # fmt: skip
def test_a_question_that_cannot_be_read_is_formerr(server: Server, body: bytes) -> None:
    reply = server.raw(query()[:12] + body)
    assert reply is not None and reply[3] & 15 == 1 and reply[:2] == b"\x12\x34"


@pytest.mark.parametrize("tail", [
    OPT + OPT,
    b"\x01x\0" + OPT[1:],
    OPT[:-2] + b"\0\x05\0\x0a",
    b"\0\0\x29\x04\xd0\0\0\0\0\0\x06\0\x0a\0\x05ab",  # an option that runs out
    b"\0\0\x29\x04\xd0\0\0\0\0\0\x07\0\x0a\0\x03abc",  # a cookie of three octets
    b"\0\0\1\0\1\0\0\0\0\0\x09",
])  # fmt: skip
def test_records_of_a_query_that_cannot_be_read_are_formerr(server: Server, tail: bytes) -> None:
    ar = 2 if tail == OPT + OPT else 1
    reply = server.raw(query(ar=ar) + tail)
    assert reply is not None and reply[3] & 15 == 1


def test_trailing_octets_are_ignored_and_not_echoed(server: Server) -> None:
    plain = server.raw(query())
    assert plain is not None
    assert server.raw(query() + b"trailing junk") == plain


def test_the_header_copies_rd_and_cd_and_nothing_else(server: Server) -> None:
    for word, expected in ((0, 0x8400), (0x0100, 0x8500), (0x0010, 0x8410), (0x0130, 0x8510)):
        reply = server.raw(query(flags=word))
        assert reply is not None and int.from_bytes(reply[2:4], "big") == expected


@pytest.mark.parametrize("octets", [b"\0", b".", b"\\", b"\n", b'"', b"\xff", b" "])
def test_odd_octets_in_names_come_back_as_they_went(server: Server, octets: bytes) -> None:
    label = b"a" + octets + b"B"
    question = bytes((len(label),)) + label + from_text("n1.svc.cluster.local.") + b"\0\1\0\1"
    reply = server.raw(query()[:12] + question)
    assert reply is not None and reply[3] & 15 == 3 and reply[12 : 12 + len(question)] == question


def test_a_suffix_is_a_matter_of_labels(server: Server) -> None:
    lie = b"\x0fx\x07cluster\x05local\0"  # one label, which ends in the octets of cluster.local.
    reply = server.raw(query()[:12] + lie + b"\0\1\0\1")
    assert reply is not None and reply[3] & 15 == 2 and reply[6:12] == b"\0" * 6


# EDNS.


def test_edns_is_answered_with_our_size_and_the_clients_do_bit(server: Server) -> None:
    for size, do in ((512, False), (4096, True), (0, False), (65535, True)):
        reply = server.ask("web.n1.svc.cluster.local.", use_edns=0, payload=size, want_dnssec=do)
        assert (reply.edns, reply.payload, bool(reply.ednsflags & dns.flags.DO)) == (0, 1232, do)
        assert not reply.ednsflags & 0x7FFF
    assert server.ask("web.n1.svc.cluster.local.", use_edns=False).edns == -1


@pytest.mark.parametrize("version", [1, 100, 255])
def test_another_edns_version_is_badvers_without_an_answer(server: Server, version: int) -> None:
    reply = server.ask("web.n1.svc.cluster.local.", use_edns=version)
    assert (dns.rcode.to_text(reply.rcode()), reply.answer, reply.edns) == ("BADVERS", [], 0)


def test_options_are_not_echoed(server: Server) -> None:
    options = [dns.edns.GenericOption(code, b"x" * 8) for code in (3, 8, 9, 10, 11, 12, 65001) if code != 8]
    reply = server.ask("web.n1.svc.cluster.local.", use_edns=0, options=options)
    assert code(reply) == "NOERROR" and not reply.options


def opt(raw: bytes) -> bytes:
    return b"\0\0\x29\x04\xd0\0\0\0\0" + len(raw).to_bytes(2, "big") + raw


def code_of(wire: bytes | None) -> int:
    assert wire is not None
    return wire[3] & 15


def test_sixteen_thousand_empty_options_were_looked_through_for_each_query(server: Server) -> None:
    """One connection of such queries held everybody up for a second."""
    message = query(ar=1) + opt(b"\xfd\xe9\0\0" * 16000)
    with server.connect() as sock:
        sock.sendall(len(message).to_bytes(2, "big") + message)
        assert sock.recv(2) and code_of(sock.recv(512)) == 1
    for count, expected in ((edns.MAX_OPTIONS, 0), (edns.MAX_OPTIONS + 1, 1)):
        assert code_of(server.raw(query(ar=1) + opt(b"\xfd\xe9\0\0" * count))) == expected


@pytest.mark.parametrize(("subnet", "rcode"), [
    (b"\0\1\x18\0\xc0\0\2", 0),  # 192.0.2.0/24
    (b"\0\1\0\0", 0),
    (b"\0\0\0\0", 0),
    (b"\0\2\x38\0\x20\1\x0d\xb8\0\0\0", 0),
    (b"", 1),
    (b"\0\1\x18", 1),
    (b"\0\1\x18\0\xc0\0", 1),  # too few octets
    (b"\0\1\x18\0\xc0\0\2\0", 1),  # too many
    (b"\0\1\x14\0\xc0\0\2", 1),  # a bit beyond the prefix
    (b"\0\1\x18\x18\xc0\0\2", 1),  # a scope in a query
    (b"\0\1\x21\0\xc0\0\2\1\0", 1),  # 33 bits of IPv4
    (b"\0\2\x81\0" + bytes(17), 1),
    (b"\0\3\x08\0\x0a", 1),  # no such family
    (b"\0\0\x08\0\x0a", 1),
])  # fmt: skip
def test_a_malformed_client_subnet_was_let_through(server: Server, subnet: bytes, rcode: int) -> None:
    option = b"\0\x08" + len(subnet).to_bytes(2, "big") + subnet
    for _ in range(3):
        assert code_of(server.raw(query(ar=1) + opt(option))) == rcode


def test_options_of_more_octets_than_a_query_may_have_are_malformed(server: Server) -> None:
    for size, expected in ((edns.MAX_OPTIONS_SIZE, 0), (edns.MAX_OPTIONS_SIZE + 1, 1)):
        message = query(ar=1) + opt(edns.option(65001, b"x" * (size - 4)))
        with server.connect() as sock:
            sock.sendall(len(message).to_bytes(2, "big") + message)
            assert sock.recv(2) and code_of(sock.recv(512)) == expected


def test_a_reply_of_thousands_of_options_is_no_reply(serve: Serve, upstream: Callable[..., Upstream]) -> None:
    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        good = answer(query, "A 192.0.2.1").to_wire()
        plain = good[: good.index(b"\0\0\x29", 12)]
        return [plain + opt(b"\xfd\xe9\0\0" * 900), plain + opt(edns.extended_error(0, b"x" * 3500))]

    server = serve(block(f"forward . {upstream(script).address}"))
    assert server.ask("x.org.", tcp=True, use_edns=0).options[0].text == "x" * 3500  # type: ignore[attr-defined]


@pytest.mark.parametrize("rtype", ["OPT", "TSIG", "TKEY"])
def test_types_that_are_no_data_are_refused_as_questions(server: Server, rtype: str) -> None:
    assert code(server.ask("web.n1.svc.cluster.local.", rtype)) == "FORMERR"


@pytest.mark.parametrize("malformed", [
    edns.option(edns.SUBNET, b"\0\1\x18\1\x0a\2\3"), edns.option(edns.COOKIE, b"1234567"), b"\0\3\0\x09", b"\0\3\0",
    b"\xfd\xe9\0\0" * (edns.MAX_OPTIONS + 1),
])  # fmt: skip
def test_a_formerr_for_a_malformed_option_had_no_opt(server: Server, malformed: bytes) -> None:
    """Without one it says that the server knows no EDNS at all (RFC 6891, sections 6.1.1 and 7)."""
    reply = dns.message.from_wire(server.raw(query(ar=1) + opt(malformed)) or b"")
    assert code(reply) == "FORMERR" and reply.edns == 0 and not reply.options and reply.question


def test_a_formerr_for_a_type_that_is_no_data_had_no_opt(server: Server) -> None:
    assert server.ask("web.n1.svc.cluster.local.", "TKEY", use_edns=0).edns == 0
    assert server.ask("web.n1.svc.cluster.local.", "TKEY", use_edns=False).edns < 0


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY", "NONE"])
def test_other_classes_are_refused(server: Server, rdclass: str) -> None:
    assert code(server.ask("web.n1.svc.cluster.local.", "A", rdclass=rdclass)) == "REFUSED"


# Size.


def test_an_answer_that_does_not_fit_is_cut_to_whole_records_with_tc(server: Server) -> None:
    reply = server.ask("some.n1.svc.cluster.local.", use_edns=False)
    assert "TC" in flags(reply) and len(reply.to_wire()) <= 512 and 20 < len(reply.answer[0]) < 60
    edns = server.ask("some.n1.svc.cluster.local.", use_edns=0, payload=1232)
    assert "TC" not in flags(edns) and len(edns.answer[0]) == 60
    whole = server.ask("some.n1.svc.cluster.local.", tcp=True)
    assert "TC" not in flags(whole) and len(whole.answer[0]) == 60


def test_a_lost_additional_section_alone_sets_no_tc(server: Server) -> None:
    reply = server.ask("_http._tcp.host-1.some.n1.svc.cluster.local.", "SRV")
    assert code(reply) == "NXDOMAIN"
    cut = server.ask("host-1.some.n1.svc.cluster.local.", "SRV", use_edns=False)
    assert "TC" not in flags(cut) and len(cut.additional) == 1


def test_the_cut_is_another_part_from_time_to_time(server: Server) -> None:
    seen: set[str] = set()

    def grown() -> bool:
        seen.update(data(server.ask("huge.n1.svc.cluster.local.")))
        return len(seen) > 300

    eventually(grown)


def test_over_tcp_a_set_over_64_kib_is_cut_too(server: Server) -> None:
    reply = server.ask("huge.n1.svc.cluster.local.", tcp=True)
    assert "TC" in flags(reply) and 4000 < len(reply.answer[0]) < 5000
    srv = server.ask("_http._tcp.huge.n1.svc.cluster.local.", "SRV", tcp=True)
    assert "TC" in flags(srv) and len(srv.answer[0]) > 500


# Blocks.


def test_the_longest_zone_answers_and_ds_is_the_parents(serve: Serve) -> None:
    text = (
        "example.org:{port} {\n bind 127.0.0.1\n hosts /nowhere {\n 192.0.2.1 a.example.org\n }\n}\n"
        "sub.example.org:{port} {\n bind 127.0.0.1\n hosts /nowhere {\n 192.0.2.2 a.sub.example.org\n }\n}\n"
        "empty.org:{port} {\n bind 127.0.0.1\n}\n"
    )
    server = serve(text)
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    assert data(server.ask("A.Sub.Example.Org.")) == ["192.0.2.2"]
    assert code(server.ask("a.sub.example.org.", "DS")) == "SERVFAIL"
    assert code(server.ask("www.empty.org.")) == "REFUSED"
    assert code(server.ask("www.other.org.")) == "REFUSED"
    assert code(server.ask("xexample.org.")) == "REFUSED"


def test_keys_of_one_block_share_its_plugins_on_several_ports(serve: Serve) -> None:
    from kdns.testing import free_port

    other = free_port()
    server = serve(f"a.org:{{port}} b.org:{other} 192.0.2.0/24:{{port}} {{\n bind 127.0.0.1\n whoami\n}}\n")
    assert code(server.ask("x.a.org.")) == "EMPTY" and code(server.ask("x.b.org.")) == "REFUSED"
    assert code(server.ask("7.2.0.192.in-addr.arpa.", "PTR")) == "EMPTY"
    port, server.port = server.port, other
    assert code(server.ask("x.b.org.")) == "EMPTY"
    server.port = port


# Anything at all.


def test_mutated_queries_never_stop_the_server(server: Server) -> None:
    chance = random.Random(20261121)
    good = [dns.message.make_query("web.n1.svc.cluster.local.", "A", use_edns=0).to_wire(), query(ar=1) + OPT]
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for i in range(3000):
            message = bytearray(chance.choice(good))
            for _ in range(chance.randint(1, 6)):
                message[chance.randrange(len(message))] = chance.randrange(256)
            sock.sendto(
                bytes(message[: chance.randint(1, len(message))]) if i % 3 == 0 else bytes(message),
                ("127.0.0.1", server.port),
            )
            if i % 50 == 0:
                assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
    assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
