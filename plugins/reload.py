"""reload - reloads the Corefile when it has changed.

The Corefile and its imports are read every INTERVAL; a change in their SHA-512 triggers a reload. If the new Corefile
is invalid, empty or missing, or the server cannot start with it, the old one keeps serving, and a log line says what is
wrong and where. A failed reload is counted and not tried again until the file changes.

## Syntax

    reload [INTERVAL] [JITTER]

* INTERVAL is the time between checks, at least 2s. Default: 30s.
* JITTER spreads the checks of many servers. It is at most half of INTERVAL. Default: 15s.

## Examples

~~~ corefile
.:1053 {
    reload 10s 2s
    whoami
}
~~~

## Metrics

* `coredns_reload_failed_total{}` - reloads that failed.
* `coredns_reload_version_info{hash,value}` - 1, with the SHA-512 of the configuration that runs.
"""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kdns import faults, files, log
from kdns.corefile import Directive, ServerBlock
from kdns.metrics import MAX, Counter, Gauge
from kdns.plugin import Plugin, readers
from kdns.plugin.runtime import Runtime

INTERVAL: Final = 30.0
JITTER: Final = 15.0
MIN_INTERVAL: Final = 2.0
MIN_JITTER: Final = 1.0
LOOKING: Final = 60.0  # seconds for reading the Corefile and what it imports: a file system that needs longer hangs

FAILED: Final = Counter("coredns_reload_failed_total", "Counter of the number of failed reload attempts.")
VERSION: Final = Gauge(
    "coredns_reload_version_info",
    "A metric with a constant '1' value labeled by hash, and value which type of hash generated.",
    ("hash", "value"),
    across=MAX,
)
_log = log.plugin("reload")


@dataclass(frozen=True, slots=True)
class Config:
    """Seconds between looks, and how far that is spread."""

    interval: float = INTERVAL
    jitter: float = JITTER


class Reload(Plugin):
    """Looks after the Corefile. Of several in one configuration, one looks."""

    name: ClassVar[str] = "reload"
    central = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = directives[-1]
        readers.arguments(directive, 0, 2)
        readers.no_block(directive)
        interval, jitter = INTERVAL, JITTER
        if directive.args:
            interval = readers.seconds(directive.args[0], MIN_INTERVAL)
        if len(directive.args) > 1:
            jitter = readers.seconds(directive.args[1])
            if 0 < jitter < MIN_JITTER:
                raise readers.fail(directive.args[1], "JITTER is 0 or at least 1s")
        return [Config(interval, min(jitter, interval / 2))]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.runtime: Runtime | None = None

    async def start(self, runtime: Runtime) -> None:
        if runtime.link is not None:
            return  # one process looks for all workers
        self.runtime = runtime
        # The watch must outlive this object while it loads the next configuration: it is the runtime's.
        watch = await runtime.acquire("reload", lambda: _Watch(runtime))
        watch.config = self.config
        runtime.on_serving.append(watch.announce)

    async def stop(self) -> None:
        if self.runtime is not None:
            await self.runtime.release("reload")
            self.runtime = None


class _Watch:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.config = Config()
        self.seen = runtime.loaded
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(faults.supervise("plugin/reload", self._watch), name="reload")

    async def stop(self) -> None:
        # A reload that removed `reload` runs in this very task: it ends itself after that.
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        self.task = None

    def announce(self) -> None:
        """Says what is served from now on."""
        self.seen = self.runtime.loaded
        digest = hashlib.sha512(self.seen.encode()).hexdigest()
        VERSION.slots.clear()
        VERSION.slot("sha512", digest)[0] = 1
        _log.info(f"Running configuration SHA512 = {digest}")

    async def _watch(self) -> None:
        runtime = self.runtime
        assert runtime.fingerprint is not None and runtime.reload is not None
        while self.task is not None:
            config = self.config
            await asyncio.sleep(config.interval + random.uniform(-config.jitter / 2, config.jitter / 2))
            try:
                now = await files.waiting("looking at the Corefile", runtime.fingerprint, LOOKING)
            except Exception as error:  # whatever it is, the next look may go well
                now = f"error: {error}"
            if now == self.seen:
                continue
            self.seen = now  # a bad one is tried once, not at every look
            if now == runtime.loaded:
                runtime.refused = ""  # the change that was not taken has been taken back
            if now != runtime.loaded and not await runtime.reload():
                FAILED.slot()[0] += 1
                _log.error(
                    "Corefile changed but reload failed, as the line before says; the one before is still served"
                )
