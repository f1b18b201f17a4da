"""acl: who may ask for what."""

import pytest

from kdns.testing import answer, block, code, data, flags, free_port, http_get
from tests.fixtures import Serve, Start


def test_acl_allows_blocks_filters_and_drops(serve: Serve) -> None:
    port = free_port()
    rules = [
        "acl ok.org {\n allow net 127.0.0.1\n block\n }",
        "acl other.org {\n allow net 192.0.2.0/24\n block type MX\n filter type A AAAA\n }",
        "acl quiet.org {\n drop net 127.0.0.0/8\n }", "acl all.org {\n block type * net *\n }",
    ]  # fmt: skip
    server = serve(block(*rules, f"prometheus 127.0.0.1:{port}", "whoami"))
    assert code(server.ask("x.ok.org.")) == "EMPTY" and code(server.ask("free.org.")) == "EMPTY"
    blocked = server.ask("x.other.org.", "MX", use_edns=0)
    assert code(blocked) == "REFUSED" and int(blocked.options[0].code) == 15  # type: ignore[attr-defined]
    filtered = server.ask("x.other.org.", "A", use_edns=0)
    assert code(filtered) == "EMPTY" and not filtered.additional and "RA" in flags(filtered)
    assert int(filtered.options[0].code) == 17  # type: ignore[attr-defined]
    assert server.ask("x.other.org.", "MX", use_edns=False).edns == -1
    assert code(server.ask("x.all.org.", "TXT")) == "REFUSED"
    with pytest.raises(Exception, match="timed out"):
        server.ask("x.quiet.org.", timeout=0.3)
    _, text = http_get(port, "/metrics")
    label = f'server="dns://127.0.0.1:{server.port}",view=""'
    assert f'coredns_acl_blocked_requests_total{{{label},zone="other.org."}} 2.0' in text
    assert f'coredns_acl_dropped_requests_total{{{label},zone="quiet.org."}} 1.0' in text


def test_acl_judges_the_name_after_rewrite_and_before_the_cache(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    rules = [
        "rewrite name alias.org secret.org",
        "acl secret.org {\n block net 127.0.0.1\n }",
        "cache",
        f"forward . {up.address}",
    ]
    server = serve(block(*rules))
    assert code(server.ask("alias.org.")) == code(server.ask("secret.org.")) == "REFUSED"
    assert data(server.ask("open.org.")) == ["192.0.2.1"]
