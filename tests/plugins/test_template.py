"""template and dns64: answers made of the question, and of other answers."""

import ipaddress
import re

import dns.message
import dns.name
import pytest

from kdns.corefile import CorefileError
from kdns.dns.errors import FormatError
from kdns.dns.translation import embed
from kdns.plugins.template import record
from kdns.plugins.template.language import BadTemplate, Template
from kdns.server import build
from kdns.testing import additional, answer, answers, block, code, data, flags, free_port, http_get, soa
from tests.corefile.test_real_world import AKS
from tests.fixtures import Serve, Start

IP = r"""template IN A ip.example {
 match "^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-([0-9]*)-([0-9]*)[.]ip[.]example[.]$"
 answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ index .Match 3 }}.{{ .Group.4 }}"
 fallthrough
}"""


def test_a_record_is_made_of_the_names_groups(serve: Serve) -> None:
    server = serve(block(IP, "whoami"))
    reply = server.ask("IP-10-1-2-3.ip.example.")
    assert data(reply) == ["10.1.2.3"] and reply.answer[0].ttl == 60 and "AA" in flags(reply)
    assert code(server.ask("other.ip.example.")) == "EMPTY" and server.ask("other.ip.example.").additional
    assert code(server.ask("ip-10-1-2-999.ip.example.")) == "SERVFAIL"


def test_akss_templates_answer_as_azure_means_them(serve: Serve) -> None:
    lines = AKS.splitlines()
    server = serve(block(*lines[18:26], "whoami"))
    assert code(server.ask("a.b.c.d.internal.cloudapp.net.")) == "NXDOMAIN"
    assert code(server.ask("a.b.c.internal.cloudapp.net.")) == "EMPTY"
    assert code(server.ask("x.reddog.microsoft.com.", "AAAA")) == "NXDOMAIN"
    build.build(build.read(AKS, "Corefile", environ={}))


def test_a_denial_with_an_soa_and_an_extended_error(serve: Serve) -> None:
    rule = """template ANY AAAA org {
 authority "{{ .Zone }} 60 IN SOA ns.{{ .Zone }} mail.{{ .Zone }} (1 60 60 60 60)"
 ederror 21 "no IPv6 here"
}"""
    server = serve(block(rule, "whoami"))
    reply = server.ask("x.org.", "AAAA", use_edns=0)
    assert code(reply) == "NODATA" and reply.options[0].to_text() == "EDE 21 (Not Supported): no IPv6 here"
    assert server.ask("x.org.", "AAAA", use_edns=False).edns == -1
    assert code(server.ask("x.org.", "A")) == "EMPTY"


def test_a_cname_brings_its_targets_addresses(serve: Serve) -> None:
    rules = [
        'template IN A alias.org {\n answer "{{ .Name }} IN CNAME real.org."\n }',
        "hosts /nowhere {\n 192.0.2.1 real.org\n }",
    ]
    reply = serve(block(*rules)).ask("x.alias.org.")
    assert answers(reply) == ["real.org. A 192.0.2.1", "x.alias.org. CNAME real.org."]
    assert {rrset.ttl for rrset in reply.answer} == {3600}


@pytest.mark.parametrize(("rule", "expected"), [
    ("rcode SERVFAIL", "SERVFAIL"), ("rcode REFUSED", "REFUSED"),
    ('rcode NXDOMAIN\n authority "org 60 IN SOA ns.org h.org 1 2 3 4 5"', "NXDOMAIN"),
])  # fmt: skip
def test_a_cname_whose_target_failed_or_does_not_exist_was_taken_for_no_data(
    serve: Serve, rule: str, expected: str
) -> None:
    rules = [
        'template IN A alias.org {\n answer "{{ .Name }} IN CNAME real.org."\n }',
        f"template IN A real.org {{\n {rule}\n }}",
    ]
    reply = serve(block(*rules)).ask("x.alias.org.")
    assert code(reply) == expected and data(reply) == ["real.org."]
    assert len(reply.authority) == (expected == "NXDOMAIN")


def test_a_cname_whose_target_nobody_knows_is_all_there_is(serve: Serve) -> None:
    reply = serve(block('template IN A alias.org {\n answer "{{ .Name }} IN CNAME real.net."\n }')).ask("x.alias.org.")
    assert code(reply) == "NOERROR" and data(reply) == ["real.net."]


def test_a_cname_that_leads_to_itself_stood_in_the_reply_eleven_times(serve: Serve) -> None:
    server = serve(block('template IN A org {\n answer "{{ .Name }} IN CNAME {{ .Name }}"\n }'))
    reply = dns.message.from_wire(server.ask("x.org.").to_wire(), one_rr_per_rrset=True)
    assert code(reply) == "NOERROR" and len(reply.answer) == 1


