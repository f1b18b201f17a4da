"""The plugin `rewrite` in the query path: rules on the way in, changes on the way out."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, Final

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana, rdata, wire
from kdns.dns.answer import Answer
from kdns.dns.errors import BadName
from kdns.dns.name import from_text, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset, Section
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, then
from kdns.plugins.rewrite.config import AnswerRule, Label, Part, Rule, read
from kdns.plugins.rewrite.options import apply
from kdns.plugins.rewrite.table import NameTable
from kdns.regex import compile_regex

Change = Callable[[RRset], RRset]
_log = log.plugin("rewrite")


# The fields whose rules fit by the name: a run of them is looked up as one.
_BY_NAME: Final = frozenset(("name", "ttl", "rcode"))


@dataclass(slots=True)
class Changes:
    """What is to be done to a query's answer. `targets` is how many of the block's cname rules count for it."""

    records: list[Change] = field(default_factory=list)
    codes: list[tuple[int, int]] = field(default_factory=list)
    targets: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """Rules that stand in a row. With a `table` all fit by the name; `targets` are the cname rules up to here."""

    rules: tuple[Rule, ...]
    table: NameTable | None
    targets: int


class Rewrite(Plugin):
    """Takes a request through the rules, and its answer back."""

    name: ClassVar[str] = "rewrite"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Rule, ...]]:
        return [tuple(read(directive) for directive in directives)]

    def __init__(self, config: tuple[Rule, ...]) -> None:
        super().__init__(config)
        self.cnames = tuple([rule for rule in config if rule.field == "cname"])
        self.targets = NameTable([rule.match for rule in self.cnames])
        self.steps: list[Step] = []
        passed = 0
        for kind, found in groupby(config, lambda rule: "name" if rule.field in _BY_NAME else rule.field):
            rules = tuple(found)
            passed += len(rules) if kind == "cname" else 0
            self.steps.append(
                Step(rules, NameTable([rule.match for rule in rules]) if kind == "name" else None, passed)
            )

    def handle(self, request: Request) -> Outcome | None:
        changes = Changes()
        try:
            for step in self.steps:
                changes.targets = step.targets
                if self._by_name(step, step.table, request, changes) if step.table else self._each(step, request):
                    break
        except BadName as error:
            return RcodeOnly(iana.SERVFAIL, f"invalid name after rewrite: {error}")
        if changes.records or changes.codes or changes.targets:
            request.slots[self.position] = changes
        return None

    def _each(self, step: Step, request: Request) -> bool:
        """Takes the question through rules that look at other things than its name; whether one of them was the
        last.
        """
        for rule in step.rules:
            question = request.question
            if rule.option is not None:
                if apply(rule.option, request) and rule.stop:
                    return True
            elif rule.field == "type" and question.type == rule.numbers[0]:
                request.question = Question(question.name, rule.numbers[1], question.cls)
                if rule.stop:
                    return True
            elif rule.field == "class" and question.cls == rule.numbers[0]:
                request.question = Question(question.name, question.type, rule.numbers[1])
                if rule.stop:
                    return True
        return False

    def _by_name(self, step: Step, table: NameTable, request: Request, changes: Changes) -> bool:
        """Takes the question through rules that fit by its name, in order; whether one of them was the last. Raises
        BadName.
        """
        name = request.question.name
        text = to_text(name)
        places = iter(table.places(text))
        while (at := next(places, -1)) >= 0:
            rule = step.rules[at]
            found = table.met(at, text)
            if found is None or not self._act(rule, found, text, request, changes):
                continue
            if rule.stop:
                return True
            if request.question.name != name:
                # The rules behind this one see the new name.
                name = request.question.name
                text = to_text(name)
                places = iter([place for place in table.places(text) if place > at])
        return False

    def _act(self, rule: Rule, found: Any, text: str, request: Request, changes: Changes) -> bool:
        """Does what a rule that fits says of the question, and notes what it says of the answer; whether it did. Raises
        BadName.
        """
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
        question = request.question
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
        """Gives the first CNAME that a rule meets its new target, and what that resolves to (then the other
        changes).
        """
        for i, rrset in enumerate(answer.answer):
            if rrset.type != iana.CNAME:
                continue
            text = to_text(rrset.rdatas[0].lower())
            for at in self.targets.places(text):
                if at >= changes.targets:
                    break
                rule, found = self.cnames[at], self.targets.met(at, text)
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
                if request.question.type in (iana.CNAME, iana.ANY):
                    # RFC 1034, section 3.6.2: where the alias is what was asked for, nobody follows it.
                    aliased = answer.replace(
                        flags=answer.flags & ~iana.AD, answer=kept, validity=request.inherit(answer)
                    )
                    return self._changed(request, changes, aliased)
                looked_up = request.lookup(target, request.question.type)
                return then(looked_up, partial(self._joined, request, changes, answer, kept))
        return self._changed(request, changes, answer)

    def _joined(
        self, request: Request, changes: Changes, answer: Answer, kept: list[RRset], outcome: Outcome
    ) -> Answer:
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
    """A replacement with this query's groups and labels; None where a label has no value. What is put in is only
    text.
    """
    out = []
    for part in parts:
        value = (
            part if isinstance(part, str) else found.group(part) if isinstance(part, int) else request.label(part.name)
        )
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
