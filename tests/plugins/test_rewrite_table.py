"""rewrite's tables of names say what the rules say one by one."""

import types
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.corefile import Corefile
from kdns.dns import iana
from kdns.dns.errors import BadName
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.plugin import RcodeOnly
from kdns.plugins.rewrite import Rewrite
from kdns.plugins.rewrite.config import Match, Rule
from kdns.plugins.rewrite.handler import _replaced
from kdns.plugins.rewrite.table import FEW, NameTable
from kdns.regex import Prefilter, compile_regex
from kdns.server import build

TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "x"]), min_size=1, max_size=3).map(
    lambda parts: ".".join(parts) + "."
)
EXPRESSIONS = st.sampled_from(
    ["^a\\.(.*)$", "(a|b)\\.x", "^([a-z]+)\\.b", ".*", "x\\.$", "(?i)AB\\.(x)", "[^a]\\.(a)\\.", "nothing(.)"]
)
FIELDS = {"name": "{} {}", "ttl": "{} 5", "rcode": "{} NOERROR NXDOMAIN"}


@st.composite
def lines(draw: st.DrawFn) -> str:
    """One directive, with names so short that many rules fit."""
    how = draw(st.sampled_from(["stop", "continue", "continue"]))
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.sampled_from([f"rewrite {how} type A AAAA", f"rewrite {how} type AAAA A", "rewrite cname exact a. b."])
        )
    kind = draw(st.sampled_from(["exact", "prefix", "suffix", "substring", "regex"]))
    field = draw(st.sampled_from(sorted(FIELDS)))
    regex = draw(EXPRESSIONS) if kind == "regex" else ""
    to = draw(TEXTS)
    if regex and compile_regex(regex).groups:
        to = "{1}." + to
    return f"rewrite {how} {field} {kind} " + FIELDS[field].format(regex or draw(TEXTS), to)


def plugin(directives: list[str]) -> Rewrite:
    corefile: Corefile = build.read(".:1053 {\n" + "\n".join(directives) + "\n}\n", "Corefile", environ={})
    (found,) = build.build(corefile).blocks[0].plugins
    assert isinstance(found, Rewrite)
    return found


def met(match: Match, text: str) -> Any:
    part = match.text
    if match.kind == "regex":
        return compile_regex(part).search(text)
    fits = {
        "exact": text == part,
        "prefix": text.startswith(part),
        "suffix": text.endswith(part),
        "substring": part in text,
    }
    return fits[match.kind] or None


def one_by_one(rules: tuple[Rule, ...], question: Question) -> tuple[Question | None, list[Rule], int]:
    """What the rules do, each tried in turn: the question (None: no name came of it), the rules that noted something
    for the answer, and the cname rules passed."""
    noted: list[Rule] = []
    cnames = 0
    for rule in rules:
        if rule.field == "cname":
            cnames += 1
            continue
        if rule.field == "type":
            if question.type != rule.numbers[0]:
                continue
            question = Question(question.name, rule.numbers[1], question.cls)
        else:
            text = to_text(question.name)
            found = met(rule.match, text)
            if found is None:
                continue
            if rule.field == "name":
                try:
                    name = from_text(_replaced(rule, found, text)).lower()
                except BadName:
                    return None, noted, cnames
                question = Question(name, question.type, question.cls)
                noted += [rule] * len(rule.answers)
            else:
                noted.append(rule)
        if rule.stop:
            break
    return question, noted, cnames


@settings(max_examples=300, deadline=None)
@given(st.lists(lines(), min_size=1, max_size=30), TEXTS)
def test_rules_looked_up_in_tables_do_what_they_do_one_by_one(directives: list[str], name: str) -> None:
    rewrite = plugin(directives)
    request: Any = types.SimpleNamespace(question=Question(from_text(name), iana.A), slots=[None])
    outcome = rewrite.handle(request)
    expected, noted, cnames = one_by_one(rewrite.config, Question(from_text(name), iana.A))
    if expected is None:
        assert isinstance(outcome, RcodeOnly) and outcome.rcode == iana.SERVFAIL
        return
    got = request.question
    assert outcome is None and (got.name, got.type, got.cls) == (expected.name, expected.type, expected.cls)
    changes = request.slots[0]
    if changes is None:
        assert not noted and not cnames
    else:
        assert changes.targets == cnames
        assert len(changes.records) == len([rule for rule in noted if rule.field != "rcode"])
        assert changes.codes == [rule.numbers for rule in noted if rule.field == "rcode"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(Match, st.sampled_from(["exact", "prefix", "suffix", "substring"]), TEXTS),
            st.builds(Match, st.just("regex"), EXPRESSIONS),
        ),
        max_size=20,
    ),
    TEXTS,
)
def test_a_table_of_names_leaves_out_no_match_and_keeps_their_order(matches: list[Match], text: str) -> None:
    table = NameTable(matches)
    places = list(table.places(text))
    assert places == sorted(set(places))
    assert [at for at in places if table.met(at, text)] == [at for at, match in enumerate(matches) if met(match, text)]


def test_three_thousand_exact_rules_were_each_tried_for_every_query() -> None:
    table = NameTable([Match("exact", f"{i}.example.") for i in range(3000)])
    assert list(table.places("7.example.")) == [7] and not table.places("nothing.example.")
    table = NameTable([Match("suffix", f".{i}.example.") for i in range(3000)])
    assert list(table.places("a.70.example.")) == [70] and not table.places("nothing.example.")


def test_three_hundred_regular_expressions_were_each_tried_for_every_query() -> None:
    table = NameTable([Match("regex", rf"^(.*)\.x{i:03}\.example\.$") for i in range(300)])
    assert list(table.places("a.x070.example.")) == [70] and not table.places("nothing.example.")


def test_few_rules_are_tried_one_by_one() -> None:
    assert list(NameTable([Match("exact", "a.")] * FEW).places("b.")) == list(range(FEW))


def test_a_prefilter_that_has_no_memory_left_leaves_out_nothing() -> None:
    prefilter = Prefilter(["aa", "bb"])
    prefilter._filter = types.SimpleNamespace(Match=lambda text, potential: None)
    assert list(prefilter.may_match("aa")) == [0, 1]
