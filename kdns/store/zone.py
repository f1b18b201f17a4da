"""An authoritative zone: an immutable snapshot of its names, and what it says to a question.

Laws: a zone never changes; another version is another Zone, put in its place at once. What it says depends on the
question and DO only. Its `validity` is ended by whoever serves it, when another version takes its place.

Theory of operation. `answer` follows RFC 1034, section 4.3.2 as RFC 4592 and RFC 6672 have amended it. It walks from
the apex down to the name asked, a dictionary look-up a label: the first cut on the way is a referral, the first DNAME
above the name redirects, the last name that exists is the closest encloser. If the name itself does not exist, the
wildcard right below its closest encloser stands in for it, and no other. A CNAME leads to the next name, which begins
the walk anew; out of the zone it ends with `target`, and whoever asked may go on there. With DO, signatures stand
beside what they cover, and a denial beside its proof (zone_proofs).
"""

from collections.abc import Iterator
from typing import Final, final

from kdns.dns import iana
from kdns.dns.answer import Answer, Validity, negative
from kdns.dns.name import MAX_NAME, is_within
from kdns.dns.render import with_authority
from kdns.dns.rrset import RRset, Section
from kdns.dns.wire import skip_name
from kdns.store.node_table import NodeTable
from kdns.store.zone_node import CUT, REDIRECT, WILDCARD, ZoneNode
from kdns.store.zone_proofs import Proofs

# CNAMEs and DNAMEs that one answer follows in a zone (BIND follows 16 as well). A resolver goes on from the last.
MAX_CHAIN: Final = 16
_ADDRESSES: Final = (iana.A, iana.AAAA)
# Where the name in an rdata stands whose addresses belong into the additional section.
_TARGETS: Final = {iana.NS: 0, iana.MX: 2, iana.SRV: 6, iana.SVCB: 2, iana.HTTPS: 2}
# Types that are asked of a CNAME's owner itself (RFC 1034, section 4.3.2; RFC 4035, section 2.5).
_NOT_FOLLOWED: Final = frozenset((iana.CNAME, iana.ANY, iana.RRSIG, iana.NSEC))
YXDOMAIN: Final = 6  # RFC 2136, section 2.2


