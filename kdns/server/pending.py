"""Queries that wait for the network: one bounded table a listener, with one deadline for all, so that its first entry
is always the oldest; and bounded work that outlives its reply.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final, final

from kdns import faults
from kdns.deadlines import Deadlines
from kdns.dns import iana
from kdns.metrics import Counter
from kdns.net.udp import Shedding
from kdns.plugin.outcome import DROP, Pending, RcodeOnly, ensure_pending
from kdns.plugin.request import Request

# Queries that may wait for an upstream, in all. Each costs some 2 KB; a burst beyond is answered SERVFAIL at once.
MAX_PENDING: Final = 20_000
# Of one client's address, so that no one takes all places. Half: behind NAT many clients have one address.
MAX_PENDING_CLIENT: Final = MAX_PENDING // 2
# Seconds a query may wait: an upstream's five and a half, and some for a chain of names. Clients wait five.
DEADLINE: Final = 12.0
# Seconds after which nobody waits for a reply: glibc, musl and Go ask again after five.
CLIENT_TIMEOUT: Final = 5.0
MAX_DETACHED: Final = 1000
SWEPT: Final = 64  # that are answered before others run: at some 20 microseconds each, 1.3 ms

OVERFLOWS = Counter(
    "kdns_pending_refused_total", "Queries answered SERVFAIL because too many waited.", ("server", "reason")
)
EXPIRED = Counter("kdns_pending_expired_total", "Queries answered SERVFAIL because no plugin did in time.", ("server",))

# From what a query came to, an outcome, an exception or None, to what its Pending resolves to.
Finish = Callable[[Request, Any], Any]


@final
class PendingTable:
    """The queries of one listener that wait."""

    def __init__(self, label: str, finish: Finish, give_up: Callable[[Request, str], Any]) -> None:
        self.label = label
        self.finish = finish
        self.give_up = give_up
        self.table: dict[Pending, tuple[float, Request]] = {}
        self.clients: dict[Any, int] = {}  # a client's host -> its queries in the table
        self.most_of_client = MAX_PENDING_CLIENT
        self.exempt: Callable[[str], bool] | None = None
        self.shed: Shedding | None = None
        self.full_until = 0.0  # until when nobody in a full table has given up
        self.detached: set[Pending] = set()
        self.deadlines = Deadlines()
        self.timer: asyncio.TimerHandle | None = None

    def limit(self, most_of_client: int, exempt: Callable[[str], bool] | None) -> None:
        """Lets fewer (or more) queries of a client wait, but for those that `exempt` says; 0 and None leave all as it
        is.
        """
        self.most_of_client = most_of_client or self.most_of_client
        self.exempt = exempt or self.exempt

    def _too_many(self, host: str, waiters: int) -> bool:
        """True if a client with so many queries in the table may have no more."""
        return waiters >= self.most_of_client and (self.exempt is None or not self.exempt(host))

    def add(self, request: Request, pending: Pending) -> Any:
        """A Pending of the finished reply; the reply itself where it is there already, or where there is no room."""
        if pending.done:
            return self.finish(request, pending.value)
        host = request._client[0]
        waiters = self.clients.get(host, 0)
        full = len(self.table) >= MAX_PENDING and not self._made_room(request.now)
        if full or self._too_many(host, waiters):
            OVERFLOWS.slot(self.label, "all" if full else "client")[0] += 1
            return self.give_up(request, "too many queries wait for an upstream")
        result = Pending()
        self.clients[host] = waiters + 1
        self.table[result] = (request.now + DEADLINE, request)
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(DEADLINE, self._sweep)
        pending.add(partial(self._on_done, request, result))
        if request.timeout and not result.done:
            self.deadlines.add(request.timeout, partial(self._on_done, request, result, DROP))
        return result

    def _made_room(self, now: float) -> bool:
        """Drops queries that have waited longest, where that is asked for and their clients have given up by now.

        Younger ones stay: who waits for a slow upstream would get nothing if each gave way to the next.
        """
        if self.shed is None or now < self.full_until:
            return False
        # Some in one pass, as in `_sweep`.
        late: list[Pending] = []
        for result, (deadline, _) in self.table.items():
            given_up = deadline - DEADLINE + CLIENT_TIMEOUT
            if given_up > now or len(late) == SWEPT:
                if not late:
                    self.full_until = given_up
                break
            late.append(result)
        for result in late:
            entry = self.table.get(result)
            if entry is not None:
                self._on_done(entry[1], result, DROP)
        if late:
            self.shed.dropped(self.label, "waiting", len(late))
        return bool(late)

    def close(self) -> None:
        """Ends for good: answers what still waits, and lets go of who finishes replies."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        for result, (_, request) in list(self.table.items()):
            self._on_done(request, result, RcodeOnly(iana.SERVFAIL, "the server is reloaded or stopped"))
        self.finish = self.give_up = _closed

    def detach(self, awaitable: Any) -> None:
        """Lets bounded work outlive the reply; beyond MAX_DETACHED it is not begun."""
        if len(self.detached) >= MAX_DETACHED:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            return
        pending = ensure_pending(awaitable)
        if not pending.done:
            self.detached.add(pending)
            pending.add(partial(self._ended, pending))

    def _ended(self, pending: Pending, value: Any) -> None:
        self.detached.discard(pending)
        if isinstance(value, Exception):
            faults.report("work that outlived its reply", value)

    def _on_done(self, request: Request, result: Pending, value: Any) -> None:
        if self.table.pop(result, None) is not None:
            self._leave(request)
            result.resolve(self.finish(request, value))

    def _leave(self, request: Request) -> None:
        host = request._client[0]
        left = self.clients[host] - 1
        if left:
            self.clients[host] = left
        else:
            del self.clients[host]

    def _sweep(self) -> None:
        """Answers SERVFAIL to what has waited too long. The table is in the order of arrival: the first is the
        oldest.
        """
        self.timer = None
        now = monotonic()
        # Looked for in one pass: each first key of a dict is found by stepping over all that were deleted before it.
        expired: list[Pending] = []
        wait = -1.0
        for result, (deadline, _) in self.table.items():
            if deadline > now or len(expired) == SWEPT:
                wait = max(deadline - now + 0.01, 0)
                break
            expired.append(result)
        if wait >= 0:
            self.timer = asyncio.get_running_loop().call_later(wait, self._sweep)
        for result in expired:
            entry = self.table.pop(result, None)
            if entry is not None:
                self._leave(entry[1])
                EXPIRED.slot(self.label)[0] += 1
                result.resolve(self.give_up(entry[1], "no plugin answered in time"))


def _closed(request: Request, value: Any) -> None:
    """No reply: who would make one is gone."""
