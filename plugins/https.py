r"""https - what `https://` listeners allow.

DNS over HTTPS (RFC 8484) is served by the key `https://` alone, with the certificate of `tls`; without `tls` it is
unencrypted, for a proxy in front. Queries are GET and POST requests to `/dns-query`, over HTTP/2 or HTTP/1.1; answers
say for how long they are fresh. Another path gets 404, another method 405, a POST of another type 415, a body over 64
KiB 413, and a malformed query 400.

## Syntax

    https {
        max_connections N
        max_streams N
        trusted_proxies CIDR...
        alt_svc VALUE
        json
    }

* `max_connections`: the most connections at a time; beyond it the client that holds most loses one. Default, and with
  0: 16384, or a quarter of the files that the process may open. See also `limits`.
* `max_streams` (kdns only): requests at a time on a connection of HTTP/2. Default 256.
* `trusted_proxies` (kdns only): for requests from these addresses, the client is the last address in X-Forwarded-For
  that is not a trusted proxy itself. Plugins and the log then see that address. By default the field is ignored.
* `alt_svc` (kdns only): answers have the field Alt-Svc (RFC 7838) with VALUE, such as `"h3=\":443\"; ma=86400"`, which
  names where the same is served, and for how many seconds a client may remember it; `clear` makes clients forget it.
* `json` (kdns only): queries may also be asked in a URL, and are answered in JSON. Off by default.

With `json`, `GET /resolve?name=NAME` gets an answer as Google's public DNS gives it, of the type `application/json`. So
does `GET /dns-query?name=NAME` with `Accept: application/dns-json` (or `&ct=application/dns-json`), as Cloudflare's, of
that type. The parameters are

* `name`: a domain name in ASCII; required.
* `type`: a type or its number. Default: A.
* `do`, `cd`: `1` or `true` asks for DNSSEC's records, or for an answer that upstreams have not validated.
* `edns_client_subnet`: an address or a network, passed on in the query (RFC 7871).

Others are ignored. The object has Status (the response code), TC, RD, RA, AD, CD, Question, and where there are any
Answer, Authority, Additional, edns_client_subnet, and Comment with the extended errors (RFC 8914). What is no such
query gets 400 and an object with `error`.

`timeouts` applies here too: `read` for a connection's first request, `idle` between requests.

It applies to the listener, so to all server blocks on the same address and port; the last block counts.

## Examples

~~~ corefile
https://.:1443 {
    tls tls.crt tls.key
    https {
        max_connections 1000
        trusted_proxies 10.0.0.0/8
        alt_svc "h3=\":443\"; ma=86400"
        json
    }
    whoami
}
~~~

    $ curl 'https://dns.example.org/resolve?name=www.example.org&type=AAAA'

## Metrics

* `coredns_dns_https_responses_total{server,status}` - answers by HTTP status.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.net.http_options import HttpOptions
from kdns.plugin import Plugin, dns_json, readers
from kdns.plugin.base import ListenerOptions

_OPTIONS: Final = ("max_connections", "max_streams", "trusted_proxies", "alt_svc", "json")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = r'"[^"\\\x00-\x1f\x7f-\U0010ffff]*"'
_ALTERNATIVE: Final = rf"{_TOKEN}={_QUOTED}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*"
_ALT_SVC: Final = re.compile(rf"clear|{_ALTERNATIVE}(?:[ \t]*,[ \t]*{_ALTERNATIVE})*")  # RFC 7838, section 3
MAX_ALT_SVC: Final = 1024  # octets, in each answer


class Https(Plugin):
    """Asks its listener for other bounds."""

    name: ClassVar[str] = "https"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[ListenerOptions]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        http = HttpOptions()
        counts: dict[str, int] = {}
        for line in directive.body or ():
            name = line.name.text
            if name not in _OPTIONS:
                raise readers.unknown(line, _OPTIONS)
            if name == "trusted_proxies":
                readers.arguments(line, 1, None, "networks such as 10.0.0.0/8")
                http = replace(http, trusted=(*http.trusted, *map(readers.strict_network, line.args)))
            elif name == "json":
                readers.no_block(line)
                readers.arguments(line, 0, 0)
                http = replace(http, json=dns_json)
            elif name == "alt_svc":
                word = readers.one(line, 'alternatives such as "h3=\\":443\\"; ma=86400"')
                if not _ALT_SVC.fullmatch(word.text) or len(word.text) > MAX_ALT_SVC:
                    raise readers.fail(
                        word, f'expected alternatives such as "h3=\\":443\\"; ma=86400", found "{word.text}"'
                    )
                http = replace(http, alt_svc=word.text.encode())
            else:
                readers.count_once(line, counts)
        connections, streams = counts.get("max_connections", 0), counts.get("max_streams", 0)
        return [ListenerOptions(connections=connections, max_streams=streams, http=http)]

    def listener(self) -> ListenerOptions:
        options: ListenerOptions = self.config
        return options
