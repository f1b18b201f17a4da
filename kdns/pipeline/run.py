"""The pipeline: one server block's plugins, compiled into flat tuples.

Theory of operation. A query goes down: each `handle` in the fixed order, until one gives an outcome. An Answer goes
back up: the `finish`es of the plugins above the place it came from, nearest first. Then every outcome is settled by
the plugins above that place. No plugin calls the next one, so depth of the stack does not grow with the chain, and
what happens is the same whether an outcome is there at once or later: `run` and `_ascend` are entered again
at the place they left, with the value that was waited for.

An exception at plugin i is `Bare(SERVFAIL, error)` from there. A cancelled query is DROP. Both settle.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast, final

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.pipeline.outcome import OUTCOMES, Bare, Outcome, Pending, adopt
from kdns.pipeline.plugin import Plugin, looks_at_client, overrides
from kdns.pipeline.request import Request

Handle = Callable[[Request], Outcome | Awaitable[Outcome | None] | None]
Finish = Callable[[Request, Answer], Answer | Awaitable[Answer]]
Settle = Callable[[Request, Outcome], None]
GoOn = Callable[[Request, int, int, Any], Outcome | Pending]


class NoNextPlugin(Exception):
    """The chain ran off its end: no plugin had an answer."""

    def __str__(self) -> str:
        return "no next plugin found"


@final
class Pipeline:
    """The compiled hooks. `empty`: no plugin takes part in queries."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self.plugins = tuple(plugins)
        asked = asking_order(plugins)
        self.handles: tuple[Handle, ...] = tuple(plugins[i].handle for i in asked)
        self.first = plugins[asked[0]] if asked else None
        above = [list(reversed(plugins[:place])) for place in (*asked, len(plugins))]
        # For each place an outcome can come from (the last: the chain's end), what stands above it, nearest first.
        finishers = [[p for p in those if overrides(p, "finish")] for those in above]
        settlers = [[p for p in those if overrides(p, "settle")] for those in above]
        self.finishes: tuple[tuple[Finish, ...], ...] = tuple(tuple(p.finish for p in those) for those in finishers)
        self.own_finishes = tuple(tuple(p.finish for p in those if p.finishes_own) for those in finishers)
        self.settles: tuple[tuple[Settle, ...], ...] = tuple(tuple(p.settle for p in those) for those in settlers)
        self.answer_settles = tuple(tuple(p.settle for p in those if p.settles_answers) for those in settlers)
        self.empty = not self.handles and not any(finishers) and not any(settlers)
        # Whether a finished reply of our own may be repeated for the same question.
        self.repeatable = not any(looks_at_client(p) for p in plugins)
        self.repeaters = tuple(p for p in plugins if overrides(p, "settle") and p.settles_answers)
        self._below: dict[int, Pipeline] = {}

    def run(self, request: Request, i: int = 0) -> Outcome | Pending:
        """Takes a request through the plugins from place `i` on. What is not there yet is a Pending."""
        try:
            for handle in self.handles[i:] if i else self.handles:
                outcome = handle(request)
                if outcome is not None:
                    break
                i += 1
            else:
                return self._ascend(request, i, Bare(iana.SERVFAIL, NoNextPlugin()))
        except Exception as error:
            return self._ascend(request, i, request.server.failed(request, error))
        if type(outcome) is Answer:
            return self._ascend(request, i, outcome)
        if type(outcome) in OUTCOMES:
            return self._ascend(request, i, cast(Outcome, outcome))
        return self._wait(cast(Awaitable[Any], outcome), self._resume, request, i, 0)

    def below(self, plugin: Plugin) -> "Pipeline":
        """The part of the pipeline below a plugin."""
        known = self._below.get(plugin.position)
        if known is None:
            at = self.plugins.index(plugin)
            known = self._below[plugin.position] = Pipeline(self.plugins[at + 1 :])
        return known

    def _resume(self, request: Request, i: int, j: int, found: Any) -> Outcome | Pending:
        if found is None:
            return self.run(request, i + 1)
        if isinstance(found, BaseException):
            found = request.server.failed(request, found)
        return self._ascend(request, i, found)

    def _ascend(self, request: Request, i: int, outcome: Outcome, j: int = 0) -> Outcome | Pending:
        if type(outcome) is Answer:
            finishes = self.own_finishes[i] if outcome.own else self.finishes[i]
            try:
                while j < len(finishes):
                    value = finishes[j](request, outcome)
                    j += 1
                    if type(value) is Answer:
                        outcome = value
                    elif type(value) in OUTCOMES:
                        outcome = cast(Outcome, value)
                        break
                    else:
                        return self._wait(cast(Awaitable[Any], value), self._return, request, i, j)
            except Exception as error:
                outcome = request.server.failed(request, error)
        for settle in self.answer_settles[i] if type(outcome) is Answer else self.settles[i]:
            settle(request, outcome)
        return outcome

    def _return(self, request: Request, i: int, j: int, found: Any) -> Outcome | Pending:
        if isinstance(found, BaseException):
            found = request.server.failed(request, found)
        return self._ascend(request, i, found, j)

    def _wait(self, awaitable: Awaitable[Any], go_on: GoOn, request: Request, i: int, j: int) -> Pending:
        result = Pending()
        adopt(awaitable).add(partial(_landed, result, go_on, request, i, j))
        return result


def _landed(result: Pending, go_on: GoOn, request: Request, i: int, j: int, found: Any) -> None:
    out = go_on(request, i, j, found)
    if type(out) is Pending:
        out.add(result.resolve)
    else:
        result.resolve(out)


def asking_order(plugins: Sequence[Plugin]) -> list[int]:
    """The places of the plugins that handle, in the order they are asked: an owner goes before a cache right above it.

    The outcome is the same: a cache keeps nothing of an owner's, so what the owner answers was never there.
    """
    order = [i for i, plugin in enumerate(plugins) if overrides(plugin, "handle")]
    for at in range(len(order) - 2, -1, -1):
        here = at
        while here + 1 < len(order) and plugins[order[here]].looks_aside and plugins[order[here + 1]].owner:
            order[here], order[here + 1] = order[here + 1], order[here]
            here += 1
    return order
