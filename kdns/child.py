"""Work that would hold the loop is done by a child process: a module of kdns, run as a program, that prints what
comes of it.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import Final

_PIECE: Final = 256 << 10  # octets taken from the child before others run
MAX_COMPLAINT: Final = 4096  # octets of what it says is wrong


Feed = Callable[[asyncio.StreamWriter], Awaitable[None]]


class ChildFailed(Exception):
    """It ended with an error, or not within its time; the text is one line."""


async def output(module: str, *args: str, given: bytes | Feed = b"", timeout: float) -> bytearray:
    """What the module prints. It reads `given` from its standard input, or what that writes there. Raises ChildFailed,
    also after `timeout` seconds.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *args, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    out = bytearray()
    complaint = bytearray()

    async def feed(stdin: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended, and says why
            if isinstance(given, bytes):
                stdin.write(given)
            else:
                await given(stdin)
            await stdin.drain()
        stdin.close()

    async def complaints(stderr: asyncio.StreamReader) -> None:
        while piece := await stderr.read(_PIECE):
            complaint.extend(piece[: MAX_COMPLAINT - len(complaint)])

    async def results(stdout: asyncio.StreamReader) -> None:
        while piece := await stdout.read(_PIECE):
            out.extend(piece)

    try:
        async with asyncio.timeout(timeout):
            await asyncio.gather(feed(process.stdin), results(process.stdout), complaints(process.stderr))
            code = await process.wait()
    except TimeoutError:
        raise ChildFailed(f"it took over {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise ChildFailed(lines[-1] if lines else f"{module} ended with code {code}")
    return out
