"""Which clients a `blocklist` is for: those of some namespaces, by the addresses of their Pods."""

from typing import Any, Final

from kdns.corefile import CorefileError
from kdns.kube.cluster import ServiceState
from kdns.plugin.base import BlockInfo
from kdns.plugin.clients import EXEMPT, NOBODY, Clients
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import ServesCluster
from kdns.plugins.blocklist.config import Config

OUTSIDE: Final = 0
INSIDE: Final = 1
WAITS: Final = 2  # it is not known yet who asks


class Scope:
    """The look-up of clients. Its verdicts are the reply cache's audiences."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clients = Clients()
        self.source: ServesCluster | None = None

    def check(self, block: BlockInfo) -> None:
        """Raises CorefileError where there is no cluster."""
        if not block.all(ServesCluster):
            text = "blocklist: `namespaces` and `except` need the plugin kubernetes in the same server block"
            raise CorefileError(self.config.at, text)

    def wire(self, block: BlockInfo) -> None:
        """Finds the cluster. Raises CorefileError."""
        self.source = block.all(ServesCluster)[0]
        if option := self.source.selects():
            text = f"blocklist must know all Pods, and `{option}` of kubernetes keeps some away"
            raise CorefileError(self.config.at, text)

    def audience(self, client: tuple[Any, ...]) -> int:
        """Whether the list is for a client, as a number."""
        source = self.source
        if source is not None and source.cluster is not self.clients.cluster:
            self.attach()
        namespace = self.clients.namespace(client[0])
        return WAITS if namespace is None else self._verdict(namespace)

    def settled(self, client: tuple[Any, ...]) -> int:
        """The same, now that there is nothing to wait for."""
        return self._verdict(self.clients.namespace(client[0]) or NOBODY)

    def wait(self, client: tuple[Any, ...]) -> Pending | None:
        """What is resolved once it is known who asks; None where too many wait."""
        return self.clients.wait(client[0])

    def namespace(self, client: tuple[Any, ...]) -> str:
        """The namespace of a client; empty where that is not known."""
        return self.clients.namespace(client[0]) or NOBODY

    def _verdict(self, namespace: str) -> int:
        named = namespace in self.config.clients and namespace != EXEMPT
        return INSIDE if named != self.config.others else OUTSIDE

    def attach(self) -> None:
        """Follows the cluster that is served now."""
        if self.source is not None:
            self.clients.attach(self.source.cluster, self)

    def detach(self) -> None:
        """Follows it no more."""
        self.clients.detach(self)

    # A watcher of the cluster.

    def entry_changed(self, entry: ServiceState, addresses: list[bytes]) -> None:
        """A Service says nothing of who asks."""

    def namespace_changed(self, name: str) -> None:
        """Nor does a namespace by itself."""

    def freshness_changed(self) -> None:
        """Nor does the age of the data."""

    def pods_changed(self) -> None:
        """Lets those go on who are known now."""
        self.clients.pods_changed()
