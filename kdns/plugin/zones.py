"""Answering from whole zones: what `file`, `auto`, `secondary` and `dynupdate` do with a query, whatever way their
zones come.

A zone's answer is made for the question and kept by the reply table until another version of the zone takes its place
(`Zone.validity`). Where a CNAME leads out of the zone, the whole server is asked for what it leads to, as the same
client.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from kdns.dns import edns as _edns
from kdns.dns import iana
from kdns.dns.answer import Answer, Validity
from kdns.dns.name import parent, to_text
from kdns.dns.rrset import RRset
from kdns.plugin.aliases import joined
from kdns.plugin.base import Plugin
from kdns.plugin.outcome import Outcome, Pending, RcodeOnly, then
from kdns.plugin.providers import ZoneStep
from kdns.plugin.readers import Fallthrough
from kdns.plugin.request import Request
from kdns.store.zone import Found, Zone

NOT_READY: Final = 14  # extended errors: RFC 8914, section 4
INVALID_DATA: Final = 24
_ROOM: Final = 12 + 4 + 11  # octets of a reply beside its name and records: header, type and class, OPT


class Served(Protocol):
    """A zone that is served: its current version, or why there is none (an extended error's code and text)."""

    @property
    def zone(self) -> Zone | None: ...

    @property
    def failure(self) -> tuple[int, str]: ...


class Steps(Protocol):
    """The last versions of a zone."""

    def since(self, serial: int) -> Sequence[ZoneStep] | None:
        """The steps that lead from a version to the present one; None where they are not known."""


class Versioned(Served, Protocol):
    """A zone that is served, and its last versions."""

    @property
    def history(self) -> Steps: ...


S = TypeVar("S", bound=Served)


class ServesZones(Plugin):
    """What a plugin that serves whole zones gives to others: transfers, metadata, explanations."""

    served: Mapping[bytes, Versioned]  # by their names

    def transfer_zones(self) -> tuple[bytes, ...]:
        """The zones that may be had whole."""
        return tuple(self.served)

    def transfer(self, zone: bytes) -> Iterator[RRset] | None:
        """All records of a zone."""
        served = self.served.get(zone)
        return whole(served.zone) if served is not None and served.zone is not None else None

    def transfer_steps(self, zone: bytes, serial: int) -> Sequence[ZoneStep] | None:
        """The steps that lead from a version to the present one."""
        served = self.served.get(zone)
        return served.history.since(serial) if served is not None else None

    def explain(self, request: Request) -> str:
        return explained(request, self.served)

    def label(self, request: Request, name: str) -> str | None:
        """The metadata `zone/wildcard`: the wildcard that stood in for the name asked."""
        return wildcard(request, self.served) if name == "zone/wildcard" else None


def find(name: bytes, qtype: int, zones: Mapping[bytes, S]) -> S | None:
    """The zone that answers for a name: the longest it is in; for a DS the one above, if that is here (RFC 4035,
    section 3.1.4.1).
    """
    found = None
    while True:
        known = zones.get(name)
        if known is not None:
            if found is not None or qtype != iana.DS:
                return known
            found = known
        elif found is None:
            qtype = 0  # a DS of a name that is not an apex is the zone's own
        if name == b"\0":
            return found
        name = parent(name)


def whole(zone: Zone) -> Iterator[RRset]:
    """All records of a zone for a transfer; the zone is not taken apart meanwhile."""
    zone.readers += 1
    try:
        yield from zone.rrsets()
    finally:
        zone.readers -= 1


class Known:
    """The set of zones. Answers about names outside all of them are valid until a zone is added or removed."""

    def __init__(self) -> None:
        self.validity = Validity()

    def changed(self) -> None:
        """A zone has come or gone."""
        self.validity.end()
        self.validity = Validity()


def respond(request: Request, served: Served, fallthrough: Fallthrough) -> Outcome | Pending | None:
    """A zone's answer to a request; None if its name does not exist and falls through."""
    question = request.question
    zone = served.zone
    if zone is None:
        code, text = served.failure
        return RcodeOnly(iana.SERVFAIL, text, _edns.extended_error(code, text.encode()))
    if question.type in (iana.AXFR, iana.IXFR):
        return RcodeOnly(iana.REFUSED)  # `transfer` stands above and has not taken it
    do = request.edns is not None and request.edns.do
    found = zone.answer(question.name, question.type, do)
    request.depends_on(zone.validity)
    if found.denied and fallthrough.falls_through(question.name):
        return None
    if found.target:
        ours = found
        theirs = request.lookup(found.target, question.type)
        joined: Outcome | Pending = then(theirs, lambda outcome: _joined(zone, ours, outcome))
        return joined
    return _answer(request, zone, found)


def _answer(request: Request, zone: Zone, found: Found) -> Answer:
    authority = found.authority
    if authority and authority[0] is zone.denial and not found.answer:
        name = request.question.name
        return zone.denied(name, found.rcode) if len(authority) == 1 else zone.proven(name, found)
    if found.zone_ns and _fits(request, found):
        authority = [*authority, *found.zone_ns]
    flags = iana.AA if found.authoritative else 0
    made = Answer(found.rcode, flags, found.answer, authority, found.additional, local=True, validity=zone.validity)
    if found.needed and _is_truncated(request, made, found):
        return made.replace(flags=flags | iana.TC)  # RFC 9471, section 3: without its glue a referral leads nowhere
    return made


def _fits(request: Request, found: Found) -> bool:
    """True if the zone's NS surely fit into the reply: they are optional and must not cause truncation (RFC 2181,
    section 9).
    """
    room = request.limit - _ROOM - len(request.question.name)
    for section in (found.answer, found.authority, found.zone_ns):
        for rrset in section:
            room -= sum([len(data) for data in rrset.rdatas]) + len(rrset.rdatas) * (10 + len(rrset.owner))
    return room >= 0


def _is_truncated(request: Request, made: Answer, found: Found) -> bool:
    """True if records that a referral needs do not fit."""
    name = request.asked.name
    body = made.rendered(name)
    an, ns, _ = body.counts
    last = an + ns + sum([len(rrset.rdatas) for rrset in found.additional[: found.needed]])
    return body.ends[last - 1] > request.limit - _ROOM - len(name)


def _joined(zone: Zone, ours: Found, theirs: Outcome) -> Outcome:
    """A CNAME of ours and what it leads to (RFC 1034, section 3.6.2): the response code is that of the last name (RFC
    6604).
    """
    if type(theirs) is Answer:
        rest: tuple[list[RRset], ...] = tuple([list(section) for section in theirs.sections])
        sections = ([*ours.answer, *rest[0]], rest[1], rest[2])
        return Answer(theirs.rcode, iana.AA, *sections, local=True, validity=zone.validity)
    return joined(tuple(ours.answer), theirs)


def explained(request: Request, zones: Mapping[bytes, S]) -> str:
    """The reason for a query's answer, in a few words."""
    question = request.question
    served = find(question.name, question.type, zones)
    if served is None:
        return "no zone of its has this name"
    zone = served.zone
    if zone is None:
        return served.failure[1]
    found = zone.answer(question.name, question.type)
    about = f"zone {to_text(zone.origin)}, serial {zone.serial}"
    if found.referral:
        return f"{about}: delegated to {to_text(found.authority[-1].owner)}"
    if found.wildcard:
        return f"{about}: by the wildcard {to_text(found.wildcard)}"
    if found.target:
        return f"{about}: a CNAME leads out of the zone, to {to_text(found.target)}"
    if found.rcode == iana.NXDOMAIN:
        return f"{about}: there is no such name"
    return about if found.answer else f"{about}: the name has no record of this type"


def wildcard(request: Request, zones: Mapping[bytes, S]) -> str | None:
    """The wildcard that stands in for the name a query asks, as text; None where there is none."""
    question = request.asked
    served = find(question.name, question.type, zones)
    if served is None or served.zone is None:
        return None
    found = served.zone.answer(question.name, question.type)
    return to_text(found.wildcard) if found.wildcard else None
