"""Kubernetes: where objects come from (API or manifests), and the cluster's state made of them. Knows no DNS."""
