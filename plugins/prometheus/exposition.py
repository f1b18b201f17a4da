"""All metrics as text, rendered once for all who wait for it.

Laws: a turn of the loop renders one slice of one family; one rendering runs at a time, and all who ask while it runs
share the next one, so what a scraper gets is never older than its request, and many scrapers cost what one does.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from kdns import faults, metrics
from kdns.metrics import Family
from kdns.net.http import Response
from kdns.plugin.runtime import Crew
from kdns.plugins.prometheus import process
from kdns.plugins.prometheus.workers import WorkerMetrics

TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Octets of a piece of the text: one send. Some 17 MB in one piece, from 170,000 lines, take 16 ms to put together.
PIECE: Final = 64 << 10


class Exposition:
    """The text, for those who scrape. With a crew, whose metrics they are too, a resource: what workers had counted
    that have ended outlives a reload.
    """

    def __init__(self, crew: Crew | None = None) -> None:
        self.crew = crew
        self._workers = WorkerMetrics()
        self._running: asyncio.Task[list[bytes]] | None = None
        self._next: asyncio.Task[list[bytes]] | None = None

    async def start(self) -> None:
        """Nothing is done until somebody asks."""

    async def stop(self) -> None:
        """Whoever waits still gets it."""

    async def respond(self) -> Response:
        """The text as it is from now on. Raises what a metric raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._render_after(self._running), name="metrics")
        # Who goes before it is ready takes it from nobody.
        return Response(200, await asyncio.shield(self._next), TYPE)

    async def _render_after(self, before: "asyncio.Task[list[bytes]] | None") -> list[bytes]:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        try:
            if self.crew is not None:
                return await _render((await self._workers.merged(self.crew)), self._workers.process(self.crew.pids()))
            faults.call_each("the refresh of a metric", metrics.REFRESH)
            return await _render(None, process.text())
        finally:
            self._running = None


async def _render(of: Iterable[Family] | None, last: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for text in metrics.families() if of is None else metrics.families(of):
        parts.append(text)
        size += len(text)
        if size >= PIECE:
            pieces.append(b"".join(parts))
            parts, size = [], 0
        await asyncio.sleep(0)
    parts.append(last)
    pieces.append(b"".join(parts))
    return pieces
