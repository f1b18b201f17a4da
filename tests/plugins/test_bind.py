"""bind: addresses and interfaces that a server listens on."""

from kdns.net.interfaces import addresses
from kdns.testing import (
    code,
)
from tests.fixtures import Serve


def test_bind_takes_interfaces_and_leaves_out_what_it_is_told_to(serve: Serve) -> None:
    text = ".:{port} {\n bind lo {\n except ::1 127.0.0.1\n }\n bind 127.0.0.5\n whoami\n}\n"
    server = serve(text)
    assert code(server.ask("x.org.", host="127.0.0.5")) == "EMPTY"
    assert {group.host for group in server.server.listeners} <= {
        "127.0.0.5",
        *(a.address for a in addresses() if a.interface == "lo"),
    }
    assert server.server.banner() == [f".:{server.port} on 127.0.0.5"] or len(server.server.banner()) > 1
