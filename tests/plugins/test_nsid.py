"""nsid: the server's name for those who ask (RFC 5001)."""

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset

from kdns.testing import block
from tests.fixtures import Serve


def test_nsid_is_given_to_those_who_ask(serve: Serve) -> None:
    server = serve(block("nsid replica 1", "whoami"))
    reply = server.ask("x.org.", use_edns=0, options=[dns.edns.GenericOption(3, b"")])
    assert [option.to_wire() for option in reply.options] == [b"replica 1"]
    assert not server.ask("x.org.", use_edns=0).options
