"""Garbage collection as a policy: never a long pass over what does not change.

A full pass over an index of 150,000 endpoints takes 80 to 190 ms, over the imports alone 9 to 14. So nothing is
collected while the server is built; once it is, everything there is frozen (moved where no pass looks). From then on
a pass runs when some 8,000 new containers stand, and what survives it is frozen too. It is never off for good:
tracebacks and HTTP clients make cycles.

What is frozen and then becomes garbage is found by no pass: only reference counting frees it. So what lives long and
ends before the process does (a configuration, a cluster's state, a connection) must not hold itself in a cycle: whoever
stops it takes it apart.
"""

import gc
import time
from collections.abc import Callable
from typing import Any, Final

from kdns.metrics import MAX, Counter, Gauge, Histogram

# Young objects that start a pass, and passes after which what survived is frozen: 8,000 containers take 1 to 2 ms.
_YOUNG: Final = 2_000
_PASSES: Final = 4

PASSES = Histogram(
    "kdns_gc_pass_duration_seconds",
    "Time garbage collection held the loop, by generation.",
    (0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5),
    ("generation",),
)
_longest: Final = [0.0]
_began: Final = [0.0]
_pauses: Final = [0]
_frozen: Final = [False]
_usual: Final = gc.get_threshold()

LONGEST = Gauge(
    "kdns_gc_pass_longest_seconds", "The longest pass since the server was built.", read=lambda: _longest[0], across=MAX
)
PAUSES = Counter("kdns_gc_holds_total", "Times collection was paused during long work.")


def _timed(phase: str, info: dict[str, Any]) -> None:
    if phase == "start":
        _began[0] = time.perf_counter()
        return
    took = time.perf_counter() - _began[0]
    generation = int(info["generation"])
    PASSES.observe(PASSES.slot(str(generation)), took)
    _longest[0] = max(_longest[0], took)
    if generation >= 1:
        gc.freeze()


def suspend() -> None:
    """First thing: no collection until `freeze`."""
    gc.disable()


def freeze() -> None:
    """After build and sync: collect once, freeze, and collect by the policy from now on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _PASSES, 1_000)
    if _timed not in gc.callbacks:
        gc.callbacks.append(_timed)
    _longest[0] = 0.0
    _frozen[0] = True
    if not _pauses[0]:
        gc.enable()


def release() -> None:
    """The server has ended: collection is Python's own again, for whatever the process does next."""
    if _timed in gc.callbacks:
        gc.callbacks.remove(_timed)
    _frozen[0] = False
    gc.set_threshold(*_usual)
    gc.unfreeze()
    gc.enable()


def pause() -> Callable[[], None]:
    """No collection during long work (a relist); call what is returned when it is over."""
    _pauses[0] += 1
    PAUSES.slot()[0] += 1
    gc.disable()

    def over() -> None:
        _pauses[0] -= 1
        if not _pauses[0] and _frozen[0]:
            if gc.get_count()[0] > _YOUNG * _PASSES:
                gc.freeze()  # too much for a pass; what is less goes through one, which finds what is garbage already
            gc.enable()

    return over
