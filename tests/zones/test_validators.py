"""What kdns says of signed zones, judged by those that validate and have the zone's key, unbound and delv: never bogus,
never insecure without cause.
"""

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.zone
import pytest

from kdns.testing import Server, eventually
from tests import programs
from tests.fixtures import Serve
from tests.zones import peers
from tests.zones.example_zones import ZONES
from tests.zones.test_beside_peers import SIGNINGS

TYPES = ("A", "AAAA", "MX", "TXT", "NS", "SOA", "DS", "CNAME", "HTTPS", "SRV", "DNSKEY")
# What is below a cut, and what leads there or out of the zone, is not for this zone to prove.
ELSEWHERE = (
    "a.example.",
    "b.example.",
    "c.example.",
    "subdel.wild.example.",
    "sister.more.example.",
    "other.more.example.",
)
SIGN_KINDS = ("nsec", "nsec3", "opt-out")  # of the plugin `sign`
LEAVES = ("outside", "tocut", "far", "loop1", "loop2", "self")


def names_of(zone: str, path: Path, chance: random.Random) -> list[str]:
    read = dns.zone.from_file(str(path), zone, relativize=False, check_origin=False)
    names = {name.to_text() for name, node in read.nodes.items() if not all(each.rdtype in (46, 50) for each in node)}
    for name in sorted(names):  # the same draws in every process
        names.add(f"{chance.choice('abcxyz*')}{chance.randrange(9)}.{name}")
        names.add(f"x.y{chance.randrange(9)}.{name}")
        names.add(f"*.{name}")
        names.add(name.partition(".")[2] or ".")
    inside = [name for name in names if dns.name.from_text(name).is_subdomain(dns.name.from_text(zone))]
    return sorted(
        name for name in inside
        if not any(name == cut or name.endswith("." + cut) for cut in ELSEWHERE)
        and not any(label in LEAVES for label in name.split("."))
    )  # fmt: skip


def judges(name: str, rtype: str) -> bool:
    """Whether unbound can judge a question here: it fails a CNAME asked below a DNAME, whoever answers, and asks the
    root for a DS.
    """
    return not (rtype == "CNAME" and ".moved." in name) and not (rtype == "DS" and name == "example.")


needs_unbound = programs.needs("unbound")
needs_bind = programs.needs("dnssec-signzone")


def judge(server: Server, folder: Path, keys: Path, paths: dict[str, Path], kind: str) -> None:
    """Has unbound, with the keys of a folder as its anchors, ask a server for names of zones in random order."""
    anchors = "".join(path.read_text() for path in keys.glob("K*.key") if " 257 " in path.read_text())
    (folder / "anchors").write_text(anchors)
    stubs = "".join(f'stub-zone:\n name: "{zone}"\n stub-addr: 127.0.0.1@{server.port}\n' for zone in paths)

    def words(port: int) -> list[str]:
        (folder / "unbound.conf").write_text(
            f'server:\n interface: 127.0.0.1\n port: {port}\n username: ""\n chroot: ""\n directory: "{folder}"\n '
            f'pidfile: ""\n use-syslog: no\n verbosity: 1\n val-log-level: 2\n'
            f' do-not-query-localhost: no\n trust-anchor-file: "{folder}/anchors"\n module-config: "validator '
            f'iterator"\n num-threads: 1\n'
            ' cache-max-ttl: 0\n cache-max-negative-ttl: 0\n aggressive-nsec: no\n local-zone: "example." nodefault\n '
            "qname-minimisation: no\n"
            f" do-ip6: no\nremote-control:\n control-enable: no\n{stubs}"
        )
        return ["unbound", "-d", "-c", str(folder / "unbound.conf")]

    chance = random.Random(kind)
    with programs.running(folder / "unbound", words) as program:

        def ask(name: str, rtype: str, timeout: float = 10) -> dns.message.Message:
            query = dns.message.make_query(name, rtype, want_dnssec=True)
            return dns.query.udp(query, "127.0.0.1", port=program.port, timeout=timeout)

        def up() -> bool:
            try:
                return ask("example.", "SOA", timeout=0.5).rcode() == 0  # nobody hears the first ones
            except (OSError, dns.exception.DNSException):
                return False

        program.until(up)
        judged, odd = 0, []
        for zone, path in paths.items():
            every = [(name, rtype) for name in names_of(zone, path, chance) for rtype in TYPES if judges(name, rtype)]
            for name, rtype in chance.sample(every, 150):
                reply = ask(name, rtype)
                judged += 1
                # What an opted-out span may hold is not proven to be absent (RFC 5155, section 6).
                secure = reply.flags & dns.flags.AD or kind in ("optout", "opt-out")
                if reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN) or not secure:
                    odd.append((name, rtype, dns.rcode.to_text(reply.rcode()), dns.flags.to_text(reply.flags)))
    assert judged == 450 and not odd, f"{len(odd)} of {judged}: {odd[:10]}"


DELV = 8  # questions of a zone; each is a process of its own


