"""cache: what is kept, for how long, and what never is."""

import time
from pathlib import Path

import dns.flags
import dns.message
import dns.rrset
import pytest
import yaml

from kdns.plugins.cache import handler as cache_module
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
            f".:{{port}} {{\n bind 127.0.0.1\n {cache}\n forward . {to.address} {{\n read_timeout 50ms\n max_fails 0\n }}\n}}\n"
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


def test_names_of_the_cluster_change_at_once_inside_a_cached_zone(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(cached(up, more=f"kubernetes cluster.local {{\n manifests {path}\n fallthrough\n }}"))
    assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.2")))
    eventually(lambda: data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.2"], timeout=2)
    server.ask("other.n1.svc.cluster.local.")
    server.ask("other.n1.svc.cluster.local.")
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


def test_the_cache_is_bounded_in_octets_too(serve: Serve, upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ENTRY_OCTETS", 100)
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
def test_keepttl_took_the_bounds_of_ttls_away(serve: Serve, upstream: Start, cache: str, expected: dict[int, int]) -> None:
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
