"""The functions of expr-lang that need no closure: name -> (types of parameters, type of the result, function).

A parameter's `?` means that it may be left out, `...` that it may be repeated. `type` is not among them: in a Corefile
it is the query's.
"""

import base64
import binascii
import itertools
import json
import math
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from kdns.expression.values import MAX_SIZE, EvaluationError, Value, bounded, floating, integer, text, type_of


def _number(value: Value) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EvaluationError(f"expected a number, found {type_of(value)}")
    return value


def _numbers(args: tuple[Value, ...]) -> list[Any]:
    out: list[Any] = []
    for arg in args:
        out += _numbers(tuple(arg)) if isinstance(arg, list) else [_number(arg)]
    if not out:
        raise EvaluationError("not enough arguments")
    return out


def _split(value: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if not separator:
        return list(value)
    return value.split(separator, limit - 1 if limit > 0 else -1)


def _split_after(value: str, separator: str, limit: int = -1) -> list[str]:
    parts = _split(value, separator, limit)
    return [part + separator for part in parts[:-1]] + parts[-1:]


def _repeat(value: str, count: int) -> str:
    if count < 0 or count * len(value) > MAX_SIZE:
        raise EvaluationError("the result of repeat() is too large")
    return value * count


def _get(value: Value, key: Value) -> Value:
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list | str) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else None
    return None


def _flatten(value: list[Value]) -> list[Value]:
    out: list[Value] = []
    for item in value:
        out += _flatten(item) if isinstance(item, list) else [item]
    return out


def _uniq(value: list[Value]) -> list[Value]:
    out: list[Value] = []
    for item in value:
        if item not in out:
            out.append(item)
    return out


def _sort(value: list[Value], order: str = "asc") -> list[Value]:
    try:
        return sorted(value, reverse=order == "desc")
    except TypeError:
        raise EvaluationError("the elements cannot be compared") from None


def _from_json(value: str) -> Value:
    try:
        return json.loads(value)
    except ValueError as error:
        raise EvaluationError(f"fromJSON: {error}") from None


