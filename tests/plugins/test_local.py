"""local: names that never leave this server (RFC 6761)."""

from kdns.testing import answer, block, code, data
from tests.fixtures import Serve, Start


def test_local_names_never_leave(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("local", f"forward . {up.address}"))
    assert data(server.ask("localhost.")) == ["127.0.0.1"] and data(server.ask("localhost.", "AAAA")) == ["::1"]
    assert data(server.ask("x.localhost.")) == ["127.0.0.1"] and data(server.ask("localhost.corp.org.")) == [
        "127.0.0.1"
    ]
    assert code(server.ask("localhost.", "MX")) == code(server.ask("x.localhost.", "MX")) == "NODATA"
    assert data(server.ask("1.0.0.127.in-addr.arpa.", "PTR")) == ["localhost."]
    assert code(server.ask("9.9.9.127.in-addr.arpa.", "PTR")) == "NXDOMAIN"
    assert data(server.ask("127.in-addr.arpa.", "NS")) == ["localhost."]
    assert not up.queries and data(server.ask("localhosts.org.")) == ["192.0.2.1"]
    off = serve(block("local {\n localhost_prefix off\n }", f"forward . {up.address}"))
    assert data(off.ask("localhost.corp.org.")) == ["192.0.2.1"]
