"""Values, types and errors of expressions. Types are words: what is not known before it is evaluated is `any`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from kdns.regex import BadRegex, compile_regex

# Elements of one array, and characters of one string, that an expression may make: some 0.3 ms of work. expr-lang's
# memory budget is a million, but here an expression runs for each query, on the loop that answers all others.
MAX_SIZE: Final = 10_000
# Elements that all closures of one evaluation look at: 1 to 2 ms.
MAX_STEPS: Final = 10_000

Value = Any


class BadExpression(ValueError):
    """An expression that cannot be compiled; `at` is the offset in its text."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class EvaluationError(Exception):
    """An expression that came to nothing for this query."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the environment. `call` gets the environment's object first, then the arguments."""

    params: tuple[str, ...]
    returns: str
    call: Callable[..., Value]


class Scope:
    """The scope of a running expression: the environment's object, variables, and the elements closures are at."""

    __slots__ = ("env", "items", "names", "steps")

    def __init__(self, env: object, names: Mapping[str, Value]) -> None:
        self.env = env
        self.names = dict(names)
        self.items: list[Value] = []
        self.steps = 0


def type_of(value: Value) -> str:
    """The type's word for a value."""
    for cls, word in _TYPES:
        if isinstance(value, cls):
            return word
    return "any"


_TYPES: Final[tuple[tuple[type, str], ...]] = (
    (bool, "bool"), (int, "int"), (float, "float"), (str, "string"), (list, "array"), (dict, "map"),
    (type(None), "nil"),
    (datetime, "time"),
)  # fmt: skip
NUMBERS: Final = frozenset(("int", "float"))


def text(value: Value) -> str:
    """A value as `string()` and templates show it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nil"
    if isinstance(value, list):
        return "[" + " ".join(text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{text(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def bounded(value: Value) -> Value:
    """The value, if it is of a size that an expression may make. Raises EvaluationError."""
    if isinstance(value, list | str) and len(value) > MAX_SIZE:
        raise EvaluationError("the expression's values are too large: over 10,000 elements or characters")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise EvaluationError("a number over 64 bits")
    return value


_KNOWN: Final[dict[str, Any]] = {}


def regex(pattern: str) -> Any:
    """A compiled RE2. Raises EvaluationError."""
    known = _KNOWN.get(pattern)
    if known is None:
        try:
            known = compile_regex(pattern)
        except BadRegex as error:
            raise EvaluationError(str(error)) from None
        if len(_KNOWN) >= 256:
            _KNOWN.clear()
        _KNOWN[pattern] = known
    return known


def integer(value: Value) -> int:
    """`int()`. Raises EvaluationError."""
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?\d{1,19}", value):
            raise EvaluationError(f"invalid number {value!r}")
        return int(value)
    if isinstance(value, int | float):
        return int(value)
    raise EvaluationError(f"int() of a value of type {type_of(value)}")


def floating(value: Value) -> float:
    """`float()`. Raises EvaluationError."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise EvaluationError(f"invalid number {value!r}") from None
