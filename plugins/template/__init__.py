"""template - makes answers from the question.

## Syntax

    template CLASS TYPE [ZONES...] {
        match REGEX...
        var NAME EXPRESSION
        expr EXPRESSION
        answer TEMPLATE...
        additional TEMPLATE...
        authority TEMPLATE...
        rcode CODE
        ederror CODE [TEXT]
        fallthrough [ZONES...]
    }

* CLASS and TYPE are those of the questions it answers; `ANY` means all. ZONES are the zones it answers for. Default:
  the block's zones.
* `match`: regular expressions (RE2) for the name, in lower case and with its final dot. The first that matches gives
  the groups. Default: every name.
* `answer`, `additional`, `authority`: records as in a zone file, in Go's template language: `.Name`, `.Zone`, `.Class`,
  `.Type`, `.Match` (groups by number), `.Group` (groups by name and number), `.Question.Name`, `.Message.Id`,
  `.Remote`, `.Var.NAME`, `.Meta "LABEL"` (see `metadata`), and the functions `index`, `parseInt`, `print`, `printf`,
  `len`. A record without a TTL gets 3600.
* `expr` must be true, or the template does not apply. `var` computes a value once, for `.Var.NAME` and, by its name,
  for the expressions below it. The language is that of `view`, with `group('NAME')` for the match's groups (also by
  number, as text).
* `rcode` is the response code; default NOERROR.
* `ederror` adds an extended error for clients that use EDNS (RFC 8914).
* `fallthrough`: if no `match` matches or an `expr` is false, the next template is tried, and then the next plugin.
  Without it the reply is SERVFAIL.

If the answer to a question for addresses is a CNAME, the records of its target are added.

## Examples

~~~ corefile
.:1053 {
    template ANY AAAA example.org {
        rcode NOERROR
        authority "{{ .Zone }} 60 IN SOA ns.{{ .Zone }} mail.{{ .Zone }} (1 60 60 60 60)"
    }
    template IN A example.org {
        match "^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]example[.]org[.]$"
        answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
        fallthrough
    }
    whoami
}
~~~

## Metrics

* `coredns_template_matches_total{server,zone,view,class,type}`, and, with the labels section and template too,
  `coredns_template_template_failures_total` and `coredns_template_rr_failures_total`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from kdns.corefile import Directive, Line, ServerBlock
from kdns.corefile.keys import plugin_zones
from kdns.dns import edns, iana
from kdns.dns.answer import Answer
from kdns.dns.errors import FormatError
from kdns.dns.name import ROOT, closest, to_text
from kdns.dns.rrset import RRset
from kdns.expression import RESERVED, EvaluationError, Expression
from kdns.expression.values import text
from kdns.metrics import Counter
from kdns.plugin import ALWAYS, Outcome, Plugin, RcodeOnly, Request, readers, then
from kdns.plugin.aliases import joined
from kdns.plugin.base import BlockInfo
from kdns.plugin.query_env import WITH_GROUPS, QueryEnv, compiled
from kdns.plugin.readers import Fallthrough
from kdns.plugins.template.language import BadTemplate, Template
from kdns.regex import compile_regex
from kdns.zonefile import types
from kdns.zonefile.errors import BadRecord
from kdns.zonefile.fields import ttl as read_ttl
from kdns.zonefile.words import name as wire_name
from kdns.zonefile.words import shown, split

TTL: Final = 3600  # seconds of a record whose template has none
SECTIONS: Final = ("answer", "additional", "authority")
_OPTIONS: Final = (*SECTIONS, "match", "rcode", "ederror", "fallthrough", "upstream", "var", "expr")
_LABELS: Final = ("server", "zone", "view", "class", "type")

MATCHES: Final = Counter("coredns_template_matches_total", "Counter of template regex matches.", _LABELS)
FAILURES: Final = Counter(
    "coredns_template_template_failures_total", "Counter of go template failures.", (*_LABELS, "section", "template")
)
RR_FAILURES: Final = Counter(
    "coredns_template_rr_failures_total", "Counter of mis-templated RRs.", (*_LABELS, "section", "template")
)


@dataclass(frozen=True, slots=True)
class Config:
    """One directive. `cls` and `type` are numbers; ANY stands for all. Templates stand as (section, text)."""

    cls: int
    type: int
    zones: tuple[bytes, ...]
    matches: tuple[str, ...] = (".*",)
    # In the order of the Corefile: a variable's name, or "" for what must be true.
    expressions: tuple[tuple[str, Expression], ...] = ()
    records: tuple[tuple[str, str], ...] = ()
    rcode: int = iana.NOERROR
    options: bytes = b""
    fallthrough: Fallthrough | None = None
    ignored: str = ""  # an option that is taken and has no effect

    def names(self, field: str) -> bool:
        """True if a template names this field."""
        return any(f".{field}" in text for _, text in self.records)


class TemplatePlugin(Plugin):
    """Asks the templates of its block in order."""

    name: ClassVar[str] = "template"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[tuple[Config, ...]]:
        return [tuple(_parse(directive, block) for directive in directives)]

    def __init__(self, config: tuple[Config, ...]) -> None:
        super().__init__(config)
        self.rules = [
            (rule, [compile_regex(text) for text in rule.matches], [(s, t, Template(t)) for s, t in rule.records])
            for rule in config
        ]
        self.view = ""
        self.limit: Callable[[bytes, bool], int] = lambda name, denial: iana.MAX_TTL

    def warnings(self) -> Sequence[str]:
        return [rule.ignored for rule, _, _ in self.rules if rule.ignored]

    def wire(self, block: BlockInfo) -> None:
        self.view = block.view
        self.limit = block.ttl_limit

    def handle(self, request: Request) -> Outcome | Awaitable[Outcome | None] | None:
        question = request.question
        name = ""
        for rule, regexes, templates in self.rules:
            if rule.cls not in (question.cls, iana.ANY):
                continue
            if rule.type not in (question.type, iana.ANY) and question.type != iana.ANY:
                continue
            zone = closest(question.name, rule.zones)
            if zone is None:
                continue
            name = name or to_text(question.name)
            found = next((match for regex in regexes if (match := regex.search(name)) is not None), None)
            variables: dict[str, Any] = {}
            if found is not None and rule.expressions:
                if any("now" in expression.calls for _, expression in rule.expressions):
                    request.once()
                try:
                    if not _holds(rule, request, found, variables):
                        found = None
                except EvaluationError as error:
                    return RcodeOnly(iana.SERVFAIL, f"template expression: {error}")
            if found is None:
                if rule.fallthrough is not None and rule.fallthrough.falls_through(question.name):
                    continue
                return RcodeOnly(iana.SERVFAIL)
            fields = _fields(request, rule, to_text(zone), name, found)
            fields["Var"] = {key: text(value) for key, value in variables.items()}
            return self._answer(request, rule, templates, fields)
        return None

    def _answer(
        self, request: Request, rule: Config, templates: list[tuple[str, str, Template]], fields: dict[str, Any]
    ) -> Outcome | Awaitable[Outcome | None]:
        question = request.question
        # Of types that have no name there are as many as clients care to ask for.
        kind = fields["Type"] if fields["Type"] in iana.TYPES else ""
        labels = (request.server.label, fields["Zone"], self.view, fields["Class"], kind)
        MATCHES.slot(*labels)[0] += 1
        if rule.rcode == iana.SERVFAIL:
            return RcodeOnly(rule.rcode, options=rule.options)
        made: dict[str, list[RRset]] = {section: [] for section in SECTIONS}
        for section, source, template in templates:
            try:
                filled = template.fill(fields)
            except BadTemplate as error:
                FAILURES.slot(*labels, section, source)[0] += 1
                return RcodeOnly(iana.SERVFAIL, f"template {source!r}: {error}")
            try:
                found = record(filled)
                denial = section == "authority" and not made["answer"]
                made[section].append(found._replace(ttl=min(found.ttl, self.limit(question.name, denial))))
            except FormatError as error:
                RR_FAILURES.slot(*labels, section, source)[0] += 1
                return RcodeOnly(iana.SERVFAIL, f"template {source!r} made {filled!r}: {error}")
        answer = Answer(
            rule.rcode,
            iana.AA,
            made["answer"],
            made["authority"],
            made["additional"],
            local=True,
            options=rule.options,
            validity=ALWAYS,
        )
        last = made["answer"][-1] if made["answer"] else None
        if last is not None and last.type == iana.CNAME and question.type in (iana.A, iana.AAAA):
            target = last.rdatas[0].lower()
            result: Outcome | Awaitable[Outcome | None] = then(
                request.lookup(target, question.type), partial(_joined, answer)
            )
            return result
        return answer


def _joined(answer: Answer, outcome: Outcome) -> Answer:
    made = joined(answer.answer, outcome)
    return answer.replace(
        rcode=answer.rcode or made.rcode,
        flags=answer.flags | made.flags,
        answer=made.answer,
        authority=(*answer.authority, *made.authority),
        validity=made.validity,
    )


def _groups(match: Any) -> dict[str, str]:
    """A match's groups by number (as text) and name; those that did not take part are empty."""
    groups = {str(i): match.group(i) or "" for i in range(len(match.groups()) + 1)}
    return groups | {key: match.group(key) or "" for key in match.re.groupindex}


