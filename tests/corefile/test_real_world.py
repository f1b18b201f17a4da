"""Corefiles as clusters have them: they parse, and load but for what the machine lacks; missing plugins are named."""

import pytest

from kdns.corefile import CorefileError
from kdns.server import build

KUBEADM = """\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""
K3S = """\
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
    }
    hosts /etc/coredns/NodeHosts {
      ttl 60
      reload 15s
      fallthrough
    }
    prometheus :9153
    cache 30
    loop
    reload
    loadbalance
    import /etc/coredns/custom/*.override
    forward . /etc/resolv.conf
}
import /etc/coredns/custom/*.server
"""
EKS = """\
.:53 {
    errors
    health {
        lameduck 5s
      }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
    }
    prometheus :9153
    forward . /etc/resolv.conf
    cache 30
    loop
    reload
    loadbalance
}
"""
AKS = """\
.:53 {
    errors
    ready
    health {
      lameduck 5s
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
      ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf
    cache 30
    loop
    reload
    loadbalance
    import custom/*.override
    template ANY ANY internal.cloudapp.net {
      match "^(?:[^.]+\\.){4,}internal\\.cloudapp\\.net\\.$"
      rcode NXDOMAIN
      fallthrough
    }
    template ANY ANY reddog.microsoft.com {
      rcode NXDOMAIN
    }
}
import custom/*.server
"""
NODELOCAL = """\
cluster.local:53 {
    errors
    cache {
            success 9984 30
            denial 9984 5
    }
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.96.0.11 {
            force_tcp
    }
    prometheus :9253
    health 169.254.20.10:8080
    }
in-addr.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.96.0.11 {
            force_tcp
    }
    prometheus :9253
    }
.:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . /etc/resolv.conf
    prometheus :9253
    }
"""


@pytest.mark.parametrize(
    "text", [KUBEADM, K3S, EKS, AKS, NODELOCAL], ids=["kubeadm and kind", "k3s", "eks", "aks", "nodelocal"]
)
def test_the_default_corefile_builds_unchanged(text: str) -> None:
    instance = build.build(build.read(text, "Corefile", environ={}))
    instance.check()
    assert all(not block.chain.empty for block in instance.blocks)


def test_a_plugin_that_is_not_built_is_named_with_its_line() -> None:
    text = AKS.replace("    loop\n", "    loop\n    route53\n")
    with pytest.raises(CorefileError) as caught:
        build.build(build.read(text, "Corefile", environ={}))
    assert str(caught.value).startswith("Corefile:16:5: ")
    assert 'plugin "route53" is known from CoreDNS' in str(caught.value)


def test_the_chain_is_in_the_fixed_order_whatever_the_corefile_says() -> None:
    block = build.build(build.read(KUBEADM, "Corefile", environ={})).blocks[0]
    expected = ["prometheus", "errors", "loadbalance", "kubernetes", "cache", "loop", "forward"]
    assert block.query_plugins() == expected
