"""Blocks, snippets, imports, environment, keys (corefile.md 3 to 7)."""

from pathlib import Path

import pytest

from kdns.corefile import CorefileError, FileReader, parse
from kdns.corefile.parser import Corefile, Line


def read(text: str, **options: object) -> Corefile:
    return parse(text, "Corefile", **options)  # type: ignore[arg-type]


def shape(text: str, **options: object) -> list[tuple[list[str], dict[str, list[list[str]]]]]:
    return [
        ([str(key) for key in block.keys], {name: [d.words() for d in ds] for name, ds in block.directives.items()})
        for block in read(text, **options).blocks
    ]


def error(text: str, **options: object) -> str:
    with pytest.raises(CorefileError) as caught:
        read(text, **options)
    return str(caught.value)


def test_a_block_has_keys_and_directives() -> None:
    text = "example.org:1053 {\n  whoami\n  log . {\n    class error\n  }\n}\n"
    assert shape(text) == [(["example.org.:1053"], {"whoami": [[]], "log": [["."]]})]
    body = read(text).blocks[0].directives["log"][0].body
    assert body is not None and (body[0].name.text, body[0].words()) == ("class", ["error"])


def test_without_braces_the_rest_of_the_file_is_one_block() -> None:
    assert shape(".\nwhoami\nlog") == [([".:53"], {"whoami": [[]], "log": [[]]})]


def test_a_key_line_alone_is_a_block_without_plugins() -> None:
    assert shape("example.org") == [(["example.org.:53"], {})]


def test_keys_are_separated_by_commas_which_may_end_a_line() -> None:
    assert shape("a, b,\nc {\n}") == [(["a.:53", "b.:53", "c.:53"], {})]
    assert shape("a b {\n}") == [(["a.:53", "b.:53"], {})]
    assert shape("a\n{\nwhoami\n}") == [(["a.:53"], {"whoami": [[]]})]


def test_a_directive_may_follow_the_brace_but_the_closing_one_stands_alone() -> None:
    assert shape(". { whoami\n}") == [([".:53"], {"whoami": [[]]})]
    assert "Corefile:1:12: unexpected '}'" in error(". { whoami }")


def test_repeats_of_a_directive_stay_apart() -> None:
    assert shape(". {\nforward a b\nforward c d\n}")[0][1] == {"forward": [["a", "b"], ["c", "d"]]}


def test_nested_blocks_are_lines_with_lines() -> None:
    block = read(". {\nrewrite {\nname a b\ninner x {\ny\n}\n}\n}").blocks[0]
    body = block.directives["rewrite"][0].body
    assert body is not None
    inner: Line = body[1]
    assert inner.words() == ["x"] and inner.body is not None and inner.body[0].name.text == "y"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,", "expected another key after the comma"),
        ("a, {\n}", "expected another key after the comma"),
        (". {\nwhoami\n", "expected '}' to close the server block that begins at Corefile:1:1"),
        (". {\nlog {\n", "expected '}' to close the block of log"),
        ("}", "no block is open"),
        (". {\nlog\n{\n}\n}", "a directive's block opens on the directive's own line"),
        (". {\nhealth { lameduck 5s }\n}", "on its own line"),
        ("(snip) {\n}\n(snip) {\n}", 'snippet "snip" is defined twice'),
        ("(a) {\nimport a\n}", 'snippet "a" imports itself'),
        ("import", "expected a file, a pattern or a snippet"),
        ('import ""', "import of an empty name"),
        ("import a b", "import takes one argument"),
        ("import nothing-here", "cannot import"),
        ("import a*b*c", 'more than one "*"'),
        ("import a[b]", "brackets"),
        ("a:70000 {\n}", "port 70000"),
        ("a: {\n}", "expected a port after the colon"),
        (":53 {\n}", "names a port and no zone"),
        ("::/0 {\n}", "IPv6 prefix"),
        ("x" * 64 + " {\n}", "at most 63"),
        ("a..b {\n}", "empty label"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, expected: str) -> None:
    message = error(text)
    assert expected in message
    assert message.startswith("Corefile:")


