"""cache: what is kept, for how long, and what never is."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest
import yaml

from kdns.metrics import REGISTRY
from kdns.plugins.cache import handler as cache_module
from kdns.plugins.cache import table as table_module
from kdns.testing import Upstream, answer, code, data, eventually, flags, soa
from kdns.testing.objects import service
from tests.fixtures import Serve, Start


def cached(up: Upstream, cache: str = "cache 30", more: str = "") -> str:
    return f".:{{port}} {{\n bind 127.0.0.1\n {cache}\n forward . {up.address}\n {more}\n}}\n"


def test_an_answer_is_kept_ages_and_is_not_authoritative(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.1", ttl=300)
        reply.flags |= dns.flags.AA
        return reply

    up = upstream(script)
    server = serve(cached(up))
    assert server.ask("www.example.org.").answer[0].ttl == 30
    time.sleep(1.1)
    reply = server.ask("WWW.example.org.")
    assert data(reply) == ["192.0.2.1"] and reply.answer[0].ttl in (28, 29)
    assert flags(reply) == {"QR", "RD", "RA"} and str(reply.question[0].name) == "WWW.example.org."
    assert len(up.queries) == 1


def test_denials_are_kept_by_the_soas_minimum(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query), ttl=600, minimum=9)
        if query.question[0].name.to_text().startswith("nx"):
            reply.set_rcode(3)
        return reply

    up = upstream(script)
    server = serve(cached(up))
    for name, expected in (("nx.example.org.", "NXDOMAIN"), ("no.example.org.", "NODATA")):
        for _ in range(3):
            reply = server.ask(name)
            assert code(reply) == expected and reply.authority[0].ttl in (8, 9)
    assert len(up.queries) == 2


def test_a_denial_without_soa_is_not_kept(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(3)
        return reply

    up = upstream(script)
    server = serve(cached(up))
    assert [code(server.ask("x.org.")) for _ in range(2)] == ["NXDOMAIN"] * 2 and len(up.queries) == 2


def test_that_no_upstream_had_a_reply_is_kept_for_a_second(
    serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9520, section 3.2: clients' repeats were passed on to upstreams that were down already."""
    up, other = upstream(lambda query, proto: None), upstream(lambda query, proto: None)
    monkeypatch.setattr(cache_module, "UNREACHED", 5.0)

    def dead(cache: str, to: Upstream) -> str:
        return (
            f".:{{port}} {{\n bind 127.0.0.1\n {cache}\n forward . {to.address} {{\n read_timeout 50ms\n max_fails 0\n "
            f"}}\n}}\n"
        )

    server = serve(dead("cache 30", up))
    first = server.ask("x.org.", use_edns=0)
    assert code(first) == "SERVFAIL" and first.options[0].to_text() == "EDE 23 (Network Error)"
    asked = len(up.queries)
    again = server.ask("x.org.", use_edns=0)
    assert code(again) == "SERVFAIL" and again.options[0].to_text() == "EDE 13 (Cached Error)"
    assert not server.ask("x.org.").options and len(up.queries) == asked
    up.script = lambda query, proto: answer(query, "A 192.0.2.1")
    assert data(server.ask("y.org.")) == ["192.0.2.1"]  # of other names nothing is said
    monkeypatch.setattr(cache_module, "UNREACHED", 0.1)
    up.script = lambda query, proto: None
    assert code(server.ask("z.org.")) == "SERVFAIL"
    up.script = lambda query, proto: answer(query, "A 192.0.2.1")
    eventually(lambda: server.ask("z.org.").answer)
    never = serve(dead("cache {\n servfail 0\n }", other))
    for i in range(1, 3):
        assert code(never.ask("x.org.")) == "SERVFAIL" and len(other.queries) == 2 * i