def test_without_fallthrough_a_name_that_does_not_match_is_servfail(serve: Serve) -> None:
    server = serve(block('template IN A org {\n match "^a[.]"\n answer "{{ .Name }} A 192.0.2.1"\n }', "whoami"))
    assert code(server.ask("b.org.")) == "SERVFAIL" and data(server.ask("a.org.")) == ["192.0.2.1"]
    assert code(server.ask("b.org.", "MX")) == code(server.ask("b.net.")) == "EMPTY"


@pytest.mark.parametrize(("text", "expected"), [
    ("{{ .Name }}-{{- .Zone -}} x", "n.-z.x"), ("{{ index .Match 1 }}", "one"), ('{{ index .Group "x" }}', "ten"),
    ("{{ parseInt .Group.h 16 32 }}", "255"), ('{{ printf "%s/%d" .Name 7 }}', "n./7"),
    ("{{ .Group.x | print 1 }}", "1ten"),
    ("{{ (index .Match 1) | len }}", "3"), ("{{ .Message.Id }} {{ .Question.Name }}", "9 n."),
    ("{{ `raw` }}", "raw"), ("{{ .Group.none }}", ""),
])  # fmt: skip
def test_actions_come_to_what_go_makes_of_them(text: str, expected: str) -> None:
    fields = {
        "Name": "n.", "Zone": "z.", "Match": ["all", "one"], "Group": {"x": "ten", "h": "ff"},
        "Message": {"Id": 9}, "Question": {"Name": "n."},
    }  # fmt: skip
    assert Template(text).fill(fields) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Nope }}",
        "{{ if .Name }}x{{ end }}",
        "{{ nofunc 1 }}",
        "{{",
        "{{ }}",
        "{{ (.Name }}",
        "{{ .Name | .Zone }}",
        "{{ $x }}",
    ],
)
def test_what_is_no_template_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(BadTemplate):
        Template(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ index .Match 9 }}",
        "{{ .Match }}",
        '{{ parseInt "zz" 16 8 }}',
        '{{ parseInt "256" 10 8 }}',
        '{{ printf "%d" .Name }}',
        '{{ printf "%999999999d" 1 }}',
        '{{ printf "%.99999999f" 1 }}',
        '{{ printf "%*d" 999999999 1 }}',
    ],
)
def test_what_cannot_be_filled_is_an_error_and_no_crash(text: str) -> None:
    with pytest.raises(BadTemplate):
        Template(text).fill({"Match": ["a"], "Name": "n."})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x. A",
        "x. 60 IN A 999.1.1.1",
        "x. 60 IN NOPE 1",
        "a. A 1.2.3.4\nb. A 1.2.3.4",
        "x. 60 IN OPT 1",
        "x. 99999999999 IN A 1.2.3.4",
        "x. 60 IN A 1.2.3.4 5",
        '"x',
    ],
)
def test_what_is_no_record_is_an_error(text: str) -> None:
    with pytest.raises(FormatError):
        record(text)


@pytest.mark.parametrize(
    "name",
    [rf"a\{octet:03d}b.lab." for octet in (0, 10, 32, 34, 36, 40, 46, 59, 64, 92, 255)]
    + [r"\226\130\172.lab.", r"\@.lab."],
)
def test_a_name_with_odd_octets_came_back_as_another_or_not_at_all(serve: Serve, name: str) -> None:
    """A name in a template is in a zone file's form, with its escapes (RFC 1035, section 5.1)."""
    server = serve(
        block(
            'template IN A lab {\n answer "{{ .Name }} 60 IN A 192.0.2.1"\n }',
            'template IN CNAME lab {\n match ^(.*)[.]lab\n answer "{{ .Name }} IN CNAME {{ index .Match 1 }}.org."\n }',
            'template IN TXT lab {\n answer "{{ .Name }} 60 IN TXT \\"{{ .Name }}\\""\n }',
        )
    )
    asked = dns.name.from_text(name)
    for rtype in ("A", "CNAME", "TXT"):
        reply = server.ask(name, rtype)
        assert reply.answer[0].name == asked
        if rtype == "CNAME":
            assert reply.answer[0][0].target == dns.name.Name((asked.labels[0], b"org", b""))
    assert reply.answer[0][0].strings == (b".".join(asked.labels),)


