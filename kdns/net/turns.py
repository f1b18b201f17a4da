"""Turns of the loop that many connections share.

Law: what all of them do in one turn, to decrypt what has come and to answer it, takes LOOP_SECONDS and one step more,
so that nobody else waits for as many milliseconds as there are connections. Whoever must wait has its turn in the order
in which it came.
"""

import asyncio
from collections import deque
from typing import Final, Protocol, final

# Seconds of work in one turn of the loop, all connections of a listener: as much as UDP has. With a millisecond for
# each, 300 connections that pipeline made everybody else wait 300 ms.
LOOP_SECONDS: Final = 0.001
# Below that, what was spent is not set back to nothing at once: to come back for it costs a turn of the loop.
LITTLE: Final = LOOP_SECONDS / 2


class Resumes(Protocol):
    """What has turns."""

    def resume(self) -> None:
        """Takes one step, and tells `Turns.spend` how long it took."""


@final
class Turns:
    """The turns of one listener's connections. `queue`: those that wait for theirs."""

    def __init__(self) -> None:
        self.queue: deque[Resumes] = deque()
        self.spent = 0.0  # seconds since the last turn of the loop
        self.coming_back = False

    def over(self) -> bool:
        """True if who comes now must wait: others do, or this turn's time is spent."""
        return bool(self.queue) or self.spent >= LOOP_SECONDS

    def left(self) -> float:
        """Seconds that are left of this turn."""
        return LOOP_SECONDS - self.spent

    def wait(self, connection: Resumes) -> None:
        """A connection has its turn later."""
        self.queue.append(connection)
        self._come_back()

    def spend(self, seconds: float) -> None:
        """A step has taken so long."""
        self.spent += seconds
        if self.spent >= LITTLE:
            self._come_back()

    def _come_back(self) -> None:
        if not self.coming_back:
            self.coming_back = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self.coming_back = False
        self.spent = 0.0
        queue = self.queue
        try:
            for _ in range(len(queue)):
                queue.popleft().resume()
                if self.spent >= LOOP_SECONDS:
                    return
        finally:
            if queue:
                self._come_back()