def test_servfail_of_an_upstream_is_kept_for_as_long_as_said(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(2)
        return reply

    one, two = upstream(script), upstream(script)
    kept, not_kept = serve(cached(one)), serve(cached(two, "cache {\n servfail 0\n }"))
    for _ in range(3):
        assert code(kept.ask("x.org.")) == code(not_kept.ask("x.org.")) == "SERVFAIL"
    assert (len(one.queries), len(two.queries)) == (1, 3)


def test_type_class_do_and_cd_are_kept_apart(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(cached(up))
    query = dns.message.make_query("x.org.", "A", use_edns=False)
    query.flags |= dns.flags.CD
    for _ in range(2):
        server.ask("x.org.", use_edns=False)
        server.ask("x.org.", use_edns=0)
        server.ask("x.org.", use_edns=0, want_dnssec=True)
        server.send(query)
    assert len(up.queries) == 3


def test_capacity_is_kept_to_and_eviction_counted(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(cached(up, "cache {\n success 10\n }"))
    for i in range(50):
        server.ask(f"x{i}.org.")
    cache = next(p for p in server.server.instance.plugins if p.name == "cache")  # type: ignore[union-attr]
    assert len(cache.success) == 10  # type: ignore[attr-defined]
    server.ask("x49.org.")
    assert len(up.queries) == 50


def test_disable_keeps_nothing_of_a_zone(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(cached(up, "cache {\n disable success live.org\n }"))
    for _ in range(3):
        server.ask("x.live.org.")
        server.ask("x.still.org.")
    assert len(up.queries) == 4


def test_names_of_the_cluster_change_at_once_inside_a_cached_zone(
    serve: Serve, upstream: Start, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(cached(up, more=f"kubernetes cluster.local {{\n manifests {path}\n fallthrough\n }}"))
    assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.2")))
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.2"], timeout=4)
    server.ask("other.n1.svc.cluster.local.")
    server.ask("other.n1.svc.cluster.local.")
    assert len(up.queries) == 1


def test_a_reverse_name_that_an_upstream_denied_is_the_services_from_its_first_moment(
    serve: Serve, upstream: Start, tmp_path: Path
) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query), ttl=300, minimum=300)
        reply.set_rcode(3)
        return reply

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    up = upstream(script)
    zones = "kubernetes cluster.local in-addr.arpa"
    server = serve(cached(up, more=f"{zones} {{\n manifests {path}\n fallthrough in-addr.arpa\n }}"))
    assert data(server.ask("1.0.0.10.in-addr.arpa.", "PTR")) == ["web.n1.svc.cluster.local."]
    assert [code(server.ask("2.0.0.10.in-addr.arpa.", "PTR")) for _ in range(3)] == ["NXDOMAIN"] * 3
    assert len(up.queries) == 1
    path.write_text(yaml.safe_dump_all([service("n1/web", "10.0.0.1"), service("n1/new", "10.0.0.2")]))
    eventually(lambda: data(server.ask("new.n1.svc.cluster.local.")) == ["10.0.0.2"], timeout=5)
    assert data(server.ask("2.0.0.10.in-addr.arpa.", "PTR")) == ["new.n1.svc.cluster.local."]
    assert len(up.queries) == 1


def test_stale_answers_are_served_while_the_upstream_is_dead(serve: Serve, upstream: Start) -> None:
    alive = [True]

    def script(query: dns.message.Message, proto: str) -> dns.message.Message | None:
        return answer(query, "A 192.0.2.1", ttl=1) if alive[0] else None

    up = upstream(script)
    server = serve(cached(up, "cache {\n success 100 1 1\n serve_stale 1h\n }"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    alive[0] = False
    time.sleep(1.2)
    began = time.monotonic()
    reply = server.ask("x.org.")
    assert data(reply) == ["192.0.2.1"] and reply.answer[0].ttl == 0 and time.monotonic() - began < 1.8


def test_verify_asks_first_and_serves_stale_when_that_takes_too_long(serve: Serve, upstream: Start) -> None:
    alive = [True]
    address = ["192.0.2.1"]

    def script(query: dns.message.Message, proto: str) -> dns.message.Message | None:
        return answer(query, f"A {address[0]}", ttl=1) if alive[0] else None

    up = upstream(script)
    server = serve(cached(up, "cache {\n success 100 1 1\n serve_stale 1h verify 200ms\n }"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    address[0] = "192.0.2.2"
    time.sleep(1.1)
    assert data(server.ask("x.org.")) == ["192.0.2.2"]
    alive[0] = False
    time.sleep(1.1)
    began = time.monotonic()
    assert data(server.ask("x.org.")) == ["192.0.2.2"] and 0.15 < time.monotonic() - began < 1.8


def test_prefetch_asks_again_before_a_popular_name_expires(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=3))
    server = serve(cached(up, "cache {\n success 100 3 1\n prefetch 2 1m 50%\n }"))
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        server.ask("x.org.")
        time.sleep(0.1)
    assert len(up.queries) >= 2


def test_a_chain_of_aliases_is_kept_whole(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "CNAME target.org.", ttl=60)
        reply.answer.append(dns.rrset.from_text("target.org.", 20, "IN", "A", "192.0.2.1"))
        return reply

    up = upstream(script)
    server = serve(cached(up, "cache"))
    for _ in range(2):
        reply = server.ask("alias.org.")
        assert data(reply) == ["192.0.2.1", "target.org."] and {rrset.ttl for rrset in reply.answer} <= {19, 20}
    assert len(up.queries) == 1


def test_only_records_of_the_questions_chain_are_kept(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "CNAME target.org.")
        reply.answer.append(dns.rrset.from_text("target.org.", 60, "IN", "A", "192.0.2.1"))
        reply.answer.append(dns.rrset.from_text("victim.org.", 60, "IN", "A", "192.0.2.66"))
        reply.authority.append(dns.rrset.from_text("victim.org.", 60, "IN", "NS", "ns.evil.org."))
        reply.additional.append(dns.rrset.from_text("ns.victim.org.", 60, "IN", "A", "192.0.2.66"))
        return reply

    up = upstream(script)
    server = serve(cached(up))
    for _ in range(2):
        reply = server.ask("x.org.")
        assert data(reply) == ["192.0.2.1", "target.org."] and not reply.authority and not reply.additional
    assert len(up.queries) == 1


@pytest.mark.interpreted("it replaces what is compiled in")
def test_the_cache_is_bounded_in_octets_too(serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "ENTRY_OCTETS", 100)
    up = upstream(lambda query, proto: answer(query, *(f"A 192.0.{i}.1" for i in range(40))))
    server = serve(cached(up, "cache {\n success 50\n }"))
    for i in range(60):
        server.ask(f"x{i}.org.", use_edns=0, payload=1232)
    cache = next(p for p in server.server.instance.plugins if p.name == "cache")  # type: ignore[union-attr]
    assert len(cache.success) < 20 and cache.success.octets == sum(e.octets for e in cache.success.entries.values())  # type: ignore[attr-defined]


def test_names_below_one_that_does_not_exist_are_denied_without_asking(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query), zone="org.")
        reply.set_rcode(3)
        return reply

    up = upstream(script)
    server = serve(cached(up, "cache {\n nxdomain_cut\n }", more="forward own.gone.net 127.0.0.1:9"))
    assert code(server.ask("gone.org.")) == "NXDOMAIN"
    for name in ("a.gone.org.", "b.c.gone.org."):
        reply = server.ask(name)
        assert code(reply) == "NXDOMAIN" and str(reply.authority[0].name) == "org."
    assert len(up.queries) == 1
    assert code(server.ask("other.org.")) == "NXDOMAIN" and len(up.queries) == 2
    assert code(server.ask("gone.net.")) == "NXDOMAIN"
    assert code(server.ask("own.gone.net.")) == "NXDOMAIN" and len(up.queries) == 4
    plain_up = upstream(script)
    plain = serve(cached(plain_up))
    plain.ask("gone.org.")
    plain.ask("a.gone.org.")
    assert len(plain_up.queries) == 2


def test_names_below_an_alias_of_a_name_that_does_not_exist_were_denied(serve: Serve, upstream: Start) -> None:
    """The NXDOMAIN behind a CNAME is the target's (RFC 6604, section 3): the alias itself exists."""

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        if query.question[0].name.to_text() == "alias.org.":
            reply = soa(answer(query, "CNAME gone.net."), zone="net.")
            reply.set_rcode(3)
            return reply
        return answer(query, "A 192.0.2.1")

    server = serve(cached(upstream(script), "cache {\n nxdomain_cut\n }"))
    assert code(server.ask("alias.org.")) == "NXDOMAIN"
    assert data(server.ask("below.alias.org.")) == ["192.0.2.1"]


def test_a_name_that_did_not_exist_for_one_form_of_question_was_denied_below_for_others(
    serve: Serve, upstream: Start
) -> None:
    """Unvalidated (CD) for who wants validation, without a proof for who wants one (DO), and across subnets."""
    subnet = dns.edns.ECSOption("192.0.2.0", 24)
    forms: list[dict[str, Any]] = [{}, {"cd": True}, {"want_dnssec": True}, {"use_edns": 0, "options": [subnet]}]

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query), zone="org.")
        reply.set_rcode(3)
        if query.ednsflags & dns.flags.DO:
            reply.authority.append(dns.rrset.from_text("org.", 60, "IN", "NSEC", "zz.org. NS SOA"))
            reply.authority.append(
                dns.rrset.from_text("org.", 60, "IN", "RRSIG", "NSEC 8 1 60 20300101000000 20200101000000 1 org. AAAA")
            )
        return reply

    def ask(name: str, form: dict[str, Any]) -> dns.message.Message:
        form = dict(form)
        query = dns.message.make_query(name, "A", **{k: v for k, v in form.items() if k != "cd"})
        query.flags |= dns.flags.CD if form.get("cd") else 0
        return dns.message.from_wire(server.raw(query.to_wire()) or b"")

    for i, first in enumerate(forms):
        up = upstream(script)
        server = serve(
            f".:{{port}} {{\n bind 127.0.0.1\n cache {{\n nxdomain_cut\n }}\n"
            f" forward . {up.address} {{\n client_subnet\n }}\n}}\n"
        )
        assert code(ask("gone.org.", first)) == "NXDOMAIN"
        for j, form in enumerate(forms):
            asked = len(up.queries)
            reply = ask(f"x{j}.gone.org.", form)
            assert code(reply) == "NXDOMAIN" and len(up.queries) - asked == (i != j)
            assert ("NSEC" in {dns.rdatatype.to_text(rrset.rdtype) for rrset in reply.authority}) == (j == 2)


def test_denials_of_a_plugin_below_broke_the_cache_that_had_not_read_them(serve: Serve, lines: list[str]) -> None:
    """They are made of records, not of a message: there is no body yet to look into."""
    soa = 'authority "{{ .Zone }} 60 IN SOA ns.{{ .Zone }} mail.{{ .Zone }} 1 2 3 4 7"'
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n cache 30\n template IN A bare.org {{\n rcode NXDOMAIN\n }}\n"
        f" template IN A full.org {{\n rcode NXDOMAIN\n {soa}\n }}\n template IN AAAA full.org {{\n {soa}\n }}\n}}"
    )
    for _ in range(2):
        assert code(server.ask("a.bare.org.")) == "NXDOMAIN"
        assert code(server.ask("a.full.org.")) == "NXDOMAIN" and server.ask("a.full.org.").authority[0].ttl <= 30
        assert code(server.ask("a.full.org.", "AAAA")) == "NODATA"
    assert not any("panic" in line for line in lines)


@pytest.mark.parametrize(("cache", "expected"), [
    ("cache 20 {\n keepttl\n }", {300: 20, 3: 5, 0: 5, 15: 15}),
    ("cache 20 {\n keepttl\n success 9984 40 7\n denial 9984 40 7\n }", {300: 40, 3: 7, 0: 7, 15: 15}),
    ("cache {\n keepttl\n serve_stale\n }", {300: 300, 3: 5, 0: 5, 15: 15}),
])  # fmt: skip
def test_keepttl_took_the_bounds_of_ttls_away(
    serve: Serve, upstream: Start, cache: str, expected: dict[int, int]
) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        kind, ttl = query.question[0].name.labels[0].decode().split("-")
        if kind == "a":
            return answer(query, "A 192.0.2.1", ttl=int(ttl))
        reply = soa(answer(query), ttl=int(ttl), minimum=int(ttl))
        reply.set_rcode(3)
        return reply

    up = upstream(script)
    server = serve(cached(up, cache))

    def ttls(kind: str) -> dict[int, int]:
        found = {}
        for ttl in expected:
            reply = server.ask(f"{kind}-{ttl}.example.org.")
            found[ttl] = (reply.answer or reply.authority)[0].ttl
        return found

    assert ttls("a") == ttls("n") == expected
    asked = len(up.queries)
    time.sleep(1.2)
    for _ in range(2):
        assert ttls("a") == ttls("n") == expected  # neither ages
    assert len(up.queries) == asked


def test_keepttl_holds_for_stale_answers_unless_they_have_a_ttl_of_their_own(
    serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [True]
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=1) if there[0] else None)
    for more, expected in (("1h", 1), ("1h immediate 30s", 30)):
        there[0] = True
        server = serve(cached(up, f"cache {{\n success 9984 60 1\n keepttl\n serve_stale {more}\n }}"))
        assert server.ask("x.example.org.").answer[0].ttl == 1
        there[0] = False
        time.sleep(1.1)
        assert server.ask("x.example.org.").answer[0].ttl == expected


@pytest.mark.parametrize(("cache", "svc", "denied", "pointer", "version", "host"), [
    ("", 600, 300, 600, 28800, 3600),
    ("cache 20", 20, 20, 20, 20, 20),
    ("cache {\n success 100 40\n denial 100 10\n }", 40, 10, 40, 40, 40),
    ("cache 20 {\n disable success cluster.local\n }", 600, 20, 20, 28800, 20),
    ("cache 20 lab", 600, 300, 600, 28800, 20),
    ("cache 20 {\n keepttl\n }", 20, 20, 20, 20, 20),
])  # fmt: skip
def test_what_is_owned_is_not_kept_and_yet_lives_no_longer_than_a_cache_above_would_let_it(
    serve: Serve, tmp_path: Path, cache: str, svc: int, denied: int, pointer: int, version: int, host: int
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n {cache}\n hosts /nowhere lab {{\n 10.0.0.9 a.lab\n }}\n"
        f" kubernetes cluster.local in-addr.arpa {{\n manifests {path}\n ttl 600\n }}\n}}\n"
    )

    def ttl(name: str, rtype: str = "A") -> int:
        reply = server.ask(name, rtype)
        return int((reply.answer or reply.authority)[0].ttl)

    for _ in range(2):
        assert ttl("web.n1.svc.cluster.local.") == ttl("web.n1.svc.cluster.local.", "SRV") == svc
        assert ttl("nope.n1.svc.cluster.local.") == ttl("web.n1.svc.cluster.local.", "MX") == denied
        assert ttl("1.0.0.10.in-addr.arpa.", "PTR") == pointer and ttl("dns-version.cluster.local.", "TXT") == version
        assert ttl("a.lab.") == host


# Who asked first.


def by_rd(query: dns.message.Message, proto: str) -> dns.message.Message:
    """A recursive server that knows the name only once it may look: an empty reply without RD, as RFC 1034, 4.3.1 has
    it.
    """
    return answer(query, "A 192.0.2.1") if query.flags & dns.flags.RD else answer(query)


def without_rd(name: str, **options: Any) -> dns.message.Message:
    query = dns.message.make_query(name, "A", **options)
    query.flags &= ~dns.flags.RD
    return query


@pytest.mark.parametrize("cache", ["cache 30", "cache 30 {\n serve_stale\n }", "cache 30 {\n prefetch 1\n }"])
def test_a_question_without_rd_took_the_name_away_from_everybody(serve: Serve, upstream: Start, cache: str) -> None:
    up = upstream(by_rd)
    server = serve(cached(up, cache))
    for _ in range(2):
        assert code(server.send(without_rd("x.org."))) == "EMPTY"
    assert data(server.ask("x.org.")) == ["192.0.2.1"] and len(up.queries) == 3
    # What is kept is given to both.
    assert data(server.send(without_rd("x.org."))) == ["192.0.2.1"]
    assert data(server.ask("x.org.")) == ["192.0.2.1"] and len(up.queries) == 3


def test_questions_with_and_without_rd_in_flight_are_not_shared(serve: Serve, upstream: Start) -> None:
    gate = threading.Event()

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        gate.wait(5)
        return by_rd(query, proto)

    server = serve(cached(upstream(script)))
    with ThreadPoolExecutor(2) as pool:
        found = [
            pool.submit(server.send, query) for query in (without_rd("x.org."), dns.message.make_query("x.org.", "A"))
        ]
        dispatcher = next(iter(server.server.instance.dispatchers.values()))  # type: ignore[union-attr]
        eventually(lambda: len(dispatcher.waiting.table) == 2)
        gate.set()
        assert [code(each.result()) for each in found] == ["EMPTY", "NOERROR"]


def test_that_nobody_answered_a_question_without_rd_is_said_to_nobody_else(serve: Serve, upstream: Start) -> None:
    """Some servers drop such questions: for a second the name was SERVFAIL for all."""
    up = upstream(lambda query, proto: by_rd(query, proto) if query.flags & dns.flags.RD else None)
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n cache 30\n forward . {up.address} {{\n read_timeout 50ms\n max_fails 0\n "
        f"}}\n}}\n"
    )
    assert code(server.send(without_rd("x.org."))) == "SERVFAIL" and data(server.ask("x.org.")) == ["192.0.2.1"]


@pytest.mark.parametrize("mode", ["immediate", "verify 1s"])
def test_a_stale_answer_is_not_refreshed_by_a_question_without_rd(serve: Serve, upstream: Start, mode: str) -> None:
    """Its reply would have been given in the answer's place, and the refresh was spent."""
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=1))
    server = serve(cached(up, f"cache {{\n success 100 3600 0\n serve_stale 1h {mode}\n }}"))
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    time.sleep(1.1)
    up.script = by_rd
    assert code(server.send(without_rd("x.org."))) == "EMPTY" and len(up.queries) == 2
    assert data(server.ask("x.org.")) == ["192.0.2.1"]
    eventually(lambda: server.ask("x.org.").answer[0].ttl > 1 and len(up.queries) == 3)


