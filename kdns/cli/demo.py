"""`kdns demo`: the sample cluster on 127.0.0.1:1053, from inside the package; no files, no cluster, no root."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from kdns.cli.flags import BadFlag, Flag, Help, misused, parse, refuse
from kdns.cli.serve import run
from kdns.plugins.kubernetes import Kubernetes
from kdns.server import build
from kdns.server.lifecycle import Server

PORT: Final = 1053
STATUS: Final = 8053
FLAGS: Final = (
    Flag(("dns.port", "p"), PORT, "port to serve on"),
    Flag(("status.port",), STATUS, "port of the status page; 0: none"),
)
HELP: Final = Help(
    "demo", "kdns demo [FLAGS]", "Serves a sample cluster from inside the package: no files, no cluster, no root.",
    (("kdns demo", "on 127.0.0.1:1053"), ("dig @127.0.0.1 -p 1053 web.shop.svc.cluster.local", "ask it, in another "
        "terminal")),
)  # fmt: skip
_SAMPLE: Final = "kdns/cli/sample"  # as Corefile.example names it


def main(words: Sequence[str]) -> int:
    """Serves the sample until interrupted; returns the exit code."""
    try:
        values, rest = parse(words, FLAGS)
    except BadFlag as error:
        return refuse(error, HELP, FLAGS)
    if rest:
        return misused(f'kdns demo takes no arguments, found "{rest[0]}"', HELP)
    port = int(values["dns.port"])
    text = corefile().replace(_SAMPLE, str(folder())).replace(f".:{PORT} ", f".:{port} ")
    if shown := int(values["status.port"]):
        text = text.replace("    errors\n", f"    errors\n    status 127.0.0.1:{shown}\n", 1)
    return run(lambda: build.read(text, "Corefile.example"), greeting=lambda server: _greeting(server, port, shown))


def folder() -> Path:
    """Where the sample cluster's file lies."""
    with resources.as_file(resources.files("kdns.cli").joinpath("sample")) as path:
        return path


def corefile() -> str:
    """Corefile.example: beside the sample in a wheel, at the top of a checkout."""
    for path in (folder() / "Corefile.example", folder().parent.parent.parent / "Corefile.example"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(2, "no such file", os.fspath(folder() / "Corefile.example"))


def _greeting(server: Server, port: int, status: int) -> list[str]:
    assert server.instance is not None
    cluster = next(plugin.cluster for plugin in server.instance.plugins if isinstance(plugin, Kubernetes))
    services = len(cluster.entries)
    endpoints = sum(len(part.addresses()) for entry in cluster.entries.values() for part in entry.parts())
    return [
        f"ready: {services} services, {endpoints} endpoints (sample). Try:",
        f"  dig @127.0.0.1 -p {port} web.shop.svc.cluster.local",
        f"  dig @127.0.0.1 -p {port} _pg._tcp.db.data.svc.cluster.local SRV",
        f"  dig @127.0.0.1 -p {port} -x 10.96.1.5",
        *([f"What it does: http://127.0.0.1:{status}/"] if status else []),
        "Ctrl-C stops it.",
    ]
