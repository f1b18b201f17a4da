"""The same zones served by kdns, BIND, NSD and Knot: every name and type asked of all of them, with and without DO.

What is compared: response code, AA, and the records of the answer and authority sections with their TTLs; of a referral
also the glue. What is left out, with its reason, is in `comparable` and `expected_difference`.
"""

import random
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
from tests import programs
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
        authority = {
            each for each in authority if not (each[0] == zone and (each[1] == "NS" or each[3].startswith("ns ")))
        }
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
    query = dns.message.make_query(
        name, rtype, want_dnssec=do, use_edns=0 if do else None, payload=4096 if do else None
    )
    query.flags &= ~dns.flags.RD
    reply = dns.query.udp(query, "127.0.0.1", port=port, timeout=10)
    if reply.flags & dns.flags.TC:
        reply = dns.query.tcp(query, "127.0.0.1", port=port, timeout=10)
    return reply


def expected_difference(peer: str, name: str, rtype: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Why a peer may answer otherwise; empty where it may not."""
    differ = {part for part in ours if ours[part] != theirs[part]}
    if peer == "bind" and rtype == "NSEC" and ours["glue"] | ours["authority"] and theirs["aa"] and not ours["aa"]:
        return "the NSEC of a cut is in the parent, but a referral helps who asks for it more; NSD and Knot refer too"
    if (
        peer == "bind"
        and theirs["rcode"] == "SERVFAIL"
        and len({kind for _, kind, _, _ in ours["answer"]} - {"RRSIG"}) == 1
    ):
        return "BIND fails a loop of CNAMEs; as NSD and Knot we give what there is, and whoever follows sees the loop"
    less = differ == {"authority"} and theirs["authority"] < ours["authority"] and ours["rcode"] == "NOERROR"
    if peer in ("bind", "knot") and less and any(kind == "NSEC" for _, kind, _, _ in ours["authority"]):
        return "BIND and Knot leave out the NSEC that shows that a wildcard is an empty non-terminal; NSD gives it too"
    if peer == "nsd" and rtype == "DS" and name in ZONES:
        return (
            "the zone above is here too and is asked for a DS (RFC 4035, section 3.1.4.1), though it has no such "
            "delegation"
        )
    if (
        peer == "nsd"
        and rtype == "NSEC"
        and any(kind == "CNAME" for _, kind, _, _ in theirs["answer"] ^ ours["answer"])
    ):
        return "an NSEC is asked of a CNAME's owner itself (RFC 4035, section 2.5), also where there is none"
    proofs = {kind for _, kind, _, _ in ours["authority"] - theirs["authority"]}
    if (
        peer in ("nsd", "knot")
        and differ == {"authority"}
        and theirs["authority"] < ours["authority"]
        and proofs == {"NSEC3", "RRSIG"}
    ):
        return (
            "NSD and Knot leave parts of the closest encloser's proof out behind a wildcard or a DNAME; BIND gives "
            "them (RFC 5155, 7.2.5)"
        )
    if peer == "nsd" and differ == {"authority"} and name.startswith("*.") and ours["authority"] < theirs["authority"]:
        return "NSD also proves the closest encloser of a wildcard that is asked by its own name"
    if (
        peer == "nsd"
        and differ == {"authority"}
        and theirs["authority"] < ours["authority"]
        and ours["rcode"] == "NXDOMAIN"
        and ours["answer"]
    ):
        return "NSD leaves out the proof for the name that a DNAME leads to"
    if peer == "knot" and differ == {"authority"} and rtype == "NSEC" and theirs["authority"] < ours["authority"]:
        return (
            "Knot takes the wildcard's NSEC in the answer for the proof too, where it has the name asked as its owner"
        )
    return ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The zones' files, unsigned and signed in each way."""
    folder = tmp_path_factory.mktemp("zones")
    made: dict[str, dict[str, Path]] = {"plain": {}}
    for zone, text in ZONES.items():
        path = made["plain"][zone] = folder / f"{zone}plain"
        path.write_text(text)
    if programs.find("dnssec-signzone"):
        for kind, options in SIGNINGS.items():
            made[kind] = {zone: peers.signed(folder / kind, zone, text, *options) for zone, text in ZONES.items()}
    return made


def served(paths: dict[str, Path]) -> Iterator[Server]:
    lines = "\n ".join(f"file {path} {zone}" for zone, path in paths.items())
    with Server(f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n}}\n") as server:
        yield server


