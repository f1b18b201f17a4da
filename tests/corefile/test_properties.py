"""A Corefile is read as it was written, whatever its words are; its neat form is read as the same."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.corefile import Corefile, CorefileError, Line, parse
from kdns.corefile.format import formatted
from kdns.corefile.lexer import tokens

# Words that mean nothing by themselves: no import, no brace, no environment variable, no comma at the end.
plain = st.text(alphabet="abc.:/-_=*'é0", min_size=1, max_size=8).filter(lambda text: text != "import")
odd = st.text(alphabet='a b"\\\t\n#;(', max_size=8)  # these are quoted
words = plain | odd
Tree = tuple[str, list[str], list["Tree"]]  # type: ignore[misc]
lines = st.recursive(
    st.tuples(plain, st.lists(words, max_size=3), st.just([])),
    lambda inner: st.tuples(plain, st.lists(words, max_size=2), st.lists(inner, max_size=2)),
    max_leaves=4,
)
keys = st.lists(
    st.sampled_from(["a.org", "b.org:54", ".", "10.0.0.0/24", "x.y.z."]), min_size=1, max_size=2, unique=True
)
blocks = st.lists(st.tuples(keys, st.lists(lines, max_size=4)), max_size=3)


def quoted(text: str) -> str:
    if text and not set(text) & set(' "\\\t\n#;('):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def writable(text: str) -> bool:
    """A backslash before a quote, or at the end, cannot be written: `\\"` is the only escape there is."""
    return '\\"' not in text and not text.endswith("\\")


def written(line: Tree, depth: int) -> str:
    name, args, body = line
    head = "\t" * depth + " ".join([name, *map(quoted, args)])
    if not body:
        return head + "\n"
    return head + " {\n" + "".join(written(each, depth + 1) for each in body) + "\t" * depth + "}\n"


def shape(line: Line) -> Tree:
    return line.name.text, line.words(), [shape(each) for each in line.body or ()]


def shapes(corefile: Corefile) -> list[tuple[list[str], list[Tree]]]:
    return [
        ([key.token.text for key in block.keys], [shape(each) for found in block.directives.values() for each in found])
        for block in corefile.blocks
    ]


def all_words(line: Tree) -> list[str]:
    return [*line[1], *(word for each in line[2] for word in all_words(each))]


@given(blocks)
@settings(max_examples=120, deadline=None)
def test_what_was_written_is_read_and_its_neat_form_too(made: list[tuple[list[str], list[Tree]]]) -> None:
    made = [(zones, [each for each in found if all(map(writable, all_words(each)))]) for zones, found in made]
    text = "".join(
        " ".join(zones) + " {\n" + "".join(written(each, 1) for each in found) + "}\n" for zones, found in made
    )
    expected = []
    for zones, found in made:
        by_name: dict[str, list[Tree]] = {}
        for each in found:
            by_name.setdefault(each[0], []).append(each)
        expected.append((zones, [each for same in by_name.values() for each in same]))
    try:
        found_ = parse(text, "f")
    except CorefileError as error:
        # CoreDNS refuses what lies in a block of an option's block in some forms; the place is said.
        assert error.at is not None
        return
    assert shapes(found_) == expected
    assert shapes(parse(formatted(text), "f")) == expected


@given(st.lists(words.filter(writable), max_size=8))
@settings(max_examples=150, deadline=None)
def test_words_are_read_back_as_they_were_written(made: list[str]) -> None:
    found = tokens(" ".join(map(quoted, made)), "f")
    assert [token.text for token in found] == made
    assert all(token.line[1] <= token.last_line for token in found)


PIECES = [
    ".:53 {\n", "b {\n", "}\n", " log {\n", "  x y\n", " }\n", " {\n", "import a\n", "a,", "(s) {\n", "import s\n",
    " log{\n", '"', " log }\n", "\n", "x {$Y} {%Y%}\n", "log { z }\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=300, deadline=None)
def test_all_errors_are_gathered_exactly_where_one_is_raised_and_nothing_else_is(pieces: list[str]) -> None:
    """Whatever stands open or is closed twice: the reading that gathers comes to an end, and says each thing once."""
    text = "".join(pieces)
    first, gathered = None, list[CorefileError]()
    try:
        blocks = len(parse(text, "f", known={"log"}).blocks)
    except CorefileError as error:
        first = error
    found = parse(text, "f", known={"log"}, errors=gathered)
    assert bool(gathered) == (first is not None), text
    assert first is not None or len(found.blocks) == blocks
    assert all(error.where is not None for error in gathered)
