"""forward against upstreams that answer, lie, cut, stay mute and die."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import pytest

from kdns.metrics import REGISTRY
from kdns.testing import answer, code, data, eventually, flags, soa
from tests.fixtures import Serve, Start


def forward(*to: str, options: str = "", more: str = "") -> str:
    return (
        f".:{{port}} {{\n bind 127.0.0.1\n errors\n forward . {' '.join(to)} {{\n max_fails 2\n {options}\n }}\n "
        f"{more}\n}}\n"
    )


def says(*records: str) -> Callable[[dns.message.Message, str], dns.message.Message]:
    return lambda query, proto: answer(query, *records)


def mute(query: dns.message.Message, proto: str) -> None:
    return None


def test_an_answer_passes_with_its_flags_ttl_and_case(serve: Serve, upstream: Start) -> None:
    up = upstream(says("A 192.0.2.1", "A 192.0.2.2"))
    server = serve(forward(up.address))
    for tcp in (False, True):
        reply = server.ask("WwW.Example.ORG.", tcp=tcp)
        assert data(reply) == ["192.0.2.1", "192.0.2.2"] and reply.answer[0].ttl == 60
        assert flags(reply) == {"QR", "RD", "RA"} and str(reply.question[0].name) == "WwW.Example.ORG."
    assert up.protos == ["udp", "tcp"]


def test_negatives_and_other_codes_pass(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = soa(answer(query))
        first = query.question[0].name.labels[0].decode()
        reply.set_rcode({"nx": 3, "no": 0, "ref": 5, "fail": 2}[first])
        return reply

    server = serve(forward(upstream(script).address))
    assert [code(server.ask(f"{name}.example.org.")) for name in ("nx", "no", "ref", "fail")] == [
        "NXDOMAIN",
        "NODATA",
        "REFUSED",
        "SERVFAIL",
    ]


def test_an_empty_answer_never_leaves_with_neither_aa_nor_ra(serve: Serve, upstream: Start) -> None:
    server = serve(forward(upstream(lambda query, proto: answer(query, ra=False)).address))
    assert "RA" in flags(server.ask("www.example.org."))


def test_a_truncated_reply_is_asked_for_again_over_tcp(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, *(f"A 192.0.2.{i}" for i in range(20)))
        if proto == "udp":
            reply.answer = []
            reply.flags |= dns.flags.TC
        return reply

    up = upstream(script)
    server = serve(forward(up.address))
    assert len(data(server.ask("www.example.org."))) == 20 and up.protos == ["udp", "tcp"]


def test_where_tcp_fails_the_truncated_reply_is_passed_on(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query, "A 192.0.2.1")
        reply.flags |= dns.flags.TC
        return reply

    server = serve(forward(upstream(script, tcp=False).address))
    reply = server.ask("www.example.org.")
    assert data(reply) == ["192.0.2.1"] and "TC" in flags(reply)


def test_replies_that_do_not_match_are_dropped_and_the_wait_goes_on(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> list[bytes]:
        good = answer(query, "A 192.0.2.1").to_wire()
        wrong_id = bytes((good[0] ^ 1, good[1])) + good[2:]
        other = dns.message.make_query("evil.example.org.", "A")
        other.id = query.id
        wrong_name = answer(other, "A 192.0.2.66").to_wire()
        kind = dns.message.make_query(query.question[0].name, "AAAA")
        kind.id = query.id
        not_reply = query.to_wire()
        loop = good[:12] + b"\xc0\x0c" + good[14:]
        return [b"", b"junk", wrong_id, wrong_name, answer(kind).to_wire(), not_reply, loop, good[:-3], good]

    up = upstream(script)
    server = serve(forward(up.address))
    assert data(server.ask("www.example.org.")) == ["192.0.2.1"]
    assert server.server.instance is not None
    junk = REGISTRY["kdns_upstream_junk_total"].slots
    assert sum(slot[0] for labels, slot in junk.items() if labels == (up.address,)) >= 6
    assert all(
        not u.down() and u.fails == 0
        for p in server.server.instance.plugins
        if p.name == "forward"
        for u in p.upstreams
    )  # type: ignore[attr-defined]


def test_a_mute_upstream_costs_one_wait_and_the_next_answers(serve: Serve, upstream: Start) -> None:
    dead, alive = upstream(mute), upstream(says("A 192.0.2.1"))
    server = serve(
        forward(dead.address, alive.address, options="policy sequential\n read_timeout 200ms\n health_check 50ms")
    )
    began = time.monotonic()
    assert data(server.ask("one.example.org.")) == ["192.0.2.1"]
    assert time.monotonic() - began > 0.15
    forwarder = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    eventually(lambda: forwarder.upstreams[0].down(), timeout=20)  # type: ignore[attr-defined]
    assert data(server.ask("two.example.org.")) == ["192.0.2.1"]
    assert not any("two" in str(query.question[0]) for query in dead.queries)
    dead.script = says("A 192.0.2.2")
    eventually(lambda: not forwarder.upstreams[0].down(), timeout=20)  # type: ignore[attr-defined]
    assert data(server.ask("three.example.org.")) == ["192.0.2.2"]


def test_with_every_upstream_dead_it_is_servfail_in_time_and_logged(
    serve: Serve, upstream: Start, lines: list[str]
) -> None:
    server = serve(forward(upstream(mute).address, options="read_timeout 100ms"))
    assert code(server.ask("www.example.org.", timeout=4)) == "SERVFAIL"
    assert any("plugin/errors: 2 www.example.org. A: read udp" in line and "i/o timeout" in line for line in lines)


def test_while_all_upstreams_are_down_one_is_tried_and_the_first_answer_ends_that(
    serve: Serve, upstream: Start
) -> None:
    ups = [upstream(mute), upstream(mute)]
    options = "read_timeout 100ms\n health_check 50ms\n max_fails 1"
    server = serve(forward(*(up.address for up in ups), options=options))
    forwarder: Any = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert code(server.ask("one.example.org.", timeout=4)) == "SERVFAIL"
    eventually(lambda: all(up.down() for up in forwarder.upstreams))
    broken = sum(slot[0] for slot in REGISTRY["coredns_forward_healthcheck_broken_total"].slots.values())
    before = [sum(str(query.question[0].name) != "." for query in up.queries) for up in ups]
    assert code(server.ask("two.example.org.", timeout=4)) == "SERVFAIL"
    asked = [sum(str(query.question[0].name) != "." for query in up.queries) for up in ups]
    assert sum(asked) == sum(before) + 1  # by chance one of them
    assert sum(slot[0] for slot in REGISTRY["coredns_forward_healthcheck_broken_total"].slots.values()) > broken
    for up in ups:
        up.script = says("A 192.0.2.1")
    assert data(server.ask("three.example.org.", timeout=4)) == ["192.0.2.1"]  # whatever the probes know
    eventually(lambda: not any(up.down() for up in forwarder.upstreams))


def test_a_port_that_is_closed_is_tried_no_longer_than_it_takes_to_hear_so(serve: Serve, upstream: Start) -> None:
    server = serve(forward("127.0.0.1:1", upstream(says("A 192.0.2.1")).address, options="policy sequential"))
    began = time.monotonic()
    assert data(server.ask("www.example.org.")) == ["192.0.2.1"]
    assert time.monotonic() - began < 1.8  # and not the read timeout's two seconds


def test_identical_questions_in_flight_share_one_upstream_query(serve: Serve, upstream: Start) -> None:
    gate = threading.Event()

    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        gate.wait(5)
        return answer(query, "A 192.0.2.1")

    up = upstream(script)
    server = serve(forward(up.address))
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(data(server.ask("www.example.org.")))) for _ in range(30)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    gate.set()
    for thread in threads:
        thread.join()
    assert found == [["192.0.2.1"]] * 30 and len(up.queries) == 1


def test_failover_asked_an_upstream_that_was_down(serve: Serve, upstream: Start) -> None:
    """A second was lost on each query, and the upstream behind it not asked at all."""

    def refuses(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(5)
        return reply

    bad, dead, good = upstream(refuses), upstream(mute), upstream(says("A 192.0.2.1"))
    options = "policy sequential\n failover REFUSED\n read_timeout 10s"
    server = serve(forward(bad.address, dead.address, good.address, options=options))
    forwarder = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    forwarder.upstreams[1].fails = 3  # type: ignore[attr-defined]
    assert data(server.ask("x.org.", timeout=4)) == ["192.0.2.1"] and not dead.queries
    # Where nobody else is left, the reply is passed on; nobody is asked twice.
    forwarder.upstreams[2].fails = 3  # type: ignore[attr-defined]
    assert code(server.ask("y.org.", timeout=4)) == "REFUSED"
    assert len(bad.queries) == 2 and not dead.queries and len(good.queries) == 1


def test_questions_that_differ_in_do_or_cd_are_not_shared(serve: Serve, upstream: Start) -> None:
    up = upstream(says("A 192.0.2.1"))
    server = serve(forward(up.address))
    server.ask("www.example.org.", use_edns=False)
    server.ask("www.example.org.", use_edns=0, want_dnssec=True)
    query = dns.message.make_query("www.example.org.", "A", use_edns=False)
    query.flags |= dns.flags.CD
    server.send(query)
    seen = [(q.edns, bool(q.ednsflags & dns.flags.DO), bool(q.flags & dns.flags.CD)) for q in up.queries]
    assert seen == [(0, False, False), (0, True, False), (0, False, True)]


def test_options_of_a_client_are_not_passed_on(serve: Serve, upstream: Start) -> None:
    import dns.edns

    up = upstream(says("A 192.0.2.1"))
    server = serve(forward(up.address))
    options: list[dns.edns.Option] = [dns.edns.GenericOption(10, b"12345678"), dns.edns.ECSOption("192.0.2.0", 24)]
    server.ask("www.example.org.", use_edns=0, options=options, payload=4096)
    assert not up.queries[0].options and up.queries[0].payload == 1232


def test_max_concurrent_refuses_what_is_too_much(serve: Serve, upstream: Start) -> None:
    server = serve(forward(upstream(mute).address, options="max_concurrent 2\n read_timeout 1s"))
    threads = [threading.Thread(target=lambda i=i: server.ask(f"x{i}.example.org.", timeout=9)) for i in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert code(server.ask("y.example.org.")) == "REFUSED"
    for thread in threads:
        thread.join()


def test_resolv_conf_names_upstreams_and_except_leaves_names_out(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# comment\nsearch example.org\nnameserver 192.0.2.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\noptions "
        "ndots:5\n"
    )
    server = serve(forward(str(path), options="except internal.org", more="whoami"))
    forwarder = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert [upstream.to for upstream in forwarder.upstreams] == ["192.0.2.53:53", "[fe80::1]:53"]  # type: ignore[attr-defined]
    assert code(server.ask("x.internal.org.")) == "EMPTY"


def test_policies_order_upstreams_as_they_say(serve: Serve, upstream: Start) -> None:
    ups = [upstream(says(f"A 192.0.2.{i}")) for i in range(3)]
    addresses = [up.address for up in ups]

    def asked(policy: str) -> list[str]:
        server = serve(forward(*addresses, options=f"policy {policy}"))
        return [data(server.ask(f"q{i}.example.org."))[0] for i in range(12)]

    assert asked("sequential") == ["192.0.2.0"] * 12
    assert asked("round_robin") == ["192.0.2.1", "192.0.2.2", "192.0.2.0"] * 4
    assert len(set(asked("random"))) > 1


def test_failover_and_next_go_on_as_they_say(serve: Serve, upstream: Start) -> None:
    def refuses(query: dns.message.Message, proto: str) -> dns.message.Message:
        reply = answer(query)
        reply.set_rcode(5)
        return reply

    def none(query: dns.message.Message, proto: str) -> dns.message.Message:
        return soa(answer(query))

    good = upstream(says("A 192.0.2.1")).address
    assert data(
        serve(forward(upstream(refuses).address, good, options="policy sequential\n failover REFUSED")).ask("a.org.")
    ) == ["192.0.2.1"]
    both = serve(forward(upstream(refuses).address, upstream(refuses).address, options="failover refused"))
    assert code(both.ask("a.org.")) == "REFUSED"
    assert data(
        serve(forward(upstream(refuses).address, options="next REFUSED", more=f"forward . {good}")).ask("a.org.")
    ) == ["192.0.2.1"]
    assert data(
        serve(forward(upstream(none).address, options="next_on_nodata", more=f"forward . {good}")).ask("a.org.")
    ) == ["192.0.2.1"]
    assert code(serve(forward(upstream(none).address, options="next_on_nodata")).ask("a.org.")) == "NODATA"


def test_force_tcp_keeps_and_pipelines_its_connections(serve: Serve, upstream: Start) -> None:
    up = upstream(says("A 192.0.2.1"))
    server = serve(forward(up.address, options="force_tcp"))
    assert all(data(server.ask(f"x{i}.example.org.")) == ["192.0.2.1"] for i in range(10))
    assert set(up.protos) == {"tcp"}
    forwarder = next(p for p in server.server.instance.plugins if p.name == "forward")  # type: ignore[union-attr]
    assert len(forwarder.upstreams[0].tcp.open) == 1  # type: ignore[attr-defined]


def test_a_kept_connection_that_the_upstream_closed_costs_nothing(serve: Serve, upstream: Start) -> None:
    import socket

    connections: list[socket.socket] = []
    up = upstream(says("A 192.0.2.1"))
    original = up._connection

    def watched(connection: socket.socket) -> None:
        connections.append(connection)
        original(connection)

    up._connection = watched  # type: ignore[method-assign]
    server = serve(forward(up.address, options="force_tcp"))
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    connections[0].shutdown(socket.SHUT_RDWR)
    assert data(server.ask("b.example.org.")) == ["192.0.2.1"]
    assert all(u.fails == 0 for p in server.server.instance.plugins if p.name == "forward" for u in p.upstreams)  # type: ignore[union-attr, attr-defined]


def test_ids_and_ports_cannot_be_guessed(serve: Serve, upstream: Start) -> None:
    up = upstream(says("A 192.0.2.1"))
    server = serve(forward(up.address, options="source_ports fresh"))
    for i in range(300):
        server.ask(f"x{i}.example.org.")
    ids = [query.id for query in up.queries]
    assert len(set(ids)) > 290 and len(set(up.ports)) > 250
    assert max(ids) - min(ids) > 50000
    steps = {(b - a) & 0xFFFF for a, b in itertools.pairwise(ids)}
    assert len(steps) > 280


def test_a_late_upstream_is_hedged_and_then_asked_last(serve: Serve, upstream: Start) -> None:
    def late(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.4)
        return answer(query, "A 192.0.2.1")

    slow, quick = upstream(late), upstream(says("A 192.0.2.2"))
    server = serve(forward(slow.address, quick.address))
    for i in range(12):
        assert data(server.ask(f"x{i}.example.org."))
    assert len(quick.queries) >= 9
    assert data(server.ask("last.example.org.")) == ["192.0.2.2"]


@pytest.mark.parametrize("policy", ["sequential", "round_robin"])
def test_policies_with_an_order_never_hedge(serve: Serve, upstream: Start, policy: str) -> None:
    def late(query: dns.message.Message, proto: str) -> dns.message.Message:
        time.sleep(0.7)
        return answer(query, "A 192.0.2.1")

    first, second = upstream(late), upstream(late)
    server = serve(forward(first.address, second.address, options=f"policy {policy}"))
    assert data(server.ask("x.example.org.")) == ["192.0.2.1"]
    assert len(first.queries) + len(second.queries) == 1


def test_a_dead_upstream_costs_its_clients_one_short_wait(serve: Serve, upstream: Start) -> None:
    dead, alive = upstream(mute), upstream(says("A 192.0.2.1"))
    server = serve(forward(dead.address, alive.address))
    for i in range(30):
        assert data(server.ask(f"x{i}.example.org.", timeout=1.9)) == ["192.0.2.1"]  # sooner than a read timeout
    assert sum("example" in str(query.question[0]) for query in dead.queries) <= 8


@pytest.mark.parametrize(("options", "expected"), [
    ("policy best", "expected random, round_robin or sequential"),
    ("max_fails -1", "out of range"),
    ("health_check 5", "a unit is missing"),
    ("health_check 1s sometimes", "expected no_rec or domain"),
    ("expire 10s\n max_age 5s", "max_age must not be less than expire"),
    ("failover NOERROR", "NOERROR cannot be used"),
    ("next WHAT", "not a response code"),
    ("max_conncurrent 5", 'did you mean "max_concurrent"?'),
    ("source_address here", "expected an IP address"),
    ("doh_method PUT", "expected GET or POST"),
])  # fmt: skip
def test_bad_options_are_named_with_their_place(serve: Serve, options: str, expected: str) -> None:
    with pytest.raises(Exception, match=r"Corefile:\d+:\d+") as caught:
        serve(forward("127.0.0.1", options=options))
    assert expected in str(caught.value)


def test_a_resolv_conf_that_vanishes_or_breaks_keeps_the_last_good_upstreams(
    serve: Serve, upstream: Start, tmp_path: Path, lines: list[str]
) -> None:
    up = upstream(says("A 192.0.2.1"))
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    text = f".:{{port}} {{\n bind 127.0.0.1\n forward example.net {path}\n forward . {up.address}\n}}\n"
    server = serve(text)
    path.unlink()
    assert not server.reload(text + "\n# another\n")
    path.write_text("nothing of use\n")
    assert not server.reload(text + "\n# and another\n")
    assert data(server.ask("a.example.org.")) == ["192.0.2.1"]
    assert sum("neither an address nor a file" in line or "no valid upstream" in line for line in lines) == 2
