"""The reply cache: finished replies for questions that were asked before, given again for one look-up.

What may be given again is decided by the notes of the query that made the reply (kdns.plugin.request): nothing was read
but what the key holds, and every validity still holds. So a reply depends on the data and the question, and never on
who asked before: the same table serves positive, negative, cached and rotated answers.

Key: transport and address family, the client's audience (which plugins that tell clients apart work out before), RD, AD
and CD, the lower-cased name, type and class, and of an OPT its DO and CO bits, the octets a reply may have, and which
of a few well-known options are there. Other options are left out of it, because nobody reads them (RFC 6891, section
6.1.2: an option that is not understood is ignored); once a plugin has read one, queries that carry it are answered in
full. The question itself is echoed from the query, with its letter case.

A query that is unusual in any way has no key and is answered in full: other header bits, client subnets, a TSIG,
another EDNS version, a malformed option.

Bounds: octets, in two generations. New entries go into the young one; when that is full it becomes the old one, and the
old one's entries are gone, but for those that were asked for since. A reply is stored when its question comes for the
second time: most of the names that do not exist are asked for once.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, final

from kdns.dns import edns as _edns
from kdns.dns import iana
from kdns.dns.answer import FOREVER, Answer, Validity
from kdns.dns.edns import MAX_OPTIONS, UDP_SIZE, cookie_fits
from kdns.dns.query import Question
from kdns.dns.render import aged
from kdns.plugin.base import Meter, Plugin, overrides
from kdns.plugin.outcome import Outcome
from kdns.plugin.request import Request

# Octets of all entries, both generations; some 450 an entry, so about 37,000 replies. A cluster of 10,000 Services
# whose clients ask for A and AAAA fits.
MAX_OCTETS: Final = 16 << 20
# What an entry costs beside its key and its reply: the object, a dictionary's slot, tuples.
ENTRY_OCTETS: Final = 320
# Places for marks of questions that came once; a power of two. An octet each: it stays in the processor's cache.
SEEN: Final = 1 << 16

UDP: Final = 0
TCP: Final = 2
AUDIENCE: Final = 2  # the bits below an audience's number in the `transport` of a look-up
IPV6: Final = 1  # beside the transport: an address tuple of IPv6 has four parts

_OPT_TYPE: Final = b"\0\0\x29"
# The usual headers behind the id: RD, AD, CD in any combination, one question, and perhaps one additional record.
_HEADERS: Final = {
    bytes((rd, ad | cd, 0, 1, 0, 0, 0, 0, 0, additional)): rd << 1 | (ad >> 3) | (cd >> 1) | additional
    for rd in (0, 1)
    for ad in (0, 0x20)
    for cd in (0, 0x10)
    for additional in (0, 1)
}
# Which of the options whose presence is in the key a query has.
_PRESENT: Final = {_edns.NSID: 1, _edns.COOKIE: 2, _edns.KEEPALIVE: 4, _edns.PADDING: 8}
_ANY_OPTION: Final = -1


@final
class CachedReply:
    """A finished reply. `changes` is when its TTLs age, `dies` when it is another reply (monotonic seconds)."""

    __slots__ = (
        "answer",
        "block",
        "changes",
        "dies",
        "head",
        "key",
        "meters",
        "observers",
        "octets",
        "question",
        "rotation",
        "rotations",
        "size",
        "tail",
        "ttls",
        "validities",
        "validity",
    )  # fmt: skip

    def __init__(self, key: bytes, answer: Answer, validity: Validity, head: bytes, tail: bytes, size: int) -> None:
        self.key = key
        self.answer = answer
        self.validity = validity
        self.validities: list[Validity] | None = None  # of what was looked up on the way
        self.dies = FOREVER
        self.changes = FOREVER
        self.head = head  # ten octets behind the id
        self.tail = tail  # what follows the question
        self.rotations: list[bytes] | None = None  # tails, one for each order of the records
        self.ttls: Sequence[
            Sequence[int]
        ] = ()  # where the TTLs that age stand in the tail, or in each of the rotations
        self.rotation = 0
        self.size = size  # octets of the reply without its OPT
        self.octets = ENTRY_OCTETS + len(key) + len(tail)
        self.meters: tuple[Meter, ...] = ()
        # For observers: the block that answered, and the question as its plugins left it.
        self.observers: tuple[Callable[[Request, Outcome], None], ...] = ()
        self.block: Any = None
        self.question: Question | None = None

    def next_tail(self) -> bytes:
        """What follows the question, the records in the next of their orders."""
        rotations = self.rotations
        if rotations is None:
            return self.tail
        rotation = self.rotation + 1
        if rotation >= len(rotations):
            rotation = 0
        self.rotation = rotation
        return rotations[rotation]

    def holds(self) -> bool:
        """True if this is still what the question gets; brings its TTLs up to date."""
        if not self.validity.valid:
            return False
        if self.validities is not None:
            for validity in self.validities:
                if not validity.valid:
                    return False
        if self.changes != FOREVER:
            now = monotonic()
            if now >= self.changes:
                return self._age(now)
        return True

    def _age(self, now: float) -> bool:
        if now >= self.dies:
            return False
        until = self.validity.until
        ttl = int(until - now)
        if ttl < 1:
            ttl = 1
        changes = until - ttl
        self.changes = changes if ttl > 1 and changes < self.dies else self.dies
        rotations = self.rotations
        if rotations is None:
            self.tail = aged(self.tail, self.ttls[0], ttl)
        else:
            for i, places in enumerate(self.ttls):
                rotations[i] = aged(rotations[i], places, ttl)
        return True


@final
class ReplyCache:
    """The finished replies of one listener."""

    def __init__(self, max_octets: int = MAX_OCTETS) -> None:
        self.half = max_octets // 2
        self.young: dict[bytes, CachedReply] = {}
        self.old: dict[bytes, CachedReply] = {}
        self.octets = 0  # of the young entries
        self.seen = bytearray(SEEN)
        self.watched: set[int] = set()  # options that a plugin has read, so that queries with them are not alike
        # Of the query that was looked up last: its key (empty: it has none), where its question ends, and where its
        # COOKIE option's payload begins (0: it has none) and ends.
        self.key = b""
        self.end = 0
        self.cookie_at = 0
        self.cookie_end = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def clear(self) -> None:
        """Forgets all replies."""
        self.young = {}
        self.old = {}
        self.octets = 0

    def watch(self, code: int) -> None:
        """From now on queries with this option (-1: with any) are answered in full."""
        if code not in self.watched:
            self.watched.add(code)
            self.clear()

    def get(self, data: bytes, transport: int) -> CachedReply | None:
        """The reply to a query, if there is one; `key` and `end` are set in any case."""
        self.key = b""
        self.cookie_at = 0
        form = _HEADERS.get(data[2:12])
        if form is None:
            return None
        total = len(data)
        off = 12
        try:
            size = data[12]
            while size:
                if size > 63:
                    return None
                off += size + 1
                size = data[off]
        except IndexError:
            return None
        end = off + 5
        if off > 266:  # a name over 255 octets
            return None
        if form & 1:
            mark = self._opt(data, end, total)
            if mark < 0:
                return None
        elif end != total:
            return None
        else:
            mark = 0
        # Lower-casing the header and the counts is safe: none of their octets is a letter. Type and class may be.
        tag = ((transport << 4 | form) << 16 | mark).to_bytes(8, "big")
        key = b"".join((tag, data[12:off].lower(), data[off:end]))
        self.key = key
        self.end = end
        entry = self.young.get(key)
        if entry is None:
            entry = self.old.get(key)
            if entry is None:
                return None
            del self.old[key]
            if not entry.holds():
                return None
            self._put(entry)
            return entry
        if entry.holds():
            return entry
        del self.young[key]
        self.octets -= entry.octets
        return None

    def _opt(self, data: bytes, end: int, total: int) -> int:
        """What the key holds of an OPT that is the last record, CO << 22 | size << 5 | DO << 4 | options; -1: no
        key.
        """
        at = end + 11
        if at > total or data[end : end + 3] != _OPT_TYPE or data[end + 6] or data[end + 5]:
            return -1  # another record, another version, an extended code in a query
        if at + (data[end + 9] << 8 | data[end + 10]) != total:
            return -1
        size = data[end + 3] << 8 | data[end + 4]
        if size > UDP_SIZE:
            size = UDP_SIZE
        elif size < 512:
            size = 512
        flags = data[end + 7]
        # Transport and header take the bits from 16 to 21.
        mark = (flags & 0x40) << 16 | size << 5 | (flags & 0x80) >> 3
        if at == total:
            return mark
        if _ANY_OPTION in self.watched:
            return -1
        count = 0
        while at < total:
            count += 1
            if at + 4 > total or count > MAX_OPTIONS:
                return -1
            code = data[at] << 8 | data[at + 1]
            length = data[at + 2] << 8 | data[at + 3]
            at += 4 + length
            if code == _edns.SUBNET:
                return -1
            if code == _edns.COOKIE:
                if not cookie_fits(length):
                    return -1
                if not self.cookie_at:  # RFC 7873, section 5.2: of several the first counts
                    self.cookie_at = at - length
                    self.cookie_end = at
            if code in self.watched:
                return -1
            mark |= _PRESENT.get(code, 0)
        return mark if at == total else -1

    def wanted(self) -> bool:
        """True if the reply to the query that was looked up last should be stored: its question came before.

        Each question leaves a mark of eight bits at one of SEEN places, the next one there takes its place. Two
        questions with the same mark and place are taken for one; then a reply is stored a little early.
        """
        if not self.key:
            return False
        mark = hash(self.key)
        place = mark & SEEN - 1
        mark = mark >> 20 & 0xFF or 1  # zero is a place without a mark
        if self.seen[place] == mark:
            return True
        self.seen[place] = mark
        return False

    def put(self, entry: CachedReply) -> None:
        """Stores a reply, in the place of an older one."""
        before = self.young.get(entry.key)
        if before is not None:
            self.octets -= before.octets
        self._put(entry)

    def _put(self, entry: CachedReply) -> None:
        if self.octets + entry.octets > self.half:
            self.old = self.young
            self.young = {}
            self.octets = 0
        self.young[entry.key] = entry
        self.octets += entry.octets


def entry_for(
    request: Request, answer: Answer, key: bytes, replies: list[bytes], counting: tuple[Plugin, ...]
) -> CachedReply | None:
    """The entry for a reply that was just made, or None where it may not be given again.

    The caller has seen that nothing was read that the key does not hold. `replies` are the whole replies, one for each
    order of the records; `counting` are the block's plugins that meter or observe.
    """
    validity = answer.validity
    root = request.root
    if validity is None or not validity.valid:
        return None
    if answer.rcode == iana.SERVFAIL or replies[0][2] & 2:  # TC
        return None
    if root.validities is not None and not all([noted.valid for noted in root.validities]):
        return None
    end = request._end
    name = request.asked.name
    rotations = answer.rotations
    body = (rotations[0] if rotations else answer).rendered(name)
    entry = CachedReply(key, answer, validity, replies[0][2:12], replies[0][end:], end + len(body.data))
    entry.validities = root.validities
    entry.changes = entry.dies = min(root.until, validity.until)
    if rotations:
        entry.rotations = [reply[end:] for reply in replies]
        entry.octets += sum([len(reply) + 33 for reply in replies])
    if validity.ages:
        entry.changes = 0.0
        entry.ttls = [each.rendered(name).ttls for each in rotations] if rotations else (body.ttls,)
    meters: list[Meter] = []
    observers: list[Callable[[Request, Outcome], None]] = []
    for plugin in counting:
        meter = plugin.meter(request, answer)
        if meter is not None:
            meters.append(meter)
        elif overrides(plugin, "observe"):
            observers.append(plugin.observe)
    entry.meters = tuple(meters)
    if observers:
        entry.observers = tuple(observers)
        entry.block = request.block
        entry.question = request.question
    return entry
