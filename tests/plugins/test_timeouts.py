"""timeouts: deadlines of connections."""

import struct
import time

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset

from kdns.testing import block
from tests.fixtures import Serve


def test_timeouts_set_the_deadlines_of_connections(serve: Serve) -> None:
    server = serve(block("timeouts {\n read 1\n idle 1s\n maxtcpqueries 3\n }", "whoami"))
    began = time.monotonic()
    with server.connect() as sock:
        assert sock.recv(1) == b""
    assert 0.8 < time.monotonic() - began < 5
    query = dns.message.make_query("x.org.", "A").to_wire()
    with server.connect() as sock:
        sock.sendall((struct.pack("!H", len(query)) + query) * 5)
        got = b""
        while part := sock.recv(4096):
            got += part
    count = 0
    while got:
        got = got[2 + int.from_bytes(got[:2], "big") :]
        count += 1
    assert count == 3
