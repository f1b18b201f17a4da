"""bufsize: the UDP size that clients get."""

from kdns.testing import answer, block, flags
from tests.fixtures import Serve, Start


def test_bufsize_lowers_what_clients_ask_for(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, *(f"A 192.0.2.{i}" for i in range(60))))
    server = serve(block("bufsize 600", f"forward . {up.address}"))
    reply = server.ask("x.org.", use_edns=0, payload=1232)
    assert "TC" in flags(reply) and len(reply.to_wire()) <= 600 and up.queries[0].payload == 600
    assert "TC" in flags(server.ask("x.org.", use_edns=0, payload=512))
