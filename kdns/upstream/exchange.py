"""One exchange with an upstream: the query as it leaves, and what counts as its reply.

Laws (RFC 5452, section 9.1): ids come from the system's generator; a reply is taken only if id, QR, opcode, question
name, type and class are those of the query; anything else is dropped and the wait goes on. One kind of reply has no
question: a header alone, by which a server says that it could not read the query (RFC 1035, section 4.1.1). It is taken
by its id, which is as hard to guess as for any other reply.
"""

import asyncio
import os
import ssl
from collections.abc import Callable
from typing import Final, final

from kdns import faults
from kdns.address import host_port
from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.errors import FormatError
from kdns.dns.message import parse_reply
from kdns.dns.query import Question
from kdns.metrics import Counter

_CHUNK: Final = 512  # octets taken from the system's generator at once: a call for two costs half a microsecond

JUNK = Counter("kdns_upstream_junk_total", "Datagrams from upstreams that were not a reply to the query.", ("to",))


# The codes of a reply without a question: what a server says that cannot or will not read one.
_HEADER_ALONE: Final = frozenset((iana.FORMERR, iana.SERVFAIL, iana.NOTIMP, iana.REFUSED))


class UpstreamError(Exception):
    """An upstream did not answer; the text says who and why."""


class Mismatched(UpstreamError):
    """Too many replies did not match: somebody may be guessing, so the question is to be asked in a safer way."""


Result = Answer | UpstreamError
Done = Callable[[Result], None]


@final
class _Ids:
    __slots__ = ("at", "pool")

    def __init__(self) -> None:
        self.pool = b""
        self.at = 0

    def next(self) -> bytes:
        if self.at >= len(self.pool):
            self.pool = os.urandom(_CHUNK)
            self.at = 0
        self.at += 2
        return self.pool[self.at - 2 : self.at]


_ids = _Ids()


def new_id() -> bytes:
    """Two octets nobody can guess."""
    return _ids.next()


def random_case(name: bytes) -> bytes:
    """A lower-cased wire name with the case of each letter by chance: a reply repeats it, and who forges one has to
    guess it.

    draft-vixie-dnsext-dns0x20. A label's length is below every letter.
    """
    bits = int.from_bytes(os.urandom(32), "big")  # a name has 255 octets at most
    out = bytearray(name)
    for at, octet in enumerate(name):
        if 97 <= octet <= 122 and bits >> at & 1:
            out[at] = octet ^ 0x20
    return bytes(out)


def matching_reply(data: bytes, qid: bytes, question: Question, to: str, opcode: int = 0) -> Answer | None:
    """The answer in a datagram or frame, if it is a reply to this question under this id and opcode; else None,
    counted.
    """
    if data[:2] == qid:
        try:
            message = parse_reply(data, question)
        except FormatError:
            pass
        else:
            asked = message.question
            if message.opcode == opcode:
                if asked is not None:
                    if asked is question or asked.wire == question.wire:
                        return message.answer
                elif message.answer.rcode in _HEADER_ALONE and not any(message.answer.records()):
                    return Answer(message.answer.rcode, message.answer.flags & iana.RA, options=message.answer.options)
    JUNK.slot(to)[0] += 1
    return None


def our_end(transport: asyncio.BaseTransport) -> str:
    """Our address and port of a connection, as errors have it before `->`."""
    name = transport.get_extra_info("sockname")
    return host_port(name[0], name[1]) if name else ""


def timed_out(proto: str, local: str, to: str) -> UpstreamError:
    """The error of a query that got no reply in time; `local` is empty where it was not even sent."""
    return UpstreamError(f"read {proto} {local}->{to}: i/o timeout" if local else f"dial {proto} {to}: i/o timeout")


def tell(done: Done, result: Result) -> None:
    """Calls back. What that raises ends nothing of others': not the connection they share, and not the closing of
    it.
    """
    try:
        done(result)
    except Exception as error:
        faults.report("what waited for an upstream", error)


def os_text(call: str, error: OSError) -> str:
    """An operating system's error in the words that CoreDNS's logs have, so that what is searched for there is found
    here.
    """
    if isinstance(error, ssl.SSLError):
        return str(error)  # its number is OpenSSL's, which the system takes for another error
    # asyncio puts words of its own into `strerror`, and none at all where the peer closes in the middle of TLS's
    # handshake.
    said = str(error.strerror or error) or "the connection was closed"
    text = os.strerror(error.errno) if error.errno and error.errno > 0 else said
    return f"{call}: {text[:1].lower()}{text[1:]}"
