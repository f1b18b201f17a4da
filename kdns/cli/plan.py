"""`kdns plan`: what a Corefile makes: listeners, zones, and the plugins in the order a query meets them."""

import sys
from collections.abc import Sequence
from typing import Final

from kdns import log
from kdns.cli import corefiles, pluginkeys
from kdns.cli.flags import BadFlag, Flag, Help, misused, parse_among, refuse
from kdns.corefile import CorefileError
from kdns.plugin.base import overrides
from kdns.printable import printable
from kdns.server import build, encryption
from kdns.server.block import Block

FLAGS: Final = (
    Flag(("conf",), "", 'Corefile; "-" or "stdin" reads standard input'),
    corefiles.WITH,
    Flag(("dns.port", "p"), 53, "default port of plain DNS"),
)
HELP: Final = Help(
    "plan", "kdns plan [FLAGS] [FILE | -]",
    "Shows each server block's zones, and its plugins in the order in which queries meet them.",
    (("kdns plan Corefile", "a file"), ("kubectl -n kube-system get cm coredns -o yaml | kdns plan -", "the cluster's "
        "own")),
    ((0, "done"), (1, "the Corefile would not start"), (2, "a bad flag or word")),
)  # fmt: skip
_WHAT: Final = (
    ("handle", "answers or passes on"), ("on_answer", "changes answers from below"),
    ("on_failure", "sees failures from below"),
    ("observe", "sees every outcome"),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Prints the plan; returns the exit code."""
    try:
        values, rest = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    if len(rest) > 1:
        return misused("kdns plan takes one file", HELP)
    path = rest[0] if rest else str(values["conf"]) or "Corefile"
    log.start_writer(sys.stderr)
    try:
        source = corefiles.one(path, str(values["with"]))
        corefile, untried = pluginkeys.parsed(source, int(values["dns.port"]))
        instance = build.build(corefile)
        instance.check()
    except BrokenPipeError:
        raise
    except (CorefileError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        log.stop_writer()
    print("\n\n".join("\n".join(described(block, untried)) for block in instance.blocks))
    if (count := instance.processes()) > 1:
        print(f"\nserved by {count} processes on the same ports (multisocket)")
    if lines := encryption.choices(instance.blocks):
        print("\n" + "\n".join(lines))
    return 0


def described(block: Block, untried: Sequence[pluginkeys.Untried]) -> list[str]:
    """The lines for one block. `untried`: the plugin files of all blocks that were not run."""
    lines = [" ".join(str(key) for key in block.parsed.keys) + (f"  (view {block.view})" if block.view else "")]
    number = 0
    beside = []
    for plugin in block.plugins:
        does = [text for hook, text in _WHAT if overrides(plugin, hook)]
        if does:
            number += 1
            lines.append(f"  {number:2}. {plugin.name:14} {', '.join(does)}")
        else:
            beside.append(plugin.name)
    if beside:
        lines.append(f"  beside the path of queries: {', '.join(beside)}")
    unseen = [printable(f"  {each.unseen}") for each in untried if each.block == block.parsed.at]
    if not number and not unseen:
        lines.append("  no plugin takes part in queries: they are answered REFUSED")
    return lines + unseen
