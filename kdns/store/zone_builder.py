"""Puts an authoritative zone together from its names, whole or in slices, with the proofs of its denials.

Laws: what is built is a Zone that can be served, or BadZone says why there is none. Names come in canonical order.
"""

from typing import final

from kdns.dns import iana
from kdns.dns.rrset import RRset
from kdns.store.node_table import NodeTable
from kdns.store.zone import Zone
from kdns.store.zone_node import NSEC3, NSEC3PARAM, Bare, ZoneNode, canonical_key, made
from kdns.store.zone_proofs import MAX_ITERATIONS, Nsec3Proofs, NsecProofs, Proofs


class BadZone(ValueError):
    """Records that are not a zone."""


@final
class ZoneBuilder:
    """Puts a zone together from names in canonical order; `add` takes one, so that a large zone is made in slices."""

    def __init__(self, origin: bytes) -> None:
        self.origin = origin
        self.nodes = NodeTable()
        self.chain: list[bytes] = []  # what the owners of NSEC records are sorted by
        self.nsec: list[ZoneNode] = []  # these owners
        self.hashed = NodeTable()
        self.nsec3: list[bytes] = []  # the hashed labels that belong to the chain that is used
        self.parameters: RRset | None = None
        self.head = b""  # what the records of that chain have behind their flags
        self.count = 0

    def add(self, bare: Bare) -> None:
        """Adds a name with its RRsets."""
        self.put(made(self.origin, bare))

    def put(self, node: ZoneNode) -> None:
        """Adds a name's node, which may be that of another version."""
        name = node.name
        hashed = False
        for rrset in node.rrsets:
            self.count += len(rrset.rdatas)
            if rrset.type == iana.NSEC:
                self.chain.append(canonical_key(name, len(self.origin)))
                self.nsec.append(node)
            elif rrset.type == NSEC3:
                hashed = True
        if hashed:
            # A hashed name is not a name of the zone (RFC 5155, section 7.2.8).
            label = name[1 : name[0] + 1]
            self.hashed.put(label, node)
            proof = node.rrset(NSEC3)
            if self.head and proof is not None and proof.rdatas[0].startswith(self.head, 2):
                self.nsec3.append(label)
            return
        self.nodes.put(name, node)
        if name == self.origin:
            self.parameters = node.rrset(NSEC3PARAM)
            if self.parameters is not None:
                self.head = _chosen(self.parameters)[2:]

    def finish(self) -> Zone:
        """The zone. Raises BadZone."""
        apex = self.nodes.get(self.origin)
        soa = apex.rrset(iana.SOA) if apex is not None else None
        if apex is None or soa is None or len(soa.rdatas) != 1 or len(soa.rdatas[0]) < 22:
            raise BadZone("no SOA at the zone's apex")
        proofs: Proofs | None = None
        if self.parameters is not None and len(self.hashed):
            proofs = self._nsec3(_chosen(self.parameters))
        elif self.nsec:
            proofs = NsecProofs(self.origin, self.chain, self.nsec)
        return Zone(self.origin, self.nodes, self.hashed, self.count, apex, soa, proofs)

    def _nsec3(self, chosen: bytes) -> Proofs:
        if not chosen:
            raise BadZone("no NSEC3PARAM of hash algorithm 1 without flags")
        iterations = chosen[2] << 8 | chosen[3]
        if iterations > MAX_ITERATIONS:
            raise BadZone(
                f"NSEC3 with {iterations} iterations: resolvers take at most {MAX_ITERATIONS} for secure (RFC 9276)"
            )
        if not self.nsec3:
            raise BadZone("an NSEC3PARAM that no NSEC3 fits")
        return Nsec3Proofs(self.origin, chosen[5:], iterations, self.nsec3, self.hashed)


def _chosen(parameters: RRset) -> bytes:
    """The parameters of the chain that is used; empty where none can be.

    RFC 5155, section 7.3: a chain whose NSEC3PARAM has flags is not whole. Of several whole ones the first serves.
    """
    return next((data for data in parameters.rdatas if len(data) >= 5 and data[0] == 1 and data[1] == 0), b"")


def zone_of(origin: bytes, names: list[Bare]) -> Zone:
    """A zone of its names in canonical order. Raises BadZone."""
    builder = ZoneBuilder(origin)
    for bare in names:
        builder.add(bare)
    return builder.finish()
