"""HTTP endpoints of plugins: one server for each address that is bound, shared by all plugins and blocks that name it.

Two sockets on one address would share it by the kernel's choice (SO_REUSEPORT): half of the requests would meet a
server that does not know the path. So addresses are compared as they are bound, whatever they are called: `:8080` is
0.0.0.0 and [::].
"""

from collections.abc import Hashable
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

from kdns.net.http import Hosts, HttpServer, Route
from kdns.net.sockets import wildcard_hosts
from kdns.plugin.runtime import Link, Runtime


@runtime_checkable
class ServesHttp(Protocol):
    """A plugin that serves HTTP. `http` is where: host, port, and the web configuration ("": plain HTTP for
    everybody).
    """

    name: str

    @property
    def http(self) -> tuple[str, int, str]: ...


def one_name(host: str) -> str:
    """One name for each address: `127.0.0.1` for localhost, an empty one for every address."""
    return "127.0.0.1" if host == "localhost" else "" if host == "::" else host


def bound_hosts(host: str) -> list[str]:
    """The addresses that are bound for a host."""
    host = one_name(host)
    return [host] if host else wildcard_hosts()


@final
class HttpEndpoint:
    """The paths that one plugin serves on an address."""

    def __init__(self, runtime: Runtime, servers: dict[Hashable, HttpServer]) -> None:
        self.runtime = runtime
        self.servers = servers
        self.routes: list[tuple[str, Route]] = []
        self.link: Link | None = None
        self.places: list[tuple[str, int]] = []

    @classmethod
    async def open(
        cls, runtime: Runtime, where: tuple[str, int, str], says: str = "", **options: Any
    ) -> "HttpEndpoint":
        """Binds what is not bound yet. `options` are HttpServer's, the same for the same web configuration; `says` is a
        digest of that: another one has another server, also where the file is the same. Raises BindError.
        """
        host, port, web = where
        made = cls(runtime, {})
        if runtime.link is not None:
            # Another process serves HTTP for all workers, and asks each of them.
            made.link = runtime.link
            made.places = [(each, port) for each in bound_hosts(host)]
            return made
        try:
            for each in bound_hosts(host):
                key = ("http", each, port, web, says)
                made.servers[key] = await runtime.acquire(key, partial(HttpServer, each, port, **options))
        except BaseException:
            await made.close()
            raise
        return made

    @property
    def port(self) -> int:
        """The port that was bound."""
        return next(iter(self.servers.values())).port

    def add(self, path: str, route: Route, hosts: Hosts | None = None) -> None:
        """Answers a path until `close`; by which names, `hosts` says (None: any)."""
        self.routes.append((path, route))
        if self.link is not None:
            for host, port in self.places:
                self.link.add_route(host, port, path, route)
        for server in self.servers.values():
            server.add(path, route, hosts)

    async def close(self) -> None:
        """Takes the routes back, and closes what nobody else serves on."""
        for path, route in self.routes:
            if self.link is not None:
                for host, port in self.places:
                    self.link.remove_route(host, port, path, route)
            for server in self.servers.values():
                server.remove(path, route)
        self.routes.clear()
        keys, self.servers = list(self.servers), {}
        for key in keys:
            await self.runtime.release(key)
