"""Proofs that something is not there, from the NSEC or NSEC3 records that a signed zone holds.

Which records prove what is in RFC 4035, section 3.1.3 (NSEC) and RFC 5155, section 7.2 (NSEC3). kdns proves with what
the zone's signer left; where a record is missing, the proof is short of it.
"""

from base64 import b32encode
from bisect import bisect_right
from collections.abc import Callable
from hashlib import sha1
from typing import Any, Final, Protocol

from kdns.dns import iana
from kdns.dns.name import parent
from kdns.store.node_table import NodeTable
from kdns.store.zone_node import NSEC3, WILDCARD, ZoneNode, canonical_key

# RFC 9276, section 3.1 asks for none; resolvers take up to 150 (or fewer) for secure. More only costs processor time.
MAX_ITERATIONS: Final = 150

Proof = Callable[[ZoneNode, int], None]  # takes a node and the type of the record that proves


class Proofs(Protocol):
    """What a signed zone can prove. Each method hands the records to `give`. `chain` are the names in it, in order."""

    chain: list[bytes]

    def __len__(self) -> int: ...

    def popitem(self) -> Any:
        """Takes the last name out of the chain: the zone is let go, piece by piece."""

    def exists_without(self, name: bytes, give: Proof) -> None:
        """A name exists and has not the type that was asked."""

    def insecure(self, cut: bytes, give: Proof) -> None:
        """A delegation has no DS."""

    def absent(self, name: bytes, encloser: bytes, give: Proof) -> None:
        """A name does not exist, and no wildcard of its closest encloser does."""

    def by_wildcard(self, name: bytes, encloser: bytes, give: Proof) -> None:
        """A name does not exist, so that a wildcard may stand in for it."""

    def wildcard_without(self, name: bytes, encloser: bytes, give: Proof) -> None:
        """A name does not exist, and the wildcard that stands in for it has not the type that was asked."""


class NsecProofs:
    """Proofs from NSEC records. `nodes` are their owners in canonical order, `chain` what they are sorted by."""

    def __init__(self, origin: bytes, chain: list[bytes], nodes: list[ZoneNode]) -> None:
        self.shared = len(origin)
        self.chain = chain
        self.nodes = nodes

    def _before(self, name: bytes, give: Proof) -> None:
        """The NSEC of the name, or of the last one before it."""
        give(self.nodes[bisect_right(self.chain, canonical_key(name, self.shared)) - 1], iana.NSEC)

    def __len__(self) -> int:
        return len(self.chain)

    def popitem(self) -> Any:
        """Takes the last name out of the chain."""
        self.nodes.pop()
        return self.chain.pop()

    def exists_without(self, name: bytes, give: Proof) -> None:
        self._before(name, give)  # an empty non-terminal: the one before it has a next name below it

    def insecure(self, cut: bytes, give: Proof) -> None:
        self._before(cut, give)

    def absent(self, name: bytes, encloser: bytes, give: Proof) -> None:
        self._before(name, give)
        self._before(WILDCARD + encloser, give)

    def by_wildcard(self, name: bytes, encloser: bytes, give: Proof) -> None:
        self._before(name, give)

    def wildcard_without(self, name: bytes, encloser: bytes, give: Proof) -> None:
        self._before(name, give)
        self._before(WILDCARD + encloser, give)


class Nsec3Proofs:
    """Proofs from NSEC3 records. `chain` are the hashed labels in order, `hashed` the nodes by hashed label, perhaps of
    other chains, too.
    """

    def __init__(self, origin: bytes, salt: bytes, iterations: int, chain: list[bytes], hashed: NodeTable) -> None:
        self.origin = origin
        self.salt = salt
        self.iterations = iterations
        self.head = iterations.to_bytes(2, "big") + bytes((len(salt),)) + salt
        self.chain = chain
        self.hashed = hashed

    def __len__(self) -> int:
        return len(self.chain)

    def popitem(self) -> Any:
        """Takes the last name out of the chain."""
        return self.chain.pop()

    def label(self, name: bytes) -> bytes:
        """The hashed label of a lower-cased name (RFC 5155, section 5)."""
        return hashed_label(name, self.salt, self.iterations)

    def _match(self, name: bytes, give: Proof) -> bool:
        node = self.hashed.get(self.label(name))
        rrset = node.rrset(NSEC3) if node is not None else None
        if node is None or rrset is None or not rrset.rdatas[0].startswith(self.head, 2):
            return False
        give(node, NSEC3)
        return True

    def _cover(self, name: bytes, give: Proof) -> None:
        # The last one covers what is before the first. A name that has a record of its own gets that: a wildcard that
        # stands in for the name, or one above what is opted out.
        place = bisect_right(self.chain, self.label(name))
        give(self.hashed[self.chain[place - 1]], NSEC3)

    def _encloser(self, name: bytes, give: Proof) -> bytes:
        """The closest provable encloser's proof: a record for it, and one for the next closer name; gives the
        encloser.
        """
        closer = name
        while name != self.origin:
            closer, name = name, parent(name)
            if self._match(name, give):
                break
        self._cover(closer, give)
        return name

    def exists_without(self, name: bytes, give: Proof) -> None:
        if not self._match(name, give):
            self._encloser(name, give)  # opted out (RFC 5155, section 7.2.4)

    def insecure(self, cut: bytes, give: Proof) -> None:
        self.exists_without(cut, give)  # RFC 5155, section 7.2.7

    def absent(self, name: bytes, encloser: bytes, give: Proof) -> None:
        self._cover(WILDCARD + self._encloser(name, give), give)

    def by_wildcard(self, name: bytes, encloser: bytes, give: Proof) -> None:
        self._cover(name[len(name) - len(encloser) - _last(name, encloser) :], give)

    def wildcard_without(self, name: bytes, encloser: bytes, give: Proof) -> None:
        self._cover(WILDCARD + self._encloser(name, give), give)


def _last(name: bytes, encloser: bytes) -> int:
    """Octets of the label of a name right below its encloser."""
    off = 0
    while True:
        size = name[off] + 1
        if len(name) - off - size == len(encloser):
            return size
        off += size


_HEX: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghijklmnopqrstuv")


def hashed_label(name: bytes, salt: bytes, iterations: int) -> bytes:
    """The label that stands for a lower-cased name in an NSEC3 chain: SHA-1 in base32hex (RFC 5155, section 5)."""
    digest = sha1(name + salt).digest()
    for _ in range(iterations):
        digest = sha1(digest + salt).digest()
    return b32encode(digest).translate(_HEX)
