"""The pages of docs/ name what there is: series, alerts, make targets, files, links."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from kdns.metrics import REGISTRY
from kdns.server.order import BUILT, place

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
OBSERVE = PAGES["docs/observe.md"]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_series_of_the_page_on_observing_are_there() -> None:
    for name in BUILT:
        found = place(name)
        assert found is not None
        importlib.import_module(found[0])
    named = set(re.findall(r"`((?:kdns|coredns)_\w+)`", OBSERVE))
    known = set(REGISTRY) | {"kdns_"}
    sources = "".join(path.read_text() for room in ("plugins", "kdns") for path in (ROOT / room).rglob("*.py"))
    assert len(named) > 20 and {name for name in named - known if f'"{name}"' not in sources} == set()


def test_the_alerts_of_the_page_on_observing_are_the_rules() -> None:
    rules = yaml.safe_load((ROOT / "deploy/overlays/monitoring/prometheusrule.yaml").read_text())
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert set(re.findall(r"ClusterDns\w+", OBSERVE)) == alerts


@pytest.mark.parametrize("page", PAGES)
def test_lines_have_120_characters_at_most_but_for_tables_and_what_is_shown_as_it_is(page: str) -> None:
    text = re.sub(r"^(```|~~~).*?^\1", "", PAGES[page], flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
    assert [line for line in lines if len(line) > 120 and " " in line.strip()] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_a_file_or_target_that_a_page_names_is_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)[` ]", PAGES[page]):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in re.findall(r"`((?:docker|deploy|docs|benchmarks)/[\w./-]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path
