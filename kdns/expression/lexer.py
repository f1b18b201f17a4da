"""The tokens of an expression, and the values of its literals."""

import math
import re
from typing import Final

from kdns.expression.values import BadExpression

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


def tokens(text: str) -> list[tuple[str, str, int]]:
    """(kind, text, offset) of each token, "end" behind them. Raises BadExpression."""
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


def number(text: str) -> int | float:
    """The value of a number. Raises ValueError for one that has no 64 bits (expr-lang's are Go's)."""
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


def string(text: str) -> str:
    """The text between the quotes of a string."""
    if text[0] == "`":
        return text[1:-1]

    def plain(found: "re.Match[str]") -> str:
        escape = found[1]
        if escape[0] in "xuU" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        return chr(int(escape, 8)) if len(escape) == 3 else _ESCAPES.get(escape, escape)

    return _ESCAPE.sub(plain, text[1:-1])
