"""Finished replies that are kept, and denials that speak for a name's neighbours: answers for one look-up.

A reply made of an answer that a store keeps is kept too, under the query's octets behind the id, where no plugin looks at the
client: while the answer is alive, the same octets get the same reply. So is one that a cache would give again, until the TTL
in it changes. A plugin that denies a name can say as much of its neighbours (Request.denial): a name that differs from one
denied before in its leftmost label only is then denied without a request, after the plugin has looked for that label.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, final

from kdns.dns import reply
from kdns.dns.answer import Answer
from kdns.dns.edns import Edns
from kdns.pipeline.block import Block
from kdns.pipeline.request import Alive, Denial, Request

# Finished replies kept, some 400 octets each. Beyond that all are let go: who asks so many different questions gains
# little from them.
MAX_REPEATS: Final = 8192
# Denials that speak for a name's neighbours: a few for each namespace and kind of client.
MAX_NEIGHBOURS: Final = 4096
# What stands before the key of a kept reply, by transport and length of the peer's address (2: IPv4, 4: IPv6): who asks in
# another way is counted apart. One octet shifts the header's count of questions, so a tagged key is never another's untagged one.
WAYS: Final = {("udp", 2): b"", ("udp", 4): b"\1", ("tcp", 2): b"\2", ("tcp", 4): b"\3"}

Settle = Callable[[int, int], None]


class Repeated(NamedTuple):
    """A finished reply, for the same octets behind the id: valid while who holds its answer does, and until its time.

    `until` is in monotonic seconds; 0: no end.
    """

    holder: Alive
    until: float
    reply: bytes  # behind the id
    size: int  # of the reply without OPT
    settles: tuple[Settle, ...]


class _Neighbours(NamedTuple):
    """A denial for all names that differ in the leftmost label only, asked for in the same way."""

    deny: Callable[[bytes, int], Answer | None]
    rest: int  # octets of the question behind the leftmost label, type and class included
    shape: int
    edns: Edns | None
    settles: tuple[Settle, ...]


@final
class Kept:
    """What one listener keeps. `replies` is read by the dispatcher itself, for each query."""

    def __init__(self) -> None:
        self.replies: dict[bytes, Repeated] = {}
        self.neighbours: dict[bytes, _Neighbours] = {}

    def keep(self, way: bytes, request: Request, answer: Answer, packed: bytes) -> None:
        """Keeps a reply until who holds its answer drops it, if it may be repeated."""
        block = request.block
        if block is None or answer.turns or (request.edns is not None and request.edns.options):
            return
        settles = _settles(request, answer, block)
        if settles is None:
            return
        holder: Alive = answer
        until = 0.0
        repeat = request.repeat
        if repeat is not None:
            if repeat.answer is not answer:
                return  # another plugin has changed it
            holder, until = repeat.holder, repeat.until
            settles = (repeat.settle, *settles)
        if len(self.replies) >= MAX_REPEATS:
            self.replies.clear()
        size = request.end + answer.size_of_body
        self.replies[way + request.data[2:]] = Repeated(holder, until, packed[2:], size, settles)

    def deny(self, way: bytes, data: bytes) -> bytes | None:
        """The denial of a name whose neighbour was denied: the same octets but for the id and the leftmost label."""
        stop = 13 + data[12]
        known = self.neighbours.get(way + data[2:12] + data[stop:])
        if known is None or not 12 < stop - 1 < 76:
            return None
        end = stop + known.rest
        answer = known.deny(data[12:stop].lower(), end - 16)
        if answer is None or answer.body is None:
            return None
        for settle in known.settles:
            settle(len(data), end + len(answer.body.data))
        return reply.pack(answer, answer.body, data, end, known.shape, known.edns)

    def meet(self, way: bytes, request: Request, answer: Answer, denial: Denial) -> None:
        """Keeps what a denial says of a name's neighbours, where nothing above or beside its plugin looks at names."""
        block = request.block
        data = request.data
        simple = request.edns is None or not request.edns.options
        if block is None or answer is not denial.answer or block.pipeline.first is not denial.plugin or not simple:
            return
        settles = _settles(request, answer, block)
        if settles is None:
            return
        if len(self.neighbours) >= MAX_NEIGHBOURS:
            self.neighbours.clear()
        stop = 13 + data[12]
        key = way + data[2:12] + data[stop:]
        self.neighbours[key] = _Neighbours(denial.deny, request.end - stop, request.shape, request.edns, settles)


def _settles(request: Request, answer: Answer, block: Block) -> tuple[Settle, ...] | None:
    """What settles replies like this one without a request; None where a plugin must see each."""
    out = []
    for plugin in block.pipeline.repeaters:
        settle = plugin.repeat(request, answer)
        if settle is None:
            return None
        out.append(settle)
    return tuple(out)
