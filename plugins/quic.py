"""quic - what `quic://` listeners allow.

DNS over QUIC (RFC 9250) is served by the key `quic://` alone, on UDP port 853, with the certificate of `tls`, which it
must have. It needs the package aioquic: `pip install 'kdns[quic]'`. The key may be ECDSA's on P-256 or P-384, RSA,
Ed25519 or Ed448.

## Syntax

    quic {
        max_streams N
        worker_pool_size N
    }

* `max_streams`: queries at a time on a connection. Default 256.
* `worker_pool_size` is accepted for CoreDNS's sake and does nothing: a query that waits holds no worker here.

Queries whose streams were reset count until they are answered; beyond `max_streams` streams are reset with code 4, and
so are those whose answers would wait beside 1 MiB that the client has not taken.

A query that does not come whole within `timeouts read` (3 seconds) ends its stream, and a connection without a query
for `timeouts idle` (11 seconds) is closed. `limits` says how many connections there may be, of all and of each client;
default 16384, or a quarter of the files that the process may open. Replies are whole: the size that a client says in
its OPT is one of UDP. They are padded where the query is.

What breaks RFC 9250 closes the connection with its code 2: a message whose ID is not 0, that has no length, or that has
the option edns-tcp-keepalive; a second query or a unidirectional stream. Zone transfers and UPDATE are refused, early
data (0-RTT) is not taken. `client_auth` of `tls` cannot be had over QUIC, nor `proxyproto`.

While 32 handshakes are under way, new clients must first show that they receive at the address they send from (Retry,
RFC 9000); before they have, they get at most three times the octets that came.

It applies to the listener, so to all server blocks on the same address and port; the last block counts.

## Connections that are over

kdns ends connections in good order when it ends. A client that asks on a connection of which kdns knows nothing,
because the process was killed or its farewell was lost, gets a stateless reset (RFC 9000, section 10.3) and can connect
again at once. It gets one from the same process, or from one that was started in its place: in the same Pod, or on the
same node since it booted, with the same address, port and private key. Other replicas stay silent: they cannot know
that the connection is over, and must not end one that lives (section 21.11). A process started with `-share-port` knows
its own connections alone. No more than 1000 are sent in a second.

## With several processes

With `multisocket` the kernel gives a connection's datagrams to one process, by the addresses and ports of both ends. A
client whose address or port changes (QUIC lets connections move), or one from before the number of processes changed,
may meet another process, which does not know its connection, and is silent: it then connects again.

## Examples

~~~ corefile
quic://.:1853 {
    tls tls.crt tls.key
    quic {
        max_streams 100
    }
    whoami
}
~~~

## Metrics

* `coredns_dns_quic_responses_total{server,status}` - `0x0`: replies; `0x1`: queries without one, whose streams were
  reset; `0x2`: connections closed for what breaks the protocol; `0x4`: answers that the client does not take.
* `kdns_quic_retries_total{server}` - clients asked to prove their address.
* `kdns_quic_resets_total{server}` - clients told that nothing is known of their connection (stateless resets).
* `kdns_quic_datagrams_rejected_total{server}` - datagrams that belong to no connection and begin none.
* Those of handshakes (see `tls`) and of connections (`kdns_tcp_connections...`) count QUIC's too.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions

_OPTIONS: Final = ("max_streams", "worker_pool_size")


class Quic(Plugin):
    """Asks its listener for other bounds."""

    name: ClassVar[str] = "quic"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[dict[str, int]]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        found: dict[str, int] = {}
        for line in directive.body or ():
            if line.name.text not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
            readers.count_once(line, found, least=1)
        return [found]

    def warnings(self) -> Sequence[str]:
        return ("quic: worker_pool_size does nothing here",) if "worker_pool_size" in self.config else ()

    def listener(self) -> ListenerOptions:
        return ListenerOptions(max_streams=self.config.get("max_streams", 0))
