"""The master-file reader (RFC 1035, section 5; RFC 2308, section 4; RFC 3597): files in, records by owner and type out.

Theory of operation. Nearly all lines of large zones are one of a few simple forms. One regular expression recognises
such a line whole, and which of its groups matched last says which form it is; that takes a microsecond or two. What
recurs in such lines is known by its text: targets and what names end in, an SRV's or MX's numbers. Every other entry is
split into words (`words.split`) and read field by field (`types.read`), which takes ten times as long and gives errors
their place. Both give the same records; a test holds them beside each other.

What is wrong is noted with its place, and reading goes on behind the entry, so one look shows all faults (at most
MAX_PROBLEMS). A zone with a fatal one is not served. Out-of-zone records are left out and named (BIND, NSD); of
differing TTLs in an RRset the lowest counts (RFC 2181, section 5.2); a record that stands twice is one.

Bounds: octets of all files, depth of $INCLUDE, records of $GENERATE, words of an entry.
"""

import errno
import os
import re
import socket
from typing import Any, Final, NamedTuple, final

from kdns import files
from kdns.dns import iana
from kdns.dns.name import MAX_LABEL, MAX_NAME, is_within, to_text
from kdns.zonefile import types
from kdns.zonefile.errors import BadRecord, Problem, ZoneFileError
from kdns.zonefile.fields import ttl as read_ttl
from kdns.zonefile.generate import MAX_GENERATED, expanded
from kdns.zonefile.signed_lines import LINES, SignedLines
from kdns.zonefile.words import LENGTH, Entry, Word, name, shown, split

MAX_OCTETS: Final = 1 << 30  # of a file and all it includes; ten million records have some 400 MB
MAX_DEPTH: Final = 7  # of $INCLUDE (CoreDNS's)
MAX_PROBLEMS: Final = 20
_KEPT: Final = 4096  # wire forms kept by their text; a bound, not a tuning

# Key of a signature's set: its records share a TTL with what they cover, not with each other (RFC 4034, section 3).
SIGNED: Final = 16

# Groups: 1 owner (empty: the one before), 2 TTL, then by type: 3 A, 4 AAAA, 5 and 6 a type whose rdata is one name, 7
# and 8 MX, 9 a TXT of one string, 10 an SRV's numbers and 11 its target, 12 to 18 what signed zones have
# (signed_lines). Nothing is given back (`++`, `*+`): what follows a part never begins like it.
_NAME: Final = rb"[-A-Za-z0-9_.*/@]++"
_FAST: Final = re.compile(
    rb"([-A-Za-z0-9_.*/@]*+)[ \t]++(?:([0-9]{1,9})[ \t]++)?(?:(?:IN|in)[ \t]++)?"
    rb"(?:A[ \t]++([0-9.]++)|AAAA[ \t]++([0-9A-Fa-f:.]++)"
    rb"|(NS|CNAME|PTR)[ \t]++(" + _NAME + rb")|MX[ \t]++([0-9]{1,5})[ \t]++(" + _NAME + rb")"
    rb'|TXT[ \t]++"([^"\\\n]{0,255}+)"'
    rb"|SRV[ \t]++((?:[0-9]{1,5}[ \t]++){3})(" + _NAME + rb")|" + LINES + rb")"
    rb"[ \t\r]*+(?:;[^\n]*+)?(?:\n|\Z)"
)
_IDLE: Final = re.compile(rb"(?:[ \t\r]*+(?:;[^\n]*+)?+\n)++")  # lines with nothing in them
_ONE_NAME: Final = {b"NS": iana.NS, b"CNAME": iana.CNAME, b"PTR": iana.PTR}


class Seen(NamedTuple):
    """A file that was read: what it looked like (None: it could not be read) and the digest of what it said."""

    path: str
    look: files.Seen | None
    digest: bytes = b""


@final
class _File:
    """A file being read. `origin` is what names are relative to, `owner` that of the entry before; wire names."""

    __slots__ = ("data", "depth", "origin", "owner", "path")

    def __init__(self, path: str, data: bytes, origin: bytes, depth: int) -> None:
        self.path = path
        self.data = data
        self.origin = origin
        self.owner = b""
        self.depth = depth