def _holds(rule: Config, request: Request, match: Any, variables: dict[str, Any]) -> bool:
    """Works out the variables, and whether all that must be true is. Raises EvaluationError."""
    env = QueryEnv(request, request.label, _groups(match))
    for name, expression in rule.expressions:
        value = expression.value(env, variables)
        if name:
            variables[name] = value
        elif value is not True:
            return False
    return True


def _fields(request: Request, rule: Config, zone: str, name: str, match: Any) -> dict[str, Any]:
    """What templates may name."""
    question = request.question
    groups = [match.group(i) or "" for i in range(len(match.groups()) + 1)]
    # Where the question leaves it open, it is what the template is for.
    kind = iana.type_text(rule.type if question.type == iana.ANY else question.type)
    cls = iana.class_text(rule.cls if question.cls == iana.ANY else question.cls)
    return {
        "Name": name, "Zone": zone, "Class": cls, "Type": kind, "Match": groups,
        "Group": _groups(match),
        "Question": {"Name": name, "Qtype": question.type, "Qclass": question.cls},
        "Meta": request.label,
        # Reading these makes the reply this client's own.
        **({"Message": {"Id": request.id}} if rule.names("Message") else {}),
        **({"Remote": str(request.client[0])} if rule.names("Remote") else {}),
    }  # fmt: skip


