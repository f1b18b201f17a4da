"""Tokens, by CoreDNS's rules (corefile.md 2)."""

import pytest

from kdns.corefile.lexer import tokens


def texts(source: str) -> list[str]:
    return [token.text for token in tokens(source, "f")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a b\tc\nd", ["a", "b", "c", "d"]),
        ("\ufeffa", ["a"]),
        ("a\u00a0b\u2003c\u3000d\x85e", ["a", "b", "c", "d", "e"]),
        ("a\x1cb", ["a\x1cb"]),
        ("a\r\nb", ["a", "b"]),
        ("a\rb", ["ab"]),
        ('"a b" c', ["a b", "c"]),
        ('a"b c"', ['a"b', 'c"']),
        ('"a"b', ["a", "b"]),
        (r'"say \"hi\""', ['say "hi"']),
        (r'"a\b"', [r"a\b"]),
        (r'"a\\" b', ["a\\\\", "b"]),
        ('"two\nlines" x', ["two\nlines", "x"]),
        ('""', [""]),
        ('a "open end\n', ["a", "open end\n"]),
        ('a "', ["a"]),
        ("a # comment\nb", ["a", "b"]),
        ("foo#bar baz\nx", ["foo", "baz", "x"]),
        ("zone{", ["zone{"]),
        ("", []),
        ("# only", []),
    ],
)
def test_text_is_cut_into_tokens(source: str, expected: list[str]) -> None:
    assert texts(source) == expected


def test_tokens_know_where_they_stand() -> None:
    found = tokens('a bb\n  "c\nd" e', "f")
    assert [(str(token.at), token.last_line) for token in found] == [
        ("f:1:1", 1),
        ("f:1:3", 1),
        ("f:2:3", 3),
        ("f:3:4", 3),
    ]
