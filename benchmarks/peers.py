"""Who is measured: the floor, both builds of kdns, and the servers that are on PATH, all with the same names.

Every server answers for the cluster of benchmarks.mixes and forwards the rest to one knotd on the clients' core, which
answers any name below example.net.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks.harness import CLIENT_CORE, HERE, SERVER_CORE, Server
from benchmarks.mixes import NAMESPACES, SERVICES
from kdns.testing import free_port

COMPILED: Final = HERE.parent / "build" / "compiled"  # where `make compiled` puts the package
COREFILE: Final = """
.:{port} {
    bind 127.0.0.1
    errors
    health 127.0.0.1:{health} {
       lameduck 5s
    }
    ready 127.0.0.1:{ready}
    {more}
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
       endpoint {api}
    }
    prometheus 127.0.0.1:{metrics}
    forward . 127.0.0.1:{upstream} {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""


def corefile(folder: Path, api: str, upstream: int, more: str = "") -> tuple[Path, int]:
    """kubeadm's whole plugin list on free ports."""
    port = free_port()
    text = (
        COREFILE.replace("{api}", api)
        .replace("{port}", str(port))
        .replace("{upstream}", str(upstream))
        .replace("{more}", more)
    )
    for word in ("health", "ready", "metrics"):
        text = text.replace(f"{{{word}}}", str(free_port()))
    path = folder / f"Corefile.{port}"
    path.write_text(text)
    return path, port


def floor(processes: int = 1, cores: str = SERVER_CORE) -> Server:
    """The program in C that only receives and sends."""
    port = free_port()
    words = [str(HERE / "floor" / "floor"), "127.0.0.1", str(port), str(processes)]
    return Server("floor", *words, port=port, cores=cores)


def upstream(folder: Path) -> Server:
    """A knotd that answers everything below example.net and nothing below nx.test."""
    port = free_port()
    soa = "@ 60 SOA ns hostmaster 1 7200 1800 86400 60\n@ 60 NS ns\nns 60 A 192.0.2.53\n"
    (folder / "example.net.zone").write_text(
        "$ORIGIN example.net.\n" + soa + "* 60 A 192.0.2.1\n* 60 AAAA 2001:db8::1\n"
    )
    (folder / "nx.test.zone").write_text("$ORIGIN nx.test.\n" + soa)
    (folder / "upstream.conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}/up\n  udp-workers: 1\n  tcp-workers: 1\n"
        f"database:\n  storage: {folder}/up-db\ntemplate:\n  - id: default\n    storage: {folder}\n    zonefile-sync: "
        f"-1\n"
        "zone:\n  - domain: example.net\n    file: example.net.zone\n  - domain: nx.test\n    file: nx.test.zone\n"
    )
    (folder / "up").mkdir(exist_ok=True)
    return Server("upstream", "knotd", "-c", str(folder / "upstream.conf"), port=port, cores=CLIENT_CORE)


def kdns(
    folder: Path, api: str, to: int, *, compiled: bool = False, more: str = "", cores: str = SERVER_CORE
) -> Server:
    """A kdns with kubeadm's Corefile: the checkout's, or the compiled package."""
    path, port = corefile(folder, api, to, more)
    where = COMPILED if compiled else HERE.parent
    name = "kdns compiled" if compiled else "kdns"
    return Server(
        name,
        "env",
        f"PYTHONPATH={where}",
        sys.executable,
        "-m",
        "kdns",
        "-conf",
        str(path),
        port=port,
        cores=cores,
        cwd=folder,
    )


def builds(folder: Path, api: str, to: int) -> list[Server]:
    """kdns: compiled where `make compiled` has been, and interpreted."""
    out = [kdns(folder, api, to, compiled=True)] if COMPILED.is_dir() else []
    return [*out, kdns(folder, api, to)]


def coredns(
    folder: Path, api: str, to: int, *, more: str = "", cores: str = SERVER_CORE, processors: int = 1
) -> Server:
    """CoreDNS with the same Corefile, on one processor or more."""
    path, port = corefile(folder, api, to, more)
    return Server("coredns", "env", f"GOMAXPROCS={processors}", "coredns", "-conf", str(path), port=port, cores=cores)


def _zones() -> tuple[list[str], list[str]]:
    """The cluster's names as records of a forward and a reverse zone, as far as a mix asks for them."""
    soa = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"
    forward = [f"cluster.local. 30 SOA {soa}", *(f"db.n0.svc.cluster.local. 30 A 10.244.1.{i}" for i in (1, 2, 3))]
    forward += [f"s{i}.n{i % NAMESPACES}.svc.cluster.local. 30 A 10.96.{i >> 8}.{i & 255}" for i in range(SERVICES)]
    forward.append("_http._tcp.s0.n0.svc.cluster.local. 30 SRV 0 100 80 s0.n0.svc.cluster.local.")
    return forward, [f"10.in-addr.arpa. 30 SOA {soa}", "0.0.96.10.in-addr.arpa. 30 PTR s0.n0.svc.cluster.local."]


def knot(folder: Path) -> Server:
    """Knot with the cluster's names in zones."""
    port = free_port()
    forward, reverse = _zones()
    (folder / "cluster.zone").write_text("\n".join(forward) + "\n")
    (folder / "reverse.zone").write_text("\n".join(reverse) + "\n")
    (folder / "knot").mkdir(exist_ok=True)
    (folder / "knot.conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}/knot\n  udp-workers: 1\n  tcp-workers: 1\n"
        f"database:\n  storage: {folder}/knot-db\ntemplate:\n  - id: default\n    storage: {folder}\n    "
        f"zonefile-sync: -1\n"
        "zone:\n  - domain: cluster.local\n    file: cluster.zone\n  - domain: 10.in-addr.arpa\n    file: "
        "reverse.zone\n"
    )
    return Server("knot", "knotd", "-c", str(folder / "knot.conf"), port=port)


def unbound(folder: Path, to: int) -> Server:
    """Unbound with the cluster's names as local data; it caches and forwards the rest."""
    port = free_port()
    forward, reverse = _zones()
    data = "".join(f'  local-data: "{line}"\n' for line in (*forward, *reverse))
    (folder / "unbound.conf").write_text(
        f'server:\n  interface: 127.0.0.1@{port}\n  do-daemonize: no\n  username: ""\n  chroot: ""\n  directory: '
        f'"{folder}"\n'
        f'  pidfile: "{folder}/unbound.pid"\n  use-syslog: no\n  num-threads: 1\n  incoming-num-tcp: 100\n'
        '  module-config: "iterator"\n  do-not-query-localhost: no\n  local-zone: "test." nodefault\n'
        '  local-zone: "cluster.local." static\n  local-zone: "10.in-addr.arpa." static\n'
        f'{data}forward-zone:\n  name: "."\n  forward-addr: 127.0.0.1@{to}\n'
    )
    return Server("unbound", "unbound", "-d", "-c", str(folder / "unbound.conf"), port=port)


def others(folder: Path, api: str, to: int) -> list[Server]:
    """The other servers that are on PATH."""
    out = []
    if shutil.which("coredns"):
        out.append(coredns(folder, api, to))
    if shutil.which("unbound"):
        out.append(unbound(folder, to))
    if shutil.which("knotd"):
        out.append(knot(folder))
    return out


def every_core() -> str:
    """All of this machine's cores, as taskset takes them."""
    return f"0-{(os.cpu_count() or 1) - 1}"