def judge_by_delv(server: Server, folder: Path, keys: Path, paths: dict[str, Path], kind: str) -> None:
    """Has delv, with the keys of a folder as its anchors, ask a server for names of zones."""
    delv = programs.find("delv")
    assert delv
    found = [
        re.sub(r"^(\S+) .*DNSKEY (\d+) (\d+) (\d+) (.*)$", r'"\1" static-key \2 \3 \4 "\5";', line)
        for path in keys.glob("K*.key") for line in path.read_text().splitlines() if " 257 " in line
    ]  # fmt: skip
    (folder / "bind.keys").write_text("trust-anchors {\n" + "\n".join(found) + "\n};\n")
    chance = random.Random(f"delv {kind}")
    odd = []
    for zone, path in paths.items():
        words = [
            delv,
            "@127.0.0.1",
            "-p",
            str(server.port),
            "-a",
            str(folder / "bind.keys"),
            f"+root={zone}",
            "+nomtrace",
        ]
        every = [(name, rtype) for name in names_of(zone, path, chance) for rtype in TYPES if judges(name, rtype)]
        for name, rtype in chance.sample(every, DELV):
            done = subprocess.run([*words, name, rtype], capture_output=True, text=True, timeout=90)
            secure = "fully validated" in done.stdout or kind in ("optout", "opt-out")
            if done.returncode or not secure or "broken trust" in done.stdout + done.stderr:
                odd.append((name, rtype, done.stdout, done.stderr))
    assert not odd, odd[:5]


needs_delv = programs.needs("delv")
Judge = Callable[[Server, Path, Path, dict[str, Path], str], None]
JUDGES = (
    pytest.param(judge, id="unbound", marks=needs_unbound), pytest.param(judge_by_delv, id="delv", marks=needs_delv),
)  # fmt: skip


@needs_bind
@pytest.mark.parametrize("judged", JUDGES)
@pytest.mark.parametrize("kind", list(SIGNINGS))
def test_a_validator_finds_every_answer_secure(serve: Serve, tmp_path: Path, kind: str, judged: Judge) -> None:
    server, keys, paths = with_signed_files(serve, tmp_path, kind)
    judged(server, tmp_path, keys, paths, kind)


@needs_delv
@needs_bind
@pytest.mark.parametrize("kind", ["compact", "nsec"])
def test_delv_finds_what_dnssec_signs_secure(serve: Serve, tmp_path: Path, kind: str) -> None:
    server, keys, plain = signing_itself(serve, tmp_path, kind, "ECDSAP256SHA256")
    judge_by_delv(server, tmp_path, keys, plain, kind)


@needs_delv
@needs_bind
def test_any_above_a_signed_zone_was_bogus(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TYPES", ("ANY",))
    server, keys, plain = signing_itself(serve, tmp_path, "nsec", "ECDSAP256SHA256", "any")
    judge_by_delv(server, tmp_path, keys, plain, "nsec")


@needs_bind
@pytest.mark.parametrize("judged", JUDGES)
@pytest.mark.parametrize("kind", SIGN_KINDS)
def test_what_sign_has_signed_is_secure(serve: Serve, tmp_path: Path, kind: str, judged: Judge) -> None:
    server, keys, plain = signed_by_sign(serve, tmp_path, kind)
    judged(server, tmp_path, keys, plain, kind)


@needs_unbound
@needs_bind
@pytest.mark.parametrize("algorithm", ["ECDSAP256SHA256", "ED25519", "RSASHA256"])
@pytest.mark.parametrize("kind", ["compact", "nsec"])
def test_what_dnssec_signs_while_it_is_given_is_secure(serve: Serve, tmp_path: Path, kind: str, algorithm: str) -> None:
    server, keys, plain = signing_itself(serve, tmp_path, kind, algorithm)
    judge(server, tmp_path, keys, plain, kind)


def with_signed_files(serve: Serve, folder: Path, kind: str) -> tuple[Server, Path, dict[str, Path]]:
    """A server of zones that were signed before, their keys' folder, and their files."""
    keys = folder / "keys"
    paths = {zone: peers.signed(keys, zone, text, *SIGNINGS[kind]) for zone, text in ZONES.items()}
    lines = "\n ".join(f"file {path} {zone}" for zone, path in paths.items())
    return serve(f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n}}\n"), keys, paths


def signed_by_sign(serve: Serve, folder: Path, kind: str) -> tuple[Server, Path, dict[str, Path]]:
    """A server of zones that it has signed before (`sign`), their keys' folder, and their files as they were."""
    plain, keys = unsigned(folder)
    for zone in plain:
        peers.keygen(keys, zone)
    lines = "\n ".join(
        f"file {folder}/db.{zone}signed {zone}\n sign {path} {zone} {{\n key directory {keys}\n"
        f" directory {folder}\n denial {kind}\n }}"
        for zone, path in plain.items()
    )
    server = serve(f".:{{port}} {{\n bind 127.0.0.1\n {lines}\n}}\n")
    eventually(lambda: all(server.ask(zone, "DNSKEY").answer for zone in plain))
    return server, keys, plain


def signing_itself(
    serve: Serve, folder: Path, kind: str, algorithm: str, more: str = ""
) -> tuple[Server, Path, dict[str, Path]]:
    """A server that signs what it says of zones, their keys' folder, and their files."""
    plain, keys = unsigned(folder)
    for zone in plain:
        peers.keygen(keys, zone, algorithm)
    lines = "\n ".join(f"file {path} {zone}" for zone, path in plain.items())
    signing = f"dnssec {' '.join(plain)} {{\n key directory {keys}\n denial {kind}\n }}"
    return serve(f".:{{port}} {{\n bind 127.0.0.1\n {signing}\n {lines}\n {more}\n}}\n"), keys, plain


def unsigned(folder: Path) -> tuple[dict[str, Path], Path]:
    """The zones' files as they are, and an empty folder for keys."""
    (folder / "keys").mkdir()
    plain = {zone: folder / f"{zone}plain" for zone in ZONES}
    for zone, path in plain.items():
        path.write_text(ZONES[zone])
    return plain, folder / "keys"
