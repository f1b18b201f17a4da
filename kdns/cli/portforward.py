"""Queries to a Pod through the API: kubectl's port-forward, over a WebSocket. So `kdns doctor` asks from a laptop.

Theory of operation. The API opens a connection to one TCP port within the Pod's network and carries it in messages of a
WebSocket (subprotocol v4.channel.k8s.io). A message's first octet is its channel: 0 is the connection, 1 what went
wrong with it. The first message of each channel is the port, as two octets, least significant first. DNS over TCP goes
through as it is: two octets of length, then the message (RFC 1035, section 4.2.2). UDP cannot be forwarded.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import aiohttp

from kdns.dns.answer import Answer
from kdns.dns.message import pack_query
from kdns.dns.query import Question
from kdns.kube.api import Client
from kdns.upstream.exchange import matching_reply, new_id

PROTOCOL: Final = "v4.channel.k8s.io"
_DATA: Final = 0
_ERROR: Final = 1
_PORT: Final = 2  # octets
_SAID: Final = 300  # octets of an error that are shown
# Octets of a message of the WebSocket: a DNS message over TCP, its length and the channel, in pieces of any size.
_MAX_MESSAGE: Final = 1 << 20


class NotForwarded(Exception):
    """The API did not bring us to the Pod's port, or the connection ended there; the text says why."""


class Tunnel:
    """An open connection to a Pod's port."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.opened = {_DATA: False, _ERROR: False}  # channels whose port was said
        self.came = b""

    async def ask(self, question: Question) -> Answer:
        """The reply to a question. Raises NotForwarded, aiohttp.ClientError, OSError."""
        qid = new_id()
        query = pack_query(int.from_bytes(qid, "big"), question)
        await self.socket.send_bytes(bytes([_DATA]) + len(query).to_bytes(2, "big") + query)
        while True:
            frame = await self._frame()
            found = matching_reply(frame, qid, question, "port-forward")
            if found is not None:
                return found

    async def _frame(self) -> bytes:
        while len(self.came) < 2 or len(self.came) < 2 + int.from_bytes(self.came[:2], "big"):
            self.came += await self._data()
        end = 2 + int.from_bytes(self.came[:2], "big")
        frame, self.came = self.came[2:end], self.came[end:]
        return frame

    async def _data(self) -> bytes:
        """The next octets of the connection."""
        while True:
            message = await self.socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise NotForwarded("the connection to the Pod ended without a reply")
            channel, data = message.data[:1], bytes(message.data[1:])
            if channel not in (b"\0", b"\1"):
                continue
            number = channel[0]
            if not self.opened[number]:
                self.opened[number] = True
                data = data[_PORT:]
            if data and number == _ERROR:
                raise NotForwarded(data[:_SAID].decode(errors="replace").strip())
            if data:
                return data


@contextlib.asynccontextmanager
async def tunnel(client: Client, namespace: str, pod: str, port: int, seconds: float) -> AsyncIterator[Tunnel]:
    """A connection to a Pod's TCP port, open for the block; the API has these seconds to make it.

    Raises ApiError, NotForwarded, aiohttp.ClientError, OSError, TimeoutError.
    """
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
    async with asyncio.timeout(seconds):
        socket = await client.websocket(path, {"ports": str(port)}, PROTOCOL, _MAX_MESSAGE)
    try:
        if socket.protocol != PROTOCOL:
            raise NotForwarded(f"what answers does not speak {PROTOCOL}")
        yield Tunnel(socket)
    finally:
        await socket.close()
