"""A zone in a store: what a look-up comes to (RFC 1034, section 4.3.2).

A look-up has one of five results. What an empty non-terminal or a wildcard means is the policy of who asks.
"""

import enum
from typing import NamedTuple, final

from kdns.dns import iana
from kdns.store.trie import APEX, CUT, Node, Store


class Result(enum.Enum):
    """What a look-up comes to."""

    HIT = "hit"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    CNAME = "cname"
    DELEGATION = "delegation"


class Found(NamedTuple):
    """A result, the node it stands on (for NXDOMAIN: the closest encloser), and whether the name itself is that node."""

    result: Result
    node: Node
    exact: bool


@final
class Zone:
    """The names of a store at and below an apex."""

    def __init__(self, store: Store, apex: bytes) -> None:
        self.store = store
        self.apex = apex
        self.node = store.add(apex, APEX)

    def lookup(self, name: bytes, qtype: int) -> Found:
        """The result for a lower-cased name in this zone and a query type."""
        node, off = self.store.closest(name)
        exact = off == 0
        above: Node | None = node
        cut: Node | None = None
        while above is not None and above is not self.node:
            if above.flags & CUT and not (above is node and exact and qtype == iana.DS):
                cut = above  # the cut nearest the apex decides: what is below it is not ours
            above = above.parent
        if cut is not None:
            return Found(Result.DELEGATION, cut, exact and cut is node)
        if not exact:
            return Found(Result.NXDOMAIN, node, False)
        if node.rrset(qtype) is not None:
            return Found(Result.HIT, node, True)
        if node.rrset(iana.CNAME) is not None:
            return Found(Result.CNAME, node, True)
        return Found(Result.NODATA, node, True)
