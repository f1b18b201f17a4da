"""Lists of names that are treated in some way: domain lists, hosts files, response policy zones
(draft-vixie-dnsop-dns-rpz); and a table of what they say that is small and is asked without being unpacked.

Theory of operation. A table is one run of octets: a head, an open-addressing hash table of names by CRC-32, one entry
for each name, and the records that policy zones give in place of others. An entry says what is done with the name
itself and what with the names below it. One million names take some 35 MiB so. A query costs a look-up for each of its
labels; the closest name that says something counts. The CRC of a name is not a secret, but what is in the table is the
list's and not the client's: a client cannot make probes long.

A large file and every policy zone is read by a child process (`python -m kdns.namelist PATH`, with a Request on its
standard input), which prints the table. Small ones are read in steps on the loop.

Laws: a line that is not understood is counted and left out, and the first one is said with its number. A file with more
lines that are not understood than others is not a list (a page that says that a download failed): it is refused whole.
Of a name that stands twice the first counts.
"""

import os
import re
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from struct import Struct
from typing import Any, Final, final
from zlib import crc32

import msgspec

from kdns import tables
from kdns.dns import iana
from kdns.dns.errors import BadName
from kdns.dns.name import MAX_NAME, ROOT, from_plain, from_text, is_within, labels, to_text
from kdns.zonefile.reader import MasterFile

FORMATS: Final = ("auto", "domains", "hosts", "rpz")
# What is done with a name.
NOTHING: Final = 0
LISTED: Final = 1  # what the configuration says
NXDOMAIN: Final = 2
NODATA: Final = 3
PASS: Final = 4
DROP: Final = 5
TCP_ONLY: Final = 6
RECORDS: Final = 7  # other records

MAX_FILE: Final = 128 << 20  # octets; lists of one million names have some 25 MB
MAX_LINE: Final = 4096  # octets; a name has 253, and a hosts line some ten of them
STEP: Final = 100  # lines read, or entries linked, before others may run: some 0.3 ms
_SHOWN: Final = 60  # characters of a line that are shown
_HEAD: Final = Struct("=4sIIIIII")  # magic, names, slots, octets of entries, of records, of the report; flags
_MAGIC: Final = b"knl1"
_BELOW: Final = 1  # the flag: some entries are for names below theirs
_WIDE: Final = 2  # the flag: entries end with the places of records, of the name itself and of those below
_ENTRY: Final = 3  # octets before the name: its length, what is done with it, what with those below
_PLACES: Final = Struct("=II")
_PLAIN: Final = re.compile(r"[a-z0-9_.-]+")
# Addresses that hosts files lead unwanted names to; a line with another one is an ordinary hosts entry.
_SINKS: Final = frozenset(("0.0.0.0", "127.0.0.1", "::", "::1", "0:0:0:0:0:0:0:0", "0:0:0:0:0:0:0:1"))
# Names that hosts lists carry over from /etc/hosts.
_OWN: Final = frozenset(
    ("localhost", "localhost.localdomain", "local", "broadcasthost", "ip6-localhost", "ip6-loopback", "0.0.0.0")
)
# The special targets of policy zones: section 3 of the draft.
_ACTIONS: Final = {
    ROOT: NXDOMAIN, b"\1*\0": NODATA, b"\x0crpz-passthru\0": PASS, b"\x08rpz-drop\0": DROP,
    b"\x0crpz-tcp-only\0": TCP_ONLY,
}  # fmt: skip
_WORDS: Final = {
    b".": NXDOMAIN, b"*.": NODATA, b"rpz-passthru.": PASS, b"rpz-drop.": DROP, b"rpz-tcp-only.": TCP_ONLY,
}  # fmt: skip
# Nearly all lines of policy zones: a name and one of these targets.
_USUAL: Final = re.compile(
    rb"([-A-Za-z0-9_.*]+)[ \t]+(?:[0-9]{1,9}[ \t]+)?(?:IN[ \t]+)?CNAME[ \t]+"
    rb"(\.|\*\.|rpz-passthru\.|rpz-drop\.|rpz-tcp-only\.)[ \t\r]*(?:;.*)?",
    re.I,
)
_ORIGIN: Final = re.compile(rb"^\$ORIGIN[ \t]+(\S+)|^([-A-Za-z0-9_.]+\.)[ \t][^;\n]*\bSOA\b", re.M | re.I)
_TRIGGERS: Final = (b"rpz-ip", b"rpz-client-ip", b"rpz-nsdname", b"rpz-nsip")


