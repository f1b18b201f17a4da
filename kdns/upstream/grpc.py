"""DNS over gRPC to one upstream (dns.grpc): a call for each query, all on one connection of HTTP/2."""

from typing import ClassVar, Final, final
from urllib.parse import unquote

from kdns.dns import grpc
from kdns.upstream.connections import InFlightQuery
from kdns.upstream.doh import Response, matched
from kdns.upstream.exchange import Result
from kdns.upstream.https import HttpsConnections

MAX_SAID: Final = 200  # characters of what an upstream says of a call that failed


@final
class GrpcConnections(HttpsConnections):
    """The connection to one upstream. `context`: TLS, which must offer `h2` by ALPN; None: unencrypted."""

    proto: ClassVar[str] = "grpc"

    def request(self, query: bytes) -> tuple[list[tuple[str, str]], bytes]:
        scheme = "http" if self.context is None else "https"
        fields = [
            (":method", "POST"), (":scheme", scheme), (":authority", self.authority), (":path", grpc.PATH.decode()),
            ("content-type", grpc.TYPE.decode()), ("te", "trailers"),
        ]  # fmt: skip
        return fields, grpc.packed(query)

    def result(self, response: Response, flight: InFlightQuery) -> Result:
        if response.status != "200":
            return self.broken(flight, f"HTTP status {response.status or 'missing'}")
        code = response.fields.get("grpc-status", "")
        if code != "0":
            said = unquote(response.fields.get("grpc-message", ""))[:MAX_SAID]
            return self.broken(flight, f"gRPC status {code or 'missing'}{': ' if said else ''}{said}")
        try:
            return matched(self, grpc.unpacked(bytes(response.body)), flight)
        except grpc.BadPacket as error:
            return self.broken(flight, str(error))
