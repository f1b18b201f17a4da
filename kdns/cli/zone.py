"""`kdns zone`: reads a master file, says what is wrong with it and where; prints it canonical; compares two.

    kdns zone [-origin NAME] [-print] FILE
    kdns zone [-origin NAME] FILE OTHER

Without `-origin` the zone's name is taken from the file's: `db.example.org`, `example.org.zone`, `example.org.db`. Exit
code: 0 if the zone can be served (and two are the same); 1 if not.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from kdns.cli.flags import BadFlag, Flag, Help, misused, parse_among, refuse
from kdns.dns.errors import BadName
from kdns.dns.name import from_text, to_text
from kdns.store.zone import Zone
from kdns.store.zone_diff import diff
from kdns.zonefile import types
from kdns.zonefile.load import BrokenZone, Loaded, read

FLAGS: Final = (
    Flag(("origin",), "", "the zone's name; without it the file's name says it"),
    Flag(("print",), False, "print the zone, a record a line, in canonical order"),
)
HELP: Final = Help(
    "zone", "kdns zone [FLAGS] FILE [OTHER]",
    "Checks a master file; prints it in canonical order; shows what differs between two.",
    (
        ("kdns zone db.example.org", "what is wrong with it, and where"),
        ("kdns zone -print -origin example.org zonefile", "its records in canonical order"),
        ("kdns zone db.example.org db.example.org.new", "what changes"),
    ),
    ((0, "the zone can be served, and two zones are the same"), (1, "it cannot, or they differ"), (2, "a bad flag or "
        "word")),
)  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Checks a zone, prints it, or compares two; returns the exit code."""
    try:
        values, rest = parse_among(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    if len(rest) not in (1, 2):
        return misused("kdns zone takes one file, or two to compare", HELP)
    try:
        origin = _origin(str(values["origin"]) or _named(rest[0]))
    except BadName as error:
        sys.stderr.write(f"{error}\n")
        return 2
    zones = []
    for path in rest:
        loaded = _read(path, origin)
        if loaded is None:
            return 1
        zones.append(loaded.zone)
    if len(zones) == 2:
        changes = list(_changes(*zones))
        for line in changes:
            print(line)
        return int(bool(changes))
    zone = zones[0]
    if values["print"]:
        for rrset in zone.rrsets():
            for line in types.lines(rrset):
                print(line)
    else:
        names = sum(bool(node.rrsets) for node in zone.nodes.values())
        signed = ", signed" if zone.proofs is not None else ""
        print(
            f"{rest[0]}: ok (zone {to_text(origin)}, serial {zone.serial}, {names} names, {zone.count} records{signed})"
        )
    return 0


def _read(path: str, origin: bytes) -> Loaded | None:
    try:
        loaded = read(path, origin)
    except BrokenZone as error:
        for problem in error.problems:
            sys.stderr.write(_line(problem.fatal, str(problem)))
        return None
    except OSError as error:
        sys.stderr.write(f"{path}: error: {error.strerror or error}\n")
        return None
    for problem in loaded.warnings:
        sys.stderr.write(_line(False, str(problem)))
    return loaded


def _line(fatal: bool, text: str) -> str:
    place, _, message = text.partition(": ")
    return f"{place}: {'error' if fatal else 'warning'}: {message}\n"


def _changes(old: Zone, new: Zone) -> Iterator[str]:
    """What differs, `-` and `+` in front; an SOA that differs too."""
    for gone, come in ((old.soa, new.soa), *diff(old, new)) if old.soa != new.soa else diff(old, new):
        for mark, rrset in (("-", gone), ("+", come)):
            if rrset is not None:
                for line in types.lines(rrset):
                    yield f"{mark} {line}"


def _named(path: str) -> str:
    """The zone that a file's name says. Raises BadName."""
    base = os.path.basename(path)
    if base.startswith("db.") and len(base) > 3:
        return base[3:].removesuffix(".signed")
    stem, dot, last = base.rpartition(".")
    if dot and last in ("zone", "db", "signed") and stem:
        return stem
    raise BadName(f"{path}: the file's name does not say which zone it holds; say it: -origin example.org")


def _origin(text: str) -> bytes:
    return from_text(text).lower()
