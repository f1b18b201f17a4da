"""loop - finds upstreams that send queries back to this server.

When the server starts, and every minute after that, each upstream of the block's `forward` plugins is asked for a
random name of its own. If the name comes back as a query, that upstream is a loop: kdns disables it, with an error line
and a metric, and keeps serving cluster names and using other upstreams. Once the loop is gone, the upstream is used
again.

## Syntax

    loop {
        exit
    }

* `exit` ends the process with code 1 when a loop is found, as CoreDNS does.

## Examples

~~~ corefile
.:1053 {
    loop
    forward . 127.0.0.1:5301
}
~~~

## Metrics

* `kdns_loop_detected{upstream}` - 1 while an upstream loops back to this server.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Protocol, runtime_checkable

from kdns import faults, log
from kdns.address import host_port
from kdns.corefile import Directive, ServerBlock
from kdns.dns import iana
from kdns.dns.message import pack_query
from kdns.dns.name import to_text
from kdns.dns.query import Question
from kdns.metrics import MAX, Gauge
from kdns.plugin import Outcome, Plugin, RcodeOnly, Request, readers
from kdns.plugin.base import BlockInfo
from kdns.plugin.runtime import Runtime
from kdns.upstream import oneshot
from kdns.upstream.exchange import UpstreamError
from kdns.upstream.upstream import Upstream

PERIOD: Final = 60.0  # seconds between probes
TIMEOUT: Final = 5.0  # seconds a probe may take to come back; servers on the way drop it after that
DETECTED: Final = Gauge(
    "kdns_loop_detected", "Whether an upstream leads back to this server.", ("upstream",), across=MAX
)

_log = log.plugin("loop")


@runtime_checkable
class HasUpstreams(Protocol):
    """A plugin that sends queries on."""

    upstreams: list[Upstream]


@dataclass(frozen=True, slots=True)
class Config:
    """True if a loop ends the process."""

    exit: bool = False


class Loop(Plugin):
    """Probes the upstreams of its block."""

    name: ClassVar[str] = "loop"
    pure = True

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[Config]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 0)
        for line in directive.body or ():
            if line.name.text != "exit":
                raise readers.unknown(line, ("exit",))
            readers.arguments(line, 0, 0)
        return [Config(directive.body is not None)]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.block: BlockInfo | None = None
        self.probes: dict[bytes, Upstream] = {}
        self.task: asyncio.Task[None] | None = None
        self.runtime: Runtime | None = None
        self.secret = secrets.token_bytes(16)

    def wire(self, block: BlockInfo) -> None:
        self.block = block

    async def start(self, runtime: Runtime) -> None:
        self.runtime = runtime
        if runtime.link is not None:
            self.secret = runtime.link.secret
            runtime.link.listen("loop", self._told)
        # Before that no probe could come back, and `forward`, which starts behind this one, has no upstreams.
        runtime.on_serving.append(self._begin)

    def _begin(self) -> None:
        self.task = asyncio.create_task(faults.supervise("plugin/loop", self._watch), name="loop")

    async def stop(self) -> None:
        if self.runtime is not None and self.runtime.link is not None:
            self.runtime.link.ignore("loop", self._told)
        if self.task is not None:
            self.task.cancel()
            self.task = None
        for upstream in self._upstreams():
            DETECTED.remove(upstream.to)

    def _upstreams(self) -> list[Upstream]:
        assert self.block is not None
        return [u for plugin in self.block.all(HasUpstreams) for u in plugin.upstreams]

    async def _watch(self) -> None:
        while True:
            await self._probe()
            await asyncio.sleep(PERIOD)

    async def _probe(self) -> None:
        """Asks each upstream for a name of its own, and waits for those that come back."""
        assert self.block is not None
        zone = self.block.zones[0]
        self.probes.clear()
        asked = []
        for upstream in self._upstreams():
            question = Question(self._labels(secrets.token_hex(8).encode()) + zone, iana.HINFO)
            self.probes[question.name] = upstream
            if upstream.stream_only:
                upstream.exchange(pack_query(0, question), question, "tcp", lambda _: None)
            else:
                asked.append(faults.attempt("plugin/loop", partial(_ask, upstream, question)))
        await asyncio.gather(asyncio.sleep(TIMEOUT), *asked)
        # What is left did not come back.
        for upstream in self.probes.values():
            if upstream.refused:
                upstream.refused = False
                DETECTED.slot(upstream.to)[0] = 0
                _log.info(f"upstream {upstream.to} no longer loops back: it is used again")
        self.probes.clear()

    def handle(self, request: Request) -> Outcome | None:
        question = request.question
        if question.type != iana.HINFO:
            return None
        name = question.name
        if name not in self.probes and (len(name) < 34 or name[:34] != self._labels(name[1:17])):
            return None
        link = self.runtime.link if self.runtime is not None else None
        if name not in self.probes and link is None:
            return None
        request.once()
        peer = host_port(str(request.client[0]), request.client[1])
        if name in self.probes:
            self._found(name, peer, request.server.label)
        elif link is not None:
            # The worker that has sent it knows which upstream that was.
            link.tell("loop", (name, peer, request.server.label))
        return RcodeOnly(iana.SERVFAIL)

    def _labels(self, chance: bytes) -> bytes:
        """The first two labels of a probe: a random one (16 octets), and one by which all workers know it as theirs."""
        sign = hashlib.blake2b(chance, key=self.secret, digest_size=8).hexdigest()
        return b"\x10" + chance + b"\x10" + sign.encode()

    def _told(self, found: tuple[bytes, str, str]) -> None:
        """A probe came back to another worker."""
        if found[0] in self.probes:
            self._found(*found)

    def _found(self, name: bytes, peer: str, label: str) -> None:
        """A probe came back from its upstream."""
        upstream = self.probes.pop(name)
        what = (
            f'Loop ({peer} -> {label.partition("://")[2]}) detected for zone "{to_text(self.block.zones[0])}"'
            if self.block
            else "Loop"
        )
        text = f'{what}: upstream {upstream.to} sends queries back here. Query: "HINFO {to_text(name)}"'
        DETECTED.slot(upstream.to)[0] = 1
        if self.config.exit and self.runtime is not None and self.runtime.stop is not None:
            _log.fatal(text)
            self.runtime.stop(1)
        elif not upstream.refused:
            _log.error(text + ". It is not used until the loop is gone; cluster names are not affected")
        upstream.refused = True


async def _ask(upstream: Upstream, question: Question) -> None:
    """Asks an upstream. What it answers tells nothing: the question comes back to this server, or it does not."""
    where, source = upstream.where, upstream.options.source
    with contextlib.suppress(UpstreamError):
        await oneshot.ask(pack_query(0, question), question, where.host, where.port, timeout=TIMEOUT, source=source)
