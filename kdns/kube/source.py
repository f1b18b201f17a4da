"""Where objects come from: what an API source and a manifests source have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kdns.kube.cluster import Cluster
from kdns.kube.objects import PLAIN, Object, Projection, Raw, project
from kdns.kube.selector import EVERYTHING, Selector


@dataclass(frozen=True, slots=True)
class WatchScope:
    """Which objects a source brings, and how much of them. `labels` selects Services, slices and Pods."""

    slices: bool = True
    pods: bool = False
    imports: bool = False
    detail: Projection = PLAIN
    labels: Selector = EVERYTHING
    namespace_labels: Selector = EVERYTHING

    def project(self, raw: Raw) -> Object | None:
        """The slim form of a raw object, with as much of it as is wanted. Raises BadObject."""
        return project(raw, self.detail)


class Source(Protocol):
    """Keeps a cluster's state up to date from `start` to `stop`.

    `on_sync` are called once, when all that there was at the start is in the state.
    """

    cluster: Cluster
    on_sync: list[Callable[[], None]]

    def listed(self) -> bool:
        """Whether everything has been listed since the start."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
