"""loadbalance: the order of addresses in answers."""

from collections.abc import Callable
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from kdns.plugins.loadbalance import read_weights
from kdns.testing import (
    Upstream,
    answer,
    block,
    eventually,
)
from tests.fixtures import Serve, Start


@pytest.mark.parametrize(
    "line", ["loadbalance", "loadbalance {\n prefer 198.51.100.0/24\n }", "loadbalance weighted WEIGHTS"]
)
@pytest.mark.parametrize("addresses", [("192.0.2.1",), ("192.0.2.1", "192.0.2.2"), ()])
def test_cnames_behind_a_single_address_stayed_there(
    serve: Serve, upstream: Callable[..., Upstream], tmp_path: Path, line: str, addresses: tuple[str, ...]
) -> None:
    weights = tmp_path / "weights"
    weights.write_text("a.org\n192.0.2.1 5\n")

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        if addresses:
            reply.answer.append(dns.rrset.from_text("c.org.", 60, "IN", "A", *addresses))
        reply.answer.append(dns.rrset.from_text("d.org.", 60, "IN", "TXT", "x"))
        reply.answer.append(dns.rrset.from_text("b.org.", 60, "IN", "CNAME", "c.org."))
        reply.answer.append(dns.rrset.from_text("a.org.", 60, "IN", "CNAME", "b.org."))
        return reply

    server = serve(block(line.replace("WEIGHTS", str(weights)), f"forward . {upstream(script).address}"))
    for _ in range(4):
        found = [dns.rdatatype.to_text(rrset.rdtype) for rrset in server.ask("a.org.").answer]
        assert found == ["CNAME", "CNAME", *(["A"] if addresses else []), "TXT"]


@pytest.mark.parametrize("line", ["loadbalance", "loadbalance {\n prefer 198.51.100.0/24\n }"])
@pytest.mark.parametrize("addresses", [("192.0.2.1",), ("192.0.2.1", "192.0.2.2")])
@pytest.mark.parametrize("cache", [(), ("cache",)])
def test_a_dname_came_after_the_cname_that_is_made_of_it(
    serve: Serve, upstream: Callable[..., Upstream], line: str, addresses: tuple[str, ...], cache: tuple[str, ...]
) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.answer.append(dns.rrset.from_text("b.org.", 60, "IN", "DNAME", "c.org."))
        reply.answer.append(dns.rrset.from_text("a.b.org.", 60, "IN", "CNAME", "a.c.org."))
        reply.answer.append(dns.rrset.from_text("a.c.org.", 60, "IN", "A", *addresses))
        return reply

    server = serve(block(line, *cache, f"forward . {upstream(script).address}"))
    for _ in range(4):
        found = [dns.rdatatype.to_text(rrset.rdtype) for rrset in server.ask("a.b.org.").answer]
        assert found == ["DNAME", "CNAME", "A"]


def test_preferred_networks_come_first(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", "A 10.0.0.1", "A 198.51.100.1", "A 10.0.0.2"))
    server = serve(block("loadbalance {\n prefer 10.0.0.0/8 198.51.100.0/24\n }", f"forward . {up.address}"))
    for _ in range(10):
        found = [str(record) for record in server.ask("x.org.").answer[0]]
        assert set(found[:2]) == {"10.0.0.1", "10.0.0.2"} and found[2:] == ["198.51.100.1", "192.0.2.1"]


def test_weights_decide_which_address_is_first(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("# weights\nx.org.\n192.0.2.1 255\n192.0.2.2 1\n")
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", "A 192.0.2.2"))
    server = serve(block(f"loadbalance weighted {weights}", f"forward . {up.address}"))
    firsts = [str(server.ask("x.org.").answer[0][0]) for _ in range(60)]
    assert firsts.count("192.0.2.1") > 45


def test_weights_are_followed_and_kept_where_the_new_ones_are_bad(
    serve: Serve, upstream: Start, tmp_path: Path, lines: list[str]
) -> None:
    weights = tmp_path / "weights"
    weights.write_text("x.org.\n192.0.2.1 255\n")
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", "A 192.0.2.2"))
    serve(block(f"loadbalance weighted {weights} {{\n reload 50ms\n }}", f"forward . {up.address}"))
    weights.write_text("x.org.\n192.0.2.1 none\n")
    eventually(lambda: any(f"{weights}:2: " in line and "the weights are kept" in line for line in lines))
    weights.write_text("x.org.\n192.0.2.2 255\n")
    eventually(lambda: any("Successfully reloaded weight file" in line for line in lines))


@pytest.mark.parametrize(
    "text",
    ["192.0.2.1 5\n", "x.org\n192.0.2.1 0\n", "x.org\n192.0.2.1 256\n", "x.org\nnope 3\n", "x.org\n1.2.3.4 5 6\n"],
)
def test_bad_weights_are_named_with_their_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^f:\d: "):
        read_weights(text, "f")
