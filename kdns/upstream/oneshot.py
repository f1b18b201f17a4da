"""One question over UDP on a socket of its own, and the reply to it: for NOTIFY, the probes of `loop` and `kdns query`.

Not for the forwarder, which keeps sockets and makes no task: a datagram costs half as much again here. And not for a
listener: asyncio-dgram stops receiving for good once a datagram cannot be answered.

Laws (RFC 5452, section 9): as in `exchange`. What does not match is dropped, and the wait goes on until its end.
"""

import asyncio
from contextlib import closing
from time import monotonic
from typing import Any, Final

import asyncio_dgram

from kdns.address import address, host_port
from kdns.dns.answer import Answer
from kdns.dns.query import Question
from kdns.upstream.exchange import UpstreamError, matching_reply, new_id, os_text, timed_out

# Seconds after which the socket's errors (an ICMP message: nobody is there) are looked at: asyncio-dgram says them only
# when it is asked anew.
LOOK: Final = 0.1


async def ask(query: bytes, question: Question, host: str, port: int, *, timeout: float, source: str = "") -> Answer:
    """Sends a query (its id is replaced) and gives the reply to it, of the query's opcode. Raises UpstreamError.

    With a `source`, a local address, `host` is a literal address too. `timeout` is seconds.
    """
    to = host_port(host, port)
    end = monotonic() + timeout
    try:
        peer = address(host, port)
        # A connected socket gets errors, and datagrams of nobody else; one that is bound needs a look at who sent them.
        stream: Any = await (asyncio_dgram.bind((source, 0)) if source else asyncio_dgram.connect((host, port)))
    except OSError as error:
        raise UpstreamError(f"dial udp {to}: {os_text('bind' if source else 'connect', error)}") from None
    with closing(stream):
        local = host_port(*stream.sockname[:2])
        qid = new_id()
        opcode = query[2] >> 3 & 15
        try:
            await (stream.send(qid + query[2:], peer) if source else stream.send(qid + query[2:]))
            while (left := end - monotonic()) > 0:
                try:
                    async with asyncio.timeout(min(left, LOOK)):
                        data, sender = await stream.recv()
                except TimeoutError:
                    continue
                if source and sender[:2] != peer[:2]:
                    continue
                answer = matching_reply(data, qid, question, to, opcode)
                if answer is not None:
                    return answer
        except asyncio_dgram.TransportClosed:
            raise UpstreamError(f"read udp {local}->{to}: closed") from None
        except OSError as error:
            raise UpstreamError(f"read udp {local}->{to}: {os_text('read', error)}") from None
    raise timed_out("udp", local, to)
