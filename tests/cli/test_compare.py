"""compare: two servers asked the same questions; what counts as a difference, what is documented, and bad input."""

import gzip
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.name
import dns.update
import pytest
import yaml

from kdns.cli import differences, questionfile, questions
from kdns.testing import ApiServer, Server, answer, free_port, soa
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests import programs
from tests.cli.test_commands import kdns
from tests.cli.test_tools import config_map, kubeconfig
from tests.dns import dnstapfiles
from tests.fixtures import Serve, Start

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = [
    namespace("shop"), service("shop/web", "10.0.0.1"), service("shop/db"), service("shop/alias", external="old.org"),
    endpointslice("shop/db-1", "db", endpoint("10.1.0.1", host="db-0"), endpoint("10.1.0.2")),
]  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all(OBJECTS))
    return path


def block(manifest: Path, *more: str) -> str:
    lines = "\n".join(more)
    return (
        f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n kubernetes cluster.local in-addr.arpa {{\n manifests {manifest}\n "
        f"pods insecure\n }}\n}}\n"
    )


def test_two_that_answer_alike_are_said_to(serve: Serve, manifest: Path) -> None:
    one, other = serve(block(manifest)), serve(block(manifest, "cache 30"))
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "--manifests", str(manifest))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"2\d questions; left: 127", done.stdout) and done.stdout.endswith("\nboth answer alike\n")


def test_differences_are_shown_by_kind_and_the_verdict_is_the_exit_code(
    serve: Serve, manifest: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "other.yaml"
    changed.write_text(yaml.safe_dump_all([*OBJECTS[:1], service("shop/web", "10.0.0.9"), *OBJECTS[2:3], *OBJECTS[4:]]))
    one, other = serve(block(manifest)), serve(block(changed))
    words = ["compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "--manifests", str(manifest)]
    done = kdns(*words)
    assert done.returncode == 3 and "\nrecords: " in done.stdout and "\nresponse code: " in done.stdout, done.stdout
    assert "web.shop.svc.cluster.local. A 10.0.0.1  |  web.shop.svc.cluster.local. A 10.0.0.9" in done.stdout
    assert re.search(r"\d+ of 2\d questions are answered differently\n$", done.stdout)
    told = json.loads(kdns(*words, "--json").stdout)
    assert told["serious"] and {each["kind"] for each in told["found"]} >= {"records", "response code"}


def test_a_configuration_is_compared_with_a_server_that_runs(serve: Serve, manifest: Path, tmp_path: Path) -> None:
    other = serve(block(manifest))
    path = tmp_path / "Corefile"
    path.write_text(block(manifest, "errors", "health :1", "prometheus :2").replace("{port}", "53"))
    done = kdns("compare", "--with", f"127.0.0.1:{other.port}", "-conf", str(path))
    assert done.returncode == 0 and "(this configuration)" in done.stdout, done.stdout + done.stderr
    path.write_text(path.read_text().replace("pods insecure", "pods disabled"))
    done = kdns("compare", f"@127.0.0.1:{other.port}", "-conf", str(path))
    assert done.returncode == 3 and "10-1-0-1.shop.pod.cluster.local. A" in done.stdout
    done = kdns("compare", f"@127.0.0.1:{other.port}", "-conf", str(path), "web.shop.svc.cluster.local")
    assert done.returncode == 0 and done.stdout.startswith("1 question; left")


def test_the_clusters_own_configuration_is_compared_through_a_kubeconfig(
    serve: Serve, api: ApiServer, tmp_path: Path, manifest: Path
) -> None:
    api.put(
        *OBJECTS,
        config_map("coredns", Corefile=".:53 {\n kubernetes cluster.local in-addr.arpa {\n pods insecure\n }\n}\n"),
    )
    other = serve(block(manifest))
    words = ["compare", "--with", f"127.0.0.1:{other.port}", "--kubeconfig", kubeconfig(tmp_path, here=api.url)]
    done = kdns(*words, cwd=tmp_path)
    assert done.returncode == 0 and "left: kube-system/coredns (this configuration)" in done.stdout, (
        done.stdout + done.stderr
    )
    api.fail += [403]
    done = kdns(*words, cwd=tmp_path)
    assert (
        done.returncode == 1 and done.stderr == "the cluster's Corefile cannot be read: 403 Forbidden: told to fail\n"
    )


def test_real_questions_come_from_a_file_or_a_log(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    lines = [
        "a.org A", "b.org", "# not this", "", "x" * 5000, "c.org NOPE", "a..org A", "d.org ANY", "a.org. A",
        '[INFO] 10.244.0.5:53211 - 1234 "AAAA IN e.org. udp 44 false 512" NOERROR qr,aa,rd 106 0.0001s',
        '{"msg": "10.0.0.1:5 - 1 \\"MX IN f.org. udp 44 false 512\\" NOERROR"}',
        "[ERROR] plugin/errors: 2 g.org. A: timeout",
    ]  # fmt: skip
    assert [tuple(each) for each in questions.sampled(questionfile.of_lines(lines), 100)] == [
        ("a.org.", "A"), ("b.org.", "A"), ("e.org.", "AAAA"), ("f.org.", "MX")]  # fmt: skip
    path = tmp_path / "log"
    path.write_text("\n".join(lines))
    one, other = (
        serve(f". {{\n bind 127.0.0.1\n forward . {up.address}\n}}\n".replace(". {", ".:{port} {", 1)) for _ in "ab"
    )
    for words, stdin in (([str(path)], None), (["-"], "\n".join(lines))):
        done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "--file", *words, stdin=stdin)
        assert done.returncode == 0 and done.stdout.startswith("4 questions"), done.stdout + done.stderr
        # "c.org NOPE", "a..org", ANY, the long line and the log's error; comments and empty lines are not counted.
        name = words[0] if stdin is None else "stdin"
        assert done.stderr == f"{name}: 5 lines were skipped, without a question in them\n"
    path.write_bytes(bytes(range(256)) * 100)
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "--file", str(path))
    assert done.returncode == 1 and "is neither a text with questions" in done.stderr and done.stderr.count("\n") == 1
    for wrong in ("/nowhere/x", "/dev/null"):
        done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "--file", wrong)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr


