"""The QUIC listener (RFC 9000): datagrams in, connections of whatever is spoken on them. aioquic does QUIC and TLS.

Laws: a turn of the loop reads for half a millisecond, one datagram at least; what a turn has to send leaves at its end.
A handshake has a time limit; those that have not come to their end are bounded in number, the oldest gives way; while
there are many, clients must first show that they receive at their address (Retry, section 8.1.2), which costs us no
memory. To an address that has not, we send at most three times what came from it (section 8.1; aioquic's). Early data
(0-RTT) is not taken: it can be replayed (RFC 9250, section 4.5). Connections are capped, in all and for one client, as
those over TCP are (net.tcp, net.shares). A client whose connection is over, or was that of a process that has ended,
learns so at once where it can be said without ending one that lives (stateless resets, net.quic_ids).

Theory of operation. A datagram is given to its connection (net.quic_connection) by the connection ID in it.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, final

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from kdns import faults, memory
from kdns.metrics import Counter
from kdns.net import Address, Handler, Process
from kdns.net.quic_connection import Application, QuicConnection
from kdns.net.quic_identity import secret
from kdns.net.quic_ids import CID_OCTETS, ConnectionIds, place
from kdns.net.sockets import Controls, receive_local, reply_from, went_to
from kdns.net.tcp import TcpListener
from kdns.net.tls import HALF_OPEN, HANDSHAKES, MAX_HALF_OPEN
from kdns.quicmachine import SMALLEST_RESET, TOKEN_OCTETS, choose_certificate

BATCH_DATAGRAMS: Final = 64  # of a turn, as over UDP
# The last datagram of a turn may begin a connection, which takes a millisecond more, and a turn costs some 15 µs. With
# twice as much the median turn in a flood of beginnings took 1.0 ms, and all of them no less in sum.
BATCH_SECONDS: Final = 0.0005
# Octets of a datagram: paths carry 1,500 with headers or, within a cluster, up to some 9,000, which nobody uses. One of
# this size holds 40 queries, which take some 3 ms; time is looked at between datagrams.
MAX_DATAGRAM: Final = 1500
CONTROL_SIZE: Final = socket.CMSG_SPACE(20)
# Handshakes under way from which on clients must prove their address first. A burst of new clients stays below it for
# the milliseconds that a handshake takes; a flood from forged addresses passes it at once.
RETRY_FROM: Final = 32
# Connections from how many on what they had goes back to the system: with their streams, 0.2 MB each at worst.
GIVE_BACK: Final = 20
SMALLEST_INITIAL: Final = 1200  # octets of a datagram that begins a connection (section 14.1)
# Octets of a stateless reset, at most: as many as let none be told from a packet (RFC 9000, section 10.3).
LARGEST_RESET: Final = 43
# Stateless resets of a second. After a restart all clients may need one, and those that get none send again; a thousand
# cost some 20 ms.
MAX_RESETS: Final = 1000
# Keys whose connection IDs are known: the present one, and the one before a certificate was renewed.
KEYS: Final = 2

RETRIES: Final = Counter(
    "kdns_quic_retries_total", "Clients asked to prove their address before a handshake.", ("server",)
)
RESETS: Final = Counter(
    "kdns_quic_resets_total", "Clients told that nothing is known of their connection (stateless resets).", ("server",)
)
REJECTED: Final = Counter(
    "kdns_quic_datagrams_rejected_total", "Datagrams that belong to no connection and begin none.", ("server",)
)


@final
class QuicListener(TcpListener):
    """Accepts connections on one bound UDP socket. `speak` makes what is spoken on a connection.

    `wildcard`: the socket is bound to every address, so that a reply's source must be set by hand.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        label: str,
        speak: Callable[[QuicConnection], Application],
        *,
        process: Process,
        no_error: int,
        overload: int,
        wildcard: bool = False,
    ) -> None:
        """`no_error` and `overload` are the application's codes for a farewell and for a lack of room."""
        super().__init__(sock, handler, label)
        self.speak = speak
        self.no_error = no_error
        self.overload = overload
        self.wildcard = wildcard
        self.loop: Any = None
        self.accepting = False
        self.tokens = QuicRetryTokenHandler()
        self.process = process
        self.place = place() if process.alone else ""
        self.alone = os.urandom(32)  # in place of the certificate's key where others listen too
        self.named_by: object = None  # the certificate whose key the first of these is of
        self.names: list[ConnectionIds] = []  # the newest first
        self.resets_until = 0.0
        self.resets_left = 0
        self.by_id: dict[bytes, QuicConnection] = {}
        self.half_open: dict[QuicConnection, None] = {}  # the oldest first
        self.to_send: dict[QuicConnection, None] = {}  # those with something to send at the end of this turn
        self.sending = False
        self.floods = memory.Floods(GIVE_BACK)  # of connections, half-open or not
        self.half_open_slot = HALF_OPEN.slot(label)
        self.results = {name: HANDSHAKES.slot(label, name) for name in ("ok", "failed", "timeout", "evicted")}
        self.retries = RETRIES.slot(label)
        self.rejected = REJECTED.slot(label)
        self.reset = RESETS.slot(label)
        if wildcard:
            receive_local(sock)

    def show(self, label: str) -> None:
        """Nothing is to be done: each connection takes what there is when it begins."""

    async def start(self) -> None:
        """Begins to read."""
        self.loop = asyncio.get_running_loop()
        self.accepting = True
        self.loop.add_reader(self.sock, self._read)

    def stop_accepting(self) -> None:
        """Takes no new connections; those there are end once their queries are answered."""
        self.accepting = False
        for connection in list(self.half_open):
            connection.abort()
        for each in list(self.connections):
            assert isinstance(each, QuicConnection)
            each.say_goodbye()
        self._flush()

    def stop(self) -> None:
        """Closes everything."""
        self.accepting = False
        for connection in set(self.by_id.values()):
            connection.abort()
        if self.loop is not None:
            self.loop.remove_reader(self.sock)
        if self.identities is not None:
            self.identities.stop()
        self.sock.close()

    # Datagrams.

    def _read(self) -> None:
        self.busy = self.sending = True  # what is to be sent leaves at the end of this
        end = time.monotonic() + BATCH_SECONDS
        receive = self.sock.recvmsg
        size = CONTROL_SIZE if self.wildcard else 0
        try:
            for _ in range(BATCH_DATAGRAMS):
                try:
                    data, controls, _, peer = receive(MAX_DATAGRAM, size)
                except BlockingIOError:
                    return
                except OSError:
                    continue  # an error that a datagram of ours came to; QUIC finds out by itself what was lost
                try:
                    self._datagram(data, peer, controls[0][2] if controls else b"")
                except Exception as error:
                    faults.report("a QUIC datagram", error)
                if time.monotonic() > end:
                    return
        finally:
            self._flush()

    def _datagram(self, data: bytes, peer: Address, came: bytes) -> None:
        # The connection ID stands where its form says (RFC 9000, sections 17.2 and 17.3).
        if not data:
            return
        if data[0] & 0x80:
            cid = data[6 : 6 + data[5]] if len(data) > 6 else b""
        else:
            cid = data[1 : 1 + CID_OCTETS]
        connection = self.by_id.get(cid)
        if connection is None and data[0] & 0x80:
            connection = self._open(data, peer, came)
        elif connection is None:
            self._reset(data, cid, peer, came)
        if connection is not None:
            connection.receive(data, peer, came)

    def naming(self) -> ConnectionIds:
        """What makes the IDs of connections now. There must be a certificate."""
        assert self.identities is not None
        shown: QuicConfiguration = self.identities.first
        if shown is not self.named_by:
            self.named_by = shown
            key = secret(shown) if self.place else self.alone
            if not self.names or self.names[0].secret != key:
                where = f"{self.place} {self.label} {self.sock.getsockname()[:2]}"
                self.names = [ConnectionIds(key, where, self.process), *self.names[: KEYS - 1]]
        return self.names[0]

    def _reset(self, data: bytes, cid: bytes, peer: Address, came: bytes) -> None:
        """Tells a client that nothing is known of its connection (section 10.3): that it is over, or was another
        process's before this one began. Shorter than what it answers, so that no two can go on answering each other.
        """
        size = min(len(data) - 1, LARGEST_RESET)
        if size < SMALLEST_RESET or not data[0] & 0x40 or self.identities is None:
            return
        self.naming()
        token = next((token for each in self.names if (token := each.of_the_past(cid)) is not None), None)
        if token is None:
            return
        now = self.loop.time()
        if now >= self.resets_until:
            self.resets_until, self.resets_left = now + 1.0, MAX_RESETS
        if self.resets_left:
            self.resets_left -= 1
            self.reset[0] += 1
            octets = os.urandom(size - TOKEN_OCTETS)
            self.send([(bytes([octets[0] & 0x3F | 0x40]) + octets[1:] + token, peer)], came)

    def _open(self, data: bytes, peer: Address, came: bytes) -> QuicConnection | None:
        """The connection that a datagram begins; None where it begins none, or its client must prove its address."""
        if not self.accepting or len(data) < SMALLEST_INITIAL or self.identities is None:
            self.rejected[0] += 1
            return None
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_OCTETS)
        except ValueError:
            self.rejected[0] += 1
            return None
        configuration: QuicConfiguration = self.identities.first
        version = header.version or 0
        if version and version not in configuration.supported_versions:
            packet = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=configuration.supported_versions,
            )
            self.send([(packet, peer)], came)
            return None
        # Section 7.2: a client's first connection ID has eight octets at least.
        if header.packet_type != QuicPacketType.INITIAL or len(header.destination_cid) < 8:
            self.rejected[0] += 1
            return None
        now = self.loop.time()
        original, retried = header.destination_cid, None
        if header.token:
            # A token that is not ours, or no longer good: as if there were none (section 8.1.3).
            with contextlib.suppress(ValueError):
                original = self.tokens.validate_token(
                    address=peer, destination_cid=header.destination_cid, token=header.token, now=now
                )
                retried = header.destination_cid
        if retried is None and len(self.half_open) >= RETRY_FROM:
            source = os.urandom(CID_OCTETS)
            token = self.tokens.create_token(
                address=peer,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=source,
                now=now,
            )
            packet = encode_quic_retry(
                version=version,
                source_cid=source,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            )
            self.retries[0] += 1
            self.send([(packet, peer)], came)
            return None
        # A connection stays in the version that it begins with: the keys of another would be made for each.
        configuration = replace(configuration, idle_timeout=self.idle, supported_versions=[version])
        connection = QuicConnection(self, configuration, original, retried, peer, went_to(came, self.local))
        if self.identities.several:
            choose_certificate(connection.quic, self.identities.choose)
        self.by_id[header.destination_cid] = connection
        connection.ids.add(header.destination_cid)
        self.half_open[connection] = None
        self.half_open_slot[0] += 1
        self.count()
        if len(self.half_open) > MAX_HALF_OPEN:
            self.results["evicted"][0] += 1
            next(iter(self.half_open)).abort()
        return connection

    def count(self) -> None:
        """A connection more, or less."""
        self.floods.now(len(self.half_open) + len(self.connections))

    def settled(self, connection: QuicConnection, result: str) -> None:
        """A handshake is over, or given up."""
        if connection in self.half_open:
            del self.half_open[connection]
            self.half_open_slot[0] -= 1
            self.results[result][0] += 1

    def send(self, datagrams: list[tuple[bytes, Address]], came: bytes) -> None:
        """Sends datagrams; one that the kernel does not take is lost, and sent again by QUIC."""
        controls: Controls = reply_from(came) if came else []
        for data, peer in datagrams:
            with contextlib.suppress(OSError):
                if controls:
                    self.sock.sendmsg((data,), controls, 0, peer)
                else:
                    self.sock.sendto(data, peer)

    def wants_to_send(self, connection: QuicConnection) -> None:
        """A connection has something to send: it leaves at the end of this turn."""
        self.to_send[connection] = None
        if not self.sending:
            self.sending = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.sending = False
        waiting, self.to_send = self.to_send, {}
        for connection in waiting:
            try:
                connection.transmit()
            except Exception as error:
                faults.report("a QUIC connection", error)
                connection.forget()
