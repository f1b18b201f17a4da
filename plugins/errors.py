"""errors - logs errors that occur while queries are answered.

It writes one line for each error: `[ERROR] plugin/errors: RCODE NAME TYPE: TEXT`. Repeated errors can be summed up.

## Syntax

    errors [stdout] {
        stacktrace
        consolidate DURATION REGEX [warning|error|info|debug] [show_first]
    }

* `stacktrace` adds the stack trace to the line of an exception in a plugin.
* `consolidate` counts errors whose text matches the regular expression (RE2 syntax), and writes one line for all of
  them DURATION after the first, at the given level (default: error). `show_first` also writes the first one. The first
  `consolidate` that matches applies.

## Examples

~~~ corefile
.:1053 {
    errors {
        consolidate 5m ".* i/o timeout$" warning
        consolidate 30s "^Failed to .+"
    }
    whoami
}
~~~
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from kdns import log
from kdns.corefile import Directive, Line, ServerBlock
from kdns.dns import iana
from kdns.dns.name import to_text
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import ListenerOptions
from kdns.regex import compile_regex

_log = log.plugin("errors")
_LEVELS: Final = ("warning", "error", "info", "debug")


@dataclass(frozen=True, slots=True)
class Rule:
    """One `consolidate` line; `window` in seconds."""

    window: float
    regex: str
    level: str
    show_first: bool


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of the directive."""

    stacktrace: bool
    rules: tuple[Rule, ...]


class Errors(Plugin):
    """Logs failures that carry an error."""

    name: ClassVar[str] = "errors"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 1)
        if directive.args and directive.args[0].text != "stdout":
            raise readers.fail(directive.args[0], f'expected stdout or nothing, found "{directive.args[0].text}"')
        stacktrace = False
        rules = []
        for line in directive.body or ():
            if line.name.text == "stacktrace":
                readers.arguments(line, 0, 0)
                stacktrace = True
            elif line.name.text == "consolidate":
                rules.append(_rule(line))
            else:
                raise readers.unknown(line, ("stacktrace", "consolidate"))
        return [Config(stacktrace, tuple(rules))]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rules = [_Window(rule) for rule in config.rules]

    def listener(self) -> ListenerOptions | None:
        return ListenerOptions(stacktrace=True) if self.config.stacktrace else None

    async def stop(self) -> None:
        for window in self.rules:
            window.flush()

    def on_failure(self, request: Request, failure: Outcome) -> None:
        if type(failure) is RcodeOnly and failure.error is not None:
            self._log(request, failure)

    def _log(self, request: Request, outcome: RcodeOnly) -> None:
        text = str(outcome.error) or type(outcome.error).__name__
        question = request.question
        line = f"{outcome.rcode} {to_text(question.name)} {iana.type_text(question.type)}: {text}"
        for window in self.rules:
            if window.take(text, line):
                return
        _log.error(line)


class _Window:
    """Errors like one expression, counted for a while."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.regex: Any = compile_regex(rule.regex)
        self.count = 0
        self.timer: asyncio.TimerHandle | None = None
        levels: dict[str, Callable[[str], None]] = {
            "warning": _log.warning, "error": _log.error, "info": _log.info, "debug": _log.debug,
        }  # fmt: skip
        self.write = levels[rule.level]

    def take(self, text: str, line: str) -> bool:
        if self.regex.search(text) is None:
            return False
        self.count += 1
        if self.count == 1:
            if self.rule.show_first:
                self.write(line)
            self.timer = asyncio.get_running_loop().call_later(self.rule.window, self.flush)
        return True

    def flush(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.count > (1 if self.rule.show_first else 0):
            within = readers.duration_text(self.rule.window)
            self.write(f"{self.count} errors like '{self.rule.regex}' occurred in last {within}")
        self.count = 0


def _rule(line: Line) -> Rule:
    readers.arguments(line, 2, 4, "DURATION REGEX [LEVEL] [show_first]")
    window = readers.seconds(line.args[0])
    regex = line.args[1]
    readers.regex(regex)
    level = "error"
    rest = list(line.args[2:])
    if rest and rest[0].text in _LEVELS:
        level = rest.pop(0).text
    show_first = bool(rest) and rest[0].text == "show_first"
    if rest and (not show_first or len(rest) > 1):
        raise readers.fail(rest[0], f'expected {", ".join(_LEVELS)} or show_first, found "{rest[0].text}"')
    return Rule(window, regex.text, level, show_first)
