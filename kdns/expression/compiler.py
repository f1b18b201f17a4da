"""From an expression's text to a function: a Pratt parser that makes closures and checks types on the way.

Theory of operation. `_Parser.expression(least)` reads an operand and then all operators that bind tighter than `least`.
Each node is a function of a Scope, and the type of its value as far as it is known. So what is evaluated for a query is
a tree of plain calls, without a look at the text.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, final

from kdns.expression.functions import CLOSURES, FUNCTIONS, METHODS
from kdns.expression.values import (
    MAX_SIZE,
    MAX_STEPS,
    NUMBERS,
    BadExpression,
    EvaluationError,
    Function,
    Scope,
    Value,
    bounded,
    regex,
    type_of,
)

MAX_DEPTH: Final = 64  # of brackets and operators within each other: deeper is no expression anybody wrote

_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)?)
    | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)
    | (?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<sign>\?\?|\?\.|\*\*|\.\.|==|!=|<=|>=|&&|\|\||[-+*/%^<>!?:.,|()\[\]{}#;=])
    )""",
    re.X,
)
_COMMENT: Final = re.compile(r"\s*(?://[^\n]*|/\*.*?\*/)", re.S)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.S)

# How tightly operators bind, as in expr-lang 1.17.
_BINARY: Final = {
    "|": 0, "or": 10, "||": 10, "and": 15, "&&": 15, "==": 20, "!=": 20, "<": 20, ">": 20, "<=": 20, ">=": 20, "in": 20,
    "matches": 20, "contains": 20, "startsWith": 20, "endsWith": 20, "..": 25, "+": 30, "-": 30, "*": 60, "/": 60,
    "%": 60,
    "**": 100, "^": 100, "??": 500,
}  # fmt: skip
_NEGATABLE: Final = frozenset(("in", "matches", "contains", "startsWith", "endsWith"))
_ORDER: Final = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
_WORDS: Final = frozenset(
    ("and", "or", "not", "in", "matches", "contains", "startsWith", "endsWith", "let", "true", "false", "nil")
)
# What no variable can be called, beside the functions that are given.
RESERVED: Final = _WORDS | FUNCTIONS.keys() | CLOSURES.keys()

Run = Callable[[Scope], Value]


class Node(NamedTuple):
    """A part of an expression: what evaluates it, and its type."""

    run: Run
    type: str


@final
class Expression:
    """A compiled expression. `type` is what it comes to, as far as that is known; `calls` are the functions it
    calls.
    """

    def __init__(self, node: Node, calls: frozenset[str]) -> None:
        self._run = node.run
        self.type = node.type
        self.calls = calls

    def value(self, env: object, names: Mapping[str, Value] | None = None) -> Value:
        """What it comes to for an environment. Raises EvaluationError."""
        try:
            return self._run(Scope(env, names or {}))
        except EvaluationError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise EvaluationError(str(error)) from None


def compile_expression(
    text: str, functions: Mapping[str, Function], names: Mapping[str, str] | None = None
) -> Expression:
    """An expression over these functions and variables (name -> type). Raises BadExpression."""
    parser = _Parser(text, functions, dict(names or {}))
    return Expression(parser.whole(), frozenset(parser.calls))


