"""The encryption of listeners: what the `tls` of the blocks that share one comes to.

Laws: blocks of a listener may have certificates of their own, and the server name that a client sends chooses one;
what is asked of clients is one for all blocks of a listener, for a client shows its certificate once, and then asks for
the names of any block. QUIC is always encrypted.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from kdns import extras
from kdns.address import host_port
from kdns.corefile import CorefileError, Key
from kdns.net.certificates import Identities, TlsFiles
from kdns.plugin.providers import Encrypts
from kdns.server.block import Block
from kdns.server.schemes import SCHEMES

# The schemes that a plugin is for.
_MEANT_FOR: Final = {
    "tls": tuple(name for name, scheme in SCHEMES.items() if scheme.alpn),
    "https": ("https",), "https3": ("https3",), "quic": ("quic",), "grpc_server": ("grpc",),
}  # fmt: skip
# What blocks that share a listener must agree on, and why.
_WHY: Final = "blocks of one listener must ask the same of clients, who may then ask for the names of each of them"


def identities(scheme: str, asked: Iterable[TlsFiles]) -> Identities[Any] | None:
    """What a listener of a scheme shows; None where it is not encrypted. Reads files, which may wait. Raises
    BadCertificate.
    """
    files = list(asked)
    if not files or not SCHEMES[scheme].alpn:
        return None
    # The last block that has a key log counts, as with all that is the listener's.
    keylog = next((each.keylog for each in reversed(files) if each.keylog), "")
    files = list(dict.fromkeys(replace(each, keylog=keylog) for each in files))
    alpn = SCHEMES[scheme].alpn
    if SCHEMES[scheme].quic:
        from kdns.net.quic_identity import configuration  # its library is an extra

        return Identities(files, partial(configuration, alpn=alpn))
    return Identities(files, partial(TlsFiles.context, alpn=alpn))


def unencrypted(blocks: Iterable[Block]) -> list[str]:
    """Warnings of keys whose scheme is encrypted elsewhere."""
    out: dict[str, None] = {}
    for (scheme, _, _), found in _listeners(blocks):
        if not SCHEMES[scheme].quic and not any(block.all(Encrypts) for _, block in found):
            for key, _ in found:
                out[f"{key} is served unencrypted: there is no `tls` in its server block"] = None
    return list(out)


def without_use(blocks: Iterable[Block]) -> list[str]:
    """Warnings of plugins that do nothing, as no key of their block has a scheme that they are for: `.:853` with `tls`
    is served in the clear.
    """
    out = []
    for block in blocks:
        schemes = {key.scheme for key in block.parsed.keys}
        for plugin in block.plugins:
            wanted = _MEANT_FOR.get(plugin.name)
            if wanted and not schemes.intersection(wanted):
                keys = " ".join(str(key) for key in block.parsed.keys)
                named = " or ".join(f"{scheme}://" for scheme in wanted)
                out.append(f"{plugin.name} does nothing in the server block {keys}: it has no key with {named}")
    return out


def choices(blocks: Iterable[Block]) -> list[str]:
    """A line for each listener that has several certificates, as they are written."""
    out = []
    for (scheme, host, port), found in _listeners(blocks):
        written = {" ".join(line.words()) for _, block in found for line in block.parsed.directives.get("tls", ())}
        if len(written) > 1:
            where = f"{scheme}://{host_port(host, port)}"
            out.append(f"{where} has {len(written)} certificates: the server name that a client sends chooses one")
    return out


def problems(blocks: Iterable[Block]) -> Iterator[CorefileError]:
    """Where blocks of a listener ask different things of clients, and where QUIC lacks what is asked for."""
    for (scheme, _, _), found in _listeners(blocks):
        time.sleep(0)  # where this is a thread: others first
        asking = [(key, plugin) for key, block in found for plugin in block.all(Encrypts)]
        for key, plugin in asking[1:]:
            yield from _disagreements(key, plugin, asking[0][1])
        if SCHEMES[scheme].quic:
            yield from _without_quic(found, encrypted=bool(asking))


def _disagreements(key: Key, plugin: Encrypts, first: Encrypts) -> Iterator[CorefileError]:
    for (what, mine), its in zip(plugin.asks.items(), first.asks.values(), strict=True):
        if mine != its:
            yield CorefileError(
                plugin.at,
                f"tls: {key} has {what} {mine}, and {its} at {first.at}: {_WHY}. Serve one of them on another port",
            )


def _without_quic(found: list[tuple[Key, Block]], encrypted: bool) -> Iterator[CorefileError]:
    for key, block in found:
        if lacking := extras.lacking_quic(f"{key.scheme}://"):
            yield CorefileError(key.token.at, lacking)
        elif not encrypted:
            yield CorefileError(
                key.token.at, f"{key}: QUIC is always encrypted: name a certificate with `tls CERT KEY`"
            )
        if any(plugin.name == "proxyproto" for plugin in block.plugins):
            yield CorefileError(
                key.token.at, f"{key}: proxyproto cannot be had over QUIC: serve this key in another block"
            )
        if any(plugin.verifies != ssl.CERT_NONE for plugin in block.all(Encrypts)):
            # aioquic asks for no certificate, and a listener that lets everybody in is not what was meant.
            yield CorefileError(
                key.token.at, f"{key}: client_auth cannot be had over QUIC: serve this key in another block, without it"
            )


def _listeners(blocks: Iterable[Block]) -> Iterator[tuple[tuple[str, str, int], list[tuple[Key, Block]]]]:
    """The encrypted schemes' listeners (scheme, address, port) with the keys that are served there, and their
    blocks.
    """
    out: dict[tuple[str, str, int], list[tuple[Key, Block]]] = {}
    for block in blocks:
        for key in block.parsed.keys:
            if SCHEMES[key.scheme].alpn:
                for host in block.named_hosts():
                    out.setdefault((key.scheme, host, key.port), []).append((key, block))
    yield from out.items()
