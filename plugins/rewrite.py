"""rewrite - changes questions on their way in, and answers on their way out.

## Syntax

    rewrite [continue|stop] FIELD ...
    rewrite [continue|stop] { FIELD ... }

* `name [exact|prefix|suffix|substring|regex] FROM TO [answer auto | answer name REGEX TO | answer value REGEX TO]`
  changes the name that is asked. Without a kind it is `exact`. Regular expressions are RE2's; `{1}` in TO is a group.
  `answer auto` maps names in the answer back (`exact` always does); `answer name` and `answer value` change owners, or
  names in the data.
* `type FROM TO`, `class FROM TO` change the type or class that is asked.
* `ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|A-B|A-|-B` bounds the TTLs of answers.
* `rcode [exact|prefix|suffix|substring|regex] NAME FROM TO` changes the response code.

Names are compared in lower case, with their final dot; FROM and TO get one if it is missing (a regular expression does
not). With `stop` (default) the first rule that fits is the last; with `continue` the next is tried. The client sees
the question it asked.

## Examples

~~~ corefile
.:1053 {
    rewrite name exact old.example.org new.example.org
    rewrite continue {
        ttl suffix .example.org 30-300
    }
    rewrite name regex (.*)\\.coffee\\.rush {1}.default.svc.cluster.local answer auto
    whoami
}
~~~
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import re2

from kdns.corefile import Directive, Line, Token
from kdns.dns import iana, rdata, wire
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset, Section
from kdns.pipeline import Bare, Outcome, Plugin, Request, setup
from kdns.pipeline.block import BlockKeys

KINDS: Final = ("exact", "prefix", "suffix", "substring", "regex")
MAX_REGEX: Final = 10_000  # characters, as CoreDNS
_NOT_YET: Final = ("edns0", "cname")
Change = Callable[[RRset], RRset]


@dataclass(frozen=True, slots=True)
class Match:
    """How a name is met. `text` is lower-cased and ends in a dot, but for a regex."""

    kind: str
    text: str

    def compiled(self) -> Any:
        return re2.compile(self.text) if self.kind == "regex" else None


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """What to do with an answer: auto, or a regex and a replacement for owners (`name`) or data (`value`)."""

    kind: str
    regex: str = ""
    to: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `numbers` are types, classes, codes or TTL bounds, by field."""

    field: str
    stop: bool
    match: Match = Match("exact", "")
    to: str = ""
    answers: tuple[AnswerRule, ...] = ()
    numbers: tuple[int, int] = (0, 0)


class Rewrite(Plugin):
    """Takes a request through the rules, and its answer back."""

    name: ClassVar[str] = "rewrite"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: BlockKeys) -> Sequence[tuple[Rule, ...]]:
        return [tuple(_rule(directive) for directive in directives)]

    def __init__(self, config: tuple[Rule, ...]) -> None:
        super().__init__(config)
        self.rules = [(rule, rule.match.compiled()) for rule in config]

    def handle(self, request: Request) -> Outcome | None:
        changes: list[Change] = []
        codes: list[tuple[int, int]] = []
        for rule, regex in self.rules:
            try:
                acted = self._apply(rule, regex, request, changes, codes)
            except BadName as error:
                return Bare(iana.SERVFAIL, f"invalid name after rewrite: {error}")
            if acted and rule.stop:
                break
        if changes or codes:
            request.slots[self.position] = (changes, codes)
        return None

    def _apply(self, rule: Rule, regex: Any, request: Request, changes: list[Change], codes: list[tuple[int, int]]) -> bool:
        question = request.question
        if rule.field == "type":
            if question.type != rule.numbers[0]:
                return False
            request.question = Question(question.name, rule.numbers[1], question.cls)
            return True
        if rule.field == "class":
            if question.cls != rule.numbers[0]:
                return False
            request.question = Question(question.name, question.type, rule.numbers[1])
            return True
        text = to_text(question.name)
        found = _met(rule.match, regex, text)
        if found is None:
            return False
        if rule.field == "ttl":
            low, high = rule.numbers
            changes.append(lambda rrset: rrset._replace(ttl=min(max(rrset.ttl, low), high)))
            return True
        if rule.field == "rcode":
            codes.append(rule.numbers)
            return True
        new = _replaced(rule, found, text)
        request.question = Question(from_text(new).lower(), question.type, question.cls)
        for answer in rule.answers:
            changes.append(_change(rule, answer, text, new))
        return True

    def finish(self, request: Request, answer: Answer) -> Answer:
        made = request.slots[self.position]
        if made is None:
            return answer
        changes, codes = made
        rcode = answer.rcode
        for before, after in codes:
            if rcode == before:
                rcode = after
        if not changes:
            return answer.replace(rcode=rcode)
        sections: list[Section] = []
        for section in answer.sections:
            for change in reversed(changes):
                section = tuple(change(rrset) for rrset in section)
            sections.append(section)
        return answer.replace(rcode=rcode, answer=sections[0], authority=sections[1], additional=sections[2])