class _Parser:
    def __init__(self, text: str, functions: Mapping[str, Function], names: dict[str, str]) -> None:
        self.tokens = _tokens(text)
        self.at = 0
        self.functions = functions
        self.names = names
        self.calls: set[str] = set()
        self.closures = 0  # how many closures the place at hand is in
        self.depth = 0

    # Tokens.

    def fail(self, message: str) -> BadExpression:
        return BadExpression(message, self.tokens[self.at][2])

    def peek(self) -> tuple[str, str]:
        kind, text, _ = self.tokens[self.at]
        return kind, text

    def take(self, sign: str) -> bool:
        """Steps over a sign or word if it is next."""
        kind, text = self.peek()
        if text == sign and kind in ("sign", "name"):
            self.at += 1
            return True
        return False

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise self.fail(f'expected "{sign}", found {self.shown()}')

    def shown(self) -> str:
        kind, text = self.peek()
        return "the end" if kind == "end" else f'"{text}"'

    # Grammar.

    def whole(self) -> Node:
        node = self.sequence()
        if self.peek()[0] != "end":
            raise self.fail(f"unexpected {self.shown()}")
        return node

    def sequence(self) -> Node:
        """`let NAME = VALUE; ...` and the expression behind."""
        if not self.take("let"):
            return self.expression(0)
        kind, name = self.peek()
        if kind != "name" or name in RESERVED or name in self.functions:
            raise self.fail(f"{self.shown()} cannot be a variable")
        self.at += 1
        self.expect("=")
        value = self.expression(0)
        self.expect(";")
        self.names[name] = value.type
        rest = self.sequence()

        def run(scope: Scope) -> Value:
            scope.names[name] = value.run(scope)
            return rest.run(scope)

        return Node(run, rest.type)

    def expression(self, least: int) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail("the expression is nested too deeply")
        node = self.unary()
        while True:
            kind, sign = self.peek()
            negated = sign == "not" and self.tokens[self.at + 1][1] in _NEGATABLE
            if negated:
                sign = self.tokens[self.at + 1][1]
            binds = _BINARY.get(sign) if kind in ("sign", "name") else None
            if binds is None or binds < least:
                break
            place = self.at
            self.at += 2 if negated else 1
            if sign == "|":
                node = self.piped(node)
                continue
            right = self.expression(binds if sign in ("**", "^") else binds + 1)
            node = self.binary(sign, node, right, place)
            if negated:
                node = Node(_not(node.run), "bool")
        if least == 0 and self.take("?"):
            node = self.conditional(node)
        self.depth -= 1
        return node

    def conditional(self, condition: Node) -> Node:
        self.check(condition, "bool", "?")
        if self.take(":"):  # a ?: b
            other = self.expression(0)
            return Node(lambda s: condition.run(s) or other.run(s), other.type)
        yes = self.expression(0)
        self.expect(":")
        no = self.expression(0)
        return Node(lambda s: yes.run(s) if condition.run(s) else no.run(s), yes.type if yes.type == no.type else "any")

    def check(self, node: Node, wanted: str, what: str) -> None:
        if node.type not in (wanted, "any") and not (wanted == "float" and node.type == "int"):
            raise self.fail(f"{what} takes {wanted}, found {node.type}")

    def unary(self) -> Node:
        kind, sign = self.peek()
        if kind in ("sign", "name") and sign in ("not", "!"):
            self.at += 1
            inner = self.expression(50)
            self.check(inner, "bool", sign)
            return self.behind(Node(_not(inner.run), "bool"))
        if kind == "sign" and sign in ("-", "+"):
            self.at += 1
            number = self.expression(90)
            if number.type not in NUMBERS | {"any"}:
                raise self.fail(f"{sign} takes a number, found {number.type}")
            return Node((lambda s: -number.run(s)) if sign == "-" else number.run, number.type)
        return self.behind(self.primary())

    def primary(self) -> Node:
        kind, text = self.peek()
        if kind == "number":
            try:
                number = _number(text)
            except (ValueError, OverflowError):
                raise self.fail(f'the number "{text[:20]}" cannot be read') from None
            self.at += 1
            return _constant(number)
        if kind == "string":
            self.at += 1
            return _constant(_string(text))
        if kind == "name":
            return self.word(text)
        if self.take("("):
            inner = self.sequence()
            self.expect(")")
            return inner
        if self.take("["):
            return self.array()
        if self.take("{"):
            return self.mapping()
        if text == "#" or (text == "." and self.closures):
            if not self.closures:
                raise self.fail('"#" is for closures only')
            if text == "#":
                self.at += 1
            element = Node(lambda s: s.items[-1], "any")
            return element if text == "#" else self.behind(element)
        raise self.fail(f"unexpected {self.shown()}")

    def word(self, text: str) -> Node:
        constant = {"true": True, "false": False, "nil": None}
        self.at += 1
        if text in constant:
            return _constant(constant[text])
        if self.peek() == ("sign", "("):
            self.at += 1
            return self.call(text, None)
        if text in self.names and text not in _WORDS:
            return Node(lambda s: s.names[text], self.names[text])
        self.at -= 1
        raise self.fail(f'unknown name "{text}"')

    def array(self) -> Node:
        items: list[Run] = []
        while not self.take("]"):
            items.append(self.expression(0).run)
            if not self.take(","):
                self.expect("]")
                break
        return Node(lambda s: [item(s) for item in items], "array")

    def mapping(self) -> Node:
        items: list[tuple[Run, Run]] = []
        while not self.take("}"):
            kind, text = self.peek()
            if kind == "name" or kind == "string" or kind == "number":
                self.at += 1
                key = _constant(_string(text) if kind == "string" else text).run
            elif self.take("("):
                key = self.expression(0).run
                self.expect(")")
            else:
                raise self.fail(f"{self.shown()} is no key")
            self.expect(":")
            items.append((key, self.expression(0).run))
            if not self.take(","):
                self.expect("}")
                break
        return Node(lambda s: {key(s): value(s) for key, value in items}, "map")

    def behind(self, node: Node) -> Node:
        """Members, indexes and slices behind an operand."""
        while True:
            if self.take("?.") or self.take("."):
                optional = self.tokens[self.at - 1][1] == "?."
                kind, name = self.peek()
                if kind != "name":
                    raise self.fail(f"{self.shown()} is no member")
                self.at += 1
                if self.take("("):
                    self.expect(")")
                    node = self.method(node, name)
                else:
                    node = _member(node, name, optional)
            elif self.take("["):
                node = self.index(node)
            else:
                return node

    def method(self, node: Node, name: str) -> Node:
        found = METHODS.get(name)
        if found is None or node.type not in ("time", "any"):
            raise self.fail(f'a value of type {node.type} has no method "{name}"')
        return Node(lambda s: found(node.run(s)), "time" if name == "UTC" else "int")

    def index(self, node: Node) -> Node:
        start: Run | None = None
        if self.peek()[1] != ":":
            start = self.expression(0).run
            if self.take("]"):
                key = start
                return Node(lambda s: _at(node.run(s), key(s)), "string" if node.type == "string" else "any")
        self.expect(":")
        stop = None if self.peek()[1] == "]" else self.expression(0).run
        self.expect("]")
        first, last = start, stop
        return Node(
            lambda s: node.run(s)[first(s) if first is not None else None : last(s) if last is not None else None],
            node.type,
        )

    # Operators.

    def binary(self, sign: str, left: Node, right: Node, place: int) -> Node:
        a, b = left.run, right.run
        types = (left.type, right.type)
        known = "any" not in types
        bad = BadExpression(f'"{sign}" does not go with {left.type} and {right.type}', self.tokens[place][2])
        if sign in ("and", "&&", "or", "||"):
            if any(word not in ("bool", "any") for word in types):
                raise bad
            if sign in ("and", "&&"):
                return Node(lambda s: _truth(a(s)) and _truth(b(s)), "bool")
            return Node(lambda s: _truth(a(s)) or _truth(b(s)), "bool")
        if sign == "??":
            return Node(
                lambda s: value if (value := a(s)) is not None else b(s),
                left.type if left.type == right.type else "any",
            )
        if sign in ("==", "!="):
            alike = types[0] == types[1] or NUMBERS.issuperset(types) or "nil" in types
            if known and not alike:
                raise bad
            return Node((lambda s: a(s) == b(s)) if sign == "==" else (lambda s: a(s) != b(s)), "bool")
        if sign in _ORDER:
            if known and not (NUMBERS.issuperset(types) or types in (("string", "string"), ("time", "time"))):
                raise bad
            compare: Any = _ORDER[sign]
            return Node(lambda s: compare(a(s), b(s)), "bool")
        if sign == "in":
            if known and types[1] not in ("array", "map"):
                raise bad
            return Node(lambda s: _within(a(s), b(s)), "bool")
        if sign in ("contains", "startsWith", "endsWith", "matches"):
            if any(word not in ("string", "any") for word in types):
                raise bad
            return self.words(sign, a, b)
        if sign == "..":
            if any(word not in ("int", "any") for word in types):
                raise bad
            return Node(lambda s: _range(a(s), b(s)), "array")
        return self.arithmetic(sign, left, right, bad)

    def words(self, sign: str, a: Run, b: Run) -> Node:
        if sign == "matches":
            try:
                constant = regex(b(Scope(None, {})))
            except EvaluationError as error:
                raise self.fail(str(error)) from None
            except Exception:  # it depends on the query
                return Node(lambda s: regex(_str(b(s))).search(_str(a(s))) is not None, "bool")
            return Node(lambda s: constant.search(_str(a(s))) is not None, "bool")
        if sign == "contains":
            return Node(lambda s: _str(b(s)) in _str(a(s)), "bool")
        if sign == "startsWith":
            return Node(lambda s: _str(a(s)).startswith(_str(b(s))), "bool")
        return Node(lambda s: _str(a(s)).endswith(_str(b(s))), "bool")

    def arithmetic(self, sign: str, left: Node, right: Node, bad: BadExpression) -> Node:
        a, b = left.run, right.run
        types = (left.type, right.type)
        if sign == "+" and "string" in types:
            if any(word not in ("string", "any") for word in types):
                raise bad
            return Node(lambda s: bounded(_str(a(s)) + _str(b(s))), "string")
        if any(word not in NUMBERS | {"any"} for word in types):
            raise bad
        whole = "int" if types == ("int", "int") else "any" if "any" in types else "float"
        if sign == "/":
            return Node(lambda s: _num(a(s)) / _num(b(s)), "float")
        if sign == "%":
            return Node(lambda s: _remainder(a(s), b(s)), "int")
        if sign in ("**", "^"):
            return Node(lambda s: float(_num(a(s))) ** float(_num(b(s))), "float")
        if sign == "+":
            return Node(lambda s: bounded(_plus(a(s), b(s))), whole)
        if sign == "-":
            return Node(lambda s: bounded(_num(a(s)) - _num(b(s))), whole)
        return Node(lambda s: bounded(_num(a(s)) * _num(b(s))), whole)

    # Calls.

    def piped(self, node: Node) -> Node:
        kind, name = self.peek()
        if kind != "name":
            raise self.fail(f"{self.shown()} is no function")
        self.at += 1
        self.expect("(")
        return self.behind(self.call(name, node))

    def call(self, name: str, first: Node | None) -> Node:
        """A call whose opening bracket is read; `first` was piped in."""
        place = self.tokens[self.at - 2][2]
        own = self.functions.get(name)
        if own is None and name in CLOSURES:
            return self.closure(name, first)
        args = [first] if first is not None else []
        while not self.take(")"):
            args.append(self.expression(0))
            if not self.take(","):
                self.expect(")")
                break
        self.calls.add(name)
        if own is not None:
            _check_arguments(name, own.params, args, place)
            runs, function = [arg.run for arg in args], own.call
            return Node(lambda s: function(s.env, *[run(s) for run in runs]), own.returns)
        found = FUNCTIONS.get(name)
        if found is None:
            raise BadExpression(f'unknown function "{name}"', place)
        params, returns, builtin = found
        _check_arguments(name, params, args, place)
        if len(args) == 1 and name in ("min", "max", "abs") and args[0].type in NUMBERS:
            returns = args[0].type
        each = [arg.run for arg in args]
        wanted = [_param(params, i) for i in range(len(args))]
        return Node(
            lambda s: builtin(*[_typed(name, word, run(s)) for word, run in zip(wanted, each, strict=True)]), returns
        )

    def closure(self, name: str, first: Node | None) -> Node:
        if first is None:
            first = self.expression(0)
            self.check(first, "array", f"{name}()")
            if self.take(")"):
                if name == "count":
                    over = first.run
                    return Node(lambda s: sum(item is True for item in over(s)), "int")
                raise self.fail(f"{name}() needs a closure")
            self.expect(",")
        self.closures += 1
        braced = self.take("{")
        body = self.sequence() if braced else self.expression(0)
        if braced:
            self.expect("}")
        self.closures -= 1
        self.expect(")")
        items, inner = first.run, body.run

        def each(scope: Scope) -> "list[tuple[Value, Value]]":
            out = []
            values = items(scope)
            scope.steps += len(values)
            if scope.steps > MAX_STEPS:
                raise EvaluationError(
                    f"the expression takes too long: its closures look at more than {MAX_STEPS:,} elements"
                )
            for item in values.values() if isinstance(values, dict) else values:
                scope.items.append(item)
                try:
                    out.append((item, inner(scope)))
                finally:
                    scope.items.pop()
            return out

        finish = _CLOSURES[name]
        return Node(lambda s: finish(each(s)), CLOSURES[name])


