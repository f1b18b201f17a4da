"""Differences between two servers' replies to one question, and which of them docs/differences.md documents. Pure."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import from_text, is_within, to_text
from kdns.dns.query import Question
from kdns.dns.rrset import RRset

# Kinds that a client notices, in the order in which they are shown; the others say how a reply is made up.
NO_REPLY, CODE, RECORDS = "no reply", "response code", "records"
ADDRESSES, FLAGS, AUTHORITY = "addresses of outside names", "flags", "authority"
SERIOUS: Final = (NO_REPLY, CODE, RECORDS)
KINDS: Final = (*SERIOUS, ADDRESSES, FLAGS, AUTHORITY)
# Unspecified, private (RFC 1918, RFC 6598, RFC 4193), loopback and link-local addresses.
_INSIDE: Final = tuple(
    ip_network(each) for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "::/127", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
_NAMES: Final = frozenset((iana.CNAME, iana.PTR, iana.NS))
_FLAGS: Final = ((iana.AA, "aa"), (iana.TC, "tc"), (iana.RA, "ra"), (iana.AD, "ad"))


class Difference(NamedTuple):
    """One question's: what kind, what each said, and the words of docs/differences.md that announce it (empty: it does
    not).
    """

    name: str
    type: str
    kind: str
    one: str
    other: str
    documented: str = ""


class Context(NamedTuple):
    """The input of a rule. `cluster`: the name is in a zone of the cluster."""

    question: Question
    cluster: bool
    one: Answer
    other: Answer


def code_of(answer: Answer) -> str:
    """The response code; NODATA for NOERROR without an answer."""
    if answer.rcode == iana.NOERROR and not answer.answer:
        return "NODATA"
    return iana.rcode_text(answer.rcode)


def compared(question: Question, zones: tuple[bytes, ...], one: Answer | str, other: Answer | str) -> list[Difference]:
    """The differences of two replies; a text stands for a reply that did not come, and says why."""
    name, rtype = to_text(question.name), iana.type_text(question.type)
    if isinstance(one, str) or isinstance(other, str):
        if isinstance(one, str) and isinstance(other, str):
            return []
        said = [each if isinstance(each, str) else described(each) for each in (one, other)]
        return [Difference(name, rtype, NO_REPLY, *said)]
    cluster = any(is_within(question.name, zone) for zone in zones)
    context = Context(question, cluster, one, other)
    found: list[tuple[str, str, str]] = []
    if code_of(one) != code_of(other):
        found.append((CODE, described(one), described(other)))
    elif (ours := _records(one.answer)) != (theirs := _records(other.answer)):
        kinds = [sorted({rrset.type for rrset in each.answer}) for each in (one, other)]
        varies = not cluster and kinds[0] == kinds[1] and _may_vary(one) and _may_vary(other)
        found.append((ADDRESSES if varies else RECORDS, _listed(ours - theirs), _listed(theirs - ours)))
    flags = [{text for bit, text in _FLAGS if each.flags & bit} for each in (one, other)]
    if flags[0] != flags[1]:
        found.append((FLAGS, _joined(flags[0]), _joined(flags[1])))
    if _owners(one) != _owners(other):
        found.append((AUTHORITY, _joined(_owners(one)), _joined(_owners(other))))
    return [Difference(name, rtype, *each, documented=_documented(each[0], context)) for each in found]


def described(answer: Answer) -> str:
    """A reply in a few words."""
    count = sum(len(rrset.rdatas) for rrset in answer.answer)
    return code_of(answer) + (f", {count} record{'s' * (count != 1)}" if count else "")


def _joined(words: set[str]) -> str:
    return ", ".join(sorted(words)) or "none"


def _owners(answer: Answer) -> set[str]:
    return {f"{to_text(rrset.owner).lower()} {iana.type_text(rrset.type)}" for rrset in answer.authority}


def _records(section: tuple[RRset, ...]) -> set[str]:
    return {
        _text(rrset, data) for rrset in section for data in rrset.rdatas if rrset.type not in (iana.RRSIG, iana.OPT)
    }


def _text(rrset: RRset, data: bytes) -> str:
    """A record without what changes by itself: TTLs, letter case in names, a zone's serial."""
    head = f"{to_text(rrset.owner).lower()} {iana.type_text(rrset.type)}"
    if rrset.type in _NAMES:
        return f"{head} {to_text(data).lower()}"
    if rrset.type == iana.SRV:
        numbers = [int.from_bytes(data[at : at + 2], "big") for at in (0, 2, 4)]
        return f"{head} {' '.join(map(str, numbers))} {to_text(data[6:]).lower()}"
    if rrset.type == iana.SOA:
        return f"{head} (of any serial) {data[:-20].lower().hex()} {data[-16:].hex()}"
    if rrset.type == iana.A:
        return f"{head} {'.'.join(map(str, data))}"
    return f"{head} {data.hex()}"


