"""BIND, Knot and NSD as secondaries and as primaries of example.org, by transfers and NOTIFYs that one key signs."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import dns.exception
import dns.message
import dns.opcode
import dns.query
import dns.tsigkeyring

from tests.programs import Program
from tests.zones import peers

SECRET = "c2VjcmV0IG9mIHRoZXNlIHRlc3RzIGFuZCBub25l"
KEYS = dns.tsigkeyring.from_text({"key.example.": SECRET})


def knot(folder: Path, port: int, *, master: int = 0, file: Path | None = None, slave: int = 0) -> list[str]:
    """The command of a knotd that follows `master`, or serves `file` and tells `slave`."""
    (folder / "db").mkdir(parents=True, exist_ok=True)
    zone = "  - domain: example.org\n    acl: all\n    semantic-checks: off\n"
    if master:
        zone += "    master: kdns\n"
    if file is not None:
        zone += f"    file: {file}\n    zonefile-load: difference\n    journal-content: changes\n    notify: kdns\n"
    remote = master or slave
    (folder / "knot.conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n  background-workers: 1\n  udp-workers: 1\n  "
        f"tcp-workers: 1\n"
        f"database:\n  storage: {folder}/db\nkey:\n  - id: key.example.\n    algorithm: hmac-sha256\n    secret: "
        f"{SECRET}\n"
        f"remote:\n  - id: kdns\n    address: 127.0.0.1@{remote}\n    key: key.example.\n"
        f"acl:\n  - id: all\n    address: 127.0.0.1\n    action: [transfer, notify]\n    key: key.example.\n"
        f"template:\n  - id: default\n    storage: {folder}\nzone:\n{zone}"
    )
    return ["knotd", "-c", str(folder / "knot.conf")]


def bind(folder: Path, port: int, *, master: int = 0, file: Path | None = None, slave: int = 0) -> list[str]:
    """The command of a named that follows `master`, or serves `file` and tells `slave`."""
    folder.mkdir(exist_ok=True)
    if master:
        zone = f"type secondary; primaries {{ 127.0.0.1 port {master} key key.example.; }}; allow-notify {{ any; }};"
    else:
        zone = (
            f'type primary; file "{file}"; ixfr-from-differences yes; also-notify {{ 127.0.0.1 port {slave} key '
            f"key.example.; }}; notify explicit;"
        )
    (folder / "named.conf").write_text(
        f'key key.example. {{ algorithm hmac-sha256; secret "{SECRET}"; }};\n'
        f'options {{ directory "{folder}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file '
        f'"{folder}/pid"; recursion no;'
        " session-keyfile none; dnssec-validation no; allow-transfer { key key.example.; }; notify-delay 0; "
        "};\ncontrols { };\n"
        f'zone "example.org" {{ {zone} }};\n'
    )
    return ["named", "-c", str(folder / "named.conf"), "-g", "-n", "1"]


def nsd(folder: Path, port: int, *, master: int = 0, file: Path | None = None, slave: int = 0) -> list[str]:
    """The command of an nsd that follows `master`, or serves `file` and tells `slave`."""
    folder.mkdir(exist_ok=True)
    if master:
        zone = (
            f' zonefile: "{folder}/example.org"\n request-xfr: 127.0.0.1@{master} key.example.\n'
            " allow-notify: 127.0.0.1 key.example.\n max-retry-time: 1\n min-retry-time: 1\n max-refresh-time: 2\n"
        )
    else:
        zone = (
            f' zonefile: "{file}"\n notify: 127.0.0.1@{slave} key.example.\n store-ixfr: yes\n create-ixfr: yes\n'
            " notify-retry: 5\n"
        )
    (folder / "nsd.conf").write_text(
        f'server:\n ip-address: 127.0.0.1@{port}\n username: ""\n zonesdir: "{folder}"\n pidfile: "{folder}/nsd.pid"\n'
        f' xfrdfile: "{folder}/xfrd.state"\n zonelistfile: "{folder}/zone.list"\n xfrdir: "{folder}"\n database: ""\n'
        " server-count: 1\n verbosity: 2\n xfrd-reload-timeout: 0\nremote-control:\n control-enable: no\n"
        f"key:\n name: key.example.\n algorithm: hmac-sha256\n secret: {SECRET}\n"
        f"zone:\n name: example.org\n provide-xfr: 127.0.0.1 key.example.\n{zone}"
    )
    return ["nsd", "-d", "-c", str(folder / "nsd.conf")]


COMMANDS: dict[str, Callable[..., list[str]]] = {"bind": bind, "knot": knot, "nsd": nsd}
assert COMMANDS.keys() == peers.PROGRAMS.keys()


def serial(port: int) -> int:
    """The serial that a server has of example.org; -1 where it has none."""
    try:
        reply = dns.query.udp(dns.message.make_query("example.org.", "SOA"), "127.0.0.1", port=port, timeout=1)
    except (OSError, dns.exception.DNSException):
        return -1
    return reply.answer[0][0].serial if reply.answer and reply.rcode() == 0 else -1


def notify(port: int, *, signed: bool = False) -> None:
    """Sends a server a NOTIFY for example.org. Raises OSError or DNSException where no reply comes."""
    query = dns.message.make_query("example.org.", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    if signed:
        query.use_tsig(KEYS, "key.example.")
    dns.query.udp(query, "127.0.0.1", port=port, timeout=5)


def urged(program: Program, check: Callable[[], bool]) -> None:
    """Waits as `Program.until`, and sends the program NOTIFYs meanwhile.

    A secondary's own next attempt may be far: after a first transfer that failed NSD waits for 10 s, then 20, 40.
    """
    last = 0.0

    def checked() -> bool:
        nonlocal last
        if time.monotonic() > last + 2:
            last = time.monotonic()
            with contextlib.suppress(OSError, dns.exception.DNSException):
                notify(program.port, signed=True)
        return check()

    program.until(checked)
