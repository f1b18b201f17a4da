"""A Corefile's text in one style: four spaces a level, one space between words, comments kept. What it means stays.

Law: the tokens of the result are the tokens of the text, on the same lines among each other; formatting what is
formatted changes nothing.
"""

from typing import Final

from kdns.corefile.errors import CorefileError, Position
from kdns.corefile.lexer import Token, tokens

INDENT: Final = "    "


def formatted(text: str) -> str:
    """The text in one style. Lines inside quotes are left as they are, and so is a text that would come to mean another
    thing (one whose last quote is missing)."""
    made = _formatted(text)
    return made if same(text, made) else text


def check_braces(text: str, name: str) -> None:
    """Raises CorefileError at a brace that has no partner. What a Corefile says is not looked at."""
    opened: list[Position] = []
    last: Token | None = None
    for token in tokens(text, name):
        if last is not None and last.text == "{" and not last.quoted and last.last_line != token.at.line:
            opened.append(last.at)
        begins = last is None or last.last_line != token.at.line
        if begins and token.text == "}" and not token.quoted:
            if not opened:
                raise CorefileError(token.at, "unexpected '}': no block is open")
            opened.pop()
        last = token
    if last is not None and last.text == "{" and not last.quoted:
        opened.append(last.at)
    if opened:
        raise CorefileError(opened[-1], "no '}' closes this block")


def _formatted(text: str) -> str:
    out: list[str] = []
    depth = 0
    blank = False
    for words, comment in _lines(text):
        if not words and not comment:
            blank = bool(out)
            continue
        closes = bool(words) and words[0] == "}"
        if closes:
            depth = max(depth - 1, 0)
        # An empty line stays where it parts things, not at the edges of a block.
        if blank and not closes and not out[-1].endswith("{"):
            out.append("")
        blank = False
        line = " ".join(words)
        if comment:
            line += (" " if line else "") + comment
        out.append(INDENT * depth + line)
        if words and words[-1] == "{":
            depth += 1
    return "\n".join(out) + "\n" if out else ""


def same(one: str, other: str) -> bool:
    """True if two texts hold the same tokens, broken into lines at the same places."""
    return _shape(one) == _shape(other)


def _shape(text: str) -> list[list[tuple[str, bool]]]:
    lines: dict[int, list[tuple[str, bool]]] = {}
    for token in tokens(text, ""):
        lines.setdefault(token.at.line, []).append((token.text, token.quoted))
    return [lines[number] for number in sorted(lines)]


def _lines(text: str) -> list[tuple[list[str], str]]:
    """The words of each line as they are written, quotes and all, and its comment."""
    out: list[tuple[list[str], str]] = []
    words: list[str] = []
    word = ""
    comment = ""
    quoted = escaped = False
    for char in text.removeprefix("\ufeff").replace("\r\n", "\n") + "\n":
        if quoted:
            word += char
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = False
                words.append(word)
                word = ""
            continue
        if comment and char != "\n":
            comment += char
        elif char == "\n":
            if word:
                words.append(word)
            out.append((words, comment.rstrip()))
            words, word, comment = [], "", ""
        elif char.isspace():
            if word:
                words.append(word)
                word = ""
        elif char == "#":
            comment = char
        elif char == '"' and not word:
            quoted = True
            word = char
        else:
            word += char
    if quoted:
        out.append(([*words, word.removesuffix("\n")], ""))
    return out[:-1] if out and out[-1] == ([], "") else out
