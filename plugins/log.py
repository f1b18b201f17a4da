"""log - writes a line for each query.

## Syntax

    log [NAMES...] [FORMAT] {
        class CLASS...
    }

* NAMES: only queries for these names and names below them are logged. Default: all.
* FORMAT is a text with placeholders. It must be the last of two or more arguments. `{common}` and `{combined}` are the
  two usual formats.
* `class` selects replies: `success`, `denial` (NXDOMAIN and no data), `error`, `all` (default).

With the flag `-log-format json` each query is one object: `msg` holds the line that FORMAT gives, and there are
`client_ip`, `client_port`, `qname`, `qtype`, `qclass`, `protocol`, `id`, `opcode`, `request_size`, `dnssec_ok`,
`bufsize`, `rcode`, `response_size` and `duration_seconds`, as CoreDNS 1.15 names them, and `rflags`.

The first directive whose names match applies. Placeholders: `{type} {name} {class} {proto} {remote} {local} {port}
{size} {rcode} {rsize} {duration} {>id} {>opcode} {>do} {>bufsize} {>rflags}`; `{/LABEL}` is metadata, `log/type`
and `log/class` too. A missing value is written `-`. `{rsize}` counts octets as they are sent, which for compressed
replies are fewer than with CoreDNS.

## Examples

~~~ corefile
.:1053 {
    log . {
        class denial error
    }
    whoami
}
~~~
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.corefile.keys import plugin_zones
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import closest, to_text
from kdns.plugin import Outcome, Plugin, Request, readers
from kdns.plugin.base import Meter
from kdns.plugin.outcome import RcodeOnly, Transfer

COMMON: Final = (
    '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags} {rsize} '
    "{duration}"
)
COMBINED: Final = COMMON + ' "{>opcode}"'
CLASSES: Final = ("all", "success", "denial", "error")
_FLAGS: Final = (
    (iana.QR, "qr"), (iana.AA, "aa"), (iana.TC, "tc"), (iana.RD, "rd"), (iana.RA, "ra"), (iana.AD, "ad"),
    (iana.CD, "cd"),
)  # fmt: skip
_queries = log.Logger()  # in text a query's line has no plugin before it
_log = log.plugin("log")
_CLASS_OF: Final = {
    "NOERROR": "success",
    "DELEGATION": "success",
    "META": "success",
    "NXDOMAIN": "denial",
    "NODATA": "denial",
}
Writer = Callable[[Request, Outcome], str]


@dataclass(frozen=True, slots=True)
class Config:
    """Rules in order: zones, format, classes."""

    rules: tuple[tuple[tuple[bytes, ...], str, frozenset[str]], ...]


class Log(Plugin):
    """Settles outcomes into lines."""

    name: ClassVar[str] = "log"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        rules = []
        for directive in directives:
            words = list(directive.args)
            text = COMMON
            if len(words) > 1 and "{" in words[-1].text:
                text = words.pop().text.replace("{common}", COMMON).replace("{combined}", COMBINED)
            zones = readers.wire_zones(plugin_zones(words)) if words else (b"\0",)
            classes: set[str] = set()
            for line in directive.body or ():
                if line.name.text != "class":
                    raise readers.unknown(line, ("class",))
                readers.arguments(line, 1, None, "all, success, denial or error")
                for word in line.args:
                    if word.text not in CLASSES:
                        raise readers.fail(word, f'expected {", ".join(CLASSES)}, found "{word.text}"')
                    classes.add(word.text)
            rules.append((zones, text, frozenset(classes or ("all",))))
        return [Config(tuple(rules))]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rules = [(zones, compile_format(text), classes) for zones, text, classes in config.rules]

    def meter(self, request: Request, answer: Answer) -> Meter | None:
        return None if self._writer(request, answer) is not None else _not_logged

    def observe(self, request: Request, outcome: Outcome) -> None:
        write = None if request.depth else self._writer(request, outcome)
        if write is not None:
            text = write(request, outcome)
            if log.is_json():
                _log.record({"msg": text, **fields(request, outcome)})
            else:
                _queries.info(text)

    def _writer(self, request: Request, outcome: Outcome) -> Writer | None:
        """What writes the line of an outcome; None where it gets none."""
        for zones, write, classes in self.rules:
            if closest(request.asked.name, zones) is not None:
                return write if "all" in classes or class_of(request, outcome) in classes else None
        return None


def _not_logged(asked: int, said: int) -> None:
    """Replies of this class get no line."""


def fields(request: Request, outcome: Outcome) -> dict[str, object]:
    """A query as an object, for `-log-format json`: the fields of CoreDNS 1.15, and the reply's flags."""
    return {
        "client_ip": str(request.client[0]), "client_port": request.client[1], "qname": to_text(request.asked.name),
        "qtype": iana.type_text(request.question.type), "qclass": iana.class_text(request.question.cls),
        "protocol": request.transport,
        "id": request.id, "opcode": request.opcode, "request_size": request.size,
        "dnssec_ok": request.edns is not None and request.edns.do,
        "bufsize": int(_FIELDS[">bufsize"](request, outcome)),
        "rcode": iana.rcode_text(outcome.rcode) if outcome.rcode >= 0 else "", "rflags": _flags(request, outcome),
        "response_size": int(_size(request, outcome)), "duration_seconds": round(time.monotonic() - request.now, 9),
    }  # fmt: skip


