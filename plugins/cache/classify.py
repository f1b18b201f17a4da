"""What of an answer is kept, where, and for how long (RFC 2308; RFC 5452, section 6)."""

from typing import Final

from kdns.dns import iana, rdata
from kdns.dns.answer import Answer
from kdns.dns.name import is_within
from kdns.plugins.cache.config import MIN_TTL

_PROOFS: Final = frozenset((iana.NSEC, 50, iana.RRSIG))


def classify(qtype: int, name: bytes, answer: Answer) -> str:
    """Where an answer is kept: success, denial, servfail, or none."""
    if answer.flags & iana.TC or qtype in (iana.AXFR, iana.IXFR):
        return "none"
    if answer.rcode in (iana.SERVFAIL, iana.NOTIMP):
        return "servfail"
    if answer.rcode not in (iana.NOERROR, iana.NXDOMAIN):
        return "none"
    has_soa = any(rrset.type == iana.SOA for rrset in answer.authority)
    if answer.rcode == iana.NXDOMAIN:
        # RFC 2308, section 5: without an SOA a denial has no time to live.
        return "denial" if has_soa else "none"
    if not answer.answer:
        if has_soa:
            return "denial"
        return "success" if not answer.authority or answer.authority[0].type == iana.NS else "none"
    if reaches(qtype, name, answer):
        return "success"
    return "denial" if has_soa else "none"


def reaches(qtype: int, name: bytes, answer: Answer) -> bool:
    """Whether the answer section leads from the name to records of the type, perhaps over CNAMEs."""
    owners = {name}
    for rrset in answer.answer:
        owner = rrset.owner.lower()
        if owner not in owners:
            continue
        if rrset.type == qtype or qtype == iana.ANY:
            return True
        if rrset.type == iana.CNAME:
            owners.add(rrset.rdatas[0].lower())
    # In any order: a chain may be given from its end.
    return any(rrset.type == qtype and rrset.owner.lower() in owners for rrset in answer.answer)


def chain_only(name: bytes, answer: Answer) -> Answer:
    """An answer without records that the question's chain does not own: they could poison other names (RFC 5452).

    What stays: the chain of CNAMEs and DNAMEs and its end, signatures of both, the SOA and NSEC records of a denial, the NS
    of a delegation.
    """
    owners = {name}
    for _ in answer.answer:
        before = len(owners)
        for rrset in answer.answer:
            if rrset.type == iana.CNAME and rrset.owner.lower() in owners:
                owners.add(rrset.rdatas[0].lower())
        if len(owners) == before:
            break
    kept = tuple(
        rrset
        for rrset in answer.answer
        if rrset.owner.lower() in owners
        or (rrset.type in (iana.DNAME, iana.RRSIG) and any(is_within(o, rrset.owner.lower()) for o in owners))
    )
    authority = tuple(
        rrset
        for rrset in answer.authority
        if not kept or answer.rcode == iana.NXDOMAIN or rrset.type == iana.SOA or rrset.type in _PROOFS
        if any(is_within(owner, rrset.owner.lower()) for owner in owners) or rrset.type in _PROOFS
    )
    if kept == answer.answer and authority == answer.authority and not answer.additional:
        return answer
    return answer.replace(answer=kept, authority=authority, additional=())


def lifetime(answer: Answer) -> int:
    """Seconds an answer may be kept: the least TTL in it, for a denial the SOA's MINIMUM too; 5 where there is none."""
    ttls = [rrset.ttl for section in answer.sections for rrset in section]
    if not answer.answer or answer.rcode == iana.NXDOMAIN:
        ttls += [rdata.soa_minimum(rrset.rdatas[0]) for rrset in answer.authority if rrset.type == iana.SOA]
    delegation = not answer.answer and any(rrset.type == iana.NS for rrset in answer.authority)
    return MIN_TTL if not ttls or delegation else min(ttls)
