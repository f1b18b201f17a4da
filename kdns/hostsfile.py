"""Files like /etc/hosts (hosts(5)): their lines, and a table of what they say that is small and is asked without being
unpacked.

Theory of operation. A table is one run of octets: a head, two open-addressing hash tables (of names and of addresses,
by CRC-32), and one entry for each pair of name and address. An entry holds both, and where the next entry of the same
name and the next of the same address stand. One million names take some 50 MB so, where Python's own objects need ten
times that. The CRC of a name is not a secret, but what is in the table is the file's and not the client's: a client
cannot make probes long.

A table is made in two steps that give way after some lines: `read` adds entries, `link` finds the chains. For a large
file a child process does it (`python -m kdns.hostsfile PATH`, with a Request on its standard input) and prints the
table.

Laws: entries of a name or an address come in the file's order, then the Corefile's; of one name the first
MAX_RECORDS count, as no message has room for more.
"""

import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain
from struct import Struct
from typing import BinaryIO, Final, final
from zlib import crc32

import msgspec

from kdns import tables
from kdns.address import unmapped
from kdns.dns.errors import BadName
from kdns.dns.name import ROOT, closest, from_plain, from_text

# A message holds at most 65,535 octets, and a PTR or A record takes 15: more records than these fit in none.
MAX_RECORDS: Final = 4_400
# Names of an address: more take over 4 ms to unpack, and would hold everybody up.
MAX_NAMES: Final = 2_000
MAX_FILE: Final = 128 << 20  # octets; block lists have some 5 MB, one million names some 30
STEP: Final = 100  # lines read, or entries linked, before others may run: half a millisecond
# Octets of a line. Ten thousand names have room; a file without a line's end would be held whole.
MAX_LINE: Final = 1 << 20
_PIECE: Final = 64 << 10  # octets of a file cut into lines at once
_WILDCARD: Final = b"\x01*"
_HEAD: Final = Struct("=4sIIII")  # magic, entries counted, slots of names, slots of addresses, octets of entries
_MAGIC: Final = b"kht1"
_ENTRY: Final = Struct("=IIBB")  # next entry of the name, of the address; octets of the address, of the name


class Request(msgspec.Struct):
    """What a table is made of beside the file: zones whose names count, lines of the Corefile, and whether addresses
    are found.
    """

    zones: tuple[bytes, ...]
    inline: tuple[str, ...]
    reverse: bool


def words(line: str) -> list[str]:
    """The words of a line; none of a comment."""
    return line.partition("#")[0].split()


def read_line(line: str) -> tuple[bytes | None, list[bytes]]:
    """The packed address and the lower-cased wire names of a line; (None, []) for a comment or what cannot be read."""
    found = words(line)
    if len(found) < 2:
        return None, []
    address = _address(found[0])
    if address is None:
        return None, []
    names = []
    for word in found[1:]:
        try:
            names.append(_name(word))
        except BadName:
            continue
    return address, names


@lru_cache(1024)
def _address(word: str) -> bytes | None:
    try:
        return unmapped(ip_address(word.partition("%")[0]).packed)
    except ValueError:
        return None


def _name(word: str) -> bytes:
    """from_text in lower case, quicker for names without escapes."""
    plain = from_plain(word) if "\\" not in word and word.isascii() else None
    return from_text(word).lower() if plain is None else plain


def lines_of(file: BinaryIO) -> Iterator[str]:
    """The lines of an open file, which is never held as a whole; octets that are not UTF-8 are replaced, and what
    follows the first MAX_LINE octets of a line is passed over.
    """
    rest: list[bytes] = []  # of a line whose end is still to come; joined once, however long it is
    size = 0
    while piece := file.read(_PIECE):
        if size >= MAX_LINE:
            piece = b"".join(piece.partition(b"\n")[1:])
        whole, newline, beginning = piece.rpartition(b"\n")
        if newline:
            yield from b"".join((*rest, whole)).decode(errors="replace").splitlines()
            rest, size = [], 0
        rest.append(beginning)
        size += len(beginning)
    yield from b"".join(rest).decode(errors="replace").splitlines()


