"""An event loop in a thread, free ports, and waiting for something to become true."""

import asyncio
import http.client
import itertools
import os
import random
import socket
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Below every system's ephemeral ports (Linux 32768, IANA and macOS 49152 upwards), so that no client's own socket is
# given a port that a test has picked.
_PORTS: Final = range(10_000, 32_000)
LOOKS: Final = 20  # that `eventually` takes at least: a check that asks over a socket may take a second


def _ports(environ: Mapping[str, str]) -> list[int]:
    """The ports that this process picks from, in their order.

    Workers of pytest-xdist share none, so that no worker takes a port between another's choice and its use. Two runs on
    one machine begin in different places; what else the processes of one run have in common is the run's number.
    """
    worker, of = environ.get("PYTEST_XDIST_WORKER", ""), environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    number = int(worker.removeprefix("gw")) if worker.startswith("gw") else 0
    turn = random.Random(environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(len(_PORTS))
    turned = [*_PORTS[turn:], *_PORTS[:turn]]
    each = len(_PORTS) // max(int(of), number + 1)
    return turned[number * each : (number + 1) * each]


_candidates = itertools.cycle(_ports(os.environ))


def new_loop() -> asyncio.AbstractEventLoop:
    """The loop that production runs: uvloop's; asyncio's own where KDNS_TEST_LOOP says `asyncio`."""
    if os.environ.get("KDNS_TEST_LOOP", "uvloop") == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class LoopThread:
    """An event loop in a thread of its own. `run` and `call` may be used from any other thread."""

    def __init__(self) -> None:
        self.loop = new_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        """Runs a coroutine in the loop's thread and returns its result.

        Raises what it raises; TimeoutError after `timeout` seconds.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function in the loop's thread and returns its result."""

        async def inside() -> T:
            return function(*args)

        return self.run(inside())

    def close(self) -> None:
        """Cancels what still runs and ends the loop."""

        async def finish() -> None:
            # What was just accepted becomes a transport first: cancelled before that, its socket would be nobody's.
            for _ in range(3):
                await asyncio.sleep(0)
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Connections that still had octets to send would outlive their loop.
            for _ in range(20):
                open_ = getattr(self.loop, "_transports", {}).values()
                left = [each for each in open_ if getattr(each, "_sock", None) is not None]
                if not left:
                    break
                for transport in left:
                    transport.abort()
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        self.run(finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        with warnings.catch_warnings():
            # uvloop closes what is still open itself, and warns of each; asyncio's transports were aborted above.
            warnings.filterwarnings("ignore", "unclosed resource", ResourceWarning)
            self.loop.close()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for UDP and TCP on an address, that no socket is given unasked, and not the one before."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in itertools.islice(_candidates, len(_PORTS)):  # each of its candidates, once at least
        with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def eventually(check: Callable[[], Any], timeout: float = 20.0, step: float = 0.01) -> Any:
    """Waits until a check gives something true, and gives that. Raises AssertionError after `timeout` seconds, and no
    fewer than LOOKS looks: a machine that stood still for so long has shown nothing.
    """
    end = time.monotonic() + timeout
    for looks in itertools.count(1):
        found = check()
        if found:
            return found
        if looks >= LOOKS and time.monotonic() > end:
            break
        time.sleep(step)
    raise AssertionError(f"still not true after {timeout} s and {looks} looks: {check}")


def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET on the loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