def class_of(request: Request, outcome: Outcome) -> str:
    """success, denial or error."""
    return _CLASS_OF.get(type_of(request, outcome), "error")


def compile_format(text: str) -> Writer:
    """A function that writes a line of this format."""
    parts: list[str | Writer] = []
    for i, word in enumerate(re.split(r"(\{[^{}]*\})", text)):
        if i % 2 == 0:
            parts.append(word)
        elif word.startswith("{/"):
            parts.append(partial(_label, word[2:-1]))
        else:
            parts.append(_FIELDS.get(word[1:-1], word))

    def write(request: Request, outcome: Outcome) -> str:
        return "".join(part if isinstance(part, str) else part(request, outcome) for part in parts)

    return write


def _label(name: str, request: Request, outcome: Outcome) -> str:
    if name in _OWN_LABELS:
        # Ours, where the plugin metadata is there; they are known only now.
        return _OWN_LABELS[name](request, outcome) if request.metadata is not None else "-"
    return request.label(name) or "-"


def type_of(request: Request, outcome: Outcome) -> str:
    """What kind of reply an outcome is, as the label log/type has it."""
    if outcome.rcode < 0 or type(outcome) is Transfer:
        return "META" if type(outcome) is Transfer else "-"
    if outcome.rcode in (iana.SERVFAIL, iana.NOTIMP):
        return "SERVERERROR"
    if type(outcome) is not Answer:
        return "OTHERERROR"
    if outcome.rcode == iana.NXDOMAIN:
        return "NXDOMAIN"
    if outcome.rcode != iana.NOERROR:
        return "OTHERERROR"
    if outcome.answer:
        return "NOERROR"
    found = {rrset.type for rrset in outcome.authority}
    return "NODATA" if iana.SOA in found else "DELEGATION" if iana.NS in found else "NOERROR"


def _host(address: tuple[object, ...] | None) -> str:
    if not address:
        return "-"
    host = str(address[0])
    return f"[{host}]" if ":" in host else host


def _flags(request: Request, outcome: Outcome) -> str:
    if type(outcome) is Answer:
        own = outcome.flags if request.shows_ad else outcome.flags & ~iana.AD
    elif type(outcome) is RcodeOnly:
        own = 0
    else:
        return "-"
    word = iana.QR | own | (iana.RD if request.rd else 0) | (iana.CD if request.cd else 0)
    return ",".join(text for bit, text in _FLAGS if word & bit)


def _size(request: Request, outcome: Outcome) -> str:
    if type(outcome) is Answer:
        return str(request.question_end + len(outcome.rendered(request.asked.name).data))
    return str(request.question_end) if type(outcome) is RcodeOnly else "0"


def seconds_text(value: float) -> str:
    """Seconds as Go prints a float: the shortest decimal, never with an exponent."""
    text = f"{value:.9f}".rstrip("0")
    return (text + "0" if text.endswith(".") else text) + "s"


_OWN_LABELS: Final[dict[str, Writer]] = {"log/type": type_of, "log/class": class_of}
_FIELDS: Final[dict[str, Writer]] = {
    "type": lambda r, o: iana.type_text(r.question.type),
    "name": lambda r, o: to_text(r.asked.name),
    "class": lambda r, o: iana.class_text(r.question.cls),
    "proto": lambda r, o: r.transport,
    "remote": lambda r, o: _host(r.client),
    "local": lambda r, o: _host(r.local),
    "port": lambda r, o: str(r.client[1]),
    "size": lambda r, o: str(r.size),
    "rcode": lambda r, o: iana.rcode_text(o.rcode) if o.rcode >= 0 else "-",
    "rsize": _size,
    "duration": lambda r, o: seconds_text(time.monotonic() - r.now),
    ">id": lambda r, o: str(r.id),
    ">opcode": lambda r, o: str(r.opcode),
    ">do": lambda r, o: "true" if r.edns is not None and r.edns.do else "false",
    ">bufsize": lambda r, o: str(r.bufsize),
    ">rflags": _flags,
}
