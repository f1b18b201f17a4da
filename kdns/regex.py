"""Regular expressions of Corefiles: RE2, which is Go's syntax, and linear in the length of what it is matched with."""

from collections.abc import Sequence
from typing import Any, Final

import re2

MAX_LENGTH: Final = 10_000  # characters of one expression, as CoreDNS

# Stands behind every text that a prefilter looks at; no text and no expression of a Corefile holds a zero octet.
_CANARY: Final = "\0~"

_options: Final = re2.Options()
_options.log_errors = False  # it would write to stderr by itself


class BadRegex(ValueError):
    """No regular expression; the text says why."""


def compile_regex(text: str) -> Any:
    """A compiled expression. Raises BadRegex."""
    if len(text) > MAX_LENGTH:
        raise BadRegex(f"a regular expression of {len(text)} characters, at most {MAX_LENGTH} are allowed")
    try:
        return re2.compile(text, _options)
    except re2.error as error:
        why = error.args[0] if error.args else error
        raise BadRegex(
            f"bad regular expression: {why.decode(errors='replace') if isinstance(why, bytes) else why}"
        ) from None


class Prefilter:
    """Finds which of many expressions can match a text, in one pass over it: by the literal text that each of them
    needs.

    Expressions that need none are always among them. Whoever asks tries those that are named: this only leaves out.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts` are expressions that `compile_regex` takes. Raises BadRegex."""
        self.count = len(texts)
        self._filter = re2.Filter()
        try:
            for text in (*texts, _CANARY):
                self._filter.Add(text, _options)
            self._filter.Compile()
        except re2.error as error:
            raise BadRegex(f"bad regular expression: {error}") from None

    def may_match(self, text: str) -> Sequence[int]:
        """The places of the expressions that may match a lower-case text, ascending."""
        found = self._filter.Match(text + _CANARY, True)
        # RE2 says nothing where its memory did not suffice; then what must always be found is missing.
        if not found or found[-1] != self.count:
            return range(self.count)
        return found[:-1]  # type: ignore[no-any-return]
