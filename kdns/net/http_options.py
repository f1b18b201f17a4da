"""What `https` and `https3` ask of a listener that speaks HTTP."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from kdns.net.proxy import Network


class JsonForm(Protocol):
    """How queries are asked and replies are given in JSON."""

    def query(self, parameters: bytes) -> bytes:
        """The query that a URL's parameters ask for. Raises ValueError with a text for the client."""

    def pieces(self, reply: bytes) -> Iterator[str]:
        """A reply as JSON, piece by piece. Raises FormatError."""

    def refusal(self, text: str) -> bytes:
        """The body that says what is wrong with a request."""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`trusted`: the proxies whose X-Forwarded-For counts. `alt_svc`: the field of that name in answers (RFC 7838).
    `json`: how queries are asked in JSON.
    """

    trusted: tuple[Network, ...] = ()
    alt_svc: bytes = b""
    json: JsonForm | None = None
