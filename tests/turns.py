"""How much a server does from one turn of its loop to the next."""

from collections.abc import Callable

from kdns.testing import Server


def between_turns(server: Server, count: Callable[[], float], until: float) -> list[float]:
    """What `count` grows by in each turn of the server's loop, until it has come to `until`. It grows meanwhile."""
    found: list[float] = []
    loop = server.thread.loop

    def look(before: float) -> None:
        now = count()
        found.append(now - before)
        if now < until:
            loop.call_soon(look, now)

    server.thread.call(look, count())
    return found
