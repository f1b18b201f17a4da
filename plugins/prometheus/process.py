"""The metrics of the process: prometheus-client's, and those that Go's client has beside them."""

import resource
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_NETSTAT: Final = "/proc/self/net/netstat"
_UNLIMITED: Final = float(2**64 - 1)  # what Go's client says of a limit that there is not


class _More:
    def collect(self) -> Iterator[Metric]:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        yield GaugeMetricFamily(
            "process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.",
            value=_UNLIMITED if limit == resource.RLIM_INFINITY else float(limit),
        )  # fmt: skip
        try:
            with open(_NETSTAT, encoding="ascii") as file:
                octets = octets_of(file.read())
        except (OSError, ValueError):
            return
        for way, value in zip(("receive", "transmit"), octets, strict=True):
            text = f"Number of bytes {'received' if way == 'receive' else 'sent'} by the process over the network."
            yield CounterMetricFamily(f"process_network_{way}_bytes_total", text, value=value)


def octets_of(netstat: str) -> tuple[float, float]:
    """Octets in and out of this network namespace: the two lines `IpExt:` of netstat. Raises ValueError."""
    names, values = (line.split() for line in netstat.splitlines() if line.startswith("IpExt:"))
    found = dict(zip(names, values, strict=True))
    if "InOctets" not in found or "OutOctets" not in found:
        raise ValueError("no octets in netstat")
    return float(found["InOctets"]), float(found["OutOctets"])


_registry: Final = CollectorRegistry()
ProcessCollector(registry=_registry)
PlatformCollector(registry=_registry)
_registry.register(_More())


def text() -> bytes:
    """All of it in the text format."""
    return generate_latest(_registry)
