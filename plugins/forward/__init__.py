"""forward - sends queries to upstream servers.

## Syntax

    forward FROM TO... {
        except NAMES...
        force_tcp
        prefer_udp
        max_fails N
        max_connect_attempts N
        health_check DURATION [no_rec] [domain NAME]
        expire DURATION
        max_age DURATION
        max_idle_conns N
        read_timeout DURATION
        tls [CA] | [CERT KEY] | [CERT KEY CA]
        tls_servername NAME
        doh_method POST|GET
        policy random|round_robin|sequential
        max_concurrent N
        next RCODE...
        next_on_nodata
        failover RCODE...
        failfast_all_unhealthy_upstreams
        source_address ADDRESS
        source_ports fresh
        resolver ADDRESS...
        client_subnet
        case_randomization
    }

* FROM is the zone whose names are sent on; TO are up to 15 upstreams: `IP[:PORT]`, `dns://IP[:PORT]`,
  `tls://IP[%SERVERNAME][:PORT]`, `https://IP[%SERVERNAME][:PORT]` (HTTP/2, path `/dns-query`),
  `quic://IP[%SERVERNAME][:PORT]` (RFC 9250), `https3://IP[%SERVERNAME][:PORT]` (kdns only: HTTP/3; both need
  `pip install 'kdns[quic]'`), a file like /etc/resolv.conf (its nameserver lines), or a host name, which is looked up
  when the server is loaded.
* `except`: these names and names below them fall through to the next plugin.
* `force_tcp` always asks over TCP; `prefer_udp` asks over UDP even if the client used TCP. A truncated reply is asked
  for again over TCP, from the same upstream, in any case.
* `max_fails`: failed probes after which an upstream counts as down; 0 never. Default 2. Probes go out every
  `health_check` (0.5s) once a query has failed; `no_rec` without RD, `domain` for another name than the root.
* `max_connect_attempts`: tries for one query; default twice the number of upstreams.
* `read_timeout`: how long to wait for an upstream. Default 2s; a query takes at most 4.8s in all.
* `expire` (10s), `max_age` (no end), `max_idle_conns` (no limit): when kept TCP connections are closed. One on which a
  query times out without any answer meanwhile takes no more queries; those in flight on it are asked on a new one as
  well.
* `tls`, `tls_servername`: certificates, and the name to verify, for upstreams over TLS and QUIC.
  `doh_method`: how `https://` and `https3://` upstreams are asked; default POST. Proxies of the environment
  (HTTPS_PROXY) are not used: upstreams are asked directly.
* `policy`: in which order upstreams are asked. `random` (default) prefers those that answer sooner, by chance among
  those that are alike, and asks a second one when the first is late; `round_robin` and `sequential` keep their order
  and move on by failure only.
* `max_concurrent`: more queries in flight are answered REFUSED.
* `next`, `next_on_nodata`: after a reply with one of these codes, or without data, the next `forward` of the block is
  asked.
* `failover`: after a reply with one of these codes, the next upstream is asked.
* `failfast_all_unhealthy_upstreams`: SERVFAIL at once while all upstreams are down, instead of one try.
* `source_address`: the local address of queries. `source_ports fresh` (kdns only): a new port for each query.
* `resolver`: servers, as IP or IP:PORT, that are asked in order for host names in TO; without it this machine's own
  are. Host names are absolute, and looked up when a configuration is loaded.

* `client_subnet` (kdns only): a client's ECS option (RFC 7871) goes upstream, and the cache keys on it.
* `case_randomization` (kdns only): over UDP the letters of a name are sent in random case (0x20). The reply repeats it,
  so a forger has to guess it in addition to id and port. A reply in another case is not accepted, and the question is
  asked over TCP. Default off: a few servers do not keep the case, and each question to such a server would cost TCP as
  well; without TCP it would fail.

An upstream query has the client's RD, CD and DO; the client's other options are not sent (see `rewrite`). The UDP size
is kdns's own, 1232 or that of `bufsize`, and AD is always set. So the queries of different clients are alike, and a
question in flight is asked once. Over encrypted transports it is padded to a multiple of 128 octets (RFC 8467). At most
8 forms of one question are asked at a time (RFC 5452); further forms, which need an option that differs from client to
client, wait behind those without one, and beyond 56 they get SERVFAIL. One client (an IPv4 address, an IPv6 /64) gets
half of the places that others have left, so it cannot keep others out. After ten replies that do not match, a question
is asked over TCP. An upstream that answers FORMERR or NOTIMP is asked once more without EDNS.

## Examples

~~~ corefile
.:1053 {
    forward . 127.0.0.1:5301 127.0.0.1:5302 {
        max_concurrent 1000
        policy sequential
    }
}
~~~

## Metrics

* `coredns_forward_healthcheck_broken_total{}` - queries that found all upstreams down.
* `coredns_forward_max_concurrent_rejects_total{}`.
* `coredns_proxy_request_duration_seconds{proxy_name,to,rcode}`,
  `coredns_proxy_healthcheck_failures_total{proxy_name,to}`, `coredns_proxy_conn_cache_hits_total{proxy_name,to,proto}`,
  `coredns_proxy_conn_cache_misses_total{proxy_name,to,proto}`.
* `kdns_upstream_junk_total{to}`, `kdns_upstream_mismatch_retries_total{to}`, `kdns_forward_coalesced_total{}`,
  `kdns_forward_hedged_total{}`, `kdns_forward_variants_refused_total{}`.
"""

from kdns.plugins.forward.handler import Forward

__all__ = ["Forward"]
