"""The shares of clients in a listener's connections, and which connection is closed when there is no room.

Laws: whoever holds fewer connections than another gets one more at that other's cost, so no number of clients keeps a
new one out; a client at its own limit loses its own connection, not somebody else's; each step looks at a few
connections, never at all.

Theory of operation. Clients are kept by how many connections they hold, so the largest holders are known at once. A few
of them, and a few of each one's connections, are looked at from the oldest on, and the connection whose deadline is
nearest gives way; all that were looked at go to the end, so that the next look is at others. A connection that waits
for nothing gives way before one with a query in flight.
"""

from typing import Final, Generic, Protocol, TypeVar

LOOKS: Final = 8  # holders, and connections of each, looked at for one that gives way: some 15 µs, an accept costs 50


class Connection(Protocol):
    """The state of a connection. `deadline` is when it ends if nothing comes; `pending` are its queries in
    flight.
    """

    deadline: float
    pending: int


C = TypeVar("C", bound=Connection)


class Shares(Generic[C]):
    """The connections of one listener by client. A client is the text of its address."""

    def __init__(self) -> None:
        self.total = 0
        self.most = 0  # connections of the largest holder
        self._held: dict[str, dict[C, None]] = {}
        self._holders: dict[int, dict[str, None]] = {}  # by how many each holds

    def count(self, client: str) -> int:
        """How many connections a client holds."""
        held = self._held.get(client)
        return 0 if held is None else len(held)

    def add(self, client: str, connection: C) -> None:
        """A connection more."""
        held = self._held.get(client)
        if held is None:
            held = self._held[client] = {}
        held[connection] = None
        self.total += 1
        self._moved(client, len(held) - 1, len(held))

    def remove(self, client: str, connection: C) -> bool:
        """A connection less; says whether it was still there."""
        held = self._held.get(client)
        if held is None or connection not in held:
            return False
        del held[connection]
        self.total -= 1
        self._moved(client, len(held) + 1, len(held))
        if not held:
            del self._held[client]
        return True

    def room(self, client: str, most: int, most_of_client: int) -> bool:
        """True if a client may have one more. `most` is the limit for all clients, `most_of_client` that for each."""
        return self.total < most and self.count(client) < most_of_client

    def gives_way(self, client: str, most_of_client: int) -> C | None:
        """The connection that gives way where there is no room for one more of a client; None: the new one has to."""
        count = self.count(client)
        if count >= most_of_client or count >= self.most:
            return self._idlest(client, False)
        holders = self._holders[self.most]
        looked = [holder for holder, _ in zip(holders, range(LOOKS), strict=False)]
        for holder in looked:
            del holders[holder]
            holders[holder] = None
        found = [idlest for holder in looked if (idlest := self._idlest(holder, self.most > count + 1)) is not None]
        return min(found, key=_readiness, default=None)

    def _idlest(self, client: str, even_busy: bool) -> C | None:
        """The connection of a client that gives way. `even_busy`: one with queries in flight if there is no other."""
        held = self._held.get(client)
        if held is None:
            return None
        looked = [connection for connection, _ in zip(held, range(LOOKS), strict=False)]
        for connection in looked:
            del held[connection]
            held[connection] = None
        found = min(looked, key=_readiness)
        return found if even_busy or not found.pending else None

    def _moved(self, client: str, before: int, after: int) -> None:
        if before:
            holders = self._holders[before]
            del holders[client]
            if not holders:
                del self._holders[before]
        if after:
            self._holders.setdefault(after, {})[client] = None
        if after > self.most:
            self.most = after
        elif before == self.most and before not in self._holders:
            self.most = after  # one less than before: the client itself is among those who hold most now


def _readiness(connection: Connection) -> tuple[bool, float]:
    """The least gives way first: who waits for nothing, then whose deadline is nearest."""
    return connection.pending > 0, connection.deadline
