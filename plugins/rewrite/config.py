"""The directive `rewrite`: its rules and how they are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kdns.corefile import CorefileError, Directive, Line, Token
from kdns.dns import edns, iana
from kdns.plugin import readers
from kdns.regex import compile_regex

KINDS: Final = ("exact", "prefix", "suffix", "substring", "regex")
FIELDS: Final = ("name", "type", "class", "edns0", "ttl", "rcode", "cname")
VARIABLES: Final = ("qname", "qtype", "client_ip", "client_port", "server_ip", "server_port", "protocol")


@dataclass(frozen=True, slots=True)
class Match:
    """How a name is met. `text` is lower-cased and ends in a dot, but for a regex."""

    kind: str
    text: str

    def compiled(self) -> Any:
        return compile_regex(self.text) if self.kind == "regex" else None


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """What to do with an answer: auto, or a regex and a replacement for owners (`name`) or data (`value`)."""

    kind: str
    regex: str = ""
    to: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """An EDNS option: what is done (`set`, `append`, `replace`, `unset`), its code, and where its data comes from.

    `data` is constant, unless there is a `variable`; of the client's address SUBNET takes `bits` (IPv4, IPv6).
    """

    action: str
    code: int
    data: bytes = b""
    variable: str = ""
    bits: tuple[int, int] = (0, 0)


class Label(NamedTuple):
    """A place in a replacement for a metadata label's value."""

    name: str


# A replacement taken apart: text as it is, the number of a group, or a label.
Part = str | int | Label


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `numbers` are types, classes, codes or TTL bounds, by field. `parts`: TO taken apart, where it uses
    metadata.
    """

    field: str
    stop: bool
    match: Match = Match("exact", "")
    to: str = ""
    answers: tuple[AnswerRule, ...] = ()
    numbers: tuple[int, int] = (0, 0)
    option: "Option | None" = None
    parts: tuple[Part, ...] = ()


def read(directive: Directive) -> Rule:
    """One directive's rule. Raises CorefileError."""
    words = list(directive.args)
    if directive.body is not None:
        words += [word for line in directive.body for word in _words(line)]
    stop = True
    if words and words[0].text in ("continue", "stop"):
        stop = words.pop(0).text == "stop"
    if not words:
        raise readers.fail(directive, f"expected a field: {', '.join(FIELDS)}")
    field = words.pop(0)
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
    if field.text == "cname":
        match, words = _match(field, words, 1)
        if match.kind == "regex":
            _references(words[0], compile_regex(match.text).groups)
        return Rule("cname", False, match, words[0].text.lower() if match.kind == "regex" else _dotted(words[0].text))
    if field.text == "edns0":
        return Rule("edns0", stop, option=_option(field, words))
    raise readers.unknown(Line(field, ()), FIELDS)


def _words(line: Line) -> list[Token]:
    return [line.name, *line.args, *(word for inner in line.body or () for word in _words(inner))]


def _numbers_rule(field: Token, words: list[Token], stop: bool) -> Rule:
    if len(words) != 2:
        raise readers.fail(field, f"rewrite {field.text} takes FROM TO")
    read = iana.type_number if field.text == "type" else iana.class_number
    numbers = []
    for word in words:
        number = read(word.text)
        if number is None:
            raise readers.fail(word, f'"{word.text}" is not a {field.text}')
        numbers.append(number)
    return Rule(field.text, stop, numbers=(numbers[0], numbers[1]))


def _match(field: Token, words: list[Token], following: int) -> tuple[Match, list[Token]]:
    """The match of a rule, with or without its kind, and the `following` words after it."""
    kind = "exact"
    if len(words) == following + 2 and words[0].text in KINDS:
        kind = words.pop(0).text
    if len(words) != following + 1:
        raise readers.fail(field, f"rewrite {field.text}: wrong number of arguments")
    return _made(kind, words[0]), words[1:]


def _made(kind: str, word: Token) -> Match:
    if kind == "regex":
        readers.regex(word)
        return Match(kind, word.text)
    return Match(kind, _dotted(word.text))


def _dotted(text: str) -> str:
    return _final_dot(text.lower())


def _final_dot(text: str) -> str:
    return text if text.endswith(".") else text + "."


def _name_rule(field: Token, words: list[Token], stop: bool) -> Rule:
    if len(words) < 2:
        raise readers.fail(field, "rewrite name takes [exact|prefix|suffix|substring|regex] FROM TO")
    kind = "exact"
    if len(words) > 2:
        if words[0].text not in KINDS:
            raise readers.fail(words[0], f'expected {", ".join(KINDS)}, found "{words[0].text}"')
        kind = words.pop(0).text
    if len(words) < 2:
        raise readers.fail(field, "rewrite name takes [exact|prefix|suffix|substring|regex] FROM TO")
    match, to = _made(kind, words[0]), words[1]
    following = words[2:]
    parts: tuple[Part, ...] = ()
    if following and following[0].text == "metadata":
        if kind != "regex":
            raise readers.fail(following[0], "metadata is for regex rules only")
        parts = _parts(to, readers.regex(words[0]).groups)
        following = following[1:]
    elif kind == "regex":
        _references(to, readers.regex(words[0]).groups)
    answers = _answers(following, kind)
    if kind == "exact":
        answers = (AnswerRule("auto"), *(answer for answer in answers if answer.kind != "auto"))
    return Rule("name", stop, match, to.text.lower() if kind == "regex" else _dotted(to.text), answers, parts=parts)


def _references(to: Token, groups: int) -> None:
    used = [i for i in range(101) if f"{{{i}}}" in to.text]
    if any(i > groups for i in used):
        raise _no_group(to, groups, max(used))


