"""docs/recipes.md is true: each server block is read, served over the sample cluster, and gives the answers shown."""

import os
import re
from pathlib import Path

import dns.message
import pytest

from kdns.server import build
from kdns.server.problems import all_problems
from kdns.testing import Upstream, answer, free_port
from tests.fixtures import Serve, Start

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
    assert {title for title, (_, shown) in RECIPES.items() if not ASKED.search(shown)} == {"Upstreams over TLS"}


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_gives_the_answers_that_it_shows(serve: Serve, upstream: Start, tmp_path: Path, title: str) -> None:
    corefile, shown = RECIPES[title]
    (tmp_path / "zone").write_text(
        "$ORIGIN zone.example.com.\n$TTL 60\n@ SOA ns host 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\nhost A 192.0.2.44\n"
    )
    (tmp_path / "blocked.txt").write_text("# trackers\ntracker.example.net\n")
    server = serve(local(corefile, upstream(world), tmp_path))
    for name, kind, expected in ASKED.findall(shown):
        reply = server.ask(f"{name}.", kind)
        found = [
            str(record) for rrset in reply.answer for record in rrset if rrset.rdtype == dns.rdatatype.from_text(kind)
        ]
        assert found == ([] if expected == "nothing" else [expected]), (name, kind, reply)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_read_as_it_is_printed(title: str) -> None:
    assert all_problems(build.read(RECIPES[title][0], "Corefile", environ=dict(os.environ))) == []


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`((?:forward|hosts|rewrite) [^`]*)`", PAGE))))
def test_a_directive_in_the_text_is_read_as_it_is_printed(line: str) -> None:
    """The text named an upstream with a path, which is an error."""
    assert all_problems(build.read(f".:53 {{\n{line}\n}}\n", "Corefile", environ=dict(os.environ))) == []
