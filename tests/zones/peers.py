"""Other authorities for the same zones: BIND, NSD and Knot, each a process of its own; and signers for test zones."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode

from tests import programs

PROGRAMS = {"bind": "named", "nsd": "nsd", "knot": "knotd"}


def there() -> list[str]:
    """The peers that this machine has."""
    return [peer for peer, program in PROGRAMS.items() if programs.find(program)]


def _bind(folder: Path, port: int, zones: dict[str, Path]) -> list[str]:
    (folder / "rndc.key").write_text('key "k" { algorithm hmac-sha256; secret "c2VjcmV0"; };\n')
    parts = [
        f'options {{ directory "{folder}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file '
        f"none; recursion no;"
        " session-keyfile none; dnssec-validation no; minimal-responses no; minimal-any no; zero-no-soa-ttl no; "
        "allow-transfer { any; }; notify no;"
        " check-integrity no; };\ncontrols { };\n"
    ]
    parts += [
        f'zone "{zone}" {{ type primary; file "{path}"; check-names ignore; masterfile-format text; }};\n'
        for zone, path in zones.items()
    ]
    (folder / "named.conf").write_text("".join(parts))
    return ["-c", str(folder / "named.conf"), "-g", "-n", "1"]


def _nsd(folder: Path, port: int, zones: dict[str, Path]) -> list[str]:
    text = (
        f'server:\n ip-address: 127.0.0.1@{port}\n username: ""\n zonesdir: "{folder}"\n pidfile: "{folder}/nsd.pid"\n'
        f' xfrdfile: "{folder}/xfrd.state"\n zonelistfile: "{folder}/zone.list"\n xfrdir: "{folder}"\n refuse-any: no\n'
        # By default all that run on a machine share one database, and so each other's zones of the same name.
        ' database: ""\n'
        " server-count: 1\n rrl-ratelimit: 0\n rrl-whitelist-ratelimit: 0\n minimal-responses: no\n round-robin: no\n"
        "remote-control:\n control-enable: no\n"
    )
    text += "".join(
        f'zone:\n name: "{zone}"\n zonefile: "{path}"\n provide-xfr: 0.0.0.0/0 NOKEY\n' for zone, path in zones.items()
    )
    (folder / "nsd.conf").write_text(text)
    return ["-d", "-c", str(folder / "nsd.conf")]


def _knot(folder: Path, port: int, zones: dict[str, Path]) -> list[str]:
    text = (
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n  "
        f"background-workers: 1\n"
        f"database:\n  storage: {folder}/db\nacl:\n  - id: all\n    address: 127.0.0.1\n    action: transfer\n"
        f"template:\n  - id: default\n    semantic-checks: off\n    acl: all\nzone:\n"
    )
    text += "".join(f"  - domain: {zone}\n    file: {path}\n" for zone, path in zones.items())
    (folder / "knot.conf").write_text(text)
    return ["-c", str(folder / "knot.conf")]


_CONFIGURE = {"bind": _bind, "nsd": _nsd, "knot": _knot}


def answers(port: int, zone: str) -> bool:
    """Whether a server on the loopback serves a zone."""
    try:
        reply = dns.query.udp(dns.message.make_query(zone, "SOA"), "127.0.0.1", port=port, timeout=0.5)
    except (OSError, dns.exception.DNSException):
        return False
    return reply.rcode() == dns.rcode.NOERROR and bool(reply.answer)


@contextlib.contextmanager
def serving(peer: str, folder: Path, zones: dict[str, Path]) -> Iterator[int]:
    """A peer that serves zones (names with their final dot) from files; gives its port."""
    with programs.running(folder, lambda port: [PROGRAMS[peer], *_CONFIGURE[peer](folder, port, zones)]) as program:
        for zone in zones:
            program.until(lambda zone=zone: answers(program.port, zone))
        yield program.port


def keygen(folder: Path, zone: str, algorithm: str = "ECDSAP256SHA256", split: bool = True) -> list[str]:
    """Makes keys of a zone by BIND's dnssec-keygen, a KSK and perhaps a ZSK: their names, the KSK's first."""
    program = programs.find("dnssec-keygen")
    assert program is not None
    made = []
    for flags in (["-f", "KSK"], []) if split else (["-f", "KSK"],):
        size = ["-b", "2048"] if algorithm.startswith("RSA") else []
        words = [program, "-q", "-a", algorithm, *size, "-K", str(folder), *flags, zone]
        made.append(subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip())
    return made


def signed(folder: Path, zone: str, text: str, *options: str) -> Path:
    """The file of a zone signed by BIND's dnssec-signzone with keys of its own; `options` are the signer's."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / f"{zone}plain"
    keygen, signer = programs.find("dnssec-keygen"), programs.find("dnssec-signzone")
    assert keygen is not None and signer is not None
    for flags in ([], ["-f", "KSK"]):
        subprocess.run(
            [keygen, "-q", "-a", "ECDSAP256SHA256", "-K", str(folder), *flags, zone],
            check=True,
            capture_output=True,
            timeout=60,
        )
    plain.write_text(text)
    out = folder / f"{zone}signed"
    done = subprocess.run(
        [signer, "-S", "-K", str(folder), "-o", zone, "-f", str(out), "-O", "full", *options, str(plain)],
        capture_output=True, text=True, timeout=60, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out
