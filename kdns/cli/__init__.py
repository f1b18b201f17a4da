"""The command line: the server under CoreDNS's flags, and tools as words. Only this package exits the process.

Exit codes: 0 done; 1 the configuration, the start or what was asked for failed (stderr says why); 2 a bad flag or word,
or a second SIGINT; 130 interrupted; 141 whoever read the output closed it, as a shell says of SIGPIPE. Tools with more
say so in their help and in the manual page. A tool that gives a verdict (check, compare, doctor) keeps its exit code
when its reader leaves.
"""

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Final

from kdns.cli import streams

# Loaded when used: a tool need not pay for the server, nor the server for the tools.
COMMANDS: Final = {
    "check": "check a Corefile without serving it",
    "fmt": "print a Corefile in one style",
    "plan": "show each block's plugins in the order queries meet them",
    "explain": "show how a name is answered, and why",
    "doctor": "say what is wrong with a cluster's DNS",
    "compare": "ask two servers the same questions, and show where they differ",
    "query": "ask a DNS server",
    "zone": "check a zone file, print it, compare two",
    "plugins": "list the plugins, or print one's manual",
    "demo": "serve a sample cluster on 127.0.0.1:1053",
    "completion": "print a shell's completion, or the manual page",
    "help": "print the help of a command",
    "version": "print the version",
}

CLOSED: Final = 128 + signal.SIGPIPE  # the exit code where nobody reads the output any more


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    streams.open_closed()
    try:
        if name == "help":
            code = _help(words[1:])
        elif name == "version":
            code = _run("serve", ["-version", *words[1:]])
        elif name in COMMANDS:
            code = _run(name, words[1:])
        else:
            code = _run("serve", words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone; what is left in the buffer must not be tried again at exit.
        streams.drop_output()
        return CLOSED
    except OSError as error:
        if not streams.is_full(error):
            raise
        streams.drop_output()
        sys.stderr.write(f"cannot write the output: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def suggestion(word: str) -> str:
    """` (did you mean "x"?)` for the command nearest to a word, or nothing."""
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""


def _run(name: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"kdns.cli.{name}").main(words)
    return code


def _help(words: list[str]) -> int:
    words = [word for word in words if not word.startswith("-")]
    if not words or words[0] in ("help", "version"):
        return _run("serve", ["-help"])
    if words[0] not in COMMANDS:
        sys.stderr.write(f'"{words[0]}" is not a command of kdns{suggestion(words[0])}\nSee: kdns --help\n')
        return 2
    return _run(words[0], ["-help"])
