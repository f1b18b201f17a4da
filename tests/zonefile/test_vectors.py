"""Other people's zone files, read from copies of their sources: the vectors of Knot DNS's parser, and the good and bad
files of BIND's named-checkzone.

`KDNS_KNOT_SOURCE` and `KDNS_BIND_SOURCE` name the folders that the two sources were unpacked in; without them these
tests are skipped. What differs from them stands here with its reason, and nothing else may.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from kdns.dns.name import from_text
from kdns.zonefile import load, reader
from kdns.zonefile.reader import MasterFile

KNOT, BIND = "KDNS_KNOT_SOURCE", "KDNS_BIND_SOURCE"


def sources(variable: str, folder: str, pattern: str) -> list[object]:
    """The files of a pattern in a folder of sources, as parameters; one that is skipped where there are none."""
    top = os.environ.get(variable)
    if not top:
        return [pytest.param(Path(), marks=pytest.mark.skip(reason=f"{variable} names no folder"), id="none")]
    found = sorted((Path(top) / folder).glob(pattern))
    assert found, f"{variable}: {Path(top) / folder} holds no {pattern}"
    return [pytest.param(path, id=path.stem) for path in found]


# Knot DNS.


class Said(NamedTuple):
    """What Knot's parser makes of a file: records as (owner, type, rdata) with their TTLs, and errors."""

    records: dict[tuple[bytes, int, bytes], set[int]]
    errors: list[str]


def said(path: Path) -> Said:
    """Reads a file of its output: paragraphs of `KEY=VALUE`."""
    records: dict[tuple[bytes, int, bytes], set[int]] = {}
    errors = []
    for part in re.split(r"^-+\n", path.read_text(), flags=re.MULTILINE):
        fields = dict(re.findall(r"^(\w+)=(.*)$", part, flags=re.MULTILINE))
        if wrong := fields.get("ERROR") or fields.get("WARNG"):
            errors.append(wrong)
        elif fields.get("CLASS") == "0001":
            key = (bytes.fromhex(fields["OWNER"]).lower(), int(fields["RTYPE"], 16), bytes.fromhex(fields["RDATA"]))
            records.setdefault(key, set()).add(int(fields["RRTTL"], 16))
    return Said(records, errors)