def record(text: str) -> RRset:
    """The record that a line of a zone file holds. Raises FormatError."""
    data = text.strip().encode()
    try:
        entry = split(data, 0, ROOT)
        owner = wire_name(entry.next("an owner"), ROOT)
        ttl, cls = -1, 0
        while True:
            word = entry.next("a record type")
            upper = word.text.decode("ascii", "replace").upper()
            number = iana.class_number(upper) if upper != "ANY" else None
            if ttl < 0 and (seconds := read_ttl(word.text)) is not None:
                ttl = seconds
            elif not cls and number is not None:
                cls = number
            else:
                break
        rtype = iana.type_number(upper)
        if rtype is None or rtype in types.NO_DATA:
            raise BadRecord(word.at, f'"{shown(word.text)}" is not a type of records')
        if ttl > iana.MAX_TTL:
            raise BadRecord(word.at, f"a TTL of {ttl} seconds, at most {iana.MAX_TTL} are allowed")
        rdata = types.read(rtype, entry)
        if split(data, entry.end, ROOT).words:
            raise BadRecord(entry.end, "it is more than one record")
    except BadRecord as error:
        raise FormatError(f"it is not a record: {error.message}") from None
    return RRset(owner, rtype, TTL if ttl < 0 else ttl, (rdata,), cls or iana.IN)


