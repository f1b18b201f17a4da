"""The part of Go's text/template that Corefiles use: `{{ .Name }}`, `{{ index .Match 1 }}`, `{{ .Group.a | parseInt 16
}}`.

A template is text with actions in `{{ }}` (`{{-` and `-}}` trim white space). An action is a pipeline of commands; the
value of each is the last argument of the next. Operands are fields of the query (`.Name`, `.Group.x`), strings,
numbers, and pipelines in brackets. There are no conditions and no loops: what is not here is refused when the Corefile
is read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

MAX_DIGITS: Final = 19  # of a number; Go's are of 64 bits
_TOKEN: Final = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*"|`[^`]*`)|(-?\d+)|(\.[A-Za-z0-9_.]*)|([A-Za-z]\w*)|([|()]))')
_ACTION: Final = re.compile(r"\{\{(-?)(.*?)(-?)\}\}", re.S)
_ESCAPE: Final = re.compile(r"\\(.)")
MAX_OUTPUT: Final = 4096  # characters one template may come to: a record's text is far shorter

Value = Any
Fields = Mapping[str, Value]
Node = Callable[[Fields], Value]
FIELDS: Final = frozenset(
    ("Name", "Zone", "Class", "Type", "Match", "Group", "Message", "Question", "Remote", "Meta", "Var")
)


class BadTemplate(ValueError):
    """A template that cannot be read, or not be filled."""


class Template:
    """A compiled template."""

    def __init__(self, text: str) -> None:
        self.parts: list[str | Node] = []
        at = 0
        trim = False
        for found in _ACTION.finditer(text):
            before = text[at : found.start()]
            if trim:
                before = before.lstrip()
            self.parts.append(before.rstrip() if found[1] else before)
            self.parts.append(_Parser(found[2]).whole())
            at, trim = found.end(), bool(found[3])
        rest = text[at:].lstrip() if trim else text[at:]
        if "{{" in rest:
            raise BadTemplate("an action is not closed: }} is missing")
        self.parts.append(rest)

    def fill(self, fields: Fields) -> str:
        """The text for a query. Raises BadTemplate."""
        out = "".join(part if isinstance(part, str) else _text(part(fields)) for part in self.parts)
        if len(out) > MAX_OUTPUT:
            raise BadTemplate(f"a record of over {MAX_OUTPUT} characters")
        return out


def _text(value: Value) -> str:
    if isinstance(value, Mapping | list | tuple):
        raise BadTemplate("a list or map is not a string: use index")
    return str(value)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None:
                raise BadTemplate(f"cannot read {text[at:].strip()!r}")
            kind = ("string", "number", "field", "name", "sign")[(found.lastindex or 1) - 1]
            self.tokens.append((kind, found[found.lastindex or 1]))
            at = found.end()
        self.at = 0

    def whole(self) -> Node:
        node = self.pipeline()
        if self.at < len(self.tokens):
            raise BadTemplate(f"unexpected {self.tokens[self.at][1]!r}")
        return node

    def pipeline(self) -> Node:
        node = self.command(None)
        while self.peek() == ("sign", "|"):
            self.at += 1
            node = self.command(node)
        return node

    def peek(self) -> tuple[str, str] | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def command(self, last: Node | None) -> Node:
        kind, text = self.peek() or ("", "")
        if kind == "name":
            function = _FUNCTIONS.get(text)
            if function is None:
                known = ", ".join(sorted(_FUNCTIONS))
                raise BadTemplate(f'"{text}" is not a function of these templates (they know: {known})')
            self.at += 1
            args = self.operands() + ([last] if last is not None else [])
            return lambda fields: _call(function, [arg(fields) for arg in args])
        operands = self.operands()
        if not operands:
            raise BadTemplate("an action is empty")
        if last is not None:
            raise BadTemplate("only a function may follow |")
        if len(operands) > 1:
            # `.Meta "label"`: a method with arguments.
            first, rest = operands[0], operands[1:]
            return lambda fields: _call(_method, [first(fields), *(arg(fields) for arg in rest)])
        return operands[0]

    def operands(self) -> list[Node]:
        out: list[Node] = []
        while (token := self.peek()) is not None and token[0] != "name" and token[1] not in ("|", ")"):
            self.at += 1
            kind, text = token
            if kind == "string":
                literal = text[1:-1] if text[0] == "`" else _ESCAPE.sub(r"\1", text[1:-1])
                out.append(_constant(literal))
            elif kind == "number":
                if len(text) > MAX_DIGITS:
                    raise BadTemplate(f'the number "{text[:MAX_DIGITS]}..." is too large')
                out.append(_constant(int(text)))
            elif kind == "field":
                out.append(_field(text))
            else:
                inner = self.pipeline()
                if self.peek() != ("sign", ")"):
                    raise BadTemplate("a bracket is not closed")
                self.at += 1
                out.append(inner)
        return out


def _constant(value: Value) -> Node:
    return lambda fields: value


def _field(text: str) -> Node:
    path = [part for part in text.split(".") if part]
    if path and path[0] not in FIELDS:
        raise BadTemplate(f'".{path[0]}" is not a field of a query (there are: {", ".join(sorted(FIELDS))})')

    def read(fields: Fields) -> Value:
        value: Value = fields
        for part in path:
            if not isinstance(value, Mapping):
                raise BadTemplate(f"{text} has no value")
            value = value.get(part, "")
        return value

    return read


def _call(function: Callable[..., Value], args: Sequence[Value]) -> Value:
    try:
        return function(*args)
    except BadTemplate:
        raise
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise BadTemplate(str(error)) from None


def _method(value: Value, *args: Value) -> Value:
    if not callable(value):
        raise BadTemplate("it takes no arguments")
    return value(*args)


def _index(value: Value, key: Value) -> Value:
    if isinstance(value, Mapping):
        return value.get(str(key), "")
    return value[int(key)]


def _parse_int(text: Value, base: Value = 10, bits: Value = 64) -> int:
    """A number as Go's strconv.ParseUint reads it. Arguments as CoreDNS has them: text, base, bits."""
    number = int(str(text), int(base))
    if number < 0 or number >= 1 << (int(bits) or 64):
        raise BadTemplate(f"{text} does not fit in {bits} bits")
    return number


def _printf(form: Value, *args: Value) -> str:
    text = str(form)
    for verb in _VERB.finditer(text):
        if any(number == "*" or len(number) > 3 for number in verb.groups("")):
            raise BadTemplate(f'"{verb[0]}": a width and a precision are at most {MAX_WIDTH}')
    return re.sub(r"%v", "%s", text) % args


# Digits of a width or a precision of printf: `%999999999d` made a text of a gigabyte. No record is that wide.
MAX_WIDTH: Final = 999
_VERB: Final = re.compile(r"%[-+# 0]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?")


_FUNCTIONS: Final[dict[str, Callable[..., Value]]] = {
    "index": _index,
    "parseInt": _parse_int,
    "print": lambda *args: "".join(str(arg) for arg in args),
    "printf": _printf,
    "len": len,
}