def _may_vary(answer: Answer) -> bool:
    """Whether addresses may be others at the next question, as those of content networks are: not what a server has of
    its own (`hosts`, `template`, a zone), nor addresses that only a network's own servers give.
    """
    if answer.flags & iana.AA:
        return False
    found = [ip_address(data) for each in answer.answer if each.type in (iana.A, iana.AAAA) for data in each.rdatas]
    return not any(address in network for address in found for network in _INSIDE if address.version == network.version)


def _listed(records: set[str]) -> str:
    shown = sorted(records)[:4]
    more = f" and {len(records) - 4} more" if len(records) > 4 else ""
    return "; ".join(shown) + more if records else "no differences"


# What docs/differences.md announces: (kind, when, its words there). A test holds the words against it.


def _existence(found: Context) -> bool:
    return found.cluster and {code_of(found.one), code_of(found.other)} == {"NXDOMAIN", "NODATA"}


def _below_pod(found: Context) -> bool:
    labels = to_text(found.question.name).split(".")
    return found.cluster and "pod" in labels[3:] and "NXDOMAIN" in (code_of(found.one), code_of(found.other))


def _kept_cname(found: Context) -> bool:
    return any(rrset.type == iana.CNAME for each in (found.one, found.other) for rrset in each.answer)


def _apex_ns(found: Context) -> bool:
    return found.cluster and found.question.type in (iana.NS, iana.SOA)


def _outside_aa(found: Context) -> bool:
    return not found.cluster and bool((found.one.flags ^ found.other.flags) & iana.AA)


def _flag(bit: int) -> Callable[[Context], bool]:
    return lambda found: bool((found.one.flags ^ found.other.flags) & bit)


RULES: Final[tuple[tuple[str, Callable[[Context], bool], str], ...]] = (
    (CODE, _existence, "A name that exists never gets NXDOMAIN, and one that does not never gets NODATA"),
    (CODE, _below_pod, "Names below a Pod's address name do not exist"),
    (CODE, _kept_cname, "An ExternalName whose target fails keeps its CNAME"),
    (CODE, _apex_ns, "The apex always has NS records"),
    (RECORDS, _apex_ns, "The apex always has NS records"),
    (AUTHORITY, _existence, "A name that exists never gets NXDOMAIN, and one that does not never gets NODATA"),
    (FLAGS, _outside_aa, "Cached answers have AA cleared"),
    (FLAGS, _flag(iana.TC), "UDP replies have at most 1232 octets"),
    (FLAGS, _flag(iana.AD), "A reply has AD only if the client set AD or DO"),
)


def _documented(kind: str, found: Context) -> str:
    return next((words for each, holds, words in RULES if each == kind and holds(found)), "")


def zones_of(texts: list[str]) -> tuple[bytes, ...]:
    """Zones as wire names. Raises BadName."""
    return tuple(from_text(text).lower() for text in texts)
