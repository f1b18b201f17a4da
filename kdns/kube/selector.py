"""Label selectors, as objects have them and as `kubectl -l` takes them: `a=b, c!=d, e in (f,g), h notin (i), j, !k`."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_KEY: Final = r"(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_VALUE: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
_SET: Final = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)\Z")
_EQUAL: Final = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})\Z")
_EXISTS: Final = re.compile(rf"(!?)\s*({_KEY})\Z")


class BadSelector(ValueError):
    """A text that is not a label selector."""


class Term(NamedTuple):
    """What one label must be."""

    key: str
    negated: bool
    values: frozenset[str] | None  # None: the key alone decides

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True if these labels are so."""
        value = labels.get(self.key)
        if self.values is None:
            return (value is not None) != self.negated
        if self.negated:
            return value not in self.values
        return value is not None and value in self.values


class Selector(NamedTuple):
    """Terms that must all match; `text` is what the API is given."""

    text: str = ""
    terms: tuple[Term, ...] = ()

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """True if an object with these labels is selected."""
        return all(term.matches(labels or {}) for term in self.terms)


EVERYTHING: Final = Selector()


def parse(text: str) -> Selector:
    """Reads a selector. Raises BadSelector."""
    terms = []
    for part in re.split(r",(?![^()]*\))", text):
        word = part.strip()
        if found := _SET.match(word):
            values = frozenset(value.strip() for value in found[3].split(","))
            if any(not re.fullmatch(_VALUE, value) for value in values):
                raise BadSelector(f'"{word}" holds a value that no label can have')
            terms.append(Term(found[1], found[2] == "notin", values))
        elif found := _EQUAL.match(word):
            terms.append(Term(found[1], found[2] == "!=", frozenset((found[3],))))
        elif found := _EXISTS.match(word):
            terms.append(Term(found[2], found[1] == "!", None))
        else:
            raise BadSelector(
                f'"{word}" is not a label selector: expected key=value, key!=value, key in (a,b), key or !key'
            )
    return Selector(text, tuple(terms))


def terms(
    labels: Mapping[str, str] | None, expressions: Iterable[tuple[str, str, Iterable[str]]] = ()
) -> tuple[Term, ...]:
    """A LabelSelector of an object (meta/v1): its `matchLabels`, and its `matchExpressions` as (key, operator, values).

    An operator that there is not selects nothing.
    """
    out = [Term(key, False, frozenset((value,))) for key, value in sorted((labels or {}).items())]
    for key, operator, values in expressions:
        if operator in ("Exists", "DoesNotExist"):
            out.append(Term(key, operator == "DoesNotExist", None))
        else:
            known = operator in ("In", "NotIn")
            out.append(Term(key, operator == "NotIn", frozenset(values) if known else frozenset()))
    return tuple(out)
