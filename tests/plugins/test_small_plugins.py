"""The smaller plugins: each does what its manual says."""

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import dns.message
import dns.rrset
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kdns import log, metrics
from kdns.corefile import CorefileError
from kdns.net.interfaces import addresses
from kdns.plugins.loadbalance import read_weights
from kdns.testing import (
    Server,
    Upstream,
    additional,
    answer,
    answers,
    block,
    code,
    data,
    eventually,
    free_port,
    http_get,
    soa,
)
from tests.fixtures import Serve, Start

# whoami.


def test_whoami_says_who_asked(serve: Serve) -> None:
    server = serve(block("whoami"))
    for tcp, proto in ((False, "_udp"), (True, "_tcp")):
        reply = server.ask("example.org.", "MX", tcp=tcp)
        assert code(reply) == "EMPTY"
        address, port = additional(reply)[1], additional(reply)[0]
        assert address == "example.org. A 127.0.0.1" and port.startswith(f"{proto}.example.org. SRV 0 0 ")


# errors.


def test_errors_of_one_kind_are_summed_up(serve: Serve, upstream: Start, lines: list[str]) -> None:
    up = upstream(lambda query, proto: None)
    consolidate = 'errors {\n consolidate 300ms ".* i/o timeout$" warning show_first\n }'
    server = serve(
        block(consolidate, f"forward . {up.address} {{\n read_timeout 30ms\n max_connect_attempts 1\n max_fails 0\n }}")
    )
    for i in range(4):
        assert code(server.ask(f"x{i}.org.")) == "SERVFAIL"
    eventually(lambda: any("errors like" in line for line in lines))
    assert [line for line in lines if "errors like" in line] == [
        "[WARNING] plugin/errors: 4 errors like '.* i/o timeout$' occurred in last 300ms"
    ]
    assert sum("i/o timeout" in line and "errors like" not in line for line in lines) == 1


# log.


def test_log_writes_the_line_coredns_writes(serve: Serve, lines: list[str]) -> None:
    server = serve(block("log", "whoami"))
    server.ask("Example.ORG.", "A", use_edns=0, payload=4096, want_dnssec=True, id=4711)
    found = next(line for line in lines if "example.org." in line)
    pattern = r'\[INFO\] 127\.0\.0\.1:\d+ - 4711 "A IN example\.org\. udp \d+ true 4096" NOERROR qr,aa,rd \d+ 0\.\d+s'
    assert re.fullmatch(pattern, found), found


def test_log_takes_names_formats_and_classes(serve: Serve, upstream: Start, lines: list[str]) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query))
        reply.set_rcode(3)
        return reply

    up = upstream(script)
    rules = [
        'log a.org "{type} {name} {rcode} {/x/y} {unknown} {>opcode}"',
        "log b.org {\n class error\n }",
        "log b.org",
    ]
    server = serve(block(*rules, f"forward . {up.address}"))
    for name in ("x.a.org.", "x.b.org.", "x.c.org."):
        server.ask(name)
    logged = [line for line in lines if line.startswith("[INFO] A ") or "b.org" in line or "c.org" in line]
    assert logged == ["[INFO] A x.a.org. NXDOMAIN - {unknown} 0"]


def test_with_metadata_a_line_says_what_kind_of_reply_it_was(serve: Serve, upstream: Start, lines: list[str]) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        kind = query.question[0].name.labels[0]
        reply = (
            answer(query, "A 10.0.0.1")
            if kind == b"yes"
            else soa(answer(query))
            if kind in (b"no", b"nx")
            else answer(query)
        )
        if kind == b"cut":
            reply.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "ns.org."))
        reply.set_rcode({b"nx": 3, b"bad": 2, b"odd": 5}.get(kind, 0))
        return reply

    up = upstream(script)
    server = serve(block("metadata", 'log . "{name} {/log/type} {/log/class}"', f"forward . {up.address}"))
    expected = {
        "yes": "NOERROR success", "no": "NODATA denial", "nx": "NXDOMAIN denial", "bad": "SERVERERROR error",
        "odd": "OTHERERROR error", "cut": "DELEGATION success",
    }  # fmt: skip
    for name in expected:
        server.ask(f"{name}.org.")
    assert [line for line in lines if ".org." in line] == [
        f"[INFO] {name}.org. {text}" for name, text in expected.items()
    ]


