"""What upstreams are asked over encrypted transports does not say by its length which name it is (RFC 8467)."""

from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.dns import edns
from kdns.dns.message import pack_query
from kdns.dns.query import Question
from kdns.testing import data, eventually
from tests.fixtures import Serve
from tests.net.test_changes_under_load import SCHEMES, above
from tests.securepeers import Site

NAMES = ["a.example.org.", "a." * 50 + "example.org.", "x" * 63 + ".example.org."]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_length_of_an_encrypted_query_said_how_long_its_name_was(serve: Serve, tmp_path: Path, scheme: str) -> None:
    site = Site(tmp_path)
    below = serve(site.block(scheme=scheme))
    (listener,) = next(iter(below.server.listeners.values())).tcp
    handler, sizes = listener.handler, []

    def looking(query: bytes, *arguments: Any) -> Any:
        sizes.append(len(query))
        return handler(query, *arguments)

    listener.handler = looking
    server = above(serve, site, scheme, below.port)
    replies = [server.ask(name, use_edns=0, pad=0) for name in NAMES]
    assert data(replies[0]) == ["192.0.2.1"]
    assert len(sizes) >= len(NAMES) and not any(size % 128 for size in sizes), sizes
    # The padding of the upstream's replies is not for our clients.
    assert not any(option.otype == dns.edns.OptionType.PADDING for reply in replies for option in reply.options)


def test_a_probe_over_tls_is_padded_too(serve: Serve, tmp_path: Path) -> None:
    site = Site(tmp_path)
    below = serve(site.block(scheme="tls"))
    (listener,) = next(iter(below.server.listeners.values())).tcp
    handler, sizes, mute = listener.handler, [], [True]

    def looking(query: bytes, *arguments: Any) -> Any:
        sizes.append((query[12:13], len(query)))
        return b"no reply at all" if mute[0] and query[12:13] != b"\0" else handler(query, *arguments)

    listener.handler = looking
    server = above(serve, site, "tls", below.port)
    server.ask("a.example.org.", timeout=20)
    eventually(lambda: any(name == b"\0" for name, _ in sizes))
    assert not any(size % 128 for _, size in sizes), sizes


@given(
    labels=st.lists(st.binary(min_size=1, max_size=20), max_size=8),
    options=st.lists(st.tuples(st.integers(65001, 65534), st.binary(max_size=200)), max_size=3),
)
def test_a_padded_query_is_the_query_in_whole_blocks(labels: list[bytes], options: list[tuple[int, bytes]]) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    question = Question(name, 1)
    plain = pack_query(7, question, opt=edns.opt(options=b"".join(edns.option(*option) for option in options)))
    padded = edns.padded_query(plain, 12 + len(question.wire))
    assert len(padded) % 128 == 0 and 0 < len(padded) - len(plain) < 128 + 4
    before, after = dns.message.from_wire(plain), dns.message.from_wire(padded)
    assert after.question == before.question and after.flags == before.flags and after.ednsflags == before.ednsflags
    assert [option for option in after.options if option.otype != dns.edns.OptionType.PADDING] == list(before.options)
    without = pack_query(7, question)
    assert edns.padded_query(without, 12 + len(question.wire)) == without
