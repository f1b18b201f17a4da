"""The directive `tenants`: how it is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kdns.corefile import Directive, Line, Position, ServerBlock, Token
from kdns.plugin import readers
from kdns.plugin.clients import Network

_OPTIONS: Final = ("isolate", "share", "allow", "from", "deny", "exempt", "unknown")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_KEY: Final = re.compile(r"([A-Za-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Config:
    """What the directive says. `zone` is a lower-cased wire name, empty where none is named; `by` are keys of labels;
    `allow` pairs of who sees and who is seen.
    """

    at: Position
    zone: bytes = b""
    isolate: bool = False
    by: tuple[str, ...] = ()
    share: frozenset[str] = frozenset()
    allow: frozenset[tuple[str, str]] = frozenset()
    policies: bool = False
    refuse: bool = False
    exempt: tuple[Network, ...] = ()
    unknown: bool = False


def parse(directives: Sequence[Directive], block: ServerBlock) -> list[Config]:
    """Reads the directive. Raises CorefileError."""
    directive = readers.once(directives)
    readers.arguments(directive, 0, 1)
    found: dict[str, object] = {}
    share: set[str] = set()
    allow: dict[tuple[str, str], Token] = {}
    exempt: list[Network] = []
    seen: set[str] = set()
    for line in directive.body or ():
        readers.no_block(line)
        name = line.name.text
        if name in seen and name not in ("share", "allow", "exempt"):
            raise readers.fail(line, f"{name} stands twice")
        seen.add(name)
        if name == "isolate":
            found["isolate"], found["by"] = True, _by(line)
        elif name == "share":
            readers.arguments(line, 1, None, "names of namespaces")
            share.update(_namespace(word) for word in line.args)
        elif name == "allow":
            allow.update(_allowed(line))
        elif name == "from":
            readers.choice(line, ("networkpolicy",))
            found["policies"] = True
        elif name == "deny":
            found["refuse"] = readers.choice(line, ("nxdomain", "refused")) == "refused"
        elif name == "exempt":
            readers.arguments(line, 1, None, "addresses or networks")
            exempt += [readers.network(word) for word in line.args]
        elif name == "unknown":
            found["unknown"] = readers.choice(line, ("allow", "deny")) == "allow"
        else:
            raise readers.unknown(line, _OPTIONS)
    if "unknown" not in seen:
        raise readers.fail(
            directive,
            "tenants needs `unknown allow` or `unknown deny`: what clients see that are not Pods (nodes, Pods with "
            "hostNetwork, a NodeLocal DNSCache in front); there is no default",
        )
    if not seen & {"isolate", "from"}:
        raise readers.fail(directive, "tenants needs `isolate` or `from networkpolicy`: else it hides nothing")
    for (_, target), word in allow.items():
        if target in share:
            raise readers.fail(word, f"{target} is shared with all: `allow` and `share` contradict each other")
    zone = readers.name(directive.args[0]) if directive.args else b""
    return [Config(directive.at, zone, share=frozenset(share), allow=frozenset(allow), exempt=tuple(exempt), **found)]  # type: ignore[arg-type]


def _by(line: Line) -> tuple[str, ...]:
    """The keys of `isolate by KEY...`."""
    if not line.args:
        return ()
    if line.args[0].text != "by" or len(line.args) < 2:
        raise readers.fail(line.args[0], f'expected "by" and keys of labels, found "{" ".join(line.words())}"')
    for word in line.args[1:]:
        if not _KEY.fullmatch(word.text):
            raise readers.fail(word, f'"{word.text}" is not a key of a label')
    return tuple(dict.fromkeys(word.text for word in line.args[1:]))


def _allowed(line: Line) -> dict[tuple[str, str], Token]:
    """The pairs of `allow NAMESPACE -> NAMESPACE...`."""
    words = line.args
    if len(words) < 3 or words[1].text != "->":
        raise readers.fail(line, f'expected NAMESPACE -> NAMESPACE, found "{" ".join(line.words())}"')
    viewer = _namespace(words[0])
    for word in words[2:]:
        if word.text == viewer:
            raise readers.fail(word, f"{viewer} sees itself in any case")
    return {(viewer, _namespace(word)): word for word in words[2:]}


def _namespace(word: Token) -> str:
    if not _NAMESPACE.fullmatch(word.text):
        raise readers.fail(word, f'"{word.text}" is not a name of a namespace')
    return word.text
