"""dns64: AAAA made from A (RFC 6147)."""

import dns.message
import dns.rcode
import dns.rdatatype

from kdns import metrics
from kdns.testing import (
    answer,
    block,
    code,
    soa,
)
from tests.fixtures import Serve, Start


def test_queries_that_come_through_dns64_count_as_allowed(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("dns64 {\n allow_ipv4\n }", "acl {\n allow\n }", f"forward . {up.address}"))
    server.ask("x.org.", "AAAA")
    # The question as it came, and dns64's own for A.
    assert metrics.REGISTRY["coredns_acl_allowed_requests_total"].slot(f"dns://127.0.0.1:{server.port}", "")[0] == 2


def test_a_name_that_exists_was_denied_where_the_upstream_was_of_two_minds(serve: Serve, upstream: Start) -> None:
    def two_minds(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query), zone="org.")
        if query.question[0].rdtype == dns.rdatatype.A:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply

    server = serve(block("dns64 {\n allow_ipv4\n }", f"forward . {upstream(two_minds).address}"))
    reply = server.ask("odd.example.org.", "AAAA")
    assert code(reply) == "NODATA"