def compare(
    peer: str, paths: dict[str, Path], folder: Path, sample: int, first: int = 0
) -> tuple[int, dict[str, int], list[Any]]:
    """Asks every `sample`th question of both; gives the count, the counts of stated differences, and what differs
    otherwise.
    """
    compared, stated, odd = 0, dict[str, int](), []
    with peers.serving(peer, folder, paths) as port:
        for server in served(paths):
            asked = [(zone, *question) for zone, path in paths.items() for question in questions(zone, path)]
            for zone, name, rtype in asked[first % sample :: sample]:
                for do in (False, True):
                    ours = comparable(ask(server.port, name, rtype, do), zone, name)
                    theirs = comparable(ask(port, name, rtype, do), zone, name)
                    compared += 1
                    if ours == theirs:
                        continue
                    reason = expected_difference(peer, name, rtype, ours, theirs)
                    if reason:
                        stated[reason] = stated.get(reason, 0) + 1
                    else:
                        odd.append(
                            (
                                name,
                                rtype,
                                do,
                                {part: (ours[part], theirs[part]) for part in ours if ours[part] != theirs[part]},
                            )
                        )
    return compared, stated, odd


# Every seventh question in each run; they begin in different places, so that nearly all are asked of somebody.
SAMPLE = 7


@pytest.mark.parametrize("peer", list(peers.PROGRAMS))
@pytest.mark.parametrize("kind", ["plain", *SIGNINGS])
def test_the_same_answers_as_peers(files: dict[str, dict[str, Path]], kind: str, peer: str, tmp_path: Path) -> None:
    if peer not in peers.there():
        pytest.skip(f"{peers.PROGRAMS[peer]} is not installed")
    if kind not in files:
        pytest.skip("dnssec-signzone is not installed")
    first = list(peers.PROGRAMS).index(peer) * 4 + ["plain", *SIGNINGS].index(kind)
    compared, _, odd = compare(peer, files[kind], tmp_path, SAMPLE, first)
    assert compared > 500 and not odd, f"{len(odd)} of {compared} differ: {odd[:8]}"


def random_zone(origin: str, chance: random.Random) -> str:
    """A small zone of nodes of all kinds, that all peers load."""
    lines = [f"$TTL 300\n$ORIGIN {origin}\n@ SOA ns h 1 3600 300 3600000 60\n@ NS ns\nns A 192.0.2.1"]
    labels = ("a", "b", "c", "*")
    taken: dict[str, str] = {"": "apex", "ns": "data"}
    for _ in range(chance.randrange(4, 16)):
        name = ".".join(chance.choice(labels) for _ in range(chance.randrange(1, 4)))
        above = name.split(".")
        parents = {".".join(above[i:]) for i in range(1, len(above))}
        if name in taken or any(taken.get(each) in ("cut", "dname") for each in parents):
            continue
        if any(each.endswith("." + name) for each in taken):
            kind = "data"
        else:
            kind = chance.choice(("data", "data", "cname", "dname", "cut", "signed cut"))
        if name.startswith("*") and kind in ("cut", "signed cut", "dname"):
            kind = "data"
        taken[name] = kind.split()[-1]
        target = ".".join(chance.choice(labels[:3]) for _ in range(chance.randrange(1, 4)))
        if kind == "data":
            lines += [
                f"{name} {record}"
                for record in chance.sample(["A 192.0.2.2", 'TXT "x"', f"MX 10 {target}", "AAAA 2001:db8::2"], 2)
            ]
        elif kind == "cname":
            lines.append(f"{name} CNAME {target}")
        elif kind == "dname":
            lines.append(f"{name} DNAME {target}.q")
        else:
            lines += [f"{name} NS ns.{name}", f"ns.{name} A 192.0.2.3"]
            if kind == "signed cut":
                lines.append(f"{name} DS 1 13 2 {'0' * 64}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("peer", list(peers.PROGRAMS))
@pytest.mark.parametrize("kind", ["plain", *SIGNINGS])
def test_the_same_answers_as_peers_in_random_zones(kind: str, peer: str, tmp_path: Path) -> None:
    if peer not in peers.there():
        pytest.skip(f"{peers.PROGRAMS[peer]} is not installed")
    if kind == "optout" and peer != "bind":
        pytest.skip(
            "peers prove a closest encloser that is opted out each in a way of its own; ours is BIND's (RFC 5155, "
            "section 7.2)"
        )
    if kind != "plain" and not programs.find("dnssec-signzone"):
        pytest.skip("dnssec-signzone is not installed")
    paths = {}
    for i in range(5):
        origin = f"z{i}.test."
        text = random_zone(origin, random.Random(f"{kind} {i}"))
        if kind == "plain":
            paths[origin] = tmp_path / origin
            paths[origin].write_text(text)
        else:
            paths[origin] = peers.signed(tmp_path / "signed", origin, text, *SIGNINGS[kind])
    compared, _, odd = compare(peer, paths, tmp_path / "peer", 11)
    assert compared > 100 and not odd, f"{len(odd)} of {compared} differ: {odd[:8]}"