def _from_base64(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise EvaluationError(f"fromBase64: {error}") from None


def _shift(value: int, by: int) -> int:
    if not 0 <= by < 64:
        raise EvaluationError("a shift by that many bits")
    return value >> by


def _left(value: int, by: int) -> int:
    if not 0 <= by < 64:
        raise EvaluationError("a shift by that many bits")
    shifted = value << by & (1 << 64) - 1
    return shifted - (1 << 64) if shifted >> 63 else shifted


def _round(value: Value) -> float:
    number = _number(value)
    return float(math.floor(abs(number) + 0.5) * (1 if number >= 0 else -1))  # half away from zero, as in Go


FUNCTIONS: Final[dict[str, tuple[tuple[str, ...], str, Callable[..., Value]]]] = {
    "len": (("any",), "int", len),
    "upper": (("string",), "string", str.upper),
    "lower": (("string",), "string", str.lower),
    "trim": (("string", "string?"), "string", lambda value, cut=None: value.strip(cut)),
    "trimPrefix": (("string", "string?"), "string", lambda value, cut=" ": value.removeprefix(cut)),
    "trimSuffix": (("string", "string?"), "string", lambda value, cut=" ": value.removesuffix(cut)),
    "split": (("string", "string", "int?"), "array", _split),
    "splitAfter": (("string", "string", "int?"), "array", _split_after),
    "replace": (("string", "string", "string"), "string", lambda value, old, new: bounded(value.replace(old, new))),
    "repeat": (("string", "int"), "string", _repeat),
    "indexOf": (("string", "string"), "int", str.find),
    "lastIndexOf": (("string", "string"), "int", str.rfind),
    "hasPrefix": (("string", "string"), "bool", str.startswith),
    "hasSuffix": (("string", "string"), "bool", str.endswith),
    "join": (("array", "string?"), "string", lambda value, by="": by.join(text(item) for item in value)),
    "abs": (("any",), "any", lambda value: abs(_number(value))),
    "ceil": (("any",), "float", lambda value: float(math.ceil(_number(value)))),
    "floor": (("any",), "float", lambda value: float(math.floor(_number(value)))),
    "round": (("any",), "float", _round),
    "int": (("any",), "int", integer),
    "float": (("any",), "float", floating),
    "string": (("any",), "string", text),
    "min": (("any", "any..."), "any", lambda *args: min(_numbers(args))),
    "max": (("any", "any..."), "any", lambda *args: max(_numbers(args))),
    "sum": (("array",), "any", lambda value: bounded(sum(_numbers((value, 0))))),
    "mean": (("any", "any..."), "float", lambda *args: float(statistics.fmean(_numbers(args)))),
    "median": (("any", "any..."), "float", lambda *args: float(statistics.median(_numbers(args)))),
    "first": (("array",), "any", lambda value: value[0] if value else None),
    "last": (("array",), "any", lambda value: value[-1] if value else None),
    "take": (("array", "int"), "array", lambda value, count: value[: max(count, 0)]),
    "reverse": (("array",), "array", lambda value: value[::-1]),
    "sort": (("array", "string?"), "array", _sort),
    "uniq": (("array",), "array", _uniq),
    "concat": (("array", "array..."), "array", lambda *args: bounded(list(itertools.chain(*args)))),
    "flatten": (("array",), "array", _flatten),
    "keys": (("map",), "array", lambda value: sorted(value, key=str)),
    "values": (("map",), "array", lambda value: [value[key] for key in sorted(value, key=str)]),
    "toPairs": (("map",), "array", lambda value: [[key, value[key]] for key in sorted(value, key=str)]),
    "fromPairs": (("array",), "map", lambda value: {pair[0]: pair[1] for pair in value}),
    "get": (("any", "any"), "any", _get),
    "toJSON": (("any",), "string", lambda value: json.dumps(value, indent=2, ensure_ascii=False)),
    "fromJSON": (("string",), "any", _from_json),
    "toBase64": (("string",), "string", lambda value: base64.b64encode(value.encode()).decode()),
    "fromBase64": (("string",), "string", _from_base64),
    "bitand": (("int", "int"), "int", lambda a, b: a & b),
    "bitor": (("int", "int"), "int", lambda a, b: a | b),
    "bitxor": (("int", "int"), "int", lambda a, b: a ^ b),
    "bitnand": (("int", "int"), "int", lambda a, b: a & ~b),  # expr-lang's name for Go's &^
    "bitnot": (("int",), "int", lambda a: ~a),
    "bitshl": (("int", "int"), "int", _left),
    "bitshr": (("int", "int"), "int", _shift),
    "bitushr": (("int", "int"), "int", lambda a, by: _shift(a & (1 << 64) - 1, by)),
    "now": ((), "time", lambda: datetime.now(UTC).astimezone()),
}

# Methods of a time, as of Go's time.Time.
METHODS: Final[dict[str, Callable[[datetime], Value]]] = {
    "Year": lambda when: when.year,
    "Month": lambda when: when.month,
    "Day": lambda when: when.day,
    "YearDay": lambda when: when.timetuple().tm_yday,
    "Weekday": lambda when: when.isoweekday() % 7,  # Sunday is 0
    "Hour": lambda when: when.hour,
    "Minute": lambda when: when.minute,
    "Second": lambda when: when.second,
    "Unix": lambda when: int(when.timestamp()),
    "UTC": lambda when: when.astimezone(UTC),
}
# Functions that take a closure: name -> type of the result.
CLOSURES: Final = {
    "all": "bool", "any": "bool", "one": "bool", "none": "bool", "map": "array", "filter": "array", "find": "any",
    "findIndex": "any", "findLast": "any", "findLastIndex": "any", "count": "int", "sortBy": "array", "groupBy": "map",
}  # fmt: skip
