"""view, metadata, and who reads them: log, template, rewrite."""

from pathlib import Path

import dns.message
import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.testing import ApiServer, answer, code, data, eventually, flags, free_port, http_get
from kdns.testing.objects import namespace, pod, service
from tests.fixtures import Serve, Start


def views(*blocks: str) -> str:
    return "\n".join(f"example.org:{{port}} {{\n bind 127.0.0.1\n{block}\n}}" for block in blocks)


def hosts(address: str) -> str:
    return f" hosts {{\n {address} www.example.org\n fallthrough\n }}\n whoami"


def test_the_first_block_whose_view_fits_answers(serve: Serve) -> None:
    server = serve(views(
        " view tcp {\n expr proto() == 'tcp'\n }\n" + hosts("192.0.2.1"),
        " view do {\n expr do()\n expr type() in ['A', 'AAAA']\n }\n" + hosts("192.0.2.2"),
        hosts("192.0.2.3"),
    ))  # fmt: skip
    assert data(server.ask("www.example.org.", tcp=True)) == ["192.0.2.1"]
    assert data(server.ask("www.example.org.", want_dnssec=True)) == ["192.0.2.2"]
    assert data(server.ask("www.example.org.")) == ["192.0.2.3"]
    # What was answered for one view is not repeated for another.
    assert data(server.ask("www.example.org.", want_dnssec=True)) == ["192.0.2.2"]


def test_where_no_view_fits_the_next_shorter_zone_is_tried_and_then_it_is_refused(serve: Serve) -> None:
    text = views(" view never {\n expr false\n }\n" + hosts("192.0.2.1"))
    assert code(serve(text).ask("www.example.org.")) == "REFUSED"
    server = serve(text + "\norg:{port} {\n bind 127.0.0.1\n" + hosts("192.0.2.9") + "\n}")
    assert data(server.ask("www.example.org.")) == ["192.0.2.9"]


def test_an_expression_that_fails_for_a_query_does_not_fit(serve: Serve) -> None:
    bad = " view bad {\n expr incidr(client_ip(), name())\n }\n" + hosts("192.0.2.1")
    assert data(serve(views(bad, hosts("192.0.2.2"))).ask("www.example.org.")) == ["192.0.2.2"]


def test_every_function_tells_about_the_query(serve: Serve) -> None:
    facts = (
        "name() == 'www.example.org.'", "type() == 'A'", "class() == 'IN'", "client_ip() == '127.0.0.1'",
        "port() != ''",
        "server_ip() == '127.0.0.1'", "server_port() == '{port}'", "proto() == 'udp'", "id() == 4660", "opcode() == 0",
        "size() == 44",
        "bufsize() == 1400", "not do()", "incidr(client_ip(), '127.0.0.0/8')", "metadata('view/name') == 'all'",
    )  # fmt: skip
    lines = "\n".join(f" expr {fact}" for fact in facts)
    server = serve(views(f" metadata\n view all {{\n{lines}\n }}\n" + hosts("192.0.2.1")))
    query = dns.message.make_query("www.example.org.", "A", use_edns=0, payload=1400)
    query.id = 4660
    assert data(server.send(query)) == ["192.0.2.1"]


