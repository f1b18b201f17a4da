"""The series of CoreDNS that dashboards and alerts ask for: each is here under its name, kind, labels and buckets.

The table is what the code of CoreDNS 1.14.7 and 1.15.0 registers for the plugins that kdns has, and what both served
when they were asked. tests/oracle compares with a running CoreDNS where there is one.
"""

import kdns.kube.api
import kdns.kube.informer
import kdns.net.doq  # noqa: F401 - nothing brings these three in before they are used
from kdns.metrics import REGISTRY, SUM, Gauge, Histogram
from kdns.server import catalog

# name, kind, labels (in the alphabet's order; - for none)
SERIES = """
coredns_acl_allowed_requests_total counter server,view
coredns_acl_blocked_requests_total counter server,view,zone
coredns_acl_dropped_requests_total counter server,view,zone
coredns_acl_filtered_requests_total counter server,view,zone
coredns_autopath_success_total counter server
coredns_build_info gauge goversion,revision,version
coredns_cache_drops_total counter server,view,zones
coredns_cache_entries gauge server,type,view,zones
coredns_cache_evictions_total counter server,type,view,zones
coredns_cache_hits_total counter server,type,view,zones
coredns_cache_misses_total counter server,view,zones
coredns_cache_prefetch_total counter server,view,zones
coredns_cache_requests_total counter server,view,zones
coredns_cache_served_stale_total counter server,view,zones
coredns_dns64_requests_translated_total counter server
coredns_dns_https3_responses_total counter server,status
coredns_dns_https_responses_total counter server,status
coredns_dns_quic_responses_total counter server,status
coredns_siit_requests_translated_total counter server
coredns_dns_do_requests_total counter server,view,zone
coredns_dns_request_duration_seconds histogram server,view,zone
coredns_dns_request_size_bytes histogram proto,server,view,zone
coredns_dnssec_cache_entries gauge server,type
coredns_dnssec_cache_hits_total counter server
coredns_dnssec_cache_misses_total counter server
coredns_dns_requests_total counter family,proto,server,type,view,zone
coredns_dns_response_size_bytes histogram proto,server,view,zone
coredns_dns_responses_total counter plugin,rcode,server,view,zone
coredns_forward_healthcheck_broken_total counter -
coredns_forward_max_concurrent_rejects_total counter -
coredns_health_request_duration_seconds histogram -
coredns_health_request_failures_total counter -
coredns_hosts_entries gauge hostsfile
coredns_hosts_reload_timestamp_seconds gauge -
coredns_kubernetes_dns_programming_duration_seconds histogram service_kind
coredns_kubernetes_rest_client_rate_limiter_duration_seconds histogram host,verb
coredns_kubernetes_rest_client_request_duration_seconds histogram host,verb
coredns_kubernetes_rest_client_requests_total counter code,host,method
coredns_local_localhost_requests_total counter -
coredns_panics_total counter -
coredns_plugin_enabled gauge name,server,view,zone
coredns_proxy_conn_cache_hits_total counter proto,proxy_name,to
coredns_proxy_conn_cache_misses_total counter proto,proxy_name,to
coredns_proxy_healthcheck_failures_total counter proxy_name,to
coredns_proxy_request_duration_seconds histogram proxy_name,rcode,to
coredns_reload_failed_total counter -
coredns_reload_version_info gauge hash,value
coredns_shed_dropped_total counter reason,server
coredns_siit_requests_translated_total counter server
coredns_template_matches_total counter class,server,type,view,zone
coredns_template_rr_failures_total counter class,section,server,template,type,view,zone
coredns_template_template_failures_total counter class,section,server,template,type,view,zone
"""
TIMES = [0.00025 * 2**n for n in range(16)]
CLIENT = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
SIZES = [0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3]
BUCKETS = {
    "coredns_dns_request_duration_seconds": TIMES, "coredns_dns_request_size_bytes": SIZES,
    "coredns_dns_response_size_bytes": SIZES,
    "coredns_health_request_duration_seconds": [0.00025, 0.0025, 0.025, 0.25, 2.5],
    "coredns_kubernetes_dns_programming_duration_seconds": [0.001 * 2**n for n in range(20)],
    "coredns_kubernetes_rest_client_rate_limiter_duration_seconds": CLIENT,
    "coredns_kubernetes_rest_client_request_duration_seconds": CLIENT, "coredns_proxy_request_duration_seconds": TIMES,
}  # fmt: skip
AMOUNTS = ("_connections", "_bytes", "_clients", "_entries", "_workers")


def test_every_series_of_coredns_is_there_by_name_kind_and_labels() -> None:
    for name in catalog.built():
        catalog.plugin_class(name)
    expected = {line.split()[0]: line for line in SERIES.split("\n") if line}
    found = {
        name: f"{name} {family.kind} {','.join(sorted(family.labels)) or '-'}"
        for name, family in REGISTRY.items() if name.startswith("coredns_")
    }  # fmt: skip
    assert found == expected


def test_histograms_have_the_buckets_of_coredns() -> None:
    for name in catalog.built():
        catalog.plugin_class(name)
    found = {
        name: list(family.bounds)
        for name, family in REGISTRY.items() if isinstance(family, Histogram) and name.startswith("coredns_")
    }  # fmt: skip
    assert found.keys() == BUCKETS.keys()
    for name, bounds in BUCKETS.items():
        assert all(abs(a - b) < 1e-9 for a, b in zip(found[name], bounds, strict=True)), name


def test_a_gauge_that_is_not_an_amount_is_not_summed_over_workers() -> None:
    """A sum of times, ages, versions or of yes and no says nothing (`multisocket`)."""
    for name in catalog.built():
        catalog.plugin_class(name)
    summed = {name for name, found in REGISTRY.items() if isinstance(found, Gauge) and found.across == SUM}
    amounts = {name for name in summed if name.endswith(AMOUNTS)}
    assert summed == amounts
    assert amounts