@pytest.mark.parametrize("authority", [(), ("other.test. NS ns.other.test.",), ("x.org. TXT hello",)])
def test_an_empty_answer_without_soa_and_ns_is_not_kept(
    serve: Serve, upstream: Start, authority: tuple[str, ...]
) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        for text in authority:
            owner, rtype, value = text.split()
            reply.authority.append(dns.rrset.from_text(owner, 60, "IN", rtype, value))
        return reply

    up = upstream(script)
    server = serve(cached(up))
    for _ in range(3):
        assert not server.ask("x.org.").answer
    assert len(up.queries) == 3


def test_a_delegation_is_kept(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "ns.org."))
        return reply

    up = upstream(script)
    server = serve(cached(up))
    for _ in range(3):
        assert server.ask("x.org.").authority[0].to_text() in (f"org. {ttl} IN NS ns.org." for ttl in (3, 4, 5))
    assert len(up.queries) == 1


def secure(query: dns.message.Message, proto: str) -> dns.message.Message:
    """A validating server: AD for those who say that they understand it (RFC 6840, sections 5.7 and 5.8)."""
    reply = answer(query, "A 192.0.2.1")
    if query.flags & dns.flags.AD or query.ednsflags & dns.flags.DO:
        reply.flags |= dns.flags.AD
    return reply


