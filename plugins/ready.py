"""ready - reports when all plugins are ready to serve.

`GET /ready` returns 200 `OK` once all plugins of the blocks that have `ready` are ready, and until then 503 with the
names of those that are not. Kubernetes' readiness probe uses it.

## Syntax

    ready [ADDRESS] {
        monitor until-ready|continuously
    }

* ADDRESS is where to listen; default `:8181`. `health`, `prometheus` and `status` may share it.
* `monitor until-ready` (default) stops checking a plugin once it has been ready. `continuously` keeps checking.

## Examples

~~~ corefile
.:1053 {
    ready 127.0.0.1:18181
    whoami
}
~~~
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from kdns import log
from kdns.corefile import Directive, ServerBlock
from kdns.net.http import Response
from kdns.plugin import Plugin, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.endpoint import HttpEndpoint, bound_hosts
from kdns.plugin.providers import Readiness
from kdns.plugin.runtime import Crew, Runtime

DEFAULT: Final = ("", 8181)
_log = log.plugin("ready")


@dataclass(frozen=True, slots=True)
class Config:
    """Where to listen, and whether plugins are asked again once they were ready."""

    host: str
    port: int
    continuously: bool = False


class Endpoint:
    """One address: the plugins of all blocks that report there."""

    def __init__(self, runtime: Runtime, where: tuple[str, int, str]) -> None:
        self.runtime = runtime
        self.where = where
        self.http: HttpEndpoint | None = None
        self.waiting: dict[int, tuple[Readiness, bool]] = {}
        self.done: set[int] = set()
        self.said = ""

    async def start(self) -> None:
        self.http = await HttpEndpoint.open(self.runtime, self.where)
        self.http.add("/ready", self.respond)

    async def stop(self) -> None:
        if self.http is not None:
            await self.http.close()
            self.http = None

    async def respond(self) -> Response:
        """Who is not ready yet; with workers, of all of them."""
        if self.runtime.crew is not None:
            missing = await self._of_workers(self.runtime.crew)
        else:
            missing = self._missing()
        if not missing:
            return Response()
        text = ",".join(sorted(set(missing)))
        if text != self.said:
            self.said = text
            _log.info(f'Plugins not ready: "{text}"')
        return Response(503, text.encode())

    async def _of_workers(self, crew: Crew) -> list[str]:
        host, port, _ = self.where
        missing = []
        for number, said in (await crew.ask("route", host, port, "/ready")).items():
            if said is None:
                missing.append(f"worker {number}")
            elif said[0] != 200:
                missing += said[1].decode().split(",")
        return missing

    def _missing(self) -> list[str]:
        missing = []
        for key, (plugin, continuously) in self.waiting.items():
            if key in self.done and not continuously:
                continue
            if plugin.is_ready():
                self.done.add(key)
            else:
                missing.append(plugin.name)
        return missing


class Ready(Plugin):
    """Serves /ready for the plugins of its block."""

    name: ClassVar[str] = "ready"
    central = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        host, port = readers.http_address(directive, DEFAULT)
        continuously = False
        for line in directive.body or ():
            if line.name.text != "monitor":
                raise readers.unknown(line, ("monitor",))
            continuously = readers.choice(line, ("until-ready", "continuously")) == "continuously"
        return [Config(host, port, continuously)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.runtime: Runtime | None = None
        self.endpoints: dict[Hashable, Endpoint] = {}
        self.peers: list[Readiness] = []

    @property
    def http(self) -> tuple[str, int, str]:
        """The address that it serves on."""
        return self.config.host, self.config.port, ""

    def wire(self, block: BlockInfo) -> None:
        self.peers = block.all(Readiness)

    async def start(self, runtime: Runtime) -> None:
        self.runtime = runtime
        host, port, web = self.http
        try:
            for each in bound_hosts(host):
                key = ("ready", each, port)
                self.endpoints[key] = await runtime.acquire(key, partial(Endpoint, runtime, (each, port, web)))
        except OSError as error:
            # As in CoreDNS, not fatal: a server that answers is worth more than a probe that does.
            _log.error(str(error))
        for endpoint in self.endpoints.values():
            for peer in self.peers:
                endpoint.waiting[id(peer)] = (peer, self.config.continuously)
        runtime.before_stop.insert(0, self.stop)

    async def stop(self) -> None:
        if self.runtime is None:
            return
        if self.stop in self.runtime.before_stop:
            self.runtime.before_stop.remove(self.stop)
        endpoints, self.endpoints = self.endpoints, {}
        for key, endpoint in endpoints.items():
            for peer in self.peers:
                endpoint.waiting.pop(id(peer), None)
                endpoint.done.discard(id(peer))
            await self.runtime.release(key)
