"""What stands behind a CNAME that a plugin made: the answer that its target got (RFC 1034, section 3.6.2)."""

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.rrset import Section
from kdns.plugin.outcome import NoNextPlugin, Outcome, RcodeOnly
from kdns.plugin.request import ALWAYS


def failed(target: Outcome) -> bool:
    """True if a name is known and could not be had: the client must not take a CNAME alone for "no data". Where nobody
    here knows the name, the CNAME is all there is to say, and a resolver goes on from there.
    """
    return type(target) is RcodeOnly and target.rcode != iana.REFUSED and not isinstance(target.error, NoNextPlugin)


def joined(ours: Section, target: Outcome) -> Answer:
    """Records that end in a CNAME, with what its target got behind them.

    The response code is that of the last name (RFC 6604, section 3), and so is the SOA (RFC 2308, section 2.1). A chain
    that leads back to a name of ours ends there, without an error.
    """
    if type(target) is not Answer:
        return Answer(iana.SERVFAIL if failed(target) else iana.NOERROR, iana.AA, ours, local=True)
    passed = {rrset.owner.lower() for rrset in ours if rrset.type == iana.CNAME}
    rest = [rrset for rrset in target.answer if rrset.type != iana.CNAME or rrset.owner.lower() not in passed]
    rcode = target.rcode if len(rest) == len(target.answer) else iana.NOERROR
    flags = iana.AA | target.flags & (iana.TC | iana.RA)
    authority = () if rest and rest[-1].type != iana.CNAME else target.authority
    # The look-up has noted what the target's answer depends on; a failure is not repeated.
    validity = ALWAYS if rcode in (iana.NOERROR, iana.NXDOMAIN) else None
    return Answer(rcode, flags, (*ours, *rest), authority, local=True, validity=validity)
