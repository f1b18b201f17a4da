"""What each plugin did with a question, and how long it took: for `kdns explain`.

A Trace is the Watch that a configuration is built with, so it sees every pass: also those that a plugin starts itself
(the target of a CNAME, the names of a search list), in other server blocks too. A step stands where it began, so what
it started comes after it, one level deeper; its time holds theirs.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from kdns.cli.offline import LEFT_OUT
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import to_text
from kdns.plugin.base import Plugin
from kdns.plugin.outcome import DROP, RcodeOnly, ensure_pending
from kdns.plugin.request import Request
from kdns.server.chain import Handle, OnAnswer

_PASSED: Final = "passes it on"
_KEPT: Final = "leaves the answer as it is"


class Step:
    """One hook of one plugin, as it went. `decides`: the question or the answer is another after it."""

    __slots__ = ("began", "decides", "depth", "plugin", "said", "took")

    def __init__(self, plugin: str, depth: int, began: float) -> None:
        self.plugin = plugin
        self.depth = depth
        self.began = began
        self.said = "does not come to an end"
        self.decides = False
        self.took = 0.0  # seconds


class Trace:
    """The steps of one question, for `build`. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.steps: list[Step] = []
        self.began = 0.0

    def begin(self) -> None:
        """Another question comes: what is known of the one before is forgotten."""
        self.steps.clear()
        self.began = self.clock()

    def lines(self, outcome: object, whole: bool) -> list[str]:
        """The steps and the outcome as lines. `whole`: every step with its time; else the query's own that decided."""
        if not whole:
            own = [step for step in self.steps if step.decides and not step.depth]
            return [*(f"  {step.plugin}: {step.said}" for step in own), f"  = {said(outcome)}"]
        took = self.clock() - self.began
        told = [f"{'  ' * (step.depth + 1)}{step.plugin}: {step.said} [{_ms(step.took)}]" for step in self.steps]
        return [*told, f"  = {said(outcome)} [{_ms(took)}]"]

    def handle(self, plugin: Plugin, hook: Handle) -> Handle:
        """A plugin's `handle` that is told of."""
        if plugin.name in LEFT_OUT:
            return hook

        def handle(request: Request) -> Any:
            before = request.question
            step = self._step(plugin.name, request)

            def tell(found: Any) -> None:
                self._end(step)
                step.said = said(found)
                after = request.question
                if after is not before:
                    step.said += f" (asks for {to_text(after.name)} {iana.type_text(after.type)} from here on)"
                step.decides = found is not None or after is not before
                why = "" if isinstance(found, BaseException) else _why(plugin, request)
                step.said += f" - {why}" if why else ""

            return _told(tell, lambda: hook(request))

        return handle

    def on_answer(self, plugin: Plugin, hook: OnAnswer) -> OnAnswer:
        """A plugin's `on_answer` that is told of."""
        if plugin.name in LEFT_OUT:
            return hook

        def on_answer(request: Request, answer: Answer) -> Any:
            step = self._step(f"{plugin.name}, on the way back", request)

            def tell(found: Any) -> None:
                self._end(step)
                step.said = _change(answer, found)
                step.decides = said(answer) != said(found)

            return _told(tell, lambda: hook(request, answer))

        return on_answer

    def _step(self, name: str, request: Request) -> Step:
        step = Step(name, request.depth, self.clock())
        self.steps.append(step)
        return step

    def _end(self, step: Step) -> None:
        step.took = self.clock() - step.began


def said(outcome: object) -> str:
    """What a plugin gave, in a few words."""
    if outcome is None:
        return _PASSED
    if type(outcome) is Answer:
        count = sum(len(rrset.rdatas) for rrset in outcome.answer)
        code = iana.rcode_text(outcome.rcode)
        if not count and outcome.rcode == iana.NOERROR:
            code = "NODATA (the name exists, with no record of this type)"
        return f"{code}, {count} record{'s' * (count != 1)}" if count else code
    if type(outcome) is RcodeOnly:
        return iana.rcode_text(outcome.rcode) + (f": {outcome.error}" if outcome.error else "")
    if isinstance(outcome, BaseException):
        return f"fails: {type(outcome).__name__}: {outcome}"
    return "no reply" if outcome is DROP else "a zone transfer"


def _change(before: Answer, after: object) -> str:
    if after is before:
        return _KEPT
    if type(after) is not Answer or said(before) != said(after):
        return f"makes it {said(after)}"
    if [rrset.owner for rrset in before.answer] != [rrset.owner for rrset in after.answer]:
        return "changes the records' names"
    if [rrset.rdatas for rrset in before.answer] != [rrset.rdatas for rrset in after.answer]:
        return "changes the records, or their order"
    if [rrset.ttl for rrset in before.answer] != [rrset.ttl for rrset in after.answer]:
        return "changes the TTL"
    if after.rotations and not before.rotations:
        return "has its records take turns at the top"
    return "changes other parts of the answer"


def _why(plugin: Plugin, request: Request) -> str:
    try:
        return plugin.explain(request)
    except Exception as error:  # of anybody's plugin; the question is answered all the same
        return f"its explain() failed: {type(error).__name__}: {error}"


def _told(tell: Callable[[Any], None], call: Callable[[], Any]) -> Any:
    """What a hook gives, told of now or once it is there. Raises what the hook raises."""
    try:
        value = call()
    except Exception as error:
        tell(error)
        raise
    if value is None or not hasattr(value, "__await__"):
        tell(value)
        return value
    pending = ensure_pending(value)
    pending.add(tell)
    return pending


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
