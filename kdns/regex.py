"""Regular expressions of Corefiles: RE2, which is Go's syntax, and linear in the length of what it is matched with."""

from typing import Any, Final

import re2

MAX_LENGTH: Final = 10_000  # characters of one expression, as CoreDNS

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
        raise BadRegex(f"bad regular expression: {why.decode(errors='replace') if isinstance(why, bytes) else why}") from None
