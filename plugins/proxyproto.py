"""proxyproto - believes a proxy in front that says who asks (PROXY protocol, version 1 and 2).

With it the plugins and the log see the client's address and not the proxy's. It holds for all schemes over TCP
(versions 1 and 2), and for plain DNS over UDP (version 2).

## Syntax

    proxyproto {
        allow CIDR...
        default use|ignore|reject|skip
        udp_session_tracking DURATION [MAX]
    }

* `allow` lists the networks of proxies whose headers are trusted. Without it all headers are trusted: anyone who can
  reach the port can then claim any address, so `kdns check` and the log warn of it.
* `default` says how headers from other addresses are handled: `use` trusts them, `ignore` (default if there is `allow`)
  removes them, `reject` closes the connection or drops the datagram, `skip` does not look for them. A query without a
  header is always answered.
* `udp_session_tracking`: a proxy that puts a header into the first datagram of a session only (such as Cloudflare
  Spectrum) is remembered by its address and port for DURATION after each datagram, at most MAX at a time (default
  10240, the oldest goes first).

A header must arrive within 10 seconds and have at most 1024 octets. At most 1000 connections may wait for one.

It applies to the listener, so to all server blocks on the same address and port; the last block counts.

## Examples

~~~ corefile
.:1053 {
    proxyproto {
        allow 10.0.0.0/8 fd00::/8
        default reject
    }
    whoami
}
~~~

## Metrics

* `kdns_proxyproto_headers_total{server,result}` - headers that were `used`, `ignored`, `rejected`, or `malformed`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.net.proxy import POLICIES, ProxyPolicy, parse_networks
from kdns.plugin import Plugin, readers
from kdns.plugin.base import ListenerOptions

_OPTIONS: Final = ("allow", "default", "udp_session_tracking")


class Proxyproto(Plugin):
    """Asks its listener to look for headers."""

    name: ClassVar[str] = "proxyproto"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[ProxyPolicy]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        found = ProxyPolicy()
        others = ""
        for line in directive.body or ():
            name = line.name.text
            if name == "allow":
                words = readers.arguments(line, 1, None, "networks such as 10.0.0.0/8")
                try:
                    found = replace(found, trusted=(*found.trusted, *parse_networks(words)))
                except ValueError as error:
                    raise readers.fail(line, str(error)) from None
            elif name == "default":
                word = readers.one(line, ", ".join(POLICIES))
                others = word.text.lower()
                if others not in POLICIES:
                    raise readers.fail(word, f'expected {", ".join(POLICIES)}, found "{word.text}"')
            elif name == "udp_session_tracking":
                readers.arguments(line, 1, 2, "DURATION [MAX]")
                found = replace(found, remember=readers.seconds(line.args[0]))
                if len(line.args) > 1:
                    found = replace(found, sessions=readers.integer(line.args[1], 1, 10_000_000))
            else:
                raise readers.unknown(line, _OPTIONS)
        return [replace(found, others=others or ("ignore" if found.trusted else "use"))]

    def warnings(self) -> Sequence[str]:
        policy: ProxyPolicy = self.config
        if policy.trusted or policy.others != "use":
            return ()
        return ("PROXY headers are believed from everybody: who reaches the port can claim any address. Set `allow`",)

    def listener(self) -> ListenerOptions:
        return ListenerOptions(proxy=self.config)
