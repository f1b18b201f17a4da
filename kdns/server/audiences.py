"""Who asks a listener: whether a client's query is answered at all, and with which clients' replies.

`gate` judges each query before anything of it is read (`limits`). An audience is a number for what a client may see
(`tenants`, `blocklist`); where several plugins tell clients apart, each combination of their numbers gets one.
"""

from collections import OrderedDict
from typing import Final, final

from kdns.dns import iana, reply
from kdns.dns.errors import FormatError
from kdns.dns.query import parse
from kdns.net import Address
from kdns.plugin.base import DENIED, IGNORED, Audience
from kdns.server.accept import check

# Combinations of the audiences of several plugins; past that the oldest one gets another number.
MAX_AUDIENCES: Final = 1 << 14


@final
class Audiences:
    """The plugins of a listener that tell its clients apart."""

    def __init__(self) -> None:
        self.all: tuple[Audience, ...] = ()
        self.combined: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self.combinations = 0

    def add(self, audience: Audience) -> None:
        """Tells clients apart by this one too."""
        if audience not in self.all:
            self.all = (*self.all, audience)

    def number(self, client: Address) -> int:
        """The number of a client's audiences, taken together."""
        audiences = self.all
        if len(audiences) == 1:
            return audiences[0](client)
        key = tuple([audience(client) for audience in audiences])
        found = self.combined.get(key)
        if found is None:
            if len(self.combined) >= MAX_AUDIENCES:
                self.combined.popitem(last=False)
            self.combinations += 1  # a number is never used again
            found = self.combined[key] = self.combinations
        return found


def turned_away(data: bytes, verdict: int) -> bytes | None:
    """The reply to a query that a gate has not let pass. What is not a well-formed query gets none."""
    if verdict == IGNORED or check(data) is not None:
        return None
    try:
        _, end, edns, _ = parse(data)
    except FormatError:
        return None
    if verdict == DENIED:
        return reply.bare(data, end, iana.REFUSED, edns)
    made = bytearray(reply.bare(data, end, iana.NOERROR, edns))
    made[2] |= iana.TC >> 8
    # Without RA an empty reply reads as a lame referral, and a stub resolver looks at that before TC.
    made[3] |= iana.RA
    return bytes(made)
