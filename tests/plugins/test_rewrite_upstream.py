"""rewrite's rules for what goes upstream (edns0) and for what aliases lead to (cname); forward's client_subnet."""

from collections.abc import Callable

import dns.edns
import dns.message
import dns.rrset
import pytest

from kdns.corefile import CorefileError
from kdns.testing import answer, answers, block, code, data, eventually, soa
from tests.fixtures import Serve, Start


@pytest.fixture
def seen(serve: Serve, upstream: Start) -> Callable[..., list[tuple[int, bytes]]]:
    """The EDNS options that reach an upstream for rules, and for a query with options of its own."""

    def ask(*rules: str, name: str = "x.org.", options: list[dns.edns.Option] | None = None) -> list[tuple[int, bytes]]:
        up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
        server = serve(block(*rules, f"forward . {up.address}"))
        reply = server.ask(name) if options is None else server.ask(name, use_edns=0, options=options)
        assert data(reply) == ["192.0.2.1"]
        assert not reply.options and (reply.edns >= 0) == (options is not None)  # the client sees none of it
        return [(int(option.otype), option.to_wire() or b"") for option in up.queries[0].options]

    return ask


Seen = Callable[..., list[tuple[int, bytes]]]
OWN = dns.edns.GenericOption(0xFFEE, b"mine")


@pytest.mark.parametrize(("rules", "options", "expected"), [
    (["edns0 local set 0xffee abc"], None, [(0xFFEE, b"abc")]),
    (["edns0 local set 65518 0x61ff"], None, [(0xFFEE, b"a\xff")]),
    (["edns0 local set 0xffee {qname}"], None, [(0xFFEE, b"x.org.")]),
    (["edns0 local set 0xffee {qtype}"], None, [(0xFFEE, b"\0\1")]),
    (["edns0 local set 0xffee {client_ip}"], None, [(0xFFEE, b"\x7f\0\0\1")]),
    (["edns0 local set 0xffee {server_ip}"], None, [(0xFFEE, b"\x7f\0\0\1")]),
    (["edns0 local set 0xffee {protocol} revert"], None, [(0xFFEE, b"udp")]),
    (["edns0 local set 0xffee {a/b}"], None, []),
    (["edns0 local append 0xffee a", "edns0 local append 0xffee b"], None, [(0xFFEE, b"a"), (0xFFEE, b"b")]),
    (["edns0 local append 0xffee {qtype}", "edns0 local append 0xffee {qname}"], None, [(0xFFEE, b"\0\1")]),
    (["edns0 local set 0xffee a", "edns0 local set 0xffee b"], None, [(0xFFEE, b"b")]),
    (["edns0 local replace 0xffee a"], None, []), (["edns0 local replace 0xffee a"], [OWN], [(0xFFEE, b"a")]),
    ([], [OWN], []),
    (["edns0 local set 0xffee a", "edns0 local unset 0xffee"], [OWN], []), (["edns0 nsid set"], None, [(3, b"")]),
    (["edns0 subnet set 24 56"], None, [(8, b"\0\1\x18\0\x7f\0\0")]),
    (["edns0 subnet set 9 0"], None, [(8, b"\0\1\x09\0\x7f\0")]),
    (["edns0 subnet set 0 0"], None, [(8, b"\0\1\0\0")]), (["edns0 nsid set", "edns0 nsid unset"], None, []),
])  # fmt: skip
def test_options_go_upstream_as_rules_say_and_nowhere_else(
    seen: Seen, rules: list[str], options: list[dns.edns.Option] | None, expected: list[tuple[int, bytes]]
) -> None:
    assert seen(*(f"rewrite continue {rule}" for rule in rules), options=options) == expected


def test_append_took_away_the_subnet_that_a_client_sent(seen: Seen) -> None:
    own = dns.edns.ECSOption("198.51.100.0", 24)
    sent, ours = (8, own.to_wire() or b""), (8, b"\0\1\x18\0\x7f\0\0")
    append, after = "rewrite edns0 subnet append 24 56", "rewrite edns0 local set 1000 a"
    assert seen(append, options=[own]) == [sent]
    assert seen(append, after, options=[own]) == [sent, (1000, b"a")]  # the rule did not fit: the list goes on
    assert seen(f"rewrite continue{append[7:]}", append, options=[own, OWN]) == [sent]
    assert seen(append, after) == [ours]
    assert seen("rewrite continue edns0 subnet set 24 56", append, options=[own]) == [ours]
    assert seen("rewrite continue edns0 subnet unset", append, options=[own]) == [ours]


def test_a_subnet_that_append_passes_on_is_sent_once_and_kept_for_its_clients(serve: Serve, upstream: Start) -> None:
    for forward in ("", " {\n client_subnet\n }"):
        up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
        server = serve(block("rewrite edns0 subnet append 24 56", "cache 30", f"forward . {up.address}{forward}"))
        subnets = [dns.edns.ECSOption(address, 24) for address in ("198.51.100.0", "203.0.113.0")]
        for own in subnets * 2:
            assert data(server.ask("x.org.", use_edns=0, options=[own])) == ["192.0.2.1"]
        assert [list(query.options) for query in up.queries] == [[own] for own in subnets]


def test_a_rule_that_fits_stops_the_list_and_one_that_does_not_goes_on(seen: Seen) -> None:
    rules = ("rewrite edns0 local replace 1000 a", "rewrite edns0 local set 1001 b", "rewrite edns0 local set 1002 c")
    assert seen(*rules) == [(1001, b"b")]


def test_metadata_goes_into_options(seen: Seen) -> None:
    rules = ("metadata", "view mine {\n expr true\n }", "rewrite edns0 local set 1000 {view/name}")
    assert seen(*rules) == [(1000, b"mine")]


