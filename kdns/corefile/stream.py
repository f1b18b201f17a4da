"""The tokens that are being read, and the way on after an error.

Theory of operation. Whoever wants the first error gets it raised. Whoever wants all of them gives a list, and then what
is at fault is left out: the line, the import, the brace. Where a brace turns out to be missing, or to be one too many,
the file is read a second time, and then what the lines look like counts too: a line as a server block begins, at the
margin; a directive that stands no deeper than the one whose block is open; a brace that lacks the space before it. So
one missing brace is one error, near its place, and hides nothing after it.
"""

from collections.abc import Container

from kdns.corefile.errors import CorefileError, Position
from kdns.corefile.lexer import Token


class Stream:
    """Tokens and a place among them. `known` are the directives there are (None: any)."""

    def __init__(self, stream: list[Token], known: Container[str] | None) -> None:
        self.stream = stream
        self.known = known
        self.at = 0
        self.errors: list[CorefileError] | None = None
        self.unbalanced = False  # whether a brace is missing, or one too many
        self.again = False  # whether this is the second reading, which knows that
        self.first: Token | None = None  # of the server block or snippet that is open
        self.indented = False  # whether the lines in it stand deeper than it
        self.cut = -1  # where an open block was found to end without its brace
        self.ended = False  # whether it was said that the file ends within a block

    def peek(self) -> Token | None:
        return self.stream[self.at] if self.at < len(self.stream) else None

    def take(self) -> Token:
        token = self.stream[self.at]
        self.at += 1
        return token

    def begins_line(self) -> bool:
        """True if the next token begins a line: another file, or a greater line than the last one's end."""
        if self.at == 0 or self.at >= len(self.stream):
            return True
        before, here = self.stream[self.at - 1], self.stream[self.at]
        return before.at.file != here.at.file or before.last_line < here.at.line

    def fail(self, token: Token | None, message: str) -> CorefileError:
        if token is None:
            last = self.stream[-1] if self.stream else None
            where = Position(last.at.file, last.last_line, last.at.column + len(last.text)) if last else None
            return CorefileError(where, message)
        return CorefileError(token.at, message)

    def note(self, error: CorefileError) -> None:
        """An error that can be read past: raised where nobody gathers them."""
        if self.errors is None:
            raise error
        self.errors.append(error)

    # After an error.

    def skip_line(self) -> None:
        """Leaves out the rest of a line, but for a closing brace that ends it."""
        while (token := self.peek()) is not None and not self.begins_line():
            if token.text == "}" and not token.quoted and self.ends_line(self.at):
                return
            self.take()

    def skip_block(self) -> None:
        """Leaves out a block, from its brace to the one that closes it."""
        depth = 0
        while self.peek() is not None:
            token = self.take()
            if not token.quoted:
                depth += (token.text == "{") - (token.text == "}")
            if depth <= 0:
                return

    def end(self, what: str) -> None:
        """The file ends within a block: said once, of the innermost."""
        if not self.ended:
            last = self.stream[-1]
            open_quote = last.quoted and last.last_line > last.at.line
            hint = f" (does the quote that begins at {last.at} end where it should?)" if open_quote else ""
            self.unbalanced = True
            self.note(self.fail(None, f"expected '}}' to close {what}{hint}"))
        self.ended = True

    def ends_line(self, at: int) -> bool:
        """Whether the token at this place is the last of its line."""
        if at + 1 >= len(self.stream):
            return True
        here, after = self.stream[at], self.stream[at + 1]
        return here.at.file != after.at.file or here.last_line < after.at.line

    def cuts(self, what: str, deeper_than: Token | None = None) -> bool:
        """In the second reading: whether the next line shows that the block that is open (`what`) lacks its brace.

        It does if it looks like the beginning of a server block, and if it is a directive that stands no deeper than
        this one (`deeper_than`), whose options do stand deeper.
        """
        token = self.peek()
        if not self.again or token is None or token.quoted or not self.begins_line():
            return False
        if self.cut == self.at:
            return True
        is_known = self.known is not None and token.text in self.known
        if self.first is not None and token.at.file == self.first.at.file:
            margin = token.at.column <= self.first.at.column
            named = self.indented or token.text.startswith("(") or any(sign in token.text for sign in ".:/")
            if margin and named and not is_known and self._opens_block():
                self.note(self.fail(token, f"expected '}}' to close {what}, found another server block"))
                self.cut = self.at
                return True
        if deeper_than is None or not is_known or token.at.file != deeper_than.at.file:
            return False
        if token.at.column > deeper_than.at.column:
            return False
        self.note(self.fail(token, f"expected '}}' to close {what}, found the next directive"))
        return True

    def _opens_block(self) -> bool:
        at = self.at
        while not self.ends_line(at):
            at += 1
        last = self.stream[at]
        return not last.quoted and last.text.endswith("{")

    def glued(self, token: Token) -> bool:
        """In the second reading: whether a brace opens a block here, and only lacks the space before it."""
        if not self.again or token.quoted or not token.text.endswith("{") or len(token.text) < 2:
            return False
        if not self.begins_line():
            return False
        self.note(self.fail(token, f'"{token.text}": a space is missing before "{{"'))
        return True
