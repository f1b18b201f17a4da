"""cache - stores answers for as long as their TTLs allow.

Local answers (kubernetes, k8s_external, hosts, template) are never stored: a change shows at once, even in a zone that
is cached. The maximum TTL applies to them all the same.

## Syntax

    cache [TTL] [ZONES...] {
        success CAPACITY [TTL] [MINTTL]
        denial CAPACITY [TTL] [MINTTL]
        prefetch AMOUNT [DURATION [PERCENTAGE%]]
        serve_stale [DURATION [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]]
        serve_stale_policy prefer_positive
        servfail DURATION
        disable success|denial [ZONES...]
        keepttl
        nxdomain_cut
    }

* TTL is the longest time that an answer is stored, in seconds. Default: 3600 for answers, 1800 for denials.
* `success`, `denial`: how many are stored (default 9984), and the longest and the shortest time (MINTTL, default 5).
* `prefetch`: a name that was asked for AMOUNT times without a gap of more than DURATION (1m) is refreshed when less
  than PERCENTAGE (10%) of its TTL is left.
* `serve_stale`: expired answers are served for another DURATION (1h). `immediate` (default) answers first and then asks
  the upstream; `verify` asks first and waits at most TIMEOUT. TTL is the TTL of stale answers (0). After a failure the
  upstream is not asked again for RECHECK.
* `serve_stale_policy prefer_positive`: a positive answer, even a stale one, is preferred to a denial of the same
  question.
* `servfail`: how long an upstream's SERVFAIL is stored. Default: 5s, at most 5m, 0: not at all. `cache` stores upstream
  failures (no reply at all) for one second or for this time, whichever is less (RFC 9520); clients that use EDNS get
  extended error 13.
* `disable`: answers or denials in these zones are not stored.
* `keepttl`: the TTL of a stored answer does not count down. The bounds of `success` and `denial` still apply.
* `nxdomain_cut` (kdns only): a name that does not exist has nothing below it (RFC 8020), so names below one that is
  kept as such are denied without asking. Only below the zones of no server block, and where one `forward` answers them
  all.

Besides CAPACITY there is a limit of 4 KiB an entry on average. Of an answer, only the records that belong to the
question's CNAME chain are stored, and the SOA of a denial.

The reply to a query without RD is not stored, nor is an empty answer without SOA and NS. Queries without RD can be
answered from the cache.

The negative TTL is the SOA's TTL or its MINIMUM, whichever is less (RFC 2308, section 5).

## Examples

~~~ corefile
.:1053 {
    cache 30 {
        disable success cluster.local
        disable denial cluster.local
    }
    whoami
}
~~~

## Metrics

* `coredns_cache_entries{server,type,zones,view}`, `coredns_cache_requests_total{server,zones,view}`,
  `coredns_cache_hits_total{server,type,zones,view}`, `coredns_cache_misses_total{server,zones,view}`,
  `coredns_cache_evictions_total{server,type,zones,view}`, `coredns_cache_prefetch_total{server,zones,view}`,
  `coredns_cache_drops_total{server,zones,view}`, `coredns_cache_served_stale_total{server,zones,view}`.
"""

from kdns.plugins.cache.handler import Cache

__all__ = ["Cache"]
