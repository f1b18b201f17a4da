"""The operations behind operators and closures. All raise EvaluationError for values of another type."""

from collections.abc import Callable
from typing import Any, Final

from kdns.expression.values import MAX_SIZE, EvaluationError, Value, type_of


def truth(value: Value) -> bool:
    """The value, if it is true or false."""
    if not isinstance(value, bool):
        raise EvaluationError(f"expected true or false, found {type_of(value)}")
    return value


def text(value: Value) -> str:
    """The value, if it is a string."""
    if not isinstance(value, str):
        raise EvaluationError(f"expected a string, found {type_of(value)}")
    return value


def number(value: Value) -> Any:
    """The value, if it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EvaluationError(f"expected a number, found {type_of(value)}")
    return value


def plus(a: Value, b: Value) -> Value:
    """The sum of two numbers, or two strings together."""
    return a + text(b) if isinstance(a, str) else number(a) + number(b)


def remainder(a: Value, b: Value) -> int:
    """The remainder of a division of whole numbers."""
    if not (isinstance(a, int) and isinstance(b, int)):
        raise EvaluationError("% takes whole numbers")
    left = abs(a) % abs(b)  # the sign of the dividend, as in Go
    return -left if a < 0 else left


def numbers(a: Value, b: Value) -> list[int]:
    """The whole numbers from a to b."""
    if not (isinstance(a, int) and isinstance(b, int)) or b - a > MAX_SIZE:
        raise EvaluationError("a range of too many numbers")
    return list(range(a, b + 1))


def within(value: Value, where: Value) -> bool:
    """True if an array or a map has a value."""
    if where is None:
        return False
    if isinstance(where, str):
        raise EvaluationError("in takes an array or a map: use contains for strings")
    return value in where


def element(value: Value, key: Value) -> Value:
    """The value of a map under a key, or of an array or a string at an index."""
    return value.get(key) if isinstance(value, dict) else value[key]


def _grouped(pairs: list[tuple[Value, Value]]) -> dict[Value, list[Value]]:
    out: dict[Value, list[Value]] = {}
    for item, key in pairs:
        out.setdefault(key, []).append(item)
    return out


# What each closure makes of (element, what the closure gave for it).
FINISH: Final[dict[str, Callable[[list[tuple[Value, Value]]], Value]]] = {
    "all": lambda pairs: all(truth(found) for _, found in pairs),
    "any": lambda pairs: any(truth(found) for _, found in pairs),
    "one": lambda pairs: sum(truth(found) for _, found in pairs) == 1,
    "none": lambda pairs: not any(truth(found) for _, found in pairs),
    "map": lambda pairs: [found for _, found in pairs],
    "filter": lambda pairs: [item for item, found in pairs if truth(found)],
    "find": lambda pairs: next((item for item, found in pairs if truth(found)), None),
    "findIndex": lambda pairs: next((i for i, (_, found) in enumerate(pairs) if truth(found)), None),
    "findLast": lambda pairs: next((item for item, found in reversed(pairs) if truth(found)), None),
    "findLastIndex": lambda pairs: next((i for i in range(len(pairs) - 1, -1, -1) if truth(pairs[i][1])), None),
    "count": lambda pairs: sum(truth(found) for _, found in pairs),
    "sortBy": lambda pairs: [item for item, _ in sorted(pairs, key=lambda pair: pair[1])],
    "groupBy": _grouped,
}
