"""cancel: queries that take too long."""

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset
import pytest

from kdns.testing import block, eventually
from tests.fixtures import Serve, Start


def test_cancel_drops_what_takes_too_long(serve: Serve, upstream: Start) -> None:
    server = serve(block("cancel 200ms", f"forward . {upstream(lambda query, proto: None).address}"))
    with pytest.raises(dns.exception.Timeout):
        server.ask("x.org.", timeout=0.6)
    eventually(lambda: not any(found.waiting.table for found in server.server.instance.dispatchers.values()))  # type: ignore[union-attr]
