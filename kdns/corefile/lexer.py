"""Tokens of a Corefile, by the rules of CoreDNS's lexer.

White space separates; `"` quotes only as a token's first character, and its closing quote ends the token at once;
inside quotes `\\"` is the only escape; an unquoted `#` begins a comment even in mid-token. `\\r` outside quotes is
dropped. An unterminated quote takes the rest of the file.
"""

from typing import NamedTuple

from kdns.corefile.errors import Position

# Unicode's White_Space property, which Go's unicode.IsSpace follows. str.isspace also takes U+001C to U+001F.
_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


class Token(NamedTuple):
    """A word: its text, where it begins, and the line it ends on (a quoted token may span lines)."""

    text: str
    at: Position
    last_line: int
    quoted: bool = False

    @property
    def line(self) -> tuple[str, int]:
        """The line it begins on: file and number."""
        return self.at.file, self.at.line


def tokens(text: str, file: str) -> list[Token]:  # noqa: C901 - one loop over characters: the states of a lexer
    """The tokens of a file's text; `file` is the name that positions carry."""
    out: list[Token] = []
    word: list[str] = []
    begin = Position(file, 1, 1)
    quoted = comment = escaped = False
    line, column = 1, 0

    def close(was_quoted: bool) -> None:
        out.append(Token("".join(word), begin, line, was_quoted))
        word.clear()

    for char in text.removeprefix("\ufeff"):
        column += 1
        if quoted:
            if escaped:
                if char != '"':
                    word.append("\\")
                word.append(char)
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                close(True)
                quoted = False
            else:
                word.append(char)
        elif char in _SPACE:
            if word and char != "\r":
                # A comment glued to a token ends with the token: `foo#bar baz` reads as `foo` and `baz`. So does
                # CoreDNS.
                close(False)
                comment = False
            if char == "\n":
                comment = False
        elif comment:
            pass
        elif char == "#":
            comment = True
        elif char == '"' and not word:
            begin = Position(file, line, column)
            quoted = True
        else:
            if not word:
                begin = Position(file, line, column)
            word.append(char)
        if char == "\n":
            line += 1
            column = 0
    if escaped:
        word.append("\\")
    if word:
        close(quoted)
    return out
