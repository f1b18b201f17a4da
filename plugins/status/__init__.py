"""status - serves a page that shows what the server is doing.

## Syntax

    status [ADDRESS] {
        hosts NAME...
    }

* ADDRESS is HOST:PORT; default 127.0.0.1:8053. The page is `/`, what it shows as JSON `/status.json`, its history
  `/history.json`.
* `hosts` are names under which a browser may ask for it (of a Service, of an Ingress). Any address and `localhost`
  always may; other names get 421, so that no website can read the page through a name of its own that leads here (DNS
  rebinding).

One page without anything from elsewhere: an outage in one line at its top, failures, queries a second, each configured
upstream and since when it does not answer, response codes, times, cache, the age of the cluster's state, the last
errors, the names, clients and denied suffixes that are asked most, counted in constant memory, and the configuration
that runs: the beginning of its SHA-512, since when, its blocks, and why a changed Corefile is not served. Clients are
Pods by name where `kubernetes` has `pods verified`, and names that do not exist, which search lists ask for, are then
counted by workload: the Pod's name without what its Deployment, StatefulSet or other controller appended. The server
keeps 24 hours of history (170 KiB): every 5 seconds of the last hour, every minute of the last day. Not part of
CoreDNS.

Queries are counted where a block has `status`; several blocks may name one address, and share one page. Each query of
such a block is looked at by itself: finished replies are not repeated, which costs some five microseconds a query.
However many look at the page, it takes at most a twentieth of the server's time. Names and clients are on it: keep its
address to yourself.

## Examples

~~~ corefile
.:1053 {
    status 127.0.0.1:8053 {
        hosts kdns.example.org
    }
    whoami
}
~~~
"""

from kdns.plugins.status.handler import Status

__all__ = ["Status"]