def dns_query(name: str, rdtype: str = "A", rdclass: str = "IN") -> bytes:
    return dns.message.make_query(name, rdtype, rdclass, use_edns=0).to_wire()


def test_real_questions_come_from_dnstap(serve: Serve, upstream: Start, tmp_path: Path) -> None:
    up = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    reply = dns.message.make_response(dns.message.make_query("h.org", "A")).to_wire()
    data = dnstapfiles.stream(
        dns_query("A.org"), dns_query("b.org", "AAAA"), dns_query("_x._tcp.c\\.d.org", "SRV"), dns_query("a.org"),
        dns_query("version.bind", "TXT", "CH"), dns_query("e.org", "AXFR"), dns_query("f.org", "TYPE65280"),
        dns_query("."), b"", b"rubbish that somebody sent", dns_query("g.org")[:20], reply,
        dns.update.UpdateMessage("i.org").to_wire(),
    )  # fmt: skip
    path = tmp_path / "queries.dnstap"
    path.write_bytes(data)
    with path.open("rb") as file:
        found = questions.sampled(questionfile.of_file(file, "it", pytest.fail), 100)
    assert list(map(tuple, found)) == [
        ("a.org.", "A"), ("b.org.", "AAAA"), ("_x._tcp.c\\.d.org.", "SRV"), ("f.org.", "TYPE65280"), (".", "A"),
    ]  # fmt: skip
    assert [each.question().name for each in found][2] == dns.name.from_text("_x._tcp.c\\.d.org.").to_wire()
    one, other = (serve(f".:{{port}} {{\n bind 127.0.0.1\n forward . {up.address}\n}}\n") for _ in "ab")
    words = ["compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "--file"]
    done = kdns(*words, str(path))
    assert done.returncode == 0 and done.stdout.startswith("5 questions") and not done.stderr, done.stdout + done.stderr
    done = kdns(*words, "-", stdin=data[:-30])  # a server still writes it
    assert done.returncode == 0 and done.stdout.startswith("5 questions"), done.stdout + done.stderr
    assert re.fullmatch(
        r"stdin: octet \d+ is the end, within a frame: the 12 queries before it are used\n", done.stderr
    )


@pytest.mark.parametrize(("data", "said"), [
    (b"", "FILE has no questions: there is nothing to ask"),
    (bytes(5000), "FILE: octet 0 begins a control frame of 0 octets: it is not a dnstap file"),
    (dnstapfiles.start()[:20], "FILE: octet 20 is the end, within a frame"),
    (dnstapfiles.start(), "FILE has no questions: there is nothing to ask"),
    (dnstapfiles.start(b"protobuf:x"), 'FILE: it holds "protobuf:x", not dnstap'),
    (dnstapfiles.start() + b"\xff\xff\xff\xff" + bytes(99),
        "FILE: octet 42 begins a frame of 4294967295 octets, and 1048576 are the most: is the file whole?"),
    (dnstapfiles.start() + dnstapfiles.frame(b"\xff" * 99),
        "FILE: the frame at octet 42 is not a dnstap message: is the file whole?"),
    (dnstapfiles.start() + dnstapfiles.frame(dnstapfiles.message(None)) * 2,
        "FILE: none of its 2 queries has its message: log them whole, with CoreDNS by `dnstap ... full`"),
    (gzip.compress(dnstapfiles.stream(b"")),
        "FILE is compressed by gzip: unpack it first, gzip -dc FILE | kdns compare ... --file -"),
    (b"\xd4\xc3\xb2\xa1" + bytes(99), "FILE is a packet capture: kdns reads dnstap, logs, and lines of NAME TYPE"),
    (bytes(range(1, 256)) * 2000, "FILE is neither a text with questions nor dnstap: 2001 lines are not text"),
    (b"# nothing\n\n;a.org\n", "FILE has no questions: there is nothing to ask"),
    (b"three words here\n", "FILE has no questions: 1 line was skipped; a line is NAME [TYPE], or one of the "
        "plugin log"),
    (b"a..b\nx NOPE\n", "FILE has no questions: 2 lines were skipped; a line is NAME [TYPE], or one of the plugin log"),
    # Noise in which one line happens to be a word.
    (bytes(range(128, 255)) + b"\nabc\n\0\xff\n",
        "FILE is neither a text with questions nor dnstap: 2 lines are not text"),
], ids=range(15))  # fmt: skip
def test_a_file_of_questions_that_cannot_be_used_is_one_line_and_the_exit_code_1(
    data: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "questions"
    path.write_bytes(data)
    done = kdns("compare", "@127.0.0.1:1", "@127.0.0.1:1", "--file", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said.replace("FILE", str(path), 1) + "\n")


def test_a_file_of_questions_is_read_piece_by_piece_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(data: bytes) -> tuple[list[str], list[str]]:
        notes: list[str] = []
        read = [each.name for each in questionfile.of_file(io.BytesIO(data), "it", notes.append)]
        return read, notes

    long = b"x" * 200_000
    assert found(b"a.org\n" + long + b" A\r\nb.org A\r\n" + long) == (
        ["a.org.", "b.org."], ["it: 2 lines were skipped, without a question in them"])  # fmt: skip
    many = b"".join(b"n%d.org\n" % number for number in range(50_000))
    assert found(many) == ([f"n{number}.org." for number in range(50_000)], [])
    monkeypatch.setattr(questionfile, "LARGEST", 1 << 20)
    assert found(b"a.org\n" + b"\n" * ((1 << 20) - 6)) == (["a.org."], [])
    assert found(b"a.org\n" + b"\n" * (1 << 20)) == (
        ["a.org."],
        ["it is larger than 1 MiB: the rest of it was not read"],
    )
    message = dns_query("a.org")
    read, notes = found(dnstapfiles.stream(*[message] * 20_000))
    assert 8000 < len(read) < 20_000 and notes == ["it is larger than 1 MiB: the rest of it was not read"]


def test_a_sample_of_very_many_questions_holds_few_of_them_and_is_even() -> None:
    found = (questions.Asked(f"n{i % 100_000}.org.", kind) for i in range(200_000) for kind in ("A", "AAAA"))
    kept = questions.sampled(found, 100, kept=1000)
    assert len(kept) == len(set(kept)) == 100
    numbers = [int(each.name[1:-5]) for each in kept]
    assert numbers[0] < 10_000 and 40_000 < numbers[50] < 60_000 and numbers[-1] > 90_000


def test_more_questions_than_the_limit_are_an_even_sample() -> None:
    found = [questions.Asked(f"n{i}.org.", "A") for i in range(1000)]
    kept = questions.sampled(found, 10)
    assert len(kept) == 10 and kept[0].name == "n0.org." and kept[-1].name == "n900.org."


def test_what_changed_between_two_questions_is_no_difference(upstream: Start) -> None:
    asked: list[int] = []

    def moving(query: object, proto: str) -> object:
        asked.append(1)
        return answer(query, "A 192.0.2.1" if len(asked) == 1 else "A 192.0.2.2")  # type: ignore[arg-type]

    one = upstream(moving)  # type: ignore[arg-type]
    other = upstream(lambda query, proto: answer(query, "A 192.0.2.2"))
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "a.svc.cluster.local")
    assert done.returncode == 0 and len(asked) == 2


def test_addresses_of_outside_names_may_vary_and_codes_may_not(upstream: Start) -> None:
    one = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    other = upstream(lambda query, proto: answer(query, "A 192.0.2.2"))
    gone = upstream(lambda query, proto: soa(answer(query)))
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "a.org")
    assert done.returncode == 0 and "addresses of outside names: 1 - no client minds" in done.stdout
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{gone.port}", "a.org")
    assert (
        done.returncode == 3
        and "NOERROR, 1 record  |  NODATA" in done.stdout
        and "1 of 1 question is answered" in done.stdout
    )


