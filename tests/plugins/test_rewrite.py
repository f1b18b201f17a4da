"""rewrite: questions and answers by rules."""

import re

import dns.message
import dns.rrset
import pytest

from kdns.corefile import CorefileError
from kdns.testing import (
    Server,
    Upstream,
    answer,
    answers,
    block,
    code,
)
from tests.fixtures import Serve, Start


def rewritten(serve: Serve, upstream: Start, *rules: str) -> tuple[Server, Upstream]:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        return answer(query, "A 192.0.2.1", ttl=500)

    up = upstream(script)
    return serve(block(*rules, f"forward . {up.address}")), up


@pytest.mark.parametrize(("rule", "asked", "sent"), [
    ("rewrite name exact old.org new.org", "old.org.", "new.org."),
    ("rewrite name old.org new.org", "OLD.org.", "new.org."),
    ("rewrite name suffix .a.org .b.org answer auto", "x.a.org.", "x.b.org."),
    ("rewrite name prefix foo. bar. answer auto", "foo.org.", "bar.org."),
    ("rewrite name substring .mid. .new. answer auto", "a.mid.org.", "a.new.org."),
    ("rewrite name regex ^(.*)\\.coffee\\.org\\.$ {1}.tea.org. answer auto", "hot.coffee.org.", "hot.tea.org."),
    ("rewrite name regex ^(.*)\\.coffee\\.org {1}.Tea.org answer auto", "hot.coffee.org.", "hot.tea.org."),
    ("rewrite {\n name exact old.org new.org\n }", "old.org.", "new.org."),
])  # fmt: skip
def test_a_name_is_rewritten_and_comes_back_as_asked(
    serve: Serve, upstream: Start, rule: str, asked: str, sent: str
) -> None:
    server, up = rewritten(serve, upstream, rule)
    reply = server.ask(asked)
    assert str(up.queries[0].question[0].name) == sent
    assert str(reply.question[0].name) == asked
    assert [str(rrset.name).lower() for rrset in reply.answer] == [asked.lower()]


def test_rules_go_on_only_when_told_to(serve: Serve, upstream: Start) -> None:
    server, up = rewritten(
        serve, upstream, "rewrite continue name a.org b.org", "rewrite name b.org c.org", "rewrite name c.org d.org"
    )
    server.ask("a.org.")
    assert str(up.queries[0].question[0].name) == "c.org."


def test_types_ttls_and_codes_are_rewritten(serve: Serve, upstream: Start) -> None:
    server, up = rewritten(
        serve,
        upstream,
        "rewrite continue type ANY HINFO",
        "rewrite continue ttl suffix org. 30-60",
        "rewrite rcode a.org NOERROR NXDOMAIN",
    )
    server.ask("b.org.", "ANY")
    assert up.queries[0].question[0].rdtype == 13
    reply = server.ask("a.org.")
    assert reply.answer[0].ttl == 60 and code(reply) == "NXDOMAIN"


def test_values_in_answers_are_rewritten(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "CNAME target.inside.org.")
        reply.answer.append(dns.rrset.from_text("target.inside.org.", 60, "IN", "A", "192.0.2.1"))
        return reply

    up = upstream(script)
    server = serve(block(
        "rewrite name suffix .outside.org .inside.org answer name (.*)\\.inside\\.org {1}.outside.org"
        " answer value (.*)\\.inside\\.org {1}.outside.org",
        f"forward . {up.address}",
    ))  # fmt: skip
    reply = server.ask("x.outside.org.")
    assert answers(reply) == ["target.outside.org. A 192.0.2.1", "x.outside.org. CNAME target.outside.org."]


@pytest.mark.parametrize(("rule", "expected"), [
    ("rewrite", "expected a field"),
    ("rewrite nam a b", 'did you mean "name"'),
    ("rewrite name a", "takes [exact"),
    ("rewrite name regex (a {1}", "bad regular expression"),
    ("rewrite name regex (a) {2}", "has 1 groups"),
    ("rewrite name suffix a b metadata", "regex rules only"),
    ("rewrite name regex (a) {2} metadata", "has 1 groups"),
    ("rewrite name regex a {name}.b metadata", "a group or a label"),
    ("rewrite name regex a {x/y metadata", "unbalanced brace"),
    ("rewrite name regex a x/y} metadata", "unbalanced brace"),
    ("rewrite name suffix a b answer sometimes", "expected auto"),
    ("rewrite type A B C", "takes FROM TO"),
    ("rewrite type A NOPE", "is not a type"),
    ("rewrite ttl a.org 9-3", "the wrong way round"),
    ("rewrite rcode a.org X Y", "not a response code"),
    ("rewrite edns0 local set nope 2", "expected an option code"),
])  # fmt: skip
def test_bad_rules_are_named_with_their_place(serve: Serve, rule: str, expected: str) -> None:
    with pytest.raises(CorefileError) as caught:
        serve(block(rule, "whoami"))
    assert expected in str(caught.value) and re.match(r"Corefile:3:\d+: ", str(caught.value))
