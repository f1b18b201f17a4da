"""Replies of an upstream without an OPT, of one record or none, through each plugin that looks at replies."""

import dns.flags
import dns.message
import pytest

from kdns.metrics import REGISTRY
from kdns.testing import answer, code, data, soa
from tests.fixtures import Serve, Start

PLUGINS = {
    "rewrite": "rewrite edns0 local set 0xffee 0x61\n rewrite edns0 nsid set\n rewrite ttl exact a.example.org 9\n"
    " rewrite name exact old.example.org a.example.org",
    "dns64": "dns64 64:ff9b::/96",
    "siit": "siit {\n eam 192.0.2.0/24 2001:db8::/120\n }",
    "minimal": "minimal",
    "header": "header {\n response set ra aa\n query set rd\n }",
    "loadbalance": "loadbalance",
    "nsid": "nsid here",
    "cache": "cache 30 {\n serve_stale\n prefetch 1 1m\n }",
    "bufsize": "bufsize 1232",
    "log": "log . {combined}",
    "everything": "nsid here\n bufsize 512\n log\n errors\n header {\n response set ra\n }\n dns64\n minimal\n "
        "loadbalance\n"
    " cache 30 {\n serve_stale\n }\n rewrite ttl regex .* 5",
}  # fmt: skip


def without_opt(query: dns.message.Message, proto: str) -> dns.message.Message:
    """A reply of an upstream that knows no EDNS, and leaves its empty sections empty."""
    name = query.question[0].name.to_text()
    reply = answer(query, *(["A 192.0.2.1"] if name.startswith("a.") and query.question[0].rdtype == 1 else []))
    reply.use_edns(False)
    if name.startswith("nx."):
        reply.set_rcode(3)
        soa(reply)
    elif name.startswith("odd."):
        reply.question = []  # a reply without the question is none to this query
        reply.answer = []
    return reply


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_upstreams_reply_without_opt_was_a_nil_pointer_elsewhere(serve: Serve, upstream: Start, plugin: str) -> None:
    up = upstream(without_opt)
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n {PLUGINS[plugin]}\n forward . {up.address} {{\n max_fails 0\n"
        " read_timeout 50ms\n }\n}\n"
    )
    before = sum(slot[0] for slot in REGISTRY["coredns_panics_total"].slots.values())
    for options in ({"use_edns": False}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True, "payload": 512}):
        for tcp in (False, True, False):
            assert data(server.ask("a.example.org.", tcp=tcp, **options)) == ["192.0.2.1"]
            assert code(server.ask("nx.example.org.", tcp=tcp, **options)) == "NXDOMAIN"
            found = server.ask("empty.example.org.", "AAAA", tcp=tcp, **options)
            assert dns.flags.QR & found.flags and not found.answer
    assert code(server.ask("odd.example.org.", timeout=8)) == "SERVFAIL"
    assert sum(slot[0] for slot in REGISTRY["coredns_panics_total"].slots.values()) == before
