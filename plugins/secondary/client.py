"""What a secondary asks of a primary, over TCP or TLS (RFC 9103): the SOA, and then what is newer (IXFR, or all of the
zone by AXFR).
"""

import asyncio
import contextlib
import ssl
import time
from typing import Any, Final

from kdns.dns import edns, iana, rdata, tsig, wire
from kdns.dns.errors import FormatError
from kdns.dns.query import Question
from kdns.plugins.secondary.primaries import Place
from kdns.store.zone import Zone
from kdns.store.zone_builder import ZoneBuilder
from kdns.store.zone_transfer import BadTransfer, Inbound, changed
from kdns.timeslice import TimeSlice
from kdns.upstream.exchange import new_id
from kdns.zonefile.load import build_beside

TIMEOUT: Final = 10.0  # seconds for a connection, and for each message
WHOLE: Final = 3600.0  # seconds for a transfer in all
GOODBYE: Final = 1.0  # seconds that a primary has to end TLS in good order
_DOT: Final = "dot"  # the protocol's name in the handshake (RFC 9103, section 7.1)
# Codes of a primary that has no IXFR: the zone is then asked for whole (RFC 1995, section 4).
_NO_IXFR: Final = frozenset((iana.FORMERR, iana.NOTIMP, iana.REFUSED, iana.SERVFAIL))


class Unchanged(Exception):
    """The primary has nothing newer."""


class Primary:
    """One primary of a zone, at an address. `context` is for one that is asked over TLS."""

    def __init__(self, origin: bytes, place: Place, key: tsig.Key | None, context: ssl.SSLContext | None) -> None:
        self.origin = origin
        self.place = place
        self.key = key
        self.context = context if place.secure else None
        self.how = ""  # the zone has come by

    async def newer(self, old: Zone | None) -> Zone:
        """The zone as the primary has it. Raises Unchanged, or what is wrong: OSError, TimeoutError, EOFError,
        FormatError, BadTransfer, BadZone, tsig.Refused.
        """
        if old is not None and not await self._has_newer(old.serial):
            raise Unchanged
        async with asyncio.timeout(WHOLE):
            if old is not None:
                with contextlib.suppress(_NoIxfr):
                    return await self._transfer(old)
            return await self._transfer(None)

    async def _has_newer(self, serial: int) -> bool:
        async with _Connection(self.place, self.context) as connection:
            data, checker = await self._ask(connection, iana.SOA, b"")
            if checker is not None:
                checker.check(data, time.time(), last=True)
            if data[3] & 15 or not data[2] & 0x80:
                raise BadTransfer(f"the primary says {iana.rcode_text(data[3] & 15)}")
            off = wire.skip_name(data, 12) + 4
            for record in wire.records(data, off, int.from_bytes(data[6:8], "big"), wire.Budget()):
                if record.type == iana.SOA and record.end - record.fixed >= 32:
                    theirs = int.from_bytes(data[record.end - 20 : record.end - 16], "big")
                    # RFC 1982: newer; at a distance of 2^31 nobody knows.
                    return rdata.is_newer(theirs, serial)
        raise BadTransfer("the primary has no SOA of the zone")

    async def _ask(self, connection: "_Connection", qtype: int, authority: bytes) -> tuple[bytes, tsig.Checker | None]:
        """Sends a question; gives the first message that comes, and what checks it."""
        qid = new_id()
        content = Question(self.origin, qtype).wire + authority
        opt = edns.PLAIN if self.place.secure else b""
        query = b"".join((
            qid, b"\0\0\0\1\0\0", b"\0\1" if authority else b"\0\0", b"\0\1" if opt else b"\0\0", content, opt,
        ))  # fmt: skip
        # It asks that the replies are padded, too: how large the zone and its changes are is nobody's business (RFC
        # 9103, section 7.9.1).
        query = edns.padded_query(query, 12 + len(content))
        checker = None
        if self.key is not None:
            query, mac = tsig.signed(query, self.key, time.time())
            checker = tsig.Checker(self.key, mac)
        await connection.send(query)
        data = await connection.receive()
        if data[:2] != qid:
            raise BadTransfer("a reply with another id")
        return data, checker

    async def _transfer(self, old: Zone | None) -> Zone:
        authority = b""
        if old is not None:
            rdata = old.soa.rdatas[0]
            authority = self.origin + b"\0\6\0\1\0\0\0\0" + len(rdata).to_bytes(2, "big") + rdata
        async with _Connection(self.place, self.context) as connection:
            data, checker = await self._ask(connection, iana.IXFR if old is not None else iana.AXFR, authority)
            if old is not None and data[3] & 15 in _NO_IXFR:
                raise _NoIxfr
            inbound = Inbound(self.origin, data[:2], old)
            timeslice = TimeSlice()
            while True:
                if checker is not None:
                    checker.check(data, time.time())
                for _ in inbound.feed(data):
                    await timeslice.pause()
                if inbound.done:
                    break
                data = await connection.receive()
            if checker is not None and not checker.complete:
                raise tsig.Refused(tsig.BADSIG)  # RFC 8945, section 5.3.1: the last message must be signed
        if inbound.up_to_date:
            raise Unchanged
        self.how = "IXFR" if inbound.incremental else "AXFR"
        if not inbound.incremental:
            return await build_beside(self.origin, inbound.names)
        assert old is not None
        builder = ZoneBuilder(self.origin)
        for _ in changed(old, inbound.names, builder):
            await timeslice.pause()
        return builder.finish()


class _NoIxfr(Exception):
    """The primary gives no differences."""


class _Connection:
    """A connection that carries messages behind two octets of length, over TLS with a context."""

    def __init__(self, place: Place, context: ssl.SSLContext | None) -> None:
        self.place = place
        self.context = context
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> "_Connection":
        place = self.place
        options: dict[str, Any] = {}
        if place.secure:
            assert self.context is not None
            options = {"ssl": self.context, "server_hostname": place.server_name, "ssl_shutdown_timeout": GOODBYE}
        try:
            async with asyncio.timeout(TIMEOUT):
                self.reader, self.writer = await asyncio.open_connection(place.host, place.port, **options)
        except TimeoutError:
            raise TimeoutError(f"no connection within {TIMEOUT:g} s") from None
        tls = self.writer.get_extra_info("ssl_object")
        if place.secure and tls.selected_alpn_protocol() != _DOT:
            await self.__aexit__()
            raise BadTransfer("it does not offer DNS over TLS: its handshake has not chosen the protocol `dot`")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Sends a message."""
        assert self.writer is not None
        self.writer.write(len(data).to_bytes(2, "big") + data)
        await self.writer.drain()

    async def receive(self) -> bytes:
        """The next message. Raises TimeoutError, EOFError, or FormatError for one without a header."""
        assert self.reader is not None
        try:
            async with asyncio.timeout(TIMEOUT):
                size = int.from_bytes(await self.reader.readexactly(2), "big")
                data = await self.reader.readexactly(size)
        except TimeoutError:
            raise TimeoutError(f"nothing came for {TIMEOUT:g} s") from None
        if size < 12:
            raise FormatError("a message without a header")
        return data
