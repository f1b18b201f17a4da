"""view - limits a server block to queries for which an expression is true.

## Syntax

    view NAME {
        expr EXPRESSION
    }

* NAME is the metrics' `view` label and the metadata `view/name`.
* `expr` may be repeated: all must be true. Words are joined by one space, and the Corefile takes double quotes away, so
  texts stand in single quotes.

Blocks with the same zone and address are tried from top to bottom; one whose view does not fit is passed over, and if
none fits, the next shorter zone is tried. An expression that fails for a query does not fit.

An expression asks the query by functions: `name()`, `type()`, `class()`, `client_ip()`, `port()`, `server_ip()`,
`server_port()`, `proto()` (all text), `id()`, `opcode()`, `size()`, `bufsize()` (numbers), `do()`, `incidr(IP, CIDR)`,
and
`metadata(LABEL)` where the block has `metadata`. The language is expr-lang's: `== != < > && || ! and or not in matches
contains startsWith endsWith ?: ?? [] {}`, arithmetic, `let`, closures (`any(['a', 'b'], name() contains #)`) and its
functions for text, lists and numbers. Of dates there is `now()` with `Hour()`, `Minute()`, `Weekday()`, `Day()`,
`Month()`, `Year()`, `Unix()` and `UTC()`; `date()` and `duration()` are left out. Regular expressions are RE2's.

## Examples

~~~ corefile
example.org:1053 {
    view inside {
        expr incidr(client_ip(), '10.0.0.0/8') || client_ip() == '127.0.0.1'
        expr type() in ['A', 'AAAA']
    }
    whoami
}
example.org:1053 {
    forward . 127.0.0.1:5301
}
~~~
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.expression import EvaluationError, Expression
from kdns.plugin import Plugin, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.providers import LabelCollector
from kdns.plugin.query_env import FUNCTIONS, QueryEnv, compiled

_log: Final = log.plugin("view")


@dataclass(frozen=True, slots=True)
class Config:
    """The view's name and its expressions."""

    view: str
    expressions: tuple[Expression, ...]


class View(Plugin):
    """Decides which queries its block takes."""

    name: ClassVar[str] = "view"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        name = readers.one(directive, "a name")
        expressions = []
        for line in directive.body or ():
            if line.name.text != "expr":
                raise readers.unknown(line, ("expr",))
            readers.arguments(line, 1, None, "an expression")
            made = compiled(line.args, FUNCTIONS, {})
            if made.type not in ("bool", "any"):
                raise readers.fail(line, f"an expression of a view must be true or false, this is of type {made.type}")
            expressions.append(made)
        return [Config(name.text, tuple(expressions))]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.collectors: list[LabelCollector] = []

    @property
    def view(self) -> str:
        """The name."""
        return self.config.view

    def wire(self, block: BlockInfo) -> None:
        self.collectors = block.all(LabelCollector)

    def label(self, request: Request, name: str) -> str | None:
        """`view/name`."""
        return self.config.view if name == "view/name" else None

    def admit(self, request: Request) -> bool:
        """True if all expressions are true for this query."""

        def label(name: str) -> str:
            return next((value for each in self.collectors if (value := each.value(request, name))), "")

        env = QueryEnv(request, label)
        if any("now" in expression.calls for expression in self.config.expressions):
            request.once()
        try:
            return all(expression.value(env) is True for expression in self.config.expressions)
        except EvaluationError as error:
            _log.debug(f"{self.config.view}: {error}")
            return False
