"""Log lines: `[LEVEL] text` on stdout, as CoreDNS writes them; `plugin/NAME: ` is the caller's prefix.

Laws: a line is one line, whatever is in it; writing never blocks the loop. While a writer runs (`start_writer`),
lines go through a bounded queue to a thread that only waits and writes; when it is full, lines are dropped and
counted. Before and after, they are written at once.
"""

import sys
import threading
from collections import deque
from typing import Final, TextIO

# Lines that may wait for a slow reader: at some 150 bytes a line, 1.5 MB.
QUEUE_LINES: Final = 10_000
# The writer looks after the queue this often (seconds); a person does not notice, and 20,000 lines a second
# cost 20 wake-ups instead of 20,000.
_INTERVAL: Final = 0.05

_CLEAN: Final = {i: f"\\x{i:02x}" for i in (*range(32), 127)} | {10: "\\n", 13: "\\r", 9: "\t"}


class _State:
    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self.debug = False
        self.dropped = 0
        self.queue: deque[str] | None = None
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None


_state = _State()


class Logger:
    """Writes lines under one prefix."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def debug(self, text: str) -> None:
        if _state.debug:
            _write("DEBUG", self.prefix + text)

    def info(self, text: str) -> None:
        _write("INFO", self.prefix + text)

    def warning(self, text: str) -> None:
        _write("WARNING", self.prefix + text)

    def error(self, text: str) -> None:
        _write("ERROR", self.prefix + text)

    def fatal(self, text: str) -> None:
        _write("FATAL", self.prefix + text)


def plugin(name: str) -> Logger:
    """A plugin's logger."""
    return Logger(f"plugin/{name}: ")


def set_debug(on: bool) -> None:
    """Whether DEBUG lines are written (the debug plugin)."""
    _state.debug = on


def dropped() -> int:
    """How many lines a full queue has cost so far."""
    return _state.dropped


def start_writer(stream: TextIO | None = None) -> None:
    """From now on lines are written by a thread, and never by the caller."""
    if _state.thread is not None:
        return
    _state.stream = stream
    _state.queue = deque()
    _state.stopping.clear()
    _state.thread = threading.Thread(target=_writer, name="log", daemon=True)
    _state.thread.start()


def stop_writer(timeout: float = 1.0) -> None:
    """Writes what waits, for at most `timeout` seconds, and goes back to writing at once."""
    thread = _state.thread
    if thread is None:
        return
    _state.stopping.set()
    thread.join(timeout)
    _state.thread = None
    _state.queue = None


def _write(level: str, text: str) -> None:
    if not text.isprintable():
        text = text.translate(_CLEAN)
    emit(f"[{level}] {text}\n")


def emit(line: str) -> None:
    """Writes a finished line (with its newline) as it is."""
    queue = _state.queue
    if queue is None:
        _put(line)
    elif len(queue) >= QUEUE_LINES:
        _state.dropped += 1
    else:
        queue.append(line)


def _put(text: str) -> None:
    stream = _state.stream or sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        _state.dropped += text.count("\n")


def _writer() -> None:
    queue = _state.queue
    assert queue is not None
    while True:
        last = _state.stopping.is_set()
        lines: list[str] = []
        while queue and len(lines) < 1000:
            lines.append(queue.popleft())
        if lines:
            _put("".join(lines))
        elif last:
            return
        else:
            _state.stopping.wait(_INTERVAL)
