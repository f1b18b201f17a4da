"""kdns: a cluster DNS server that takes CoreDNS's place behind Kubernetes' `kube-dns` Service."""

__version__ = "0.1.0"
