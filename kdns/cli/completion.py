"""`kdns completion bash|zsh|fish` and the man page, both made of the commands and flags there are."""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from kdns import __version__
from kdns.cli.flags import Flag, Help, misused, usage

SHELLS: Final = ("bash", "zsh", "fish")
HELP: Final = Help(
    "completion", "kdns completion bash|zsh|fish|man", "Prints the completion of a shell, or the manual page.",
    (("source <(kdns completion bash)", "for this shell"), ("kdns completion man | man -l -", "read the manual page")),
    ((0, "done"), (2, "a bad word")),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Prints the completion for a shell; returns the exit code."""
    if words and words[0] in ("-h", "-help", "--help"):
        sys.stdout.write(usage(HELP, ()))
        return 0
    if len(words) != 1 or words[0] not in (*SHELLS, "man"):
        return misused("kdns completion takes one of: bash, zsh, fish, man", HELP)
    sys.stdout.write({"bash": bash, "zsh": zsh, "fish": fish, "man": man}[words[0]]())
    return 0


def flags_of() -> dict[str, list[Flag]]:
    """The flags of the server ("") and of each command."""
    from kdns.cli import COMMANDS

    out = {}
    for name in ("", *COMMANDS):
        module = _module(name)
        out[name] = list(getattr(module, "FLAGS", ())) if module is not None else []
    return out


def _module(name: str) -> ModuleType | None:
    """A command's module; None where `kdns.cli` itself does it."""
    return None if name in ("help", "version") else importlib.import_module(f"kdns.cli.{name or 'serve'}")


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

    lines = [
        f"complete -c kdns -n __fish_use_subcommand -a {name} -d '{_quoted(text)}'" for name, text in COMMANDS.items()
    ]
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
        "Serves the names of a Kubernetes cluster by a Corefile, in the place of CoreDNS.", ".SH FLAGS",
        *_man_flags(found[""]),
        ".SH COMMANDS",
    ]  # fmt: skip
    for name, text in COMMANDS.items():
        module = _module(name)
        help: Help | None = module.HELP if module is not None else None
        lines += [".TP", f".B {name}", f"{text}."]
        if help is not None:
            lines += [".RS", ".PP", *_plain(help.about), *_man_flags(found[name])]
            lines += [
                ".PP",
                "Exit status: " + "; ".join(f"{code} {meaning}" for code, meaning in help.codes) + ".",
                ".RE",
            ]
    lines += [
        ".SH SIGNALS",
        "SIGTERM serves on through the lameduck, then drains; SIGINT leaves without waiting; a second one leaves at",
        "once. SIGUSR1 reads the Corefile again.", ".SH EXIT STATUS",
        "0 done; 1 the configuration, the start or what was asked for failed; 2 a bad flag or word, or a second "
        "SIGINT; 130",
        "interrupted; 141 whoever read the output closed it (check, compare and doctor keep their own). What a command",
        "adds to these stands with it.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _plain(text: str) -> list[str]:
    """Lines that roff takes for text: none begins with its control characters."""
    return [
        rf"\&{line.strip()}" if line.strip()[:1] in (".", "'") else line.strip()
        for line in text.splitlines()
        if line.strip()
    ]


def _man_flags(flags: list[Flag]) -> list[str]:
    return [
        line
        for flag in flags
        for line in (".TP", ".B " + ", ".join(rf"\-{name}" for name in flag.names), flag.help + ".")
    ]
