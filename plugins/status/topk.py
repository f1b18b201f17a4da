"""The most frequent keys of an endless stream, in constant memory: the Misra-Gries summary.

A key that makes up more than one in SIZE + 1 of all is always in it; counts are low by at most that part. What is rare
comes and goes. Each decrement was paid for by an increment, so a key costs constant time on the average.
"""

from typing import Final, final

SIZE: Final = 256  # keys kept: what makes up half a per cent of all is surely among them


@final
class TopK:
    """Counts of the most frequent keys."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[object, int] = {}
        self.total = 0

    def add(self, key: object) -> None:
        """Counts a key."""
        self.total += 1
        counts = self.counts
        if key in counts:
            counts[key] += 1
        elif len(counts) < SIZE:
            counts[key] = 1
        else:
            for each in list(counts):
                if counts[each] == 1:
                    del counts[each]
                else:
                    counts[each] -= 1

    def top(self, count: int) -> list[tuple[object, int]]:
        """The most frequent keys, with a lower bound of their counts."""
        return sorted(self.counts.items(), key=lambda item: -item[1])[:count]

    def fade(self) -> None:
        """Halves all counts, so that yesterday's leaders make room for today's."""
        self.counts = {key: count // 2 for key, count in self.counts.items() if count > 1}
