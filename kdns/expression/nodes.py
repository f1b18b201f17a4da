"""The parts of a compiled expression: constants, members, operators, and the checks of arguments.

A node is a function of a Scope and the type of its value, as far as that is known. Types are checked when a node is
made; what is known only for a query is checked by kdns.expression.operations.
"""

import operator
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kdns.expression.operations import number, numbers, plus, remainder, text, truth, within
from kdns.expression.values import NUMBERS, BadExpression, EvaluationError, Scope, Value, bounded, regex, type_of

_ORDER: Final = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}

Run = Callable[[Scope], Value]


class Node(NamedTuple):
    """A part of an expression: what evaluates it, and its type."""

    run: Run
    type: str


def constant(value: Value) -> Node:
    """A value that no query changes."""
    return Node(lambda s: value, type_of(value))


def opposite(run: Run) -> Run:
    """The opposite of a bool."""
    return lambda s: not truth(run(s))


def member(node: Node, name: str, optional: bool) -> Node:
    """A member of a map; `optional`: nil has none, and that is not an error."""

    def run(scope: Scope) -> Value:
        value = node.run(scope)
        if isinstance(value, dict):
            return value.get(name)
        if value is None and optional:
            return None
        raise EvaluationError(f"cannot get {name} of a value of type {type_of(value)}")

    return Node(run, "any")


def binary(sign: str, left: Node, right: Node, at: int) -> Node:
    """Two operands and the operator between them, which is at an offset. Raises BadExpression."""
    a, b = left.run, right.run
    types = (left.type, right.type)
    known = "any" not in types
    bad = BadExpression(f'"{sign}" does not go with {left.type} and {right.type}', at)
    if sign in ("and", "&&", "or", "||"):
        if any(word not in ("bool", "any") for word in types):
            raise bad
        if sign in ("and", "&&"):
            return Node(lambda s: truth(a(s)) and truth(b(s)), "bool")
        return Node(lambda s: truth(a(s)) or truth(b(s)), "bool")
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
        return Node(lambda s: within(a(s), b(s)), "bool")
    if sign in ("contains", "startsWith", "endsWith", "matches"):
        if any(word not in ("string", "any") for word in types):
            raise bad
        return _words(sign, a, b, at)
    if sign == "..":
        if any(word not in ("int", "any") for word in types):
            raise bad
        return Node(lambda s: numbers(a(s), b(s)), "array")
    return _arithmetic(sign, left, right, bad)


def _words(sign: str, a: Run, b: Run, at: int) -> Node:
    if sign == "matches":
        try:
            constant = regex(b(Scope(None, {})))
        except EvaluationError as error:
            raise BadExpression(str(error), at) from None
        except Exception:  # it depends on the query
            return Node(lambda s: regex(text(b(s))).search(text(a(s))) is not None, "bool")
        return Node(lambda s: constant.search(text(a(s))) is not None, "bool")
    if sign == "contains":
        return Node(lambda s: text(b(s)) in text(a(s)), "bool")
    if sign == "startsWith":
        return Node(lambda s: text(a(s)).startswith(text(b(s))), "bool")
    return Node(lambda s: text(a(s)).endswith(text(b(s))), "bool")


def _arithmetic(sign: str, left: Node, right: Node, bad: BadExpression) -> Node:
    a, b = left.run, right.run
    types = (left.type, right.type)
    if sign == "+" and "string" in types:
        if any(word not in ("string", "any") for word in types):
            raise bad
        return Node(lambda s: bounded(text(a(s)) + text(b(s))), "string")
    if any(word not in NUMBERS | {"any"} for word in types):
        raise bad
    whole = "int" if types == ("int", "int") else "any" if "any" in types else "float"
    if sign == "/":
        return Node(lambda s: number(a(s)) / number(b(s)), "float")
    if sign == "%":
        return Node(lambda s: remainder(a(s), b(s)), "int")
    if sign in ("**", "^"):
        return Node(lambda s: float(number(a(s))) ** float(number(b(s))), "float")
    if sign == "+":
        return Node(lambda s: bounded(plus(a(s), b(s))), whole)
    if sign == "-":
        return Node(lambda s: bounded(number(a(s)) - number(b(s))), whole)
    return Node(lambda s: bounded(number(a(s)) * number(b(s))), whole)


def param(params: tuple[str, ...], i: int) -> str:
    """The type of the argument at an index; the last one may stand for many."""
    return params[min(i, len(params) - 1)].rstrip("?.")


def typed(name: str, wanted: str, value: Value) -> Value:
    """A function's argument, if it is of the type wanted. Raises EvaluationError."""
    if wanted != "any" and type_of(value) != wanted:
        raise EvaluationError(f"{name}() takes {wanted}, found {type_of(value)}")
    return value


def check_arguments(name: str, params: tuple[str, ...], args: list[Node], at: int) -> None:
    """Raises BadExpression where a function does not take these arguments."""
    least = sum(not param.endswith(("?", "...")) for param in params)
    open_ended = bool(params) and params[-1].endswith("...")
    if len(args) < least or (len(args) > len(params) and not open_ended):
        raise BadExpression(f"{name}() takes {least} argument{'s' * (least != 1)}, found {len(args)}", at)
    for i, arg in enumerate(args):
        wanted = param(params, i)
        if "any" not in (wanted, arg.type) and arg.type != wanted:
            raise BadExpression(f"{name}() takes {wanted} as argument {i + 1}, found {arg.type}", at)
