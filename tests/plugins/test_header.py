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
