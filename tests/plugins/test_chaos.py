"""chaos: the server's name and version in class CH."""

import socket

from kdns.testing import block, code, data
from tests.fixtures import Serve


def test_chaos_tells_about_the_server_in_class_ch_only(serve: Serve) -> None:
    server = serve(block("chaos kdns-test a@example.org b@example.org", "whoami"))
    for name in ("version.bind.", "VERSION.server."):
        assert data(server.ask(name, "TXT", rdclass="CH")) == ['"kdns-test"']
    assert data(server.ask("authors.bind.", "TXT", rdclass="CH")) == ['"a@example.org"', '"b@example.org"']
    assert data(server.ask("id.server.", "TXT", rdclass="CH")) == [f'"{socket.gethostname()}"']
    assert code(server.ask("version.bind.", "TXT")) == "EMPTY"
