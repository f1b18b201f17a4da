"""https3 - what `https3://` listeners allow.

DNS over HTTPS by HTTP/3 is served by the key `https3://` alone, on UDP port 443, with the certificate of `tls`, which
it must have. Requests and answers are those of `https`. It needs the package aioquic: `pip install 'kdns[quic]'`.

## Syntax

    https3 {
        max_connections N
        max_streams N
        trusted_proxies CIDR...
    }

* `max_connections`: the most connections at a time; beyond it the client that holds most loses one. Default, and with
  0: 16384, or a quarter of the files that the process may open. See also `limits`.
* `max_streams`: requests at a time on a connection. Default, and with 0: 256.
* `trusted_proxies` (kdns only): as with `https`.

What is said of handshakes, of connections that are over, of several processes and of what cannot be had under `quic`
holds here too.

It applies to the listener, so to all server blocks on the same address and port; the last block counts.

## Examples

~~~ corefile
https3://.:1443 {
    tls tls.crt tls.key
    https3 {
        max_streams 100
    }
    whoami
}
~~~

## Metrics

* `coredns_dns_https3_responses_total{server,status}` - answers by HTTP status.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.net.http_options import HttpOptions
from kdns.net.proxy import Network
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions

_OPTIONS: Final = ("max_connections", "max_streams", "trusted_proxies")


class Https3(Plugin):
    """Asks its listener for other bounds."""

    name: ClassVar[str] = "https3"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[ListenerOptions]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        counts: dict[str, int] = {}
        trusted: list[Network] = []
        for line in directive.body or ():
            name = line.name.text
            if name not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
            if name == "trusted_proxies":
                readers.arguments(line, 1, None, "networks such as 10.0.0.0/8")
                trusted += [readers.strict_network(word) for word in line.args]
            else:
                readers.count_once(line, counts)
        return [
            ListenerOptions(
                connections=counts.get("max_connections", 0),
                max_streams=counts.get("max_streams", 0),
                http=HttpOptions(tuple(trusted)),
            )
        ]

    def listener(self) -> ListenerOptions:
        options: ListenerOptions = self.config
        return options
