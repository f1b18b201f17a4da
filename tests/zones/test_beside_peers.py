"""The same zones served by kdns, BIND, NSD and Knot: every name and type asked of all of them, with and without DO.

What is compared: response code, AA, and the records of the answer and authority sections with their TTLs; of a referral
also the glue. What is left out, with its reason, is in `comparable` and `expected_difference`.
"""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdns.dns import wire
from kdns.testing import Server
from tests import programs
from tests.zones import peers
from tests.zones.example_zones import ZONES

SIGNINGS: dict[str, tuple[str, ...]] = {
    "nsec": (),
    "nsec3": ("-3", "aabbccdd", "-H", "5"),
    "optout": ("-3", "-", "-H", "0", "-A"),
}
LEADING = {dns.rdatatype.NS, dns.rdatatype.MX, dns.rdatatype.SRV, dns.rdatatype.SVCB, dns.rdatatype.HTTPS}
TYPES = (
    "A",
    "AAAA",
    "NS",
    "SOA",
    "MX",
    "TXT",
    "SRV",
    "CNAME",
    "DNAME",
    "DS",
    "NSEC",
    "HTTPS",
    "SVCB",
    "DNSKEY",
    "NSEC3PARAM",
)


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
    # Addresses of what the answer leads to. A signature need not come with them (RFC 4035, section 3.1.1).
    targets = {
        str(getattr(rdata, "exchange", None) or rdata.target).lower()
        for rrset in reply.answer if rrset.rdtype in LEADING for rdata in rrset
    }  # fmt: skip
    additional = {each for each in records(reply.additional) if each[0] in targets and each[1] in ("A", "AAAA")}
    return {
        "rcode": dns.rcode.to_text(reply.rcode()),
        "aa": bool(reply.flags & dns.flags.AA),
        "answer": answer,
        "authority": authority,
        "glue": glue,
        "additional": additional,
    }


