"""The services of a started plugin: shared resources, and the server's wishes.

A resource (an informer, an HTTP endpoint, sockets) is held by a key and counted, so that a reload that did not
change it keeps it: the new plugins acquire it before the old ones release it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol, TypeVar, cast, final


class Resource(Protocol):
    """A shared thing that can be started and stopped."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


R = TypeVar("R", bound=Resource)


class Crew(Protocol):
    """The workers, as the process that watches over them sees them (`multisocket`)."""

    async def ask(self, what: str, *arguments: Any) -> dict[int, Any]:
        """What each worker says to a question, by the worker's number; None where it does not answer in time, or has
        not served yet. One that is being replaced is not among them: the others have its part meanwhile.
        """

    async def hung(self) -> list[int]:
        """The numbers of the workers that serve, and do not answer."""

    def publish(self, name: str, relay: Any) -> None:
        """Sends a kdns.kube.relay.Relay to all workers that follow this name."""

    def withdraw(self, name: str) -> None:
        """Ends that."""

    def pids(self) -> dict[int, int]:
        """The process ids of the workers that run, by number."""


class Link(Protocol):
    """The way from a worker to the process that watches over it; also a kdns.kube.relay.Feed.

    `secret` is the same in all workers of a server, and in no other.
    """

    number: int
    secret: bytes

    def tell(self, topic: str, value: Any) -> None:
        """Tells all other workers something that msgpack can hold."""

    def listen(self, topic: str, told: Callable[[Any], None]) -> None:
        """Calls `told` with what other workers tell."""

    def ignore(self, topic: str, told: Callable[[Any], None]) -> None:
        """Ends that."""

    def follow(self, name: str, receive: Callable[[str, list[Any]], Awaitable[None]]) -> None:
        """Calls `receive` with all frames of this relay from now on."""

    def unfollow(self, name: str) -> None:
        """Ends that."""

    def add_route(self, host: str, port: int, path: str, route: Callable[[], Awaitable[Any]]) -> None:
        """Answers a path for the process that serves HTTP."""

    def remove_route(self, host: str, port: int, path: str, route: Callable[[], Awaitable[Any]]) -> None:
        """Takes a route back."""


@final
class _Held:
    """A resource that is shared (None: it is not started), and how many have it or wait for it. `changing` is held by
    who starts or stops it: of a key there is never a second one beside one that still ends.
    """

    def __init__(self) -> None:
        self.resource: Resource | None = None
        self.users = 0
        self.changing = asyncio.Lock()


@final
class Runtime:
    """Shared resources by key, and hooks into the server's life.

    `before_stop` are awaited, all at once, when the server is told to stop, while it still answers (lameduck).
    `on_serving` are called once the sockets of a configuration are open, and then forgotten. `loaded` is what the
    configuration that is being started, or is served, comes to; `refused` is why the Corefile that is there now is not
    served, empty while it is. `reload` reads the Corefile again and serves by it; `fingerprint` reads it and says what
    it comes to; `stop` ends the process with a code.

    With `multisocket`, `crew` is set in the process that watches over the workers, `link` in each worker.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, _Held] = {}
        self.before_stop: list[Callable[[], Awaitable[None]]] = []
        self.on_serving: list[Callable[[], None]] = []
        self.loaded = ""
        self.refused = ""
        self.reload: Callable[[], Awaitable[bool]] | None = None
        self.fingerprint: Callable[[], str] | None = None
        self.stop: Callable[[int], None] | None = None
        self.crew: Crew | None = None
        self.link: Link | None = None

    async def acquire(self, key: Hashable, make: Callable[[], R]) -> R:
        """The resource held under this key, made and started when it is new. Raises what its start raises.

        Whoever comes while it is being started or stopped waits for that; where it fails, the next one tries with
        another.
        """
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held()
        held.users += 1
        try:
            async with held.changing:
                if held.resource is None:
                    resource = make()
                    await resource.start()
                    held.resource = resource
        except BaseException:
            held.users -= 1
            self._tidy(key, held)
            raise
        return cast(R, held.resource)

    async def release(self, key: Hashable) -> None:
        """Gives a resource back; the last one to do so stops it."""
        held = self._held.get(key)
        if held is None or not held.users:
            return
        held.users -= 1
        if not held.users:
            try:
                async with held.changing:
                    resource, held.resource = held.resource, None
                    if resource is not None:
                        await resource.stop()
            finally:
                self._tidy(key, held)

    def _tidy(self, key: Hashable, held: _Held) -> None:
        """Lets go of what nobody has, but for who still stops it."""
        if not held.users and not held.changing.locked():
            self._held.pop(key, None)