@final
class Found:
    """What a zone says. `target` is the name that a CNAME leads to out of the zone; `absent`: the name does not exist.

    `wildcard` is the wildcard that stood in for the name, `needed` the records at the head of the additional section
    that a referral is of no use without (RFC 9471), `referral` whether it is one.
    """

    __slots__ = (
        "additional",
        "answer",
        "authoritative",
        "authority",
        "denied",
        "needed",
        "rcode",
        "referral",
        "target",
        "wildcard",
        "zone_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.rcode = iana.NOERROR
        self.authoritative = True
        self.answer: list[RRset] = []
        self.authority: list[RRset] = []
        self.additional: list[RRset] = []
        self.target = b""
        self.wildcard = b""
        self.denied = False  # whether the name asked is not there, or nothing is (an empty non-terminal)
        self.referral = False
        self.needed = 0
        self.zone_ns: list[RRset] = []  # the zone's NS, which an answer may carry where there is room


@final
class Zone:
    """A zone's nodes by name, and the chain of its proofs. Made by `ZoneBuilder` or `zone_of` (store.zone_builder)."""

    __slots__ = (
        "_denials", "_signed_denials", "apex", "count", "denial", "denial_signed", "hashed", "negative_ttl", "nodes",
        "origin", "proofs", "readers", "serial", "soa", "validity",
    )  # fmt: skip

    def __init__(
        self,
        origin: bytes,
        nodes: NodeTable,
        hashed: NodeTable,
        count: int,
        apex: ZoneNode,
        soa: RRset,
        proofs: Proofs | None,
    ) -> None:
        self.origin = origin
        self.nodes = nodes
        self.hashed = hashed  # the owners of NSEC3 records by their first label: no names that can be asked
        self.count = count  # records
        self.apex = apex
        self.soa = soa
        self.proofs = proofs
        self.readers = 0  # who walks over all of it at the moment: it may not be taken apart
        self.serial = int.from_bytes(soa.rdatas[0][-20:-16], "big")
        # RFC 2308, section 5: a denial lives as long as the less of the SOA's TTL and its minimum.
        self.negative_ttl = min(soa.ttl, int.from_bytes(soa.rdatas[0][-4:], "big"))
        self.denial = soa._replace(ttl=self.negative_ttl)
        self.validity = Validity()
        signed = apex.signatures(iana.SOA)
        self.denial_signed: Section = () if signed is None else (signed._replace(ttl=self.negative_ttl),)
        # How denials begin, by response code and octets of the name: at most 2 x 255. Without DO, and with it.
        self._denials: dict[tuple[int, int], Answer] = {}
        self._signed_denials: dict[tuple[int, int], Answer] = {}

    def denied(self, name: bytes, rcode: int) -> Answer:
        """The denial of a name of this zone, without proofs."""
        return self._denied(self._denials, name, rcode, ())

    def proven(self, name: bytes, found: Found) -> Answer:
        """The denial of a name of this zone with its proofs, which stand behind the SOA and its signatures."""
        signed = self.denial_signed
        authority = found.authority
        head = self._denied(self._signed_denials, name, found.rcode, signed).rendered(name)
        made = Answer(found.rcode, iana.AA, (), authority, (), local=True, name=name, validity=self.validity)
        made.body = with_authority(head, name, authority[1 + len(signed) :])
        return made

    def _denied(self, known: dict[tuple[int, int], Answer], name: bytes, rcode: int, signed: Section) -> Answer:
        key = (rcode, len(name))
        made = known.get(key)
        if made is None:
            soa = self.denial
            made = negative(name, self.origin, rcode, iana.AA, soa.ttl, soa.rdatas[0], self.validity, signed)
            known[key] = made
        return made

    def __len__(self) -> int:
        return len(self.nodes)

    def rrsets(self) -> Iterator[RRset]:
        """All RRsets in canonical order, the SOA first and not again (RFC 5936, section 2.2)."""
        yield self.soa
        for node in self.nodes.values():
            for rrset in node.rrsets:
                if rrset is not self.soa:
                    yield rrset
        for node in self.hashed.values():
            yield from node.rrsets

    def answer(self, name: bytes, qtype: int, do: bool = False) -> Found:
        """What the zone says of a lower-cased name in it."""
        return _Look(self, qtype, do).run(name)


@final
class _Look:
    """One look-up."""

    __slots__ = ("do", "found", "put", "qtype", "zone")

    def __init__(self, zone: Zone, qtype: int, do: bool) -> None:
        self.zone = zone
        self.qtype = qtype
        self.do = do
        self.found = Found()
        self.put: list[ZoneNode] = []  # whose proofs stand in the authority section

    def run(self, name: bytes) -> Found:
        found = self.found
        seen = {name}
        step: bytes | None = name
        while step is not None:
            step = self._step(step)
            if step is None:
                break
            if not is_within(step, self.zone.origin):
                found.target = step
                break
            if step in seen or len(seen) > MAX_CHAIN:
                break  # a loop, or too long: whoever asked sees how it goes on
            seen.add(step)
        return found

    def _step(self, name: bytes) -> bytes | None:
        """Adds what there is of one name; gives the name where it goes on, in lower case."""
        zone = self.zone
        nodes = zone.nodes
        first = nodes.first
        node = zone.apex
        size = len(zone.origin)
        # From the apex down, the offsets of the labels on the way.
        offs: list[int] = []
        off = 0
        while len(name) - off > size:
            offs.append(off)
            off += name[off] + 1
        for off in reversed(offs):
            if node.flags & REDIRECT:
                return self._redirect(name, node)
            key = name[off:] if off else name
            below = first.get(key) or (nodes.get(key) if nodes.parts else None)
            if below is None:
                return self._wild(name, node)
            node = below
            if node.flags & CUT and (off or self.qtype != iana.DS):
                self._refer(node)
                return None
        return self._exists(name, node)

    # The cases.

    def _exists(self, name: bytes, node: ZoneNode) -> bytes | None:
        """The name exists."""
        if not node.rrsets:
            self.found.denied = not self.found.answer
        given, onward = self._data(name, node)
        if not given:
            self._nodata()
            if self.do and self.zone.proofs is not None:
                self.zone.proofs.exists_without(name, self._prove)
        return onward

    def _wild(self, name: bytes, encloser: ZoneNode) -> bytes | None:
        """The name does not exist, `encloser` is the closest one that does (RFC 4592, section 3.3.1)."""
        zone, found = self.zone, self.found
        proofs = zone.proofs if self.do else None
        node = zone.nodes.get(WILDCARD + encloser.name)
        if node is None:
            found.denied = not found.answer
            found.rcode = iana.NXDOMAIN  # of the last name of the chain (RFC 6604, section 3)
            self._nodata()
            if proofs is not None:
                proofs.absent(name, encloser.name, self._prove)
            return None
        if not found.answer:
            found.wildcard = node.name
            found.denied = not node.rrsets
        given, onward = self._data(name, node)
        if not given:
            self._nodata()
            if proofs is not None:
                proofs.wildcard_without(name, encloser.name, self._prove)
        elif proofs is not None:
            proofs.by_wildcard(name, encloser.name, self._prove)
        return onward

    def _redirect(self, name: bytes, node: ZoneNode) -> bytes | None:
        """A DNAME above the name (RFC 6672, section 3.2)."""
        dname = node.rrset(iana.DNAME)
        assert dname is not None
        found = self.found
        if dname not in found.answer:
            self._add(found.answer, dname, node)
        target = name[: len(name) - len(node.name)] + dname.rdatas[0]
        if len(target) > MAX_NAME:
            found.rcode = YXDOMAIN  # RFC 6672, section 2.2
            return None
        found.answer.append(RRset(name, iana.CNAME, dname.ttl, (target,)))
        return (
            None
            if self.qtype in _NOT_FOLLOWED and self.qtype != iana.RRSIG and self.qtype != iana.NSEC
            else target.lower()
        )

    def _refer(self, node: ZoneNode) -> None:
        """A referral to the servers of a zone below (RFC 1034, section 4.3.2, step 3b; RFC 4035, section 3.1.4)."""
        zone, found = self.zone, self.found
        servers = node.rrset(iana.NS)
        assert servers is not None
        found.referral = True
        found.authoritative = bool(found.answer)  # of the first name (RFC 6604, section 2)
        found.authority.append(servers)
        if self.do and zone.proofs is not None:
            ds = node.rrset(iana.DS)
            if ds is not None:
                self._add(found.authority, ds, node)
            else:
                zone.proofs.insecure(node.name, self._prove)
        # RFC 9471: what is below the cut can be had from nowhere else. Other addresses we have save a question.
        others: list[RRset] = []
        for data in servers.rdatas:
            target = data.lower()
            where = found.additional if is_within(target, node.name) else others
            glue = zone.nodes.get(target) if is_within(target, zone.origin) else None
            if glue is not None:
                for rtype in _ADDRESSES:
                    rrset = glue.rrset(rtype)
                    if rrset is not None:
                        where.append(rrset)
        found.needed = len(found.additional)
        found.additional += others

    # Parts.

    def _data(self, name: bytes, node: ZoneNode) -> tuple[bool, bytes | None]:
        """Adds a node's data of the type asked, owned by `name`; says whether there was any, and where a CNAME
        leads.
        """
        found, qtype = self.found, self.qtype
        answer = found.answer
        synthesised = node.name != name
        if qtype == iana.ANY or qtype == iana.RRSIG:
            every = [rrset for rrset in node.rrsets if qtype == iana.ANY or rrset.type == qtype]
            answer += [rrset._replace(owner=name) for rrset in every] if synthesised else every
            self._servers()
            return bool(every), None
        for rrset in node.rrsets:
            if rrset.type == qtype:
                self._add(answer, rrset, node, name)
                if not (node is self.zone.apex and qtype == iana.NS):
                    self._servers()
                if qtype in _TARGETS:
                    self._addresses(rrset, name)
                return True, None
            if rrset.type == iana.CNAME and qtype not in _NOT_FOLLOWED:
                self._add(answer, rrset, node, name)
                return True, rrset.rdatas[0].lower()
        return False, None

    def _add(self, section: list[RRset], rrset: RRset, node: ZoneNode, name: bytes = b"") -> None:
        """Adds an RRset and, with DO, its signatures; owned by `name` where a wildcard stands in."""
        stands_in = name and name != node.name
        section.append(rrset._replace(owner=name) if stands_in else rrset)
        if self.do:
            signed = node.signatures(rrset.type)
            if signed is not None:
                section.append(signed._replace(owner=name) if stands_in else signed)

    def _servers(self) -> None:
        """The zone's NS, which may go with an answer."""
        rrset = self.zone.apex.rrset(iana.NS)
        if rrset is not None:
            self._add(self.found.zone_ns, rrset, self.zone.apex)

    def _nodata(self) -> None:
        """The SOA of a denial, with the TTL that the denial has."""
        zone, authority = self.zone, self.found.authority
        authority.append(zone.denial)
        if self.do:
            authority += zone.denial_signed

    def _prove(self, node: ZoneNode, rtype: int) -> None:
        """Adds a record that proves something to the authority section, once."""
        if node in self.put:
            return
        rrset = node.rrset(rtype)
        if rrset is None:
            return
        self.put.append(node)
        authority = self.found.authority
        ttl = min(rrset.ttl, self.zone.negative_ttl)  # RFC 9077, section 3
        authority.append(rrset if rrset.ttl == ttl else rrset._replace(ttl=ttl))
        signed = node.signatures(rtype)
        if signed is not None:
            authority.append(signed if signed.ttl == ttl else signed._replace(ttl=ttl))

    def _addresses(self, rrset: RRset, owner: bytes, depth: int = 0) -> None:
        """The addresses of the names in an RRset's data, as far as this zone has them (RFC 1035, 3.3.9; RFC 2782; RFC
        9460).
        """
        zone, found = self.zone, self.found
        at = _TARGETS[rrset.type]
        for data in rrset.rdatas:
            end = skip_name(data, at)
            target = data[at:end].lower()
            if target == b"\0" and rrset.type in (iana.SVCB, iana.HTTPS) and data[:2] != b"\0\0":
                target = owner  # RFC 9460, section 2.5.2
            if not is_within(target, zone.origin):
                continue
            node = zone.nodes.get(target)
            if node is None or (rrset.type != iana.NS and self._occluded(target)):
                continue
            wanted: tuple[int, ...] = _ADDRESSES
            if data[:2] == b"\0\0" and rrset.type in (iana.SVCB, iana.HTTPS) and depth < MAX_CHAIN:
                wanted = (rrset.type, *_ADDRESSES)  # an alias (RFC 9460, section 4.1)
            for rtype in wanted:
                known = node.rrset(rtype)
                if known is None or known in found.additional or known in found.answer:
                    continue
                self._add(found.additional, known, node)
                if rtype == rrset.type:
                    self._addresses(known, target, depth + 1)

    def _occluded(self, name: bytes) -> bool:
        """True if a name is at or below a cut, or below a DNAME."""
        nodes, size = self.zone.nodes, len(self.zone.origin)
        off = 0
        while len(name) - off >= size:
            node = nodes.get(name[off:] if off else name)
            if node is not None and (node.flags & CUT or (off and node.flags & REDIRECT)):
                return True
            if len(name) - off == size:
                break
            off += name[off] + 1
        return False
