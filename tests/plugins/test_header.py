"""header: bits of replies."""

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset

from kdns.testing import answer, block, flags
from tests.fixtures import Serve, Start


def test_header_sets_and_clears_bits(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    rules = "header {\n response set aa\n response clear ra\n query clear rd\n }"
    reply = serve(block(rules, f"forward . {up.address}")).ask("x.org.")
    assert flags(reply) == {"QR", "AA"} and not up.queries[0].flags & dns.flags.RD


def test_a_bit_that_is_set_is_in_replies_from_the_cache_too(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("header {\n response set aa\n }", "cache 30", f"forward . {up.address}"))
    assert [flags(server.ask("x.org.")) for _ in range(3)] == [{"QR", "AA", "RD", "RA"}] * 3
    assert len(up.queries) == 1