def test_names_in_log_lines_are_escaped(serve: Serve, lines: list[str]) -> None:
    server = serve(block("log", "whoami"))
    server.raw(b'\0\1\1\0\0\1\0\0\0\0\0\0\x05a\n"\x00\xff\0\0\1\0\1')
    assert any(r"a\010\"\000\255." in line for line in lines)


def test_a_line_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.Logger().error("one\ntwo\x1b[31m")
    assert capsys.readouterr().out == "[ERROR] one\\ntwo\\x1b[31m\n"


def test_a_slow_reader_of_the_log_costs_lines_and_not_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import threading

    gate = threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(5)
            return len(text)

    monkeypatch.setattr(log, "QUEUE_LINES", 100)
    before = log.dropped()
    log.start_writer(Slow())
    try:
        began = time.monotonic()
        for i in range(1000):
            log.Logger().info(f"line {i}")
        assert time.monotonic() - began < 4
        assert log.dropped() - before >= 700
    finally:
        gate.set()
        log.stop_writer()


# health, ready, prometheus.


def test_health_answers_and_a_busy_port_is_fatal(serve: Serve) -> None:
    port = free_port()
    serve(block(f"health 127.0.0.1:{port}", "whoami"))
    assert http_get(port, "/health") == (200, "OK")
    assert http_get(port, "/nothing")[0] == 404
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="another process has this port"):
            serve(block(f"health 127.0.0.1:{taken.getsockname()[1]}", "whoami"))


