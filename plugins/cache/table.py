"""The table of the plugin `cache`: stored answers by key, bounded in count and in octets.

Laws: a table ends the validity of an entry that it removes or replaces, so no copy of it is served on.
"""

from collections import deque
from typing import Final, final

from kdns.dns.answer import Answer, Validity

ENTRY_OCTETS: Final = 4096  # on the average; a usual answer has 100 to 500
CHANCES: Final = 8  # entries in use that one eviction passes over: a bound for its work


@final
class CacheEntry:
    """A stored answer. Times are monotonic seconds; `ttl` is the one it was stored with."""

    __slots__ = ("aged", "answer", "asked", "checked", "expires", "fresh", "hits", "left", "octets", "ttl", "validity")

    def __init__(self, answer: Answer, now: float, ttl: float) -> None:
        self.answer = answer
        self.octets = len(answer.name) + (len(answer.body.data) if answer.body is not None else 0) + len(answer.options)
        self.expires = now + ttl
        self.ttl = ttl
        self.left = -1
        self.aged = answer
        self.hits = 0
        self.asked = now
        self.fresh = False  # a refresh is under way
        self.validity = Validity(self.expires, ages=True)  # of what is served of it while it is in the cache
        self.checked = -1e9  # when a refresh failed last

    def count_hit(self, now: float, gap: float) -> None:
        """Counts a hit; after a gap of so many seconds the count begins anew."""
        self.hits = 1 if now - self.asked > gap else self.hits + 1
        self.asked = now


@final
class Table:
    """Entries by key, evicted in the order in which they were stored (CLOCK). Bounded in count and in octets."""

    __slots__ = ("entries", "label", "octets", "order")

    def __init__(self, label: str) -> None:
        self.label = label
        self.entries: dict[bytes, CacheEntry] = {}
        self.octets = 0
        # Keys in the order they came; one that was removed meanwhile stays here until its turn. (The first key of a
        # dict that others were deleted from in front is found by stepping over all of those.)
        self.order: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, key: bytes, entry: CacheEntry, capacity: int) -> int:
        """Stores an entry in place of an older one under its key; returns how many others were evicted."""
        entries = self.entries
        old = entries.get(key)
        evicted = 0
        if old is not None:
            self.octets -= old.octets
            entry.hits = old.hits
            old.validity.end()
        else:
            if len(self.order) > 2 * capacity:
                self.order = deque(entries)
            self.order.append(key)
        entries[key] = entry
        self.octets += entry.octets
        chances = CHANCES
        while len(entries) > capacity or self.octets > capacity * ENTRY_OCTETS:
            first = self.order.popleft()
            found = entries.get(first)
            if found is not None and found.left >= 0 and chances:
                # It was asked for since: it gets a second chance, as in the algorithm called CLOCK.
                chances -= 1
                found.left = -1
                self.order.append(first)
            else:
                evicted += self.remove(first)
        return evicted

    def remove(self, key: bytes) -> int:
        """Removes an entry and ends its validity; returns how many that were (0 or 1)."""
        entry = self.entries.pop(key, None)
        if entry is None:
            return 0
        self.octets -= entry.octets
        entry.validity.end()
        return 1
