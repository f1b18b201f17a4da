"""health - reports that the process is alive.

A request for `/health`, by any method, gets 200 `OK`, whatever the state of plugins or upstreams; Kubernetes' liveness
probe asks it.

## Syntax

    health [ADDRESS] {
        lameduck DURATION
    }

* ADDRESS is where to listen; default `:8080`. `ready`, `prometheus` and `status` may share it.
* `lameduck` keeps answering queries for this long after SIGTERM, while Services stop sending queries here.

## Examples

~~~ corefile
.:1053 {
    health 127.0.0.1:18080 {
        lameduck 5s
    }
    whoami
}
~~~

## Metrics

* `coredns_health_request_duration_seconds{}` - how long kdns's own requests to /health take, one a second.
* `coredns_health_request_failures_total{}` - those that failed.
* `kdns_http_connections{address}` - open connections to each HTTP listener, of whatever plugin.
* `kdns_http_connections_closed_total{address,limit}` - those that were closed because of a limit: `connections` (32 of
  one client's address, 256 in all: one that is idle gives way to one that is new), `time` (5 s for a request's head and
  while idle, 10 s for the reply) or `size` (64 KiB for a request).
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns import faults, log
from kdns.address import host_port
from kdns.corefile import Directive, ServerBlock
from kdns.metrics import SLIM_TIME_BUCKETS, Counter, Histogram
from kdns.net.http import Response
from kdns.plugin import Plugin, readers
from kdns.plugin.endpoint import HttpEndpoint
from kdns.plugin.runtime import Runtime

DEFAULT: Final = ("", 8080)
_POLL: Final = 1.0  # seconds between own requests
_TIMEOUT: Final = 3.0

DURATION: Final = Histogram(
    "coredns_health_request_duration_seconds",
    "Histogram of the time (in seconds) each request took.",
    SLIM_TIME_BUCKETS,
)
FAILURES: Final = Counter("coredns_health_request_failures_total", "The number of times the health check failed.")

_log = log.plugin("health")


@dataclass(frozen=True, slots=True)
class Config:
    """The address to listen on (an empty host: everywhere), and how long to keep serving after the signal (seconds)."""

    host: str
    port: int
    lameduck: float = 0.0


class Health(Plugin):
    """Serves /health, and keeps the process answering while it is a lame duck."""

    name: ClassVar[str] = "health"
    central = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = directives[-1]
        host, port = readers.http_address(directive, DEFAULT)
        lameduck = 0.0
        for line in directive.body or ():
            if line.name.text != "lameduck":
                raise readers.unknown(line, ("lameduck",))
            lameduck = readers.seconds(readers.one(line, "a duration"))
        return [Config(host, port, lameduck)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.runtime: Runtime | None = None
        self.server: HttpEndpoint | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def http(self) -> tuple[str, int, str]:
        """The address that it serves on."""
        return self.config.host, self.config.port, ""

    async def start(self, runtime: Runtime) -> None:
        self.server = await HttpEndpoint.open(runtime, self.http)
        self.runtime = runtime
        self.server.add("/health", self.respond)
        if runtime.crew is None:
            runtime.before_stop.append(self.lameduck)  # each worker is a lame duck of its own
        if runtime.link is not None:
            return
        DURATION.slot()
        self.task = asyncio.create_task(faults.supervise("plugin/health", self._poll), name="health")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.runtime is not None and self.server is not None:
            if self.lameduck in self.runtime.before_stop:
                self.runtime.before_stop.remove(self.lameduck)
            await self.server.close()
            self.server = None

    async def respond(self) -> Response:
        """200; with workers, 503 where one of them hangs, and which."""
        crew = self.runtime.crew if self.runtime is not None else None
        if crew is None:
            return Response()
        hung = await crew.hung()
        if not hung:
            return Response()
        return Response(503, "".join(f"worker {number} does not answer\n" for number in hung).encode())

    async def lameduck(self) -> None:
        """Waits while queries are still answered."""
        if self.config.lameduck > 0:
            _log.info(f"Going into lameduck mode for {readers.duration_text(self.config.lameduck)}")
            await asyncio.sleep(self.config.lameduck)

    async def _poll(self) -> None:
        """Asks itself each second: a loop that is held shows here first."""
        host = self.config.host or "127.0.0.1"
        assert self.server is not None
        url = f"http://{host_port(host, self.server.port)}/health"
        while True:
            await asyncio.sleep(_POLL)
            began = time.monotonic()
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes as the answer does.
                async with asyncio.timeout(_TIMEOUT):
                    await _get(host, self.server.port)
            except (OSError, ValueError, TimeoutError) as error:
                FAILURES.slot()[0] += 1
                _log.warning(f'Local health request to "{url}" failed: {str(error) or type(error).__name__}')
                continue
            took = time.monotonic() - began
            DURATION.observe(DURATION.slot(), took)
            if took > 1:
                _log.warning(f'Local health request to "{url}" took more than 1s: {readers.duration_text(took)}')


async def _get(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"status {status.decode(errors='replace').strip()}")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