def test_a_refusal_is_a_reply_like_others(serve: Serve) -> None:
    server = serve(block('template IN ANY lab {\n rcode REFUSED\n additional "a.lab. 1 A 192.0.2.3"\n }'))
    reply = server.ask("x.lab.")
    assert code(reply) == "REFUSED" and "AA" in flags(reply) and additional(reply) == ["a.lab. A 192.0.2.3"]


def test_matches_are_counted_by_the_questions_type_if_it_has_a_name(serve: Serve) -> None:
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "template IN ANY lab {\n rcode NXDOMAIN\n }"))
    for rtype in ("A", "TYPE65280", "TYPE65281"):
        server.ask("x.lab.", rtype)
    text = http_get(port, "/metrics")[1]
    mine = f'server="dns://127.0.0.1:{server.port}",type="([^"]*)",view="",zone="lab."'
    found = re.findall(rf'template_matches_total\{{class="IN",{mine}\}} (\S+)', text)
    assert sorted(found) == [("", "2.0"), ("A", "1.0")]


def test_a_question_for_any_type_is_answered_with_the_type_the_template_is_for(serve: Serve) -> None:
    server = serve(block('template IN TXT lab {\n answer "{{ .Name }} 60 IN TXT {{ .Type }}-{{ .Class }}"\n }'))
    assert data(server.ask("x.lab.", "ANY")) == data(server.ask("x.lab.", "TXT")) == ['"TXT-IN"']


@pytest.mark.parametrize(("rule", "expected"), [
    ("template IN", "CLASS TYPE"), ("template in A", "is not a class"), ("template IN NOPE", "is not a query type"),
    ('template IN A {\n match "("\n }', "bad regular expression"),
    ('template IN A {\n answer "{{ .X }}"\n }', "bad template"),
    ("template IN A {\n rcode nope\n }", "not a response code"), ("template IN A {\n expr 1\n }", "true or false"),
    ("template IN A {\n var len 2\n }", "is a word of the language"),
    ("template IN A {\n answr x\n }", 'did you mean "answer"'), ("dns64 10.0.0.0/8", "expected an IPv6 prefix"),
    ("dns64 2001:db8::/97", "97 bits"), ("dns64 2001:db8::/72", "expected 32, 40, 48, 56, 64, 96"),
])  # fmt: skip
def test_bad_directives_are_named_with_their_place(serve: Serve, rule: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"^Corefile:\d+:\d+: ") as caught:
        serve(block(rule, "whoami"))
    assert expected in str(caught.value)


# dns64.


@pytest.mark.parametrize(("prefix", "expected"), [
    ("64:ff9b::/96", "64:ff9b::c000:221"), ("2001:db8::/32", "2001:db8:c000:221::"),
    ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
    ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"), ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
    ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
])  # fmt: skip
def test_addresses_are_embedded_as_rfc_6052_has_them(prefix: str, expected: str) -> None:
    made = embed(ipaddress.IPv6Network(prefix), ipaddress.IPv4Address("192.0.2.33").packed)
    assert ipaddress.IPv6Address(made) == ipaddress.IPv6Address(expected)


def test_names_without_ipv6_get_translated_addresses(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        name, kind = query.question[0].name.to_text(), query.question[0].rdtype
        if name == "nx.org.":
            reply = soa(answer(query))
            reply.set_rcode(3)
            return reply
        if name == "gone.org." and kind == 1:
            reply = soa(answer(query))
            reply.set_rcode(3)
            return reply
        if kind == 28:
            return answer(query, "AAAA 2001:db8::1") if name == "six.org." else soa(answer(query), ttl=20)
        return answer(query, "A 192.0.2.1", ttl=300)

    up = upstream(script)
    server = serve(block("dns64 {\n allow_ipv4\n }", f"forward . {up.address}"))
    reply = server.ask("four.org.", "AAAA")
    assert data(reply) == ["64:ff9b::c000:201"] and reply.answer[0].ttl == 20
    assert data(server.ask("six.org.", "AAAA")) == ["2001:db8::1"]
    assert code(server.ask("nx.org.", "AAAA")) == "NXDOMAIN"
    assert code(server.ask("gone.org.", "AAAA")) == "NODATA"  # its A is NXDOMAIN, and its AAAA was NODATA
    assert data(server.ask("four.org.", "A")) == ["192.0.2.1"]
    only6 = serve(block("dns64", f"forward . {up.address}"))
    assert code(only6.ask("four.org.", "AAAA")) == "NODATA"
    every = serve(
        block("dns64 {\n translate_all\n allow_ipv4\n prefix 2001:db8:64::/96\n }", f"forward . {up.address}")
    )
    assert data(every.ask("six.org.", "AAAA")) == ["2001:db8:64::c000:201"]
