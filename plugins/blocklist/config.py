"""The directive `blocklist`: how it is read."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kdns.corefile import Directive, Line, Position, ServerBlock, Token
from kdns.dns import edns
from kdns.namelist import FORMATS
from kdns.plugin import readers

DEFAULT_TTL: Final = 60
DEFAULT_RELOAD: Final = 5.0
ACTIONS: Final = ("nxdomain", "nodata", "refused", "address")
# Extended errors: RFC 8914, sections 4.16 to 4.18.
CODES: Final = {"blocked": edns.BLOCKED, "censored": edns.CENSORED, "filtered": edns.FILTERED}
_OPTIONS: Final = (
    "file", "name", "allow", "allow_file", "action", "ede", "exact", "cnames", "ttl", "reload", "namespaces", "except",
)  # fmt: skip
_REPEATED: Final = ("file", "name", "allow", "allow_file", "namespaces", "except")


@dataclass(frozen=True, slots=True)
class File:
    """A list's path as it is written, its format, and whether its names are allowed."""

    path: str
    format: str
    allows: bool


@dataclass(frozen=True, slots=True)
class Config:
    """What the directive says. `names` and `allowed` are wire names, which may begin with `*`; times in seconds.

    `written`: whether the zones stand in the directive. `clients` are namespaces, `others`: all but those.
    """

    at: Position
    zones: tuple[bytes, ...]
    written: bool
    files: tuple[File, ...] = ()
    names: tuple[bytes, ...] = ()
    allowed: tuple[bytes, ...] = ()
    action: str = "nxdomain"
    v4: tuple[bytes, ...] = ()
    v6: tuple[bytes, ...] = ()
    code: int = edns.BLOCKED
    exact: bool = False
    cnames: bool = False
    ttl: int = DEFAULT_TTL
    reload: float = DEFAULT_RELOAD
    clients: frozenset[str] = frozenset()
    others: bool = False


def parse(directives: Sequence[Directive], block: ServerBlock) -> list[Config]:
    """Reads the directives. Raises CorefileError."""
    return [_one(directive, block) for directive in directives]


def _one(directive: Directive, block: ServerBlock) -> Config:
    found: dict[str, object] = {}
    files: list[File] = []
    names: list[bytes] = []
    allowed: list[bytes] = []
    clients: set[str] = set()
    seen: set[str] = set()
    for line in directive.body or ():
        readers.no_block(line)
        option = line.name.text
        if option in seen and option not in _REPEATED:
            raise readers.fail(line, f"{option} stands twice")
        seen.add(option)
        if option in ("file", "allow_file"):
            files += _files(line, option == "allow_file")
        elif option in ("name", "allow"):
            readers.arguments(line, 1, None, "names")
            (names if option == "name" else allowed).extend(_name(word) for word in line.args)
        elif option == "action":
            found.update(_action(line))
        elif option == "ede":
            found["code"] = CODES[_word(readers.one(line, " or ".join(CODES)), tuple(CODES))]
        elif option in ("exact", "cnames"):
            readers.arguments(line, 0, 0)
            found[option] = True
        elif option == "ttl":
            found["ttl"] = _ttl(readers.one(line, "a duration"))
        elif option == "reload":
            found["reload"] = readers.seconds(readers.one(line, "a duration"))
        elif option in ("namespaces", "except"):
            readers.arguments(line, 1, None, "names of namespaces")
            clients.update(line.words())
            found["others"] = option == "except"
        else:
            raise readers.unknown(line, _OPTIONS)
    if {"namespaces", "except"} <= seen:
        raise readers.fail(directive, "blocklist takes `namespaces` or `except`, not both")
    if not names and not any(not file.allows for file in files):
        raise readers.fail(directive, "blocklist needs `file` or `name`: else it blocks nothing")
    if len({file.path for file in files}) < len(files):
        raise readers.fail(directive, "a file stands twice in blocklist")
    zones = readers.zone_names(directive.args, block)
    return Config(
        directive.at, zones, bool(directive.args), tuple(files), tuple(names), tuple(allowed),
        clients=frozenset(clients), **found,  # type: ignore[arg-type]
    )  # fmt: skip


def _files(line: Line, allows: bool) -> list[File]:
    words = readers.arguments(line, 1, None, "paths")
    form = "auto"
    if len(words) > 2 and words[-2] == "format":
        known = FORMATS[:3] if allows else FORMATS
        form = _word(line.args[-1], known)
        words = words[:-2]
    return [File(path, form, allows) for path in words]


def _name(word: Token) -> bytes:
    name = readers.name(word)
    if b"*" in name[2:]:
        raise readers.fail(word, f'"{word.text}": a wildcard stands for whole labels, and at the beginning only')
    return name


def _action(line: Line) -> dict[str, object]:
    readers.arguments(line, 1, None, " or ".join(ACTIONS))
    action = _word(line.args[0], ACTIONS)
    if action != "address":
        readers.arguments(line, 1, 1)
        return {"action": action}
    if len(line.args) < 2:
        raise readers.fail(line, "expected addresses after address")
    packed = [ipaddress.ip_address(readers.ip(word)).packed for word in line.args[1:]]
    return {
        "action": action,
        "v4": tuple(each for each in packed if len(each) == 4),
        "v6": tuple(each for each in packed if len(each) == 16),
    }


def _word(word: Token, known: Sequence[str]) -> str:
    if word.text not in known:
        raise readers.fail(word, f'expected {" or ".join(known)}, found "{word.text}"')
    return word.text


def _ttl(word: Token) -> int:
    value = readers.seconds(word, 1.0, bare=True)
    if value > 86400:
        raise readers.fail(word, f'"{word.text}" is over a day')
    return int(value)