@pytest.mark.parametrize("cache", ["cache 30", "", "log"])
def test_whether_a_reply_had_ad_depended_on_who_had_asked_before(
    serve: Serve, upstream: Start, lines: list[str], cache: str
) -> None:
    def shown(name: str, ad: bool, **options: Any) -> bool:
        query = dns.message.make_query(name, "A", **options)
        query.flags |= dns.flags.AD * ad
        return "AD" in flags(server.send(query))

    forms: list[tuple[bool, dict[str, Any], bool]] = [
        (False, {"use_edns": False}, False), (True, {"use_edns": False}, True), (False, {"use_edns": 0}, False),
        (True, {"use_edns": 0}, True), (False, {"use_edns": 0, "want_dnssec": True}, True),
    ]  # fmt: skip
    server = serve(cached(upstream(secure), cache))
    for number, order in enumerate(itertools.permutations(forms, 3)):
        for ad, options, expected in (*order, *order):
            assert shown(f"x{number}.org.", ad, **options) is expected
            if cache == "log":
                assert (",ad" in lines[-1]) is expected


def test_an_answer_that_a_rule_has_changed_is_not_authentic(serve: Serve, upstream: Start) -> None:
    up = upstream(secure)
    query = dns.message.make_query("a.org.", "A", want_dnssec=True)
    plain = serve(f".:{{port}} {{\n bind 127.0.0.1\n forward . {up.address}\n}}\n")
    assert "AD" in flags(plain.send(query))
    rule = "rewrite name exact a.org b.org {\n answer auto\n }"
    changed = serve(f".:{{port}} {{\n bind 127.0.0.1\n {rule}\n forward . {up.address}\n}}\n")
    assert data(changed.send(query)) == ["192.0.2.1"] and "AD" not in flags(changed.send(query))


