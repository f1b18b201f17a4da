"""Whatever an upstream says, over UDP or TCP: the client gets a reply in time, nothing is raised, and nothing is left
behind.
"""

import itertools
import struct
import time
from collections.abc import Iterator
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.dns.message import parse_reply
from kdns.metrics import REGISTRY
from kdns.testing import Server, Upstream, block, code, data, eventually
from kdns.testing.upstream import Script

# A running server has frozen what refers to hypothesis's generator, which looks for that.
pytestmark = pytest.mark.filterwarnings("ignore:It looks like `register_random`")

TIMEOUT = 0.04  # seconds that the upstream is waited for
names = (f"x{i}" for i in itertools.count())


class RawUpstream(Upstream):
    """Over TCP its script's octets are the stream's: nothing puts lengths before them."""

    def _connection(self, connection: Any) -> None:
        with connection:
            stream = connection.makefile("rb")
            try:
                while head := stream.read(2):
                    for part in self._play(stream.read(int.from_bytes(head, "big")), "tcp", 0):
                        if part == CLOSE:
                            return
                        connection.sendall(part)
            except OSError:
                pass
            finally:
                stream.close()


CLOSE = b"close the connection"
RECORDS = (
    "A 192.0.2.1", "AAAA 2001:db8::1", "CNAME other.example.net.", "MX 10 mail.example.net.", "TXT some text",
    "NS ns.example.net.",
    "SOA ns.example.net. mail.example.net. 1 2 3 4 5", "SRV 1 2 3 srv.example.net.", "HTTPS 1 . alpn=h2",
    "TYPE65280 \\# 3 010203",
)  # fmt: skip


@st.composite
def replies(draw: st.DrawFn) -> Any:
    """A function from a query to one message: a good reply, and what was done to it."""
    records = draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(RECORDS)), max_size=4))
    rcode, flags = draw(st.integers(0, 15)), draw(st.integers(0, 0xFFFF))
    edns = draw(st.sampled_from((-1, 0, 0, 1)))
    plain = draw(st.booleans())
    changes = draw(st.lists(CHANGES, max_size=3))

    def make(query: dns.message.Message) -> bytes:
        reply = dns.message.make_response(query, recursion_available=True)
        reply.use_edns(edns)
        for section, record in records:
            rtype, _, content = record.partition(" ")
            owner = query.question[0].name
            (reply.answer, reply.authority, reply.additional)[section].append(
                dns.rrset.from_text(owner, 5, "IN", rtype, content)
            )
        wire = bytearray(reply.to_wire())
        if not plain:
            wire[2:4] = struct.pack("!H", flags)
            wire[3] = wire[3] & 0xF0 | rcode
        for kind, at, value, octets in changes:
            change(wire, kind, at, value, octets)
        return bytes(wire)

    return make


KINDS = (
    "octet",
    "cut",
    "append",
    "insert",
    "pointer",
    "id",
    "no id",
    "count",
    "no question",
    "rename",
    "opt",
    "twice",
    "junk",
    "loop",
)
CHANGES = st.tuples(st.sampled_from(KINDS), st.integers(0, 511), st.integers(0, 255), st.binary(max_size=40))


def change(wire: bytearray, kind: str, at: int, value: int, octets: bytes) -> None:
    """Spoils a message in place."""
    at %= len(wire) + 1
    if kind == "octet" and at < len(wire):
        wire[at] = value
    elif kind == "cut":
        del wire[at:]
    elif kind == "append":
        wire += octets
    elif kind == "insert":
        wire[at:at] = octets
    elif kind == "pointer":  # to anywhere
        wire[at : at + 2] = struct.pack("!H", 0xC000 | value)
    elif kind == "loop":  # to itself
        wire[at : at + 2] = struct.pack("!H", 0xC000 | at)
    elif kind == "id":
        wire[:2] = (int.from_bytes(wire[:2], "big") ^ (value or 1)).to_bytes(2, "big")
    elif kind == "no id":
        del wire[:2]
    elif kind == "count":
        wire[4 + 2 * (at % 4) : 6 + 2 * (at % 4)] = struct.pack("!H", value << (at & 8))
    elif kind == "no question" and len(wire) > 12:
        wire[4:6] = b"\0\0"
        del wire[12 : wire.find(b"\0", 12) + 5]
    elif kind == "rename" and len(wire) > 13:
        wire[13] ^= value
    elif kind == "opt":
        wire += b"\0\0\x29" + octets
    elif kind == "twice":
        wire += bytes(wire)
    elif kind == "junk":
        wire[:] = octets