def _tokens(text: str) -> list[tuple[str, str, int]]:
    out = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        comment = _COMMENT.match(text, at)
        if comment is not None:
            at = comment.end()
            continue
        found = _TOKEN.match(text, at)
        if found is None or found.end() > len(text):
            rest = text[at:].lstrip()
            raise BadExpression(f'cannot read "{rest[:20]}"', len(text) - len(rest))
        kind = str(found.lastgroup)
        out.append((kind, found[kind], found.start(kind)))
        at = found.end()
    out.append(("end", "", len(text)))
    return out


def _constant(value: Value) -> Node:
    return Node(lambda s: value, type_of(value))


def _number(text: str) -> int | float:
    """Raises ValueError for what is no number, or none of 64 bits (expr-lang's are Go's)."""
    plain = text.replace("_", "")
    if plain[:2].lower() not in ("0x", "0b", "0o") and any(c in plain for c in ".eE"):
        real = float(plain)
        if math.isinf(real):
            raise ValueError
        return real
    whole = int(plain, 0 if plain[1:2].isalpha() else 10)
    if whole >= 1 << 63:
        raise ValueError
    return whole


def _string(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]

    def plain(found: "re.Match[str]") -> str:
        escape = found[1]
        if escape[0] in "xuU" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        return chr(int(escape, 8)) if len(escape) == 3 else _ESCAPES.get(escape, escape)

    return _ESCAPE.sub(plain, text[1:-1])