def test_an_unknown_directive_is_told_from_a_typing_error() -> None:
    known = {"kubernetes", "whoami"}
    message = error(". {\n  kuberntes x\n}", known=known, suggestions=known)
    assert message == 'Corefile:2:3: unknown directive "kuberntes" (did you mean "kubernetes"?)'
    assert 'a space is missing before "{"' in error(". {\n whoami{\n}\n}", known=known)


# Environment.


def test_variables_are_replaced_everywhere_after_the_words_are_cut() -> None:
    env = {"ZONE": "example.org", "PLUG": "whoami", "WORDS": "a b", "BRACE": "{", "LOOP": "x{$ZONE}"}
    assert shape("{$ZONE} {\n{$PLUG}\n}", environ=env) == [(["example.org.:53"], {"whoami": [[]]})]
    assert shape(". {\nlog {%WORDS%} a{$ZONE}b {$BRACE}\n}", environ=env)[0][1] == {
        "log": [["a b", "aexample.orgb", "{"]]
    }
    assert shape('. {\nlog "{$ZONE} x" {$LOOP}\n}', environ=env)[0][1] == {"log": [["example.org x", "xexample.org"]]}


def test_an_unset_variable_leaves_an_empty_argument() -> None:
    assert shape(". {\nlog {$NOPE} b\n}")[0][1] == {"log": [["", "b"]]}
    assert shape("{$NOPE} {\nwhoami\n}\n. {\n}") == [([".:53"], {})]


def test_what_only_looks_like_a_variable_stays() -> None:
    assert shape(". {\nlog {$} {%%} {$open {$A:b}\n}")[0][1] == {"log": [["{$}", "{%%}", "{$open", ""]]}


def test_a_variable_that_leads_to_itself_is_an_error() -> None:
    assert "lead to themselves" in error(". {\nlog {$A}\n}", environ={"A": "x{$A}"})


# Imports.


def test_a_snippet_is_put_where_it_is_imported() -> None:
    text = "(base) {\nlog\nerrors\n}\na {\nimport base\nwhoami\n}\nb {\nimport base\n}"
    assert shape(text) == [
        (["a.:53"], {"log": [[]], "errors": [[]], "whoami": [[]]}),
        (["b.:53"], {"log": [[]], "errors": [[]]}),
    ]


def test_files_and_globs_are_imported_relative_to_the_file_that_imports(tmp_path: Path) -> None:
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "b.override").write_text("log b\n")
    (custom / ".a.override").write_text("log a\n")
    (custom / "zone.server").write_text("extra.org {\nimport ../shared\n}\n")
    (tmp_path / "shared").write_text("whoami\n")
    text = ". {\nimport custom/*.override\n}\nimport custom/*.server\n"
    corefile = parse(text, str(tmp_path / "Corefile"))
    assert [[d.words() for d in block.directives.get("log", [])] for block in corefile.blocks] == [[["a"], ["b"]], []]
    assert [str(block.keys[0]) for block in corefile.blocks] == [".:53", "extra.org.:53"]
    assert "whoami" in corefile.blocks[1].directives


def test_a_pattern_without_matches_is_only_a_warning(tmp_path: Path) -> None:
    corefile = parse(". {\nimport custom/*.override\n}", str(tmp_path / "Corefile"))
    assert corefile.warnings == ["No files matching import glob pattern: custom/*.override"]


def test_a_folder_among_the_matches_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.d").mkdir()
    with pytest.raises(CorefileError, match="cannot import"):
        parse("import *.d", str(tmp_path / "Corefile"))


