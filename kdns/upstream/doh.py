"""DNS over HTTPS, whatever the version of HTTP (RFC 8484): the request for a query, and what a response comes to.

The id is 0 (section 4.1), so a reply is matched by its stream and its question.
"""

import base64
from typing import Final, final

from kdns.address import host_port
from kdns.dns.freshness import older
from kdns.upstream.connections import Connections, InFlightQuery
from kdns.upstream.exchange import Result, matching_reply

MAX_BODY: Final = 65535 + 9  # octets of a reply: no DNS message is larger; gRPC puts nine before it
PATH: Final = "/dns-query"
MESSAGE: Final = "application/dns-message"
MAX_DIGITS: Final = 10  # of an age in seconds: TTLs have no more


@final
class Response:
    """What has come on a stream. `fields` are the last that came: the response's, or the trailers. `age` is that of
    a response from a cache.
    """

    __slots__ = ("age", "body", "fields", "status", "type")

    def __init__(self) -> None:
        self.status = ""
        self.type = ""
        self.age = ""
        self.fields: dict[str, str] = {}
        self.body = bytearray()


def authority(server_name: str, port: int) -> str:
    """The field `:authority` of requests."""
    return server_name if port == 443 else host_port(server_name, port)


def request(query: bytes, authority: str, get: bool) -> tuple[list[tuple[str, str]], bytes]:
    """The fields and the body of the request for a query (section 4.1), by GET or POST."""
    path = PATH
    if get:
        path += "?dns=" + base64.urlsafe_b64encode(query).rstrip(b"=").decode()
    fields = [
        (":method", "GET" if get else "POST"), (":scheme", "https"), (":authority", authority), (":path", path),
        ("accept", MESSAGE),
    ]  # fmt: skip
    if get:
        return fields, b""
    return [*fields, ("content-type", MESSAGE), ("content-length", str(len(query)))], query


def result(owner: Connections, response: Response, flight: InFlightQuery) -> Result:
    """What a complete response comes to."""
    if response.status != "200":
        return owner.broken(flight, f"HTTP status {response.status or 'missing'}")
    if response.type.partition(";")[0].strip().lower() != MESSAGE or len(response.body) > MAX_BODY:
        return owner.broken(flight, f"the reply is not {MESSAGE}")
    message = bytes(response.body)
    if response.age.isascii() and response.age.isdecimal():  # else it is none (RFC 9111, section 5.1)
        message = older(message, int(response.age[:MAX_DIGITS]))
    return matched(owner, message, flight)


def matched(owner: Connections, message: bytes, flight: InFlightQuery) -> Result:
    """A reply, if it is to the question."""
    answer = matching_reply(message, message[:2], flight.question, owner.to)
    return answer if answer is not None else owner.broken(flight, "the reply is to another question")