def test_ready_and_prometheus_on_a_busy_port_are_errors_and_not_fatal(serve: Serve, lines: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(block(f"ready 127.0.0.1:{port}", f"prometheus 127.0.0.1:{port}", "whoami"))
        assert code(server.ask("example.org.")) == "EMPTY"
    assert sum("another process has this port" in line for line in lines) == 2


def test_metrics_count_queries_as_coredns_does(serve: Serve) -> None:
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", "whoami"))
    for _ in range(5):
        server.ask("example.org.", "A")
    server.ask("example.org.", "MX", tcp=True, use_edns=0, want_dnssec=True)
    server.ask("example.org.", "TYPE65280")
    server.ask("example.org.", "A", rdclass="CH")
    status, text = http_get(port, "/metrics")
    assert status == 200
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip

    def value(metric: str, **labels: str) -> float:
        base = {"server": f"dns://127.0.0.1:{server.port}", "zone": ".", "view": ""}
        return values[(metric, tuple(sorted({**base, **labels}.items())))]

    assert value("coredns_dns_requests_total", proto="udp", family="1", type="A") == 5
    assert value("coredns_dns_requests_total", proto="tcp", family="1", type="MX") == 1
    assert value("coredns_dns_requests_total", proto="udp", family="1", type="other") == 1
    assert value("coredns_dns_requests_total", proto="udp", family="1", type="A", zone="dropped") == 1
    assert value("coredns_dns_responses_total", rcode="NOERROR", plugin="errors") == 7
    assert value("coredns_dns_responses_total", rcode="REFUSED", plugin="", zone="dropped") == 1
    assert value("coredns_dns_do_requests_total") == 1
    assert value("coredns_dns_request_duration_seconds_count") == 7
    assert value("coredns_dns_request_size_bytes_count", proto="udp") == 6
    assert value("coredns_dns_response_size_bytes_count", proto="tcp") == 1
    assert value("coredns_plugin_enabled", name="whoami") == 1
    assert values[("coredns_panics_total", ())] >= 0
    assert any(name == "coredns_build_info" for name, _ in values)
    process = {name for name, _ in values if name.startswith("process_")}
    assert process == {
        "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
        "process_start_time_seconds", "process_virtual_memory_bytes", "process_virtual_memory_max_bytes",
        "process_network_receive_bytes_total", "process_network_transmit_bytes_total",
    }  # fmt: skip


def test_a_family_of_many_zones_is_written_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One family of 40 zones held the loop for 10 ms."""
    registry: dict[str, metrics.Family] = {}
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    monkeypatch.setattr(metrics, "REFRESH", [])
    sizes = metrics.Histogram("x_size_bytes", "Sizes.", (1, 2, 4), ("zone",))
    count = metrics.Counter("x_total", "Count.", ("zone",))
    for i in range(500):
        sizes.observe(sizes.slot(f"z{i}"), i % 5)
        count.slot(f"z{i}")[0] += i
    slices = list(metrics.families())
    assert max(text.count(b"\n") for text in slices) <= metrics.SLICE + 2
    text = b"".join(slices).decode()
    assert text.count("# TYPE x_size_bytes histogram") == text.count("# TYPE x_total counter") == 1
    found = {family.name: len(family.samples) for family in text_string_to_metric_families(text)}
    assert found == {"x_size_bytes": 500 * 6, "x": 500}
    assert 'x_total{zone="z499"} 499.0' in text and 'x_size_bytes_bucket{le="+Inf",zone="z499"} 1.0' in text


def test_replies_that_no_plugin_wrote_have_no_plugin_in_the_metrics(serve: Serve) -> None:
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", "hosts /nowhere {\n 10.0.0.1 a.org\n }"))
    assert code(server.ask("b.org.")) == "SERVFAIL" and data(server.ask("a.org.")) == ["10.0.0.1"]
    text = http_get(port, "/metrics")[1]
    label = f'server="dns://127.0.0.1:{server.port}",view="",zone="."'
    assert f'coredns_dns_responses_total{{plugin="",rcode="SERVFAIL",{label}}} 1.0' in text
    assert f'coredns_dns_responses_total{{plugin="errors",rcode="NOERROR",{label}}} 1.0' in text
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", f"forward . 127.0.0.1:{free_port()}"))
    assert code(server.ask("b.org.", use_edns=0)) == "SERVFAIL"
    assert 'coredns_dns_responses_total{plugin="",rcode="SERVFAIL"' in http_get(port, "/metrics")[1]


def test_repeated_replies_are_counted_like_others(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "c.yaml"
    path.write_text("kind: Service\nmetadata: {name: web, namespace: n1}\nspec: {clusterIP: 10.0.0.1}\n")
    kubernetes = f"kubernetes cluster.local {{\n manifests {path}\n }}"
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", "loadbalance", kubernetes))
    for _ in range(20):
        assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
    _, text = http_get(port, "/metrics")
    label = f'server="dns://127.0.0.1:{server.port}",type="A",view="",zone="."'
    assert f'coredns_dns_requests_total{{family="1",proto="udp",{label}}} 20.0' in text
    count = re.search(rf'duration_seconds_count{{server="dns://127.0.0.1:{server.port}",view="",zone="."}} (\S+)', text)
    assert count is not None and float(count[1]) == 20


# loadbalance.


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


@pytest.mark.parametrize(
    "text",
    ["192.0.2.1 5\n", "x.org\n192.0.2.1 0\n", "x.org\n192.0.2.1 256\n", "x.org\nnope 3\n", "x.org\n1.2.3.4 5 6\n"],
)
def test_bad_weights_are_named_with_their_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^f:\d: "):
        read_weights(text, "f")


def test_queries_that_come_through_dns64_count_as_allowed(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("dns64 {\n allow_ipv4\n }", "acl {\n allow\n }", f"forward . {up.address}"))
    server.ask("x.org.", "AAAA")
    # The question as it came, and dns64's own for A.
    assert metrics.REGISTRY["coredns_acl_allowed_requests_total"].slot(f"dns://127.0.0.1:{server.port}", "")[0] == 2


# rewrite.


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
    ("rewrite name regex a {x/y metadata", "has no other"),
    ("rewrite name regex a x/y} metadata", "has no other"),
    ("rewrite name suffix a b answer sometimes", "expected auto"),
    ("rewrite type A B C", "takes FROM TO"),
    ("rewrite type A NOPE", "is no type"),
    ("rewrite ttl a.org 9-3", "the wrong way round"),
    ("rewrite rcode a.org X Y", "no response code"),
    ("rewrite edns0 local set nope 2", "expected an option code"),
])  # fmt: skip
def test_bad_rules_are_named_with_their_place(serve: Serve, rule: str, expected: str) -> None:
    with pytest.raises(CorefileError) as caught:
        serve(block(rule, "whoami"))
    assert expected in str(caught.value) and re.match(r"Corefile:3:\d+: ", str(caught.value))


# loop.


def test_an_upstream_that_leads_back_here_is_refused_and_cluster_names_go_on(
    serve: Serve, upstream: Start, lines: list[str]
) -> None:
    port = free_port()
    good = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    text = block(
        "errors",
        "hosts /nowhere {\n 10.0.0.1 own.org\n fallthrough\n }",
        "loop",
        f"forward . 127.0.0.1:{port} {good.address}",
    )
    server = serve(text, port=port)
    eventually(lambda: any("plugin/loop: Loop (127.0.0.1:" in line for line in lines))
    assert data(server.ask("own.org.")) == ["10.0.0.1"]
    assert all(data(server.ask(f"x{i}.org.")) == ["192.0.2.1"] for i in range(10))


def test_a_server_whose_only_upstream_is_itself_answers_servfail_at_once(serve: Serve, lines: list[str]) -> None:
    port = free_port()
    server = serve(block("loop", f"forward . 127.0.0.1:{port}"), port=port)
    eventually(lambda: any("plugin/loop" in line for line in lines))
    began = time.monotonic()
    assert code(server.ask("x.org.")) == "SERVFAIL" and time.monotonic() - began < 1.8


# bind, debug.


def test_bind_takes_interfaces_and_leaves_out_what_it_is_told_to(serve: Serve) -> None:
    text = ".:{port} {\n bind lo {\n except ::1 127.0.0.1\n }\n bind 127.0.0.5\n whoami\n}\n"
    server = serve(text)
    assert code(server.ask("x.org.", host="127.0.0.5")) == "EMPTY"
    assert {group.host for group in server.server.listeners} <= {
        "127.0.0.5",
        *(a.address for a in addresses() if a.interface == "lo"),
    }
    assert server.server.banner() == [f".:{server.port} on 127.0.0.5"] or len(server.server.banner()) > 1


def test_debug_writes_debug_lines_while_it_is_there(serve: Serve, lines: list[str]) -> None:
    log.Logger().debug("before")
    server = serve(block("debug", "whoami"))
    log.Logger().debug("during")
    server.reload(block("whoami"))
    log.Logger().debug("after")
    assert [line for line in lines if line.startswith("[DEBUG]")] == ["[DEBUG] during"]


def test_types_and_zones_that_clients_choose_do_not_grow_the_counters(serve: Serve) -> None:
    port = free_port()
    text = f"a.org:{{port}} b.org:{{port}} {{\n bind 127.0.0.1\n prometheus 127.0.0.1:{port}\n errors\n whoami\n}}\n"
    server = serve(text)
    for i in range(300):
        assert code(server.ask(f"x{i}.{'ab'[i % 2]}.org.", 1000 + i)) == "EMPTY"
    prometheus = next(p for p in server.server.instance.plugins if p.name == "prometheus")  # type: ignore[union-attr]
    assert len(prometheus.rows) == 2  # type: ignore[attr-defined]
    _, exposed = http_get(port, "/metrics")
    for zone in ("a.org.", "b.org."):
        label = f'server="dns://127.0.0.1:{server.port}",type="other",view="",zone="{zone}"'
        assert f'coredns_dns_requests_total{{family="1",proto="udp",{label}}} 150.0' in exposed
