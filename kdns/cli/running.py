"""Runs what a tool does on a loop, so that Ctrl-C ends it at once, whatever it waits for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, final

from kdns import hostnames
from kdns.dns.query import Question
from kdns.upstream.exchange import Result
from kdns.upstream.upstream import Upstream

T = TypeVar("T")


@final
class _Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        return await hostnames.look_up(host, port, family=family, type=type, proto=proto, flags=flags)  # fmt: skip


def run(work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Raises what it raises, and KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


async def result_of(upstream: Upstream, query: bytes, question: Question, proto: str) -> Result:
    """What comes of a query."""
    came: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(result: Result) -> None:
        if not came.done():  # nobody waits where the tool was interrupted
            came.set_result(result)

    upstream.exchange(query, question, proto, done)
    return await came
