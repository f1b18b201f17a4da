"""Where objects come from: what an API source and a manifests source have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kdns.kube.cluster import Cluster
from kdns.kube.objects import Object, Raw, trim
from kdns.kube.selector import EVERYTHING, Selector


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects a source brings, and how much of them. `labels` selects Services, slices and Pods."""

    slices: bool = True
    pods: bool = False
    pod_names: bool = False
    pod_labels: bool = False
    labels: Selector = EVERYTHING
    namespace_labels: Selector = EVERYTHING

    def trim(self, raw: Raw) -> Object | None:
        """The slim form of a raw object, with as much of it as is wanted. Raises BadObject."""
        return trim(raw, pod_names=self.pod_names, pod_labels=self.pod_labels)


class Source(Protocol):
    """Keeps a cluster's state up to date from `start` to `stop`.

    `on_sync` are called once, when all that there was at the start is in the state.
    """

    cluster: Cluster
    on_sync: list[Callable[[], None]]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
