"""`kdns completion bash|zsh|fish` and the man page, both made of the commands and flags there are."""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

from kdns import __version__
from kdns.cli.flags import Flag

SHELLS: Final = ("bash", "zsh", "fish")


def main(words: Sequence[str]) -> int:
    """Prints the completion for a shell; returns the exit code."""
    if len(words) != 1 or words[0] not in (*SHELLS, "man"):
        sys.stderr.write("Usage: kdns completion bash|zsh|fish|man\n")
        return 2
    sys.stdout.write({"bash": bash, "zsh": zsh, "fish": fish, "man": man}[words[0]]())
    return 0


def flags_of() -> dict[str, list[Flag]]:
    """The flags of the server ("") and of each command."""
    from kdns.cli import COMMANDS

    out = {}
    for name in ("", *COMMANDS):
        module = importlib.import_module(f"kdns.cli.{name or 'serve'}")
        out[name] = list(getattr(module, "FLAGS", ()))
    return out


def bash() -> str:
    """For bash: `source <(kdns completion bash)`."""
    cases = "\n".join(
        f"        {name or '*'}) words='{' '.join('-' + flag.names[0] for flag in flags)}' ;;"
        for name, flags in sorted(flags_of().items(), reverse=True)
    )
    from kdns.cli import COMMANDS

    return f"""_kdns() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    [ "$COMP_CWORD" = 1 ] && words="$words {" ".join(COMMANDS)}"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _kdns kdns
"""


def zsh() -> str:
    """For zsh: bash's, through its own compatibility."""
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash()


def fish() -> str:
    """For fish."""
    from kdns.cli import COMMANDS

    lines = [f"complete -c kdns -n __fish_use_subcommand -a {name} -d '{_quoted(text)}'" for name, text in COMMANDS.items()]
    for name, flags in flags_of().items():
        where = f"-n '__fish_seen_subcommand_from {name}'" if name else "-n __fish_use_subcommand"
        lines += [f"complete -c kdns {where} -o {flag.names[0]} -d '{_quoted(flag.help)}'" for flag in flags]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def man() -> str:
    """The manual page, in man(7)'s macros."""
    from kdns.cli import COMMANDS

    found = flags_of()
    lines = [
        f'.TH KDNS 8 "" "kdns {__version__}" "System administration"', ".SH NAME", r"kdns \- a cluster DNS server",
        ".SH SYNOPSIS", ".B kdns", "[FLAGS]", ".br", ".B kdns", "COMMAND [FLAGS]", ".SH DESCRIPTION",
        "Serves the names of a Kubernetes cluster by a Corefile, in the place of CoreDNS.", ".SH FLAGS", *_man_flags(found[""]),
        ".SH COMMANDS",
    ]  # fmt: skip
    for name, text in COMMANDS.items():
        lines += [".TP", f".B {name}", f"{text}.", *_man_flags(found[name], ".RS", ".RE")]
    lines += [
        ".SH SIGNALS", "SIGTERM serves on through the lameduck, then drains; SIGINT leaves without waiting; a second one leaves at",
        "once. SIGUSR1 reads the Corefile again.", ".SH EXIT STATUS",
        "0 done; 1 the configuration or the start failed; 2 a bad flag.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _man_flags(flags: list[Flag], before: str = "", after: str = "") -> list[str]:
    lines = [line for flag in flags for line in (".TP", ".B " + ", ".join(rf"\-{name}" for name in flag.names), flag.help + ".")]
    return [*([before] if before and lines else []), *lines, *([after] if after and lines else [])]