# Reading the directive.


def _parse(directive: Directive, block: ServerBlock) -> Config:
    readers.arguments(directive, 2, None, "CLASS TYPE [ZONES...] after template")
    numbers = []
    for word, table in zip(directive.args, (iana.CLASSES, iana.TYPES), strict=False):
        number = table.get(word.text)
        if number is None:
            raise readers.fail(
                word, f'"{word.text}" is not a {"class" if table is iana.CLASSES else "query type"} (upper case)'
            )
        numbers.append(number)
    words = list(directive.args[2:])
    zones = readers.wire_zones(plugin_zones(words) if words else block.zones)
    found: dict[str, Any] = {"matches": (), "records": (), "expressions": ()}
    for line in directive.body or ():
        _option(line, found)
    found["matches"] = found["matches"] or (".*",)
    return Config(numbers[0], numbers[1], zones, **found)


def _option(line: Line, found: dict[str, Any]) -> None:
    name = line.name.text
    if name == "match":
        readers.arguments(line, 1, None, "regular expressions")
        for word in line.args:
            readers.regex(word)
        found["matches"] += tuple(line.words())
    elif name in SECTIONS:
        readers.arguments(line, 1, None, "templates")
        for word in line.args:
            try:
                Template(word.text)
            except BadTemplate as error:
                raise readers.fail(word, f"bad template: {error}") from None
            found["records"] += ((name, word.text),)
    elif name == "rcode":
        word = readers.one(line, "a response code")
        number = iana.RCODES.get(word.text)
        if number is None:
            raise readers.fail(word, f'"{word.text}" is not a response code (upper case)')
        found["rcode"] = number
    elif name == "ederror":
        readers.arguments(line, 1, 2, "CODE [TEXT]")
        code = readers.integer(line.args[0], 0, 65535)
        text = line.args[1].text.encode() if len(line.args) > 1 else b""
        if len(text) > edns.MAX_CONFIGURED:
            raise readers.fail(line, f"a text of {len(text)} octets, at most {edns.MAX_CONFIGURED} are allowed")
        found["options"] = edns.extended_error(code, text)
    elif name == "fallthrough":
        found["fallthrough"] = Fallthrough.parse(line)
    elif name in ("var", "expr"):
        found["expressions"] += (_expression(line, found["expressions"]),)
    elif name == "upstream":
        found["ignored"] = f"line {line.at.line}: upstream has been without effect since CoreDNS 1.5; remove the line"
    else:
        raise readers.unknown(line, _OPTIONS)


def _expression(line: Line, before: tuple[tuple[str, Expression], ...]) -> tuple[str, Expression]:
    """`var NAME EXPRESSION` or `expr EXPRESSION`, which may use the variables before it."""
    known = {name: made.type for name, made in before if name}
    if line.name.text == "expr":
        readers.arguments(line, 1, None, "an expression")
        made = compiled(line.args, WITH_GROUPS, known)
        if made.type not in ("bool", "any"):
            raise readers.fail(line, f"expr must be true or false, this is of type {made.type}")
        return "", made
    readers.arguments(line, 2, None, "NAME EXPRESSION")
    name = line.args[0]
    if not name.text.isidentifier() or name.text in known:
        raise readers.fail(name, f'"{name.text}" is not a name for a new variable')
    if name.text in RESERVED or name.text in WITH_GROUPS:
        raise readers.fail(name, f'"{name.text}" is a word of the language: variables need other names')
    return name.text, compiled(line.args[1:], WITH_GROUPS, known)
