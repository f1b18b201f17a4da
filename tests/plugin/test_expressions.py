"""The expression language: values, types found wrong early, and nothing that hurts."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.expression import BadExpression, EvaluationError, Function, compile_expression

FUNCTIONS = {
    "name": Function((), "string", lambda env: env["name"]),
    "size": Function((), "int", lambda env: env["size"]),
    "do": Function((), "bool", lambda env: env["do"]),
    "unknown": Function((), "any", lambda env: env["unknown"]),
}
ENV = {"name": "www.example.org.", "size": 40, "do": False, "unknown": [1, "a", None]}


@pytest.mark.parametrize(("text", "expected"), [
    ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("7 / 2", 3.5), ("7 % 3", 1), ("-7 % 3", -1), ("2 ** 3 ** 2", 512.0),
    ("2 ^ 3", 8.0),
    ("-2 ** 2", -4.0), ("0xff + 0b11 + 0o17 + 1_000", 255 + 3 + 15 + 1000), ("1.5e3", 1500.0),
    ("'a' + \"b\" + `\\c`", "ab\\c"),
    ("'it\\'s\\n\\x41\\u00e9'", "it's\nAé"), ("true and not false", True), ("true && !false || false", True),
    ("1 < 2 and 2 <= 2 and 3 > 2 and 3 >= 4", False), ("'a' < 'b'", True), ("1 == 1.0", True), ("nil == nil", True),
    ("'b' in ['a', 'b']", True), ("'b' not in ['a']", True), ("'x' in {x: 1}", True), ("1 in 0..3", True),
    ("name() matches '^www[.]'", True), ("name() matches name()", True), ("name() not matches 'nope'", True),
    ("name() contains 'example'", True), ("name() startsWith 'www' && name() endsWith 'org.'", True),
    ("do() ? 'yes' : 'no'", "no"), ("nil ?? 'else'", "else"), ("unknown()[2] ?? 5", 5), ("unknown()[0]", 1),
    ("unknown()[-2]", "a"),
    ("name()[0:3]", "www"), ("[1, 2, 3][1:]", [2, 3]), ("[1, 2, 3][:-1]", [1, 2]), ("{a: {b: 2}}.a.b", 2),
    ("{a: 1}?.b?.c", None),
    ("let x = size(); let y = x * 2; x + y", 120), ("any([1, 2, 3], # > 2)", True), ("all([1, 2], {# > 1})", False),
    ("none([], true)", True), ("one([1, 2], # == 2)", True), ("map(1..3, # * #)", [1, 4, 9]),
    ("filter(1..6, # % 2 == 0)", [2, 4, 6]),
    ("count([true, false, true])", 2), ("count(1..4, # > 2)", 2), ("find([1, 5, 9], # > 3)", 5),
    ("findIndex([1, 5, 9], # > 3)", 1),
    ("findLast([1, 5, 9], # > 3)", 9), ("findLastIndex([1, 5, 2], # > 1)", 2), ("map([{n: 1}, {n: 2}], .n)", [1, 2]),
    ("sortBy(['bb', 'a'], len(#))", ["a", "bb"]), ("groupBy(1..3, # % 2 == 0 ? 'even' : 'odd').odd", [1, 3]),
    ("split(name(), '.')[0] | upper()", "WWW"), ("name() | trimSuffix('.') | split('.') | len()", 3),
    ("'a-b' | replace('-', '+')", "a+b"),
    ("join(['a', 'b'], ',')", "a,b"), ("trim('  x ')", "x"), ("trimPrefix('xyz', 'x')", "yz"),
    ("indexOf('abc', 'c')", 2),
    ("lastIndexOf('abca', 'a')", 3), ("hasPrefix('abc', 'ab') and hasSuffix('abc', 'bc')", True),
    ("repeat('ab', 2)", "abab"),
    ("splitAfter('a.b', '.')", ["a.", "b"]), ("min(3, [1, 2])", 1), ("max(1, 2.5)", 2.5), ("sum([1, 2, 3])", 6),
    ("mean(1, 2)", 1.5),
    ("median([3, 1, 2])", 2.0), ("abs(-3)", 3), ("ceil(1.2) + floor(1.8) + round(2.5)", 6.0),
    ("int('42') + int(1.9)", 43),
    ("float('1.5')", 1.5), ("string(12) + string(true)", "12true"), ("first([1, 2]) + last([1, 2])", 3),
    ("take([1, 2, 3], 2)", [1, 2]),
    ("reverse([1, 2])", [2, 1]), ("sort([2, 1], 'desc')", [2, 1]), ("uniq([1, 1, 2])", [1, 2]),
    ("concat([1], [2])", [1, 2]),
    ("flatten([1, [2, [3]]])", [1, 2, 3]), ("keys({b: 1, a: 2})", ["a", "b"]), ("values({b: 1, a: 2})", [2, 1]),
    ("fromPairs(toPairs({a: 1})).a", 1), ("get({a: 1}, 'b')", None), ("fromJSON('[1]')[0]", 1),
    ("fromBase64(toBase64('hi'))", "hi"),
    ("bitand(12, 10) + bitor(12, 10) + bitxor(12, 10) + bitnand(12, 10)", 8 + 14 + 6 + 4),
    ("bitshl(1, 4) + bitshr(16, 2)", 20),
    ("bitnot(0)", -1), ("bitushr(-1, 63)", 1), ("now().Year() > 2024 and now().UTC().Hour() < 24", True),
    ("1 /* two */ + 1 // three", 2),
])  # fmt: skip
def test_expressions_come_to_what_the_language_says(text: str, expected: object) -> None:
    assert compile_expression(text, FUNCTIONS).value(ENV) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("", "unexpected the end"), ("1 +", "unexpected the end"), ("(1", 'expected ")"'), ("nope", 'unknown name "nope"'),
    ("nope()", 'unknown function "nope"'), ("type()", 'unknown function "type"'),
    ("1 + 'a'", "does not go with int and string"),
    ("name() > 3", "does not go with string and int"), ("not 1", "not takes bool"),
    ("name() && true", "does not go with"),
    ("name(1)", "takes 0 arguments"), ("upper(1)", "takes string as argument 1"), ("1 ? 2 : 3", "? takes bool"),
    ("name() matches '('", "bad regular expression"), ("'open", "cannot read"), ("# > 1", "closures only"),
    ("1 2", 'unexpected "2"'),
    ("any(['a'])", "needs a closure"), ("let x = 1", 'expected ";"'), ("let true = 1; 2", "cannot be a variable"),
    ("name() in 'text'", "does not go with"), ("'1' == 1", "does not go with"), ("now().Nope()", "no method"),
    ("(" * 200, "too deeply"),
    ("- 'a'", "takes a number"), ("1 @ 2", "cannot read"), ("{1 2}", 'expected ":"'),
])  # fmt: skip
def test_what_is_wrong_is_found_when_it_is_compiled(text: str, message: str) -> None:
    with pytest.raises(BadExpression) as caught:
        compile_expression(text, FUNCTIONS)
    assert message in str(caught.value) and 0 <= caught.value.at <= len(text)


@pytest.mark.parametrize("text", [
    "unknown() + 1", "unknown()[9]", "unknown().x", "1 % 0", "1 / 0", "int('x')", "fromJSON('{')", "unknown() && true",
    "1..10000000",
    "repeat('aaaa', 1000000)", "sum(['a'])", "9223372036854775807 + 1", "sort([1, 'a'])", "name() matches unknown()",
    "bitshl(1, 99)",
    "1 in unknown()[1]", "fromBase64('?')", "2.0 ** 5000", "unknown() < 3", "fromPairs([1])", "upper(unknown())",
])  # fmt: skip
def test_what_only_a_query_shows_to_be_wrong_is_an_evaluation_error(text: str) -> None:
    with pytest.raises(EvaluationError):
        compile_expression(text, FUNCTIONS).value(ENV)


@pytest.mark.parametrize("text", [
    "count(1..5000, any(1..5000, # == 1)) > 0", "all(1..999, all(1..999, all(1..999, # > 0)))", "len(1..20000) > 0",
    "repeat('ab', 6000) == ''",
])  # fmt: skip
def test_an_expression_of_a_corefile_held_the_loop_for_seconds(text: str) -> None:
    """Closures within closures multiply: a thousand million steps from 40 characters."""
    with pytest.raises(EvaluationError):
        compile_expression(text, FUNCTIONS).value(ENV)
    assert compile_expression("count(1..1000, # > 5)", FUNCTIONS).value(ENV) == 995


@given(st.text(alphabet="abn1()[]{}#.,:;?'\"+-*/<>=!|&~ \n", max_size=60) | st.text(max_size=40))
def test_no_text_breaks_the_compiler(text: str) -> None:
    try:
        expression = compile_expression(text, FUNCTIONS)
    except BadExpression:
        return
    with contextlib.suppress(EvaluationError):
        expression.value(ENV)
