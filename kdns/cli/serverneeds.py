"""What the servers' Corefile needs of their Pods, for `kdns doctor`: memory for worker processes."""

import re
from collections.abc import Iterator
from typing import Final

from kdns.cli.clusterstate import Object, State
from kdns.cli.configmaps import served
from kdns.cli.finding import WARNING, Finding

# MiB for all workers and for each, in a cluster of 150,000 endpoints: measured 45 and 40, and some for caches.
_ALL, _EACH = 60, 40
_UNITS: Final = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")


def findings(state: State) -> Iterator[Finding]:
    """A memory limit that is too small for the workers of `multisocket`, which are threads in CoreDNS."""
    count = _workers(state)
    for server in state.servers[:1]:
        for container in (server.get("spec") or {}).get("containers") or ():
            limit = _limit(container)
            if "kdns" not in str(container.get("image")) or not limit or count == 1:
                continue
            needed = _ALL + _EACH * count
            if count and limit >= needed << 20:
                continue
            how = f"multisocket {count}" if count else "multisocket without a number, a worker for each processor,"
            yield Finding(
                WARNING,
                "memory",
                f"{how} has a memory limit of {limit >> 20} MiB",
                "each worker holds the cluster's state: in a large cluster the kernel kills one after the other",
                f"kubectl -n {state.namespace} set resources deploy/coredns --limits=memory={needed}Mi"
                if count
                else f"kubectl -n {state.namespace} edit cm coredns    # give multisocket a number",
            )


def _workers(state: State) -> int:
    """The Corefile's workers; 0 where their number is the node's processors."""
    most = 1
    for block in served(state) or ():
        for directive in block.directives.get("multisocket", ()):
            text = directive.args[0].text if directive.args else ""
            if not text:
                return 0
            most = max(most, int(text) if text.isdecimal() else 1)
    return most


def _limit(container: Object) -> int:
    """A container's memory limit in octets; 0 where it has none."""
    limits = (container.get("resources") or {}).get("limits") or {}
    found = _QUANTITY.fullmatch(str(limits.get("memory") or ""))
    if found is None or found[2] not in _UNITS:
        return 0
    return int(float(found[1]) * _UNITS[found[2]])