def _no_group(to: Token, groups: int, number: int) -> CorefileError:
    return readers.fail(to, f"the regular expression has {groups} groups, and {{{number}}} is not one of them")


def _parts(to: Token, groups: int) -> tuple[Part, ...]:
    """A replacement whose braces hold groups or labels, taken apart. Raises CorefileError."""
    out: list[Part] = []
    rest = _final_dot(to.text)
    while rest:
        text, brace, rest = rest.partition("{")
        if "}" in text or (brace and "}" not in rest):
            raise readers.fail(to, f'unbalanced brace in "{to.text}"')
        if text:
            out.append(text.lower())
        if not brace:
            break
        inner, _, rest = rest.partition("}")
        if re.fullmatch("[0-9]{1,4}", inner):
            if int(inner) > groups:
                raise _no_group(to, groups, int(inner))
            out.append(int(inner))
        elif all(inner.partition("/")) and "{" not in inner:
            out.append(Label(inner))
        else:
            raise readers.fail(
                to, f'expected a group or a label such as {{kubernetes/client-namespace}}, found "{{{inner}}}"'
            )
    return tuple(out)


def _answers(words: list[Token], kind: str) -> tuple[AnswerRule, ...]:
    out: list[AnswerRule] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.text == "answer" and rest:
            word = rest.pop(0)
        elif not out and word.text != "answer":
            raise readers.fail(word, f'expected "answer", found "{word.text}"')
        if word.text == "auto":
            out.append(AnswerRule("auto"))
        elif word.text in ("name", "value") and len(rest) >= 2:
            regex, to = rest.pop(0), rest.pop(0)
            _references(to, readers.regex(regex).groups)
            out.append(AnswerRule(word.text, regex.text, to.text))
        else:
            raise readers.fail(word, f'expected auto, name REGEX TO or value REGEX TO, found "{word.text}"')
    kinds = [answer.kind for answer in out]
    if "auto" in kinds and "name" in kinds:
        raise readers.fail(words[0], "answer auto and answer name cannot both be set")
    return tuple(out)


def _bounds(word: Token) -> tuple[int, int]:
    text = word.text
    most = iana.MAX_TTL
    low, dash, high = text.partition("-")
    try:
        if text == "-":
            raise ValueError
        bounds = (int(low or 0), int(high or most)) if dash else (int(text), int(text))
    except ValueError:
        raise readers.fail(word, f'expected SECONDS, A-B, A- or -B, found "{text}"') from None
    if max(bounds) > most:
        raise readers.fail(word, f"a TTL of {max(bounds)} seconds, at most {most} are allowed (RFC 2181, section 8)")
    if bounds[0] > bounds[1]:
        raise readers.fail(word, f'the bounds "{text}" are the wrong way round')
    return bounds


def _rcode(word: Token) -> int:
    number = iana.rcode_number(word.text)
    if number is None and re.fullmatch("[0-9]{1,2}", word.text) and int(word.text) <= 23:
        number = int(word.text)
    if number is None:
        raise readers.fail(word, f'"{word.text}" is not a response code')
    return number


# EDNS options.


def _option(field: Token, words: Sequence[Token]) -> Option:
    usage = "rewrite edns0 takes local, nsid or subnet, then set, append, replace or unset"
    if len(words) < 2:
        raise readers.fail(field, usage)
    kind, action, *rest = words
    if kind.text not in ("local", "nsid", "subnet"):
        raise readers.fail(kind, f'{usage}; found "{kind.text}"')
    if action.text not in ("set", "append", "replace", "unset"):
        raise readers.fail(action, f'{usage}; found "{action.text}"')
    if rest and rest[-1].text == "revert" and action.text != "unset":
        rest.pop()  # no reply shows the options in any case
    unset = action.text == "unset"
    wanted = {"local": 1 if unset else 2, "nsid": 0, "subnet": 0 if unset else 2}[kind.text]
    if len(rest) != wanted:
        what = {
            "local": "CODE" if unset else "CODE DATA",
            "nsid": "nothing more",
            "subnet": "nothing more" if unset else "V4 V6",
        }
        raise readers.fail(action, f"rewrite edns0 {kind.text} {action.text} takes {what[kind.text]}")
    if kind.text == "nsid":
        return Option(action.text, edns.NSID)
    if kind.text == "subnet":
        bits = (0, 0) if unset else (readers.integer(rest[0], 0, 32), readers.integer(rest[1], 0, 128))
        return Option(action.text, edns.SUBNET, variable="subnet", bits=bits)
    code = _code(rest[0])
    if unset:
        return Option(action.text, code)
    return _local(action.text, code, rest[1])


def _code(word: Token) -> int:
    try:
        code = int(word.text, 0)
    except ValueError:
        code = -1
    if not 0 <= code <= 65535:
        raise readers.fail(word, f'expected an option code of 0 to 65535, found "{word.text}"')
    return code


def _local(action: str, code: int, word: Token) -> Option:
    text = word.text
    if text.startswith("{") and text.endswith("}"):
        variable = text[1:-1]
        if variable not in VARIABLES and "/" not in variable:
            raise readers.fail(
                word, f'unknown variable "{text}": there are {", ".join(VARIABLES)}, and metadata with a / in it'
            )
        return Option(action, code, variable=variable)
    if text.startswith("0x"):
        try:
            data = bytes.fromhex(text[2:])
        except ValueError:
            raise readers.fail(word, f'"{text}" is not hexadecimal, two digits an octet') from None
    else:
        data = text.encode()
    if len(data) > edns.MAX_CONFIGURED:
        raise readers.fail(word, f"an option of {len(data)} octets, at most {edns.MAX_CONFIGURED} are allowed")
    return Option(action, code, data)
