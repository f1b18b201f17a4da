"""status - a page that shows what the server does.

## Syntax

    status [ADDRESS]

* ADDRESS is HOST:PORT; default 127.0.0.1:8053. The page is `/`, what it shows as JSON `/status.json`.

One page without anything from elsewhere: queries a second, response codes, latency, cache, upstreams, the age of the cluster's
state, and the names, clients and denied suffixes that are asked most, counted in constant memory. Not part of CoreDNS.

While a block has it each of its queries is looked at by itself: finished replies are not repeated, which costs some five
microseconds a query. Names and clients are on the page: keep its address to yourself.

## Examples

~~~ corefile
.:1053 {
    status 127.0.0.1:8053
    whoami
}
~~~
"""

from kdns.plugins.status.handler import Status

__all__ = ["Status"]