def framed(message: bytes, way: str) -> list[bytes]:
    """A message as octets of a TCP stream."""
    size = len(message) & 0xFFFF
    if way == "whole":
        return [struct.pack("!H", size) + message]
    if way == "in pieces":
        whole = struct.pack("!H", size) + message
        return [whole[:1], whole[1:2], whole[2:7], whole[7:]]
    if way == "too long":
        return [struct.pack("!H", min(size + 9, 65535)) + message]
    if way == "too short":
        return [struct.pack("!H", size // 2) + message]
    if way == "no length":
        return [message]
    return [(struct.pack("!H", size) + message)[:-3], CLOSE]


WAYS = st.sampled_from(("whole", "whole", "in pieces", "too long", "too short", "no length", "closed"))


@pytest.fixture(scope="module", params=["udp", "tcp"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server, RawUpstream]]:
    up = RawUpstream(lambda query, proto: None)
    force = "force_tcp" if request.param == "tcp" else "max_idle_conns 4"
    options = f"{force}\n read_timeout {int(TIMEOUT * 1000)}ms\n max_fails 0\n max_connect_attempts 2"
    server = Server(block(f"forward . {up.address} {{\n {options}\n }}"))
    yield request.param, server, up
    server.close()
    up.close()


def faults() -> list[float]:
    return [
        sum(slot[0] for slot in REGISTRY[name].slots.values())
        for name in ("kdns_internal_errors_total", "coredns_panics_total")
    ]


def good(query: dns.message.Message, proto: str) -> list[bytes]:
    reply = dns.message.make_response(query, recursion_available=True)
    reply.answer.append(dns.rrset.from_text(query.question[0].name, 5, "IN", "A", "192.0.2.7"))
    return [reply.to_wire()] if proto == "udp" else framed(reply.to_wire(), "whole")


def script_of(messages: list[tuple[Any, str]], ends_well: bool) -> Script:
    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        out: list[bytes] = []
        for make, way in messages:
            out += framed(make(query), way) if proto == "tcp" else [make(query)]
        return out + good(query, proto) if ends_well else out

    return script


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(st.tuples(replies(), WAYS), min_size=1, max_size=3), ends_well=st.booleans(), edns=st.booleans()
)
def test_a_client_gets_a_reply_whatever_the_upstream_says(
    running: tuple[str, Server, RawUpstream], messages: list[tuple[Any, str]], ends_well: bool, edns: bool
) -> None:
    _, server, up = running
    before = faults()
    up.script = script_of(messages, ends_well)
    query = dns.message.make_query(f"{next(names)}.example.org.", "A", use_edns=0 if edns else False, payload=1232)
    began = time.monotonic()
    wire = server.raw(query.to_wire(), timeout=8)
    assert wire is not None
    assert time.monotonic() - began < 5  # LIMIT; two tries and a retry of each take a quarter of a second
    found = parse_reply(wire)
    assert found.id == query.id and len(wire) <= (1232 if edns else 512)
    assert (
        wire[12 : 12 + len(query.question[0].name.to_wire()) + 4]
        == query.to_wire()[12:][: len(query.question[0].name.to_wire()) + 4]
    )
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    pool = forwarder.upstreams[0]
    eventually(lambda: not forwarder.flights and not forwarder.concurrent and len(pool.udp.open) == len(pool.udp.idle))
    eventually(lambda: not pool.tcp.waiting and not any(each.flights for each in pool.tcp.open))
    assert faults() == before


def test_and_good_replies_are_taken_afterwards(running: tuple[str, Server, RawUpstream]) -> None:
    _, server, up = running
    up.script = good
    eventually(lambda: data(server.ask(f"{next(names)}.example.org.")) == ["192.0.2.7"])
    assert all(code(server.ask(f"{next(names)}.example.org.")) == "NOERROR" for _ in range(5))
