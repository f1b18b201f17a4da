"""dns64: AAAA made from A (RFC 6147)."""

from kdns import metrics
from kdns.testing import (
    answer,
    block,
)
from tests.fixtures import Serve, Start


def test_queries_that_come_through_dns64_count_as_allowed(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("dns64 {\n allow_ipv4\n }", "acl {\n allow\n }", f"forward . {up.address}"))
    server.ask("x.org.", "AAAA")
    # The question as it came, and dns64's own for A.
    assert metrics.REGISTRY["coredns_acl_allowed_requests_total"].slot(f"dns://127.0.0.1:{server.port}", "")[0] == 2
