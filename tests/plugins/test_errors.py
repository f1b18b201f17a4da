"""errors: failures as lines of the log."""

from kdns.testing import (
    block,
    code,
    eventually,
)
from tests.fixtures import Serve, Start


def test_errors_of_one_kind_are_summed_up(serve: Serve, upstream: Start, lines: list[str]) -> None:
    up = upstream(lambda query, proto: None)
    consolidate = 'errors {\n consolidate 300ms ".* i/o timeout$" warning show_first\n }'
    server = serve(
        block(consolidate, f"forward . {up.address} {{\n read_timeout 30ms\n max_connect_attempts 1\n max_fails 0\n }}")
    )
    for i in range(4):
        assert code(server.ask(f"x{i}.org.")) == "SERVFAIL"
    eventually(lambda: any("errors like" in line for line in lines))
    assert [line for line in lines if "errors like" in line] == [
        "[WARNING] plugin/errors: 4 errors like '.* i/o timeout$' occurred in last 300ms"
    ]
    assert sum("i/o timeout" in line and "errors like" not in line for line in lines) == 1
