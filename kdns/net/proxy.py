"""The PROXY protocol (haproxy's proxy-protocol.txt): who asks, as a proxy in front says, before the first octets of a
connection or in each datagram.

Laws: a header has at most MAX_HEADER octets and comes within its time; from a peer that is not trusted it is not
believed; what is malformed ends its connection, or drops its datagram, and is counted.

    use: the header says who asks    ignore: it is taken off, the peer asks    reject: with a header the connection ends
    skip: nothing is looked for, what comes is the client's own
"""

import asyncio
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, final

from kdns.address import named
from kdns.metrics import Counter
from kdns.net import Address, Handler, StreamProtocol, StreamTransport

V1: Final = b"PROXY "
V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
MAX_V1: Final = 107  # octets of a header of version 1, its end included
MAX_HEADER: Final = 1024  # of version 2: addresses and some TLVs; 16 + 65,535 are allowed, and nobody sends them
WAIT: Final = 10.0  # seconds for a header (CoreDNS's)
MAX_WAITING: Final = 1000  # connections without a header; each costs some 2 KB and a file
POLICIES: Final = ("use", "ignore", "reject", "skip")

HEADERS = Counter("kdns_proxyproto_headers_total", "PROXY headers by result.", ("server", "result"))

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadHeader(ValueError):
    """Octets that begin as a PROXY header and are none."""


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """Whose headers are believed: `trusted` peers' (none: everybody's); others are treated by `others`.

    `remember`: seconds for which what a datagram's header said holds for those behind it without one, from the same
    address and port; 0: not. `sessions`: how many are remembered.
    """

    trusted: tuple[Network, ...] = ()
    others: str = "use"
    remember: float = 0.0
    sessions: int = 10_240

    def of(self, peer: Address) -> str:
        """The policy for a peer."""
        if not self.trusted:
            return self.others
        try:
            here = ipaddress.ip_address(str(peer[0]).partition("%")[0])
        except ValueError:
            return "reject"
        return "use" if any(here in network for network in self.trusted) else self.others


def header(data: bytes, kind: socket.SocketKind) -> tuple[int, Address | None, Address | None] | None:
    """The header that octets begin with: its length, source and destination; None where there is none.

    Source and destination are None where the header names none: then the peer itself asks. A length of 0: more octets
    are needed. Raises BadHeader. Datagrams have version 2 only (section 2.2).
    """
    start = data[:12]
    if start == V2[: len(start)] and start:
        return _version2(data, kind)
    if kind == socket.SOCK_STREAM and data[:6] == V1[: len(data)] and data:
        return _version1(data)
    return None


def _version1(data: bytes) -> tuple[int, Address | None, Address | None]:
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise BadHeader("a header of version 1 without an end")
        return 0, None, None
    words = data[:end].decode("ascii", "replace").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return end + 2, None, None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise BadHeader("a header of version 1 with other words")
    version = 4 if words[1] == "TCP4" else 6
    return end + 2, _address(words[2], words[4], version), _address(words[3], words[5], version)


def _address(host: str, port: str, version: int) -> Address:
    try:
        found = ipaddress.ip_address(host)
        number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    except ValueError:
        raise BadHeader("an address that is none") from None
    if found.version != version or not 0 <= number <= 65535:
        raise BadHeader("an address of the wrong family, or a port that is none")
    return named(found.packed, number)


def _version2(data: bytes, kind: socket.SocketKind) -> tuple[int, Address | None, Address | None]:
    if len(data) < 16:
        return 0, None, None
    size = 16 + int.from_bytes(data[14:16], "big")
    if data[12] >> 4 != 2 or data[12] & 15 > 1 or size > MAX_HEADER:
        raise BadHeader("a header of version 2 that is malformed or too long")
    if len(data) < size:
        return 0, None, None
    family, transport = data[13] >> 4, data[13] & 15
    if data[12] & 15 == 0 or family == 0:  # LOCAL, such as a health check; or unspecified
        return size, None, None
    if transport != (1 if kind == socket.SOCK_STREAM else 2):
        raise BadHeader("a header for another transport")
    if family == 1 and size >= 28:
        return size, named(data[16:20], _port(data, 24)), named(data[20:24], _port(data, 26))
    if family == 2 and size >= 52:
        return size, named(data[16:32], _port(data, 48)), named(data[32:48], _port(data, 50))
    raise BadHeader("a header for another family, or without its addresses")


