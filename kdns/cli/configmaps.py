"""Findings on what is configured: the ConfigMap's Corefile, where it forwards to, and whom it hides names from."""

import contextlib
import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from kdns.cli.check import examined
from kdns.cli.clusterstate import State, name_of
from kdns.cli.corefiles import Reader, Source
from kdns.cli.finding import ERROR, INFO, WARNING, Finding
from kdns.corefile import CorefileError, Position, ServerBlock
from kdns.server import build
from kdns.server.order import ORDER


def _configuration(state: State) -> Iterator[Finding]:
    ns = state.namespace
    if state.corefiles is None:
        return
    if not state.corefiles:
        yield Finding(
            ERROR,
            "ConfigMap",
            f"no ConfigMap in {ns} has a key Corefile",
            "a server that restarts has nothing to serve",
            f"kubectl -n {ns} get cm",
        )
    for source in state.corefiles[:1]:
        imported, unbuilt = _read_through(source)
        maps = " ".join(name.rpartition("/")[2] for name in (source.name, *imported))
        show = f"kubectl -n {ns} get cm {maps} -o yaml | kdns check -"
        summary, errors = examined(source, 53, False)
        if state.runs_kdns or not state.images:
            unbuilt = set()
        others = [error for error in errors if not isinstance(error, CorefileError) or error.where not in unbuilt]
        for error in errors:
            if error not in others:
                yield Finding(
                    INFO,
                    "ConfigMap",
                    str(error),
                    "kdns would not take this; the servers here are CoreDNS's, and it does them no harm",
                    show,
                )
        for error in others:
            yield Finding(
                ERROR,
                "ConfigMap",
                str(error),
                "a server that restarts with it fails; running ones keep the configuration before",
                show,
            )
        for warning in summary.warnings:
            yield Finding(INFO, "ConfigMap", f"{source.name}: {warning}", "", show)
        if not others:
            yield from _blocks(state, source)


def served(state: State) -> tuple[ServerBlock, ...] | None:
    """The server blocks of the cluster's Corefile, with what it imports from ConfigMaps. None where it cannot be read
    here: it may have errors, which are findings, or import what is in the server's file system only.
    """
    for source in (state.corefiles or ())[:1]:
        with contextlib.suppress(CorefileError):
            return tuple(build.read(source.text, source.name, reader=Reader(source)).blocks)
    return None


def _read_through(source: Source) -> tuple[list[str], set[Position | None]]:
    """The ConfigMaps that a Corefile imports from, and where it has plugins of CoreDNS that kdns does not have: other
    servers take them.
    """
    reader = Reader(source)
    blocks: list[ServerBlock] = []
    with contextlib.suppress(CorefileError):
        blocks = build.read(source.text, source.name, reader=reader, errors=[]).blocks
    unbuilt: set[Position | None] = {
        directive.at
        for block in blocks
        for name, directives in block.directives.items()
        if name in ORDER and ORDER[name] is None
        for directive in directives
    }
    return sorted({source.holders[name] for name in reader.used if name in source.holders}), unbuilt


def _blocks(state: State, source: Source) -> Iterator[Finding]:
    blocks = served(state)
    if blocks is None:
        return
    if not any("kubernetes" in block.directives for block in blocks):
        yield Finding(
            ERROR,
            "ConfigMap",
            f"{source.name} has no plugin kubernetes",
            f"names of {state.zone} are not served",
            f"kubectl -n {state.namespace} edit cm {source.name.rpartition('/')[2]}",
        )
    if not any("loop" in block.directives for block in blocks):
        yield Finding(
            WARNING,
            "ConfigMap",
            f"{source.name} has no plugin loop",
            "forwarding loops are not detected",
            "add a line `loop` to its server block",
        )
    for block in blocks:
        for directive in block.directives.get("forward", []):
            for word in directive.args[1:]:
                host = word.text.partition("://")[2] or word.text
                host = re.sub(r"(:\d+)?$", "", host.partition("%")[0]).strip("[]")
                if is_loopback(host) or (host and host == state.address):
                    what = "this server's own Service" if host == state.address else "the Pod itself"
                    yield Finding(
                        ERROR,
                        "loops",
                        f"{word.at}: forwards to {host}, which is {what}",
                        "queries for outside names loop and fail",
                        f"kubectl -n {state.namespace} edit cm {source.name.rpartition('/')[2]}    # name the nodes' "
                        f"true upstreams",
                    )


def is_loopback(text: str) -> bool:
    """Whether a text is an address of the machine itself."""
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _tenants(state: State) -> Iterator[Finding]:
    if not state.hides:
        return
    yield Finding(
        INFO, "tenants", "the Corefile has tenants: names of other namespaces do not exist for Pods",
        "a name that one Pod finds may be NXDOMAIN for another, or SERVFAIL for who is not a Pod",
        "kdns explain NAME    # and kdns_tenants_hidden_total counts",
    )  # fmt: skip
    if any("node-local" in name_of(each) for each in state.daemonsets or ()):
        yield Finding(
            WARNING, "tenants", "a NodeLocal DNSCache runs in front of tenants",
            "tenants are not told apart: all Pods of a node are one client, and share what its cache holds",
            f"kubectl -n {state.namespace} get ds",
        )  # fmt: skip


RULES: Final = (_configuration, _tenants)
