"""DNS over TCP and TLS: queries pipelined on kept connections, told apart by their ids (RFC 7766, section 6.2.1.1; RFC
7858).
"""

from typing import ClassVar, Final, final

from kdns.upstream.connections import Connection, Connections, InFlightQuery
from kdns.upstream.exchange import matching_reply, new_id

MAX_PIPELINED: Final = 200  # queries on one connection at a time; beyond that another is opened


@final
class TcpConnections(Connections):
    """The connections to one upstream."""

    pipelined: ClassVar[int] = MAX_PIPELINED

    def make(self) -> Connection:
        return _Connection(self)


@final
class _Connection(Connection):
    def __init__(self, owner: TcpConnections) -> None:
        super().__init__(owner)
        self.buffer = b""

    def room(self) -> bool:
        return len(self.flights) < MAX_PIPELINED

    def put(self, flight: InFlightQuery) -> int:
        assert self.transport is not None
        qid = new_id()
        while int.from_bytes(qid, "big") in self.flights:
            qid = new_id()
        self.transport.write(len(flight.query).to_bytes(2, "big") + qid + flight.query[2:])
        return int.from_bytes(qid, "big")

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        off, total = 0, len(buffer)
        while off + 2 <= total:
            stop = off + 2 + (buffer[off] << 8 | buffer[off + 1])
            if stop > total:
                break
            self._frame(buffer[off + 2 : stop])
            off = stop
        self.buffer = buffer[off:]
        self.owner.flush()
        self.close_if_idle()

    def _frame(self, data: bytes) -> None:
        key = int.from_bytes(data[:2], "big")
        flight = self.flights.get(key)
        if flight is None:
            return
        answer = matching_reply(data, data[:2], flight.question, self.owner.to)
        if answer is not None:
            self.taken(key)
            self.alive()
            flight.end(answer)
