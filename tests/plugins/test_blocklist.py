"""blocklist: what lists of each format say, whoever asks, however they change."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rdatatype
import dns.rrset
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdns import metrics, namelist
from kdns.cli import check
from kdns.corefile import CorefileError
from kdns.dns.name import from_text, offsets
from kdns.namelist import BadList, Builder, Request, Table
from kdns.server import build
from kdns.server.problems import all_problems
from kdns.testing import Server, answer, block, code, data, eventually
from kdns.testing.objects import namespace, pod, service
from tests.fixtures import Serve, Start

RPZ = """$TTL 300
@ SOA localhost. root.localhost. (
   1 3600
   600 86400 60 )
  NS localhost.
gone.example CNAME .
*.gone.example IN CNAME .
empty.example 60 CNAME *. ; a comment
pass.gone.example CNAME rpz-passthru.
old.gone.example CNAME old.gone.example.
silent.example CNAME rpz-drop.
big.example CNAME rpz-tcp-only.
local.example A 192.0.2.80
              A 192.0.2.81
  TXT "said by policy"
walled.example CNAME www.example.net.
*.garden.example CNAME *.garden.net.
32.1.2.0.192.rpz-ip CNAME .
24.0.0.0.10.rpz-client-ip CNAME .
ns.evil.example.rpz-nsdname CNAME .
"""


def world(query: dns.message.Message, proto: str) -> dns.message.Message:
    name = query.question[0].name.to_text().lower()
    if name == "alias.example.org.":
        reply = answer(query, "CNAME hidden.tracker.net.")
        reply.answer.append(dns.rrset.from_text("hidden.tracker.net.", 60, "IN", "A", "192.0.2.9"))
        return reply
    return answer(query, "A 192.0.2.9") if query.question[0].rdtype == dns.rdatatype.A else answer(query)


@pytest.fixture
def start(serve: Serve, upstream: Start) -> Callable[..., tuple[Server, Any]]:
    def make(*options: str, above: str = "", more: str = "") -> tuple[Server, Any]:
        up = upstream(world)
        lines = "\n ".join(options)
        return serve(block(f"blocklist {above} {{\n {lines}\n }}", more, "cache", f"forward . {up.address}")), up

    return make


def ede(reply: dns.message.Message) -> list[int]:
    return [int(option.code) for option in reply.options if option.otype == 15]  # type: ignore[attr-defined]


def asked(up: Any) -> set[str]:
    return {query.question[0].name.to_text().lower() for query in up.queries}


def tabled(text: str | bytes, form: str = "auto", exact: bool = False) -> Table:
    builder = Builder(Request(form, exact))
    for _ in builder.read(text.encode() if isinstance(text, str) else text):
        pass
    for _ in builder.link():
        pass
    return Table(b"".join(builder.parts()))


def said(table: Table, name: str) -> int:
    wire = from_text(name)
    hit = table.find(wire, offsets(wire))
    return hit.done if hit is not None else 0


# What is blocked, and what is said.


def test_a_blocked_name_and_those_below_it_are_denied_and_never_asked_upstream(
    start: Callable[..., tuple[Server, Any]],
) -> None:
    server, up = start("name ads.example.org", "ttl 30s")
    for _ in range(4):  # the later ones are repeated by the reply cache
        for name in ("ads.example.org.", "ADS.example.org.", "a.b.ads.example.org."):
            reply = server.ask(name, use_edns=0)
            assert code(reply) == "NXDOMAIN" and ede(reply) == [15] and not reply.answer
            soa = reply.authority[0]
            assert soa.name.to_text().lower() == "ads.example.org." and soa.ttl == 30 and soa[0].minimum == 30
            assert reply.flags & dns.flags.RA and not reply.flags & dns.flags.AA
        assert code(server.ask("ads.example.org.", "HTTPS")) == "NXDOMAIN"
        assert data(server.ask("notads.example.org.")) == ["192.0.2.9"]
        assert data(server.ask("example.org.")) == ["192.0.2.9"]
    assert asked(up) == {"notads.example.org.", "example.org."}
    counted = metrics.REGISTRY["kdns_blocklist_blocked_total"]
    assert counted.slot(f"dns://127.0.0.1:{server.port}", "Corefile", "nxdomain")[0] == 16


@pytest.mark.parametrize(("action", "a", "aaaa", "mx"), [
    ("nxdomain", "NXDOMAIN", "NXDOMAIN", "NXDOMAIN"), ("nodata", "NODATA", "NODATA", "NODATA"),
    ("refused", "REFUSED", "REFUSED", "REFUSED"), ("address 192.0.2.1", ["192.0.2.1"], "NODATA", "NODATA"),
    ("address 192.0.2.1 192.0.2.2 2001:db8::1", ["192.0.2.1", "192.0.2.2"], ["2001:db8::1"], "NODATA"),
])  # fmt: skip
def test_the_action_says_what_a_blocked_name_gets(
    start: Callable[..., tuple[Server, Any]], action: str, a: Any, aaaa: Any, mx: Any
) -> None:
    server, up = start("name bad.org", f"action {action}", "ede filtered")
    for _ in range(3):
        for rtype, expected in (("A", a), ("AAAA", aaaa), ("MX", mx)):
            reply = server.ask("x.bad.org.", rtype, use_edns=0)
            assert (sorted(data(reply)) if reply.answer else code(reply)) == expected and ede(reply) == [17]
            if code(reply) == "NODATA":
                assert reply.authority[0].rdtype == dns.rdatatype.SOA
    assert not up.queries


def test_clients_without_edns_get_no_extended_error(start: Callable[..., tuple[Server, Any]]) -> None:
    reply = start("name bad.org")[0].ask("bad.org.", use_edns=False)
    assert code(reply) == "NXDOMAIN" and reply.edns == -1


def test_what_is_allowed_is_looked_at_first(start: Callable[..., tuple[Server, Any]], tmp_path: Path) -> None:
    (tmp_path / "good").write_text("fine.ads.org\n")
    server, _ = start(
        "name ads.org bad.good.org *.wild.org",
        "allow good.org",
        f"allow_file {tmp_path / 'good'}",
        f"file {tmp_path}/x",
    )
    assert code(server.ask("ads.org.")) == "NXDOMAIN" and code(server.ask("x.wild.org.")) == "NXDOMAIN"
    for name in ("bad.good.org.", "fine.ads.org.", "x.fine.ads.org.", "wild.org."):
        assert data(server.ask(name)) == ["192.0.2.9"], name


def test_the_root_blocks_all_that_is_not_allowed(start: Callable[..., tuple[Server, Any]]) -> None:
    server, _ = start("name .", "allow example.org")
    assert code(server.ask("example.net.")) == "NXDOMAIN" and data(server.ask("www.example.org.")) == ["192.0.2.9"]


def test_zones_bound_what_is_looked_at(start: Callable[..., tuple[Server, Any]]) -> None:
    server, _ = start("name .", above="example.org")
    assert code(server.ask("a.example.org.")) == "NXDOMAIN" and data(server.ask("a.example.net.")) == ["192.0.2.9"]


def test_a_name_whose_cname_leads_to_a_blocked_one_is_blocked_if_that_is_wanted(
    start: Callable[..., tuple[Server, Any]],
) -> None:
    without, _ = start("name tracker.net")
    assert "192.0.2.9" in data(without.ask("alias.example.org."))
    server, _ = start("name tracker.net", "cnames")
    for _ in range(4):
        reply = server.ask("alias.example.org.", use_edns=0)
        assert code(reply) == "NXDOMAIN" and not reply.answer and ede(reply) == [15]
        assert reply.authority[0].name.to_text() == "alias.example.org."
    allowed, _ = start("name tracker.net", "cnames", "allow alias.example.org")
    assert "192.0.2.9" in data(allowed.ask("alias.example.org."))


def test_the_clusters_own_names_are_left_alone_unless_its_zone_is_written(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all([namespace("a"), service("a/web", "10.0.0.1")]))
    cluster = f"kubernetes cluster.local in-addr.arpa {{\n manifests {path}\n }}"
    one = serve(block("blocklist {\n name .\n }", cluster))
    assert data(one.ask("web.a.svc.cluster.local.")) == ["10.0.0.1"] and code(one.ask("a.org.")) == "NXDOMAIN"
    assert data(one.ask("1.0.0.10.in-addr.arpa.", "PTR")) == ["web.a.svc.cluster.local."]
    two = serve(block("blocklist cluster.local {\n name web.a.svc.cluster.local\n }", cluster))
    assert code(two.ask("web.a.svc.cluster.local.")) == "NXDOMAIN"


# Formats.


@pytest.mark.parametrize(("text", "form", "blocked", "free"), [
    ("# c\nads.org\n", "domains", "ads.org x.ads.org", "org bads.org"),
    ("*.ads.org # c\n", "domains", "x.ads.org y.x.ads.org", "ads.org"),
    ("! c\n[Adblock Plus]\n||ads.org^\n@@||ok.ads.org^\n", "domains", "ads.org x.ads.org", ""),
    ("127.0.0.1 localhost\n0.0.0.0 ads.org b.org # c\n:: c.org\n10.0.0.1 real.org\n", "hosts",
        "ads.org b.org c.org", "x.ads.org localhost real.org"),
    ("ADS.Org.\r\nb_c.org\r\n", "domains", "ads.org b_c.org", ""),
    ("\ufeffads.org\nb.org\nc.org\n", "domains", "b.org", "x.org"),
])  # fmt: skip
def test_each_format_blocks_what_it_says(text: str, form: str, blocked: str, free: str) -> None:
    table = tabled(text)
    assert table.report.format == form
    assert all(said(table, name) == namelist.LISTED for name in blocked.split())
    assert all(said(table, name) == 0 for name in free.split())


def test_an_exception_of_an_adblock_list_lets_a_name_pass() -> None:
    table = tabled("||ads.org^\n@@||ok.ads.org^\n")
    assert said(table, "x.ok.ads.org") == namelist.PASS and said(table, "ads.org") == namelist.LISTED


def test_exact_names_block_nothing_below_them() -> None:
    table = tabled("ads.org\n*.wild.org\n", exact=True)
    assert said(table, "ads.org") and not said(table, "x.ads.org") and said(table, "x.wild.org")


def test_a_policy_zone_does_what_it_says(
    start: Callable[..., tuple[Server, Any]], tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "rpz"
    path.write_text("$ORIGIN rpz.example.\n" + RPZ)
    server, up = start(f"file {path}")
    for _ in range(3):
        assert code(server.ask("gone.example.")) == code(server.ask("a.b.gone.example.")) == "NXDOMAIN"
        assert code(server.ask("empty.example.")) == "NODATA"
        assert data(server.ask("x.empty.example.")) == ["192.0.2.9"]
        assert data(server.ask("pass.gone.example.")) == data(server.ask("old.gone.example.")) == ["192.0.2.9"]
        assert sorted(data(server.ask("local.example."))) == ["192.0.2.80", "192.0.2.81"]
        reply = server.ask("local.example.", "TXT", use_edns=0)
        assert data(reply) == ['"said by policy"'] and reply.answer[0].ttl == 300 and ede(reply) == [15]
        assert code(server.ask("local.example.", "MX")) == "NODATA"
        assert sorted(data(server.ask("walled.example."))) == ["192.0.2.9", "www.example.net."]
        assert "a.garden.example.garden.net." in data(server.ask("a.garden.example."))
        reply = dns.query.udp(dns.message.make_query("big.example.", "A"), "127.0.0.1", port=server.port, timeout=5)
        assert reply.flags & dns.flags.TC and not reply.answer
        assert data(server.ask("big.example.", tcp=True)) == ["192.0.2.9"]
    query = dns.message.make_query("silent.example.", "A").to_wire()
    assert server.raw(query, timeout=0.2) is None
    assert not asked(up) & {"gone.example.", "empty.example.", "local.example.", "silent.example."}
    assert any("1 of rpz-client-ip, 1 of rpz-ip, 1 of rpz-nsdname" in line for line in lines)


def test_a_policy_zone_named_by_its_soa_is_read_alike() -> None:
    absolute = (
        "rpz.example. 60 IN SOA localhost. root.localhost. 1 2 3 4 5\nbad.org.rpz.example. CNAME .\n"
        "*.bad.org.rpz.example. 60 IN CNAME .\nlocal.org.rpz.example. A 192.0.2.1\nelsewhere.org. CNAME .\n"
    )
    table = tabled(absolute)
    assert table.report.format == "rpz" and table.count == 2
    assert said(table, "bad.org") == said(table, "x.bad.org") == namelist.NXDOMAIN
    assert said(table, "local.org") == namelist.RECORDS and said(table, "elsewhere.org") == 0


def test_the_first_of_several_lists_counts(start: Callable[..., tuple[Server, Any]], tmp_path: Path) -> None:
    (tmp_path / "1").write_text("@ SOA a. b. 1 1 1 1 1\n*.bad.org CNAME rpz-passthru.\n")
    (tmp_path / "2").write_text("bad.org\n")
    server, _ = start(f"file {tmp_path}/1 {tmp_path}/2")
    assert data(server.ask("x.bad.org.")) == ["192.0.2.9"] and code(server.ask("bad.org.")) == "NXDOMAIN"


@pytest.mark.parametrize(("text", "problem"), [
    (b"\0\1\2binary", "not text"), (b"<html>\n<body>download failed</body>\n</html>\n", "line 1: it is not a list"),
    (b"a" * 1_000_000, "not a list"), (b"@ SOA a. b. 1 1 1 1 1\nx.org CNAME\n", "line 2: "),
    (b"www.*.org\n", "not a list"), (b"$ORIGIN \n@ SOA (\n", "line"), ("m\u00fcller.de\n".encode(), "not a list"),
])  # fmt: skip
def test_what_is_no_list_is_refused_whole(text: bytes, problem: str) -> None:
    with pytest.raises(BadList, match=problem):
        tabled(text)


def test_lines_that_are_not_understood_are_counted_and_the_first_is_said(
    start: Callable[..., tuple[Server, Any]], tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "list"
    path.write_text("ads.org\nb.org\nc.org\nwww.*.org\nm\u00fcller.de\n")
    server, _ = start(f"file {path}")
    assert code(server.ask("c.org.")) == "NXDOMAIN"
    assert any(f"{path}:4: 2 lines are not understood" in line and "www.*.org" in line for line in lines)


@given(st.binary(max_size=300), st.sampled_from(namelist.FORMATS))
def test_any_octets_are_a_list_or_are_refused(text: bytes, form: str) -> None:
    try:
        table = tabled(text, form)
    except BadList:
        return
    for name in (b"\0", b"\1a\0", b"\3org\0"):
        table.find(name, offsets(name))


def test_a_table_says_what_a_dictionary_says() -> None:
    chance = random.Random(1)
    labels = ["a", "b", "c", "org", "net"]
    names = [".".join(chance.choices(labels, k=chance.randint(1, 5))) for _ in range(400)]
    wild = set(names[:100])
    table = tabled("".join(f"*.{name}\n" if name in wild else f"{name}\n" for name in names[:200]), "domains")
    listed = set(names[:200])
    for name in names:
        above = name.split(".")
        parents = [".".join(above[i:]) for i in range(1, len(above))]
        expected = (name in listed - wild) or any(parent in listed for parent in parents)
        assert bool(said(table, name)) == expected, name


# Changes.


def test_a_list_is_followed_and_counts_at_once_also_for_cached_answers(
    start: Callable[..., tuple[Server, Any]], tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "list"
    server, _ = start(f"file {path}", "reload 50ms")
    assert any("No such file" in line for line in lines)
    for _ in range(3):
        assert data(server.ask("late.org.")) == ["192.0.2.9"]
    path.write_text("late.org\n")
    eventually(lambda: code(server.ask("late.org.")) == "NXDOMAIN")
    path.write_text("\0\1 no list")
    eventually(lambda: any("it is not text; what was read before is kept" in line for line in lines))
    path.unlink()
    eventually(lambda: sum("No such file" in line or "no such file" in line for line in lines) == 2)
    assert code(server.ask("late.org.")) == "NXDOMAIN"
    assert metrics.REGISTRY["kdns_blocklist_reload_errors_total"].slot(str(path))[0] == 3
    path.write_text("other.org\n")
    eventually(lambda: data(server.ask("late.org.")) == ["192.0.2.9"])
    assert code(server.ask("other.org.")) == "NXDOMAIN"
    path.write_text("")
    eventually(lambda: data(server.ask("other.org.")) == ["192.0.2.9"])
    assert any("there are no names in it, as there were" in line for line in lines)


def test_a_large_list_is_read_by_a_child_and_says_the_same(
    start: Callable[..., tuple[Server, Any]], tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "list"
    path.write_text("".join(f"n{i}.big-enough-a-name.example\n" for i in range(20_000)))
    server, _ = start(f"file {path} format domains", "reload 50ms")
    assert code(server.ask("x.n19999.big-enough-a-name.example.")) == "NXDOMAIN"
    assert data(server.ask("n20000.big-enough-a-name.example.")) == ["192.0.2.9"]
    path.write_text("nonsense nonsense\n" * 20_000)
    eventually(lambda: any(f"{path}:1: it is not a list of names" in line for line in lines))
    assert code(server.ask("n7.big-enough-a-name.example.")) == "NXDOMAIN"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_stops_nothing(
    start: Callable[..., tuple[Server, Any]], tmp_path: Path, lines: list[str], kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("kdns.files.TIMEOUT", 0.1)
    path = tmp_path / "list"
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    server, _ = start("name bad.org", f"file {path}", "reload 50ms")
    assert code(server.ask("bad.org.")) == "NXDOMAIN" and data(server.ask("a.org.")) == ["192.0.2.9"]


def test_the_child_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("@ SOA a. b. 1 1 1 1 1\nx.org CNAME\n")
    for path, text in ((tmp_path / "list", "line 2: "), (tmp_path / "none", "No such file"), (tmp_path, "directory")):
        given_ = msgspec.msgpack.encode(Request("auto", False))
        done = subprocess.run([sys.executable, "-m", "kdns.namelist", str(path)], input=given_, capture_output=True)
        assert done.returncode == 1 and text in done.stderr.decode() and done.stderr.count(b"\n") == 1


# Clients.


def test_lists_for_namespaces_are_for_their_pods_alone(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    objects = [namespace("a"), namespace("b"), pod("a/p", "127.0.1.1"), pod("b/p", "127.0.1.2")]
    path.write_text(yaml.safe_dump_all(objects))
    up = upstream(world)
    server = serve(
        block(
            "blocklist {\n name a.org\n namespaces a\n }", "blocklist {\n name b.org\n except a\n }",
            f"kubernetes cluster.local {{\n manifests {path}\n }}", "cache", f"forward . {up.address}",
        )
    )  # fmt: skip

    def ask(client: str, name: str) -> bool:
        query = dns.message.make_query(name, "A")
        return code(dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5, source=client)) == "NXDOMAIN"

    for _ in range(4):
        found = [ask(f"127.0.{host}", name) for host in ("1.1", "1.2", "0.9") for name in ("a.org.", "b.org.")]
        assert found == [True, False, False, True, False, True]


def test_namespaces_need_a_cluster_that_is_known_whole() -> None:
    with pytest.raises(CorefileError, match="need the plugin kubernetes"):
        build.build(build.read(".:53 {\n blocklist {\n name a.org\n namespaces a\n }\n}\n", "C", environ={})).load()


# The Corefile, and tools.


@pytest.mark.parametrize(("lines_", "problem"), [
    ("", "needs `file` or `name`"), ("allow a.org", "needs `file` or `name`"), ("name", "expected names"),
    ("name www.*.org", "a wildcard stands for"), ("name a..b", "empty label"), ("name a.org\n action what", "expected"),
    ("name a.org\n action address", "expected addresses"), ("name a.org\n action address 1.2", "expected an IP"),
    ("name a.org\n ttl 0", "at least"), ("name a.org\n ttl 30h", "over a day"), ("name a.org\n ede 15", "expected"),
    ("name a.org\n namespaces a\n except b", "not both"), ("file x x", "stands twice"), ("file x format y", "expected"),
    ("name a.org\n allow_file x format rpz", "expected"), ("name a.org\n exact\n exact", "stands twice"),
    ("nmae a.org", "unknown property"),
])  # fmt: skip
def test_a_wrong_directive_is_an_error_with_its_place(lines_: str, problem: str) -> None:
    text = f".:53 {{\n blocklist {{\n {lines_}\n }}\n}}\n"
    found = all_problems(build.read(text, "Corefile", environ={}))
    assert len(found) == 1 and problem in str(found[0]) and str(found[0]).startswith("Corefile:")


def test_check_with_load_warns_of_a_list_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n blocklist {\n file missing\n }\n whoami\n}\n")
    assert check.main(["--load", str(path)]) == 0
    assert "missing: No such file" in capsys.readouterr().err
