"""The signatures that were made, by what they cover: a bounded table, the one that was longest not asked for goes
first.
"""

from collections import OrderedDict
from typing import Final, NamedTuple, final

from kdns.timeslice import emptied

# What an entry may hold at most, in octets of names, rdata and signatures; a larger one is not kept. So a table has at
# most capacity x 4 KB, and mostly a tenth of that: some 400 octets an entry.
MAX_ENTRY: Final = 4096

# What is signed: the zone, the owner, the type, the TTL and the rdatas.
What = tuple[bytes, bytes, int, int, tuple[bytes, ...]]


class Made(NamedTuple):
    """Signatures as RRSIG rdatas. They serve from `inception` until `renew` (seconds of the epoch)."""

    rdatas: tuple[bytes, ...]
    inception: float
    renew: float


@final
class Signatures:
    """The table. `hits` and `misses` are counted by whoever asks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.made: OrderedDict[What, Made] = OrderedDict()

    def __len__(self) -> int:
        return len(self.made)

    def get(self, what: What, now: float) -> Made | None:
        """Signatures that serve now; those that do not any more, or not yet (a clock was set back), are let go of."""
        found = self.made.get(what)
        if found is None:
            return None
        if found.inception <= now < found.renew:
            self.made.move_to_end(what)
            return found
        del self.made[what]
        return None

    def put(self, what: What, made: Made) -> None:
        """Keeps signatures."""
        size = len(what[1]) + sum([len(data) for data in what[4]]) + sum([len(data) for data in made.rdatas])
        if size > MAX_ENTRY or not self.capacity:
            return
        if len(self.made) >= self.capacity:
            self.made.popitem(last=False)
        self.made[what] = made

    async def empty(self) -> None:
        """Lets go of all of them, in turns."""
        await emptied(self.made)
