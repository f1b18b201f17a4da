"""A Corefile read again while the one before it is served.

Theory of operation. Reading is work for a waiting thread (kdns.files), and threads may only wait: so a Corefile that
takes more than a few milliseconds to parse is parsed by a child process (this module, run as a program), and what it
prints is taken over block by block. All that was read on the way is remembered by its digest, the imports and the
folders of patterns too: as long as that is the same, so is the Corefile, and nobody parses it again.

    python -m kdns.server.reading < a pickled Request      prints frames, each behind its length: a head, then the
    blocks
"""

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from kdns.corefile import Corefile, CorefileError, Position, parse, source

# Octets of text that are parsed here: some 4 ms. A usual Corefile has one to three thousand.
INLINE: Final = 4 << 10
CHILD_TIMEOUT: Final = 60.0  # seconds; a Corefile of 2,000 blocks takes half of one


Names = list[str]  # under this name where `list` is a method


class Request(NamedTuple):
    """What a Corefile is parsed with; see corefile.parse."""

    text: str
    name: str
    default_port: int
    known: frozenset[str]
    suggestions: tuple[str, ...]
    environ: dict[str, str]


class Inputs:
    """Reads for `import`, and remembers what it read: (a file or folder, whether a folder) -> a digest."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, bool], bytes] = {}
        self.octets = 0

    def read(self, path: str) -> str:
        """A file's text. Raises OSError or CorefileError."""
        try:
            text = source.read(path)
        except (OSError, CorefileError) as error:
            self.seen[path, False] = _digest(str(error))
            raise
        self.seen[path, False] = _digest(text)
        self.octets += len(text)
        return text

    def list(self, folder: str) -> Names:
        """The names in a folder. Raises OSError."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.seen[folder, True] = _digest(str(error))
            raise
        self.seen[folder, True] = _digest("\0".join(names))
        return names

    def shown(self, path: str) -> str:
        """A file's name in errors."""
        return path

    def are(self, seen: Mapping[tuple[str, bool], bytes]) -> bool:
        """True if everything still is as it was seen. What cannot be read is read the same if it fails the same."""
        for path, is_folder in seen:
            try:
                if is_folder:
                    self.list(path)
                else:
                    self.read(path)
            except (OSError, CorefileError):
                continue
        return self.seen == seen


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


class CorefileOnDisk:
    """Reads a Corefile, as often as it is called; the same object as long as no input has changed.

    `known` gives the directives there are. `beside` gives the files that count as part of a Corefile (plugins).
    """

    def __init__(
        self,
        path: str,
        port: int,
        known: Callable[[], Iterable[str]],
        beside: Callable[[Corefile], Iterable[str]] = lambda corefile: (),
    ) -> None:
        self.path = path
        self.port = port
        self.known = known
        self.beside = beside
        self.last: Corefile | None = None
        self.seen: dict[tuple[str, bool], bytes] = {}

    def __call__(self) -> Corefile:
        """The Corefile as it is now. Raises CorefileError, also where it cannot be read."""
        if self.last is not None and Inputs().are(self.seen):
            return self.last
        inputs = Inputs()
        text = read_file(self.path, inputs)
        names = tuple(self.known())
        request = Request(text, self.path, self.port, frozenset(names), (*names, "import"), dict(os.environ))
        # Before the first nobody is served yet. Imports count: the digests of the last time say how much they were.
        if self.last is None or (inputs.octets <= INLINE and len(self.seen) <= 1):
            corefile = _parsed(request, inputs)
        else:
            corefile, seen = _by_child(request)
            inputs.seen |= seen
        for path in self.beside(corefile):
            with contextlib.suppress(OSError, CorefileError):  # whoever loads it says what is wrong
                inputs.read(path)
            corefile.fingerprint += inputs.seen[path, False].hex()
        self.last, self.seen = corefile, inputs.seen
        return corefile


def read_file(path: str, inputs: Inputs | None = None, *, exactly: bool = False) -> str:
    """A Corefile's text (see source.read). Raises CorefileError with one line that says what is wrong."""
    try:
        return source.read(path, exactly=exactly) if inputs is None else inputs.read(path)
    except OSError as error:
        raise CorefileError(None, f"cannot read the Corefile {path}: {error.strerror or error}") from None


def _parsed(request: Request, inputs: Inputs) -> Corefile:
    return parse(
        request.text,
        request.name,
        default_port=request.default_port,
        known=request.known,
        suggestions=request.suggestions,
        environ=request.environ,
        reader=inputs,
    )


def _by_child(request: Request) -> tuple[Corefile, dict[tuple[str, bool], bytes]]:
    """The Corefile that a child makes of a request, and what it read. In a thread: it waits. Raises CorefileError."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kdns.server.reading"],
            input=pickle.dumps(request), capture_output=True, timeout=CHILD_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CorefileError(None, f"reading {request.name} took over {CHILD_TIMEOUT:g} s") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CorefileError(None, f"reading {request.name} failed: {last[0] if last else 'no reason given'}")
    frames: list[Any] = []
    at, data = 0, done.stdout
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        frames.append(pickle.loads(data[at + 4 : end]))
        at = end
        time.sleep(0)  # others first: a thread that works would have the interpreter for 5 ms at a time
    kind, *head = frames[0]
    if kind == "error":
        where, message = head
        raise CorefileError(where if where is None else Position(*where), message)
    name, warnings, fingerprint, seen = head
    return Corefile(name, frames[1:], warnings, fingerprint), seen


def _child() -> int:
    os.nice(5)  # the server has the processor first
    request: Request = pickle.loads(sys.stdin.buffer.read())
    inputs = Inputs()
    try:
        corefile = _parsed(request, inputs)
    except CorefileError as error:
        _print(("error", error.where if error.where is None else tuple(error.where), error.message))
        return 0
    _print(("corefile", corefile.name, corefile.warnings, corefile.fingerprint, inputs.seen))
    for block in corefile.blocks:
        _print(block)
    return 0


def _print(frame: object) -> None:
    data = pickle.dumps(frame, protocol=5)
    sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)


if __name__ == "__main__":
    # Under its own name, or what is unpickled would be of another module.
    from kdns.server import reading

    sys.exit(reading._child())
