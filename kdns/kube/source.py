"""Sources of objects: the common interface of the API source and the manifests source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kdns.kube.cluster import Cluster
from kdns.kube.objects import PLAIN, Object, Projection, Raw, project
from kdns.kube.selector import EVERYTHING, Selector


@dataclass(frozen=True, slots=True)
class WatchScope:
    """Which objects a source brings, and which parts of them. `labels` selects Services, slices and Pods."""

    slices: bool = True
    pods: bool = False
    imports: bool = False
    policies: bool = False
    detail: Projection = PLAIN
    labels: Selector = EVERYTHING
    namespace_labels: Selector = EVERYTHING

    def project(self, raw: Raw) -> Object | None:
        """The slim form of a raw object, with as much of it as is wanted. Raises BadObject."""
        return project(raw, self.detail)


class State(Protocol):
    """What an API source keeps up to date. `changes` grows with each change."""

    synced: bool
    stale: bool
    changes: int

    def apply(self, kind: str, key: str, obj: Object | None) -> bool:
        """Sets an object, or removes it (None). Says whether anything is different now."""

    def objects(self, kind: str) -> Iterator[tuple[str, Object]]:
        """What is held of a kind. Changes meanwhile may or may not be in it."""

    def service_kind(self, key: str) -> str:
        """What kind of Service this is; empty where there is none."""

    def set_synced(self) -> None:
        """All that there was at the start is here."""

    def set_stale(self, stale: bool) -> None:
        """Says whether the state may be older than what the API has."""

    async def close(self) -> None:
        """Lets go of all."""


class Source(Protocol):
    """Keeps a cluster's state up to date from `start` to `stop`.

    `on_sync` are called once, when all that there was at the start is in the state.
    """

    cluster: Cluster
    on_sync: list[Callable[[], None]]

    def listed(self) -> bool:
        """True if everything has been listed since the start."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
