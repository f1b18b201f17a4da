"""The chain: one server block's plugins, compiled into flat tuples.

Theory of operation. A query goes down: each `handle` in the fixed order, until one gives an outcome. An Answer goes
back up through the `on_answer`s of the plugins above the place it came from, nearest first; any other outcome through
their `on_failure`s. No plugin calls the next one, so the depth of the stack does not grow with the chain. What happens
is the same whether an outcome is there at once or later: `run` and `_ascend` are entered again at the place they left,
with the value that was waited for.

An exception at plugin i is RcodeOnly(SERVFAIL, error) from there. A cancelled query is DROP.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast, final

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.plugin.base import Plugin, in_query_path, overrides
from kdns.plugin.outcome import OUTCOMES, NoNextPlugin, Outcome, Pending, RcodeOnly, ensure_pending
from kdns.plugin.request import Request

Handle = Callable[[Request], Outcome | Awaitable[Outcome | None] | None]
OnAnswer = Callable[[Request, Answer], Answer | Awaitable[Answer]]
OnFailure = Callable[[Request, Outcome], None]
Resume = Callable[[Request, int, int, Any], Outcome | Pending]


class Watch(Protocol):
    """A tool that tells what the plugins do: for each hook it gives the one to call in its place."""

    def handle(self, plugin: Plugin, hook: Handle) -> Handle:
        """In place of a plugin's `handle`."""

    def on_answer(self, plugin: Plugin, hook: OnAnswer) -> OnAnswer:
        """In place of a plugin's `on_answer`."""


@final
class Chain:
    """The compiled hooks. `empty`: no plugin takes part in queries. `pure`: all that can change an outcome are.

    `watch` sees each hook of the chain, and of the chains below its plugins.
    """

    def __init__(self, plugins: Sequence[Plugin], watch: Watch | None = None) -> None:
        self.plugins = tuple(plugins)
        self.watch = watch
        places = [i for i, plugin in enumerate(plugins) if overrides(plugin, "handle")]
        self.handles: tuple[Handle, ...] = tuple([self._handle(plugins[i]) for i in places])
        # For each place an outcome can come from (the last: the chain's end), the hooks above it, nearest first.
        above = [list(reversed(plugins[:place])) for place in (*places, len(plugins))]
        self.on_answers: tuple[tuple[OnAnswer, ...], ...] = tuple(
            [tuple([self._on_answer(p) for p in those if overrides(p, "on_answer")]) for those in above]
        )
        self.on_failures: tuple[tuple[OnFailure, ...], ...] = tuple(
            [tuple([p.on_failure for p in those if overrides(p, "on_failure")]) for those in above]
        )
        self.empty = not any(in_query_path(p) for p in plugins)
        takes_part = [p for p in plugins if any(overrides(p, hook) for hook in ("handle", "on_answer", "on_failure"))]
        self.pure = all(p.pure for p in takes_part)
        self._below: dict[int, Chain] = {}

    def run(self, request: Request, i: int = 0) -> Outcome | Pending:
        """Takes a request through the plugins from place `i` on. What is not there yet is a Pending."""
        if not self.pure:
            request.root.personal = True
        handles = self.handles
        count = len(handles)
        try:
            outcome: Any = None
            while i < count:
                outcome = handles[i](request)
                if outcome is not None:
                    break
                i += 1
            else:
                outcome = RcodeOnly(iana.SERVFAIL, NoNextPlugin())
        except Exception as error:
            outcome = request.server.failed(request, error)
        if type(outcome) is Answer or type(outcome) in OUTCOMES:
            return self._ascend(request, i, outcome, 0)
        return self._wait(outcome, self._resume, request, i, 0)

    def fail(self, request: Request, failure: Outcome) -> None:
        """Shows a failure that no plugin gave, such as a query that waited too long, to all `on_failure`s."""
        for hook in self.on_failures[-1]:
            try:
                hook(request, failure)
            except Exception as error:
                request.server.failed(request, error)

    def below(self, plugin: Plugin) -> "Chain":
        """The part of the chain below a plugin."""
        known = self._below.get(plugin.position)
        if known is None:
            at = self.plugins.index(plugin)
            known = self._below[plugin.position] = Chain(self.plugins[at + 1 :], self.watch)
        return known

    def _handle(self, plugin: Plugin) -> Handle:
        return plugin.handle if self.watch is None else self.watch.handle(plugin, plugin.handle)

    def _on_answer(self, plugin: Plugin) -> OnAnswer:
        return plugin.on_answer if self.watch is None else self.watch.on_answer(plugin, plugin.on_answer)

    def _resume(self, request: Request, i: int, j: int, found: Any) -> Outcome | Pending:
        if found is None:
            return self.run(request, i + 1)
        return self._ascend(request, i, self._checked(request, found), 0)

    def _ascend(self, request: Request, i: int, outcome: Outcome, j: int) -> Outcome | Pending:
        if type(outcome) is Answer:
            hooks = self.on_answers[i]
            count = len(hooks)
            try:
                while j < count:
                    value: Any = hooks[j](request, outcome)
                    j += 1
                    if type(value) is Answer:
                        outcome = value
                    elif type(value) in OUTCOMES:
                        outcome = value
                        break
                    else:
                        return self._wait(value, self._return, request, i, j)
            except Exception as error:
                outcome = request.server.failed(request, error)
        if type(outcome) is not Answer:
            for hook in self.on_failures[i]:
                try:
                    hook(request, outcome)
                except Exception as error:
                    outcome = request.server.failed(request, error)
        return outcome

    def _return(self, request: Request, i: int, j: int, found: Any) -> Outcome | Pending:
        return self._ascend(request, i, self._checked(request, found), j)

    def _checked(self, request: Request, found: Any) -> Outcome:
        """What was waited for as an outcome: an exception, or what is none, is a failure."""
        if type(found) in OUTCOMES:
            return cast(Outcome, found)
        error = found if isinstance(found, BaseException) else TypeError(f"a plugin gave no outcome but {found!r}")
        return request.server.failed(request, error)

    def _wait(self, awaitable: Awaitable[Any], resume: Resume, request: Request, i: int, j: int) -> Outcome | Pending:
        try:
            source = ensure_pending(awaitable)
        except TypeError as error:  # neither an outcome nor awaitable
            return self._ascend(request, i, request.server.failed(request, error), 0)
        if source.done:
            return resume(request, i, j, source.value)
        result = Pending()
        source.add(partial(_resumed, result, resume, request, i, j))
        return result


def _resumed(result: Pending, resume: Resume, request: Request, i: int, j: int, found: Any) -> None:
    out = resume(request, i, j, found)
    if type(out) is Pending:
        out.add(result.resolve)
    else:
        result.resolve(out)
