"""grpc_server - what `grpc://` listeners allow.

DNS over gRPC is served by the key `grpc://` alone, behind the certificate of `tls`; without `tls` unencrypted. Its one
method, `/coredns.dns.DnsService/Query`, takes and gives a message with the octets of a DNS message in field 1. kdns's
plugin `grpc`, and CoreDNS's, ask it.

## Syntax

    grpc_server {
        max_connections N
        max_streams N
    }

* `max_connections`: the most connections at a time; beyond it the client that holds most loses one. Default, and with
  0: 16384, or a quarter of the files that the process may open. See also `limits`.
* `max_streams`: calls at a time on a connection. Default, and with 0: 256.

It applies to the listener, so to all server blocks on the same address and port; the last block counts.

## Examples

~~~ corefile
grpc://.:1443 {
    tls tls.crt tls.key
    grpc_server {
        max_streams 100
    }
    whoami
}
~~~
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions

_OPTIONS: Final = ("max_connections", "max_streams")


class GrpcServer(Plugin):
    """Asks its listener for other bounds."""

    name: ClassVar[str] = "grpc_server"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[ListenerOptions]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        found: dict[str, int] = {}
        for line in directive.body or ():
            if line.name.text not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
            readers.count_once(line, found)
        return [ListenerOptions(connections=found.get("max_connections", 0), max_streams=found.get("max_streams", 0))]

    def listener(self) -> ListenerOptions:
        options: ListenerOptions = self.config
        return options