def ask(port: int, query: bytes) -> bytes:
    """A server's reply; over TCP where UDP has no room for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.connect(("127.0.0.1", port))
        udp.send(query)
        reply = udp.recv(65535)
    if not reply[2] & 2:  # TC
        return reply
    with socket.create_connection(("127.0.0.1", port), 10) as tcp, tcp.makefile("rb") as stream:
        tcp.sendall(len(query).to_bytes(2) + query)
        return stream.read(int.from_bytes(stream.read(2)))


def plain(reply: bytes) -> tuple[bytes, list[Any]]:
    """A reply with its names written out and each section's records in order: of two that are the same so is all that
    `comparable` says. Most are, and dnspython takes ten times as long to read them.
    """
    counts = struct.unpack_from("!4H", reply, 4)
    at = 12
    for _ in range(counts[0]):
        at = wire.skip_name(reply, at) + 4
    head, sections, budget = reply[:at], list[Any](), wire.Budget()
    for count in counts[1:]:
        found = []
        for each in wire.records(reply, at, count, budget):
            rdata = wire.expand_rdata(reply, each, budget)
            found.append((each.owner.lower(), each.type, each.cls, each.ttl, rdata))
            at = each.end
        sections.append(sorted(found))
    return head, sections


def read(reply: bytes, query: dns.message.Message) -> dns.message.Message:
    found = dns.message.from_wire(reply, one_rr_per_rrset=True)
    assert query.is_response(found), found
    return found


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
    if differ == {"additional"} and theirs["additional"] < ours["additional"]:
        return "addresses of what an answer leads to are a courtesy (RFC 1034, section 3.7); we give more of them"
    if (
        peer == "nsd"
        and differ == {"authority"}
        and any(kind == "DNAME" for _, kind, _, _ in ours["answer"])
        and ({kind for _, kind, _, _ in ours["authority"] ^ theirs["authority"]} <= {"NSEC", "RRSIG"})
    ):
        return "NSD takes the NSEC of another name for the proof that the name that a DNAME leads to is not there"
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
                    query = dns.message.make_query(
                        name, rtype, want_dnssec=do, use_edns=0 if do else None, payload=4096 if do else None
                    )
                    query.flags &= ~dns.flags.RD
                    replies = [ask(each, query.to_wire()) for each in (server.port, port)]
                    compared += 1
                    if replies[0] == replies[1] or plain(replies[0]) == plain(replies[1]):
                        continue
                    ours, theirs = (comparable(read(reply, query), zone, name) for reply in replies)
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
                                zone,
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


# Random zones: few names that meet each other often, each a node of one kind.

DRAWN = 16  # the longer half of them is asked
LABELS = st.sampled_from(["a", "b", "c", "*"])
RELATIVE = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
TARGET = st.one_of(RELATIVE, RELATIVE, RELATIVE.map(lambda name: f"{name}.example.net."), st.just("@"))
DATA = st.one_of(
    st.sampled_from(["A 192.0.2.2", "A 192.0.2.4", "AAAA 2001:db8::2", 'TXT "x"', "HTTPS 1 . alpn=h2"]),
    st.builds("MX 10 {}".format, TARGET),
    st.builds("SRV 1 2 3 {}".format, TARGET),
    st.builds("SVCB 1 {} port=53".format, TARGET),
    st.builds("HTTPS 0 {}".format, TARGET),
)
DS = f"DS 1 13 2 {'0' * 64}"


@st.composite
def node(draw: st.DrawFn, name: str) -> list[str]:
    """The records of a node, those of its glue with them."""
    kinds = ["data", "data", "cname"]
    if "*" not in name.partition(".")[0]:  # what delegates or renames by a wildcard is undefined (RFC 4592, section 4)
        kinds += ["dname", "cut", "signed cut", "cut of others"]
    kind = draw(st.sampled_from(kinds))
    if kind == "data":
        return [f"{name} {record}" for record in draw(st.sets(DATA, min_size=1, max_size=4))]
    if kind == "cname":
        return [f"{name} CNAME {draw(TARGET)}"]
    if kind == "dname":
        return [f"{name} DNAME {draw(TARGET)}", *draw(st.sampled_from([[], [f"{name} A 192.0.2.5"]]))]
    if kind == "cut of others":  # without glue, or with that of a sister
        return [f"{name} NS {draw(TARGET)}"]
    glue = [f"ns.{name} A 192.0.2.3", f"ns.{name} AAAA 2001:db8::3"][: draw(st.integers(0, 2))]
    return [f"{name} NS ns.{name}", *glue, *([f"{name} {DS}"] if kind == "signed cut" else [])]


@st.composite
def random_zone(draw: st.DrawFn) -> str:
    """The lines of a small zone of nodes of all kinds, also occluded ones, that all peers load."""
    lines = ["$TTL 300", "@ SOA ns h 1 3600 300 3600000 60", "@ NS ns", "ns A 192.0.2.1"]
    for name in draw(st.lists(RELATIVE, min_size=3, max_size=12, unique=True)):
        lines += draw(node(name))
    aliases, renamed = ({line.split()[0] for line in lines if line.split()[1] == kind} for kind in ("CNAME", "DNAME"))
    # An alias stands alone: what another node has for its name, its glue, is left out. So is what is below a DNAME:
    # NSD and Knot refuse such zones.
    kept = [
        line for line in lines
        if (line.split()[1] == "CNAME" or line.split()[0] not in aliases)
        and not any(line.split()[0].endswith(f".{each}") for each in renamed)
    ]  # fmt: skip
    return "\n".join(kept) + "\n"


def drawn(count: int) -> list[str]:
    """So many random zones, the same in every run."""
    found: list[str] = []

    @settings(max_examples=count, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(random_zone())
    def draw(text: str) -> None:
        found.append(text)

    draw()
    # Hypothesis begins with what is simple.
    return sorted(found, key=len)[-count // 2 :]


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
    texts = {f"z{i}.test.": text for i, text in enumerate(drawn(DRAWN))}
    for origin, text in texts.items():
        if kind == "plain":
            paths[origin] = tmp_path / origin
            paths[origin].write_text(text)
        else:
            paths[origin] = peers.signed(tmp_path / "signed", origin, text, *SIGNINGS[kind])
    compared, _, odd = compare(peer, paths, tmp_path / "peer", 13)
    assert compared > 100 and not odd, f"{len(odd)} of {compared} differ: {odd[:8]}; {texts[odd[0][3]]}"