def _port(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


@final
class ProxyGate:
    """The PROXY headers of one listener. `policy` may be replaced: it is that of what comes later."""

    def __init__(self, policy: ProxyPolicy, label: str) -> None:
        self.policy = policy
        self.used = HEADERS.slot(label, "used")
        self.ignored = HEADERS.slot(label, "ignored")
        self.rejected = HEADERS.slot(label, "rejected")
        self.malformed = HEADERS.slot(label, "malformed")
        self.waiting: dict[ProxyConnection, None] = {}  # connections without a header, the oldest first
        # By peer; the one not used for longest first.
        self.sessions: OrderedDict[Address, tuple[Address, Address | None, float]] = OrderedDict()

    def enter(self, connection: "ProxyConnection") -> None:
        """A connection that waits for its header."""
        if len(self.waiting) >= MAX_WAITING:
            next(iter(self.waiting)).abort()
        self.waiting[connection] = None

    def stop(self) -> None:
        """Ends all that waits."""
        for connection in list(self.waiting):
            connection.abort()

    def remembered(self, peer: Address, now: float) -> tuple[Address, Address | None] | None:
        """Who asks behind a peer, as an earlier datagram's header said."""
        known = self.sessions.pop(peer, None)
        if known is None or known[2] < now:
            return None
        self.remember(peer, known[0], known[1], now)
        return known[:2]

    def remember(self, peer: Address, source: Address, target: Address | None, now: float) -> None:
        """Who asks behind a peer from now on."""
        self.sessions.pop(peer, None)
        if len(self.sessions) >= self.policy.sessions:
            self.sessions.popitem(last=False)
        self.sessions[peer] = (source, target, now + self.policy.remember)

    def datagrams(self, handler: Handler) -> Handler:
        """A handler for datagrams with headers, before one for those without. Replies go to the peer, which passes them
        on.
        """

        def handle(data: bytes, client: Address, local: Address | None) -> Any:
            policy = self.policy.of(client)
            if policy == "skip":
                return handler(data, client, local)
            try:
                found = header(data, socket.SOCK_DGRAM)
                if found is not None and not found[0]:
                    raise BadHeader("a header that is cut")
            except BadHeader:
                self.malformed[0] += 1
                return None
            if found is None:
                known = self.remembered(client, monotonic()) if self.sessions else None
                return handler(data, client, local) if known is None else handler(data, known[0], known[1])
            size, source, target = found
            if policy == "reject":
                self.rejected[0] += 1
                return None
            if policy == "ignore" or source is None:
                self.ignored[0] += 1
                return handler(data[size:], client, local)
            self.used[0] += 1
            if self.policy.remember:
                self.remember(client, source, target, monotonic())
            return handler(data[size:], source, target)

        return handle


@final
class ProxyConnection:
    """An accepted connection until its header has come; then the protocol behind takes its place."""

    def __init__(self, gate: ProxyGate, make: Callable[[], StreamProtocol]) -> None:
        self.gate = gate
        self.make = make
        self.buffer = b""
        self.policy = ""
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: StreamTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.policy = self.gate.policy.of(transport.get_extra_info("peername") or ("",))
        if self.policy == "skip":
            self._hand_over(None)
        else:
            self.gate.enter(self)
            self.timer = asyncio.get_running_loop().call_later(WAIT, transport.abort)

    def data_received(self, data: bytes) -> None:
        transport = self.transport
        if transport is None:
            return
        self.buffer += data
        try:
            found = header(self.buffer, socket.SOCK_STREAM)
        except BadHeader:
            self.gate.malformed[0] += 1
            transport.abort()
            return
        if found is None:
            self._hand_over(None)
        elif found[0]:
            size, source, target = found
            self.buffer = self.buffer[size:]
            if self.policy == "reject":
                self.gate.rejected[0] += 1
                transport.abort()
            elif self.policy == "ignore" or source is None:
                self.gate.ignored[0] += 1
                self._hand_over(None)
            else:
                self.gate.used[0] += 1
                self._hand_over(source, target)

    def eof_received(self) -> None:
        """Without a whole header, the connection ends."""

    def pause_writing(self) -> None:
        """Nothing is written here."""

    def resume_writing(self) -> None:
        """Nothing is written here."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._stop_waiting()

    def abort(self) -> None:
        """Closes at once."""
        if self.transport is not None:
            self.transport.abort()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        self.gate.waiting.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _hand_over(self, source: Address | None, target: Address | None = None) -> None:
        self._stop_waiting()
        raw, self.transport = self.transport, None
        assert raw is not None
        behind = self.make()
        raw.set_protocol(behind)  # type: ignore[arg-type]
        behind.connection_made(raw if source is None else _Proxied(raw, source, target))
        rest, self.buffer = self.buffer, b""
        if rest and not raw.is_closing():
            behind.data_received(rest)


@final
class _Proxied:
    """A transport between the two that the header names."""

    def __init__(self, raw: asyncio.Transport, peer: Address, local: Address | None) -> None:
        self.raw = raw
        self.named = {"peername": peer, "sockname": local}
        self.write = raw.write
        self.close = raw.close
        self.abort = raw.abort
        self.is_closing = raw.is_closing
        self.pause_reading = raw.pause_reading
        self.resume_reading = raw.resume_reading
        self.set_write_buffer_limits = raw.set_write_buffer_limits
        self.get_write_buffer_size = raw.get_write_buffer_size

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.named.get(name) or self.raw.get_extra_info(name, default)


def parse_networks(words: Sequence[str]) -> tuple[Network, ...]:
    """Networks with their masks. Raises ValueError."""
    out = []
    for word in words:
        if "/" not in word:
            raise ValueError(
                f'"{word}" has no mask: expected a network such as 10.0.0.0/8, or {word}/{128 if ":" in word else 32}'
            )
        out.append(ipaddress.ip_network(word))
    return tuple(out)
