"""Bad lines of small plugins: each error has a place and says what was expected."""

import pytest

from kdns.corefile import CorefileError
from kdns.testing import block
from tests.fixtures import Serve


@pytest.mark.parametrize(("text", "expected"), [
    ("acl {\n allo\n }", 'did you mean "allow"'),
    ("acl {\n block type a\n }", "upper case"),
    ("acl {\n block net 10.0.0.300\n }", "expected an address or a network"),
    ("acl {\n block type\n }", "nothing follows type"),
    ("acl {\n block 10.0.0.1\n }", "expected type or net"),
    ("header {\n query set\n }", "set|clear FLAG"),
    ("header {\n reply set aa\n }", "unknown property"),
    ("header", "at least one rule"),
    ("bufsize 100", "out of range"),
    ("cancel 5", "a unit is missing"),
    ("timeouts", "at least one of"),
    ("timeouts {\n read 0s\n }", "out of range"),
    ("timeouts {\n maxtcpqueries 0\n }", "out of range"),
    ("local {\n localhost_prefix maybe\n }", "expected on or off"),
    ("family {\n ipv6 maybe\n }", "expected auto, on or off"),
    ("any now", "unexpected argument"),
    ("searchpath {\n suffix a\n }", 'did you mean "suffixes"'),
    ("searchpath {\n lookups 0\n }", "out of range"),
    # An option that no message can carry ended `check` with a stack trace.
    (f"nsid {'x' * 70000}", "at most 1024"),
    (f"template IN A {{\n ederror 1 {'x' * 70000}\n }}", "at most 1024"),
    # A TTL that no message can carry was taken, and each answer it was for became SERVFAIL.
    ("rewrite ttl a.org 99999999999", "at most 2147483647"),
    ("rewrite ttl a.org 0-2147483648", "at most 2147483647"),
    ("cache {\n success 10 99999999999 99999999999\n }", "out of range"),
    ("cache {\n serve_stale 1h immediate 2000000h\n }", "at most 2147483647"),
])  # fmt: skip
def test_bad_directives_are_named_with_their_place(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"^Corefile:\d+:\d+: ") as caught:
        serve(block(text, "whoami"))
    assert expected in str(caught.value)
