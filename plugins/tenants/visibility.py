"""Which namespaces a namespace sees, by the configuration and the state of the cluster. Pure.

A namespace sees itself, what is shared, and what `allow` names. Beside these it sees what its egress policies let its
Pods reach, where they are asked and it has any; what `isolate by` calls its own tenant; all, where nothing isolates.
"""

from collections.abc import Mapping

from kdns.kube.cluster import Cluster
from kdns.kube.objects import NAMESPACE_NAME
from kdns.kube.policies import Policy
from kdns.kube.selector import Term
from kdns.plugins.tenants.config import Config

Names = frozenset[str]


class Visibility:
    """What holds at one moment; made anew when namespaces or policies change, and worked out as it is asked."""

    def __init__(self, config: Config, cluster: Cluster) -> None:
        self.config = config
        self.cluster = cluster
        self.public = config.share
        self._selected: dict[tuple[Term, ...], Names] = {}
        self._policies: dict[str, list[Policy]] = {}
        for policy in cluster.policies.values() if config.policies else ():
            self._policies.setdefault(policy.namespace, []).append(policy)
        self._tenants: dict[tuple[str | None, ...], set[str]] = {}
        for name in cluster.namespaces if config.by else ():
            self._tenants.setdefault(self._values(name), set()).add(name)

    def of(self, namespace: str) -> Names | None:
        """The namespaces that one sees; None: all."""
        config = self.config
        own = {namespace, *config.share, *(seen for viewer, seen in config.allow if viewer == namespace)}
        policies = self._policies.get(namespace, ())
        for policy in policies:
            if policy.everywhere or () in policy.peers:
                return None
            for peer in policy.peers:
                own |= self._select(peer)
        if not any(policy.every_pod for policy in policies):
            # Some Pods at least are bound by no policy.
            if not config.isolate:
                return None
            values = self._values(namespace)
            if any(value is not None for value in values):
                own |= self._tenants.get(values, set())
        return frozenset(own)

    def _values(self, namespace: str) -> tuple[str | None, ...]:
        """What makes a tenant; a namespace with none of the labels is a tenant by itself."""
        labels = self.cluster.namespace_labels.get(namespace, {})
        return tuple([labels.get(key) for key in self.config.by])

    def _select(self, peer: tuple[Term, ...]) -> Names:
        found = self._selected.get(peer)
        if found is None:
            labels = self.cluster.namespace_labels
            found = self._selected[peer] = frozenset(
                name for name in self.cluster.namespaces if _fits(peer, labels.get(name) or {NAMESPACE_NAME: name})
            )
        return found


def _fits(peer: tuple[Term, ...], labels: Mapping[str, str]) -> bool:
    return all(each.matches(labels) for each in peer)
