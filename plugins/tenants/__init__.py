"""tenants - hides the names of other tenants' namespaces from a cluster's Pods.

A Pod's namespace comes from its address. For a Pod, names of namespaces that it may not see do not exist: Services,
endpoints, Pods, SRV and PTR records, targets of CNAMEs, and the names of `k8s_external`. Zone transfers are refused.

## Syntax

    tenants [ZONE] {
        isolate [by KEY...]
        share NAMESPACE...
        allow NAMESPACE -> NAMESPACE...
        from networkpolicy
        deny nxdomain|refused
        exempt CIDR...
        unknown allow|deny
    }

* ZONE is a zone of the block's `kubernetes`, for the reader's sake: all its zones are meant, reverse zones too.
* `isolate`: a namespace sees itself and what is shared. `by KEY...`: namespaces with the same values of these labels
  are one tenant and see each other; a namespace with none of the labels is a tenant by itself.
* `share`: all see these namespaces. `allow A -> B C`: namespace A sees B and C.
* `from networkpolicy`: a namespace with egress policies sees the namespaces that their rules name by
  `namespaceSelector` instead of what `isolate` says; a rule without destination shows all. Rules for port 53 alone,
  `ipBlock` and `podSelector` add nothing. A namespace without egress policies, or with some for a part of its Pods
  only, sees (also) what `isolate` lets it see, or all without `isolate`.
* `deny` is what a Pod gets for a hidden name: `nxdomain` (default), exactly what a name gets that does not exist; or
  `refused`, for those that exist and those that do not alike.
* `exempt`: clients with these addresses see all.
* `unknown` must be written: whether clients that are not Pods (nodes, Pods with `hostNetwork`, addresses that NAT
  changed) see all, or only what is shared. A hidden name is SERVFAIL for them, with extended error 18 (Prohibited).

Everybody sees `kubernetes.default`, `kube-dns.kube-system` and the Services that lead to this server. An address that
no Pod has is waited for, 200 ms at most, as the watch may be about to tell of it; it then counts as `unknown`, and is
not waited for again within a minute. So it is while the API has not been listed.

Behind a NodeLocal DNSCache, or anything else that asks for many, tenants are not told apart: all come from one address,
and the cache gives what it got for one to the other. Hiding names is not a network policy: who knows an address can use
it.

It needs `kubernetes` in the same server block, without its options `labels` and `namespace_labels`, and rights to list
and watch Pods and Namespaces, and with `from networkpolicy` NetworkPolicies (`networking.k8s.io`).

## Examples

Teams by a label of their namespaces; monitoring sees all of them, and all see what is shared:

~~~ corefile
.:1053 {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests cluster.yaml
    }
    tenants cluster.local {
        isolate by team
        share kube-system ingress
        allow monitoring -> shop
        exempt 10.0.0.0/24
        unknown deny
    }
}
~~~

What NetworkPolicies let out is what can be looked up:

~~~ corefile
.:1053 {
    kubernetes cluster.local {
        manifests cluster.yaml
    }
    tenants {
        isolate
        from networkpolicy
        unknown allow
    }
}
~~~

## Metrics

* `kdns_tenants_hidden_total{server,client}` - queries whose name was hidden, by whether the client was a `pod` or
  `unknown`.
"""

from kdns.plugins.tenants.plugin import Tenants

__all__ = ["Tenants"]
