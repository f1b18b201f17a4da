"""Log lines: `[LEVEL] text` on stdout, as CoreDNS writes them, `plugin/NAME: ` before a plugin's text; or JSON, an
object a line.

Laws: a line is one line, whatever is in it, and holds nothing that a terminal obeys; writing never blocks the loop.
While a writer runs (`start_writer`), lines go through a bounded queue to a thread that only waits and writes; when it
is full, lines are dropped and counted. Before and after, they are written at once. Of warnings and errors
MAX_COMPLAINTS a second are written, and then how many were left out: what fails for every query would else be all there
is to read.
"""

import json
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, TextIO

from kdns.printable import printable

# Lines that may wait for a slow reader: at some 150 bytes a line, 1.5 MB.
QUEUE_LINES: Final = 10_000
# The writer looks after the queue this often (seconds); a person does not notice, and 20,000 lines a second
# cost 20 wake-ups instead of 20,000.
_INTERVAL: Final = 0.05

MAX_COMPLAINTS: Final = 100  # lines of level WARNING or ERROR a second


class _State:
    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self.debug = False
        self.dropped = 0
        self.left_out = 0
        self.json = False
        self.worker = 0  # the number of this process among several that write to one stream; 0: it is alone
        self.second = 0  # in which complaints are counted
        self.complaints = 0
        self.queue: deque[str] | None = None
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None


_state = _State()


class Logger:
    """Writes lines for a plugin, or (without a name) for the server."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def debug(self, text: str) -> None:
        if _state.debug:
            _write("DEBUG", self.name, text)

    def info(self, text: str) -> None:
        _write("INFO", self.name, text)

    def warning(self, text: str) -> None:
        if _may_complain():
            _write("WARNING", self.name, text)

    def error(self, text: str) -> None:
        if _may_complain():
            _write("ERROR", self.name, text)

    def fatal(self, text: str) -> None:
        _write("FATAL", self.name, text)

    def record(self, fields: "dict[str, object]") -> None:
        """An object of its own, level INFO; for JSON only (`is_json`)."""
        emit(_object("INFO", self.name, fields))


def plugin(name: str) -> Logger:
    """A plugin's logger."""
    return Logger(name)


def set_json(on: bool) -> None:
    """Writes lines as JSON objects from now on, or not."""
    _state.json = on


def is_json() -> bool:
    """True if lines are JSON objects."""
    return _state.json


def set_worker(number: int) -> None:
    """Says in each line which worker writes it."""
    _state.worker = number


def set_debug(on: bool) -> None:
    """Writes DEBUG lines from now on, or not (the debug plugin)."""
    _state.debug = on


def dropped() -> int:
    """How many lines a full queue has cost so far."""
    return _state.dropped


def left_out() -> int:
    """How many warnings and errors were more than a second's share."""
    return _state.left_out


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
    _state.stream = None


def _may_complain() -> bool:
    """True if this second has room for another warning or error; at the turn of one that had not, how many are
    missing.
    """
    now = int(time.monotonic())
    if now != _state.second:
        over = _state.complaints - MAX_COMPLAINTS
        _state.second, _state.complaints = now, 0
        if over > 0:
            _write(
                "WARNING",
                "",
                f"{over} more warnings and errors were left out: at most {MAX_COMPLAINTS} a second are written",
            )
    _state.complaints += 1
    if _state.complaints > MAX_COMPLAINTS:
        _state.left_out += 1
        return False
    return True


def _write(level: str, name: str, text: str) -> None:
    if _state.json:
        emit(_object(level, name, {"msg": text}))
        return
    if name:
        text = f"plugin/{name}: {text}"
    if _state.worker and (name or level != "INFO"):  # a line of a query keeps its form
        text = f"worker {_state.worker}: {text}"
    emit(f"[{level}] {printable(text)}\n")


def _object(level: str, name: str, fields: "dict[str, object]") -> str:
    now = time.time()
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1e6) % 1_000_000:06d}Z"
    head: dict[str, object] = {"time": when, "level": level, **({"plugin": name} if name else {})}
    if _state.worker:
        head["worker"] = _state.worker
    # DEL is the one control that JSON lets stand.
    return json.dumps({**head, **fields}, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


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
    for part in _whole(text) if _state.worker else (text,):
        try:
            stream.write(part)
            stream.flush()
        except (OSError, ValueError):
            _state.dropped += part.count("\n")


def _whole(text: str) -> Iterator[str]:
    """A text in parts of whole lines that a pipe takes in one piece, whoever else writes to it (pipe(7): PIPE_BUF)."""
    part = ""
    for line in text.splitlines(keepends=True):
        if part and len(part) + len(line) > select.PIPE_BUF:
            yield part
            part = ""
        part += line
    yield part


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
