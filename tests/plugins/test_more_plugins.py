"""root, bufsize, minimal, any, nsid, chaos, header, cancel, timeouts, local, acl, family: each does what its manual
says.
"""

import os
import socket
import struct
import time
from pathlib import Path

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset
import pytest
import yaml

from kdns.corefile import CorefileError
from kdns.plugins import family as family_module
from kdns.plugins.family import without_hint
from kdns.testing import answer, block, code, data, eventually, flags, free_port, http_get, soa
from kdns.testing.objects import endpoint, endpointslice, service
from tests.fixtures import Serve, Start


def test_root_is_where_relative_paths_begin(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "names").write_text("192.0.2.1 a.org\n")
    assert data(serve(block(f"root {tmp_path}", "hosts names")).ask("a.org.")) == ["192.0.2.1"]
    serve(block("root /nowhere", "whoami"))
    assert any("Root path does not exist: /nowhere" in line for line in lines)


def test_bufsize_lowers_what_clients_ask_for(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, *(f"A 192.0.2.{i}" for i in range(60))))
    server = serve(block("bufsize 600", f"forward . {up.address}"))
    reply = server.ask("x.org.", use_edns=0, payload=1232)
    assert "TC" in flags(reply) and len(reply.to_wire()) <= 600 and up.queries[0].payload == 600
    assert "TC" in flags(server.ask("x.org.", use_edns=0, payload=512))


def test_minimal_leaves_positive_answers_only_their_answer(serve: Serve, upstream: Start) -> None:
    def script(query: dns.message.Message, proto: str) -> dns.message.Message:
        none = query.question[0].name.to_text().startswith("no")
        reply = soa(answer(query)) if none else answer(query, "A 192.0.2.1")
        if not none:
            reply.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "ns.org."))
            reply.additional.append(dns.rrset.from_text("ns.org.", 60, "IN", "A", "192.0.2.53"))
        return reply

    server = serve(block("minimal", f"forward . {upstream(script).address}"))
    reply = server.ask("yes.org.")
    assert data(reply) == ["192.0.2.1"] and not reply.authority and not reply.additional
    assert code(server.ask("no.org.")) == "NODATA"


def test_any_answers_any_with_one_record(serve: Serve) -> None:
    server = serve(block("any", "whoami"))
    assert data(server.ask("x.org.", "ANY")) == ['"ANY obsoleted" "See RFC 8482"']
    assert code(server.ask("x.org.", "A")) == "EMPTY"


def test_nsid_is_given_to_those_who_ask(serve: Serve) -> None:
    server = serve(block("nsid replica 1", "whoami"))
    reply = server.ask("x.org.", use_edns=0, options=[dns.edns.GenericOption(3, b"")])
    assert [option.to_wire() for option in reply.options] == [b"replica 1"]
    assert not server.ask("x.org.", use_edns=0).options


def test_chaos_tells_about_the_server_in_class_ch_only(serve: Serve) -> None:
    server = serve(block("chaos kdns-test a@example.org b@example.org", "whoami"))
    for name in ("version.bind.", "VERSION.server."):
        assert data(server.ask(name, "TXT", rdclass="CH")) == ['"kdns-test"']
    assert data(server.ask("authors.bind.", "TXT", rdclass="CH")) == ['"a@example.org"', '"b@example.org"']
    assert data(server.ask("id.server.", "TXT", rdclass="CH")) == [f'"{socket.gethostname()}"']
    assert code(server.ask("version.bind.", "TXT")) == "EMPTY"