@final
class MasterFile:
    """The records of a zone, from its file and all that it includes.

    `names[owner][key] = [TTL, rdata, rdata...]`: owners are lower-cased wire names; the key is the type, for an RRSIG
    also the type that it covers, shifted by SIGNED. `problems` are in the order they were met.
    """

    def __init__(self, origin: bytes) -> None:
        self.origin = origin
        self.names: dict[bytes, dict[int, list[Any]]] = {}
        self.problems: list[Problem] = []
        self.seen: list[Seen] = []
        self.count = 0
        self.octets = 0
        self.ttl = -1
        self.ttl_said = False  # by $TTL
        self.generated = 0
        self.places: dict[tuple[bytes, int], tuple[_File, int]] = {}  # where SOA, CNAME and DNAME stand
        self.mixed: set[tuple[bytes, int]] = set()
        self.outside = 0
        self.full = False

    # Reading.

    def read(self, path: str) -> None:
        """Reads a file. Raises OSError where the file itself cannot be opened."""
        self._read(path, self.origin, 0)

    def take(self, path: str, content: files.Content) -> None:
        """Reads what is known of a file already; it was kept."""
        self._take(path, content, self.origin, 0)

    def read_text(self, data: bytes, path: str) -> None:
        """Reads the octets of a file."""
        self._entries(_File(path, data, self.origin, 0))

    def finish(self) -> dict[bytes, dict[int, list[Any]]]:
        """The records. Raises ZoneFileError where they are not a zone."""
        self._judge()
        if any(problem.fatal for problem in self.problems):
            raise ZoneFileError(self.problems)
        return self.names

    @property
    def warnings(self) -> list[Problem]:
        """What is odd, but can be served."""
        return [problem for problem in self.problems if not problem.fatal]

    def _read(self, path: str, origin: bytes, depth: int) -> bytes:
        """Reads a file with this origin; gives the owner that came last."""
        left = MAX_OCTETS - self.octets
        try:
            content = files.read_through(path, left + 1, left)
        except OSError as error:
            self.seen.append(Seen(path, None))
            if error.errno != errno.EFBIG:
                raise
            self._note(_File(path, b"", origin, depth), 0, f"over {MAX_OCTETS >> 20} MiB of zone files")
            return b""
        return self._take(path, content, origin, depth)

    def _take(self, path: str, content: files.Content, origin: bytes, depth: int) -> bytes:
        self.seen.append(Seen(path, content.seen, content.digest))
        data = content.data or b""
        self.octets += len(data)
        file = _File(path, data, origin, depth)
        if self.octets > MAX_OCTETS:
            self._note(file, 0, f"over {MAX_OCTETS >> 20} MiB of zone files")
            return b""
        self._entries(file)
        return file.owner

    def _note(self, file: _File, at: int, message: str, fatal: bool = True) -> None:
        data = file.data
        while data[at : at + 1] in (b" ", b"\t"):
            at += 1  # an entry without an owner begins with its first word
        begin = data.rfind(b"\n", 0, at) + 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(file.path, data.count(b"\n", 0, at) + 1, at - begin + 1, message, fatal))
        elif fatal and not self.full:
            self.full = True
            if not any(problem.fatal for problem in self.problems):
                self.problems[-1] = Problem(file.path, data.count(b"\n", 0, at) + 1, at - begin + 1, message)

    def _entries(self, file: _File) -> None:  # noqa: C901 - one pass over a file, its usual lines first
        data = file.data
        total = len(data)
        at = 0
        if data.startswith(b"\xef\xbb\xbf"):
            at = 3  # a byte order mark
        fast, idle, from_text = _FAST.match, _IDLE.match, socket.inet_pton
        names = self.names
        numbers: dict[bytes, bytes] = {}  # wire forms by their text
        targets: dict[bytes, bytes] = {}
        tails: dict[bytes, bytes] = {}  # of what stands behind a name's first dot
        origin = file.origin
        below, room = self._below(origin)
        signed = SignedLines(origin)
        owner = before = b""  # of the entry before, and as it stands there
        node: dict[int, list[Any]] | None = None
        count = 0
        odd = False  # whether the entry at `at` is to be read word by word
        while at < total and not self.full:
            match = None if odd else fast(data, at)
            if match is None:
                skipped = None if odd else idle(data, at)
                odd = False
                if skipped is not None:
                    at = skipped.end()
                    continue
                at = self._entry(file, at)
                if file.origin is not origin:
                    origin = file.origin
                    below, room = self._below(origin)
                    targets = {}
                    tails = {}
                    signed = SignedLines(origin)
                before = b""
                owner = file.owner
                node = names.get(owner)
                continue
            text = match[1]
            form = match.lastindex
            given = match[2]
            ttl = int(given) if given is not None else self.ttl
            if ttl < 0 or ttl > iana.MAX_TTL:
                odd = True  # whoever reads it as an odd one says what is wrong
                continue
            if text and len(text) <= room and b"." not in text and text != b"@":
                if text != before:
                    owner = file.owner = LENGTH[len(text)] + text.lower() + below
                    before = text
                    node = names.get(owner)
                    if node is None:
                        node = names[owner] = {}
            elif text and text != before:
                try:
                    owner = file.owner = name(Word(text, at), origin).lower()
                except BadRecord as error:
                    self._note(file, error.at, error.message)
                    at = match.end()
                    continue
                before = text
                node = names.get(owner)
                if node is None:
                    if not is_within(owner, self.origin):
                        odd = True  # it is checked all the same, and its TTL counts for those behind it
                        continue
                    node = names[owner] = {}
            if node is None:  # no owner before, or one out of the zone
                odd = True
                continue
            if given is not None and not self.ttl_said:
                self.ttl = ttl
            try:
                if form == 3:
                    rtype, rdata = 1, from_text(socket.AF_INET, match[3].decode())
                elif form == 4:
                    rtype, rdata = 28, from_text(socket.AF_INET6, match[4].decode())
                elif form == 6 or form == 8 or form == 11:
                    word = match[form]
                    target = targets.get(word)
                    if target is None:
                        first, dot, rest = word.partition(b".")
                        tail = tails.get(rest) if dot else origin if word != b"@" else None
                        if tail is not None and 0 < len(first) <= MAX_LABEL and len(first) + len(tail) < MAX_NAME:
                            target = LENGTH[len(first)] + first + tail
                        else:
                            target = name(Word(word, match.start(form)), origin)
                            if rest:
                                _keep(tails, rest, target[len(first) + 1 :])
                        _keep(targets, word, target)
                    if form == 6:
                        rtype, rdata = _ONE_NAME[match[5]], target
                        if rtype == 5 and rtype not in node:
                            self.places[owner, 5] = (file, at)
                    else:
                        figures = match[7] if form == 8 else match[10]
                        head = numbers.get(figures)
                        if head is None:
                            head = b"".join([int(each).to_bytes(2, "big") for each in figures.split()])
                            _keep(numbers, figures, head)
                        rtype, rdata = 15 if form == 8 else 33, head + target
                elif form == 13:
                    rdata = signed.rrsig(match[12], match[13])
                    rtype = iana.RRSIG | (rdata[0] << 8 | rdata[1]) << SIGNED
                elif form == 15:
                    rtype, rdata = iana.NSEC, signed.nsec(match[14], match[15])
                elif form == 18:
                    rtype, rdata = 50, signed.nsec3(match[16], match[17], match[18])
                else:
                    string = match[9]
                    rtype, rdata = 16, bytes((len(string),)) + string
            except (OSError, OverflowError, BadRecord):
                odd = True  # whoever reads it as an odd one says what is wrong
                continue
            found = node.get(rtype)
            if found is None:
                node[rtype] = [ttl, rdata]
            else:
                if found[0] != ttl:
                    self._mixed(file, at, owner, rtype & 0xFFFF, found, ttl)
                found.append(rdata)
            count += 1
            at = match.end()
        self.count += count

    def _below(self, origin: bytes) -> tuple[bytes, int]:
        """What owners of one label end in, and how many octets such a label may have: 0 where they are not in the
        zone.
        """
        below = origin.lower()
        return below, min(MAX_LABEL, MAX_NAME - 1 - len(below)) if is_within(below, self.origin) else 0

    def _entry(self, file: _File, at: int) -> int:
        """Reads one entry of any form; gives the offset behind it."""
        try:
            entry = split(file.data, at, file.origin)
        except BadRecord as error:
            self._note(file, error.at, error.message)
            end = file.data.find(b"\n", error.at)
            return len(file.data) if end < 0 else end + 1
        if not entry.words:
            return entry.end
        try:
            first = entry.words[0]
            if first.text.startswith(b"$") and not entry.blank and not first.quoted:
                self._directive(file, entry)
            else:
                self._record(file, entry)
        except BadRecord as error:
            self._note(file, error.at, error.message)
        return entry.end

    def _record(self, file: _File, entry: Entry) -> None:
        start = entry.words[0].at
        if not entry.blank:
            file.owner = name(entry.next("an owner"), entry.origin).lower()
        elif not file.owner:
            raise BadRecord(start, "the first record of a file must say its owner")
        owner = file.owner
        ttl = -1
        rtype: int | None = None
        cls = 0
        while rtype is None:
            word = entry.next("a record type")
            text = word.text.decode("ascii", "replace").upper()
            if not word.quoted and ttl < 0 and (seconds := read_ttl(word.text)) is not None:
                ttl = seconds
                if ttl > iana.MAX_TTL:
                    raise BadRecord(
                        word.at, f"a TTL of {ttl} seconds, at most {iana.MAX_TTL} are allowed (RFC 2181, section 8)"
                    )
            elif not cls and iana.class_number(text) is not None and text != "ANY":
                cls = iana.class_number(text) or 0
                if cls != iana.IN:
                    raise BadRecord(word.at, f"class {text}: only IN is served")
            else:
                rtype = iana.type_number(text)
                if rtype is None:
                    raise BadRecord(word.at, f'unknown type "{shown(word.text)}"')
        if rtype in types.NO_DATA:
            raise BadRecord(
                entry.words[entry.i - 1].at, f"a record of type {iana.type_text(rtype)} cannot stand in a zone"
            )
        rdata = types.read(rtype, entry)
        if ttl >= 0:
            if not self.ttl_said:
                self.ttl = ttl
        elif self.ttl >= 0:
            ttl = self.ttl
        elif rtype == iana.SOA:
            ttl = self.ttl = min(int.from_bytes(rdata[-4:], "big"), iana.MAX_TTL)
            self._note(
                file, start, f"no TTL before the first record: the SOA's minimum counts, {ttl} seconds", fatal=False
            )
        else:
            raise BadRecord(start, "no TTL: neither the record nor one before it nor $TTL says one")
        self._add(file, start, owner, rtype, ttl, rdata)

    def _add(self, file: _File, at: int, owner: bytes, rtype: int, ttl: int, rdata: bytes) -> None:
        if not is_within(owner, self.origin):
            self._outside(file, at, owner)
            return
        key = rtype
        if rtype == iana.RRSIG:
            key |= (rdata[0] << 8 | rdata[1]) << SIGNED
        elif rtype in (iana.CNAME, iana.SOA, iana.DNAME):
            place = self.places.setdefault((owner, rtype), (file, at))
            known = self.names.get(owner, {}).get(rtype)
            if rtype != iana.CNAME and known is not None and rdata not in known[1:]:  # CNAMEs are judged at the end
                first = place[0].data.count(b"\n", 0, place[1]) + 1
                raise BadRecord(
                    at, f"a second {iana.type_text(rtype)} of {to_text(owner)}; the first is in line {first}"
                )
        node = self.names.setdefault(owner, {})
        found = node.get(key)
        if found is None:
            node[key] = [ttl, rdata]
        else:
            if found[0] != ttl:
                self._mixed(file, at, owner, rtype, found, ttl)
            found.append(rdata)
        self.count += 1

    def _outside(self, file: _File, at: int, owner: bytes) -> None:
        self.outside += 1
        if self.outside <= 3:
            self._note(file, at, f"{to_text(owner)} is not in zone {to_text(self.origin)}: left out", fatal=False)

    def _mixed(self, file: _File, at: int, owner: bytes, rtype: int, found: list[Any], ttl: int) -> None:
        """RFC 2181, section 5.2: the TTLs of an RRset are one."""
        found[0] = min(found[0], ttl)
        if (owner, rtype) not in self.mixed and len(self.mixed) < MAX_PROBLEMS:
            self.mixed.add((owner, rtype))
            text = (
                f"the {iana.type_text(rtype)} records of {to_text(owner)} differ in TTL: the lowest counts, {found[0]} "
                f"seconds"
            )
            self._note(file, at, text, fatal=False)

    # Directives.

    def _directive(self, file: _File, entry: Entry) -> None:
        word = entry.next("")
        what = word.text.upper()
        if what == b"$TTL":
            value = entry.next("a TTL")
            ttl = read_ttl(value.text)
            if ttl is None or ttl > iana.MAX_TTL:
                raise BadRecord(value.at, f'expected a TTL such as 3600 or 1h, found "{shown(value.text)}"')
            self.ttl = ttl
            self.ttl_said = True
        elif what == b"$ORIGIN":
            file.origin = name(entry.next("a name"), entry.origin)
        elif what == b"$INCLUDE":
            self._include(file, entry)
            return
        elif what == b"$GENERATE":
            self._generate(file, entry)
            return
        else:
            raise BadRecord(
                word.at, f'unknown directive "{shown(word.text)}": $TTL, $ORIGIN, $INCLUDE and $GENERATE are known'
            )
        entry.done()

    def _include(self, file: _File, entry: Entry) -> None:
        word = entry.next("a file")
        origin = name(entry.next("a name"), entry.origin) if entry.left() else file.origin
        entry.done()
        if file.depth >= MAX_DEPTH:
            raise BadRecord(word.at, f"$INCLUDE is more than {MAX_DEPTH} deep: does a file include itself?")
        path = os.path.join(os.path.dirname(file.path), os.fsdecode(word.text))
        try:
            self._read(path, origin, file.depth + 1)
        except (OSError, ValueError) as error:
            raise BadRecord(word.at, f"$INCLUDE {path}: {getattr(error, 'strerror', None) or error}") from None

    def _generate(self, file: _File, entry: Entry) -> None:
        start = entry.words[0].at
        for made in expanded(entry):
            self.generated += 1
            if self.generated > MAX_GENERATED:
                raise BadRecord(start, f"$GENERATE makes more than {MAX_GENERATED} records")
            try:
                self._record(file, made)
            except BadRecord as error:
                raise BadRecord(start, f"$GENERATE: {error.message}") from None

    # Judging.

    def _judge(self) -> None:
        """Notes what the records are as a whole that no zone is."""
        names, origin = self.names, self.origin
        apex = names.get(origin, {})
        first = self.seen[:1] or [Seen("zone", None)]
        whole = _File(first[0].path, b"", origin, 0)
        if iana.SOA not in apex:
            self._note(whole, 0, f"no SOA of {to_text(origin)}")
        elif iana.NS not in apex:
            self._note(whole, 0, f"no NS of {to_text(origin)} (RFC 1034, section 4.2.1)", fatal=False)
        for (owner, rtype), (file, at) in self.places.items():
            node = names.get(owner, {})
            if rtype == iana.SOA:
                if owner != origin:
                    self._note(file, at, f"an SOA of {to_text(owner)}, which is not the zone's apex", fatal=False)
            elif rtype == iana.CNAME and iana.CNAME in node:
                # RFC 1034, section 3.6.2; RFC 4034, sections 3 and 4; RFC 2535 allowed KEY too.
                other = len(node) > 1 and [
                    key for key in node if key & 0xFFFF not in (iana.CNAME, iana.RRSIG, iana.NSEC)
                ]
                if other:
                    text = f"{to_text(owner)} has a CNAME beside {iana.type_text(other[0])}: a CNAME stands alone"
                    self._note(file, at, f"{text} (RFC 1034, section 3.6.2)")
                elif len(node[iana.CNAME]) > 2 and len(set(node[iana.CNAME][1:])) > 1:
                    self._note(file, at, f"{to_text(owner)} has more than one CNAME (RFC 2181, section 10.1)")
        if self.outside > 3:
            text = f"{self.outside} records are not in zone {to_text(origin)}: left out"
            self.problems.append(Problem(whole.path, 1, 1, text, False))


def _keep(known: dict[bytes, bytes], text: bytes, made: bytes) -> None:
    if len(known) >= _KEPT:
        known.clear()
    known[text] = made
