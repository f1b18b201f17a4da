"""Storage rules of the cache: what of an answer is stored, where, and how long (RFC 2308; RFC 5452, section 6)."""

from typing import Final, NamedTuple

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import is_within
from kdns.dns.render import RecordSummary
from kdns.plugins.cache.config import MIN_TTL

_PROOFS: Final = frozenset((iana.NSEC, 50, iana.RRSIG))


class Verdict(NamedTuple):
    """Where an answer is stored (success, denial, servfail or none), for how many seconds, and what of it.

    `uniform`: all its records have that TTL.
    """

    kind: str
    ttl: int
    answer: Answer
    uniform: bool = False


def judge(qtype: int, name: bytes, answer: Answer) -> Verdict:
    """What is to be done with an answer to a question."""
    body = answer.body
    summary = answer.summary
    if (
        summary
        and body is not None
        and body.counts[0] == len(summary)
        and not answer.rcode
        and not answer.flags & iana.TC
    ):
        # The usual answer: records of the name and type, and nothing else.
        ttl = summary[0][2]
        uniform = True
        for owner, rtype, seconds, _ in summary:
            if owner != name or rtype != qtype:
                break
            if seconds != ttl:
                ttl = min(ttl, seconds)
                uniform = False
        else:
            return Verdict("success", ttl, answer, uniform)
    kind = _kind(qtype, name, answer)
    if kind == "none":
        return Verdict(kind, 0, answer)
    return Verdict(kind, _lifetime(name, answer), _chain_only(name, answer))


def _kind(qtype: int, name: bytes, answer: Answer) -> str:
    if answer.flags & iana.TC or qtype in (iana.AXFR, iana.IXFR):
        return "none"
    if answer.rcode in (iana.SERVFAIL, iana.NOTIMP):
        return "servfail"
    if answer.rcode not in (iana.NOERROR, iana.NXDOMAIN):
        return "none"
    records, authority, _ = answer.records()
    has_soa = any(line[1] == iana.SOA for line in authority)
    if answer.rcode == iana.NXDOMAIN:
        # RFC 2308, section 5: without an SOA a denial has no time to live.
        return "denial" if has_soa else "none"
    if not records:
        if has_soa:
            return "denial"
        # A delegation. What is empty with nothing to say why says nothing of the name: somebody's server was not asked
        # to look, or will not say.
        return "success" if any(line[1] == iana.NS and is_within(name, line[0]) for line in authority) else "none"
    owners = _chain(name, records)
    if any(rtype == qtype or qtype == iana.ANY for owner, rtype, _, _ in records if owner in owners):
        return "success"
    return "denial" if has_soa else "none"


def _chain(name: bytes, records: list[RecordSummary]) -> set[bytes]:
    """The names that the question leads to over CNAMEs, itself first; the records may come in any order."""
    targets: dict[bytes, list[bytes]] = {}
    for owner, rtype, _, target in records:
        if rtype == iana.CNAME:
            targets.setdefault(owner, []).append(target)
    owners = {name}
    ahead = [name]
    while ahead:
        for target in targets.get(ahead.pop(), ()):
            if target not in owners:
                owners.add(target)
                ahead.append(target)
    return owners


def _chain_only(name: bytes, answer: Answer) -> Answer:
    """An answer without records that the question's chain does not own: they could poison other names (RFC 5452).

    What stays: the chain of CNAMEs and DNAMEs and its end, signatures of both, the SOA and NSEC records of a denial,
    the NS of a delegation.
    """
    records, authority, additional = answer.records()
    owners = _chain(name, records)

    def stays(owner: bytes, rtype: int) -> bool:
        return owner in owners or (rtype in (iana.DNAME, iana.RRSIG) and any(is_within(o, owner) for o in owners))

    def proves(owner: bytes, rtype: int, kept: bool) -> bool:
        wanted = not kept or answer.rcode == iana.NXDOMAIN or rtype == iana.SOA or rtype in _PROOFS
        return wanted and (rtype in _PROOFS or any(is_within(o, owner) for o in owners))

    flags = [stays(line[0], line[1]) for line in records]
    kept = any(flags)
    if all(flags) and not additional and all(proves(line[0], line[1], kept) for line in authority):
        return answer
    return answer.replace(
        answer=tuple(rrset for rrset in answer.answer if stays(rrset.owner.lower(), rrset.type)),
        authority=tuple(rrset for rrset in answer.authority if proves(rrset.owner.lower(), rrset.type, kept)),
        additional=(),
    )


def _lifetime(name: bytes, answer: Answer) -> int:
    """Seconds to store an answer: the least TTL in it, for a denial the SOA's MINIMUM too; 5 where there is none."""
    records, authority, additional = answer.records()
    ttls = [line[2] for lines in (records, authority, additional) for line in lines]
    if not records or answer.rcode == iana.NXDOMAIN:
        # MINIMUM is the last thing in an SOA's rdata, and so in its record.
        body = answer.rendered(name)
        ends = [body.ends[len(records) + i] for i, line in enumerate(authority) if line[1] == iana.SOA]
        ttls += [int.from_bytes(body.data[end - 4 : end], "big") for end in ends]
    delegation = not records and any(line[1] == iana.NS for line in authority)
    return MIN_TTL if not ttls or delegation else min(ttls)