@pytest.mark.parametrize("ours", ["10.1.2.3", "0.0.0.0", "192.168.7.8"])
def test_an_override_that_was_lost_was_a_difference_that_no_client_minds(upstream: Start, ours: str) -> None:
    one = upstream(lambda query, proto: answer(query, f"A {ours}"))
    other = upstream(lambda query, proto: answer(query, "A 192.0.2.2"))
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{other.port}", "a.org")
    assert done.returncode == 3 and "records: 1" in done.stdout


def test_records_of_a_servers_own_that_differ_were_a_difference_that_no_client_minds(serve: Serve) -> None:
    text = ".:{{port}} {{\n bind 127.0.0.1\n hosts {{\n 192.0.2.{} a.org\n }}\n whoami\n}}\n"
    servers = [serve(text.format(number)) for number in (1, 2)]
    done = kdns("compare", *(f"@127.0.0.1:{server.port}" for server in servers), "a.org")
    assert done.returncode == 3 and "records: 1" in done.stdout


def test_one_that_answers_nothing_is_named(upstream: Start) -> None:
    one = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    port = free_port()
    done = kdns("compare", f"@127.0.0.1:{one.port}", f"@127.0.0.1:{port}", "a.org")
    assert done.returncode == 9 and f"127.0.0.1:{port} answers nothing" in done.stdout