class CountingReader(FileReader):
    """Notes how many files are read."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, path: str) -> str:
        self.count += 1
        return super().read(path)


@pytest.mark.parametrize(
    "files",
    [
        {"self": "import self\nimport self\n"}, {"self": ". {\nimport self\n}"}, {"self": "import Corefile\n"},
        {"self": "import b\n", "b": "import c\n", "c": "(s) {\nwhoami\n}\nimport b\n"},
        {"self": "import *.d\n", "1.d": "(a) {\nwhoami\n}\n", "2.d": "(b) {\nwhoami\n}\nimport self\n"},
    ],
)  # fmt: skip
def test_a_file_that_imports_itself_was_read_100000_times(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "Corefile").write_text("import self")
    reader = CountingReader()
    with pytest.raises(CorefileError, match="imports itself"):
        parse("import self", str(tmp_path / "Corefile"), reader=reader)
    assert reader.count <= 4


def test_a_file_may_be_imported_again_once_it_has_ended(tmp_path: Path) -> None:
    for name, text in {
        "log": "log\n", "all": "import log\n", "1.d": "errors\n", "2.d": "import log\nimport 3.d\nimport 1.d\n",
        "3.d": "whoami\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    text = "a {\nimport log\nimport all\n}\nb {\nimport *.d\nimport log\n}\n"
    blocks = parse(text, str(tmp_path / "Corefile")).blocks
    counts = [{name: len(found) for name, found in block.directives.items()} for block in blocks]
    assert counts == [{"log": 2}, {"errors": 2, "log": 2, "whoami": 2}]


def test_files_that_each_import_another_twice_were_read_100000_times(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"f{i}").write_text(f"import f{i + 1}\nimport f{i + 1}\n")
    (tmp_path / "f20").write_text("")
    reader = CountingReader()
    with pytest.raises(CorefileError, match="more than 100000 files imported"):
        parse(". {\nimport f0\n}", str(tmp_path / "Corefile"), reader=reader)
    assert reader.count == 21


def test_an_error_in_an_imported_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("\n\n  nonsense\n")
    with pytest.raises(CorefileError) as caught:
        parse(". {\nimport bad\n}", str(tmp_path / "Corefile"), known={"whoami"})
    assert str(caught.value).startswith(f"{tmp_path / 'bad'}:3:3: ")


def test_the_fingerprint_changes_with_what_is_imported(tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    extra.write_text("log a\n")
    one = parse(". {\nimport extra\n}", str(tmp_path / "Corefile")).fingerprint
    extra.write_text("log b\n")
    assert parse(". {\nimport extra\n}", str(tmp_path / "Corefile")).fingerprint != one
    assert parse("a {\n}", "x").fingerprint == parse("a {\n}  # comment", "x").fingerprint


# Keys.


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("Example.ORG", ["example.org.:1053"]),
        (".", [".:1053"]),
        ("example.org.:54", ["example.org.:54"]),
        ("dns://a.org", ["a.org.:1053"]),
        ("tls://a.org", ["tls://a.org.:853"]),
        ("https://a.org:8443", ["https://a.org.:8443"]),
        ("http://a.org", ["http://a.org.:1053"]),
        ("a.org:dns", ["a.org:dns.:1053"]),
        ("10.0.0.0/24", ["0.0.10.in-addr.arpa.:1053"]),
        ("10.0.0.7/24:54", ["0.0.10.in-addr.arpa.:54"]),
        ("10.0.0.0/15", ["0.10.in-addr.arpa.:1053", "1.10.in-addr.arpa.:1053"]),
        ("10.129.60.0/22", [f"{i}.129.10.in-addr.arpa.:1053" for i in range(60, 64)]),
        ("2001:db8::/31", ["8.b.d.0.1.0.0.2.ip6.arpa.:1053", "9.b.d.0.1.0.0.2.ip6.arpa.:1053"]),
        ("10.0.0.1", ["10.0.0.1.:1053"]),
        ("0.0.0.0/0", ["in-addr.arpa.:1053"]),
    ],
)
def test_a_key_is_scheme_zone_and_port(key: str, expected: list[str]) -> None:
    assert [str(made) for made in read(key + " {\n}", default_port=1053).blocks[0].keys] == expected
