"""The questions of RFC 8906, section 8: what a server says to messages that are unusual and allowed, of the cluster's
names, of names that are forwarded, and of those that the cache has, over UDP and TCP.
"""

from collections.abc import Iterator, Sequence

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest

from kdns.testing import Server, Upstream, answer, soa

UNKNOWN_OPTION = dns.edns.GenericOption(100, b"")
UNKNOWN_FLAG = 0x0040
RESERVED_BIT = 0x0040  # of the header (RFC 1035: Z)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Serves the cluster's zone, forwards a.org through the cache, and forwards b.org."""

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        if query.question[0].rdtype == dns.rdatatype.SOA:
            return answer(query, "SOA ns.org. h.org. 1 2 3 4 5")
        return soa(answer(query), "org.")

    upstream = Upstream(script)
    forward = f"forward . {upstream.address}\n"
    bound = "bind 127.0.0.1\n"
    text = (
        f"cluster.local:{{port}} {{\n{bound} kubernetes {{\n manifests\n }}\n}}\n"
        f"a.org:{{port}} {{\n{bound} cache\n {forward}}}\nb.org:{{port}} {{\n{bound} {forward}}}\n"
    ).replace(" manifests\n", " manifests /dev/null\n")
    with Server(text) as made:
        yield made
    upstream.close()


def query(name: str, rtype: str = "SOA") -> dns.message.Message:
    made = dns.message.make_query(name, rtype)
    made.flags &= ~dns.flags.RD
    return made


def extended(zone: str, version: int, flags: int, options: Sequence[dns.edns.Option]) -> dns.message.Message:
    made = query(zone)
    made.use_edns(version, flags, 1232, options=list(options))
    return made


ZONES = pytest.mark.parametrize("zone", ["cluster.local.", "a.org.", "b.org."])
TRANSPORTS = pytest.mark.parametrize("tcp", [False, True])
OPTIONS = pytest.mark.parametrize("options", [(), (UNKNOWN_OPTION,)])


@ZONES
@TRANSPORTS
@pytest.mark.parametrize("flags", [0, dns.flags.AD, dns.flags.CD, dns.flags.AD | dns.flags.CD, RESERVED_BIT])
def test_bits_of_the_header_take_no_answer_away(server: Server, zone: str, tcp: bool, flags: int) -> None:
    """Sections 8.1.1, 8.1.3.1 and 8.1.3.2."""
    asked = query(zone)
    asked.flags |= flags
    for _ in range(2):
        reply = server.send(asked, tcp=tcp)
        assert reply.rcode() == dns.rcode.NOERROR and reply.answer[0].rdtype == dns.rdatatype.SOA
        assert not reply.flags & RESERVED_BIT and reply.edns == -1


@ZONES
@TRANSPORTS
def test_a_type_that_nobody_knows_is_a_name_without_it(server: Server, zone: str, tcp: bool) -> None:
    """Section 8.1.2."""
    reply = server.send(query(zone, "TYPE1000"), tcp=tcp)
    assert reply.rcode() == dns.rcode.NOERROR and not reply.answer
    assert [each.rdtype for each in reply.authority] == [dns.rdatatype.SOA]


@ZONES
@TRANSPORTS
def test_an_opcode_that_nobody_knows_is_notimp(server: Server, zone: str, tcp: bool) -> None:
    """Section 8.1.4."""
    asked = query(zone)
    asked.set_opcode(dns.opcode.Opcode(15))
    reply = server.send(asked, tcp=tcp)
    assert reply.rcode() == dns.rcode.NOTIMP and reply.opcode() == 15 and not reply.answer


@ZONES
@TRANSPORTS
@pytest.mark.parametrize("flags", [0, UNKNOWN_FLAG, dns.flags.DO, dns.flags.DO | UNKNOWN_FLAG])
@OPTIONS
def test_what_edns_may_carry_takes_no_answer_away(
    server: Server, zone: str, tcp: bool, flags: int, options: tuple[dns.edns.Option, ...]
) -> None:
    """Sections 8.2.1, 8.2.3, 8.2.4 and 8.2.8."""
    asked = extended(zone, 0, flags, options)
    for _ in range(2):
        reply = server.send(asked, tcp=tcp)
        assert reply.rcode() == dns.rcode.NOERROR and reply.answer[0].rdtype == dns.rdatatype.SOA
        assert reply.edns == 0 and not reply.ednsflags & UNKNOWN_FLAG
        assert not any(each.otype == UNKNOWN_OPTION.otype for each in reply.options)


@ZONES
@TRANSPORTS
@pytest.mark.parametrize("flags", [0, UNKNOWN_FLAG, dns.flags.DO])
@OPTIONS
def test_another_version_of_edns_is_badvers_whatever_comes_with_it(
    server: Server, zone: str, tcp: bool, flags: int, options: tuple[dns.edns.Option, ...]
) -> None:
    """Sections 8.2.2, 8.2.5, 8.2.6 and 8.2.9."""
    reply = server.send(extended(zone, 1, flags, options), tcp=tcp)
    assert reply.rcode() == dns.rcode.BADVERS and reply.edns == 0 and not reply.answer
    assert not reply.ednsflags & UNKNOWN_FLAG and not reply.options


@ZONES
@TRANSPORTS
def test_several_options_at_once_take_no_answer_away(server: Server, zone: str, tcp: bool) -> None:
    """Section 8.2.10: NSID, COOKIE, EXPIRE and a client's subnet."""
    options = [
        dns.edns.GenericOption(3, b""), dns.edns.CookieOption(b"12345678", b""), dns.edns.GenericOption(9, b""),
        dns.edns.ECSOption("192.0.2.0", 24),
    ]  # fmt: skip
    reply = server.send(extended(zone, 0, 0, options), tcp=tcp)
    assert reply.rcode() == dns.rcode.NOERROR and reply.answer[0].rdtype == dns.rdatatype.SOA and reply.edns == 0


def test_keepalive_is_answered_over_tcp_and_not_over_udp(server: Server) -> None:
    """RFC 7828, sections 3.2.2 and 3.3.2."""
    asked = extended("cluster.local.", 0, 0, [dns.edns.GenericOption(11, b"")])
    assert [each.otype for each in server.send(asked, tcp=True).options] == [11]
    assert not server.send(asked).options