def test_a_server_may_be_a_name_and_one_that_is_none_is_said_to_be(upstream: Start) -> None:
    one = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    assert kdns("compare", f"@localhost:{one.port}", f"@127.0.0.1:{one.port}", "a.org").returncode == 0
    done = kdns("compare", "@no-such-host.invalid", f"@127.0.0.1:{one.port}", "a.org")
    assert done.returncode == 1 and done.stderr.startswith("@no-such-host.invalid: ") and done.stderr.count("\n") == 1


def test_every_rule_of_what_is_documented_is_among_the_differences() -> None:
    text = " ".join((ROOT / "docs" / "differences.md").read_text().split())
    for _, _, words in differences.RULES:
        assert words in text, words


@pytest.mark.parametrize("words", [
    [], ["@a", "@b", "@c"], ["@a:x"], ["@127.0.0.1", "@127.0.0.1", "a..b"],
    ["@127.0.0.1", "@127.0.0.1", "a.org", "NOPE"],
    ["@127.0.0.1", "@127.0.0.1", "a", "A", "b"], ["@127.0.0.1", "@127.0.0.1", "--limit", "0"],
    ["@127.0.0.1", "-zone", "a..b", "x"],
])  # fmt: skip
def test_a_bad_command_line_is_one_line_and_the_exit_code_2(words: list[str]) -> None:
    done = kdns("compare", *words)
    assert done.returncode == 2 and "See: kdns compare --help" in done.stderr and done.stderr.count("\n") == 2


@pytest.fixture
def coredns(tmp_path: Path, api: ApiServer) -> Iterator[int]:
    """A CoreDNS over the API's objects."""

    def words(port: int) -> list[str]:
        path = tmp_path / "Corefile.coredns"
        path.write_text(
            f".:{port} {{\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa {{\n endpoint {api.url}\n pods "
            f"insecure\n }}\n}}\n"
        )
        return ["coredns", "-conf", str(path)]

    with programs.running(tmp_path / "coredns", words) as program:
        yield program.port


@programs.needs("coredns")
def test_beside_coredns_only_what_is_documented_differs(
    serve: Serve, api: ApiServer, coredns: int, manifest: Path
) -> None:
    api.put(*OBJECTS)
    server: Server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local in-addr.arpa {{\n endpoint {api.url}\n pods "
        f"insecure\n }}\n}}\n"
    )
    words = ["compare", f"@127.0.0.1:{coredns}", f"@127.0.0.1:{server.port}", "--manifests", str(manifest), "--all"]
    end = time.monotonic() + 30
    while (done := kdns(*words)).returncode and time.monotonic() < end:
        time.sleep(0.5)
    assert done.returncode == 0, done.stdout
    assert "as docs/differences.md says" in done.stdout


@pytest.mark.parametrize(("words", "code"), [("", 3), ("--all", 3), ("--json --all", 3), ("same.org", 0)])
def test_a_reader_that_closed_the_pipe_made_the_verdict_a_1(
    words: str, code: int, upstream: Start, tmp_path: Path
) -> None:
    """`compare ... | head -1` was 1 whatever the servers had answered."""
    one = upstream(lambda query, proto: answer(query, "A 192.0.2.1"))
    other = upstream(
        lambda query, proto: answer(query, f"A 192.0.2.{1 if 'same' in str(query.question[0].name) else 2}")
    )
    path = tmp_path / "questions"
    path.write_text(
        "".join(f"n{number}.{'x' * 60}.cluster.local\n" for number in range(300))
    )  # more than a pipe's first buffer
    asked = words if words == "same.org" else f"{words} --rate 100000 --file {path}"
    script = (
        f"{sys.executable} -m kdns compare @{one.address} @{other.address} {asked} | head -c 10 >/dev/null; "
        "echo ${PIPESTATUS[0]}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{code}\n", "")
