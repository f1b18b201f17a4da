"""Deadlines without a timer a query: one queue for each timeout, whose first entry is always the next to end.

What a callback raises ends that callback alone: the deadlines behind it are met, and the queue goes on.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, final

from kdns import faults

BATCH: Final = 64  # deadlines met before others run: what one calls takes some 20 to 50 microseconds


@final
class Deadline:
    """One running deadline; `cancel` it when what it waits for has come."""

    __slots__ = ("callback", "end")

    def __init__(self, end: float, callback: Callable[[], None] | None) -> None:
        self.end = end
        self.callback = callback

    def cancel(self) -> None:
        """Forgets the callback; the entry leaves the queue when its time comes."""
        self.callback = None


@final
class Deadlines:
    """All deadlines of a loop."""

    def __init__(self) -> None:
        self._queues: dict[float, deque[Deadline]] = {}
        self._armed: set[float] = set()  # the timeouts whose queue has a timer

    def add(self, timeout: float, callback: Callable[[], None]) -> Deadline:
        """Calls back in `timeout` seconds, unless cancelled."""
        queue = self._queues.get(timeout)
        if queue is None:
            queue = self._queues[timeout] = deque()
        deadline = Deadline(monotonic() + timeout, callback)
        queue.append(deadline)
        if timeout not in self._armed:
            self._arm(timeout, timeout)
        return deadline

    def _arm(self, timeout: float, delay: float) -> None:
        self._armed.add(timeout)
        asyncio.get_running_loop().call_later(delay, self._run, timeout)

    def _run(self, timeout: float) -> None:
        queue = self._queues[timeout]
        now = monotonic()
        left = BATCH
        while queue:
            first = queue[0]
            if first.callback is None:
                queue.popleft()
            elif first.end <= now and left:
                left -= 1
                queue.popleft()
                callback, first.callback = first.callback, None
                try:
                    callback()
                except Exception as error:
                    faults.report("a deadline", error)
            else:
                self._arm(timeout, max(first.end - now, 0))
                return
        self._armed.discard(timeout)
        # A queue that is left empty costs a few bytes; timeouts come from configurations, so there are few.
