"""The tools as a person meets them: check, fmt, plan, explain, query, plugins, completion; and their bad input."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdns.cli import COMMANDS, completion
from kdns.cli.flags import parse_among
from kdns.cli.plugins import all_manuals
from kdns.corefile.format import formatted, same
from kdns.metrics import REGISTRY
from kdns.server import catalog
from kdns.testing import ApiServer, answer
from kdns.testing.objects import endpoint, endpointslice, namespace, pod, service
from tests.cli.test_commands import kdns
from tests.fixtures import Serve, Start
from tests.forker import ENV
from tests.securepeers import Authority, Doh, Dot, Peer, Site

UGLY = """# a comment
.:53   {   # of a block
errors


   forward  .  "1.1.1.1"  {
 max_fails 3
        }
  log . "a  {name}   b"
}

(snip) {
\tcache 30
}
"""
NEAT = """# a comment
.:53 { # of a block
    errors

    forward . "1.1.1.1" {
        max_fails 3
    }
    log . "a  {name}   b"
}

(snip) {
    cache 30
}
"""


def test_fmt_puts_a_corefile_in_one_style() -> None:
    assert kdns("fmt", "-", stdin=UGLY).stdout == NEAT
    assert formatted(NEAT) == NEAT and same(UGLY, NEAT)


def test_fmt_shows_a_diff_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(UGLY)
    path.chmod(0o640)
    done = kdns("fmt", "--diff", str(path))
    assert (
        done.returncode == 1 and "-errors" in done.stdout and "+    errors" in done.stdout and path.read_text() == UGLY
    )
    assert kdns("fmt", "--write", str(path)).returncode == 0 and path.read_text() == NEAT
    assert path.stat().st_mode & 0o777 == 0o640 and os.listdir(tmp_path) == ["Corefile"]
    assert kdns("fmt", "--diff", str(path)).returncode == 0


@given(st.text(alphabet='a{}"\\# \n\t;', max_size=80) | st.text(max_size=60))
def test_formatting_keeps_every_token_and_is_done_once(text: str) -> None:
    done = formatted(text)
    assert same(text, done) and formatted(done) == done


def test_check_reads_the_corefile_inside_a_config_map() -> None:
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "coredns"},
        "data": {"Corefile": ".:53 {\n whoami\n}\n"},
    }
    assert kdns("check", "-", stdin=yaml.safe_dump(made)).stdout == "stdin: ok (1 server block, 1 plugin)\n"
    made["data"] = {"Corefile": ".:53 {\n whoam\n}\n"}
    assert "stdin:2:2: error: unknown directive" in kdns("check", "-", stdin=yaml.safe_dump(made)).stderr
    made["data"] = {"other": "Corefile"}
    assert "has no key Corefile" in kdns("check", "-", stdin=yaml.safe_dump(made)).stderr


def test_plan_shows_the_chain_of_each_block() -> None:
    done = kdns(
        "plan",
        "-",
        stdin=".:53 {\n cache\n errors\n forward . 127.0.0.1\n bind 127.0.0.1\n}\norg {\n view a {\n expr true\n }\n "
        "whoami\n}\nx.org {\n}\n",
    )
    assert done.returncode == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert (
        lines[0] == ".:53"
        and lines[1].startswith("1. errors")
        and lines[2].startswith("2. cache")
        and lines[3].startswith("3. forward")
    )
    assert "beside the path of queries: bind" in lines and "org.:53  (view a)" in lines
    assert "no plugin takes part in queries: they are answered REFUSED" in lines


def test_plan_has_kubernetes_before_the_cache_as_queries_do() -> None:
    done = kdns(
        "plan",
        "-",
        stdin=".:53 {\n errors\n cache\n kubernetes cluster.local {\n endpoint http://127.0.0.1:1\n }\n forward . "
        "::1\n}\n",
    )
    names = [line.split()[1] for line in done.stdout.splitlines()[1:]]
    assert names == ["errors", "kubernetes", "cache", "forward"], done.stderr


@pytest.fixture
def cluster(tmp_path: Path, upstream: Start) -> str:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump_all([
        namespace("shop"), namespace("other"), service("shop/web", "10.0.0.1"), service("shop/db"),
        service("shop/idle"),
        endpointslice("shop/db-1", "db", endpoint("10.1.0.1")), service("shop/alias", external="old.org"),
        {**pod("shop/tuned", "10.1.0.9"),
            "spec": {"dnsConfig": {"searches": ["corp.example."], "options": [{"name": "ndots", "value": "2"}]}}},
        {**pod("shop/host", "10.1.0.8"), "spec": {"hostNetwork": True}},
        {**pod("shop/own", "10.1.0.7"),
            "spec": {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["a.example"]}}},
    ]))  # fmt: skip
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    path = tmp_path / "Corefile"
    path.write_text(
        ".:53 {\n errors\n health :1\n prometheus :2\n rewrite name old.org new.org\n cache 30\n"
        f" kubernetes cluster.local in-addr.arpa {{\n manifests {tmp_path / 'c.yaml'}\n }}\n forward . "
        f"{up.address}\n}}\n"
    )
    return str(path)


@pytest.mark.parametrize(("words", "code", "expected"), [
    (["web.shop.svc.cluster.local"], 0, ["kubernetes: NOERROR, 1 record - Service shop/web, ClusterIP, ports http/tcp, "
        "0 ready endpoints",
        "web.shop.svc.cluster.local. 5 A 10.0.0.1"]),
    (["web.shop.svc.cluster.local", "AAAA"], 3, ["NODATA (the name exists, with no record of this type)"]),
    (["nope.shop.svc.cluster.local"], 3, ["kubernetes: NXDOMAIN - namespace shop has no Service nope"]),
    (["web.nope.svc.cluster.local"], 3, ["there is no namespace nope"]),
    (["db", "--from", "shop"], 0, ["db.shop.svc.cluster.local. A", "A 10.1.0.1"]),
    (["web.shop", "--from", "other"], 0,
        ["web.shop.other.svc.cluster.local. A", "web.shop.svc.cluster.local. A", "A 10.0.0.1"]),
    (
        ["old.org"],
        0,
        ["rewrite: passes it on (asks for new.org. A from here on)", "forward: NOERROR, 1 record", "A 192.0.2.1"],
    ),
    (["1.0.0.10.in-addr.arpa", "PTR"], 0, ["Service shop/web", "PTR web.shop.svc.cluster.local."]),
    (["10.0.0.1"], 0, ["1.0.0.10.in-addr.arpa. PTR", "Service shop/web", "PTR web.shop.svc.cluster.local."]),
    (["10.9.9.9"], 3, ["no Service has this address"]),
    (["web", "--from", "other"], 0, ["search other.svc.cluster.local svc.cluster.local cluster.local; ndots 5",
        "namespace other has no Service web; a Service web is in: shop"]),
    (["db", "--from", "shop/tuned"], 0, ["search shop.svc.cluster.local svc.cluster.local cluster.local corp.example; "
        "ndots 2"]),
    (["db.x.y", "--from", "shop/tuned"], 0, ["ndots 2\n\ndb.x.y. A\n"]),
    (["db", "--from", "shop/host"], 0, ["search (none); ndots 1", "hostNetwork without dnsPolicy "
        "ClusterFirstWithHostNet"]),
    (["db", "--from", "shop/own"], 0, ["search a.example; ndots 1", "dnsPolicy None: this Pod asks 192.0.2.53"]),
    (["web.gone.svc.cluster.local"], 3, ["there is no namespace gone; a Service web is in: shop"]),
    (["db-9.db.shop.svc.cluster.local"], 3, ["1 ready endpoint; none of them is called db-9 (there are: 10-1-0-1)"]),
    (["_x._tcp.web.shop.svc.cluster.local", "SRV"], 3, ["no port is called _x with the protocol _tcp"]),
    (["idle.shop.svc.cluster.local"], 3, ["0 ready endpoints: a headless Service has addresses only while endpoints "
        "are ready"]),
    (["10-1-0-1.shop.pod.cluster.local"], 3, ["names of Pods are not served: `pods` is disabled"]),
    (["a.b.foo.cluster.local"], 3, ['"foo" is neither svc nor pod']),
    (["alias.shop.svc.cluster.local"], 0, ["ExternalName old.org"]),
    (["_http._tcp.web.shop.svc.cluster.local", "SRV"], 0, ["SRV 0 100 80 web.shop.svc.cluster.local."]),
    (["dns-version.cluster.local", "TXT"], 0, ['dns-version.cluster.local. 30 TXT "1.1.0"']),
    (["cluster.local", "NS"], 0, ["cluster.local. 5 NS ns.dns.cluster.local."]),
])  # fmt: skip
def test_explain_says_who_answers_and_why(cluster: str, words: list[str], code: int, expected: list[str]) -> None:
    done = kdns("explain", "-conf", cluster, *words)
    assert done.returncode == code, done.stderr
    for text in expected:
        assert text in done.stdout


def test_explain_asks_the_api_for_the_pod_that_asks(api: ApiServer, tmp_path: Path) -> None:
    api.put(
        namespace("shop"),
        service("shop/web", "10.0.0.1"),
        {**pod("shop/p", "10.1.0.9"), "spec": {"dnsPolicy": "Default"}},
    )
    path = tmp_path / "Corefile"
    path.write_text(f".:53 {{\n kubernetes cluster.local {{\n endpoint {api.url}\n }}\n}}\n")
    done = kdns("explain", "-conf", str(path), "web.shop.svc.cluster.local", "--from", "shop/p")
    assert done.returncode == 0 and "dnsPolicy Default" in done.stdout and "A 10.0.0.1" in done.stdout, done.stderr
    done = kdns("explain", "-conf", str(path), "web", "--from", "shop/none")
    assert done.returncode == 1 and done.stderr == "--from shop/none: namespace shop has no Pod none\n"
    api.fail += [403]
    done = kdns("explain", "-conf", str(path), "web", "--from", "shop/p")
    assert done.returncode == 1 and "--from shop/p: 403 " in done.stderr and done.stderr.count("\n") == 1


def test_explain_finds_the_pod_where_the_server_finds_manifests(tmp_path: Path) -> None:
    nested = tmp_path / "more" / "deep"
    nested.mkdir(parents=True)
    (nested / "p.yaml").write_text(
        yaml.safe_dump_all(
            [{**pod("n1/p", "10.1.0.9"), "spec": {"dnsPolicy": "Default"}}, service("n1/web", "10.0.0.1")]
        )
    )
    path = tmp_path / "Corefile"
    path.write_text(f".:53 {{\n kubernetes cluster.local {{\n manifests {tmp_path / 'more'}\n }}\n}}\n")
    done = kdns("explain", "-conf", str(path), "web.n1.svc.cluster.local", "--from", "n1/p")
    assert done.returncode == 0 and "dnsPolicy Default" in done.stdout, done.stderr


def test_explain_asks_at_the_default_port_and_names_the_other_listeners(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(
        "a.org:5300 {\n hosts /nowhere {\n 10.0.0.1 a.org\n }\n}\n.:53 {\n hosts /nowhere {\n 10.0.0.2 a.org\n }\n}\n"
    )
    done = kdns("explain", "-conf", str(path), "a.org")
    assert "asked at dns://:53; there are also dns://:5300" in done.stdout and "a.org. 3600 A 10.0.0.2" in done.stdout
    assert "a.org. 3600 A 10.0.0.1" in kdns("explain", "-conf", str(path), "-dns.port", "5300", "a.org").stdout
    assert kdns("explain", "a.org", "NOPE").stderr == '"NOPE" is not a query type\nSee: kdns explain --help\n'
    path.write_text("# nothing\n")
    done = kdns("explain", "-conf", str(path), "a.org")
    assert done.returncode == 1 and done.stderr == f"{path} has no server block: nothing to explain\n"


def test_explain_says_what_the_listener_allows(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    site = Site(tmp_path)
    path.write_text(
        f"""a.org:53 {{
    limits {{
        qps 100 200
        slip 3
        inflight 500
        connections 200 1000
        exempt 10.0.0.53
    }}
    timeouts {{
        read 5s
        maxtcpqueries 9
    }}
    shed 50ms
    bufsize 900
    proxyproto {{
        allow 10.0.0.0/8
    }}
    hosts /nowhere {{
        10.0.0.1 a.org
    }}
}}
https://.:443 {{
    tls {site.folder}/tls.crt {site.folder}/tls.key
    https {{
        max_streams 7
    }}
    hosts /nowhere {{
        10.0.0.1 a.org
    }}
}}
https3://.:443 {{
    tls {site.folder}/tls.crt {site.folder}/tls.key
    https3 {{
        max_streams 8
    }}
    hosts /nowhere {{
        10.0.0.1 a.org
    }}
}}
"""
    )
    assert "listener" not in kdns("explain", "-conf", str(path), "a.org").stdout
    done = kdns("explain", "-conf", str(path), "--limits", "a.org")
    for line in (
        "listener dns://:53",
        "connections: 1000, of one client 200; the first query within 5s, others within 11s, 9 queries on each",
        "queries that wait for an upstream: 20000, of one client 500",
        "queries over UDP are dropped under overload once they have waited for 0.05s",
        "PROXY headers are believed from: 10.0.0.0/8; of others: ignore",
        "queries a second of an address: 100, at once 200; one in 3 of those over it is answered with TC",
        "clients without limits: 10.0.0.53/32",
        "replies over UDP in a.org.:53: at most 900 octets",
    ):
        assert f"{line}\n" in done.stdout, done.stdout + done.stderr
    done = kdns("explain", "-conf", str(path), "-dns.port", "443", "--limits", "a.org")
    assert "with streams: 7\n" in done.stdout and f"certificate: {site.folder}/tls.crt, TLS" in done.stdout
    assert "over UDP" not in done.stdout
    # QUIC was said to have what `min_version` allows.
    assert [done.stdout.count(f"tls.crt, TLS {version}+\n") for version in ("1.2", "1.3")] == [1, 1]
    # What is over UDP on the same port was not to be seen.
    assert "listener https3://:443\n" in done.stdout and "with streams: 8\n" in done.stdout


def test_check_warns_of_headers_that_are_believed_from_everybody(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    for options, warned in (("", True), ("{\n default use\n }", True), ("{\n allow 10.0.0.0/8\n }", False),
                            ("{\n default reject\n }", False)):  # fmt: skip
        path.write_text(f".:53 {{\n proxyproto {options}\n whoami\n}}\n")
        done = kdns("check", str(path))
        assert done.returncode == 0 and ("can claim any address" in done.stderr) == warned, done.stderr


def test_query_asks_over_each_transport(serve: Serve, tmp_path: Path, upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    done = kdns("query", f"@127.0.0.1:{up.port}", "x.org")
    assert done.returncode == 0 and "status: NOERROR" in done.stdout and "192.0.2.1" in done.stdout
    assert kdns(
        "query", "@127.0.0.1", "-p", str(up.port), "-tcp", "-short", "x.org", "A"
    ).stdout == "192.0.2.1\n" and up.protos == ["udp", "tcp"]
    authority = Authority(tmp_path)
    for kind, protocol in (("tls", Dot), ("https", Doh)):
        context = authority.context("dns.example.net", alpn="h2" if kind == "https" else "")
        peer = Peer(
            context, lambda owner, protocol=protocol: protocol(owner, lambda query: answer(query, "A 192.0.2.2"))
        )
        try:
            words = (
                "query",
                f"@127.0.0.1:{peer.port}",
                f"-{kind}",
                "-ca",
                str(authority.path),
                "-name",
                "dns.example.net",
                "-short",
                "x.org",
            )
            assert kdns(*words).stdout == "192.0.2.2\n"
            words = ("query", f"@{kind}://127.0.0.1:{peer.port}", *words[3:])
            assert kdns(*words).stdout == "192.0.2.2\n"
            assert "certificate verify failed" in kdns("query", f"@127.0.0.1:{peer.port}", f"-{kind}", "x.org").stderr
        finally:
            peer.close()


def test_a_reply_that_cannot_be_printed_is_said_to_be_one(upstream: Start, tmp_path: Path) -> None:
    up = upstream(lambda query, proto: answer(query, "CNAME \\255\\254.org."))
    done = kdns("query", f"@127.0.0.1:{up.port}", "x.org", "CNAME")
    assert (
        done.returncode == 9
        and "answered NOERROR, with what cannot be shown" in done.stderr
        and "Traceback" not in done.stderr
    )
    path = tmp_path / "Corefile"
    path.write_text(f". {{\n forward . {up.address}\n}}\n")
    assert "x.org. 60 CNAME \\# 8 02fffe036f726700" in kdns("explain", "-conf", str(path), "x.org", "CNAME").stdout


def test_query_says_what_is_wrong() -> None:
    for words, code, text in (
        ([], 2, "takes a name"), (["a.org", "NOPE"], 2, "not a query type"), (["a..org"], 2, ""),
        (["-what", "x"], 2, "not defined"),
        (["@sctp://127.0.0.1", "x.org"], 2, 'unknown scheme "sctp"'),
        (["@127.0.0.1:1", "x.org"], 9, "read: connection refused"),
        (["@127.0.0.1:1", "-tcp", "x.org"], 9, "dial tcp 127.0.0.1:1: connect: connection refused"),
        (["-tls", "-ca", "/nowhere", "x.org"], 1, "/nowhere: No such file"),
        # Of a transfer the first message was printed as if it were all; of two transports one was silently used.
        (["x.org", "AXFR"], 2, "AXFR is answered in many messages"), (["-tls", "x.org", "ixfr"], 2, "IXFR is answered"),
        (["-grpc", "-quic", "x.org"], 2, "one transport at a time, found grpc and quic"),
        (["@tls://127.0.0.1", "-https", "x.org"], 2, "one transport at a time, found https and tls"),
        (["@dns://127.0.0.1", "-tls", "x.org"], 2, "one transport at a time, found tls and dns"),
        (["@tls://127.0.0.1:1", "-tls", "x.org"], 9, "connection refused"),
        (["@https://127.0.0.1:1/dns-query", "x.org"], 9, "connection refused"),
        (["@https://127.0.0.1:1/other", "x.org"], 2, "not a port"),
    ):  # fmt: skip
        done = kdns("query", *words)
        assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr, (words, done)


def test_plugins_lists_and_prints_manuals() -> None:
    listed = kdns("plugins").stdout
    assert all(f"\n{name} " in "\n" + listed for name in catalog.built()) and "not built: geoip" in listed
    assert kdns("plugins", "cache").stdout.startswith("cache - stores answers")
    assert 'no plugin "cahce" (did you mean "cache"?)' in kdns("plugins", "cahce").stderr
    assert kdns("plugins", "route53").returncode == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_its_shell_reads(shell: str, tmp_path: Path) -> None:
    done = kdns("completion", shell)
    assert done.returncode == 0 and "explain" in done.stdout
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(done.stdout)
        assert subprocess.run([shell, "-n", str(path)], capture_output=True, check=False).returncode == 0


def test_bash_completes_commands_and_flags() -> None:
    script = (
        completion.bash()
        + 'COMP_WORDS=(kdns ch); COMP_CWORD=1; _kdns; echo "${COMPREPLY[@]}"; COMP_WORDS=(kdns fmt -d); COMP_CWORD=2; '
        '_kdns; echo "${COMPREPLY[@]}"'
    )
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == "check\n-diff\n"


def test_the_manual_page_names_every_command_and_flag() -> None:
    page = kdns("completion", "man").stdout
    assert page.startswith('.TH KDNS 8 "" "kdns ') and "\\-log-format" in page and ".B explain" in page
    if shutil.which("man"):
        done = subprocess.run(["man", "-l", "--warnings", "-"], input=page, capture_output=True, text=True, check=False)
        assert not done.stderr.strip()


BRACES = b"{" * 3000
BAD_FILES = (
    # What it holds, and what is said of it by check, fmt, plan and explain (None: nothing, as it is fine for that
    # tool).
    (b"\x7fELF\x02\x01\x01\0\0" + bytes(range(256)) * 100, "a zero octet: this is not a text file", "a zero octet"),
    (".:53 {\n whoami\n}\n".encode("utf-16"), "1:4: ", "1:4: a zero octet"),
    (b".:53 {\n whoami\n", "expected '}'", "1:6: no '}' closes this block"),
    (b"}\n", "1:1: ", "1:1: unexpected '}': no block is open"),
    (b".:53 {\n nonsense\n}\n", '2:2: ', None),
    (b"# caf\xe9\n.:53 {\n whoami\n}\n", None, "1:6: octet 0xe9 is not UTF-8"),
    (BRACES, "characters, at most 255", None), (b"x" * 2_000_000, "characters, at most", None),
    (b"y" * (5 << 20), "larger than 4 MiB", "larger than 4 MiB"),
    (b"kind: ConfigMap\nCorefile: [", "this is not YAML", "this is not YAML"),
    (b"kind: ConfigMap\ndata: {a: Corefile}\n", "the ConfigMap has no key", "the ConfigMap has no key"),
)  # fmt: skip


@pytest.mark.parametrize("command", ["check", "fmt", "plan", "explain"])
@pytest.mark.parametrize(("content", "said", "by_fmt"), BAD_FILES)
def test_a_bad_file_is_one_clear_line_and_the_exit_code_1(
    tmp_path: Path, command: str, content: bytes, said: str | None, by_fmt: str | None
) -> None:
    path = tmp_path / "Corefile"
    path.write_bytes(content)
    expected = by_fmt if command == "fmt" else said
    done = kdns(*(["explain", "-conf", str(path), "x.org"] if command == "explain" else [command, str(path)]))
    if expected is None:
        assert done.returncode in (0, 3) and not done.stderr, done.stderr
    else:
        assert done.returncode == 1 and expected in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, (
            done.stderr[:500]
        )
        assert str(path) in done.stderr or "ConfigMap" in done.stderr
    assert path.read_bytes() == content


def test_a_device_without_an_end_is_not_read() -> None:
    for words in (["check", "/dev/zero"], ["fmt", "/dev/zero"], ["-conf", "/dev/zero"]):
        done = kdns(*words)
        assert done.returncode == 1 and "it is a device and not a file" in done.stderr


@pytest.mark.parametrize(("text", "said"), [
    ("", "stdin: error: the input is empty: did the command before the pipe fail?"), (" \n\n", "the input is empty"),
    ("# nothing\n", "no server block: in its place kdns would serve its built-in Corefile (whoami)"),
    ("kind: List\nitems: []\n", "it holds no ConfigMap"),
    ("kind: List\nitems: 5\n", "it holds no ConfigMap"),
    ("apiVersion: v1\n---\n- 1\n---\nnull\n", "it holds no ConfigMap"),
    ('{"kind": "ConfigMap", "data": {"Corefile"', "this is not JSON"),
    ("kind: ConfigMap\ndata: *x\n", "this is not YAML"),
    ("kind: ConfigMap\ndata: " + "[" * 5000, "this is not YAML"),
    ("kind: ConfigMap\ndata: [1]\n", "has no key Corefile"),
    ("kind: ConfigMap\ndata: {Corefile: 5}\n", "has no key Corefile"),
    ("kind: ConfigMap\ndata:\n  Corefile: ''\n", "no server block"),
])  # fmt: skip
def test_check_said_ok_of_nothing_at_all_and_of_what_a_failed_command_left(text: str, said: str) -> None:
    done = kdns("check", "-", stdin=text)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_check_says_all_errors_in_one_pass() -> None:
    text = (
        ".:53 {\n errrs\n cache {\n  sucess 1\n  denial x\n }\n forward . 1.1.1.300\n}\na..b {\n whoam {\n  x\n }\n "
        "log x {\n  y\n }\n}\n"
    )
    done = kdns("check", "-", stdin=text)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and [line.split(": ")[0] for line in lines[:-1]] == [
        "stdin:2:2",
        "stdin:4:3",
        "stdin:5:10",
        "stdin:7:12",
        "stdin:9:1",
        "stdin:10:2",
        "stdin:14:3",
    ], done.stderr
    assert lines[-1] == "stdin: 7 errors"
    told = json.loads(kdns("check", "--json", "-", stdin=text).stdout)
    assert told["ok"] is False and told["line"] == 2 and len(told["errors"]) == 7 and told["errors"][3]["line"] == 7


def test_an_error_in_a_snippet_is_said_once_and_a_missing_brace_last() -> None:
    done = kdns("check", "-", stdin="(s) {\n log . a b c\n reload x\n}\na {\n import s\n}\nb {\n import s\n nope\n")
    assert done.returncode == 1 and [line.split(": ")[0] for line in done.stderr.splitlines()] == [
        "stdin:3:9",
        "stdin:10:2",
        "stdin:10:6",
        "stdin",
    ]
    done = kdns("check", "-", stdin="(s) {\n log . a b c\n reload x\n}\na {\n import s\n}\nb {\n import s\n}\n")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("stdin:3:9: error: ")


@pytest.mark.parametrize("word", ["1.1.1.300", "1.2.3", "256.1.1.1:53", "dns://1.1.1.300", "8.8.8.8.8", "10"])
def test_an_upstream_that_is_no_address_was_found_only_by_load(word: str) -> None:
    done = kdns("check", "-", stdin=f". {{\n forward . {word}\n}}\n")
    assert done.returncode == 1 and f'stdin:2:12: error: "{word}" is not an address' in done.stderr


def test_load_says_all_that_cannot_be_loaded(tmp_path: Path) -> None:
    text = f". {{\n forward . {tmp_path}/none\n kubernetes {{\n manifests {tmp_path}/gone\n }}\n}}\n"
    done = kdns("check", "--load", "-", stdin=text)
    assert (
        done.returncode == 1
        and "neither an address nor a file" in done.stderr
        and "no such file or folder" in done.stderr
    )
    assert kdns("check", "-", stdin=text).returncode == 0


def config_map(name: str, **data: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "kube-system"},
        "data": data,
    }


AKS = ".:53 {\n errors\n import custom/*.override\n}\nimport custom/*.server\n"


@pytest.mark.parametrize("form", ["list", "documents", "json"])
def test_check_reads_lists_documents_and_json_as_kubectl_prints_them(form: str) -> None:
    maps = [config_map("coredns", Corefile=".:53 {\n whoami\n}\n"),
        config_map("node-local-dns", Corefile=".:53 {\n whoam\n}\n"),
            config_map("other", key="value"), {"kind": "Service", "metadata": {"name": "kube-dns"}}]  # fmt: skip
    listed = {"apiVersion": "v1", "kind": "List", "items": maps}
    text = {
        "list": yaml.safe_dump(listed),
        "documents": yaml.safe_dump_all(maps),
        "json": json.dumps(listed, indent=2),
    }[form]
    done = kdns("check", "-", stdin=text)
    assert done.returncode == 1 and done.stdout == "stdin(kube-system/coredns): ok (1 server block, 1 plugin)\n"
    assert done.stderr.startswith('stdin(kube-system/node-local-dns):2:2: error: unknown directive "whoam"')
    done = kdns("plan", "-", stdin=text)
    assert done.returncode == 1 and "2 Corefiles, and one is needed" in done.stderr and done.stderr.count("\n") == 1


def test_check_reads_what_a_corefile_imports_from_a_config_map_of_its_own(tmp_path: Path) -> None:
    custom = config_map(
        "coredns-custom", **{"log.override": "log\n", "corp.server": "corp:53 {\n forward . 10.0.0.1\n}\n"}
    )
    both = yaml.safe_dump({"kind": "List", "items": [config_map("coredns", Corefile=AKS), custom]})
    assert kdns("check", "-", stdin=both).stdout == "stdin: ok (2 server blocks, 3 plugins)\n"
    (tmp_path / "custom.yaml").write_text(yaml.safe_dump(custom))
    done = kdns("check", "--with", str(tmp_path / "custom.yaml"), "-", stdin=AKS)
    assert (done.stdout, done.stderr) == ("stdin: ok (2 server blocks, 3 plugins)\n", "")
    assert "log" in kdns("plan", "--with", str(tmp_path / "custom.yaml"), "-", stdin=AKS).stdout
    custom["data"] = {"log.overide": "log\n", "corp.server": "corp:53 {\n forwad . 10.0.0.1\n}\n"}
    (tmp_path / "custom.yaml").write_text(yaml.safe_dump(custom))
    done = kdns("check", "--with", str(tmp_path / "custom.yaml"), "-", stdin=AKS)
    assert done.returncode == 1 and 'custom/corp.server:2:2: error: unknown directive "forwad"' in done.stderr
    custom["data"] = {"log.overide": "log\n"}
    (tmp_path / "custom.yaml").write_text(yaml.safe_dump(custom))
    done = kdns("check", "--with", str(tmp_path / "custom.yaml"), "-", stdin=AKS)
    assert done.returncode == 0 and "warning: nothing imports log.overide" in done.stderr
    for wrong in ("/nowhere/x", "/dev/null"):
        done = kdns("check", "--with", wrong, "-", stdin=AKS)
        assert done.returncode == int(wrong == "/nowhere/x") and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("help", "version")])
def test_every_command_has_help_on_stdout_with_its_exit_codes(name: str) -> None:
    for words in ([name, "--help"], ["help", name]):
        done = kdns(*words)
        assert done.returncode == 0 and not done.stderr and done.stdout.startswith(f"Usage: kdns {name}")
        assert "Examples:" in done.stdout and "Exit codes: 0 " in done.stdout
    done = kdns(name, "-no-such-flag")
    assert done.returncode in (1, 2) and not done.stdout and "Traceback" not in done.stderr


def test_help_goes_to_stdout_and_words_that_are_unknown_get_a_suggestion() -> None:
    for words in (["--help"], ["help"], ["-h"], ["help", "help"]):
        done = kdns(*words)
        assert (
            done.returncode == 0 and not done.stderr and "kdns check " in done.stdout and "Exit codes:" in done.stdout
        )
    assert kdns("version").stdout == kdns("-version").stdout
    for words in (("version", "x"), ("-version", "x"), ("-plugins", "x")):  # these ignored what they did not know
        done = kdns(*words)
        assert done.returncode == 1 and "extra command line arguments" in done.stderr and not done.stdout
    done = kdns("chek")
    assert done.returncode == 1 and 'did you mean "check"?' in done.stderr
    done = kdns("help", "chek")
    assert done.returncode == 2 and 'did you mean "check"?' in done.stderr
    assert "(did you mean -json?)" in kdns("check", "-jsn").stderr
    done = kdns("demo", "foo")
    assert done.returncode == 2 and 'takes no arguments, found "foo"' in done.stderr
    assert kdns("plan", "a", "b").returncode == 2


def test_query_x_asks_for_the_name_of_an_address(upstream: Start) -> None:
    up = upstream(lambda query, proto: answer(query, f"PTR {query.question[0].name.to_text().count('.')}.example."))
    assert kdns("query", f"@127.0.0.1:{up.port}", "-short", "-x", "192.0.2.7").stdout == "6.example.\n"
    assert kdns("query", f"@127.0.0.1:{up.port}", "-short", "-x", "2001:db8::7").stdout == "34.example.\n"
    for words in (["-x", "web"], ["-x", "192.0.2.7", "A"], ["-x", "192.0.2.300"]):
        done = kdns("query", f"@127.0.0.1:{up.port}", *words)
        assert done.returncode == 2 and "-x takes an IP address" in done.stderr


def kubeconfig(tmp_path: Path, **contexts: str) -> str:
    """A kubeconfig with a context for each URL; the first is the current one."""
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": next(iter(contexts)),
        "users": [{"name": "u", "user": {"token": "t"}}],
        "clusters": [{"name": name, "cluster": {"server": url}} for name, url in contexts.items()],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "u"}} for name in contexts],
    }))  # fmt: skip
    return str(path)


def test_explain_could_not_read_a_clusters_corefile_from_a_laptop(api: ApiServer, tmp_path: Path) -> None:
    other = ApiServer()
    try:
        for each, address in ((api, "10.0.0.1"), (other, "10.0.0.2")):
            each.put(
                namespace("shop"),
                service("shop/web", address),
                config_map("coredns", Corefile=".:53 {\n kubernetes cluster.local\n forward . 127.0.0.1\n}\n"),
            )
        path = kubeconfig(tmp_path, here=api.url, there=other.url)
        for words, address in ((["-n", "shop"], "10.0.0.1"), (["--context", "there", "--from", "shop"], "10.0.0.2")):
            done = kdns("explain", "--kubeconfig", path, *words, "web", cwd=tmp_path)
            assert done.returncode == 0 and f"A {address}" in done.stdout, done.stderr
        file = tmp_path / "mine"
        file.write_text(".:53 {\n kubernetes cluster.local\n}\n")
        done = kdns("explain", "--kubeconfig", path, "-conf", str(file), "web.shop.svc.cluster.local")
        assert done.returncode == 0 and "A 10.0.0.1" in done.stdout, done.stderr
        done = kdns("explain", "--kubeconfig", path, "--context", "nope", "web", cwd=tmp_path)
        assert done.returncode == 1 and 'has no context "nope": it has here, there' in done.stderr
        done = kdns("explain", "--kubeconfig", path, "--dns-namespace", "openshift-dns", "web", cwd=tmp_path)
        assert done.returncode == 1 and "no ConfigMap in openshift-dns has a key Corefile" in done.stderr
        api.fail += [403]
        done = kdns("explain", "--kubeconfig", path, "web", cwd=tmp_path)
        assert (
            done.returncode == 1
            and done.stderr == "the cluster's Corefile cannot be read: 403 Forbidden: told to fail\n"
        )
    finally:
        other.close()


def test_explain_without_a_file_or_a_cluster_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENV, "HOME", str(tmp_path))
    monkeypatch.setitem(ENV, "KUBECONFIG", "")
    done = kdns("explain", "web", cwd=tmp_path)
    assert (
        done.returncode == 1
        and "name one with -conf, --kubeconfig or --context" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_fmt_writes_no_config_map_over(tmp_path: Path) -> None:
    path = tmp_path / "cm.yaml"
    text = yaml.safe_dump({"kind": "ConfigMap", "apiVersion": "v1", "data": {"Corefile": UGLY}})
    path.write_text(text)
    assert kdns("fmt", str(path)).stdout == NEAT
    done = kdns("fmt", "--write", str(path))
    assert done.returncode == 1 and "is a ConfigMap" in done.stderr and path.read_text() == text


@pytest.mark.parametrize("command", ["check", "fmt", "plan", "explain"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, command: str) -> None:
    words = [command, "-conf", "/nowhere/x", "a.org"] if command == "explain" else [command, "/nowhere/x"]
    done = kdns(*words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "/nowhere/x" in done.stderr


@pytest.mark.parametrize("words", [["plugins", "kubernetes"], ["fmt", "Corefile.example"], ["plan", "Corefile.example"],
    ["explain", "-conf", "Corefile.example", "a.b.c", "--from", "shop"], ["completion", "man"]])  # fmt: skip
def test_a_closed_pipe_ends_a_tool_quietly(words: list[str]) -> None:
    script = f"{sys.executable} -u -m kdns {' '.join(words)} | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1 and not done.stderr


def test_check_knows_what_coredns_has_removed_or_ignores() -> None:
    done = kdns("check", "-", stdin=".:53 {\n proxy . 1.1.1.1\n}\n")
    assert "stdin:2:2: error" in done.stderr and "`forward` takes its place" in done.stderr
    done = kdns("check", "-", stdin=".:53 {\n template IN A {\n upstream 1.1.1.1\n }\n}\n")
    assert done.returncode == 0 and "line 3: upstream has been without effect" in done.stderr
    done = kdns("check", "-", stdin=".:53 {\n kubernetes cluster.local {\n resyncperiod 5m\n }\n}\n")
    assert done.returncode == 1 and "removed in CoreDNS 1.5" in done.stderr


def test_series_named_as_replacements_are_there() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text()
    for name in catalog.built():
        catalog.plugin_class(name)
    for name in set(re.findall(r"`(kdns_[a-z_]+)`", text)):
        assert name in REGISTRY, name


def test_the_page_on_migration_showed_11_plugins_where_kubeadms_config_map_has_10() -> None:
    top = Path(__file__).resolve().parents[2]
    page = (top / "docs" / "migration.md").read_text()
    # Its base is kubeadm's ConfigMap, unchanged.
    config_map = (top / "deploy" / "base" / "configmap.yaml").read_text()
    shown = re.findall(r"^\$ kubectl .* get configmap coredns -o yaml \| kdns check -\n((?:(?!```).*\n)+)", page, re.M)
    done = kdns("check", "-", stdin=config_map)
    assert (done.returncode, [done.stdout], done.stderr) == (0, shown, "")


def test_the_manuals_are_those_of_the_docstrings() -> None:
    made = (Path(__file__).resolve().parents[2] / "docs" / "manuals.md").read_text()
    assert made == all_manuals(), "run make docs"


def bound(*binds: str) -> str:
    return "".join(f".:5353 {{\n {f'bind {bind}' if bind else 'errors'}\n whoami\n}}\n" for bind in binds)


@pytest.mark.parametrize("binds", [
    ("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1"), ("lo", "eth9"),
    ("lo {\n except ::1\n }", "lo {\n except 127.0.0.1\n }"),
    ("127.0.0.1 127.0.0.2 {\n except 127.0.0.2\n }", "127.0.0.2"),
])  # fmt: skip
def test_blocks_of_one_zone_on_different_addresses_were_called_double_by_check_and_plan(binds: tuple[str, ...]) -> None:
    for command in ("check", "plan"):
        done = kdns(command, "-", stdin=bound(*binds))
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize(("binds", "expected"), [
    (("127.0.0.1", "[127.0.0.1]"), "it is already defined at stdin:1:1"),
    (("::1", "0:0::1"), "it is already defined at stdin:1:1"),
    (("lo", "lo"), "it is already defined at stdin:1:1"), (("", ""), "it is already defined at stdin:1:1"),
    (("127.0.0.1", ""), "zone overlap listener capacity"), (("", "lo"), "zone overlap listener capacity"),
    (("127.0.0.1 {\n except 127.0.0.1\n }", ""), "no address is left to listen on"),
])  # fmt: skip
def test_blocks_of_one_zone_on_the_same_address_are_an_error_without_load_too(
    binds: tuple[str, ...], expected: str
) -> None:
    for command in ("check", "plan"):
        done = kdns(command, "-", stdin=bound(*binds))
        assert done.returncode == 1 and expected in done.stderr, command


def test_what_http_may_not_share_is_an_error_without_load_too() -> None:
    text = ".:5353 {\n health :9153\n prometheus :9153 {\n tls web.yaml\n }\n}\n"
    for command in ("check", "plan"):
        done = kdns(command, "-", stdin=text)
        assert done.returncode == 1 and "health and prometheus cannot share" in done.stderr


DIGITS = "9" * 5000  # more than Python reads


@pytest.mark.parametrize("line", [
    "rewrite type TYPE# A", "rewrite rcode a.org NXDOMAIN #", "rewrite rcode a.org # NOERROR", "rewrite ttl a.org 1-#",
    "rewrite name regex (.*) {#}.a metadata", "rewrite edns0 local set # abcd", "template IN TYPE# a.org", "cache #",
    "cancel #s",
    'template IN A a.org {\n answer "{{ # }} 60 IN A 192.0.2.1"\n }', "view a {\n expr # == 1\n }",
    "view a {\n expr 0x#f == 1\n }",
    "view a {\n expr 0x_ == 1\n }", "view a {\n expr 1e# == 1\n }", "hosts {\n ttl #\n }", "forward . 192.0.2.1:#",
])  # fmt: skip
def test_a_number_of_thousands_of_digits_was_a_traceback(line: str) -> None:
    done = kdns("check", "-", stdin=f".:53 {{\n {line.replace('#', DIGITS)}\n}}\n")
    assert done.returncode == 1 and re.match(r"stdin:[23]:\d+: error: ", done.stderr) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["-dns.port", DIGITS], ["query", "a.org", f"TYPE{DIGITS}"], ["query", "-p", DIGITS, "a.org"]]
)
def test_a_number_of_thousands_of_digits_on_the_command_line_was_a_traceback(words: list[str]) -> None:
    done = kdns(*words)
    assert done.returncode == 2 and "Traceback" not in done.stderr and DIGITS in done.stderr


TROUBLE = (Path(__file__).resolve().parents[2] / "docs" / "troubleshoot.md").read_text()


@pytest.mark.parametrize(
    "example", re.findall(r"```console\n\$ kdns (.*?)```", TROUBLE, re.S), ids=lambda text: text.split("\n")[0]
)
def test_what_the_troubleshooting_page_shows_is_what_is_printed(example: str) -> None:
    command, *shown = example.rstrip().split("\n")
    done = kdns(*command.split())
    times = re.compile(r"\[\d+\.\d{3} ms\]$")
    printed = [times.sub("", line) for line in done.stdout.splitlines()]
    assert shown and all(times.sub("", line) in printed for line in shown), done.stdout + done.stderr


def test_the_commands_of_the_troubleshooting_page_take_the_flags_it_gives_them() -> None:
    found = re.findall(r"`kdns (\w+)([^`]*)`", TROUBLE)
    assert len(found) > 10
    for command, rest in found:
        assert command in COMMANDS, command
        if command != "help":
            parse_among(rest.split(), importlib.import_module(f"kdns.cli.{command}").FLAGS)


def test_the_exit_codes_of_the_troubleshooting_page_are_those_of_the_help() -> None:
    for command, zero, others in re.findall(
        r"^\| `kdns (\w+)` \| ([^|]*) \| ([^|]*) \|$", TROUBLE.partition("## Exit codes")[2], re.M
    ):
        codes = {code for code, _ in importlib.import_module(f"kdns.cli.{command}").HELP.codes}
        assert zero and {int(number) for number in re.findall(r"\b(\d)\b", others)} <= codes, command


def test_explain_asks_as_the_pod_whose_name_it_is_given(tmp_path: Path) -> None:
    """It asked as 127.0.0.1, so what is decided by the client's address was explained for somebody else."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump_all([
        namespace("shop"), namespace("other"), service("shop/web", "10.0.0.1"), pod("shop/p", "10.1.0.9"),
        pod("other/p", "10.1.0.8"),
    ]))  # fmt: skip
    path = tmp_path / "Corefile"
    path.write_text(
        f".:53 {{\n tenants {{\n isolate\n unknown deny\n }}\n kubernetes cluster.local {{\n pods verified\n manifests "
        f"{tmp_path / 'c.yaml'}\n }}\n}}\n"
    )
    own = kdns("explain", "-conf", str(path), "web.shop.svc.cluster.local", "--from", "shop/p")
    assert own.returncode == 0 and "A 10.0.0.1" in own.stdout, own.stdout + own.stderr
    others = kdns("explain", "-conf", str(path), "web.shop.svc.cluster.local", "--from", "other/p")
    assert others.returncode == 3 and "tenants" in others.stdout, others.stdout + others.stderr


