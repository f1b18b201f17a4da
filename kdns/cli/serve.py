"""The server's command line: CoreDNS's flags, signals and exit codes."""

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from kdns import __version__, faults, files, log, version
from kdns.cli.flags import BadFlag, Flag, Help, parse, refuse
from kdns.corefile import Corefile, CorefileError, source
from kdns.kube import execplugin
from kdns.printable import printable
from kdns.server import build, catalog, gc_policy
from kdns.server.life import READING
from kdns.server.lifecycle import Server, pid_text
from kdns.server.reading import CorefileOnDisk

if TYPE_CHECKING:
    from kdns.server.supervisor import Supervisor

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile to load; "stdin" reads a pipe'),
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
    Flag(("log-format",), "text", "text, or json: an object a line"),
    Flag(("pidfile",), "", "path to write the process id to"),
    Flag(("plugins",), False, "list the plugins there are"),
    Flag(("quiet",), False, "no zones and versions at the start"),
    Flag(("version",), False, "show the version"),
    Flag(("share-port",), False, "let another process listen on the same ports (kdns only)"),
)
GIVE_UP: Final = 0.5  # seconds that a start which is given up has to undo what it did
_log = log.Logger()


def main(words: Sequence[str]) -> int:
    """Serves until it is told to stop; returns the exit code."""
    gc_policy.suspend()
    try:
        values, rest = parse(words, FLAGS)
    except BadFlag as error:
        return refuse(error, help_text(), FLAGS)
    if rest:
        from kdns.cli import suggestion

        return fail(
            f'extra command line arguments: "{rest[0]}" is not a command of kdns{suggestion(rest[0])}. See: kdns --help'
        )
    if values["version"]:
        print("\n".join(version_lines()))
        return 0
    if values["plugins"]:
        print("\n".join([*sorted(name for name in catalog.built() if name != "on"), ""]))
        return 0
    form = str(values["log-format"])
    if form not in ("text", "json"):
        sys.stderr.write(f'invalid value "{form}" for flag -log-format: expected text or json\n')
        return 2
    log.set_json(form == "json")
    port = int(values["dns.port"])
    try:
        reread = corefile_source(str(values["conf"]), port)
    except (CorefileError, OSError) as error:
        return fail(str(error))
    return run(
        reread, quiet=bool(values["quiet"]), pidfile=str(values["pidfile"]), share_port=bool(values["share-port"])
    )


def run(
    reread: Callable[[], Corefile],
    *,
    quiet: bool = False,
    pidfile: str = "",
    share_port: bool = False,
    greeting: Callable[[Server], list[str]] | None = None,
) -> int:
    """Serves what `reread` gives; returns the exit code."""
    with contextlib.suppress(ValueError, OSError):
        _raise_file_limit()
    with _ended_by_signals():
        try:
            first, several = files.waiting_here("reading the Corefile", lambda: _first(reread), READING)
        except (CorefileError, OSError) as error:
            return fail(str(error))
        life = _Life(first, reread, quiet, pidfile, share_port, greeting)
        if several:
            # Before there is a loop, or a thread: what workers are forked from has neither.
            life.server = _supervisor(reread, share_port)
        try:
            import uvloop
        except ImportError:
            return asyncio.run(life.run())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(life.run())


def _first(reread: Callable[[], Corefile]) -> tuple[Corefile, bool]:
    """The first Corefile, and whether several processes are to serve it. Raises CorefileError or OSError."""
    first = reread()
    several = "multisocket" in {name for block in first.blocks for name in block.directives}
    return first, several and build.build(first).processes() > 1


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until a loop hears of signals, those that are to end a server end it at once: the first process of a container
    is ended by no signal that it does not handle (signal(7), pid_namespaces(7)).
    """

    def end(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        os.write(2, f"{name}: ended before serving, while reading the Corefile\n".encode())
        os._exit(0)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervisor(reread: Callable[[], Corefile], share_port: bool) -> "Supervisor":
    """What serves by several processes: forks the process that forks them."""
    from kdns.server import worker
    from kdns.server.forks import ForkServer
    from kdns.server.supervisor import Supervisor

    worker.freeze()
    return Supervisor(reread, ForkServer(partial(worker.main, alone=not share_port)), share_port=share_port)


def fail(text: str) -> int:
    """One line on stderr, and the exit code of a failed start."""
    sys.stderr.write(printable(text.rstrip("\n")) + "\n")
    return 1


def corefile_source(conf: str, port: int) -> Callable[[], Corefile]:
    """Where the Corefile is read from, each time: -conf, ./Corefile, or the built-in one. Raises CorefileError or
    OSError.

    An empty Corefile stands for the built-in one, but not where one was served before: a file that is being written
    again must not take all names away.
    """
    if conf == "stdin" and not sys.stdin.isatty():
        # Read once, when it is first asked for.
        text = cache(lambda: source.text_of(sys.stdin.buffer, "stdin"))
        return lambda: _or_builtin(build.read(text(), "stdin", default_port=port), port)
    path = conf if conf != "stdin" else ""
    if not path and not os.path.lexists("Corefile"):
        return lambda: _builtin(port)
    path = path or "Corefile"
    read = CorefileOnDisk(path, port, catalog.known, build.plugin_paths)
    served = False

    def reread() -> Corefile:
        nonlocal served
        corefile = read()
        if served and not corefile.blocks:
            raise CorefileError(None, f"{path} is empty: what was served before stays")
        served = served or bool(corefile.blocks)
        return _or_builtin(corefile, port)

    return reread


def _builtin(port: int) -> Corefile:
    return build.read(f".:{port} {{\nwhoami\nlog\n}}\n", "built-in Corefile", default_port=port)


def _or_builtin(corefile: Corefile, port: int) -> Corefile:
    return corefile if corefile.blocks else _builtin(port)


def version_lines() -> list[str]:
    """The two lines of -version."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    implementation = f"{platform.python_implementation()} {platform.python_version()}"
    loop = "asyncio"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        loop = f"uvloop {importlib.metadata.version('uvloop')}"
    return [
        f"kdns-{__version__}",
        f"{platform.system().lower()}/{machine}, {implementation}, {loop}, {version.build()}",
    ]