def _not(run: Run) -> Run:
    return lambda s: not _truth(run(s))


def _truth(value: Value) -> bool:
    if not isinstance(value, bool):
        raise EvaluationError(f"expected true or false, found {type_of(value)}")
    return value


def _str(value: Value) -> str:
    if not isinstance(value, str):
        raise EvaluationError(f"expected a string, found {type_of(value)}")
    return value


def _num(value: Value) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EvaluationError(f"expected a number, found {type_of(value)}")
    return value


def _plus(a: Value, b: Value) -> Value:
    return a + _str(b) if isinstance(a, str) else _num(a) + _num(b)


def _remainder(a: Value, b: Value) -> int:
    if not (isinstance(a, int) and isinstance(b, int)):
        raise EvaluationError("% takes whole numbers")
    left = abs(a) % abs(b)  # the sign of the dividend, as in Go
    return -left if a < 0 else left


def _range(a: Value, b: Value) -> list[int]:
    if not (isinstance(a, int) and isinstance(b, int)) or b - a > MAX_SIZE:
        raise EvaluationError("a range of too many numbers")
    return list(range(a, b + 1))


def _within(value: Value, where: Value) -> bool:
    if where is None:
        return False
    if isinstance(where, str):
        raise EvaluationError("in takes an array or a map: use contains for strings")
    return value in where