def test_the_cache_keys_on_options_that_go_upstream(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("rewrite edns0 local set 1000 {protocol}", "cache 30", f"forward . {up.address}"))
    for tcp in (False, True, False, True):
        assert data(server.ask("x.org.", tcp=tcp)) == ["192.0.2.1"]
    assert len(up.queries) == 2


def test_a_clients_subnet_is_passed_on_only_where_that_is_asked_for(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.1")
        found = [option for option in query.options if option.otype == dns.edns.ECS]
        scope = dns.edns.ECSOption("198.51.100.0", 24, 24)
        reply.use_edns(0, options=[scope] if found else [scope, dns.edns.GenericOption(3, b"me")])
        return reply

    up = upstream(script)
    server = serve(block("cache 30", f"forward . {up.address} {{\n client_subnet\n }}"))
    ecs = [dns.edns.ECSOption("198.51.100.0", 24), dns.edns.GenericOption(10, b"cookie!!")]
    for _ in range(2):
        reply = server.ask("x.org.", use_edns=0, options=ecs)
        assert [option.otype for option in reply.options] == [dns.edns.ECS]
    other = [dns.edns.ECSOption("203.0.113.0", 24)]
    server.ask("x.org.", use_edns=0, options=other)
    assert [[int(option.otype) for option in query.options] for query in up.queries] == [[8], [8]]
    # No reply shows a subnet that nobody sent, there or elsewhere.
    assert not server.ask("y.org.", use_edns=0).options
    plain = serve(block(f"forward . {up.address}"))
    assert not plain.ask("x.org.", use_edns=0, options=ecs).options and not up.queries[-1].options


def test_an_alias_is_led_elsewhere_and_resolved(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        name = query.question[0].name.to_text()
        if name in ("www.org.", "first.org."):
            reply = answer(query, "CNAME old.cdn.net.")
            reply.answer.append(dns.rrset.from_text("old.cdn.net.", 60, "IN", "A", "192.0.2.9"))
            return reply
        if name == "new.cdn.org.":
            return answer(query, "A 192.0.2.1")
        return soa(answer(query)) if name == "keep.org." else answer(query, "CNAME other.net.")

    up = upstream(script)
    regex = "regex ^old[.](.*)[.]net[.]$ new.{1}.org."
    for rule in ("exact old.cdn.net new.cdn.org", "suffix old.cdn.net new.cdn.org", regex, "old.cdn.net. new.cdn.org."):
        server = serve(block(f"rewrite cname {rule}", "rewrite ttl exact www.org 5", f"forward . {up.address}"))
        reply = server.ask("www.org.")
        assert answers(reply) == ["new.cdn.org. A 192.0.2.1", "www.org. CNAME new.cdn.org."]
        assert {rrset.ttl for rrset in reply.answer} == {5}  # a cname rule does not end the list
        assert answers(server.ask("plain.org.")) == ["plain.org. CNAME other.net."]
        assert code(server.ask("keep.org.")) == "NODATA"


def test_an_alias_whose_new_target_fails_stays_as_it_is(serve: Serve, upstream: Start, lines: list[str]) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "CNAME old.net.")
        if query.question[0].name.to_text() == "new.net.":
            reply.answer.clear()
            reply.set_rcode(2)
        return reply

    server = serve(block("rewrite cname exact old.net new.net", f"forward . {upstream(script).address}"))
    assert answers(server.ask("www.org.")) == ["www.org. CNAME old.net."]
    eventually(lambda: any("plugin/rewrite: upstream lookup failed" in line for line in lines))


def test_aliases_that_lead_to_each_other_end(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "CNAME b.net."))
    server = serve(block("rewrite cname exact b.net a.net", f"forward . {up.address}"))
    assert code(server.ask("www.org.")) in ("NOERROR", "SERVFAIL") and len(up.queries) < 15


@pytest.mark.parametrize("rtype", ["CNAME", "ANY"])
def test_a_question_for_an_alias_itself_was_denied_where_its_new_target_has_none(
    serve: Serve, upstream: Start, rtype: str
) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        if query.question[0].name.to_text() == "www.org.":
            reply = answer(query)
            reply.answer.append(dns.rrset.from_text("www.org.", 60, "IN", "CNAME", "old.net."))
            return reply
        denied = soa(answer(query))
        denied.set_rcode(3)
        return denied

    up = upstream(script)
    rules = ("rewrite cname exact old.net new.net", "rewrite ttl exact www.org 5")
    reply = serve(block(*rules, f"forward . {up.address}")).ask("www.org.", rtype)
    assert answers(reply) == ["www.org. CNAME new.net."] and code(reply) == "NOERROR" and not reply.authority
    assert reply.answer[0].ttl == 5 and len(up.queries) == 1


@pytest.mark.parametrize(("rule", "expected"), [
    ("edns0", "local, nsid or subnet"), ("edns0 other set 1 2", 'found "other"'),
    ("edns0 local put 1 2", 'found "put"'),
    ("edns0 local set 1", "takes CODE DATA"), ("edns0 local unset 1 2", "takes CODE"),
    ("edns0 local set 70000 a", "option code"),
    ("edns0 local set 1 0xabc", "hexadecimal"), ("edns0 local set 1 {nope}", "unknown variable"),
    ("edns0 nsid set x", "nothing more"),
    ("edns0 subnet set 24", "takes V4 V6"), ("edns0 subnet set 33 0", "out of range"),
    ("edns0 subnet set 24 129", "out of range"),
    ("cname a", "wrong number"), ("cname regex ( a", "bad regular expression"),
    ("cname regex a {3}", "is not one of them"),
])  # fmt: skip
def test_bad_rules_are_named_with_their_place(serve: Serve, rule: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(block(f"rewrite {rule}", "whoami"))
    assert expected in str(caught.value)
