"""whoami: the address of whoever asks."""

from kdns.testing import (
    additional,
    block,
    code,
)
from tests.fixtures import Serve


def test_whoami_says_who_asked(serve: Serve) -> None:
    server = serve(block("whoami"))
    for tcp, proto in ((False, "_udp"), (True, "_tcp")):
        reply = server.ask("example.org.", "MX", tcp=tcp)
        assert code(reply) == "EMPTY"
        address, port = additional(reply)[1], additional(reply)[0]
        assert address == "example.org. A 127.0.0.1" and port.startswith(f"{proto}.example.org. SRV 0 0 ")
