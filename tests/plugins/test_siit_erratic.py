"""siit: addresses of one family from the other's, by maps and prefix. erratic: dropped, cut and late replies, by the
count.
"""

import time
from collections.abc import Callable

import dns.exception
import dns.flags
import dns.message
import pytest

from kdns.corefile import CorefileError
from kdns.testing import Server, Upstream, block, code, data
from kdns.testing.upstream import answer, soa
from tests.fixtures import Serve

ADDRESSES = {
    ("four.example.", "A"): ("A 192.0.2.5", "A 198.51.100.1"),
    ("six.example.", "AAAA"): ("AAAA 2001:db8:aaaa::7", "AAAA 2001:db8:ffff::1"),
    ("both.example.", "A"): ("A 192.0.2.6",),
    ("both.example.", "AAAA"): ("AAAA 2001:db8::9",),
    ("alien.example.", "AAAA"): ("AAAA 2001:db8:ffff::1",),
}


def script(query: dns.message.Message, proto: str) -> dns.message.Message:
    name, rtype = str(query.question[0].name), dns.rdatatype.to_text(query.question[0].rdtype)
    if name == "none.example.":
        reply = soa(answer(query), "example.")
        reply.set_rcode(3)
        return reply
    found = ADDRESSES.get((name, rtype), ())
    return answer(query, *found, ttl=300) if found else soa(answer(query), "example.", ttl=30)


@pytest.fixture
def siit(serve: Serve, upstream: Callable[..., Upstream]) -> Server:
    peer = upstream(script)
    return serve(
        block(
            "siit {\n eam 192.0.2.0/24 2001:db8:aaaa::/120\n eam 192.0.2.5/32 2001:db8:bbbb::5/128\n }",
            f"forward . {peer.address}",
        )
    )


def test_ipv6_addresses_are_made_by_the_longest_map_and_else_by_the_prefix(siit: Server) -> None:
    for _ in range(3):
        reply = siit.ask("four.example.", "AAAA")
        assert data(reply) == ["2001:db8:bbbb::5", "64:ff9b::c633:6401"] and reply.answer[0].ttl == 30


def test_ipv4_addresses_are_made_by_maps_only(siit: Server) -> None:
    assert data(siit.ask("six.example.")) == ["192.0.2.7"]
    assert code(siit.ask("alien.example.")) == "NODATA"


def test_what_a_name_has_of_the_family_asked_and_what_is_not_there_stay(siit: Server) -> None:
    assert data(siit.ask("both.example.")) == ["192.0.2.6"] and data(siit.ask("both.example.", "AAAA")) == [
        "2001:db8::9"
    ]
    assert code(siit.ask("none.example.", "AAAA")) == "NXDOMAIN" and code(siit.ask("four.example.", "TXT")) == "NODATA"


@pytest.mark.parametrize(("text", "expected"), [
    ("siit x", "unexpected argument"), ("siit {\n eam 192.0.2.0/24\n }", "expected an IPv4 and an IPv6 prefix"),
    ("siit {\n eam 192.0.2.0/24 2001:db8::/124\n }", "is too small for"),
    ("siit {\n eam 192.0.2.1/24 2001:db8::/120\n }",
    "expected an IPv4 prefix"),
    ("siit {\n ipv6_prefix 64:ff9b::/95\n }", "a prefix of 95 bits"), ("siit {\n bogus\n }", "unknown property"),
    ("erratic {\n drop x\n }", "expected a whole number"), ("erratic {\n drop -1\n }", "out of range"),
    ("erratic {\n delay 1 5\n }",
    "a unit is missing"),
    ("erratic {\n bogus\n }", "unknown property"),
])  # fmt: skip
def test_bad_directives_are_named(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(block(text, "whoami"))
    assert expected in str(caught.value)


def test_every_second_query_is_dropped(serve: Serve) -> None:
    server = serve(block("erratic"))
    with pytest.raises(dns.exception.Timeout):
        server.ask("a.example.", timeout=0.3)
    assert data(server.ask("a.example.")) == ["192.0.2.53"]
    with pytest.raises(dns.exception.Timeout):
        server.ask("a.example.", timeout=0.3)


def test_replies_are_cut_late_and_large(serve: Serve) -> None:
    server = serve(block("erratic {\n truncate 3\n delay 2 200ms\n large\n }"))
    began = time.monotonic()
    first = server.ask("a.example.")
    assert first.flags & dns.flags.TC and time.monotonic() - began >= 0.2 and len(first.answer[0]) == 30
    second = server.ask("a.example.", "AAAA")
    assert not second.flags & dns.flags.TC and data(second) == ["2001:db8::53"]
    assert code(server.ask("a.example.", "TXT")) == "SERVFAIL"


def test_a_small_zone_is_transferred(serve: Serve) -> None:
    server = serve(block("erratic {\n drop 0\n }"))
    reply = server.ask("example.org.", "AXFR", tcp=True)
    assert sum(len(rrset) for rrset in reply.answer) >= 4 and reply.answer[0].rdtype == 6