@final
class Builder:
    """Makes a table. `read` and `link` yield where others may run."""

    def __init__(self, request: Request) -> None:
        self.zones = () if ROOT in request.zones else request.zones
        self.inline = request.inline
        self.reverse = request.reverse
        self.count = 0  # as CoreDNS counts: names and reverse names, wildcards not
        self.entries = bytearray(_ENTRY.size)  # so that no entry stands at 0
        self.places = array("I")
        self.names = array("I")
        self.addresses = array("I")

    def read(self, lines: Iterable[str]) -> Iterator[None]:
        """Takes the entries of lines, and then of the Corefile's."""
        entries, places = self.entries, self.places
        for number, line in enumerate(chain(lines, self.inline), 1):
            if number % STEP == 0:
                yield
            address, hosts = read_line(line)
            if address is None:
                continue
            for host in hosts:
                if self.zones and closest(host, self.zones) is None:
                    continue
                places.append(len(entries))
                entries += _ENTRY.pack(0, 0, len(address), len(host)) + address + host
                if not host.startswith(_WILDCARD):
                    self.count += 1 + self.reverse

    def link(self) -> Iterator[None]:
        """Chains the entries of each name and of each address."""
        for names in (True, False):
            slots, tails = tables.slots(len(self.places)), tables.slots(len(self.places))
            if names:
                self.names = slots
            elif self.reverse:
                self.addresses = slots
            else:
                return
            mask = len(slots) - 1
            entries = self.entries
            for number, place in enumerate(self.places, 1):
                if number % STEP == 0:
                    yield
                size, length = entries[place + 8], entries[place + 9]
                at = place + _ENTRY.size
                if names:
                    key = bytes(entries[at + size : at + size + length])
                else:
                    if entries.startswith(_WILDCARD, at + size):
                        continue
                    key = bytes(entries[at : at + size])
                slot = crc32(key) & mask
                while (there := slots[slot]) and not _is(entries, there, key, names):
                    slot = (slot + 1) & mask
                if there:
                    tail = tails[slot] + (0 if names else 4)
                    entries[tail : tail + 4] = place.to_bytes(4, sys.byteorder)
                else:
                    slots[slot] = place
                tails[slot] = place

    def parts(self) -> list[bytes | bytearray]:
        """The table, in pieces."""
        head = _HEAD.pack(_MAGIC, self.count, len(self.names), len(self.addresses), len(self.entries))
        return [head, self.names.tobytes(), self.addresses.tobytes(), self.entries]


def _is(entries: "bytearray | memoryview[int]", place: int, key: bytes, names: bool) -> bool:
    """Whether an entry is of this name (or address)."""
    size = entries[place + 8]
    at = place + _ENTRY.size
    if names:
        return entries[place + 9] == len(key) and bytes(entries[at + size : at + size + len(key)]) == key
    return size == len(key) and bytes(entries[at : at + size]) == key


@final
class Table:
    """A made table. Raises ValueError for octets that are none."""

    def __init__(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        if len(data) < _HEAD.size:
            raise ValueError("no table of hosts")
        magic, self.count, names, addresses, size = _HEAD.unpack_from(data)
        begin = _HEAD.size
        middle = begin + 4 * names
        end = middle + 4 * addresses
        if magic != _MAGIC or len(data) != end + size:
            raise ValueError("no table of hosts")
        self._names = view[begin:middle].cast("I")
        self._addresses = view[middle:end].cast("I")
        self._entries = view[end:]

    def addresses(self, name: bytes) -> tuple[list[bytes], list[bytes]]:
        """The packed IPv4 and IPv6 addresses of a lower-cased wire name, in the order of the lines, without repeats."""
        found: tuple[dict[bytes, None], dict[bytes, None]] = ({}, {})
        entries = self._entries
        for place in self._chain(name, True):
            at = place + _ENTRY.size
            size = entries[place + 8]
            found[size == 16][bytes(entries[at : at + size])] = None
        return list(found[0]), list(found[1])

    def names(self, address: bytes) -> list[bytes]:
        """The names of a packed address, in the order of the lines, without repeats; the first MAX_NAMES entries."""
        found: dict[bytes, None] = {}
        entries = self._entries
        for place in self._chain(address, False):
            at = place + _ENTRY.size + entries[place + 8]
            found[bytes(entries[at : at + entries[place + 9]])] = None
        return list(found)

    def _chain(self, key: bytes, names: bool) -> Iterator[int]:
        """The places of a key's entries, as many as are given."""
        slots = self._names if names else self._addresses
        mask = len(slots) - 1
        if mask < 0:
            return
        entries = self._entries
        slot = crc32(key) & mask
        while (place := slots[slot]) and not _is(entries, place, key, names):
            slot = (slot + 1) & mask
        which = 0 if names else 1
        for _ in range(MAX_RECORDS if names else MAX_NAMES):
            if not place:
                return
            yield place
            place = _ENTRY.unpack_from(entries, place)[which]


def _child(path: str) -> int:
    """Prints the table of a file; a line on stderr and 1 where it cannot be read."""
    os.nice(5)  # the server has the processor first
    builder = Builder(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request))
    try:
        with open(path, "rb") as file:
            for _ in builder.read(lines_of(file)):
                pass
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    tables.print_table(builder)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