def _met(match: Match, regex: Any, text: str) -> Any:
    """Something if the name is met (a regex's match), else None."""
    kind, part = match.kind, match.text
    if kind == "regex":
        return regex.search(text)
    if kind == "exact":
        return text == part or None
    if kind == "prefix":
        return text.startswith(part) or None
    if kind == "suffix":
        return text.endswith(part) or None
    return part in text or None


def _replaced(rule: Rule, found: Any, text: str) -> str:
    kind, part, to = rule.match.kind, rule.match.text, rule.to
    if kind == "exact":
        return to
    if kind == "prefix":
        return to + text[len(part) :]
    if kind == "suffix":
        return text[: len(text) - len(part)] + to
    if kind == "substring":
        return text.replace(part, to)
    return _filled(to, found)


def _filled(to: str, found: Any) -> str:
    """A replacement with `{0}`, `{1}` ... filled from a match's groups."""
    for i in range(len(found.groups()) + 1):
        to = to.replace(f"{{{i}}}", found.group(i) or "")
    return to


def _change(rule: Rule, answer: AnswerRule, before: str, after: str) -> Change:
    """What an answer rule does to an RRset; `before` and `after` are the question's name as text."""
    if answer.kind == "auto":
        if rule.match.kind == "suffix":
            new, old = rule.to, rule.match.text
        else:
            new, old = after, before

        def back(name: bytes) -> bytes:
            text = to_text(name).lower()
            whole = text == new or text.endswith("." + new.lstrip("."))
            if rule.match.kind == "suffix":
                whole = text.endswith(new)
            return _name(text[: len(text) - len(new)] + old, name) if whole else name

        return lambda rrset: _map_data(rrset._replace(owner=back(rrset.owner)), back)
    regex: Any = re2.compile(answer.regex)

    def mapped(name: bytes) -> bytes:
        text = to_text(name).lower()
        found = regex.search(text)
        return name if found is None else _name(_filled(answer.to, found), name)

    if answer.kind == "name":
        return lambda rrset: rrset._replace(owner=mapped(rrset.owner))
    return lambda rrset: _map_data(rrset, mapped)


def _name(text: str, otherwise: bytes) -> bytes:
    try:
        return from_text(text)
    except BadName:
        return otherwise


def _map_data(rrset: RRset, change: Callable[[bytes], bytes]) -> RRset:
    """An RRset with the names in its data changed (the first of an SOA's two)."""
    layout = rdata.NAMES_AT.get(rrset.type)
    if layout is None:
        return rrset
    before = layout[0]
    out = []
    for data in rrset.rdatas:
        end = wire.skip_name(data, before)
        out.append(data[:before] + change(data[before:end]) + data[end:])
    return rrset._replace(rdatas=tuple(out))


# Reading the directive.


def _rule(directive: Directive) -> Rule:
    words = list(directive.args)
    if directive.body is not None:
        words += [word for line in directive.body for word in _words(line)]
    stop = True
    if words and words[0].text in ("continue", "stop"):
        stop = words.pop(0).text == "stop"
    if not words:
        raise setup.fail(directive, "expected a field: name, type, class, ttl or rcode")
    field = words.pop(0)
    if field.text in _NOT_YET:
        raise setup.fail(field, f"rewrite {field.text} is known from CoreDNS, but this version of kdns does not have it yet")
    if field.text in ("type", "class"):
        return _numbers_rule(field, words, stop)
    if field.text == "name":
        return _name_rule(field, words, stop)
    if field.text == "ttl":
        match, words = _match(field, words, 1)
        return Rule("ttl", stop, match, numbers=_bounds(words[0]))
    if field.text == "rcode":
        match, words = _match(field, words, 2)
        return Rule("rcode", stop, match, numbers=(_rcode(words[0]), _rcode(words[1])))
    raise setup.unknown(Line(field, ()), ("name", "type", "class", "ttl", "rcode", *_NOT_YET))


def _words(line: Line) -> list[Token]:
    return [line.name, *line.args, *(word for inner in line.body or () for word in _words(inner))]