def read(text: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> MasterFile:
    monkeypatch.setattr(reader, "MAX_PROBLEMS", 10_000)
    made = MasterFile(from_text("."))
    made.read_text(text, str(path))
    return made


class Judged(NamedTuple):
    """An entry that we judge otherwise: accepted or refused by us, and its first line."""

    file: str
    accepted: bool
    line: str


def judged(text: str, refused: set[int], file: str) -> list[Judged]:
    """The entries of a file that we judge otherwise than its marks `; OK` and `; KO` say.

    `refused` are the numbers of the lines that we find at fault. An entry lasts until the next line that begins with an
    owner; a continued one is at fault where one of its lines is.
    """
    out = []
    good = True
    begins: list[tuple[int, bool, str]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.startswith(("; OK", "; KO")):
            good = line.startswith("; OK")
        elif line.strip() and line[0] not in ";\t )":
            begins.append((number, good, line))
    ends = [number for number, *_ in begins[1:]] + [len(lines) + 1]
    for (number, good, line), after in zip(begins, ends, strict=False):
        fault = bool(refused & set(range(number, after)))
        if good == fault:
            out.append(Judged(file, not fault, re.sub(r"\s+", " ", line)))
    return out


# Which entries we judge otherwise, and why: file, whether we accept it, what its first line matches.
DIFFERENCES: list[tuple[str, bool, str, str]] = [
    (".*", False, r"4294967295", "a TTL has 31 bits (RFC 2181, section 8)"),
    (".*", True, r"AA ==", "base64 may have blanks anywhere, as BIND has it (RFC 4034, section 2.2)"),
    (
        ".*",
        True,
        r"(^|\s)([&,]|a,|@@)|[$%]( |$)| a%",
        "a label may hold any octet (RFC 2181, section 11)",
    ),
    ("04.*|06.*", True, r"^.(ORIGIN|INCLUDE).*( tld| a| %)( |$)", "a name without a final dot is relative, as in BIND"),
    ("04-0.*", True, r"^\. NS \. ; Is OK", "reading goes on behind a fault, so that all are shown"),
    ("06-0.*", False, r"INCLUDE", "a file's name is taken as it stands, as in BIND; a backslash is no escape"),
    ("06-[5678].*", True, r"INCLUDE", "the fault has its place in the included file"),
    ("06-[67].*", False, r"ORIGIN", "that is the line of the included file"),
    ("06-8.*", True, r"INCLUDE", "a file that is included may include others"),
    ("02.*", True, r"CLASS1 ", "CLASS1 is IN (RFC 3597, section 5)"),
    ("07-.*", False, r"", "a record needs a TTL from somewhere (RFC 2308, section 4)"),
    ("12.*", False, r"multi|\"first|^second|third|abcdef", "a string ends on its line and has 255 octets, as in BIND"),
    ("12.*", True, r'"""', "strings may stand side by side, as in BIND"),
    ("15.*|17.*", False, r"", "a second CNAME or DNAME of a name (RFC 2181, section 10.1; RFC 6672, section 2.4)"),
    ("25.*", False, r"", "a second SOA"),
    ("28.*", False, r"TYPE0", "type 0 is reserved (RFC 6895, section 3.1)"),
    ("30.*", True, r"Missing item", "a KEY may have no key (RFC 2535, section 3.1.2)"),
    ("35.*", True, r"If alg is 0", "BIND and RFC 4025 let it stand"),
    ("36.*", True, r"Date overflow", "a time is taken modulo 2**32 (RFC 4034, section 3.1.5)"),
    ("39.*", False, r"=", "a hash has no padding (RFC 5155, section 3.3)"),
    ("39.*", True, r"Continuous block", "a hash has no padding (RFC 5155, section 3.3)"),
    ("42.*", False, r"90 59 59\.999", "90 degrees are the most, as in BIND"),
    ("47.*", True, r"Missing hex", "zeros in front may be left out, as in BIND and dnspython"),
    ("52.*", False, r'""', "a tag has a letter at least (RFC 8659, section 4.1)"),
    ("57.*", False, r"no-default-alpn", "no-default-alpn needs alpn (RFC 9460, section 7.1.1)"),
    ("5[78].*", False, r"key65535", "key 65535 is no key (RFC 9460, section 14.3.2)"),
    ("57.*", True, r"Capital letter", "lenient: it can mean nothing else"),
    ("6[23].*", False, r"", "types of their own and of a draft"),
]  # fmt: skip


def reason(odd: Judged) -> str:
    """Why we judge an entry otherwise; empty where nothing says so."""
    for file, accepted, line, why in DIFFERENCES:
        if re.fullmatch(file, odd.file) and accepted == odd.accepted and re.search(line, odd.line):
            return why
    return ""


@pytest.mark.parametrize("path", sources(KNOT, "tests/libzscanner/data", "*.in"))
def test_what_knot_reads_and_refuses(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_bytes()
    for each in (path.parent / "includes").iterdir():
        (tmp_path / "includes").mkdir(exist_ok=True)
        (tmp_path / "includes" / each.name).write_bytes(each.read_bytes())
    made = read(text.replace(b"@TMPDIR@", bytes(tmp_path)), tmp_path / path.name, monkeypatch)
    ours = {
        (owner, key & 0xFFFF, data): found[0]
        for owner, sets in made.names.items() for key, found in sets.items() for data in found[1:]
    }  # fmt: skip
    wrong = {problem.line for problem in made.problems if problem.fatal}
    odd = judged(text.decode(errors="replace"), wrong, path.stem)
    assert not [each for each in odd if not reason(each)]
    theirs = said(path.with_suffix(".out"))
    if not odd:
        assert ours.keys() == theirs.records.keys()
        ttls: dict[tuple[bytes, int], set[int]] = {}
        for (owner, rtype, _), found in theirs.records.items():
            ttls.setdefault((owner, rtype), set()).update(found)
        # Where the TTLs of an RRset differ, ours is the lowest (RFC 2181, section 5.2).
        assert all(ttl == min(ttls[owner, rtype]) for (owner, rtype, _), ttl in ours.items())


# BIND.

# What named-checkzone refuses by rules that are not the reader's, and what it alone has.
BINDS: dict[str, str] = {
    r"bad-_dns-svcb\d": "what an SVCB of _dns says is checked by RFC 9461's rules there",
    r"bad-(cds|cdnskey)": "CDS and CDNSKEY are compared with the keys there",
    r"bad-ds(-2)?": "a DS that is at no delegation is never asked for",
    r"bad-dns-sd-reverse|bad-svcb-servername|bad-nsec3owner-padded": "names are checked as host names there",
    r"bad-rpz-prefix": "a policy zone's names are judged where it is used as one",
    r"good-generate-modifier": "a negative number in $GENERATE is a fault here",
}


ZONES = "bin/tests/system/checkzone/zones"


@pytest.mark.parametrize("path", sources(BIND, ZONES, "bad*.db") + sources(BIND, ZONES, "good*.db"))
def test_what_named_checkzone_takes_and_refuses(path: Path) -> None:
    reverse = "dns-sd-reverse" in path.stem or "servername" in path.stem
    origin = from_text("0.0.0.0.in-addr.arpa." if reverse else "example.")
    try:
        load.read(str(path), origin)
        taken = True
    except load.BrokenZone:
        taken = False
    otherwise = any(re.fullmatch(each, path.stem) for each in BINDS)
    assert taken == (path.stem.startswith("good") != otherwise)
