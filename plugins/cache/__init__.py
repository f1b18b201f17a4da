"""cache - keeps answers for a while.

Answers that kdns itself owns (kubernetes, hosts) are never kept: a change of theirs shows at once, also in a zone
that is cached. Their TTL is at most what it would be if they were.

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

* TTL is the most an answer is kept, in seconds. Default: 3600 for answers, 1800 for denials.
* `success`, `denial`: how many are kept (default 9984), for how long at most and at least (MINTTL, default 5).
* `prefetch`: names asked AMOUNT times with no gap over DURATION (1m) are asked for again when less than PERCENTAGE
  (10%) of their time is left.
* `serve_stale`: expired answers are served for DURATION (1h) more. `immediate` (default) serves first and asks then;
  `verify` asks first, for at most TIMEOUT. TTL is the TTL of such answers (0); RECHECK is how long a failed try is not
  repeated.
* `serve_stale_policy prefer_positive`: an answer, also a stale one, goes before a denial of the same question.
* `servfail`: how long a SERVFAIL of an upstream is kept. Default 5s, at most 5m, 0 not at all. That no upstream had a
  reply is kept for a second, or for less where this is less (RFC 9520); clients that use EDNS are told (extended error 13).
* `disable`: no answers, or no denials, are kept for these zones.
* `keepttl`: the TTL of a kept answer does not fall while it is kept. It is within the bounds of `success` and `denial`, as without.
* `nxdomain_cut` (kdns only): a name that does not exist has nothing below it (RFC 8020), so names below one that is kept as
  such are denied without asking. Only below the zones of no server block, and where one `forward` answers them all.

Beside CAPACITY, each of the two keeps at most 4 KiB an entry on the average. Of an answer only the records of the
question's own chain are kept, and the SOA of a denial.

What came of a query without RD is not kept, nor is an empty answer with neither SOA nor NS; such queries are answered from what
is kept.

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
