"""dnstap: the queries that a server logged in a file.

A file is Frame Streams (github.com/farsightsec/fstrm, fstrm/control.h): each frame has its length before it, 32 bits
with the most significant octet first. A length of 0 marks a control frame, whose own length and type follow: START,
which names the content, opens a stream, and STOP ends it. Each data frame is one protobuf message `Dnstap`
(dnstap.info, dnstap.proto), of which a few fields are needed.

Laws: a length is judged before what it measures is read, so no more than one frame is held; no octets raise anything
but FormatError, with the place in the stream.
"""

from collections.abc import Callable, Iterator
from typing import Final

from kdns.dns.errors import FormatError
from kdns.dns.protobuf import fields
from kdns.printable import printable

MARK: Final = b"\0\0\0\0"  # what a stream begins with: the length of a control frame
# Octets of a data frame, as much as fstrm's own reader takes by default. A query and a reply have at most 128 KiB.
MAX_FRAME: Final = 1 << 20
_MAX_CONTROL: Final = 512  # octets of a control frame (FSTRM_CONTROL_FRAME_LENGTH_MAX)
_START, _STOP = 2, 3
_CONTENT_TYPE: Final = 1  # field of a control frame
_CONTENT: Final = b"protobuf:dnstap.Dnstap"
# Fields of Dnstap and of its Message.
_MESSAGE, _KIND = 14, 15
_TYPE, _QUERY = 1, 10
_IS_MESSAGE: Final = 1
# Message.Type: AUTH, RESOLVER, CLIENT, FORWARDER, STUB and TOOL_QUERY. UPDATE_QUERY asks nothing.
_QUERIES: Final = frozenset((1, 3, 5, 7, 9, 11))


class Truncated(FormatError):
    """The stream ends within a frame, as a file does that is still written."""


def queries(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The DNS messages of a stream's queries, in order; empty where the server logged a query without its message.

    `read(n)` gives the next n octets, fewer at the end. Raises FormatError.
    """
    stream = _Stream(read)
    while True:
        data = stream.frame()
        if data is None:
            return
        try:
            found = _query(data)
        except FormatError:
            raise FormatError(
                f"the frame at octet {stream.begin} is not a dnstap message: is the file whole?"
            ) from None
        if found is not None:
            yield found


class _Stream:
    """The data frames of one or more streams, one behind the other."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.at = 0  # octets read
        self.begin = 0  # where the frame begins that was read last
        self.is_open = False

    def frame(self) -> bytes | None:
        """The next data frame; None at the end. Raises FormatError."""
        while True:
            self.begin = self.at
            head = self._read(4)
            self.at += len(head)
            if not head:
                if not self.at:
                    raise FormatError("it is empty")
                return None
            length = self._number(head)
            if not length:
                self._control()
            elif not self.is_open:
                raise FormatError("it does not begin as Frame Streams do, so it is not a dnstap file")
            elif length > MAX_FRAME:
                raise FormatError(
                    f"octet {self.begin} begins a frame of {length} octets, and {MAX_FRAME} are the most: is the file "
                    f"whole?"
                )
            else:
                return self._exactly(length)

    def _control(self) -> None:
        length = self._number(self._exactly(4))
        if not 4 <= length <= _MAX_CONTROL:
            raise FormatError(f"octet {self.begin} begins a control frame of {length} octets: it is not a dnstap file")
        body = self._exactly(length)
        kind = int.from_bytes(body[:4], "big")
        if not self.is_open:
            if kind != _START:
                raise FormatError(f"it begins with control frame {kind}, not START: it is not a dnstap file")
            _check_content(body)
        self.is_open = kind != _STOP

    def _number(self, octets: bytes) -> int:
        if len(octets) < 4:
            raise self._truncated()
        return int.from_bytes(octets, "big")

    def _exactly(self, length: int) -> bytes:
        data = self._read(length)
        self.at += len(data)
        if len(data) < length:
            raise self._truncated()
        return data

    def _truncated(self) -> Truncated:
        return Truncated(f"octet {self.at} is the end, within a frame")


def _check_content(body: bytes) -> None:
    """Refuses a START frame of something other than dnstap."""
    at = 4
    while at < len(body):
        kind, length = (int.from_bytes(body[off : off + 4], "big") for off in (at, at + 4))
        content = body[at + 8 : at + 8 + length]
        at += 8 + length
        if at > len(body):
            raise FormatError("its first control frame cannot be read: it is not a dnstap file")
        if kind == _CONTENT_TYPE and content != _CONTENT:
            raise FormatError(f'it holds "{printable(content.decode("latin-1"))}", not dnstap')
        if kind == _CONTENT_TYPE:
            return
    raise FormatError("its START names no content type: it is not a dnstap file")


def _query(data: bytes) -> bytes | None:
    """The message of a query; None where a Dnstap is something else. Raises FormatError."""
    message, kind = b"", 0
    for number, value in fields(data):
        if number == _MESSAGE:
            message = _octets(value)
        elif number == _KIND and type(value) is int:
            kind = value
    if kind != _IS_MESSAGE:
        return None
    query, of = b"", 0
    for number, value in fields(message):
        if number == _QUERY:
            query = _octets(value)
        elif number == _TYPE and type(value) is int:
            of = value
    return query if of in _QUERIES else None


def _octets(value: int | bytes) -> bytes:
    if type(value) is not bytes:
        raise FormatError("a field has the wrong type")
    return value
