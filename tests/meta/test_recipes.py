"""docs/recipes.md is true: each server block is read, served over the sample cluster, and gives the answers shown."""

import os
import re
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from kdns.server import build
from kdns.server.problems import all_problems
from kdns.testing import Server, Upstream, answer, free_port
from tests.fixtures import Serve, Start
from tests.securepeers import Authority, Dot, Peer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = {
    title.split(":")[0] if title.count("Split horizon") == 0 else title: (corefile, shown)
    for title, corefile, shown in re.findall(r"^## (.*?)\n+```corefile\n([\s\S]*?)```\n((?:(?!^## ).*\n)*)", PAGE, re.M)
}
# What the page's other servers know.
WORLD = {
    ("www.corp.example.com.", "A"): ["192.0.2.10"],
    ("api.payments.example.com.", "A"): ["192.0.2.10"],
    ("web.shop.svc.cluster.local.", "A"): ["10.96.1.5"],
    ("www.example.com.", "A"): ["192.0.2.80"],
}
ASKED = re.compile(r"^    (\S+) (A|AAAA) -> (\S+)$", re.M)


def world(query: dns.message.Message, proto: str) -> dns.message.Message:
    question = query.question[0]
    kind = dns.rdatatype.to_text(question.rdtype)
    found = WORLD.get((question.name.to_text().lower(), kind), [])
    reply = answer(query, *(f"{kind} {text}" for text in found))
    if not found and kind == "A":
        reply.set_rcode(3)
    return reply


def encrypted(text: str, folder: Path, certificate: str = "") -> tuple[str, Peer | None]:
    """A recipe with a server of ours in the place of those that it asks over TLS, and the server. Its certificate is
    for the recipe's `tls_servername`, or for another name.
    """
    asked = re.search(r"(?: tls://\S+)+", text)
    name = re.search(r"tls_servername (\S+)", text)
    if asked is None or name is None:
        return text, None
    authority = Authority(folder)
    peer = Peer(authority.context(certificate or name[1]), lambda peer: Dot(peer, lambda query: world(query, "tls")))
    text = text.replace(asked[0], f" tls://127.0.0.1:{peer.port}")
    # What the page says of an authority of one's own.
    return text.replace(name[0], f"{name[0]}\n        tls {authority.path}"), peer


def local(text: str, up: Upstream, folder: Path) -> str:
    """A recipe on one port of the loopback, with a scripted server in the place of every other one."""
    text = re.sub(r"(?<=\s)(?:10\.0\.0\.5[34]|10\.96\.0\.10|/etc/resolv\.conf)(?=[ \n])", up.address, text)
    text = text.replace(f"{up.address} {up.address}", up.address)
    text = re.sub(r":53(?= )", ":{port}", text)
    text = (
        text.replace(" {\n", " {\n    bind 127.0.0.1\n", 1)
        if text.count("{port}") == 1
        else re.sub(r"^(\S.*\{port\} \{)$", r"\1\n    bind 127.0.0.1", text, flags=re.M)
    )
    sample = ROOT / "kdns" / "cli" / "sample" / "cluster.yaml"
    text = re.sub(
        r"^    kubernetes (.*?)(?: \{)?$(?!\n {8})",
        rf"    kubernetes \1 {{\n        manifests {sample}\n    }}",
        text,
        flags=re.M,
    )
    for plugin in ("health", "ready"):
        text = re.sub(rf"^    {plugin}\b", f"    {plugin} 127.0.0.1:{free_port()}", text, flags=re.M)
    text = text.replace("/etc/coredns/blocked.txt", str(folder / "blocked.txt"))
    return text.replace("/etc/coredns/db.zone.example.com", str(folder / "zone"))


def test_every_recipe_is_run_here() -> None:
    assert len(RECIPES) == PAGE.count("```corefile") >= 15
    assert [title for title, (_, shown) in RECIPES.items() if not ASKED.search(shown)] == []


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_gives_the_answers_that_it_shows(serve: Serve, upstream: Start, tmp_path: Path, title: str) -> None:
    corefile, shown = RECIPES[title]
    (tmp_path / "zone").write_text(
        "$ORIGIN zone.example.com.\n$TTL 60\n@ SOA ns host 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\nhost A 192.0.2.44\n"
    )
    (tmp_path / "blocked.txt").write_text("# trackers\ntracker.example.net\n")
    up = upstream(world)
    corefile, peer = encrypted(corefile, tmp_path)
    try:
        check_answers(serve(local(corefile, up, tmp_path)), shown)
        if peer is not None:
            assert peer.queries and not up.queries  # nothing goes out in the clear
            assert peer.names[0] == "dns.quad9.net"
    finally:
        if peer is not None:
            peer.close()


def check_answers(server: Server, shown: str) -> None:
    for name, kind, expected in ASKED.findall(shown):
        reply = server.ask(f"{name}.", kind)
        found = [
            str(record) for rrset in reply.answer for record in rrset if rrset.rdtype == dns.rdatatype.from_text(kind)
        ]
        assert found == ([] if expected == "nothing" else [expected]), (name, kind, reply)


def test_an_upstream_over_tls_with_another_name_in_its_certificate_is_asked_nothing(
    serve: Serve, upstream: Start, tmp_path: Path
) -> None:
    corefile, peer = encrypted(RECIPES["Upstreams over TLS"][0], tmp_path, "dns.example.net")
    assert peer is not None
    try:
        server = serve(local(corefile, upstream(world), tmp_path))
        assert server.ask("www.example.com.").rcode() == dns.rcode.SERVFAIL
        assert not peer.queries
    finally:
        peer.close()


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_read_as_it_is_printed(title: str) -> None:
    assert all_problems(build.read(RECIPES[title][0], "Corefile", environ=dict(os.environ))) == []


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`((?:forward|hosts|rewrite) [^`]*)`", PAGE))))
def test_a_directive_in_the_text_is_read_as_it_is_printed(line: str) -> None:
    """The text named an upstream with a path, which is an error."""
    assert all_problems(build.read(f".:53 {{\n{line}\n}}\n", "Corefile", environ=dict(os.environ))) == []
