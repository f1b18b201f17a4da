"""A table that finds the rules matching a name without trying each of them.

Theory of operation. Exact, prefix and suffix matches are dictionaries, one for each length there is. Regular
expressions and substrings go through RE2's prefilter, which knows for each of them the literal text without which it
cannot match, and finds all of these in one pass over the name. What it names may fit and is tried by itself; what it
does not name cannot. (RE2's Set, which answers for whole expressions, needs 25 microseconds for a name that it has not
seen, and milliseconds for some thousand expressions; the prefilter needs 5 for either.)

Laws: the places come in the rules' order, and every rule that fits is among them; `met` is what decides.
"""

from collections.abc import Sequence
from typing import Any, Final, final

import re2

from kdns.plugins.rewrite.config import Match
from kdns.regex import Prefilter

FEW: Final = 4  # so few are tried one by one, which is quicker than the tables


@final
class NameTable:
    """The matches of rules, by their place among these."""

    def __init__(self, matches: Sequence[Match]) -> None:
        self.matches = tuple(matches)
        self.regexes = tuple([match.compiled() for match in matches])
        self.exact: dict[str, list[int]] = {}
        self.prefixes: dict[int, dict[str, list[int]]] = {}
        self.suffixes: dict[int, dict[str, list[int]]] = {}
        self.every: tuple[int, ...] = tuple(range(len(matches))) if len(matches) <= FEW else ()
        self.searched: list[int] = []  # the places of regular expressions and substrings
        for at, match in enumerate(matches):
            if match.kind == "exact":
                self.exact.setdefault(match.text, []).append(at)
            elif match.kind == "prefix":
                self.prefixes.setdefault(len(match.text), {}).setdefault(match.text, []).append(at)
            elif match.kind == "suffix":
                self.suffixes.setdefault(len(match.text), {}).setdefault(match.text, []).append(at)
            else:
                self.searched.append(at)
        self.prefilter: Prefilter | None = None
        if self.searched and not self.every:
            texts = [(matches[at].kind, matches[at].text) for at in self.searched]
            self.prefilter = Prefilter([text if kind == "regex" else re2.escape(text) for kind, text in texts])

    def places(self, text: str) -> Sequence[int]:
        """The places of the matches that may fit a name, ascending."""
        if self.every or not self.matches:
            return self.every
        out = list(self.exact.get(text, ()))
        for size, table in self.prefixes.items():
            out += table.get(text[:size], ())
        for size, table in self.suffixes.items():
            out += table.get(text[-size:], ())
        if self.prefilter is not None:
            out += [self.searched[i] for i in self.prefilter.may_match(text)]
        out.sort()
        return out

    def met(self, at: int, text: str) -> Any:
        """Something if the match at a place fits a name (a regular expression's match), else None."""
        match = self.matches[at]
        kind, part = match.kind, match.text
        if kind == "regex":
            return self.regexes[at].search(text)
        if kind == "exact":
            return text == part or None
        if kind == "prefix":
            return text.startswith(part) or None
        if kind == "suffix":
            return text.endswith(part) or None
        return part in text or None
