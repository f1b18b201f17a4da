"""Beside a running CoreDNS."""
