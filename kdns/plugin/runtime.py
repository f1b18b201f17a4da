"""What a started plugin may use: shared resources, and the server's wishes.

A resource (an informer, an HTTP endpoint, sockets) is held by a key and counted, so that a reload that did not
change it keeps it: the new plugins acquire it before the old ones release it.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Protocol, TypeVar, final


class Resource(Protocol):
    """What can be started and stopped."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


R = TypeVar("R", bound=Resource)


@final
class Runtime:
    """Shared resources by key, and hooks into the server's life.

    `before_stop` are awaited, all at once, when the server is told to stop, while it still answers (lameduck).
    `on_serving` are called once the sockets of a configuration are open, and then forgotten. `loaded` is what the
    configuration that is being started, or is served, comes to. `reload` reads the Corefile again and serves by it;
    `fingerprint` reads it and says what it comes to; `stop` ends the process with a code.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[Resource, int]] = {}
        self.before_stop: list[Callable[[], Awaitable[None]]] = []
        self.on_serving: list[Callable[[], None]] = []
        self.loaded = ""
        self.reload: Callable[[], Awaitable[bool]] | None = None
        self.fingerprint: Callable[[], str] | None = None
        self.stop: Callable[[int], None] | None = None

    async def acquire(self, key: Hashable, make: Callable[[], R]) -> R:
        """The resource held under this key, made and started when it is new. Raises what its start raises."""
        held = self._held.get(key)
        if held is None:
            resource = make()
            await resource.start()
            self._held[key] = (resource, 1)
            return resource
        self._held[key] = (held[0], held[1] + 1)
        return held[0]  # type: ignore[return-value]

    async def release(self, key: Hashable) -> None:
        """Gives a resource back; the last one to do so stops it."""
        held = self._held.get(key)
        if held is None:
            return
        if held[1] > 1:
            self._held[key] = (held[0], held[1] - 1)
        else:
            del self._held[key]
            await held[0].stop()