def _numbers_rule(field: Token, words: list[Token], stop: bool) -> Rule:
    if len(words) != 2:
        raise setup.fail(field, f"rewrite {field.text} takes FROM TO")
    read = iana.type_number if field.text == "type" else iana.class_number
    numbers = []
    for word in words:
        number = read(word.text)
        if number is None:
            raise setup.fail(word, f'"{word.text}" is no {field.text}')
        numbers.append(number)
    return Rule(field.text, stop, numbers=(numbers[0], numbers[1]))


def _match(field: Token, words: list[Token], behind: int) -> tuple[Match, list[Token]]:
    """The match of a rule, with or without its kind, and the `behind` words after it."""
    kind = "exact"
    if len(words) == behind + 2 and words[0].text in KINDS:
        kind = words.pop(0).text
    if len(words) != behind + 1:
        raise setup.fail(field, f"rewrite {field.text}: wrong number of arguments")
    return _made(kind, words[0]), words[1:]


def _made(kind: str, word: Token) -> Match:
    if kind == "regex":
        _checked(word)
        return Match(kind, word.text)
    return Match(kind, _dotted(word.text))


def _checked(word: Token) -> Any:
    if len(word.text) > MAX_REGEX:
        raise setup.fail(word, f"a regular expression of {len(word.text)} characters, at most {MAX_REGEX} are allowed")
    try:
        return re2.compile(word.text)
    except re2.error as error:
        raise setup.fail(word, f"bad regular expression: {error}") from None


def _dotted(text: str) -> str:
    text = text.lower()
    return text if text.endswith(".") else text + "."


def _name_rule(field: Token, words: list[Token], stop: bool) -> Rule:
    if len(words) < 2:
        raise setup.fail(field, "rewrite name takes [exact|prefix|suffix|substring|regex] FROM TO")
    kind = "exact"
    if len(words) > 2:
        if words[0].text not in KINDS:
            raise setup.fail(words[0], f'expected {", ".join(KINDS)}, found "{words[0].text}"')
        kind = words.pop(0).text
    if len(words) < 2:
        raise setup.fail(field, "rewrite name takes [exact|prefix|suffix|substring|regex] FROM TO")
    match, to = _made(kind, words[0]), words[1]
    if kind == "regex":
        _references(to, _checked(words[0]).groups)
    answers = _answers(words[2:], kind)
    if kind == "exact":
        answers = (AnswerRule("auto"), *(answer for answer in answers if answer.kind != "auto"))
    return Rule("name", stop, match, to.text.lower() if kind == "regex" else _dotted(to.text), answers)


def _references(to: Token, groups: int) -> None:
    used = [i for i in range(101) if f"{{{i}}}" in to.text]
    if any(i > groups for i in used):
        raise setup.fail(to, f"the regular expression has {groups} groups, and {{{max(used)}}} is not one of them")


def _answers(words: list[Token], kind: str) -> tuple[AnswerRule, ...]:
    out: list[AnswerRule] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.text == "answer" and rest:
            word = rest.pop(0)
        elif not out and word.text != "answer":
            raise setup.fail(word, f'expected "answer", found "{word.text}"')
        if word.text == "auto":
            out.append(AnswerRule("auto"))
        elif word.text in ("name", "value") and len(rest) >= 2:
            regex, to = rest.pop(0), rest.pop(0)
            _references(to, _checked(regex).groups)
            out.append(AnswerRule(word.text, regex.text, to.text))
        else:
            raise setup.fail(word, f'expected auto, name REGEX TO or value REGEX TO, found "{word.text}"')
    kinds = [answer.kind for answer in out]
    if "auto" in kinds and "name" in kinds:
        raise setup.fail(words[0], "answer auto and answer name cannot both be set")
    return tuple(out)


def _bounds(word: Token) -> tuple[int, int]:
    text = word.text
    most = 0x7FFFFFFF
    low, dash, high = text.partition("-")
    try:
        if text == "-":
            raise ValueError
        if not dash:
            return int(text), int(text)
        bounds = (int(low or 0), int(high or most))
    except ValueError:
        raise setup.fail(word, f'expected SECONDS, A-B, A- or -B, found "{text}"') from None
    if bounds[0] > bounds[1]:
        raise setup.fail(word, f'the bounds "{text}" are the wrong way round')
    return bounds


def _rcode(word: Token) -> int:
    number = iana.rcode_number(word.text)
    if number is None and word.text.isdecimal() and int(word.text) <= 23:
        number = int(word.text)
    if number is None:
        raise setup.fail(word, f'"{word.text}" is no response code')
    return number