def test_acl_and_views_judge_cached_answers_too(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    inner = f" cache 30\n forward . {up.address}"
    server = serve(views(" view tcp {\n expr proto() == 'tcp'\n }\n" + inner, " whoami"))
    assert data(server.ask("x.example.org.", tcp=True)) == data(server.ask("x.example.org.", tcp=True)) == ["192.0.2.1"]
    assert data(server.ask("x.example.org.")) == [] and len(up.queries) == 1


def test_blocks_of_one_zone_need_views_but_for_the_last(serve: Serve) -> None:
    with pytest.raises(CorefileError, match="already defined"):
        serve(views(" whoami", " whoami"))


@pytest.mark.parametrize(("inner", "expected"), [
    ("view", "expected a name"), ("view a b", "unexpected argument"), ("view a {\n nope\n }", "unknown property"),
    ("view a {\n expr\n }", "expected an expression"),
    ("view a {\n expr name(\n }", "bad expression: unexpected the end"),
    ("view a {\n expr name()\n }", "must be true or false"), ("view a {\n expr nope()\n }", "unknown function"),
    ("view a\n view b", "only be used once"), ("metadata {\n x\n }", "takes no block"),
    ("metadata\n metadata", "only be used once"),
])  # fmt: skip
def test_bad_views_are_named_with_their_place(serve: Serve, inner: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(f".:{{port}} {{\n bind 127.0.0.1\n {inner}\n whoami\n}}")
    assert expected in str(caught.value)


def test_metrics_show_the_view(serve: Serve) -> None:
    port = free_port()
    server = serve(views(f" view mine {{\n expr true\n }}\n prometheus 127.0.0.1:{port}\n whoami"))
    server.ask("www.example.org.")
    assert 'view="mine"' in http_get(port, "/metrics")[1]


def test_log_and_template_show_labels_of_a_clusters_name(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    objects = [namespace("n1"), service("n1/web", "10.0.0.1")]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump_all(objects))
    fields = ("service", "namespace", "kind", "port-name", "protocol", "endpoint", "nope")
    form = " ".join(f"{{/kubernetes/{field}}}" for field in fields)
    server = serve(
        ".:{port} {\n bind 127.0.0.1\n metadata\n" + f' log . "got {form}"\n'
        + ' template IN TXT example.org {\n answer "{{ .Name }} TXT {{ .Meta `view/name` }}-{{ .Meta `x/y` }}"\n }\n'
        + f" view v {{\n expr true\n }}\n kubernetes cluster.local {{\n manifests {tmp_path / 'c.yaml'}\n }}\n}}"
    )  # fmt: skip
    for _ in range(2):  # the second is a reply that was kept
        server.ask("_http._tcp.web.n1.svc.cluster.local.", "SRV")
    server.ask("1-2-3-4.web.n1.svc.cluster.local.")
    server.ask("web.n1.nope.cluster.local.")
    eventually(lambda: sum("got " in line for line in lines) == 4)
    got = [line.partition("got ")[2] for line in lines if "got " in line]
    assert got == ["web n1 svc http tcp - -"] * 2 + ["web n1 svc - - 1-2-3-4 -", "- - - - - - -"]
    assert data(server.ask("a.example.org.", "TXT")) == ['"v-"']


def test_labels_say_which_pod_asks(serve: Serve, api: ApiServer, lines: list[str]) -> None:
    mine = pod("n1/client", "127.0.0.1")
    mine["metadata"]["labels"] = {"app": "shop"}
    api.put(namespace("n1"), mine)
    server = serve(
        ".:{port} {\n bind 127.0.0.1\n metadata\n"
        ' log . "got {/kubernetes/client-namespace} {/kubernetes/client-pod-name} {/kubernetes/client-label/app}"\n'
        f" kubernetes cluster.local {{\n endpoint {api.url}\n pods verified\n }}\n}}"
    )
    # A denial comes once all has been listed, Pods too.
    eventually(lambda: code(server.ask("nope.n1.svc.cluster.local.")) == "NXDOMAIN")
    eventually(lambda: any("got n1 client shop" in line for line in lines))


def test_log_shows_which_upstream_answered(serve: Serve, upstream: Start, lines: list[str]) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(
        f'.:{{port}} {{\n bind 127.0.0.1\n metadata\n log . "by {{/forward/upstream}}"\n forward . {up.address}\n}}'
    )
    server.ask("x.org.")
    eventually(lambda: any(f"by {up.address}" in line for line in lines))


TEMPLATE = """.:{port} {
 bind 127.0.0.1
 template IN A {
  match ^ip-(?P<n>[0-9]+)[.]
  var n int(group('n'))
  var low n % 256
  expr n < 1024
  answer "{{ .Name }} 60 A 10.0.{{ .Var.n }}.{{ .Var.low }}"
  fallthrough
 }
 template IN TXT {
  expr type() == 'TXT' && client_ip() startsWith '127.'
  answer "{{ .Name }} 60 TXT ok"
 }
 template IN AAAA {
  var x int(name())
  answer "{{ .Name }} AAAA ::1"
 }
 template IN MX {
  expr false
  rcode NXDOMAIN
 }
 whoami
}"""


def test_template_variables_and_expressions(serve: Serve) -> None:
    server = serve(TEMPLATE)
    assert data(server.ask("ip-7.org.")) == ["10.0.7.7"]
    assert data(server.ask("ip-5000.org.")) == []  # falls through to whoami
    assert "AA" in flags(server.ask("ip-5000.org."))
    assert data(server.ask("x.org.", "TXT")) == ['"ok"']
    assert code(server.ask("x.org.", "AAAA")) == "SERVFAIL"  # an expression that fails
    assert code(server.ask("x.org.", "MX")) == "SERVFAIL"  # no fallthrough


@pytest.mark.parametrize(("line", "expected"), [
    ("var", "expected NAME EXPRESSION"), ("var 1x 2", "not a name for a new variable"),
    ("var x", "expected NAME EXPRESSION"),
    ("var x 1\n var x 2", "not a name for a new variable"), ("expr y", 'unknown name "y"'),
    ("var s 'a'\n expr s > 1", "does not go with"),
])  # fmt: skip
def test_bad_template_expressions_are_named(serve: Serve, line: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(f".:{{port}} {{\n template IN A {{\n {line}\n }}\n}}")
    assert expected in str(caught.value)
