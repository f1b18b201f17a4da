"""From an expression's text to a function: a Pratt parser that makes closures and checks types on the way.

Theory of operation. `_Parser.expression(least)` reads an operand and then all operators that bind tighter than `least`.
Each node is a function of a Scope, and the type of its value as far as it is known. So what is evaluated for a query is
a tree of plain calls, without a look at the text.
"""

from collections.abc import Mapping
from typing import Final, final

from kdns.expression.functions import CLOSURES, FUNCTIONS, METHODS
from kdns.expression.lexer import number, string, tokens
from kdns.expression.nodes import Node, Run, binary, check_arguments, constant, member, opposite, param, typed
from kdns.expression.operations import FINISH, element
from kdns.expression.values import (
    MAX_STEPS,
    NUMBERS,
    BadExpression,
    EvaluationError,
    Function,
    Scope,
    Value,
)

MAX_DEPTH: Final = 64  # of brackets and operators within each other: deeper is not an expression anybody wrote

# How tightly operators bind, as in expr-lang 1.17.
_BINARY: Final = {
    "|": 0, "or": 10, "||": 10, "and": 15, "&&": 15, "==": 20, "!=": 20, "<": 20, ">": 20, "<=": 20, ">=": 20, "in": 20,
    "matches": 20, "contains": 20, "startsWith": 20, "endsWith": 20, "..": 25, "+": 30, "-": 30, "*": 60, "/": 60,
    "%": 60,
    "**": 100, "^": 100, "??": 500,
}  # fmt: skip
_NEGATABLE: Final = frozenset(("in", "matches", "contains", "startsWith", "endsWith"))
_WORDS: Final = frozenset(
    ("and", "or", "not", "in", "matches", "contains", "startsWith", "endsWith", "let", "true", "false", "nil")
)
# What no variable can be called, beside the functions that are given.
RESERVED: Final = _WORDS | FUNCTIONS.keys() | CLOSURES.keys()


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
        """Its value for an environment. Raises EvaluationError."""
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
        self.tokens = tokens(text)
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
            node = binary(sign, node, right, self.tokens[place][2])
            if negated:
                node = Node(opposite(node.run), "bool")
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
            return self.postfix(Node(opposite(inner.run), "bool"))
        if kind == "sign" and sign in ("-", "+"):
            self.at += 1
            operand = self.expression(90)
            if operand.type not in NUMBERS | {"any"}:
                raise self.fail(f"{sign} takes a number, found {operand.type}")
            return Node((lambda s: -operand.run(s)) if sign == "-" else operand.run, operand.type)
        return self.postfix(self.primary())

    def primary(self) -> Node:
        kind, text = self.peek()
        if kind == "number":
            try:
                found = number(text)
            except (ValueError, OverflowError):
                raise self.fail(f'the number "{text[:20]}" cannot be read') from None
            self.at += 1
            return constant(found)
        if kind == "string":
            self.at += 1
            return constant(string(text))
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
            at_hand = Node(lambda s: s.items[-1], "any")
            return at_hand if text == "#" else self.postfix(at_hand)
        raise self.fail(f"unexpected {self.shown()}")

    def word(self, text: str) -> Node:
        values = {"true": True, "false": False, "nil": None}
        self.at += 1
        if text in values:
            return constant(values[text])
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
                key = constant(string(text) if kind == "string" else text).run
            elif self.take("("):
                key = self.expression(0).run
                self.expect(")")
            else:
                raise self.fail(f"{self.shown()} is not a key")
            self.expect(":")
            items.append((key, self.expression(0).run))
            if not self.take(","):
                self.expect("}")
                break
        return Node(lambda s: {key(s): value(s) for key, value in items}, "map")

    def postfix(self, node: Node) -> Node:
        """Members, indexes and slices behind an operand."""
        while True:
            if self.take("?.") or self.take("."):
                optional = self.tokens[self.at - 1][1] == "?."
                kind, name = self.peek()
                if kind != "name":
                    raise self.fail(f"{self.shown()} is not a member")
                self.at += 1
                if self.take("("):
                    self.expect(")")
                    node = self.method(node, name)
                else:
                    node = member(node, name, optional)
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
                return Node(lambda s: element(node.run(s), key(s)), "string" if node.type == "string" else "any")
        self.expect(":")
        stop = None if self.peek()[1] == "]" else self.expression(0).run
        self.expect("]")
        first, last = start, stop
        return Node(
            lambda s: node.run(s)[first(s) if first is not None else None : last(s) if last is not None else None],
            node.type,
        )

    # Calls.

    def piped(self, node: Node) -> Node:
        kind, name = self.peek()
        if kind != "name":
            raise self.fail(f"{self.shown()} is not a function")
        self.at += 1
        self.expect("(")
        return self.postfix(self.call(name, node))

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
            check_arguments(name, own.params, args, place)
            runs, function = [arg.run for arg in args], own.call
            return Node(lambda s: function(s.env, *[run(s) for run in runs]), own.returns)
        found = FUNCTIONS.get(name)
        if found is None:
            raise BadExpression(f'unknown function "{name}"', place)
        params, returns, builtin = found
        check_arguments(name, params, args, place)
        if len(args) == 1 and name in ("min", "max", "abs") and args[0].type in NUMBERS:
            returns = args[0].type
        each = [arg.run for arg in args]
        wanted = [param(params, i) for i in range(len(args))]
        return Node(
            lambda s: builtin(*[typed(name, word, run(s)) for word, run in zip(wanted, each, strict=True)]), returns
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

        finish = FINISH[name]
        return Node(lambda s: finish(each(s)), CLOSURES[name])
