"""What is proven absent, and how: the NSEC records of an online signer, before they are signed.

Compact (RFC 9824): one NSEC of the name asked, whose next name is the one right behind it. A name that does not exist
has NXNAME and nothing else in its bitmap, an empty non-terminal nothing at all. White lies (RFC 4470): a name that does
not exist is between two names right beside it, and so is the wildcard of its closest encloser.

The types that a name has are found by asking the plugins below. `ANY` gives them at once where a zone is served from
records; of others the types are asked that plugins of kdns serve names with. Where a plugin cannot say at once, a name
has every common type but the one asked: nobody may conclude from the bitmap that one of them is not there.
"""

from typing import Final

from kdns.dns import dnssec, iana
from kdns.dns.answer import Answer
from kdns.dns.name import is_within, parent
from kdns.dns.query import Question
from kdns.dns.rrset import RRset
from kdns.plugin import Plugin, Request
from kdns.plugin.outcome import Pending, RcodeOnly

# What a name is asked for where ANY does not tell: all that kubernetes, k8s_external and hosts have, and what templates
# are mostly written for.
_ASKED: Final = (
    iana.A, iana.NS, iana.CNAME, iana.SOA, iana.PTR, iana.MX, iana.TXT, iana.AAAA, iana.SRV, 35, iana.HTTPS, 257,
)  # fmt: skip
# What a name may have where that cannot be found out. Not CNAME, DNAME, NS and DS: they would say something else.
_COMMON: Final = frozenset((
    iana.A, iana.HINFO, iana.MX, iana.TXT, iana.AAAA, 29, iana.SRV, 35, 37, 44, 52, 53, 55, 61, iana.SVCB, iana.HTTPS,
    99, 256, 257,
))  # fmt: skip
_NOT_OURS: Final = frozenset((iana.RRSIG, iana.NSEC, iana.ANY, dnssec.NXNAME))


def types_at(request: Request, plugin: Plugin, name: bytes, absent: int) -> frozenset[int]:
    """The types of a name that exists, without those that a signer adds. `absent` is known not to be among them."""
    outcome = request.below(plugin, Question(name, iana.ANY))
    if type(outcome) is Pending:
        return _COMMON - {absent}
    here = _owned(outcome, name)
    if here:
        return frozenset(here) - _NOT_OURS - {absent}
    found = set()
    for rtype in _ASKED:
        if rtype == absent:
            continue
        outcome = request.below(plugin, Question(name, rtype))
        if type(outcome) is Pending:
            return _COMMON - {absent}
        if rtype in _owned(outcome, name):
            found.add(rtype)
    return frozenset(found)


def _owned(outcome: object, name: bytes) -> set[int]:
    """The types of an outcome's records that a name has itself; NS where it is delegated."""
    if type(outcome) is not Answer:
        return set()
    here = {rrset.type for rrset in outcome.answer if rrset.owner.lower() == name}
    if not outcome.answer and any(r.type == iana.NS and r.owner.lower() == name for r in outcome.authority):
        here.add(iana.NS)
    return here


def ds_of(request: Request, plugin: Plugin, cut: bytes) -> RRset | None:
    """The DS of a delegation: a zone that is not signed itself does not put it beside its NS."""
    outcome = request.below(plugin, Question(cut, iana.DS))
    if type(outcome) is not Answer:
        return None
    return next((r for r in outcome.answer if r.type == iana.DS and r.owner.lower() == cut), None)


def negative_ttl(request: Request, plugin: Plugin, zone: bytes, authority: tuple[RRset, ...], default: int) -> int:
    """How long a denial lives: as its SOA says, or the zone's (RFC 9077); `default` seconds where there is none."""
    soa = _soa(authority, zone)
    if soa is None:
        outcome = request.below(plugin, Question(zone, iana.SOA))
        soa = _soa(outcome.answer, zone) if type(outcome) is Answer else None
    return min(soa.ttl, int.from_bytes(soa.rdatas[0][-4:], "big")) if soa is not None else default


def _soa(section: tuple[RRset, ...], zone: bytes) -> RRset | None:
    return next((rrset for rrset in section if rrset.type == iana.SOA and rrset.owner.lower() == zone), None)


def closest_encloser(request: Request, plugin: Plugin, name: bytes, zone: bytes) -> bytes:
    """The longest ancestor of a name that exists; one label above it where that cannot be found out."""
    above = parent(name)
    while above != zone and is_within(above, zone):
        outcome = request.below(plugin, Question(above, iana.A))
        if type(outcome) is Pending or type(outcome) is RcodeOnly:
            return parent(name)
        if type(outcome) is Answer and outcome.rcode != iana.NXDOMAIN:
            return above
        above = parent(above)
    return zone


def compact(name: bytes, zone: bytes, ttl: int) -> list[RRset]:
    """A name that does not exist (RFC 9824, section 3.1)."""
    return [dnssec.nsec(name, dnssec.first_below(name, zone), (dnssec.NXNAME,), ttl)]


def white_lies(name: bytes, encloser: bytes, zone: bytes, ttl: int) -> list[RRset]:
    """A name that does not exist, and no wildcard that could stand in for it (RFC 4470, section 3)."""
    out = []
    for denied in (dnssec.below_encloser(name, encloser), b"\x01*" + encloser):
        made = dnssec.nsec(dnssec.before(denied, zone), dnssec.behind(denied, zone), (), ttl)
        if made.owner == zone:
            return []  # the apex has types of its own: the caller takes the compact form
        if made not in out:
            out.append(made)
    return out


def without(name: bytes, zone: bytes, types: frozenset[int], ttl: int) -> RRset:
    """A name that exists without the type that was asked (RFC 9824, section 3.2)."""
    if iana.NS in types and name != zone:
        return delegation(name, zone, types, ttl)
    return dnssec.nsec(name, dnssec.first_below(name, zone), types, ttl)


def delegation(cut: bytes, zone: bytes, types: frozenset[int], ttl: int) -> RRset:
    """A delegation: nothing below it is this zone's, so the next name is behind it all (RFC 9824, section 3.4)."""
    return dnssec.nsec(cut, dnssec.behind(cut, zone), types & {iana.NS, iana.DS} | {iana.NS}, ttl)
