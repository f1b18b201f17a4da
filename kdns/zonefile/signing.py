"""A whole zone is signed: its master file in, a signed one out, by a child process.

    python -m kdns.zonefile.signing        takes a `Job` (marshal) on its standard input, prints what comes of it

Theory of operation. The child does all of it (it reads the source and the keys, signs, writes beside the target and
puts the file in its place), so a zone of any size holds no loop. The first line of what it writes is a comment with the
times of the signatures, the serial, and a digest of everything the file was made of: records, keys, kind of denial. So
the file itself says whether it is still good, also to the next process.

What is signed (RFC 4035, section 2): every RRset that the zone is the authority for. Names below a cut or a DNAME have
neither signatures nor a place in the chain; of a cut only DS and NSEC are signed. NSEC3 (RFC 5155) has no salt and no
extra iterations (RFC 9276); with opt-out the chain leaves out delegations without DS.
"""

import base64
import gc
import hashlib
import marshal
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from kdns import child, files
from kdns.child import ChildFailed
from kdns.dns import dnssec, iana, rdata
from kdns.dns.name import is_within, parent
from kdns.dns.rrset import RRset
from kdns.store.zone import Zone
from kdns.store.zone_builder import BadZone, zone_of
from kdns.store.zone_node import CUT, REDIRECT, arranged
from kdns.store.zone_proofs import hashed_label
from kdns.zonefile import keys as keyfiles
from kdns.zonefile import types
from kdns.zonefile.errors import ZoneFileError
from kdns.zonefile.keys import BadKey, Roles
from kdns.zonefile.reader import MasterFile

NSEC: Final = "nsec"
NSEC3: Final = "nsec3"
OPT_OUT: Final = "opt-out"

HOUR: Final = 3600
DAY: Final = 24 * HOUR
# CoreDNS's times, in seconds.
INCEPTION: Final = 3 * HOUR  # before now; clocks differ
INCEPTION_JITTER: Final = 18 * HOUR
EXPIRATION: Final = 32 * DAY
EXPIRATION_JITTER: Final = 5 * DAY
RESIGN: Final = 6 * DAY  # since the inception
EXPIRING: Final = 14 * DAY  # before the expiration

TIMEOUT: Final = 3600.0  # seconds; a million records with RSA keys of 2,048 bits take some 1,000
# What a source may hold from an earlier signing, and is made anew.
_MADE: Final = frozenset((iana.RRSIG, iana.NSEC, dnssec.NSEC3, dnssec.NSEC3PARAM))
_HEAD: Final = re.compile(r"; signed by kdns: inception (\d+), expiration (\d+), serial (\d+), digest ([0-9a-f]{64})\n")
_NSEC3_HEAD: Final = b"\1\0\0\0\0"  # SHA-1, no flags, no iterations, no salt


class Job(NamedTuple):
    """What to sign: a master file, its zone, key pairs, the file to write; `now` and the jitters are in seconds."""

    source: str
    origin: bytes
    keys: tuple[str, ...]
    target: str
    now: int
    inception_jitter: int = 0
    expiration_jitter: int = 0
    denial: str = NSEC


class Done(NamedTuple):
    """What came of it. `why` it was signed, empty where it was still good; `error` why it could not be."""

    why: str = ""
    error: str = ""
    inception: int = 0
    expiration: int = 0
    serial: int = 0
    tags: tuple[int, ...] = ()
    seconds: float = 0.0
    seen: tuple[str, ...] = ()  # the source and what it includes
    warnings: tuple[str, ...] = ()


class Head(NamedTuple):
    """What a signed file says of itself; times in seconds of the epoch."""

    inception: int
    expiration: int
    serial: int
    digest: str


def due(inception: int, expiration: int, now: int) -> str:
    """Why signatures must be made anew; empty where they are good (CoreDNS's rules)."""
    if now < inception:
        return f"its signatures begin in the future, at {_moment(inception)}"
    if now - inception > RESIGN:
        return f"it was signed over {RESIGN // DAY} days ago: the signatures' inception is {_moment(inception)}"
    if expiration - now < EXPIRING:
        return f"its signatures expire in under {EXPIRING // DAY} days, at {_moment(expiration)}"
    return ""