def help_text() -> Help:
    """The help of the server, which names the tools."""
    from kdns.cli import COMMANDS

    tools = "".join(f"\n  kdns {name:10} {text}" for name, text in COMMANDS.items())
    return Help(
        "", "kdns [FLAGS] | kdns COMMAND [FLAGS]",
        f"Serves the Corefile: -conf, or ./Corefile. Tools (kdns help COMMAND says more):\n{tools}",
        (
            ("kdns -conf /etc/coredns/Corefile", "serve, as CoreDNS does"),
            ("kdns demo", "serve a sample cluster on 127.0.0.1:1053: no cluster, no root"),
            ("kubectl -n kube-system get cm coredns -o yaml | kdns check -", "will a cluster's Corefile run as it is?"),
        ),
        ((0, "done"), (1, "the configuration or the start failed"), (2, "a bad flag, or a second SIGINT")),
    )  # fmt: skip


def _raise_file_limit() -> None:
    """A connection is a file: as many as we may have."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard > 0 else 1 << 20, hard))


class _Life:
    """One run of the process: start, signals, stop."""

    def __init__(
        self,
        first: Corefile,
        reread: Callable[[], Corefile],
        quiet: bool,
        pidfile: str,
        share_port: bool,
        greeting: Callable[[Server], list[str]] | None,
    ) -> None:
        self.first = first
        self.quiet = quiet
        self.pidfile = pidfile
        self.server: Server | Supervisor = Server(reread, share_port=share_port)
        self.greeting = greeting
        self.stopping: signal.Signals | None = None
        self.started = self.asked = False
        self.told = asyncio.Event()
        self.tasks: set[asyncio.Task[object]] = set()
        self.code = 0

    async def run(self) -> int:
        self.server.runtime.stop = self._exit
        # Zones, then what plugins say, then versions: the order in which CoreDNS's log begins.
        self.server.opened = lambda: self._say(self.server.banner())
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(faults.caught)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGQUIT, self._leave, 0)
        loop.add_signal_handler(signal.SIGUSR1, self._reload)
        log.start_writer()
        try:
            starting = asyncio.ensure_future(self.server.start(self.first))
            told = asyncio.ensure_future(self.told.wait())
            await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait((starting,), timeout=GIVE_UP)
                log.stop_writer()
                return self.code
            await starting
        except (CorefileError, OSError) as error:
            log.stop_writer()
            return fail(str(error))
        self.started = True
        if self.asked:
            self._reload()
        self._say(
            [
                *version_lines(),
                *(self.greeting(self.server) if self.greeting is not None and isinstance(self.server, Server) else ()),
            ]
        )
        self._write_pid()
        await self.told.wait()
        await self._end()
        log.stop_writer()
        return self.code

    def _say(self, lines: list[str]) -> None:
        for line in lines if not self.quiet else ():
            if log.is_json():
                _log.info(line)
            else:
                log.emit(printable(line) + "\n")

    def _write_pid(self) -> None:
        if self.pidfile:
            try:
                with open(self.pidfile, "w", encoding="ascii") as file:
                    file.write(pid_text())
            except OSError as error:
                _log.error(f"cannot write the pid file {self.pidfile}: {error.strerror or error}")

    async def _end(self) -> None:
        self._remove_pid()
        if self.stopping == signal.SIGTERM:
            await self.server.lameduck()
            await self.server.stop()
        else:
            await self.server.stop(drain=0)

    def _remove_pid(self) -> None:
        if self.pidfile:
            with contextlib.suppress(OSError):
                os.unlink(self.pidfile)

    # Signals.

    def _stop(self, number: signal.Signals) -> None:
        if self.stopping is not None:
            self._leave(2 if number == signal.SIGINT else 0)
        self.stopping = signal.Signals(number)
        _log.info(f"{self.stopping.name}: Shutting down servers then terminating")
        self.told.set()

    def _reload(self) -> None:
        if not self.started:
            self.asked = True  # what it is asked for while it starts comes right after
            return
        task: asyncio.Task[object] = asyncio.ensure_future(self.server.reload())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _exit(self, code: int) -> None:
        """A plugin asks for the end."""
        self.code = code
        self.told.set()

    def _leave(self, code: int) -> None:
        """Leaves at once."""
        self._remove_pid()
        execplugin.end_all()
        log.stop_writer(0.2)
        os._exit(code)
