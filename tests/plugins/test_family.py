"""family: IPv6 hidden where nobody can use it."""

from pathlib import Path

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset
import pytest
import yaml

from kdns.plugins import family as family_module
from kdns.plugins.family import without_hint
from kdns.testing import answer, block, code, data, flags
from kdns.testing.objects import endpoint, endpointslice, service
from tests.fixtures import Serve, Start


def cluster(tmp_path: Path, *addresses: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([
        service("n1/web", *addresses), service("n1/db"), endpointslice("n1/db-1", "db", endpoint("10.1.0.1")),
    ]))  # fmt: skip
    return f"kubernetes cluster.local {{\n manifests {path}\n }}"


def both(query: dns.message.Message, proto: str) -> dns.message.Message:
    kind = query.question[0].rdtype
    return answer(query, "AAAA 2001:db8::1" if kind == 28 else "A 192.0.2.1")


def test_outside_ipv6_is_hidden_as_no_data_and_a_and_own_names_are_not(
    serve: Serve, upstream: Start, tmp_path: Path
) -> None:
    up = upstream(both)
    server = serve(
        block("family {\n ipv6 off\n }", cluster(tmp_path, "10.0.0.1", "fd00::1"), "cache", f"forward . {up.address}")
    )
    reply = server.ask("www.example.org.", "AAAA")
    assert code(reply) == "NODATA" and "RA" in flags(reply) and not up.queries
    assert data(server.ask("www.example.org.")) == ["192.0.2.1"]
    assert data(server.ask("web.n1.svc.cluster.local.", "AAAA")) == ["fd00::1"]
    assert code(server.ask("nope.n1.svc.cluster.local.", "AAAA")) == "NXDOMAIN"


def test_auto_hides_ipv6_only_where_nobody_has_it(
    serve: Serve, upstream: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family_module, "addresses", list)
    up = upstream(both)
    v4 = serve(block("family", cluster(tmp_path, "10.0.0.1"), f"forward . {up.address}"))
    assert code(v4.ask("www.example.org.", "AAAA")) == "NODATA"
    other = tmp_path / "six"
    other.mkdir()
    v6 = serve(block("family", cluster(other, "10.0.0.1", "fd00::1"), f"forward . {up.address}"))
    assert data(v6.ask("www.example.org.", "AAAA")) == ["2001:db8::1"]
    on = serve(block("family {\n ipv6 on\n }", f"forward . {up.address}"))
    assert data(on.ask("www.example.org.", "AAAA")) == ["2001:db8::1"]


def test_ipv6hint_is_taken_out_of_https_records(serve: Serve, upstream: Start) -> None:
    text = "1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1"
    up = upstream(lambda query, proto: answer(query, f"HTTPS {text}"))
    found = data(serve(block("family {\n ipv6 off\n }", f"forward . {up.address}")).ask("x.org.", "HTTPS"))
    assert found == ['1 . alpn="h2" ipv4hint="192.0.2.1"']
    for junk in (b"", b"\0", b"\0\1\xc0\x0c", b"\0\1\0\0\6", b"\0\1\0\0\6\0\x10abc"):
        assert without_hint(junk) == junk
