"""The command line: the server under CoreDNS's flags, and tools as words. Only this package exits the process.

Exit codes: 0 done; 1 the configuration or the start failed (one line on stderr); 2 a bad flag, or a second SIGINT.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

# Loaded when used: a tool need not pay for the server, nor the server for the tools.
COMMANDS: Final = {
    "check": "check a Corefile without serving it",
    "fmt": "print a Corefile in one style",
    "plan": "show what a Corefile comes to, plugin by plugin",
    "explain": "show how a name is answered, and why",
    "query": "ask a DNS server",
    "plugins": "list the plugins, or print one's manual",
    "demo": "serve a sample cluster on 127.0.0.1:1053",
    "completion": "print a shell's completion, or the manual page",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in COMMANDS else "serve"
    try:
        command = importlib.import_module(f"kdns.cli.{name}")
        code: int = command.main(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone; what is left in the buffer must not be tried again at exit.
        sys.stdout = None
        return 1
    except KeyboardInterrupt:
        return 130
