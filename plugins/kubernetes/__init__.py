"""kubernetes - serves the names of a Kubernetes cluster.

Answers A, AAAA, SRV and PTR for Services, endpoints and Pods as the Kubernetes DNS specification 1.1.0 asks. It
watches the cluster's API, or follows manifests in files, and answers from an index of finished replies.

## Syntax

    kubernetes [ZONES...] {
        endpoint URL
        tls CERT KEY CA
        kubeconfig FILE [CONTEXT]
        manifests PATH...
        namespaces NAMESPACE...
        namespace_labels EXPRESSION
        labels EXPRESSION
        pods disabled|insecure|verified
        endpoint_pod_names
        ttl TTL
        noendpoints
        fallthrough [ZONES...]
        ignore empty_service
        startup_timeout DURATION
        snapshot PATH [MAX_AGE]
        zonal
        multicluster ZONES...
        apiserver_qps QPS
        apiserver_burst N
        apiserver_max_inflight N
    }

* **ZONES** are the zones to serve; the server block's if there are none. One at least must not be a reverse zone: the
  first such zone is where PTR records point to.
* `endpoint` is the API's URL, for use outside of a cluster; `tls` the client certificate, its key and the CA for it.
  Without `endpoint`, `kubeconfig` and `manifests`, the Pod's service account is used.
* `kubeconfig` takes address and credentials from a kubeconfig file, CONTEXT or its current context: tokens, client
  certificates and exec plugins. An exec plugin has 30 seconds; then it is killed, with all that it started.
* A proxy in front of the API is used as kubectl does: the kubeconfig's `proxy-url`, or else HTTPS_PROXY or HTTP_PROXY
  of the environment, except for hosts that NO_PROXY lists (hosts, domains, addresses, prefixes, each with or without a
  port) and this machine itself. The proxy is asked over `http://` or `https://`; SOCKS proxies are not supported.
* `manifests` (kdns only) reads Services, EndpointSlices, Namespaces and Pods from YAML files and folders instead of an
  API, and follows them. `kubectl get svc,endpointslices,ns -A -o yaml` is such a file. A namespace exists if it has an
  object or anything in it. If a file becomes invalid, its last good state is served.
* `namespaces` serves only these namespaces (default: all); `namespace_labels` those with matching labels. One of the
  two.
* `labels` serves only Services, EndpointSlices and Pods with matching labels.
* `pods` says how names like `1-2-3-4.ns.pod.ZONE` are answered: `disabled` (default) not at all; `insecure` with the
  address in the name, if the namespace exists; `verified` if a running Pod of that namespace has it.
* `endpoint_pod_names` names endpoints without a hostname after their Pods instead of their addresses.
* `ttl` is the TTL of answers in seconds, 0 to 3600. Default: 5.
* `noendpoints` watches no EndpointSlices, so headless Services have no names.
* `fallthrough` passes names that do not exist on to the next plugin; with ZONES only those in them.
* `ignore empty_service` answers NXDOMAIN for Services with no ready endpoint.
* `startup_timeout` is how long to wait for the API before a warning. Default: 5s. kdns serves at once in any case.
* `snapshot` (kdns only) saves the state in a file, at most every 30 seconds and at shutdown, and reads it at start:
  names are answered at once, even while the API is down, and later changes are applied when it answers. A snapshot that
  is damaged, of another cluster or configuration, or older than MAX_AGE (default 24h, 0: any age) is ignored with a
  warning in the log.
* `zonal` answers `ZONE.pin._zone.SERVICE.NAMESPACE.svc.ZONES` for headless Services with the endpoints in that topology
  zone, `ZONE.prefer._zone...` with those, or with all where there are none.
* `multicluster` names those of ZONES that hold ServiceImports (multicluster.x-k8s.io, v1beta1 or v1alpha1) instead of
  Services.
* `apiserver_qps`, `apiserver_burst`, `apiserver_max_inflight` are accepted for compatibility with CoreDNS and have no
  effect: kdns makes one list and one watch for each kind of object, which no such limit would slow.

Until the first list from the API is complete, an unknown name in the cluster's zones gets SERVFAIL, because it may
exist. Afterwards kdns serves what it knows for as long as the API cannot be reached; after a minute clients that use
EDNS get extended error 3 (Stale Answer). A list every 10 to 15 minutes finds and repairs what a watch has lost. An
object that cannot be read is rejected with one log line, and the rest is served.

## Examples

The default of kubeadm:

~~~ corefile
.:1053 {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
        manifests cluster.yaml
    }
}
~~~

## Metrics

* `kdns_kubernetes_synced{}` - 1 once everything has been listed since the start.
* `kdns_kubernetes_objects{kind}` - objects held, by kind.
* `kdns_kubernetes_data_age_seconds{kind}` - how long ago the state was known to be the API's; 0 while it is watched.
* `kdns_kubernetes_events_total{kind,type}`, `kdns_kubernetes_lists_total{kind}`, `kdns_kubernetes_errors_total{kind}` -
  what the API sent, and requests that failed.
* `kdns_kubernetes_quarantined_total{kind}` - objects rejected; `kdns_kubernetes_healed_total{kind}` - objects that a
  watch had lost; `kdns_kubernetes_reflector_restarts_total{kind}` - tasks that failed;
  `kdns_kubernetes_snapshots_total{outcome}`.
* `coredns_kubernetes_dns_programming_duration_seconds{service_kind}` - from what changed endpoints to their answers.
* `coredns_kubernetes_rest_client_requests_total{code,method,host}`,
  `coredns_kubernetes_rest_client_request_duration_seconds{verb,host}`, and
  `coredns_kubernetes_rest_client_rate_limiter_duration_seconds{verb,host}`, which is always 0: there is no limiter.
"""

from kdns.plugins.kubernetes.plugin import Kubernetes

__all__ = ["Kubernetes"]
