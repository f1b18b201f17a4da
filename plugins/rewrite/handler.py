"""The plugin `rewrite` in the query path: rules on the way in, changes on the way out."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata, wire
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset, Section
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, then
from kdns.plugins.rewrite.config import AnswerRule, Label, Match, Part, Rule, read
from kdns.plugins.rewrite.options import apply
from kdns.regex import compile_regex

Change = Callable[[RRset], RRset]
_log = log.plugin("rewrite")


class Changes(NamedTuple):
    """What is to be done to a query's answer."""

    records: list[Change]
    codes: list[tuple[int, int]]
    targets: list[tuple[Rule, Any]]


class Rewrite(Plugin):
    """Takes a request through the rules, and its answer back."""

    name: ClassVar[str] = "rewrite"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Rule, ...]]:
        return [tuple(read(directive) for directive in directives)]

    def __init__(self, config: tuple[Rule, ...]) -> None:
        super().__init__(config)
        self.rules = [(rule, rule.match.compiled()) for rule in config]

    def handle(self, request: Request) -> Outcome | None:
        changes = Changes([], [], [])
        for rule, regex in self.rules:
            try:
                acted = self._apply(rule, regex, request, changes)
            except BadName as error:
                return RcodeOnly(iana.SERVFAIL, f"invalid name after rewrite: {error}")
            if acted and rule.stop:
                break
        if any(changes):
            request.slots[self.position] = changes
        return None

    def _apply(self, rule: Rule, regex: Any, request: Request, changes: Changes) -> bool:
        """Does what a rule says of the question, and notes what it says of the answer; whether it fitted."""
        question = request.question
        if rule.option is not None:
            return apply(rule.option, request)
        if rule.field == "cname":
            changes.targets.append((rule, regex))
            return False
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
            changes.records.append(lambda rrset: rrset._replace(ttl=min(max(rrset.ttl, low), high)))
            return True
        if rule.field == "rcode":
            changes.codes.append(rule.numbers)
            return True
        new = _expanded(rule.parts, found, request) if rule.parts else _replaced(rule, found, text)
        if new is None:
            return False
        name = from_text(new).lower()
        request.question = Question(name, question.type, question.cls)
        for answer in rule.answers:
            changes.records.append(_change(rule, answer, text, to_text(name)))
        return True

    def on_answer(self, request: Request, answer: Answer) -> Answer | Awaitable[Answer]:
        changes: Changes | None = request.slots[self.position]
        if changes is None:
            return answer
        if changes.targets and any(rrset.type == iana.CNAME for rrset in answer.answer):
            found: Answer | Awaitable[Answer] = self._retarget(request, answer, changes)
            return found
        return self._changed(request, changes, answer)

    def _retarget(self, request: Request, answer: Answer, changes: Changes) -> Any:
        """Gives the first CNAME that a rule meets its new target, and what that resolves to (then the other changes)."""
        for i, rrset in enumerate(answer.answer):
            if rrset.type != iana.CNAME:
                continue
            text = to_text(rrset.rdatas[0].lower())
            for rule, regex in changes.targets:
                found = _met(rule.match, regex, text)
                if found is None:
                    continue
                try:
                    target = from_text(_replaced(rule, found, text)).lower()
                except BadName as error:
                    _log.error(f"invalid name after rewrite: {error}")
                    return self._changed(request, changes, answer)
                # A chain may come in any order; what led here stays.
                kept = [known for known in answer.answer[:i] if known.type == iana.CNAME]
                kept.append(rrset._replace(rdatas=(target,)))
                looked_up = request.lookup(target, request.question.type)
                return then(looked_up, partial(self._joined, request, changes, answer, kept))
        return self._changed(request, changes, answer)

    def _joined(self, request: Request, changes: Changes, answer: Answer, kept: list[RRset], outcome: Outcome) -> Answer:
        if type(outcome) is not Answer or outcome.rcode not in (iana.NOERROR, iana.NXDOMAIN):
            _log.error(f"upstream lookup failed: {outcome!r}")
            return self._changed(request, changes, answer)
        # RFC 6604, section 3: the code is that of the last name.
        joined = answer.replace(
            rcode=outcome.rcode,
            flags=answer.flags & ~iana.AD | outcome.flags & iana.TC,
            answer=(*kept, *outcome.answer),
            authority=outcome.authority,
            additional=(),
            validity=request.inherit(answer),  # that of the target was noted by the look-up
        )
        return self._changed(request, changes, joined)

    def _changed(self, request: Request, changes: Changes, answer: Answer) -> Answer:
        rcode = answer.rcode
        for before, after in changes.codes:
            if rcode == before:
                rcode = after
        if not changes.records:
            return answer if rcode == answer.rcode else answer.replace(rcode=rcode, validity=answer.validity)
        sections: list[Section] = []
        for section in answer.sections:
            for change in reversed(changes.records):
                section = tuple(change(rrset) for rrset in section)
            sections.append(section)
        # Nobody has validated what a rule makes of it.
        flags = answer.flags & ~iana.AD
        return answer.replace(
            rcode=rcode, flags=flags, answer=sections[0], authority=sections[1], additional=sections[2],
            validity=request.inherit(answer),
        )  # fmt: skip


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


def _expanded(parts: tuple[Part, ...], found: Any, request: Request) -> str | None:
    """A replacement with this query's groups and labels; None where a label has no value. What is put in is only text."""
    out = []
    for part in parts:
        value = part if isinstance(part, str) else found.group(part) if isinstance(part, int) else request.label(part.name)
        if isinstance(part, Label) and not value:
            return None
        out.append(value or "")
    return "".join(out)


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
    regex: Any = compile_regex(answer.regex)

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
