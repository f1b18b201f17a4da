"""any: short answers to ANY (RFC 8482)."""

from pathlib import Path

from kdns.testing import block, code, data
from tests.fixtures import Serve


def test_any_answers_any_with_one_record(serve: Serve) -> None:
    server = serve(block("any", "whoami"))
    assert data(server.ask("x.org.", "ANY")) == ['"ANY obsoleted" "See RFC 8482"']
    assert code(server.ask("x.org.", "A")) == "EMPTY"


def test_a_record_without_a_signature_stood_in_a_signed_zone(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "db").write_text("$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n")
    server = serve(f"a.org:{{port}} {{\n bind 127.0.0.1\n any\n file {tmp_path}/db\n}}\n")
    assert data(server.ask("ns.a.org.", "ANY")) == ['"ANY obsoleted" "See RFC 8482"']
    for _ in range(2):
        assert data(server.ask("ns.a.org.", "ANY", want_dnssec=True)) == ["192.0.2.1"]
