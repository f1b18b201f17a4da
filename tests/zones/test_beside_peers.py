"""The same zones served by kdns, BIND, NSD and Knot: every name and type asked of all of them, with and without DO.

What is compared: response code, AA, and the records of the answer and authority sections with their TTLs; of a referral also the glue.
What is left out, with its reason, is in `_comparable` and `EXPECTED`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.zone
import pytest

from kdns.testing import Server
from tests.zones import peers
from tests.zones.example_zones import ZONES

SIGNINGS: dict[str, tuple[str, ...]] = {
    "nsec": (),
    "nsec3": ("-3", "aabbccdd", "-H", "5"),
    "optout": ("-3", "-", "-H", "0", "-A"),
}
TYPES = ("A", "AAAA", "NS", "SOA", "MX", "TXT", "SRV", "CNAME", "DNAME", "DS", "NSEC", "HTTPS", "DNSKEY", "NSEC3PARAM")


def questions(zone: str, path: Path) -> list[tuple[str, str]]:
    """Every name of a zone, names beside and below each, names under its wildcards; and what is asked of each."""
    read = dns.zone.from_file(str(path), zone, relativize=False, check_origin=False)
    names = set()
    for name in read.nodes:
        if read.get_node(name) is not None and all(each.rdtype in (50, 46) for each in read.get_node(name) or ()):
            continue  # a hashed name
        while name.is_subdomain(dns.name.from_text(zone)):
            names.add(name.to_text())
            names.add("zz." + name.to_text())
            names.add("a.b." + name.to_text())
            names.add("*." + name.to_text())
            name = name.parent() if len(name) > 1 else dns.name.root
            if len(name) < 2:
                break
    return [(name, rtype) for name in sorted(names) for rtype in TYPES]


def comparable(reply: dns.message.Message, zone: str, name: str) -> dict[str, Any]:
    """A reply as it can be compared."""

    def records(section: Any) -> set[tuple[str, str, int, str]]:
        return {
            (str(rrset.name).lower(), dns.rdatatype.to_text(rrset.rdtype), rrset.ttl, rdata.to_text().lower())
            for rrset in section
            for rdata in rrset
        }

    answer, authority = records(reply.answer), records(reply.authority)
    referral = not any(kind == "SOA" for _, kind, _, _ in authority) and any(
        kind == "NS" and owner != zone for owner, kind, _, _ in authority
    )
    if answer and not referral:
        # The zone's NS beside an answer is a courtesy that servers show or not (Knot does not).
        authority = {each for each in authority if not (each[0] == zone and (each[1] == "NS" or each[3].startswith("ns ")))}
    glue = set()
    if referral:
        cuts = {owner for owner, kind, _, _ in authority if kind == "NS"}
        # RFC 9471: what is below the cut must be there; addresses of other servers are a courtesy.
        glue = {each for each in records(reply.additional) if any(("." + each[0]).endswith("." + cut) for cut in cuts)}
    return {
        "rcode": dns.rcode.to_text(reply.rcode()),
        "aa": bool(reply.flags & dns.flags.AA),
        "answer": answer,
        "authority": authority,
        "glue": glue,
    }


def ask(port: int, name: str, rtype: str, do: bool) -> dns.message.Message:
    query = dns.message.make_query(name, rtype, want_dnssec=do, use_edns=0 if do else None, payload=4096 if do else None)
    query.flags &= ~dns.flags.RD
    reply = dns.query.udp(query, "127.0.0.1", port=port, timeout=10)
    if reply.flags & dns.flags.TC:
        reply = dns.query.tcp(query, "127.0.0.1", port=port, timeout=10)
    return reply


def expected_difference(peer: str, name: str, rtype: str, do: bool, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Why a peer may answer otherwise; empty where it may not."""
    return ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The zones' files, unsigned and signed in each way."""
    folder = tmp_path_factory.mktemp("zones")
    made: dict[str, dict[str, Path]] = {"plain": {}}
    for zone, text in ZONES.items():
        path = made["plain"][zone] = folder / f"{zone}plain"
        path.write_text(text)
    if peers.find("dnssec-signzone"):
        for kind, options in SIGNINGS.items():
            made[kind] = {zone: peers.signed(folder / kind, zone, text, *options) for zone, text in ZONES.items()}
    return made


def served(paths: dict[str, Path]) -> Iterator[Server]:
    lines = "\n ".join(f"file {path} {zone}" for zone, path in paths.items())
    with Server(f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n}}\n") as server:
        yield server


@pytest.mark.parametrize("peer", list(peers.PROGRAMS))
@pytest.mark.parametrize("kind", ["plain", *SIGNINGS])
def test_the_same_answers_as_peers(files: dict[str, dict[str, Path]], kind: str, peer: str, tmp_path: Path) -> None:
    if peer not in peers.there():
        pytest.skip(f"{peers.PROGRAMS[peer]} is not installed")
    if kind not in files:
        pytest.skip("dnssec-signzone is not installed")
    paths = files[kind]
    compared, odd = 0, []
    with peers.serving(peer, tmp_path, paths) as port:
        for server in served(paths):
            for zone, path in paths.items():
                for name, rtype in questions(zone, path):
                    for do in (False, True):
                        ours = comparable(ask(server.port, name, rtype, do), zone, name)
                        theirs = comparable(ask(port, name, rtype, do), zone, name)
                        compared += 1
                        if ours != theirs and not expected_difference(peer, name, rtype, do, ours, theirs):
                            odd.append(
                                (
                                    name,
                                    rtype,
                                    do,
                                    {part: (ours[part], theirs[part]) for part in ours if ours[part] != theirs[part]},
                                )
                            )
    print(f"{peer} {kind}: {compared} answers compared")
    assert not odd, f"{len(odd)} of {compared} differ: {odd[:8]}"
