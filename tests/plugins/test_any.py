"""any: short answers to ANY (RFC 8482)."""

from kdns.testing import block, code, data
from tests.fixtures import Serve


def test_any_answers_any_with_one_record(serve: Serve) -> None:
    server = serve(block("any", "whoami"))
    assert data(server.ask("x.org.", "ANY")) == ['"ANY obsoleted" "See RFC 8482"']
    assert code(server.ask("x.org.", "A")) == "EMPTY"