class BadList(Exception):
    """A file is not a list; the text is one line."""


class Request(msgspec.Struct):
    """How a file is read: its format, and whether names count for themselves alone (`exact`)."""

    format: str
    exact: bool


class Report(msgspec.Struct):
    """What was found while a file was read: lines that are not understood, the first of them, and triggers of policy
    zones that are not supported, by their kind.
    """

    format: str = "domains"
    bad: int = 0
    first: int = 0
    text: str = ""
    ignored: dict[str, int] = {}


def name_of(word: str) -> bytes | None:
    """The lower-cased wire name of a word; None where it is none, or could not be a host's."""
    word = word.lower()
    return from_plain(word) if _PLAIN.fullmatch(word) else None


@final
class Builder:
    """Makes a table. `read` and `link` yield where others may run. Raises BadList."""

    def __init__(self, request: Request) -> None:
        self.format = request.format
        self.exact = request.exact
        self.report = Report(request.format, ignored={})
        self.entries = bytearray(_ENTRY)  # so that no entry stands at 0
        self.records = bytearray(4)
        self.places = array("I")
        self.slots = array("I")
        self.count = 0
        self.flags = 0

    def add(self, name: bytes, itself: int, below: int, place: int = 0) -> None:
        """Adds an entry; `place` is that of its records."""
        self.places.append(len(self.entries))
        self.entries += bytes((len(name), itself, below)) + name
        if self.flags & _WIDE:
            self.entries += _PLACES.pack(place if itself else 0, place if below else 0)
        if below:
            self.flags |= _BELOW

    def read(self, data: bytes) -> Iterator[None]:
        """Takes the lines of a file."""
        if b"\0" in data[:4096]:
            raise BadList("it is not text")
        if self.format == "auto":
            self.format = format_of(data)
        self.report.format = self.format
        if self.format == "rpz":
            yield from self._policies(data)
            return
        take = self._hosts if self.format == "hosts" else self._domains
        good = number = 0
        for number, line in enumerate(_lines(data), 1):
            if number % STEP == 0:
                yield
            found = take(line)
            if found:
                good += 1
            elif found is False:
                self._bad(number, line)
        if self.report.bad > good:
            raise BadList(
                f"line {self.report.first}: it is not a list of names: {self.report.bad} lines are not understood, the "
                f"first of them: {self.report.text!r}"
            )

    def _bad(self, number: int, line: bytes) -> None:
        report = self.report
        if not report.bad:
            report.first, report.text = number, line[:_SHOWN].decode(errors="replace")
        report.bad += 1

    def _domains(self, line: bytes) -> bool | None:
        """Takes a line of a list of domains; None: it says nothing, False: it is not understood."""
        text = line.decode(errors="replace").strip()
        if text.startswith(("#", "!", "[Adblock", ";")):
            return None
        text = text.partition(" #")[0].partition("\t#")[0].rstrip()
        if not text:
            return None
        done = LISTED
        if text.startswith(("||", "@@||")):  # AdBlock's form: the name and all below
            if text[0] == "@":
                text, done = text[2:], PASS
            text = text[2:]
            if not text.endswith("^"):
                return False
            text = text[:-1]
        itself = True
        if text.startswith("*."):
            text, itself = text[2:], False
        name = name_of(text)
        if name is None:
            return False
        self.add(name, done if itself else NOTHING, NOTHING if self.exact and itself else done)
        return True

    def _hosts(self, line: bytes) -> bool | None:
        words = line.partition(b"#")[0].decode(errors="replace").split()
        if not words:
            return None
        if len(words) < 2 or not _is_address(words[0]):
            return False
        if words[0].lower() not in _SINKS:
            self.report.ignored["other addresses"] = self.report.ignored.get("other addresses", 0) + 1
            return True
        good = True
        for word in words[1:]:
            if word.lower() in _OWN:
                continue
            name = name_of(word)
            if name is None:
                good = False
            else:
                self.add(name, LISTED, NOTHING)
        return good

    def _policies(self, data: bytes) -> Iterator[None]:
        """Takes a policy zone. Its usual lines are taken as they are met; all others go to the reader of zone files."""
        self.flags |= _WIDE
        match = _ORIGIN.search(data)
        try:
            zone = from_text((match[1] or match[2]).decode("ascii", "replace")).lower() if match else b"\3rpz\0"
        except BadName:
            zone = b"\3rpz\0"
        origin = zone
        rest: list[bytes] = []
        owner = b""  # of the usual line right before
        for number, line in enumerate(_lines(data), 1):
            if number % STEP == 0:
                yield
            if usual := _USUAL.fullmatch(line):
                owner = usual[1]
                name = _absolute(owner, origin)
                if name is not None and is_within(name, zone):
                    self._policy(name, zone, _WORDS[usual[2].lower()], 0)
                    rest.append(b"")
                    continue
            if line[:7].upper() == b"$ORIGIN":
                words = line.split()
                origin = (_absolute(words[1], origin) if len(words) > 1 else None) or origin
            if line[:1] in (b" ", b"\t") and owner:
                line = owner + line
            owner = owner if not line.strip() else b""
            rest.append(line)
        source = MasterFile(zone)
        source.read_text(b"\n".join(rest) + b"\n", "")
        for problem in source.problems:
            if problem.fatal:
                raise BadList(f"line {problem.line}: {problem.message}")
            self.report.bad += 1
            if self.report.bad == 1:
                self.report.first, self.report.text = problem.line, problem.message
        for name, types in source.names.items():
            target = types.get(iana.CNAME)
            if target is not None and len(types) == 1 and target[1].lower() in _ACTIONS:
                self._policy(name, zone, _ACTIONS[target[1].lower()], 0)
                continue
            if target is not None and target[1].lower() == _trigger(name, zone):
                self._policy(name, zone, PASS, 0)  # the old form of rpz-passthru: a CNAME to the name itself
                continue
            kept = [(key, found[0], found[1:]) for key, found in types.items() if key < 1 << 16]
            packed = msgspec.msgpack.encode(kept)
            place = len(self.records)
            if self._policy(name, zone, RECORDS, place):
                self.records += len(packed).to_bytes(4, "big") + packed

    def _policy(self, name: bytes, zone: bytes, done: int, place: int) -> bool:
        trigger = _trigger(name, zone)
        if trigger == ROOT:
            return False  # the zone's own SOA and NS
        last = labels(trigger)[-1]
        if last in _TRIGGERS:
            kind = last.decode()
            self.report.ignored[kind] = self.report.ignored.get(kind, 0) + 1
            return False
        if trigger.startswith(b"\1*"):
            self.add(trigger[2:], NOTHING, done, place)
        else:
            self.add(trigger, done, NOTHING, place)
        return True

    def link(self) -> Iterator[None]:
        """Finds each name's place, and makes one entry of those that stand twice."""
        slots = self.slots = tables.slots(len(self.places))
        mask = len(slots) - 1
        entries = self.entries
        for number, place in enumerate(self.places, 1):
            if number % STEP == 0:
                yield
            begin = place + _ENTRY
            size = entries[place]
            key = bytes(entries[begin : begin + size])
            slot = crc32(key) & mask
            while (there := slots[slot]) and not (entries[there] == size and entries.startswith(key, there + _ENTRY)):
                slot = (slot + 1) & mask
            if not there:
                slots[slot] = place
                self.count += 1
                continue
            for which in (1, 2):
                if entries[place + which] and not entries[there + which]:
                    entries[there + which] = entries[place + which]
                    if self.flags & _WIDE:
                        at = _ENTRY + size + 4 * (which - 1)
                        entries[there + at : there + at + 4] = entries[place + at : place + at + 4]

    def parts(self) -> list[bytes | bytearray]:
        """The table, in pieces."""
        report = msgspec.msgpack.encode(self.report)
        head = _HEAD.pack(
            _MAGIC, self.count, len(self.slots), len(self.entries), len(self.records), len(report), self.flags
        )
        return [head, self.slots.tobytes(), self.entries, self.records, report]


