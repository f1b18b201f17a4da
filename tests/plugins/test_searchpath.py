"""searchpath: the first name of a search list is answered with what the list leads to, or exactly as without it."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import pytest
import yaml

from kdns.plugins import searchpath
from kdns.testing import Server, Upstream, answer, answers, code, data, eventually, flags, soa
from kdns.testing.objects import namespace, service
from tests.fixtures import Serve, Start

KNOWN = {"api.example.com.", "v6.example.com.", "web.corp.example.org.", "one."}


def world(query: dns.message.Message, proto: str) -> dns.message.Message:
    name, kind = query.question[0].name.to_text(), query.question[0].rdtype
    if name not in KNOWN:
        reply = soa(answer(query), zone=".")
        reply.set_rcode(3)
        return reply
    if kind == 1 and name != "v6.example.com.":
        return answer(query, "A 192.0.2.1", ttl=300)
    if kind == 28 and name == "v6.example.com.":
        return answer(query, "AAAA 2001:db8::1", ttl=300)
    return soa(answer(query), zone="example.com.")


@pytest.fixture
def start(serve: Serve, upstream: Start, tmp_path: Path) -> Callable[..., tuple[Server, Upstream]]:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([
        namespace("n1"), namespace("sys"), service("n1/web", "10.0.0.1"), service("n1/app"),
        service("sys/web", "10.0.0.2"),
    ]))  # fmt: skip

    def make(options: str = "", script: Callable[..., object] = world) -> tuple[Server, Upstream]:
        up = upstream(script)
        text = (
            f".:{{port}} {{\n bind 127.0.0.1\n searchpath {{\n suffixes corp.example.org\n {options}\n }}\n kubernetes "
            f"cluster.local {{\n"
            f" manifests {path}\n ttl 30\n }}\n forward . {up.address} {{\n read_timeout 5s\n }}\n}}\n"
        )
        return serve(text), up

    return make


S = ".n1.svc.cluster.local."


def test_a_question_without_rd_led_everybody_to_the_wrong_name(start: Callable[..., tuple[Server, Upstream]]) -> None:
    """An upstream that may not look says nothing, and that was taken for a name that exists, and remembered."""

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        return world(query, proto) if query.flags & dns.flags.RD else answer(query)

    server, up = start(script=script)
    query = dns.message.make_query("api.example.com" + S, "A")
    query.flags &= ~dns.flags.RD
    assert not server.send(query).answer
    reply = server.ask("api.example.com" + S)
    assert answers(reply) == ["api.example.com. A 192.0.2.1", f"api.example.com{S} CNAME api.example.com."]


@pytest.mark.interpreted("a function is replaced")
def test_a_fault_in_a_walk_is_servfail_and_not_a_reply_that_never_comes(
    start: Callable[..., tuple[Server, Upstream]], monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def boom(*_: object) -> None:
        raise RuntimeError("boom")

    server, _ = start()
    good = searchpath.answer_after_cname
    monkeypatch.setattr(searchpath, "answer_after_cname", boom)
    assert code(server.ask("api.example.com" + S, timeout=4)) == "SERVFAIL"
    assert any("RuntimeError: boom" in line for line in lines)
    monkeypatch.setattr(searchpath, "answer_after_cname", good)
    assert len(server.ask("api.example.com" + S).answer) == 2


def test_an_outside_name_takes_one_query(start: Callable[..., tuple[Server, Upstream]]) -> None:
    server, up = start()
    reply = server.ask("api.example.com" + S)
    assert answers(reply) == ["api.example.com. A 192.0.2.1", f"api.example.com{S} CNAME api.example.com."]
    assert [rrset.ttl for rrset in reply.answer] == [30, 300] and flags(reply) == {"QR", "AA", "RD", "RA"}
    assert "api.example.com.corp.example.org." in [q.question[0].name.to_text() for q in up.queries]


def test_existence_is_decided_once_for_all_types(start: Callable[..., tuple[Server, Upstream]]) -> None:
    server, _ = start()
    none = server.ask("api.example.com" + S, "AAAA")
    assert (
        answers(none) == [f"api.example.com{S} CNAME api.example.com."] and code(none) == "NOERROR" and none.authority
    )
    only6 = server.ask("v6.example.com" + S, "A")
    assert answers(only6) == [f"v6.example.com{S} CNAME v6.example.com."] and only6.authority
    assert data(server.ask("v6.example.com" + S, "AAAA")) == ["2001:db8::1", "v6.example.com."]
    assert answers(server.ask("api.example.com" + S, "MX")) == [f"api.example.com{S} CNAME api.example.com."]


def test_a_name_that_exists_under_a_suffix_wins_in_the_clients_order(
    start: Callable[..., tuple[Server, Upstream]],
) -> None:
    server, up = start("single_labels")
    assert data(server.ask("web.n1.svc" + S)) == ["10.0.0.1", "web.n1.svc.cluster.local."] and not up.queries
    assert code(server.ask("web.corp" + S)) == "NXDOMAIN"
    assert data(server.ask("one" + S)) == ["192.0.2.1", "one."]


@pytest.mark.parametrize("name", [
    "nothing.example.com" + S,  # exists nowhere
    "one" + S,  # one label
    "x.web" + S, "web-0.app" + S, "x.n1" + S, "x.sys" + S,  # the last label is a Service's or Namespace's name
    "_http._tcp.example.com" + S, "a._x.com" + S,
    "api.example.com.nope.svc.cluster.local.",  # no such namespace
    "api.example.com.sys.svc.cluster.local.",  # excepted
    "api.example.com.svc.cluster.local.", "api.example.com.cluster.local.",
    "a." + "b" * 63 + "." + "c" * 63 + "." + "d" * 63 + S,
])  # fmt: skip
def test_everything_else_is_answered_as_without_it(start: Callable[..., tuple[Server, Upstream]], name: str) -> None:
    server, _ = start("except sys")
    reply = server.ask(name)
    assert code(reply) == "NXDOMAIN" and str(reply.authority[0].name) == "cluster.local." and not reply.answer


@pytest.mark.parametrize("rtype", ["DS", "DNSKEY", "RRSIG", "NSEC", "NSEC3", "SOA", "NS", "ANY"])
def test_types_about_zones_are_left_alone(start: Callable[..., tuple[Server, Upstream]], rtype: str) -> None:
    server, up = start()
    assert code(server.ask("api.example.com" + S, rtype)) == "NXDOMAIN" and not up.queries


def test_a_failing_or_slow_upstream_is_the_plain_answer_in_time(start: Callable[..., tuple[Server, Upstream]]) -> None:
    def fails(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(2)
        return reply

    assert code(start(script=fails)[0].ask("api.example.com" + S)) == "NXDOMAIN"
    server, _ = start("timeout 200ms", script=lambda query, proto: None)
    began = time.monotonic()
    assert code(server.ask("api.example.com" + S)) == "NXDOMAIN" and 0.15 < time.monotonic() - began < 1.8


def test_no_more_look_ups_than_allowed(start: Callable[..., tuple[Server, Upstream]]) -> None:
    server, up = start("suffixes a.org b.org c.org d.org e.org\n lookups 3")
    assert code(server.ask("nothing.example.com" + S)) == "NXDOMAIN" and len(up.queries) == 3


def test_acl_sees_each_name_of_the_walk(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    up = upstream(world)
    server = serve(
        ".:{port} {\n bind 127.0.0.1\n searchpath\n acl example.com {\n block\n }\n"
        f" kubernetes cluster.local {{\n manifests {path}\n }}\n"
        f" forward . {up.address}\n}}\n"
    )
    assert code(server.ask("api.example.com" + S)) == "NXDOMAIN"


@pytest.mark.parametrize("fails", [False, True])
def test_a_query_for_aaaa_waits_for_the_walk_that_the_one_for_a_has_begun(
    start: Callable[..., tuple[Server, Upstream]], fails: bool
) -> None:
    both = threading.Event()

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        assert both.wait(5)
        reply = world(query, proto)
        if fails:
            reply.set_rcode(2)
        return reply

    server, up = start(script=script)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((server.host, server.port))
        for number, kind in ((1, "A"), (2, "AAAA")):
            client.send(dns.message.make_query("api.example.com" + S, kind, id=number).to_wire())
        eventually(lambda: len(up.queries) == 1)
        time.sleep(0.05)
        both.set()
        replies = {reply.id: reply for reply in (dns.message.from_wire(client.recv(4096)) for _ in range(2))}
    if fails:
        assert code(replies[1]) == code(replies[2]) == "NXDOMAIN"
    else:
        assert data(replies[1]) == ["192.0.2.1", "api.example.com."]
        assert answers(replies[2]) == [f"api.example.com{S} CNAME api.example.com."]
    asked = [(query.question[0].name.to_text(), query.question[0].rdtype) for query in up.queries]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(("beside", "below"), [
    ("hosts /nowhere {\n 10.9.9.9 api.example.com.svc.cluster.local\n fallthrough\n }", ""),
    ('template IN A api.example.com.cluster.local {\n answer "{{ .Name }} 60 IN A 10.9.9.9"\n }', ""),
    ("", "example.com.svc.cluster.local:PORT {\n bind 127.0.0.1\n hosts /nowhere {\n 10.9.9.9 "
        "api.example.com.svc.cluster.local\n }\n}\n"),
])  # fmt: skip
def test_names_that_others_have_in_the_clusters_zone_are_still_found(
    serve: Serve, upstream: Start, tmp_path: Path, beside: str, below: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([namespace("n1"), service("n1/web", "10.0.0.1")]))
    up = upstream(world)
    text = (
        f".:PORT {{\n bind 127.0.0.1\n searchpath\n {beside}\n kubernetes cluster.local {{\n manifests {path}\n }}\n"
        f" forward . {up.address}\n}}\n{below}"
    )
    assert data(serve(text.replace("PORT", "{port}")).ask("api.example.com" + S))[0] == "10.9.9.9"


def test_a_service_that_appears_takes_its_names_back(
    start: Callable[..., tuple[Server, Upstream]], tmp_path: Path
) -> None:
    server, _ = start()
    assert server.ask("api.example.com" + S).answer
    with (tmp_path / "c.yaml").open("a") as file:
        file.write("---\n" + yaml.safe_dump(service("n1/com", "10.0.0.9")))
    eventually(lambda: code(server.ask("api.example.com" + S)) == "NXDOMAIN")


def test_a_walk_is_remembered_for_a_while_and_asked_anew_where_its_end_is_gone(
    start: Callable[..., tuple[Server, Upstream]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, up = start()
    for _ in range(3):
        assert data(server.ask("api.example.com" + S)) == ["192.0.2.1", "api.example.com."]
    assert len(up.queries) == 2 + 1 + 2  # the suffix's A and AAAA and the name once, then the name alone
    monkeypatch.setattr("tests.plugins.test_searchpath.KNOWN", KNOWN - {"api.example.com."})
    assert code(server.ask("api.example.com" + S)) == "NXDOMAIN"


def test_a_name_that_exists_nowhere_is_walked_once_and_found_when_its_denial_is_over(
    start: Callable[..., tuple[Server, Upstream]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def brief(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = world(query, proto)
        for rrset in reply.authority:
            rrset.ttl = 1
        return reply

    server, up = start(script=brief)
    for _ in range(3):
        assert code(server.ask("new.example.com" + S)) == "NXDOMAIN"
    assert len(up.queries) == 4
    monkeypatch.setattr("tests.plugins.test_searchpath.KNOWN", KNOWN | {"new.example.com."})
    eventually(lambda: code(server.ask("new.example.com" + S)) == "NOERROR", timeout=20)


def test_a_repeated_answer_ends_at_once_when_a_service_takes_the_name(
    serve: Serve, upstream: Start, tmp_path: Path
) -> None:
    """The last label of the name becomes a namespace's: from then on the name is the cluster's."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([namespace("n1")]))
    up = upstream(world)
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n searchpath\n cache 30\n kubernetes cluster.local {{\n manifests {path}\n "
        f"}}\n forward . {up.address}\n}}"
    )
    for _ in range(3):
        assert data(server.ask("api.example.com" + S)) == ["192.0.2.1", "api.example.com."]
    assert len(up.queries) == 1
    path.write_text(yaml.safe_dump_all([namespace("n1"), namespace("com")]))
    eventually(lambda: code(server.ask("api.example.com" + S)) == "NXDOMAIN", timeout=20)


def test_where_acl_looks_at_clients_nothing_is_remembered(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([namespace("n1")]))
    up = upstream(world)
    server = serve(
        ".:{port} {\n bind 127.0.0.1\n searchpath\n acl example.com {\n block type A net 127.0.0.2/32\n allow\n }\n "
        "cache 30\n"
        f" kubernetes cluster.local {{\n manifests {path}\n }}\n forward . {up.address}\n}}"
    )
    assert data(server.ask("api.example.com" + S)) == ["192.0.2.1", "api.example.com."]
    query = dns.message.make_query("api.example.com" + S, "A")
    reply = dns.query.udp(query, "127.0.0.1", port=server.port, source="127.0.0.2", timeout=20)
    assert code(reply) == "NXDOMAIN"
