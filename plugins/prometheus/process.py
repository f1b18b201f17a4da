"""The metrics of the process: prometheus-client's, and those that Go's client has beside them."""

import resource
from collections.abc import Iterator, Mapping
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


class OfProcess:
    """The metrics of one other process, by its id."""

    def __init__(self, pid: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(pid=lambda: pid, registry=self.registry)

    def values(self) -> dict[str, float]:
        """By name; empty where it has ended."""
        return {sample.name: sample.value for metric in self.registry.collect() for sample in metric.samples}


def text_of(total: Mapping[str, float]) -> bytes:
    """All of it in the text format, with these values in place of our own."""
    registry = CollectorRegistry()
    registry.register(_Replaced(total))
    return generate_latest(registry)


class _Replaced:
    def __init__(self, total: Mapping[str, float]) -> None:
        self.total = total

    def collect(self) -> Iterator[Metric]:
        for metric in _registry.collect():
            for at, sample in enumerate(metric.samples):
                if sample.name in self.total:
                    metric.samples[at] = sample._replace(value=self.total[sample.name])
            yield metric


_registry: Final = CollectorRegistry()
ProcessCollector(registry=_registry)
PlatformCollector(registry=_registry)
_registry.register(_More())


def text() -> bytes:
    """All of it in the text format."""
    return generate_latest(_registry)


def own() -> dict[str, float]:
    """Those of this process, by name."""
    return {sample.name: sample.value for metric in _registry.collect() for sample in metric.samples}
