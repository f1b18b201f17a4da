"""What the servers' own status pages say (plugin `status`), for `kdns doctor`: whose search lists waste most.

A page is read through the API's proxy to its Pod, so it can be read from wherever the API can.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgspec

from kdns.cli import cluster
from kdns.cli.clusterstate import State, name_of
from kdns.cli.configmaps import is_loopback, served
from kdns.cli.finding import INFO, Finding
from kdns.corefile import CorefileError
from kdns.plugins.status.handler import Status

PAGES: Final = 5  # servers that are asked; the clients of the others are much like theirs
SHOWN: Final = 3  # workloads
LEAST: Final = 100  # names that do not exist: a Pod that starts asks for some


class _Page(msgspec.Struct):
    """What is read of /status.json; counts are halved every five minutes."""

    wasted: list[tuple[str, int]]


class Asks(Protocol):
    """Whoever asks the API (cluster.Cluster)."""

    async def get(self, path: str) -> Any: ...


async def read(state: State, api: Asks) -> None:
    """Reads the servers' pages into the state. A page that cannot be read is a finding of its own."""
    port = _port(state)
    for each in state.servers[:PAGES] if port else ():
        path = f"/api/v1/namespaces/{state.namespace}/pods/{name_of(each)}:{port}/proxy/status.json"
        try:
            page = msgspec.convert(await api.get(path), _Page)
        except cluster.failures() as error:
            state.pages_unread[name_of(each)] = cluster.explained(error)
            continue
        for workload, count in page.wasted:
            state.wasted[workload] = state.wasted.get(workload, 0) + count


def _port(state: State) -> int:
    """The port of the pages that others may reach; 0 where the Corefile has none."""
    try:
        for block in served(state) or ():
            found = block.directives.get("status")
            for config in Status.parse(found, block) if found else ():
                if config.host != "localhost" and not is_loopback(config.host):
                    return config.port
    except CorefileError:  # it has findings of its own
        return 0
    return 0


def findings(state: State) -> Iterator[Finding]:
    """The workloads that ask most for what does not exist."""
    worst = sorted(state.wasted.items(), key=lambda item: -item[1])[:SHOWN]
    for workload, count in worst:
        if count < LEAST:
            continue
        namespace, slash, name = workload.partition("/")
        command = f"kdns doctor --from {namespace}/{name}-...    # one of its Pods: its search list and ndots"
        yield Finding(
            INFO,
            "waste",
            f"{workload} asked for {count} names that do not exist, lately",
            "most likely its search list: an outside name costs it several queries",
            command if slash else f"kubectl get pods -A -o wide | grep -w {workload}    # whose search list it is",
        )
    for pod, why in list(state.pages_unread.items())[:1] if not state.wasted else ():
        yield Finding(
            INFO,
            "waste",
            f"the status page of {pod} cannot be read: {why}",
            "which workloads waste queries is not known",
            # The API's proxy passes its own name on as the Host field, which the page then has to know.
            f"kubectl -n {state.namespace} port-forward {pod} {_port(state)}    # or get the right to get pods/proxy, "
            f"and name the API's host in `status {{ hosts NAME }}`",
        )
