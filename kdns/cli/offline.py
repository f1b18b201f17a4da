"""A configuration that answers questions without a listener: for tools that say what a server would do."""

import asyncio
import socket
import time
from typing import Any, Final

from kdns.dns.answer import REPLY_RD
from kdns.dns.message import pack_query
from kdns.dns.query import Question
from kdns.plugin.base import Plugin
from kdns.plugin.outcome import Pending
from kdns.plugin.providers import Readiness
from kdns.plugin.request import Request
from kdns.plugin.runtime import Runtime
from kdns.server import build
from kdns.server.dispatch import Dispatcher

# Plugins that would open listeners or end the process, or write a line a query; they decide nothing about an answer.
LEFT_OUT: Final = frozenset(("health", "ready", "prometheus", "reload", "loop", "log", "errors", "status"))
SYNC: Final = 10.0  # seconds to wait for the API


class Offline:
    """A loaded instance, asked at its listener on one port, or at its first where none has that."""

    def __init__(self, instance: build.Instance, port: int) -> None:
        self.instance = instance
        self.started: list[Plugin] = []
        groups = list(instance.dispatchers)
        self.group = next((group for group in groups if group.port == port), groups[0])
        self.others = [group for group in groups if group != self.group]
        self.client = "127.0.0.1"  # the address that asks

    @property
    def dispatcher(self) -> Dispatcher:
        """The listener's."""
        return self.instance.dispatchers[self.group]

    async def start(self) -> list[str]:
        """Starts the plugins and waits for the cluster's state; gives the names of those that are not ready by then."""
        runtime = Runtime()
        for plugin in self.instance.plugins:
            if plugin.name not in LEFT_OUT:
                self.started.append(plugin)
                await plugin.start(runtime)
        end = time.monotonic() + SYNC
        waiting = [plugin for plugin in self.started if isinstance(plugin, Readiness)]
        while (late := [plugin.name for plugin in waiting if not plugin.is_ready()]) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return late

    async def stop(self) -> None:
        """Stops what was started."""
        while self.started:
            await self.started.pop().stop()

    def request(self, question: Question) -> Request:
        """A question as the client asks it."""
        query = pack_query(1, question)
        end = 12 + len(question.wire)
        local = (socket.gethostname(), 53)
        client = (self.client, 0, 0, 0) if ":" in self.client else (self.client, 0)
        return Request(
            self.dispatcher, query, end, question, None, b"", REPLY_RD, client, local, "udp", time.monotonic()
        )

    async def route(self, request: Request) -> Any:
        """The outcome of a request for which there is a block."""
        outcome: object = self.dispatcher.route(request)
        return await outcome if isinstance(outcome, Pending) else outcome