def _member(node: Node, name: str, optional: bool) -> Node:
    def run(scope: Scope) -> Value:
        value = node.run(scope)
        if isinstance(value, dict):
            return value.get(name)
        if value is None and optional:
            return None
        raise EvaluationError(f"cannot get {name} of a value of type {type_of(value)}")

    return Node(run, "any")


def _at(value: Value, key: Value) -> Value:
    return value.get(key) if isinstance(value, dict) else value[key]


def _param(params: tuple[str, ...], i: int) -> str:
    return params[min(i, len(params) - 1)].rstrip("?.")


def _typed(name: str, wanted: str, value: Value) -> Value:
    if wanted != "any" and type_of(value) != wanted:
        raise EvaluationError(f"{name}() takes {wanted}, found {type_of(value)}")
    return value


def _check_arguments(name: str, params: tuple[str, ...], args: list[Node], at: int) -> None:
    least = sum(not param.endswith(("?", "...")) for param in params)
    open_ended = bool(params) and params[-1].endswith("...")
    if len(args) < least or (len(args) > len(params) and not open_ended):
        raise BadExpression(f"{name}() takes {least} argument{'s' * (least != 1)}, found {len(args)}", at)
    for i, arg in enumerate(args):
        wanted = _param(params, i)
        if "any" not in (wanted, arg.type) and arg.type != wanted:
            raise BadExpression(f"{name}() takes {wanted} as argument {i + 1}, found {arg.type}", at)


def _grouped(pairs: list[tuple[Value, Value]]) -> dict[Value, list[Value]]:
    out: dict[Value, list[Value]] = {}
    for item, key in pairs:
        out.setdefault(key, []).append(item)
    return out


_CLOSURES: Final[dict[str, Callable[[list[tuple[Value, Value]]], Value]]] = {
    "all": lambda pairs: all(_truth(found) for _, found in pairs),
    "any": lambda pairs: any(_truth(found) for _, found in pairs),
    "one": lambda pairs: sum(_truth(found) for _, found in pairs) == 1,
    "none": lambda pairs: not any(_truth(found) for _, found in pairs),
    "map": lambda pairs: [found for _, found in pairs],
    "filter": lambda pairs: [item for item, found in pairs if _truth(found)],
    "find": lambda pairs: next((item for item, found in pairs if _truth(found)), None),
    "findIndex": lambda pairs: next((i for i, (_, found) in enumerate(pairs) if _truth(found)), None),
    "findLast": lambda pairs: next((item for item, found in reversed(pairs) if _truth(found)), None),
    "findLastIndex": lambda pairs: next((i for i in range(len(pairs) - 1, -1, -1) if _truth(pairs[i][1])), None),
    "count": lambda pairs: sum(_truth(found) for _, found in pairs),
    "sortBy": lambda pairs: [item for item, _ in sorted(pairs, key=lambda pair: pair[1])],
    "groupBy": _grouped,
}