def test_the_stale_counter_rose_for_fresh_replies(serve: Serve, upstream: Start) -> None:
    """The deadline of `verify` was met also where the reply had come."""

    def stale() -> float:
        return sum(slot[0] for slot in REGISTRY["coredns_cache_served_stale_total"].slots.values())

    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1", ttl=1))
    server = serve(cached(up, "cache {\n success 100 3600 0\n serve_stale 1h verify 300ms\n }"))
    server.ask("x.org.")
    time.sleep(1.1)
    before = stale()
    assert data(server.ask("x.org.")) == ["192.0.2.1"] and len(up.queries) == 2
    time.sleep(0.5)
    assert stale() == before
    # And once where the deadline is met, whatever comes later.
    time.sleep(0.7)
    up.script = lambda query, proto: time.sleep(0.6)
    assert server.ask("x.org.").answer[0].ttl == 0 and stale() == before + 1
    time.sleep(0.5)
    assert stale() == before + 1


@pytest.mark.interpreted("it replaces what is compiled in")
def test_options_count_as_octets_of_the_cache(serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream's extended errors of some kilobytes each were kept beside what was counted."""
    monkeypatch.setattr(table_module, "ENTRY_OCTETS", 400)

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.1")
        reply.use_edns(0, options=[dns.edns.EDEOption(0, "x" * 1000)])
        return reply

    server = serve(cached(upstream(script), "cache {\n success 10\n }"))
    for i in range(10):
        server.ask(f"x{i}.org.")
    cache = next(p for p in server.server.instance.plugins if p.name == "cache")  # type: ignore[union-attr]
    assert len(cache.success) == 3  # type: ignore[attr-defined]