def test_header_sets_and_clears_bits(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    rules = "header {\n response set aa\n response clear ra\n query clear rd\n }"
    reply = serve(block(rules, f"forward . {up.address}")).ask("x.org.")
    assert flags(reply) == {"QR", "AA"} and not up.queries[0].flags & dns.flags.RD


def test_cancel_drops_what_takes_too_long(serve: Serve, upstream: Start) -> None:
    server = serve(block("cancel 200ms", f"forward . {upstream(lambda query, proto: None).address}"))
    with pytest.raises(dns.exception.Timeout):
        server.ask("x.org.", timeout=0.6)
    eventually(lambda: not any(found.waiting.table for found in server.server.instance.dispatchers.values()), timeout=1)  # type: ignore[union-attr]


def test_timeouts_set_the_deadlines_of_connections(serve: Serve) -> None:
    server = serve(block("timeouts {\n read 1\n idle 1s\n maxtcpqueries 3\n }", "whoami"))
    began = time.monotonic()
    with server.connect() as sock:
        assert sock.recv(1) == b""
    assert 0.8 < time.monotonic() - began < 5
    query = dns.message.make_query("x.org.", "A").to_wire()
    with server.connect() as sock:
        sock.sendall((struct.pack("!H", len(query)) + query) * 5)
        got = b""
        while part := sock.recv(4096):
            got += part
    count = 0
    while got:
        got = got[2 + int.from_bytes(got[:2], "big") :]
        count += 1
    assert count == 3


def test_local_names_never_leave(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    server = serve(block("local", f"forward . {up.address}"))
    assert data(server.ask("localhost.")) == ["127.0.0.1"] and data(server.ask("localhost.", "AAAA")) == ["::1"]
    assert data(server.ask("x.localhost.")) == ["127.0.0.1"] and data(server.ask("localhost.corp.org.")) == [
        "127.0.0.1"
    ]
    assert code(server.ask("localhost.", "MX")) == code(server.ask("x.localhost.", "MX")) == "NODATA"
    assert data(server.ask("1.0.0.127.in-addr.arpa.", "PTR")) == ["localhost."]
    assert code(server.ask("9.9.9.127.in-addr.arpa.", "PTR")) == "NXDOMAIN"
    assert data(server.ask("127.in-addr.arpa.", "NS")) == ["localhost."]
    assert not up.queries and data(server.ask("localhosts.org.")) == ["192.0.2.1"]
    off = serve(block("local {\n localhost_prefix off\n }", f"forward . {up.address}"))
    assert data(off.ask("localhost.corp.org.")) == ["192.0.2.1"]


# acl.


def test_acl_allows_blocks_filters_and_drops(serve: Serve) -> None:
    port = free_port()
    rules = [
        "acl ok.org {\n allow net 127.0.0.1\n block\n }",
        "acl other.org {\n allow net 192.0.2.0/24\n block type MX\n filter type A AAAA\n }",
        "acl quiet.org {\n drop net 127.0.0.0/8\n }", "acl all.org {\n block type * net *\n }",
    ]  # fmt: skip
    server = serve(block(*rules, f"prometheus 127.0.0.1:{port}", "whoami"))
    assert code(server.ask("x.ok.org.")) == "EMPTY" and code(server.ask("free.org.")) == "EMPTY"
    blocked = server.ask("x.other.org.", "MX", use_edns=0)
    assert code(blocked) == "REFUSED" and int(blocked.options[0].code) == 15  # type: ignore[attr-defined]
    filtered = server.ask("x.other.org.", "A", use_edns=0)
    assert code(filtered) == "EMPTY" and not filtered.additional and "RA" in flags(filtered)
    assert int(filtered.options[0].code) == 17  # type: ignore[attr-defined]
    assert server.ask("x.other.org.", "MX", use_edns=False).edns == -1
    assert code(server.ask("x.all.org.", "TXT")) == "REFUSED"
    with pytest.raises(Exception, match="timed out"):
        server.ask("x.quiet.org.", timeout=0.3)
    _, text = http_get(port, "/metrics")
    label = f'server="dns://127.0.0.1:{server.port}",view=""'
    assert f'coredns_acl_blocked_requests_total{{{label},zone="other.org."}} 2.0' in text
    assert f'coredns_acl_dropped_requests_total{{{label},zone="quiet.org."}} 1.0' in text


def test_acl_judges_the_name_after_rewrite_and_before_the_cache(serve: Serve, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    rules = [
        "rewrite name alias.org secret.org",
        "acl secret.org {\n block net 127.0.0.1\n }",
        "cache",
        f"forward . {up.address}",
    ]
    server = serve(block(*rules))
    assert code(server.ask("alias.org.")) == code(server.ask("secret.org.")) == "REFUSED"
    assert data(server.ask("open.org.")) == ["192.0.2.1"]


@pytest.mark.parametrize(("text", "expected"), [
    ("acl {\n allo\n }", 'did you mean "allow"'),
    ("acl {\n block type a\n }", "upper case"),
    ("acl {\n block net 10.0.0.300\n }", "expected an address or a network"),
    ("acl {\n block type\n }", "nothing follows type"),
    ("acl {\n block 10.0.0.1\n }", "expected type or net"),
    ("header {\n query set\n }", "set|clear FLAG"),
    ("header {\n reply set aa\n }", "unknown property"),
    ("header", "at least one rule"),
    ("bufsize 100", "out of range"),
    ("cancel 5", "a unit is missing"),
    ("timeouts", "at least one of"),
    ("timeouts {\n read 0s\n }", "out of range"),
    ("timeouts {\n maxtcpqueries 0\n }", "out of range"),
    ("local {\n localhost_prefix maybe\n }", "expected on or off"),
    ("family {\n ipv6 maybe\n }", "expected auto, on or off"),
    ("any now", "unexpected argument"),
    ("searchpath {\n suffix a\n }", 'did you mean "suffixes"'),
    ("searchpath {\n lookups 0\n }", "out of range"),
])  # fmt: skip
def test_bad_directives_are_named_with_their_place(serve: Serve, text: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"^Corefile:\d+:\d+: ") as caught:
        serve(block(text, "whoami"))
    assert expected in str(caught.value)


# family.


def cluster(tmp_path: Path, *addresses: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([
        service("n1/web", *addresses), service("n1/db"), endpointslice("n1/db-1", "db", endpoint("10.1.0.1")),
    ]))  # fmt: skip
    return f"kubernetes cluster.local {{\n manifests {path}\n }}"


def both(query: dns.message.Message, proto: str) -> dns.message.Message:
    kind = query.question[0].rdtype
    return answer(query, "AAAA 2001:db8::1" if kind == 28 else "A 192.0.2.1")


def test_outside_ipv6_is_hidden_as_no_data_and_a_and_own_names_are_not(
    serve: Serve, upstream: Start, tmp_path: Path
) -> None:
    up = upstream(both)
    server = serve(
        block("family {\n ipv6 off\n }", cluster(tmp_path, "10.0.0.1", "fd00::1"), "cache", f"forward . {up.address}")
    )
    reply = server.ask("www.example.org.", "AAAA")
    assert code(reply) == "NODATA" and "RA" in flags(reply) and not up.queries
    assert data(server.ask("www.example.org.")) == ["192.0.2.1"]
    assert data(server.ask("web.n1.svc.cluster.local.", "AAAA")) == ["fd00::1"]
    assert code(server.ask("nope.n1.svc.cluster.local.", "AAAA")) == "NXDOMAIN"


def test_auto_hides_ipv6_only_where_nobody_has_it(
    serve: Serve, upstream: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family_module, "addresses", list)
    up = upstream(both)
    v4 = serve(block("family", cluster(tmp_path, "10.0.0.1"), f"forward . {up.address}"))
    assert code(v4.ask("www.example.org.", "AAAA")) == "NODATA"
    other = tmp_path / "six"
    other.mkdir()
    v6 = serve(block("family", cluster(other, "10.0.0.1", "fd00::1"), f"forward . {up.address}"))
    assert data(v6.ask("www.example.org.", "AAAA")) == ["2001:db8::1"]
    on = serve(block("family {\n ipv6 on\n }", f"forward . {up.address}"))
    assert data(on.ask("www.example.org.", "AAAA")) == ["2001:db8::1"]


def test_ipv6hint_is_taken_out_of_https_records(serve: Serve, upstream: Start) -> None:
    text = "1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1"
    up = upstream(lambda query, proto: answer(query, f"HTTPS {text}"))
    found = data(serve(block("family {\n ipv6 off\n }", f"forward . {up.address}")).ask("x.org.", "HTTPS"))
    assert found == ['1 . alpn="h2" ipv4hint="192.0.2.1"']
    for junk in (b"", b"\0", b"\0\1\xc0\x0c", b"\0\1\0\0\6", b"\0\1\0\0\6\0\x10abc"):
        assert without_hint(junk) == junk


def test_the_process_holds_no_more_files_after_plugins_were_reloaded(serve: Serve) -> None:
    server = serve(block("local", "chaos", "whoami"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert server.reload(server.text)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