def test_explain_asked_as_this_machine_for_a_namespace(tmp_path: Path) -> None:
    """`--from NAMESPACE` asked as 127.0.0.1, so tenants hid from it what every Pod of the namespace sees."""
    file = tmp_path / "c.yaml"
    ended = {**pod("shop/a", "10.1.0.7"), "status": {"podIP": "10.1.0.7", "phase": "Succeeded"}}
    host = {**pod("shop/b", "192.0.2.1"), "spec": {"hostNetwork": True}}
    objects = [namespace("shop"), namespace("other"), namespace("empty"), service("shop/web", "10.0.0.1"), ended, host]
    file.write_text(yaml.safe_dump_all([*objects, pod("shop/q", "10.1.0.9"), pod("shop/p", "10.1.0.8")]))
    path = tmp_path / "Corefile"
    rest = f" kubernetes cluster.local {{\n pods verified\n manifests {file}\n }}\n}}\n"
    path.write_text(f".:53 {{\n tenants {{\n isolate\n unknown deny\n }}\n{rest}")
    done = kdns("explain", "-conf", str(path), "web", "--from", "shop")
    assert done.returncode == 0 and "A 10.0.0.1" in done.stdout, done.stdout + done.stderr
    assert "\nasks as the Pod shop/p (10.1.0.8), the first by name; another with --from shop/POD\n" in done.stdout
    done = kdns("explain", "-conf", str(path), "web.shop.svc.cluster.local", "--from", "empty")
    assert done.returncode == 1 and done.stderr == (
        "--from empty: no running Pod of the namespace empty is known, and tenants answers by who asks: name a Pod, "
        "--from NAMESPACE/POD\n"
    )
    path.write_text(f".:53 {{\n{rest}")
    done = kdns("explain", "-conf", str(path), "web.shop.svc.cluster.local", "--from", "empty")
    assert done.returncode == 0 and "\nasks as this machine: no running Pod of the namespace empty is known\n" in (
        done.stdout
    )


def test_explain_asks_the_api_for_a_pod_of_the_namespace(api: ApiServer, tmp_path: Path) -> None:
    ready = {"phase": "Running", "podIP": "10.1.0.9"}
    api.put(namespace("shop"), service("shop/web", "10.0.0.1"), {**pod("shop/p", "10.1.0.9"), "status": ready})
    path = tmp_path / "Corefile"
    path.write_text(f".:53 {{\n kubernetes cluster.local {{\n endpoint {api.url}\n }}\n}}\n")
    done = kdns("explain", "-conf", str(path), "web", "--from", "shop")
    assert done.returncode == 0 and "asks as the Pod shop/p (10.1.0.9)" in done.stdout, done.stdout + done.stderr
    api.forbidden.add("pods")
    done = kdns("explain", "-conf", str(path), "web", "--from", "shop")
    assert done.returncode == 0 and "\nasks as this machine: 403 Forbidden: pods is forbidden\n" in done.stdout


def test_a_number_that_is_no_port_was_refused_as_none() -> None:
    done = kdns("compare", "@127.0.0.1:1", "@127.0.0.1:2", "--limit", "100000", "--file", "/nowhere")
    assert "expected a port" not in done.stderr and "/nowhere" in done.stderr
