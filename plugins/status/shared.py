"""A reply that is made once for all who ask for it at about the same time.

Laws: one is made at a time, in slices, and making them takes at most a twentieth of the loop's time, however many ask:
two hundred browsers cost what a few do. Who asks in calm times gets what is true now; nobody gets what was true over a
second ago.

Theory of operation: an account of seconds grows by a twentieth of the time that passes, up to a tenth of a second, and
falls by the time that each reply took. While it is overdrawn the last reply is given again.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, final

from kdns.net.http import Response
from kdns.timeslice import TimeSlice

PART: Final = 0.05  # of the time, for making replies
SAVED: Final = 0.1  # seconds: tens of replies in a row, as scripts and tests ask for them
# Seconds for which a reply is given at most: less than a page waits between two looks, however busy the machine was.
LONGEST: Final = 1.0
_ROWS: Final = 20  # rows of a table encoded between two looks at the clock: some 0.1 ms


@final
class Shared:
    """The reply; `clock` says the time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._account = SAVED
        self._counted = clock()
        self._made: Response | None = None
        self._making: asyncio.Task[Response] | None = None

    async def get(self, make: Callable[[], Awaitable[Response]]) -> Response:
        """The reply as `make` makes it, now or a moment ago. Raises what making it raises."""
        if self._making is None:
            now = self._clock()
            self._account = min(SAVED, self._account + (now - self._counted) * PART)
            self._counted = now
            if self._made is not None and self._account < 0:
                return self._made
            self._making = asyncio.create_task(self._remake(make), name="status page")
        # Who goes before it is ready takes it from nobody.
        return await asyncio.shield(self._making)

    async def _remake(self, make: Callable[[], Awaitable[Response]]) -> Response:
        began = self._clock()
        try:
            self._made = await make()
            return self._made
        finally:
            self._counted = self._clock()
            self._account = max(self._account - (self._counted - began), -LONGEST * PART)
            self._making = None


async def as_json(found: Mapping[str, Any]) -> Response:
    """A JSON object whose long lists are encoded in slices."""
    slice_ = TimeSlice()
    parts = []
    for key, value in found.items():
        if isinstance(value, list):
            rows = []
            for at in range(0, len(value), _ROWS):
                rows.append(json.dumps(value[at : at + _ROWS])[1:-1])
                await slice_.pause()
            text = f"[{', '.join(rows)}]"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
        await slice_.pause()
    return Response(200, ("{" + ", ".join(parts) + "}").encode(), "application/json")
