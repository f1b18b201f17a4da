"""Work that would hold the loop is done by a child process: a module of kdns, run as a program, that prints what
comes of it.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import IO, Any, Final, TypeVar, final

_PIECE: Final = 256 << 10  # octets taken from the child before others run
_LOOK: Final = 0.05  # seconds between two looks whether it has ended, at most
MAX_COMPLAINT: Final = 4096  # octets of what it says is wrong
# Seconds for a killed child to go. One that the kernel holds, as a file system that hangs does, is left to it: whoever
# gave it up is to end, and not to hang too.
GOING: Final = 1.0

Feed = Callable[[asyncio.StreamWriter], Awaitable[None]]
T = TypeVar("T", bound=asyncio.BaseTransport)
P = TypeVar("P", bound=asyncio.BaseProtocol)


class ChildFailed(Exception):
    """It ended with an error, or not within its time; the text is one line."""


@final
class Child:
    """A process that runs, and its pipes."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.transports: list[asyncio.BaseTransport] = []
        self.taken: list[IO[bytes] | None] = []  # pipes that the transports close

    async def reader(self, pipe: IO[bytes] | None, limit: int) -> asyncio.StreamReader:
        """A pipe that it writes to."""
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=limit, loop=loop)
        self.taken.append(pipe)
        await self._join(loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream, loop=loop), pipe))
        return stream

    async def writer(self) -> asyncio.StreamWriter:
        """Its standard input."""
        loop = asyncio.get_running_loop()
        unread = asyncio.StreamReader(loop=loop)
        self.taken.append(self.process.stdin)
        transport, protocol = await self._join(
            loop.connect_write_pipe(lambda: asyncio.StreamReaderProtocol(unread, loop=loop), self.process.stdin)
        )
        return asyncio.StreamWriter(transport, protocol, None, loop)

    async def _join(self, connecting: Coroutine[Any, Any, tuple[T, P]]) -> tuple[T, P]:
        """A pipe's transport and protocol. Who gives up waits for them too, which takes a turn of the loop: uvloop
        takes the pipe's descriptor over before the pipe, and both would close it, one of them when it is another's.
        """
        task = asyncio.ensure_future(connecting)
        try:
            await asyncio.wait((task,))
        finally:
            if not task.done():
                await asyncio.wait((task,))
            self.transports.append(task.result()[0])
        return task.result()

    async def wait(self) -> int:
        """The code that it ends with."""
        delay = 0.001
        while (code := self.process.poll()) is None:
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LOOK)
        return code


@contextlib.asynccontextmanager
async def running(*words: str, **pipes: Any) -> AsyncIterator[Child]:
    """Starts a program, and kills it in the end where it still runs. `pipes` are those of subprocess.Popen.

    It is not started by the loop: uvloop forks, which copies the tables of all memory pages, and holds the loop for 15
    ms in a process of 400 MB. Popen lends its memory to the child until the program begins (vfork): half a millisecond.
    """
    process = subprocess.Popen(words, bufsize=0, **pipes)  # noqa: ASYNC220 - see above
    child = Child(process)
    try:
        yield child
    finally:
        if process.poll() is None:
            process.kill()
        for transport in child.transports:
            transport.close()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and pipe not in child.taken:
                pipe.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOING):
                await child.wait()


async def output(module: str, *args: str, given: bytes | Feed = b"", timeout: float) -> bytearray:
    """What the module prints. It reads `given` from its standard input, or what that writes there. Raises ChildFailed,
    also after `timeout` seconds.
    """
    out = bytearray()
    complaint = bytearray()

    async def feed(child: Child) -> None:
        stdin = await child.writer()
        with contextlib.suppress(ConnectionError):  # it has ended, and says why
            if isinstance(given, bytes):
                stdin.write(given)
            else:
                await given(stdin)
            await stdin.drain()
        stdin.close()

    async def complaints(child: Child) -> None:
        stderr = await child.reader(child.process.stderr, _PIECE)
        while piece := await stderr.read(_PIECE):
            complaint.extend(piece[: MAX_COMPLAINT - len(complaint)])

    async def results(child: Child) -> None:
        stdout = await child.reader(child.process.stdout, _PIECE)
        while piece := await stdout.read(_PIECE):
            out.extend(piece)

    pipe = subprocess.PIPE
    async with running(sys.executable, "-m", module, *args, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(feed(child), results(child), complaints(child))
                code = await child.wait()
        except TimeoutError:
            raise ChildFailed(f"it took over {timeout:g} s") from None
    if code:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise ChildFailed(lines[-1] if lines else f"{module} ended with code {code}")
    return out