@final
class Hit:
    """What a list says of a name: what is done, the name that says so (`*.` before it: of those below), and records
    (type, TTL, rdatas) that are given in place of others.
    """

    __slots__ = ("below", "done", "name", "records")

    def __init__(self, done: int, name: bytes, below: bool, records: Sequence[tuple[int, int, list[bytes]]]) -> None:
        self.done = done
        self.name = name
        self.below = below
        self.records = records

    def __str__(self) -> str:
        return ("*." if self.below else "") + to_text(self.name).removesuffix(".")


@final
class Table:
    """A made table. Raises ValueError for octets that are none."""

    def __init__(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        if len(data) < _HEAD.size:
            raise ValueError("no table of names")
        magic, self.count, slots, size, records, report, self.flags = _HEAD.unpack_from(data)
        begin = _HEAD.size + 4 * slots
        if magic != _MAGIC or len(data) != begin + size + records + report:
            raise ValueError("no table of names")
        self._slots = view[_HEAD.size : begin].cast("I")
        self._mask = slots - 1
        self._entries = view[begin : begin + size]
        self._records = view[begin + size : begin + size + records]
        self.report = msgspec.msgpack.decode(view[begin + size + records :], type=Report)

    def find(self, name: bytes, starts: Sequence[int]) -> Hit | None:
        """What is said of a lower-cased wire name whose labels begin at `starts`: by itself, else by the closest name
        above.
        """
        if not self.count:
            return None
        slots, entries, mask = self._slots, self._entries, self._mask
        for start in starts:
            key = name[start:]
            size = len(key)
            slot = crc32(key) & mask
            while place := slots[slot]:
                if entries[place] == size and entries[place + 3 : place + 3 + size] == key:
                    done = entries[place + 2 if start else place + 1]
                    if done:
                        return self._hit(done, key, start > 0, place)
                    break
                slot = (slot + 1) & mask
            if not self.flags & _BELOW:
                return None
        return None

    def _hit(self, done: int, key: bytes, below: bool, place: int) -> Hit:
        records: list[tuple[int, int, list[bytes]]] = []
        if done == RECORDS:
            at = _PLACES.unpack_from(self._entries, place + _ENTRY + len(key))[below]
            size = int.from_bytes(self._records[at : at + 4], "big")
            records = msgspec.msgpack.decode(
                self._records[at + 4 : at + 4 + size], type=list[tuple[int, int, list[bytes]]]
            )
        return Hit(done, key, below, records)


def table(entries: Iterable[tuple[bytes, int, int]]) -> Table:
    """A table of a few names: each with what is done with it, and with those below."""
    builder = Builder(Request("domains", False))
    for name, itself, below in entries:
        builder.add(name, itself, below)
    return Table(tables.finish(builder))


def _lines(data: bytes) -> Iterator[bytes]:
    """The lines of a file without their ends; of a very long one its beginning, which no reader understands."""
    at, end = 0, len(data)
    while at < end:
        stop = data.find(b"\n", at)
        if stop < 0:
            stop = end
        if stop - at > MAX_LINE:
            yield data[at : at + _SHOWN] + b"\xff"
        else:
            yield data[at:stop]
        at = stop + 1


def format_of(data: bytes) -> str:
    """The format of a file by its first line that says something."""
    for line in _lines(data):
        text = line.strip()
        if not text or text[:1] in (b"#", b"!", b";", b"["):
            continue
        words = text.decode(errors="replace").split()
        if text[:1] == b"$" or "SOA" in words or (len(words) > 2 and "CNAME" in words):
            return "rpz"
        if len(words) > 1 and _is_address(words[0]):
            return "hosts"
        return "domains"
    return "domains"


def _is_address(word: str) -> bool:
    if word.lower() in _SINKS:
        return True
    try:
        ip_address(word.partition("%")[0])
    except ValueError:
        return False
    return True


def _absolute(word: bytes, origin: bytes) -> bytes | None:
    """The lower-cased wire name of a word in a zone file; None where it is none."""
    if word == b"@":
        return origin
    try:
        name = from_text(word.decode("ascii", "replace")).lower()
    except BadName:
        return None
    if word.endswith(b"."):
        return name
    name = name[:-1] + origin
    return name if len(name) <= MAX_NAME else None


def _trigger(name: bytes, zone: bytes) -> bytes:
    """The name that a policy is for: its owner less the policy zone's own labels."""
    return name[: len(name) - len(zone)] + ROOT


def read_file(path: str) -> bytes:
    """A regular file's octets. Raises OSError, BadList."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadList("a pipe or a device may have 256 KiB")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise BadList(f"it is larger than {MAX_FILE >> 20} MiB")
    return data


def _child(path: str) -> int:
    """Prints the table of a file; a line on stderr and 1 where it cannot be read."""
    os.nice(5)  # the server has the processor first
    builder = Builder(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request))
    try:
        data: Any = read_file(path)
        for _ in builder.read(data):
            pass
    except (OSError, BadList) as error:
        sys.stderr.write(f"{getattr(error, 'strerror', None) or error}\n")
        return 1
    del data
    tables.print_table(builder)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
