"""The UDP listener: a raw socket, read in batches by the loop's reader.

Laws: nothing that arrives, and no socket error, ends the listener or the batch; receiving and sending have error
handling of their own; there is no queue of replies (a reply that the kernel does not take is dropped and counted by
errno: the client asks again); a reply leaves from the address that was asked; who is answered is still there.

Theory of operation. At most BATCH_DATAGRAMS or BATCH_SECONDS a wake-up, then the loop serves others; the reader stays
ready, so the rest follows at once. Where little comes, each datagram is a wake-up of its own, and asking for a second
one is a system call and an exception for nothing, a tenth of the query's cost: after a datagram that was alone, the
next ALONE wake-ups do not ask. Replies leave after the last datagram of a batch has been handled: sending wakes the
client, which may take the CPU from us, and that should happen once a batch and not once a query. On a wildcard bind the
kernel would choose the reply's source by route: there the datagram is read with its packet info (IP_PKTINFO, RFC 3542
section 6.1), 0.8 µs more. The server spares nearly all queries that by binding the machine's own addresses beside the
wildcard: the kernel gives a datagram to the most specific socket, and the wildcard is left with addresses that come
later.

Where more comes than can be answered, the receive buffer fills. It holds seconds of work, first come first served: in
the end each reply would come when its client has given up, and nobody would be served at all. So where a batch leaves
datagrams behind, the kernel is asked when the last one came (SIOCGSTAMP). If they have been late for a while, all that
wait are thrown away, unread and counted: what comes then is answered while its client waits. A pause of ours alone
loses nothing; its backlog is soon worked off. The plugin `shed` sets an age that is less than a client's patience, and
lets an overload that goes on be recognised at once.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from kdns.metrics import Counter, Gauge
from kdns.net import Address, Handler
from kdns.net.sockets import IP_PKTINFO, drops, reply_from, went_to

# Of one wake-up. More gains nothing (256 was measured); the time keeps TCP's latency low.
BATCH_DATAGRAMS: Final = 64
BATCH_SECONDS: Final = 0.001
# A query is some 50 octets, with EDNS options rarely 200. What is longer than this is cut, and fails as FORMERR.
MAX_DRAIN: Final = 10_000  # turns; a receive buffer of 4 MiB holds some 16,000 small datagrams
MAX_DATAGRAM: Final = 4096
# Seconds after which a datagram is late. Resolvers wait two (other DNS servers), three, or five (glibc, Go) and then
# ask again.
LATE: Final = 1.0
# Seconds for which they must be late, without one that is not, to be thrown away: a pause of a second is over by then.
LATE_FOR: Final = 0.5
# Seconds after queries were shed in which another backlog needs no LATE_FOR: the overload goes on. Where a tenth more
# comes than can be answered, a backlog of 100 ms grows in one.
OVERLOADED_FOR: Final = 2.0
ALONE: Final = 15  # wake-ups that read one datagram only, after one was alone: a busy time is seen 15 datagrams late
MAX_DISCARD: Final = 1000  # datagrams thrown away in a turn of the loop: a millisecond
SIOCGSTAMP: Final = 0x8906  # socket(7)
_CONTROL_SIZE: Final = socket.CMSG_SPACE(20)
_MAX_KNOWN: Final = 1024

Controls = list[tuple[int, int, bytes]]  # ancillary data of a message: level, type, octets

SEND_ERRORS = Counter(
    "kdns_udp_send_errors_total", "Replies that the kernel did not take, by errno.", ("server", "errno")
)
RECEIVE_ERRORS = Counter(
    "kdns_udp_receive_errors_total", "Errors when reading datagrams, by errno.", ("server", "errno")
)
BUFFER = Gauge("kdns_udp_receive_buffer_bytes", "Receive buffer granted by the kernel, all sockets.", ("server",))
LATE_DROPPED = Counter(
    "kdns_udp_late_dropped_total",
    "Datagrams thrown away unread: they had waited so long that clients give up.",
    ("server",),
)
DROPPED = Counter(
    "kdns_udp_receive_dropped_total", "Datagrams the kernel dropped at a full receive buffer.", ("server",)
)


class Shedding(NamedTuple):
    """What `shed` asks for: datagrams that have waited for longer than `age` (seconds) are late.

    `dropped` is told how many queries were dropped, with the listener's label and a reason.
    """

    age: float
    dropped: Callable[[str, str, int], None]


class UdpListener:
    """Answers datagrams of one bound, non-blocking socket. `wildcard`: the reply's source must be set by hand."""

    def __init__(self, sock: socket.socket, handler: Handler, label: str, *, wildcard: bool = False) -> None:
        self.sock = sock
        self.handler = handler
        self.label = label
        self.wildcard = wildcard
        self.local: Address = sock.getsockname()
        self.loop: Any = None  # the loop; uvloop's remove_reader gives no bool, which compiled code would insist on
        self.alone = 0  # wake-ups to come that read one datagram and do not ask for more
        self.busy = False  # whether anything came since it was last looked at
        self.stamped = True  # whether the kernel says when datagrams came
        self.late_since = 0.0  # since when all that was looked at was late (monotonic seconds); 0: it was not
        self.late_seen = 0.0  # when that was looked at last
        self.discarding = False
        self.shed: Shedding | None = None
        self.shed_at = 0.0  # when queries were shed last (monotonic seconds)
        self.late: list[
            tuple[Controls | None, Address, bytes]
        ] = []  # replies that had to wait and leave with this turn
        # Reply control data and local address by received control data: one entry a local address.
        self._controls: dict[bytes, tuple[Controls, Address]] = {}
        if wildcard:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)

    def start(self) -> None:
        """Begins to read."""
        self.loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            self.age()  # the kernel notes times from the first question on; that one it answers with ENOENT
        self.loop.add_reader(self.sock, self._read_wildcard if self.wildcard else self._read)

    def retire(self) -> None:
        """Lets the kernel give new datagrams to others that share the port; what waits here is still answered.

        A connected socket gets its peer's datagrams only (udp(7)), and nobody sends from port 1 of this machine. A
        socket of a group that is closed with datagrams in its queue loses them.
        """
        host = self.local[0] if not self.wildcard else "::1" if self.sock.family == socket.AF_INET6 else "127.0.0.1"
        with contextlib.suppress(OSError):
            self.sock.connect((host, 1))

    def drain(self) -> None:
        """Answers what waits in the queue, at most a queue's worth."""
        for _ in range(MAX_DRAIN):
            if not select.select((self.sock,), (), (), 0)[0]:
                return
            if self.wildcard:
                self._read_wildcard()
            else:
                self._read()

    def stop(self) -> None:
        """Ends reading and closes the socket; replies still to come are dropped."""
        if self.loop is not None:
            self.loop.remove_reader(self.sock)
            self.loop = None
        self.sock.close()

    def receive_buffer(self) -> int:
        """Octets of receive buffer the kernel granted."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def kernel_drops(self) -> int:
        """Datagrams the kernel dropped at this socket."""
        return drops(self.sock)

    def age(self) -> float:
        """Seconds for which the datagram that was read last had waited. Raises OSError where the kernel does not
        say.
        """
        seconds, micros = struct.unpack("ll", fcntl.ioctl(self.sock, SIOCGSTAMP, b"\0" * struct.calcsize("ll")))
        return time.time() - float(seconds) - float(micros) * 1e-6

    def _check_lateness(self) -> None:
        """A batch has left datagrams behind: looks whether they are so late that nobody waits for them."""
        shed = self.shed
        if not self._late_by(LATE if shed is None else shed.age):
            self.late_since = 0.0
            return
        now = time.monotonic()
        if shed is not None and self.shed_at and now - self.shed_at < OVERLOADED_FOR:
            self.discarding = True
            return
        if not self.late_since or now - self.late_seen > LATE_FOR:
            self.late_since = now  # a pause may have ended with a batch, and this be another
        self.late_seen = now
        if now - self.late_since > LATE_FOR:
            self.discarding = True

    def _late_by(self, seconds: float) -> bool:
        """True if the datagram that was read last had waited for longer than this; never where the kernel does not
        say.
        """
        if not self.stamped:
            return False
        try:
            return self.age() > seconds
        except OSError:
            self.stamped = False
            return False

    def _discard(self) -> None:
        """Throws away what waits, a turn's worth."""
        receive = self.sock.recv
        shed = self.shed
        thrown = 0
        empty = False
        for _ in range(MAX_DISCARD):
            try:
                receive(1)
            except BlockingIOError:
                empty = True
                break
            except OSError as error:
                self._count(RECEIVE_ERRORS, error)
                continue
            thrown += 1
        if empty or not self._late_by((LATE if shed is None else shed.age) / 10):
            self.discarding = False
            self.late_since = 0.0
        LATE_DROPPED.slot(self.label)[0] += thrown
        if shed is not None and thrown:
            self.shed_at = time.monotonic()
            shed.dropped(self.label, "query", thrown)

    def _read(self) -> None:
        self.busy = True
        if self.discarding:
            self._discard()
            return
        receive = self.sock.recvfrom
        handler = self.handler
        local = self.local
        replies: list[tuple[bytes, Address]] = []
        end = 0.0
        try:
            for i in range(1 if self.alone else BATCH_DATAGRAMS):
                try:
                    data, peer = receive(MAX_DATAGRAM)
                except BlockingIOError:
                    self.late_since = 0.0
                    if i == 1:
                        self.alone = ALONE
                    return
                except OSError as error:
                    self._count(RECEIVE_ERRORS, error)
                    continue
                reply = handler(data, peer, local)
                if type(reply) is bytes:
                    replies.append((reply, peer))
                elif reply is not None:
                    reply.add(partial(self._late, None, peer))  # type: ignore[union-attr]
                if i & 3 == 3:
                    now = time.monotonic()
                    if not end:
                        end = now + BATCH_SECONDS
                    elif now > end:
                        break
            if self.alone:
                self.alone -= 1
            else:
                self._check_lateness()
        finally:
            send = self.sock.sendto
            for data, peer in replies:
                try:
                    send(data, peer)
                except OSError as error:
                    self._count(SEND_ERRORS, error)

    def _read_wildcard(self) -> None:
        self.busy = True
        if self.discarding:
            self._discard()
            return
        replies: list[tuple[Controls, Address, bytes]] = []
        end = 0.0
        try:
            for i in range(1 if self.alone else BATCH_DATAGRAMS):
                try:
                    data, controls, _, peer = self.sock.recvmsg(MAX_DATAGRAM, _CONTROL_SIZE)
                except BlockingIOError:
                    self.late_since = 0.0
                    if i == 1:
                        self.alone = ALONE
                    return
                except OSError as error:
                    self._count(RECEIVE_ERRORS, error)
                    continue
                raw = controls[0][2] if controls else b""
                known = self._controls.get(raw)
                if known is None:
                    known = self._control(raw)
                reply = self.handler(data, peer, known[1])
                if type(reply) is bytes:
                    replies.append((known[0], peer, reply))
                elif reply is not None:
                    reply.add(partial(self._late, known[0], peer))  # type: ignore[union-attr]
                if i & 3 == 3:
                    now = time.monotonic()
                    if not end:
                        end = now + BATCH_SECONDS
                    elif now > end:
                        break
            if self.alone:
                self.alone -= 1
            else:
                self._check_lateness()
        finally:
            self._send(replies)

    def _late(self, controls: Controls | None, peer: Address, reply: bytes | None) -> None:
        """Takes a reply that had to wait. Those of one turn of the loop leave together."""
        if reply is None or self.loop is None:
            return
        if not self.late:
            self.loop.call_soon(self._send_late)
        self.late.append((controls, peer, reply))

    def _send_late(self) -> None:
        late, self.late = self.late, []
        if self.loop is not None:
            self._send(late)

    def _send(self, replies: Sequence[tuple[Controls | None, Address, bytes]]) -> None:
        """Sends replies; one that the kernel does not take is dropped and counted."""
        for controls, peer, reply in replies:
            try:
                if controls is None:
                    self.sock.sendto(reply, peer)
                else:
                    self.sock.sendmsg((reply,), controls, 0, peer)
            except OSError as error:
                self._count(SEND_ERRORS, error)

    def _control(self, raw: bytes) -> tuple[Controls, Address]:
        """The control data that makes a reply leave from where the datagram went to, and that address."""
        made = (reply_from(raw), went_to(raw, self.local))
        if len(self._controls) < _MAX_KNOWN:
            self._controls[raw] = made
        return made

    def _count(self, family: Counter, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0) or os.strerror(error.errno or 0)
        family.slot(self.label, name)[0] += 1