def _moment(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def read_head(path: str) -> Head | None:
    """What a signed file says of itself; None where kdns has not signed it, or it is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            found = _HEAD.match(file.readline(300))
    except OSError:
        return None
    return Head(int(found[1]), int(found[2]), int(found[3]), found[4]) if found is not None else None


async def run_beside(job: Job) -> Done:
    """Does a job in a child process."""
    try:
        said = await child.output("kdns.zonefile.signing", given=marshal.dumps(tuple(job)), timeout=TIMEOUT)
        return Done(*marshal.loads(said))
    except (ChildFailed, EOFError, ValueError) as error:
        return Done(error=f"the process that signed it has failed: {error}")


def run(job: Job) -> Done:
    """Signs a zone if it is due, here and now."""
    start = time.monotonic()
    source = MasterFile(job.origin)
    try:
        roles = Roles([keyfiles.read(path) for path in job.keys])
        source.read(job.source)
        names = source.finish()
        _prepare(names, job.origin, roles)
        zone = zone_of(job.origin, arranged(job.origin, names))
    except OSError as error:
        return Done(error=f"{job.source}: {error.strerror or error}")
    except (ZoneFileError, BadKey) as error:
        return Done(error=str(error), seen=tuple(each.path for each in source.seen))
    except BadZone as error:
        return Done(error=f"{job.source}: {error}", seen=tuple(each.path for each in source.seen))
    done = Done(
        seen=tuple(each.path for each in source.seen),
        tags=tuple(key.tag for key in roles.keys),
        warnings=tuple(str(problem) for problem in source.warnings),
    )
    digest = _digest(zone, job, roles)
    head = read_head(job.target)
    if head is None:
        why = "kdns has not signed it before" if os.path.exists(job.target) else f"{job.target} is not there"
    elif head.digest != digest:
        why = "its records, its keys or the kind of denial have changed"
    else:
        why = due(head.inception, head.expiration, job.now)
        if not why:
            return done._replace(inception=head.inception, expiration=head.expiration, serial=head.serial)
    inception = job.now - INCEPTION - job.inception_jitter
    expiration = job.now + EXPIRATION + job.expiration_jitter
    serial = next_serial(job.now, head.serial if head is not None else None)
    made = Head(inception, expiration, serial, digest)
    try:
        _write(job.target, made, signed(zone, roles, serial, inception, expiration, job.denial))
    except OSError as error:
        return done._replace(error=f"{job.target}: {error.strerror or error}")
    return done._replace(
        why=why, inception=inception, expiration=expiration, serial=serial, seconds=time.monotonic() - start
    )


def next_serial(now: int, last: int | None) -> int:
    """The serial of a version that is signed now: the seconds of the epoch, but after the last one (RFC 1982)."""
    serial = now & 0xFFFFFFFF
    if last is not None and not rdata.is_newer(serial, last):
        serial = (last + 1) & 0xFFFFFFFF
    return serial or 1


def _prepare(names: dict[bytes, dict[int, list[Any]]], origin: bytes, roles: Roles) -> None:
    """Takes out what an earlier signing has left, and adds the keys at the apex."""
    for owner in list(names):
        sets = names[owner]
        for key in [key for key in sets if key & 0xFFFF in _MADE]:
            del sets[key]
        if not sets:
            del names[owner]
    apex = names.get(origin)
    if apex is None or iana.SOA not in apex:
        return  # zone_of says what is wrong
    ttl = apex[iana.SOA][0]
    apex[iana.DNSKEY] = [ttl, *apex.get(iana.DNSKEY, [0])[1:], *roles.apex(origin, iana.DNSKEY, ttl).rdatas]
    for rtype in (dnssec.CDS, dnssec.CDNSKEY):
        apex[rtype] = [ttl, *roles.apex(origin, rtype, ttl).rdatas]


def _digest(zone: Zone, job: Job, roles: Roles) -> str:
    made = hashlib.sha256(repr((job.denial, sorted(key.rdata for key in roles.keys))).encode())
    for rrset in zone.rrsets():
        made.update(repr((rrset.owner, rrset.type, rrset.ttl, sorted(rrset.rdatas))).encode())
    return made.hexdigest()


def signed(zone: Zone, roles: Roles, serial: int, inception: int, expiration: int, denial: str) -> Iterator[RRset]:
    """All RRsets of the signed zone, the SOA first."""
    old = zone.soa.rdatas[0]
    soa = zone.soa._replace(rdatas=(old[:-20] + serial.to_bytes(4, "big") + old[-16:],))
    ttl = zone.negative_ttl  # of NSEC and NSEC3: RFC 9077
    parameters = RRset(zone.origin, dnssec.NSEC3PARAM, 0, (_NSEC3_HEAD,))

    def signatures(rrset: RRset) -> RRset:
        octets = dnssec.canonical(rrset, rrset.ttl)
        out = []
        for key in roles.signers(rrset.type):
            head = dnssec.prefix(rrset, rrset.ttl, key.algorithm, key.tag, zone.origin, inception, expiration)
            out.append(head + key.sign(head + octets))
        return RRset(rrset.owner, iana.RRSIG, rrset.ttl, tuple(out))

    chain: list[tuple[bytes, set[int]]] = []  # the names that have a place in it, and their types
    for name, kind, rrsets in _authority(zone):
        types_here: set[int] = set()
        if name == zone.origin:
            rrsets = (soa, *[rrset for rrset in rrsets if rrset.type != iana.SOA])
            if denial != NSEC:
                rrsets = (*rrsets, parameters)
        for rrset in rrsets:
            yield rrset
            if kind == _SECURE or (kind == _DELEGATED and rrset.type == iana.DS):
                yield signatures(rrset)
                types_here |= {rrset.type, iana.RRSIG}
            elif kind == _DELEGATED and rrset.type == iana.NS:
                types_here.add(iana.NS)
        if kind != _BELOW:
            chain.append((name, types_here))
    for rrset in _nsec(zone.origin, chain, ttl) if denial == NSEC else _nsec3(zone.origin, chain, ttl, denial):
        yield rrset
        yield signatures(rrset)


_SECURE: Final = 0
_DELEGATED: Final = 1
_BELOW: Final = 2  # a cut or a DNAME: not ours


def _authority(zone: Zone) -> Iterator[tuple[bytes, int, tuple[RRset, ...]]]:
    """The names in canonical order, each with what the zone is to it."""
    above: bytes | None = None
    for name, node in zone.nodes.items():
        if above is not None and is_within(name, above):
            yield name, _BELOW, node.rrsets
            continue
        above = name if node.flags & (CUT | REDIRECT) else None
        yield name, _DELEGATED if node.flags & CUT else _SECURE, node.rrsets


def _nsec(origin: bytes, chain: Sequence[tuple[bytes, set[int]]], ttl: int) -> Iterator[RRset]:
    owners = [(name, here) for name, here in chain if here]  # an empty non-terminal has no records: RFC 4035, 2.3
    for i, (name, here) in enumerate(owners):
        following = owners[i + 1][0] if i + 1 < len(owners) else origin
        yield dnssec.nsec(name, following, here, ttl)


def _nsec3(origin: bytes, chain: Sequence[tuple[bytes, set[int]]], ttl: int, denial: str) -> Iterator[RRset]:
    types_of = dict(chain)
    if denial == OPT_OUT:
        kept = {name for name, here in chain if here and here != {iana.NS}}
        for name in list(kept):  # and the empty non-terminals above them
            while name != origin:
                name = parent(name)
                kept.add(name)
        types_of = {name: here for name, here in types_of.items() if name in kept}
    hashed = {hashed_label(name, b"", 0): here for name, here in types_of.items()}
    if len(hashed) != len(types_of):
        raise BadZone("two names have one hash")  # RFC 5155, section 7.1: choose another salt; nobody has seen it
    head = bytes((1, int(denial == OPT_OUT))) + _NSEC3_HEAD[2:]
    order = sorted(hashed)
    for i, label in enumerate(order):
        following = base64.b32hexdecode(order[(i + 1) % len(order)].upper())
        data = head + bytes((len(following),)) + following + dnssec.bitmap(hashed[label])
        yield RRset(bytes((len(label),)) + label + origin, dnssec.NSEC3, ttl, (data,))


def _write(target: str, head: Head, rrsets: Iterator[RRset]) -> None:
    """Puts the signed file in its place, whole. Raises OSError."""
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    files.replace(target, _lines(head, rrsets), 0o644)  # what a zone holds is public; its keys are not in it


def _lines(head: Head, rrsets: Iterator[RRset]) -> Iterator[bytes]:
    yield (
        f"; signed by kdns: inception {head.inception}, expiration {head.expiration}, serial {head.serial}, "
        f"digest {head.digest}\n"
    ).encode()
    for rrset in rrsets:
        for line in types.lines(rrset):
            yield line.encode() + b"\n"


def main() -> None:
    """Does the job on the standard input."""
    job = Job(*marshal.loads(sys.stdin.buffer.read()))
    try:
        done = run(job)
    except BadZone as error:
        done = Done(error=f"{job.source}: {error}")
    sys.stdout.buffer.write(marshal.dumps(tuple(done)))


if __name__ == "__main__":
    gc.disable()
    main()
